"""Recipes of ZSE-SBIR: settings that give way to what is typed."""

import re
from dataclasses import replace

import pytest

import options
from model.settings import options_of
from model.zse.settings import FROM_SCRATCH, PAPER, STRONG, ZSESettings

PUBLISHED = {  # Lin et al., CVPR 2023, and their program
    "draws": "triplets",
    "batch": 15,
    "draws_an_epoch": 10000,
    "epochs": 30,
    "augment": "none",
    "learning_rate": 1e-5,
    "schedule": "constant",
    "weight_decay": 1e-2,
    "triplet_weight": 2,
    "relation_weight": 4,
    "relation_loss": "mse",
    "dropout": 0.1,
    "vit": "vit_base_patch16_224",
    "width": None,  # the ViT's: 768
    "hidden": None,  # 1024
    "heads": 8,
    "layers": 1,
    "anchors": None,  # 49
    "downsampling": "published",
    # of ours, nothing:
    "keep_rate": 1,
    "shortcut": False,
    "whitening": False,
    "contrastive_weight": 0,
    "classification_weight": 0,
    "accumulate": 1,
    "clip": 0,
    "ema": 0,
    "layer_decay": 1,
    "new_rate": 1,
}
UNUSED = {"per_class", "own_photo", "temperature", "learn_temperature"}  # by the paper
SPEED = {"amp", "tf32", "compile", "checkpoint_blocks"}
TYPED = {  # field: words that no recipe has, with their values; 0 and off are values too
    "draws": [("triplets", "triplets"), ("classes", "classes")],
    "per_class": [("3", 3)],
    "own_photo": [("0.25", 0.25), ("0", 0), ("1", 1)],
    "augment": [("light", "light"), ("flip", "flip")],
    "batch": [("7", 7)],
    "accumulate": [("2", 2)],
    "draws_an_epoch": [("70", 70)],
    "epochs": [("2", 2)],
    "learning_rate": [("0.25", 0.25), ("0", 0)],
    "schedule": [("constant", "constant"), ("cosine", "cosine")],
    "layer_decay": [("0.5", 0.5)],
    "new_rate": [("3", 3), ("0", 0)],
    "weight_decay": [("0.125", 0.125), ("0", 0)],
    "clip": [("2", 2)],
    "ema": [("0.875", 0.875), ("0", 0)],
    "amp": [("bf16", "bf16"), ("off", "off")],
    "tf32": [(None, True), (None, False)],
    "compile": [(None, True), (None, False)],
    "checkpoint_blocks": [(None, True), (None, False)],
    "vit": [("vit_tiny_patch16_224", "vit_tiny_patch16_224")],
    "width": [("192", 192)],
    "hidden": [("100", 100)],
    "heads": [("4", 4)],
    "layers": [("2", 2)],
    "anchors": [("196", 196)],
    "downsampling": [("published", "published"), ("spatial", "spatial")],
    "keep_rate": [("0.9", 0.9)],
    "shortcut": [(None, True), (None, False)],
    "whitening": [(None, True), (None, False)],
    "triplet_weight": [("0.25", 0.25), ("0", 0)],
    "relation_weight": [("0.25", 0.25), ("0", 0)],
    "relation_loss": [("mse", "mse"), ("logistic", "logistic")],
    "contrastive_weight": [("0.25", 0.25), ("0", 0)],
    "temperature": [("0.25", 0.25)],
    "learn_temperature": [(None, True), (None, False)],
    "classification_weight": [("0.25", 0.25), ("0", 0)],
    "dropout": [("0.3", 0.3), ("0", 0)],
}
RECIPES = ("strong", "paper")
STARTS = {  # how training starts: what is typed for it, and whether the weights are pretrained
    "pretrained": ([], True),
    "from scratch": (["--no-pretrained"], False),
    "from a checkpoint": (["--no-pretrained", "--load", "file.pth"], True),
}


def of_train(*words: str) -> ZSESettings:
    """What train.py makes of these words."""
    return options.train_options(list(words)).settings


def typed(field: str, value) -> list[str]:
    """The words that set the field on the command line."""
    flag = options_of(ZSESettings)[field].flag or field
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]


def differ(one: ZSESettings, other: ZSESettings) -> set[str]:
    """The fields in which two recipes differ."""
    return {name for name in options_of(ZSESettings) if getattr(one, name) != getattr(other, name)}


def test_the_tables_here_have_all_fields():
    assert TYPED.keys() == options_of(ZSESettings).keys()
    assert PUBLISHED.keys() | UNUSED | SPEED == TYPED.keys()


def test_the_recipes_are_strong_and_paper_the_default_first():
    assert ZSESettings.recipes() == {"strong": STRONG, "paper": PAPER}
    assert tuple(ZSESettings.recipes()) == RECIPES
    assert ZSESettings.recipes(pretrained=False) == {"strong": FROM_SCRATCH, "paper": PAPER}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_options_that_are_not_given_take_the_recipes_values(recipe, start):
    words, pretrained = STARTS[start]
    wanted = ZSESettings.recipes(pretrained)[recipe]
    assert of_train("--recipe", recipe, *words) == wanted
    if recipe == "strong":
        assert of_train(*words) == wanted  # the default


def test_paper_is_what_was_published():
    assert {name: getattr(PAPER, name) for name in PUBLISHED} == PUBLISHED


def test_paper_is_what_the_method_has_without_any_setting():
    assert ZSESettings() == PAPER


def test_from_scratch_the_rates_differ_from_strong():
    assert {"learning_rate", "new_rate"} <= differ(FROM_SCRATCH, STRONG)
    assert FROM_SCRATCH.learning_rate > STRONG.learning_rate
    assert FROM_SCRATCH.new_rate == FROM_SCRATCH.layer_decay == 1


def test_no_recipe_decides_how_fast_the_machine_is_used():
    for one, other in ((STRONG, PAPER), (FROM_SCRATCH, PAPER)):
        assert not differ(one, other) & SPEED


def test_every_loss_has_its_weight():
    weights = {name.removesuffix("_weight") for name in TYPED if name.endswith("_weight")}
    assert PAPER.loss_weights() == {
        "triplet": 2,
        "relation": 4,
        "contrastive": 0,
        "classification": 0,
    }
    assert STRONG.loss_weights().keys() == weights
    assert all(STRONG.loss_weights()[n] == getattr(STRONG, f"{n}_weight") for n in weights)


# ---- on the command line


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_typed_out_makes_the_other_one_this(recipe, start):
    wanted = ZSESettings.recipes()[recipe]
    values = {name: getattr(wanted, name) for name in TYPED}
    words = [w for name, v in values.items() if v is not None for w in typed(name, v)]
    for other in RECIPES:
        made = of_train("--recipe", other, *STARTS[start][0], *words)
        assert made == wanted
        assert all(type(getattr(made, name)) is type(value) for name, value in values.items())


@pytest.mark.parametrize("field", TYPED)
def test_what_is_typed_wins_and_changes_nothing_else(field):
    for recipe in RECIPES:
        for words, pretrained in STARTS.values():
            plain = ZSESettings.recipes(pretrained)[recipe]
            for word, value in TYPED[field]:
                said = typed(field, value if word is None else word)
                wanted = replace(plain, **{field: value})
                assert of_train("--recipe", recipe, *words, *said) == wanted
                assert of_train(*said, *words, "--recipe", recipe) == wanted


def test_for_each_field_something_else_than_any_recipe_can_be_typed():
    """Else the test before this one would show nothing."""
    for recipe in (STRONG, PAPER, FROM_SCRATCH):
        for field, words in TYPED.items():
            assert any(value != getattr(recipe, field) for _, value in words), field


@pytest.fixture(scope="module")
def help_of():
    """A function from a field to what `train.py --help` has on it."""
    parsers = []

    def record(parser, words, flags):
        parsers.append(parser)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(options, "_parsed", record)
        options.train_options([])
    actions = {action.dest: action for action in parsers[0]._actions}
    text = "".join(parsers[0].format_help().split())  # lines may break within a word

    def of(field: str) -> str:
        said = actions[options_of(ZSESettings)[field].flag or field].help
        assert "".join(said.split()) in text
        return said

    return of


@pytest.mark.parametrize("field", TYPED)
def test_help_has_the_default_of_each_recipe(field, help_of):
    values = {"strong": getattr(STRONG, field), "paper": getattr(PAPER, field)}
    if getattr(FROM_SCRATCH, field) != values["strong"]:
        scratch = {"from scratch": getattr(FROM_SCRATCH, field)}
        values = {"strong": values["strong"], **scratch, "paper": values["paper"]}
    words = {n: ("off", "on")[v] if isinstance(v, bool) else v for n, v in values.items()}
    said = help_of(field)
    if len(set(values.values())) > 1:
        assert said.endswith(f"({', '.join(f'{n}: {v}' for n, v in words.items())})")
    elif values["paper"] is None:
        assert re.search(r"\(default: [^)]+\)$", said.strip())
    else:
        assert said.endswith(f"(default {words['paper']})")


def test_fields_that_recipes_set_differently_are_shown_with_both_values(help_of):
    """Some of them by hand."""
    assert help_of("draws").endswith("(strong: classes, paper: triplets)")
    assert help_of("learning_rate").endswith("(strong: 6e-05, from scratch: 0.001, paper: 1e-05)")
    assert help_of("shortcut").endswith("(strong: on, from scratch: off, paper: off)")
    assert help_of("heads").endswith("(default 8)")
