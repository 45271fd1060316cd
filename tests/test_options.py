"""Names, defaults and refusals of the command line; help without torch."""

import argparse
import importlib.util
import json
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import model
import options
from model import METHODS, settings_class
from model.settings import TrainingSettings, options_of, setting
from model.zse.settings import PAPER, ZSESettings

ROOT = Path(__file__).parents[1]
PROGRAMS = {"train.py": options.train_options, "test.py": options.test_options}
PUBLISHED_DEFAULTS = {
    "data_path": "./datasets",
    "dataset": "sketchy_extend",
    "test_class": "test_class_sketchy25",
    "cls_number": None,
    "d_model": None,
    "d_ff": None,
    "head": 8,
    "number": 1,
    "pretrained": True,
    "anchor_number": None,
    "save": "./checkpoints/sketchy_ext",
    "batch": 15,
    "epoch": 30,
    "datasetLen": 10000,
    "learning_rate": 1e-5,
    "weight_decay": 1e-2,
    "load": None,
    "retrieval": "rn",
    "testall": False,
    "test_sk": None,
    "test_im": None,
    "num_workers": 4,
    "choose_cuda": "0",
    "seed": 2021,
}
"""None: follows from the data, the ViT (768, 1024, 49 for ViT-B), the memory, or is not used."""

OF_RECIPES = ("batch", "epoch", "datasetLen", "learning_rate", "weight_decay")
"""Those that a recipe sets; test.py ignores them."""

FIELDS = {option.flag or name: name for name, option in options_of(ZSESettings).items()}
"""Options of the method, and the fields of its settings."""


@pytest.fixture(params=PROGRAMS)
def program(request) -> str:
    return request.param


@pytest.fixture
def parse(program):
    """A function from the words of a command line to the options of one of the programs."""
    return lambda *words: PROGRAMS[program](list(words))


@pytest.fixture
def refusal(parse, capsys):
    """A function from the words of a command line that is refused to what is said about it."""

    def of(*words) -> str:
        with pytest.raises(SystemExit) as error:
            parse(*words)
        assert error.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err

    return of


# ---- the published options


def values_of(args: argparse.Namespace) -> dict:
    """The values of all options by their names, also of those that are settings.

    test.py has only the settings that were on the command line.
    """
    given = {flag: args.given[name] for flag, name in FIELDS.items() if name in args.given}
    return {**options.plain_options(args), **given}


def test_published_options_keep_names_and_under_the_paper_recipe_defaults():
    values = values_of(options.train_options(["--recipe", "paper"]))
    assert {name: values[name] for name in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS


def test_what_no_recipe_sets_keeps_its_published_default(program, parse):
    values = values_of(parse())
    kept = PUBLISHED_DEFAULTS.keys() - set(OF_RECIPES)
    if program == "test.py":
        assert not values.keys() & FIELDS.keys() - {"amp", "compile"}  # a checkpoint has its own
        kept -= FIELDS.keys()
    assert {name: values[name] for name in kept} == {n: PUBLISHED_DEFAULTS[n] for n in kept}


def test_testing_accepts_the_published_options_of_training():
    """One command line serves both programs."""
    assert options.test_options([]).given == {}
    words = "--batch 3 --epoch 2 --datasetLen 9 --learning_rate 1e-3 --weight_decay 0".split()
    args = options.test_options(words)
    assert {name: values_of(args)[name] for name in OF_RECIPES} == {
        "batch": 3,
        "epoch": 2,
        "datasetLen": 9,
        "learning_rate": 1e-3,
        "weight_decay": 0,
    }
    assert args.given == options.train_options(words).given


def test_published_options_are_spelled_as_published(parse, monkeypatch):
    known = _parser(parse, monkeypatch)._option_string_actions
    assert {f"--{name}" for name in PUBLISHED_DEFAULTS} | {"--no-pretrained"} <= set(known)
    short = {"-a": "anchor_number", "-s": "save", "-l": "load", "-r": "retrieval"}
    short["-c"] = "choose_cuda"
    assert {word: known[word].dest for word in short} == short


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["-a", "196"], "anchor_number", 196),
        (["--anchor_number", "144"], "anchor_number", 144),
        (["-s", "here"], "save", "here"),
        (["--save", "here"], "save", "here"),
        (["-l", "file.pth"], "load", "file.pth"),
        (["--load=file.pth"], "load", "file.pth"),
        (["-r", "sa"], "retrieval", "sa"),
        (["--retrieval", "rn"], "retrieval", "rn"),
        (["-c", "cpu"], "choose_cuda", "cpu"),
        (["-c", "3"], "choose_cuda", "3"),
        (["--choose_cuda", "12"], "choose_cuda", "12"),
        (["--pretrained"], "pretrained", True),
        (["--no-pretrained"], "pretrained", False),
        (["--testall"], "testall", True),
        (["--data_path", "my data"], "data_path", "my data"),
        (["--cls_number", "100"], "cls_number", 100),
        (["--d_model", "768"], "d_model", 768),
        (["--d_ff", "1024"], "d_ff", 1024),
        (["--head", "4"], "head", 4),
        (["--number", "2"], "number", 2),
        (["--batch", "30"], "batch", 30),
        (["--epoch", "1"], "epoch", 1),
        (["--datasetLen", "15"], "datasetLen", 15),
        (["--learning_rate", "2e-5"], "learning_rate", 2e-5),
        (["--weight_decay", "0"], "weight_decay", 0),
        (["--test_sk", "1"], "test_sk", 1),
        (["--test_im", "200"], "test_im", 200),
        (["--num_workers", "0"], "num_workers", 0),
        (["--seed", "0"], "seed", 0),
        (["--keep_rate", "0.9"], "keep_rate", 0.9),
        (["--keep_rate", "1"], "keep_rate", 1),
        (["--downsampling", "published"], "downsampling", "published"),
        (["--shortcut"], "shortcut", True),
        (["--no-shortcut"], "shortcut", False),
        (["--whitening"], "whitening", True),
        (["--no-whitening"], "whitening", False),
    ],
)
def test_options_take_their_values(words, name, value, parse):
    args = parse(*words)
    assert values_of(args)[name] == value
    assert args.given == ({FIELDS[name]: value} if name in FIELDS else {})


@pytest.mark.parametrize(
    ("dataset", "splits", "folder"),
    [
        ("sketchy_extend", ["test_class_sketchy25", "test_class_sketchy21"], "sketchy_ext"),
        ("tu_berlin", ["test_class_tuberlin30"], "tuberlin_ext"),
        ("Quickdraw", ["Quickdraw"], "quickdraw_ext"),
        ("synthetic", ["test_class_synthetic10"], "synthetic"),
    ],
)
def test_split_and_save_folder_follow_from_the_dataset(dataset, splits, folder, parse):
    args = parse("--dataset", dataset)
    assert (args.test_class, args.save) == (splits[0], f"./checkpoints/{folder}")
    for split in splits:
        args = parse("--dataset", dataset, "--test_class", split, "-s", "elsewhere")
        assert (args.test_class, args.save) == (split, "elsewhere")


# ---- settings of the method


def test_given_are_the_settings_on_the_command_line_by_field(parse):
    args = parse(*"--head 4 -a 196 --downsampling published --shortcut --no-whitening".split())
    named = {"heads": 4, "anchors": 196, "downsampling": "published"}
    named |= {"shortcut": True, "whitening": False}
    assert args.given == named
    if "settings" in args:
        assert args.settings.of_model() == {
            "vit": "vit_base_patch16_224",
            "width": None,
            "hidden": None,
            "layers": 1,
            "keep_rate": 1.0,
            **named,
        }


def test_a_setting_named_with_its_default_counts_as_given(parse):
    assert parse().given == {}
    given = parse("--head", "8", "--vit", "vit_base_patch16_224").given
    assert given == {"heads": 8, "vit": "vit_base_patch16_224"}
    assert parse("--no-shortcut").given == {"shortcut": False}


@pytest.mark.parametrize("recipe", ZSESettings.recipes())
def test_a_setting_that_only_the_recipe_names_is_not_given(recipe):
    args = options.train_options(["--recipe", recipe])
    assert args.given == {}
    assert args.settings == ZSESettings.recipes()[recipe]


def test_plain_options_are_json_and_lack_nothing(parse):
    args = parse("--head", "4")
    plain = options.plain_options(args)
    assert json.loads(json.dumps(plain)) == plain
    assert set(vars(args)) - set(plain) == {"given", "settings"} & set(vars(args))
    if "settings" in args:
        assert plain.keys() >= FIELDS.keys() and plain["head"] == 4


# ---- what may not change on resuming


def changed(then: str, now: str, without=()) -> list[str]:
    """What a run that began with the words `then` finds other in `now`.

    without: options that its version did not have.
    """
    before = options.plain_options(options.train_options(then.split()))
    before = {name: value for name, value in before.items() if name not in without}
    return options.changed_options(options.train_options(now.split()), before)


def test_the_same_options_have_changed_nothing():
    for words in ("", "--recipe paper", "--part 5 1 -r sa --amp bf16 --clip 1 --schedule cosine"):
        assert changed(words, words) == []


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("--clip 1", "", ["--clip 1.0 (now 0.0)"]),
        ("--accumulate 2", "--accumulate 3", ["--accumulate 2 (now 3)"]),
        ("--tf32 --compile", "", ["--tf32 True (now False)", "--compile True (now False)"]),
        ("", "--seed 1 --ema 0.5", ["--ema 0.0 (now 0.5)", "--seed 2021 (now 1)"]),
        ("--schedule cosine --epoch 3", "--epoch 4", ["--epoch 3 (now 4)"]),
        ("--schedule constant --epoch 3", "--schedule constant --epoch 4", []),
        ("--batch 9", "--batch 3", []),  # train.py looks at it, with the number of processes
        (
            "--num_workers 2 --cache_images --checkpoint_blocks --tensorboard --save_minutes 1",
            "",
            [],
        ),
    ],
)
def test_other_options_are_named_with_both_values(then, now, said):
    assert changed(then, now) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--dataset tu_berlin", "--dataset sketchy_extend (now tu_berlin)"),
        ("--cls_number 5", "--cls_number None (now 5)"),
        ("--validate none", "--validate seen (now none)"),
        ("--validation_classes 7", "--validation_classes None (now 7)"),
        ("--seed 1", "--seed 2021 (now 1)"),
        ("--datasetLen 7", "--datasetLen 10000 (now 7)"),
        ("--amp off", "--amp auto (now off)"),
        ("--draws triplets", "--draws classes (now triplets)"),
        ("--augment none", "--augment strong (now none)"),
        ("--relation_weight 2", "--relation_weight 1.0 (now 2.0)"),
        ("--learning_rate 1", "--learning_rate 6e-05 (now 1.0)"),
        ("--no-whitening", "--whitening True (now False)"),
        ("--downsampling published", "--downsampling spatial (now published)"),
    ],
)
def test_what_results_depend_on_may_not_change(words, said):
    assert said in changed("", words)


def test_a_method_s_model_is_the_checkpoints_where_no_recipe_decides():
    """rebuild_model() refuses those that are given and differ."""
    assert changed("--vit test_vit --head 4 -a 25", "") == []


def test_of_another_recipe_all_that_differs_is_named_but_epochs_and_batch():
    """A constant rate lets epochs change; batches are compared with the number of processes."""
    strong, paper = (ZSESettings.recipes()[name].by_flag() for name in ("strong", "paper"))
    differ = {flag for flag in FIELDS if strong[flag] != paper[flag]}
    assert {"epoch", "batch", "draws", "shortcut"} <= differ
    named = {line.split()[0].removeprefix("--") for line in changed("", "--recipe paper")}
    assert named == differ - {"epoch", "batch"}
    named = {line.split()[0].removeprefix("--") for line in changed("--recipe paper", "")}
    assert named == differ - {"batch"}  # the strong recipe has a schedule


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-r sa", "--retrieval rn (now sa)"),
        ("-r rerank", "--retrieval rn (now rerank)"),
        ("-r sa --views many", "--views plain (now many)"),
        ("-r sa --expand 5", "--expand 0 (now 5)"),
        ("-r rerank --shortlist 7", "--shortlist 1000 (now 7)"),
        ("--fuse 0.5", "--fuse 0.0 (now 0.5)"),
        ("--testall", "--testall False (now True)"),
        ("--part 5 1", "--part None (now [5, 1])"),
    ],
)
@pytest.mark.parametrize("validate", ["seen", "test", "none"])
def test_what_is_validated_may_not_change_where_something_is(words, said, validate):
    then = f"--validate {validate}"
    found = changed(then, f"{then} {words}")
    assert found == [] if validate == "none" else said in found
    assert changed(then, f"{then} --test_sk 5 --test_im 7") == []


VALIDATION = ("retrieval", "shortlist", "fuse", "views", "expand", "testall", "part")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--tf32", "--tf32 False (now True)"),
        ("--compile", "--compile False (now True)"),
        ("--accumulate 2", "--accumulate 1 (now 2)"),
        ("--clip 1", "--clip 0.0 (now 1.0)"),
        ("--amp bf16", "--amp off (now bf16)"),
    ],
)
def test_a_run_that_is_older_than_an_option_had_what_that_is_without_it(option, said):
    without = ("tf32", "compile", "accumulate", "clip", "amp", *VALIDATION)
    assert changed("", "--amp off", without) == []
    assert changed("", f"--amp off {option}", without)[-1:] == [said]


def test_a_run_of_the_first_version_had_the_papers_recipe():
    without = [*FIELDS.keys() - {"head", "number", "vit"}]
    assert changed("", "--recipe paper --amp off", without) == []
    found = changed("", "--recipe strong --amp off", without)
    assert "--draws triplets (now classes)" in found


# ---- what is refused


@pytest.mark.parametrize(
    ("dataset", "split"),
    [("tu_berlin", "test_class_sketchy25"), ("sketchy_extend", "Quickdraw")],
)
def test_a_wrong_pair_of_dataset_and_split_lists_the_right_ones(dataset, split, refusal):
    said = refusal("--dataset", dataset, "--test_class", split)
    assert f"{split} is no split of {dataset}" in said
    assert "--dataset sketchy_extend: test_class_sketchy25 or test_class_sketchy21" in said
    assert "--dataset tu_berlin: test_class_tuberlin30" in said
    assert "--dataset Quickdraw: Quickdraw" in said


@pytest.mark.parametrize(
    ("option", "known"), [("--dataset", "sketchy_extend"), ("--test_class", "Quickdraw")]
)
def test_an_unknown_name_lists_the_known(option, known, refusal):
    said = refusal(option, "sketchy")
    assert "'sketchy'" in said
    assert known in said


@pytest.mark.parametrize(
    "words",
    [["--", "testall"], ["-testall"], ["—testall"], ["–testall"], ["--testal"], ["testall"]],
    ids=" ".join,
)
def test_a_misspelled_option_is_answered_with_the_right_one(words, refusal):
    assert "write --testall" in refusal(*words)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("--dataset_len=3", "--datasetLen"),
        ("--no_pretrained", "--no-pretrained"),
        ("-batch", "--batch"),
        ("--learning-rate", "--learning_rate"),
    ],
)
def test_other_misspellings_too(word, right, refusal):
    assert f"write {right} " in refusal(word)


def test_a_word_like_no_option_is_named(refusal):
    said = refusal("--qqqqq")
    assert "'--qqqqq' is no option" in said
    assert "--help" in said


def test_options_may_not_be_shortened(refusal):
    refusal("--data", "here")


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "0"],
        ["--batch", "-3"],
        ["--batch", "1.5"],
        ["--batch", "many"],
        ["--batch", ""],
        ["--epoch", "0"],
        ["--datasetLen", "0"],
        ["--cls_number", "1"],
        ["--d_model", "0"],
        ["--d_ff", "0"],
        ["--head", "0"],
        ["--number", "0"],
        ["-a", "0"],
        ["--test_sk", "0"],
        ["--test_im", "0"],
        ["--num_workers", "-1"],
        ["--seed", "-1"],
        ["--learning_rate", "-1e-5"],
        ["--learning_rate", "nan"],
        ["--learning_rate", "inf"],
        ["--learning_rate", "fast"],
        ["--weight_decay", "-0.1"],
        ["--keep_rate", "0"],
        ["--keep_rate", "1.1"],
        ["--keep_rate", "nan"],
        ["-c", "x"],
        ["-c", "-1"],
        ["-c", ""],
        ["-c", "0,"],
        ["-c", "0,x"],
        ["-c", "cuda:0"],
    ],
    ids=" ".join,
)
def test_a_bad_value_is_named_with_its_option(words, refusal):
    said = refusal(*words).splitlines()[-1]
    assert words[0] in said
    assert repr(words[1]) in said or "expected one argument" in said


def test_retrieval_is_rn_or_sa(refusal):
    said = refusal("-r", "both")
    assert "'both'" in said
    assert "rn" in said
    assert "sa" in said


def test_what_is_compared_reaches_the_evaluation_and_names_its_results(parse):
    plain, all_of_it = parse(), parse("--fuse", "0.5", "--views", "mirror", "--expand", "5")
    names = ("fuse", "views", "expand")
    settings = [options.evaluation_settings(args) for args in (plain, all_of_it)]
    assert [[s[n] for n in names] for s in settings] == [[0, "plain", 0], [0.5, "mirror", 5]]
    words = [], ["--fuse", "0.5", "--views", "mirror", "--expand", "5"]
    files = [options.result_name(options.test_options(w), "a/best.pth", "json") for w in words]
    assert files[0] == "best.test_class_sketchy25.rn.part.json"
    assert files[1] == "best.test_class_sketchy25.rn+0.5sa-mirror-expand5.part.json"


def test_a_shortlist_is_for_reranking_alone(parse, refusal):
    assert "-r is rn" in refusal("--shortlist", "50")
    assert "-r is sa" in refusal("--shortlist", "50", "-r", "sa")
    words = ["-r", "rerank", "--shortlist", "50", "--views", "many", "--fuse", "2"]
    assert options.evaluation_settings(parse(*words))["shortlist"] == 50
    name = "best.test_class_sketchy25.rerank50+2sa-many.part.json"
    assert options.result_name(options.test_options(words), "best.pth", "json") == name
    assert options.evaluation_settings(parse("-r", "rerank"))["shortlist"] == options.SHORTLIST


def test_only_scores_of_pairs_are_fused(parse, refusal):
    assert "--fuse 0.5" in refusal("--fuse", "0.5", "-r", "sa")
    assert "'-1'" in refusal("--fuse", "-1")
    assert parse("--fuse", "0", "-r", "sa").fuse == 0


def test_weights_cannot_be_named_and_forbidden(refusal):
    said = refusal("--no-pretrained", "--pretrained_path", "file.pth")
    assert "--pretrained_path" in said
    assert "--no-pretrained" in said


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "weak"],
        ["--draws", "pairs"],
        ["--per_class", "0"],
        ["--augment", "mirror"],
        ["--contrastive_weight", "-1"],
        ["--triplet_weight", "-1"],
        ["--relation_weight", "nan"],
        ["--classification_weight", "one"],
        ["--distillation_weight", "-0.5"],
        ["--relation_loss", "hinge"],
        ["--temperature", "0"],
        ["--temperature", "0.009"],
        ["--temperature", "1.01"],
        ["--schedule", "linear"],
        ["--layer_decay", "0"],
        ["--layer_decay", "1.01"],
        ["--new_rate", "-1"],
        ["--ema", "1"],
        ["--ema", "-0.1"],
        ["--amp", "fp16"],
        ["--accumulate", "0"],
        ["--accumulate", "1.5"],
        ["--clip", "-1"],
        ["--clip", "nan"],
        ["--clip", "inf"],
        ["--save_minutes", "-1"],
        ["--save_minutes", "soon"],
        ["--validate", "all"],
        ["--validation_classes", "1"],
        ["--dropout", "1"],
        ["--dropout", "-0.1"],
    ],
    ids=" ".join,
)
def test_bad_values_of_training_alone(words, capsys):
    with pytest.raises(SystemExit):
        options.train_options(words)
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], None),
        (["--cache_images"], Path("data/Sketchy/cache_images")),
        (["--cache_images", "fast disk"], Path("fast disk")),
        (["--cache_images", "--amp", "bf16"], Path("data/Sketchy/cache_images")),
    ],
)
def test_pictures_are_kept_beside_the_data_unless_a_folder_is_named(words, folder):
    args = options.train_options(words)
    assert options.cache_folder(args, Path("data/Sketchy")) == folder
    assert "cache_images" not in options.RESULT_OPTIONS


def test_options_of_training_alone():
    names = ("recipe", "validate", "validation_classes", "amp", "tf32", "compile", "accumulate")
    names += ("clip", "checkpoint_blocks", "save_minutes", "tensorboard", "resume", "cache_images")
    args = options.train_options([])
    defaults = ["strong", "seen", None, "auto", False, False, 1, 0.0, False, 10.0, False, False]
    assert [getattr(args, name) for name in names] == [*defaults, None]
    words = "--recipe paper --validate seen --validation_classes 2 --amp bf16 --tf32 --compile "
    words += "--accumulate 3 --clip 0.5 --checkpoint_blocks --save_minutes 0 --tensorboard --resume"
    args = options.train_options(words.split())
    given = ["paper", "seen", 2, "bf16", True, True, 3, 0.5, True, 0.0, True, True]
    assert [getattr(args, name) for name in names] == [*given, None]


@pytest.mark.parametrize("parse", [options.train_options, options.test_options])
@pytest.mark.parametrize(("option", "value"), [("--views", "many"), ("--expand", "5")])
def test_what_pairs_do_not_compare_is_not_changed_for_them(parse, option, value, capsys):
    with pytest.raises(SystemExit):
        parse([option, value, "-r", "rn"])
    said = capsys.readouterr().err
    assert f"{option} {value}" in said and "--fuse" in said
    assert str(getattr(parse([option, value, "-r", "sa"]), option[2:])) == value


@pytest.mark.parametrize("validate", ["test", "none"])
def test_validation_classes_without_such_a_validation(validate, capsys):
    with pytest.raises(SystemExit):
        options.train_options(["--validate", validate, "--validation_classes", "2"])
    assert "--validate seen" in capsys.readouterr().err


def test_the_former_flip_is_no_option_any_more(refusal):
    assert "'--flip' is no option" in refusal("--flip")


def test_draws_of_classes_need_a_batch_of_three(capsys):
    """Of any three draws in a row two classes; of two, perhaps one."""
    for words in ("--batch 3", "--batch 2 --draws triplets", "--batch 1 --recipe paper"):
        options.train_options(words.split())
    for words in ("--batch 2", "--batch 1 --recipe paper --draws classes"):
        with pytest.raises(SystemExit):
            options.train_options(words.split())
        said = capsys.readouterr().err
        assert f"--batch {words.split()[1]}: draws of classes need 3 or more" in said


def test_distillation_needs_weights_to_start_from(capsys):
    for words in ([], ["--no-pretrained", "-l", "file.pth"]):
        args = options.train_options(["--distillation_weight", "1", *words])
        assert args.distillation_weight == 1
    options.train_options(["--distillation_weight", "0", "--no-pretrained"])
    with pytest.raises(SystemExit):
        options.train_options(["--distillation_weight", "1", "--no-pretrained"])
    said = capsys.readouterr().err
    assert "--distillation_weight" in said and "--no-pretrained" in said


PUBLISHED_LOSSES = {
    "draws": "triplets",
    "triplet_weight": 2,
    "relation_weight": 4,
    "relation_loss": "mse",
    "contrastive_weight": 0,
    "temperature": 0.07,
    "learn_temperature": False,
    "classification_weight": 0,
    "distillation_weight": 0,
    "dropout": 0.1,
}


def test_settings_of_the_losses():
    words = ["--recipe", "paper"]
    assert options.loss_settings(options.train_options(words)) == PUBLISHED_LOSSES
    more = "--triplet_weight 0 --relation_weight 1 --classification_weight 0.5 --learn_temperature"
    changed = options.loss_settings(options.train_options([*words, *more.split()]))
    asked = {"triplet_weight": 0, "relation_weight": 1, "classification_weight": 0.5}
    assert changed == {**PUBLISHED_LOSSES, **asked, "learn_temperature": True}


def test_every_loss_has_its_weight_among_the_settings():
    weights = {name for name in PUBLISHED_LOSSES if name.endswith("_weight")}
    assert weights == {f"{name}_weight" for name in options.LOSSES}


def test_a_part_is_the_published_one_unless_the_user_says_otherwise(parse):
    published = {"sketch": 20, "photo": 10}
    assert options.scored_part(parse(), published) == published
    assert options.scored_part(parse("--testall"), published) == {"sketch": 1, "photo": 1}
    assert options.scored_part(parse("--part", "5", "1"), published) == {"sketch": 5, "photo": 1}


def test_a_part_of_everything_is_refused(refusal):
    assert "drop one" in refusal("--testall", "--part", "5", "1")
    assert "'0' is not a whole number" in refusal("--part", "0", "1")


def test_settings_of_the_draws():
    words = "--seed 3 --skip_bad --augment light --per_class 4 --own_photo 1"
    assert options.draw_settings(options.train_options(words.split())) == {
        "seed": 3,
        "skip_bad": True,
        "augmentation": "light",
        "per_class": 4,
        "own_photo": 1.0,
    }
    paper = options.draw_settings(options.train_options(["--recipe", "paper"]))
    assert paper == {
        "seed": 2021,
        "skip_bad": False,
        "augmentation": "none",
        "per_class": 1,
        "own_photo": 0.0,
    }


def test_choices_are_the_tables_of_the_code(monkeypatch):
    """options.py, which loads no torch, has to write them out once more."""
    from model.zse.method import RELATION_LOSSES
    from model.zse.relation import DOWNSAMPLING
    from training.augment import AUGMENTATIONS
    from training.batches import BATCHES
    from utils.precision import AMP

    parser = _parser(lambda: options.train_options([]), monkeypatch)
    choices = {action.dest: action.choices for action in parser._actions if action.choices}
    assert choices["augment"] == AUGMENTATIONS
    assert set(choices["draws"]) == set(BATCHES)
    assert set(choices["amp"]) == set(AMP) - {"fp16"}  # whose losses would have to be scaled
    assert set(choices["relation_loss"]) == set(RELATION_LOSSES)
    assert set(choices["downsampling"]) == set(DOWNSAMPLING)
    parser = _parser(lambda: options.test_options([]), monkeypatch)
    assert next(a.choices for a in parser._actions if a.dest == "amp") == AMP


@pytest.mark.parametrize(("words", "mode"), [([], "rn"), (["--amp", "bf16"], "rn-bf16")])
def test_results_in_another_precision_have_a_file_of_their_own(words, mode):
    name = options.result_name(options.test_options(words), "best.pth", "json")
    assert name == f"best.test_class_sketchy25.{mode}.part.json"


def test_options_of_testing_alone(capsys):
    assert (options.test_options([]).amp, options.test_options([]).compile) == ("off", False)
    args = options.test_options(["--amp", "auto", "--compile"])
    assert (args.amp, args.compile) == ("auto", True)
    args = options.test_options([])
    assert (args.allow_seen, args.save_rankings, args.save_pictures) == (False, None, None)
    words = "--allow_seen --save_rankings file.npz --save_pictures 20"
    args = options.test_options(words.split())
    assert (args.allow_seen, args.save_rankings, args.save_pictures) == (True, "file.npz", 20)
    with pytest.raises(SystemExit):
        options.test_options(["--save_rankings", "file.json"])
    assert "file.json: the name must end in .npz" in capsys.readouterr().err


def test_pictures_are_one_to_a_hundred(capsys):
    for number in (1, 100):
        assert options.test_options(["--save_pictures", str(number)]).save_pictures == number
    for word in ("0", "101", "-1", "2.5", "all"):
        with pytest.raises(SystemExit):
            options.test_options(["--save_pictures", word])
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "--save_pictures" in said[0]
        assert f"{word!r} is not a whole number from 1 to 100" in said[0]


def test_what_has_no_upper_bound_says_none(refusal):
    assert "'0' is not a whole number from 1 on" in refusal("--batch", "0")


# ---- the programs


@pytest.mark.parametrize(
    "device", [["-c", "0,1"], ["-c0,1"], ["--choose_cuda", "0,1"], ["--choose_cuda=0,1"]]
)
def test_several_gpus_are_answered_with_a_torchrun_line(device, program, tmp_path):
    rest = ["--data_path", str(tmp_path), "-a", "196", "--testall"]
    result = _run(program, *rest[:2], *device, *rest[2:])
    assert result.returncode == 2
    line = next(line for line in result.stderr.splitlines() if "torchrun" in line)
    assert shlex.split(line) == [
        "CUDA_VISIBLE_DEVICES=0,1",
        "torchrun",
        "--nproc_per_node=2",
        program,
        *rest,
    ]


def test_the_torchrun_line_keeps_blanks_in_a_path():
    result = _run("train.py", "-c", "0,1", "--data_path", "my data")
    line = next(line for line in result.stderr.splitlines() if "torchrun" in line)
    words = shlex.split(line)
    assert words[words.index("--data_path") + 1] == "my data"


def test_help_answers_without_loading_torch(program):
    result = _run("-X", "importtime", program, "--help")
    assert result.returncode == 0
    assert "--testall" in result.stdout
    loaded = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert {"argparse", "options"} <= loaded
    assert not {"torch", "timm", "torchvision"} & loaded


def test_every_option_has_a_help_text(parse, monkeypatch):
    parser = _parser(parse, monkeypatch)
    actions = [action for action in parser._actions if action.dest != "help"]
    assert len(actions) > 25
    for action in actions:
        assert action.help, action.dest
        if not action.required:
            says_default = "default" in action.help
            assert says_default or all(f"{name}: " in action.help for name in RECIPES), action.dest
    parser.format_help()


def test_help_explains_itself_in_groups(parse, capsys):
    with pytest.raises(SystemExit) as error:
        parse("--help")
    assert error.value.code == 0
    said = capsys.readouterr().out
    for title in ("data:", "model:", "training:", "retrieval and evaluation:"):
        assert f"\n{title}\n" in said
    assert "%(" not in said


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def _parser(parse, monkeypatch) -> argparse.ArgumentParser:
    """The parser that a program builds."""
    seen = []
    plain = argparse.ArgumentParser.parse_known_args

    def record(self, *arguments):
        seen.append(self)
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", record)
        parse()
    return seen[0]


@pytest.mark.parametrize("word", ["-save", "-load=x.pth", "-choose_cuda", "-testall"])
def test_a_long_option_with_one_dash_is_never_taken_for_a_short_one(refusal, word):
    said = refusal(word, "x")
    assert f"write -{word.split('=')[0]}" in said


SEARCH = ["search", "--gallery", "G", "--sketch", "a.png", "--out", "found"]


def test_a_search_names_its_defaults_and_takes_many_sketches():
    args = options.retrieve_options([*SEARCH, "-k", "all"])
    assert (args.task, args.retrieval, args.sketch) == ("search", "sa", ["a.png"])
    assert args.shortlist == options.SEARCH_SHORTLIST and args.k == options.EVERY_PHOTO
    more = options.retrieve_options(["search", "--sketch", "a", "b", *SEARCH[1:3], *SEARCH[5:]])
    assert more.sketch == ["a", "b"] and more.k == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "task"),
        (["index", "--photos", "p"], "-l/--load, --out"),
        (["search"], "--gallery, --sketch, --out"),
        ([*SEARCH, "-k", "0"], "'0' is not a whole number from 1 on"),
        ([*SEARCH, "-k", "al"], "'al' is not a whole number from 1 on"),
        ([*SEARCH, "--shortlist", "5"], "-r rerank scores: -r is sa"),
        ([*SEARCH, "--clean", "maybe"], "invalid choice: 'maybe'"),
        ([*SEARCH, "--tokens"], "unrecognized arguments: --tokens"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_in_a_line(capsys, words, said):
    with pytest.raises(SystemExit) as error:
        options.retrieve_options(words)
    told = capsys.readouterr().err
    assert error.value.code == 2 and said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("task", ["index", "search"])
def test_help_of_retrieve_needs_no_torch_and_tells_every_default(task):
    result = _run("-X", "importtime", "retrieve.py", task, "--help")
    assert result.returncode == 0 and "torch" not in result.stderr
    told = " ".join(result.stdout.split()).split(" -h, --help ")[1]
    assert told.count("(default") + told.count("(required)") >= told.count(" --") - 1
