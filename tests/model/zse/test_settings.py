"""Recipes: plain values for options of train.py, which give way to what is typed."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import options
from model.zse.method import ZSE
from model.zse.settings import FROM_SCRATCH, PAPER, RECIPES, STRONG, values_of

ROOT = Path(__file__).parents[2]
PUBLISHED = {  # Lin et al., CVPR 2023, and their program
    "draws": "triplets",
    "batch": 15,
    "datasetLen": 10000,
    "epoch": 30,
    "augment": "none",
    "learning_rate": 1e-5,
    "schedule": "constant",
    "weight_decay": 1e-2,
    "triplet_weight": 2,
    "relation_weight": 4,
    "relation_loss": "mse",
    "dropout": 0.1,
    "downsampling": "published",
    # of ours, nothing:
    "shortcut": False,
    "whitening": False,
    "contrastive_weight": 0,
    "classification_weight": 0,
    "distillation_weight": 0,
    "ema": 0,
    "layer_decay": 1,
    "new_rate": 1,
}
UNUSED = {"per_class", "own_photo", "temperature", "learn_temperature"}  # by the paper
TYPED = {  # option: words that no recipe says, with their values; 0 and off are values too
    "draws": [("triplets", "triplets"), ("classes", "classes")],
    "per_class": [("3", 3)],
    "own_photo": [("0.25", 0.25), ("0", 0), ("1", 1)],
    "batch": [("7", 7)],
    "datasetLen": [("70", 70)],
    "epoch": [("2", 2)],
    "augment": [("light", "light"), ("flip", "flip")],
    "downsampling": [("published", "published"), ("spatial", "spatial")],
    "shortcut": [(None, True), (None, False)],
    "whitening": [(None, True), (None, False)],
    "dropout": [("0.3", 0.3), ("0", 0)],
    "learning_rate": [("0.25", 0.25), ("0", 0)],
    "layer_decay": [("0.5", 0.5)],
    "new_rate": [("3", 3), ("0", 0)],
    "weight_decay": [("0.125", 0.125), ("0", 0)],
    "schedule": [("constant", "constant"), ("cosine", "cosine")],
    "ema": [("0.875", 0.875), ("0", 0)],
    "triplet_weight": [("0.25", 0.25), ("0", 0)],
    "relation_weight": [("0.25", 0.25), ("0", 0)],
    "relation_loss": [("mse", "mse"), ("logistic", "logistic")],
    "contrastive_weight": [("0.25", 0.25), ("0", 0)],
    "temperature": [("0.25", 0.25)],
    "learn_temperature": [(None, True), (None, False)],
    "classification_weight": [("0.25", 0.25), ("0", 0)],
    "distillation_weight": [("0.25", 0.25), ("0", 0)],
}
STARTS = {  # how training starts: what is typed for it, and whether the weights are pretrained
    "pretrained": ([], True),
    "from scratch": (["--no-pretrained"], False),
    "from a checkpoint": (["--no-pretrained", "--load", "file.pth"], True),
}


def of_train(*words: str) -> dict:
    """What train.py makes of these words, of the options that recipes set."""
    args = vars(options.train_options(list(words)))
    return {name: args[name] for name in STRONG}


def typed(option: str, value) -> list[str]:
    """The words that say so on the command line."""
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", str(value)]


def test_all_recipes_speak_of_the_same_options():
    assert set(RECIPES) == {"strong", "paper"}
    assert STRONG.keys() == PAPER.keys() == TYPED.keys()
    assert FROM_SCRATCH.keys() < STRONG.keys()


def test_a_recipe_is_plain_values_of_one_type_an_option():
    for name, value in PAPER.items():
        assert type(value) in (bool, int, float, str)
        assert type(STRONG[name]) is type(value), name
        assert type(FROM_SCRATCH.get(name, value)) is type(value), name


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_options_that_are_not_given_take_the_recipes_values(recipe, start):
    words, pretrained = STARTS[start]
    assert of_train("--recipe", recipe, *words) == values_of(recipe, pretrained)
    if recipe == "strong":
        assert of_train(*words) == values_of(recipe, pretrained)  # the default


def test_paper_is_what_was_published():
    assert {name: PAPER[name] for name in PUBLISHED} == PUBLISHED
    assert PAPER.keys() - PUBLISHED.keys() == UNUSED


def test_paper_is_what_the_method_does_when_it_is_told_nothing():
    defaults = {n: p.default for n, p in inspect.signature(ZSE).parameters.items()}
    settings = {*options.TRAINING_SETTINGS, "downsampling", "shortcut", "whitening"}
    assert settings <= PAPER.keys() & defaults.keys()
    assert {n: PAPER[n] for n in settings} == {n: defaults[n] for n in settings}


def test_from_scratch_changes_strong_alone():
    for recipe, plain in RECIPES.items():
        assert values_of(recipe, pretrained=True) == plain
    assert values_of("paper", pretrained=False) == PAPER
    assert values_of("strong", pretrained=False) == {**STRONG, **FROM_SCRATCH}
    changed = {name for name in FROM_SCRATCH if FROM_SCRATCH[name] != STRONG[name]}
    assert {"learning_rate", "new_rate"} <= changed


def test_from_scratch_nothing_is_kept_and_nothing_learns_at_another_rate():
    values = values_of("strong", pretrained=False)
    assert values["distillation_weight"] == 0 and values["new_rate"] == values["layer_decay"] == 1
    assert values["learning_rate"] > STRONG["learning_rate"]


def test_changing_what_was_handed_out_changes_no_recipe():
    for pretrained in (True, False):
        values_of("strong", pretrained)["batch"] = -1
    assert values_of("strong", True)["batch"] == STRONG["batch"] != -1


# ---- on the command line


@pytest.mark.parametrize("option", STRONG)
def test_each_option_is_one_of_train_that_accepts_the_recipes_values(option):
    values = [recipe[option] for recipe in RECIPES.values()]
    if option in FROM_SCRATCH:
        values.append(FROM_SCRATCH[option])
    for value in values:
        found = of_train("--batch", "3", *typed(option, value))[option]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_typed_out_makes_the_other_one_this(recipe, start):
    values = RECIPES[recipe]
    words = [word for option, value in values.items() for word in typed(option, value)]
    for other in RECIPES:
        assert of_train("--recipe", other, *STARTS[start][0], *words) == values


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("option", TYPED)
def test_what_is_typed_wins_and_changes_nothing_else(option, recipe, start):
    words, pretrained = STARTS[start]
    plain = values_of(recipe, pretrained)
    for word, value in TYPED[option]:
        if option == "distillation_weight" and value and not pretrained:
            continue  # refused
        said = typed(option, value) if word is None else [f"--{option}", word]
        assert of_train("--recipe", recipe, *words, *said) == {**plain, option: value}
        assert of_train(*said, *words, "--recipe", recipe) == {**plain, option: value}


def test_for_each_option_something_else_than_any_recipe_can_be_typed():
    """Else the test before this one would show nothing."""
    for recipe in (STRONG, PAPER, {**STRONG, **FROM_SCRATCH}):
        for option, words in TYPED.items():
            assert any(value != recipe[option] for _, value in words), option


@pytest.mark.parametrize("option", STRONG)
def test_help_says_what_each_recipe_has(option, capsys):
    with pytest.raises(SystemExit):
        options.train_options(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    of_option = re.split(rf" --{option}(?:, --no-{option})? ", said)[-1]
    switch = {True: "on", False: "off"}
    values = {"strong": STRONG[option], "paper": PAPER[option]}
    if FROM_SCRATCH.get(option, STRONG[option]) != STRONG[option]:
        values = {"strong": STRONG[option], "from scratch": FROM_SCRATCH[option], **values}
    words = [f"{n}: {switch[v] if isinstance(v, bool) else v}" for n, v in values.items()]
    assert re.search(r"\(strong: .*?\)", of_option).group() == f"({', '.join(words)})"


def test_the_table_loads_no_torch():
    code = (
        "import model.zse.settings, sys; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
