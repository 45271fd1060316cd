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
from model.zse.settings import ZSESettings

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
    words = "--batch 3 --epoch 2 --datasetLen 9 --learning_rate 1e-3 --weight_decay 0"
    args = options.test_options(words.split())
    assert {name: values_of(args)[name] for name in OF_RECIPES} == {
        "batch": 3,
        "epoch": 2,
        "datasetLen": 9,
        "learning_rate": 1e-3,
        "weight_decay": 0,
    }
    assert args.given == options.train_options(words.split()).given


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
    words = "--head 4 -a 196 --downsampling published --shortcut --no-whitening"
    args = parse(*words.split())
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
        ("", "--seed 1 --ema 0.5", ["--seed 2021 (now 1)", "--ema 0.0 (now 0.5)"]),
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
    ],
)
def test_what_results_depend_on_may_not_change(words, said):
    assert said in changed("", words)


def test_settings_of_the_model_are_those_of_the_checkpoint():
    """Which has those that it was built with; rebuild_model() refuses given ones that differ."""
    then = "--vit test_vit --head 4 -a 25 --no-shortcut --no-whitening --downsampling published"
    assert changed(then, "") == []


def test_of_another_recipe_all_that_differs_is_named_but_epochs_and_batch():
    """A constant rate lets epochs change; batches are compared with the number of processes."""
    strong, paper = (ZSESettings.recipes()[name].by_flag() for name in ("strong", "paper"))
    differ = {flag for flag in FIELDS if strong[flag] != paper[flag]}
    assert {"epoch", "batch", "draws", "shortcut"} <= differ
    known = options_of(ZSESettings)
    differ -= {flag for flag in differ if known[FIELDS[flag]].rebuilds}
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


def test_a_run_that_is_older_than_an_option_had_its_default():
    without = ("tf32", "compile", "accumulate", "clip", *VALIDATION)
    assert changed("", "", without) == []
    refused = {
        "--tf32": "--tf32 False (now True)",
        "--compile": "--compile False (now True)",
        "--accumulate 2": "--accumulate 1 (now 2)",
        "--clip 1": "--clip 0.0 (now 1.0)",
    }
    found = {option: changed("", option, without) for option in refused}
    assert found == {option: [line] for option, line in refused.items()}


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
    assert options.ranker_settings(plain) == {"fuse": 0, "expand": 0}
    assert options.ranker_settings(all_of_it) == {"fuse": 0.5, "expand": 5}
    views = [options.encoder_settings(args)["views"] for args in (plain, all_of_it)]
    assert views == ["plain", "mirror"]
    assert options.ranker_settings(parse("-r", "sa", "--expand", "2")) == {"expand": 2}
    words = [], ["--fuse", "0.5", "--views", "mirror", "--expand", "5"]
    files = [options.result_name(options.test_options(w), "a/best.pth", "json") for w in words]
    assert files[0] == "best.test_class_sketchy25.rn.part.json"
    assert files[1] == "best.test_class_sketchy25.rn+0.5sa-mirror-expand5.part.json"


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("-r rn", "rn-tokens_fp32"),
        ("-r rerank --shortlist 9 --amp bf16", "rerank9-bf16-tokens_fp32"),
        ("-r sa", "sa"),  # which reads no tokens
    ],
)
def test_results_of_tokens_in_another_precision_have_a_file_of_their_own(words, mode):
    args = options.test_options([*words.split(), "--cache_precision", "fp32"])
    name = options.result_name(args, "best.pth", "json")
    assert name == f"best.test_class_sketchy25.{mode}.part.json"


def test_a_shortlist_is_for_reranking_alone(parse, refusal):
    assert "-r is rn" in refusal("--shortlist", "50")
    assert "-r is sa" in refusal("--shortlist", "50", "-r", "sa")
    words = ["-r", "rerank", "--shortlist", "50", "--views", "many", "--fuse", "2"]
    wanted = {"fuse": 2, "expand": 0, "shortlist": 50}
    assert options.ranker_settings(parse(*words)) == wanted
    name = "best.test_class_sketchy25.rerank50+2sa-many.part.json"
    assert options.result_name(options.test_options(words), "best.pth", "json") == name
    usual = options.ranker_settings(parse("-r", "rerank"))
    assert usual["shortlist"] == options.SHORTLIST == 1000


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
    assert options.run_settings(args, Path("data/Sketchy"))["cache_images"] == folder


def test_options_of_training_alone():
    names = ("recipe", "validate", "validation_classes", "amp", "tf32", "compile", "accumulate")
    names += ("clip", "checkpoint_blocks", "save_minutes", "tensorboard", "resume", "cache_images")
    values = values_of(options.train_options([]))
    defaults = ["strong", "seen", None, "auto", False, False, 1, 0.0, False, 10.0, False, False]
    assert [values[name] for name in names] == [*defaults, None]
    words = "--recipe paper --validate seen --validation_classes 2 --amp bf16 --tf32 --compile "
    words += "--accumulate 3 --clip 0.5 --checkpoint_blocks --save_minutes 0 --tensorboard --resume"
    values = values_of(options.train_options(words.split()))
    given = ["paper", "seen", 2, "bf16", True, True, 3, 0.5, True, 0.0, True, True]
    assert [values[name] for name in names] == [*given, None]


@pytest.mark.parametrize("parse", [options.train_options, options.test_options])
@pytest.mark.parametrize(("option", "value"), [("--views", "many"), ("--expand", "5")])
def test_what_pairs_do_not_compare_is_not_changed_for_them(parse, option, value, capsys):
    with pytest.raises(SystemExit):
        parse([option, value, "-r", "rn"])
    said = capsys.readouterr().err
    assert f"{option} {value} changes the vectors that -r sa compares: choose -r sa or " in said
    assert str(getattr(parse([option, value, "-r", "rerank"]), option[2:])) == value
    assert str(getattr(parse([option, value, "--fuse", "1"]), option[2:])) == value
    assert str(getattr(parse([option, value, "-r", "sa"]), option[2:])) == value


@pytest.mark.parametrize("validate", ["test", "none"])
def test_validation_classes_without_such_a_validation(validate, capsys):
    with pytest.raises(SystemExit):
        options.train_options(["--validate", validate, "--validation_classes", "2"])
    assert "--validate seen" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--flip", "--distillation_weight"])
def test_former_options_are_none_any_more(option, refusal):
    assert f"'{option}' is no option" in refusal(option)


def test_draws_of_classes_need_a_batch_of_three(capsys):
    """Of any three draws in a row two classes; of two, perhaps one."""
    for words in ("--batch 3", "--batch 2 --draws triplets", "--batch 1 --recipe paper"):
        options.train_options(words.split())
    for words in ("--batch 2", "--batch 1 --recipe paper --draws classes"):
        with pytest.raises(SystemExit):
            options.train_options(words.split())
        said = capsys.readouterr().err
        assert f"--batch {words.split()[1]}: draws of classes need 3 or more" in said


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
    args = options.train_options(words.split())
    assert (args.seed, args.skip_bad) == (3, True)
    changed = {"augment": "light", "per_class": 4, "own_photo": 1.0}
    assert args.settings == replace(ZSESettings.recipes()["strong"], **changed)
    args = options.train_options(["--recipe", "paper"])
    assert (args.seed, args.skip_bad) == (2021, False)
    paper = {"augment": "none", "per_class": 1, "own_photo": 0.0}
    assert {name: getattr(args.settings, name) for name in paper} == paper


@pytest.mark.parametrize("validate", ["seen", "test", "none"])
def test_settings_of_the_benchmark(validate):
    words = f"--validate {validate} --cls_number 9 --seed 3 --skip_bad".split()
    assert options.benchmark_settings(options.train_options(words)) == {
        "unseen": validate == "test",
        "validation": validate == "seen",
        "validation_classes": None,
        "seed": 3,
        "classes": 9,
        "skip_bad": True,
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_choice_is_one_that_the_code_has(method, monkeypatch):
    """Tables without torch name it; elsewhere is what it stands for."""
    from model.zse.method import RELATION_LOSSES
    from training.augment import RANGES
    from training.batches import BATCHES
    from utils.precision import DTYPES

    parser = _parser(lambda: options.train_options(["--method", method]), monkeypatch)
    choices = {action.dest: action.choices for action in parser._actions if action.choices}
    assert set(choices["augment"]) == set(RANGES)
    assert set(choices["draws"]) == set(BATCHES)
    names = {"auto", *DTYPES}
    assert set(choices["amp"]) == names - {"fp16"}  # its losses would have to be scaled
    assert set(choices.get("relation_loss", RELATION_LOSSES)) == set(RELATION_LOSSES)
    parser = _parser(lambda: options.test_options(["--method", method]), monkeypatch)
    assert set(next(a.choices for a in parser._actions if a.dest == "amp")) == names


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


def test_large_bounds_are_written_as_people_write_them(refusal):
    assert "'0' is not a whole number from 1 to 65,536" in refusal("--batch", "0")


@pytest.mark.parametrize(
    "words",
    [
        f"--seed {2**70}",
        f"--seed {2**32}",
        f"--datasetLen {2**63}",
        f"--datasetLen 1{'0' * 30}",
        "--d_ff 1000000000000",
        "--d_model 65537",
        "--batch 100000000",
        "--epoch 100000000000",
        "--number 101",
        "--learning_rate 1e300",
        "--num_workers 100000",
        f"--test_sk {2**63}",
        f"--part 1 {2**64}",
        f"--expand 1{'0' * 5000}",
    ],
)
def test_absurd_numbers_are_refused_with_their_range(words, refusal):
    said = refusal(*words.split())
    assert " from " in said and " to " in said and words.split()[0] in said


# ---- a second method


@dataclass(frozen=True)
class OtherSettings(TrainingSettings):
    method = "other"

    gate: float = setting(
        0.5,
        "share of tokens that pass",
        least=0,
        most=2,
        excluded=2,
        rebuilds=True,
        metavar="SHARE",
    )
    depth: int = setting(6, "blocks", least=1, most=12, rebuilds=True, metavar="N")
    rounds: int = setting(3, "rounds of refinement", least=2, most=9, flag="round_count")
    seconds: float = setting(9.0, "how long to wait, which no result depends on", fixed=False)
    sharp: bool = setting(False, "sharpen")

    @classmethod
    def recipes(cls, pretrained: bool = True) -> dict[str, TrainingSettings]:
        quick = cls(gate=1.5, sharp=True, rounds=2 if pretrained else 8)
        return {"quick": quick, "thorough": cls(epochs=99)}


OTHER = ["--method", "other"]
DEFAULTS_OF_OTHER = {  # as --help has them
    "gate": "(quick: 1.5, thorough: 0.5)",
    "depth": "(default 6)",
    "round_count": "(quick: 2, from scratch: 8, thorough: 3)",
    "seconds": "(default 9.0)",
    "sharp": "(quick: on, thorough: off)",
}


@pytest.fixture
def two_methods(monkeypatch):
    """options.py, loaded anew where the table of methods has a second row. No other change."""
    row = ("no_such_module:Other", f"{__name__}:OtherSettings")
    monkeypatch.setitem(model.METHODS, "other", row)
    spec = importlib.util.spec_from_file_location("options_of_two_methods", options.__file__)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def refused(capsys):
    """A function that parses words and returns what is said about them."""

    def of(parse, *words: str) -> str:
        with pytest.raises(SystemExit) as error:
            parse(list(words))
        assert error.value.code == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        return said

    return of


def test_help_shows_options_of_the_method_that_is_named_last_and_in_their_own_group(
    two_methods, capsys
):
    said = _help(two_methods.train_options, capsys, *OTHER)
    assert _titles(said)[-1] == "other alone"
    own = _group(said, "other alone")
    found = re.findall(r"^  --(\w+)", own, flags=re.MULTILINE)
    assert found == list(DEFAULTS_OF_OTHER)
    before = said[: said.index("\nother alone:\n")].split("\noptions:\n")[1]
    assert not re.search(r"--(gate|depth|round_count|seconds|sharp|whitening)", before)
    assert "--whitening" not in said and "zse_sbir alone" not in said


@pytest.mark.parametrize("words", [["--method", "zse_sbir"], ["--method=zse_sbir"], []])
def test_help_shows_no_options_of_a_method_that_is_not_named(words, two_methods, capsys):
    said = _help(two_methods.train_options, capsys, *words)
    assert _titles(said)[-1] == "zse_sbir alone"
    assert "--gate" not in said and "--whitening" in said
    assert "{zse_sbir,other}" in said


def test_help_has_the_default_of_a_new_field_in_each_recipe(two_methods, capsys):
    own = _group(_help(two_methods.train_options, capsys, *OTHER), "other alone")
    texts = re.split(r"^  --", own, flags=re.MULTILINE)[1:]
    for text, (flag, default) in zip(texts, DEFAULTS_OF_OTHER.items(), strict=True):
        assert text.startswith(flag)
        assert " ".join(text.split()).endswith(default)


def test_testing_has_those_options_of_a_method_that_rebuild_its_model(two_methods, capsys):
    own = _group(_help(two_methods.test_options, capsys, *OTHER), "other alone")
    assert re.findall(r"^  --(\w+)", own, flags=re.MULTILINE) == ["gate", "depth"]
    assert two_methods.test_options([*OTHER, "--gate", "1"]).given == {"gate": 1}


@pytest.mark.parametrize("words", [["--gate", "1"], ["--gate=1"], ["--sharp"], ["--no-sharp"]])
def test_an_option_of_another_method_is_refused_by_name(words, two_methods, refused):
    option = words[0].split("=")[0]
    sentence = f"{option} is an option of the method other: add --method other"
    assert sentence in refused(two_methods.train_options, *words)
    two_methods.train_options([*OTHER, *words])


@pytest.mark.parametrize("words", [["--gate", "1"], ["--depth=3"]])
def test_testing_refuses_an_option_of_another_method_by_name(words, two_methods, refused):
    option = words[0].split("=")[0]
    sentence = f"{option} is an option of the method other: add --method other"
    assert sentence in refused(two_methods.test_options, *words)
    two_methods.test_options([*OTHER, *words])


@pytest.mark.parametrize("words", [["--whitening"], ["--no-whitening"], ["-a", "196"]])
def test_an_option_of_the_first_method_is_refused_for_the_second(words, two_methods, refused):
    for parse in (two_methods.train_options, two_methods.test_options):
        said = refused(parse, *OTHER, *words)
        assert f"{words[0]} is an option of the method zse_sbir: add --method zse_sbir" in said


def test_what_no_method_has_is_no_option(two_methods, refused):
    assert "'--qqqqq' is no option" in refused(two_methods.train_options, *OTHER, "--qqqqq")


@pytest.mark.parametrize("option", ["--contrastive_weight", "--clip", "--dropout"])
def test_testing_does_not_send_to_a_method_that_is_chosen_already(option, refused):
    """An option of training alone: adding --method would not help."""
    said = refused(options.test_options, option, "1")
    assert f"'{option}' is no option" in said and "add --method" not in said


def test_recipes_are_those_of_the_method(two_methods, refused):
    made = two_methods.train_options(OTHER).settings
    assert made == OtherSettings(gate=1.5, sharp=True, rounds=2)
    made = two_methods.train_options([*OTHER, "--no-pretrained"]).settings
    assert made == OtherSettings(gate=1.5, sharp=True, rounds=8)
    words = [*OTHER, "--recipe", "thorough", "--round_count", "5", "--gate", "0"]
    assert two_methods.train_options(words).settings == OtherSettings(epochs=99, gate=0, rounds=5)
    said = refused(two_methods.train_options, *OTHER, "--recipe", "paper")
    assert "'paper'" in said and "quick" in said and "thorough" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gate", "2"], "'2' is not a number from 0 to 2 and not 2"),
        (["--gate", "-0.1"], "'-0.1' is not a number from 0 to 2 and not 2"),
        (["--depth", "0"], "'0' is not a whole number from 1 to 12"),
        (["--round_count", "10"], "'10' is not a whole number from 2 to 9"),
    ],
)
def test_bounds_of_a_new_field_hold_on_the_command_line(words, said, two_methods, refused):
    answer = refused(two_methods.train_options, *OTHER, *words)
    assert words[0] in answer and said in answer


def test_bounds_themselves_can_be_typed(two_methods):
    for words, values in (
        ("--gate 0 --depth 1 --round_count 2", (0, 1, 2)),
        ("--gate 1.99 --depth 12 --round_count 9", (1.99, 12, 9)),
    ):
        made = two_methods.train_options([*OTHER, *words.split()]).settings
        assert (made.gate, made.depth, made.rounds) == values


def test_a_new_field_may_not_change_on_resuming_unless_it_says_that_it_may(two_methods):
    then = two_methods.plain_options(two_methods.train_options(OTHER))
    assert (then["gate"], then["round_count"], then["seconds"]) == (1.5, 2, 9.0)
    assert json.loads(json.dumps(then)) == then

    def changed_by(*words: str) -> list[str]:
        return two_methods.changed_options(two_methods.train_options([*OTHER, *words]), then)

    assert changed_by() == []
    assert changed_by("--round_count", "5") == ["--round_count 2 (now 5)"]
    assert changed_by("--no-sharp") == ["--sharp True (now False)"]
    assert changed_by("--seconds", "1") == []
    for words in (["--gate", "1"], ["--depth", "2"]):  # see model.rebuild_model()
        assert changed_by(*words) == []


def test_a_new_field_that_rebuilds_the_model_is_kept_with_it(two_methods):
    made = two_methods.train_options([*OTHER, "--depth", "4", "--round_count", "5"]).settings
    assert made.of_model() == {"gate": 1.5, "depth": 4}


def test_an_unknown_method_lists_the_known(two_methods, refused):
    said = refused(two_methods.train_options, "--method", "third")
    assert "'third'" in said and "zse_sbir" in said and "other" in said
    assert "--method: expected one argument" in refused(two_methods.train_options, "--method")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_table_has_options_that_fit_the_scripts(method):
    """No two options have one name: argparse would refuse to build the parser."""
    assert isinstance(options.train_options(["--method", method]).settings, settings_class(method))
    assert options.test_options(["--method", method]).method == method


# ---- the programs


@pytest.fixture
def torchrun_line(program, monkeypatch, capsys):
    """A function from the words of a command line to the command that is proposed instead."""

    def of(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / program), *words])
        with pytest.raises(SystemExit) as error:
            PROGRAMS[program]()
        assert error.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        return shlex.split(next(line for line in lines if "torchrun" in line))

    return of


@pytest.mark.parametrize(
    "device", [["-c", "0,1"], ["-c0,1"], ["--choose_cuda", "0,1"], ["--choose_cuda=0,1"]]
)
def test_several_gpus_are_answered_with_a_torchrun_line(device, program, torchrun_line):
    rest = ["--data_path", "my data", "-a", "196", "--testall"]
    assert torchrun_line(*rest[:2], *device, *rest[2:]) == [
        "CUDA_VISIBLE_DEVICES=0,1",
        "torchrun",
        "--nproc_per_node=2",
        program,
        *rest,
    ]


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("train.py", "--testall"),
        ("test.py", "--testall"),
        ("retrieve.py index", "--photos"),
        ("retrieve.py search", "--sketch"),
        ("prepare.py synthetic", "--instances"),
        ("quickstart.py", "--data_path"),
        ("bench.py train", "--recipe"),
    ],
)
def test_help_answers_without_torch_in_less_than_half_a_second(words, known):
    """Seconds of the processor: they depend little on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = _run("-X", "importtime", *words.split(), "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert known in result.stdout
    loaded = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert {"argparse", "options"} <= loaded
    assert not {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib"} & loaded
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_every_option_has_a_help_text(parse, monkeypatch):
    parser = _parser(parse, monkeypatch)
    actions = [action for action in parser._actions if action.dest != "help"]
    assert len(actions) > 25
    for action in actions:
        assert action.help, action.dest
        if not action.required:
            of_recipes = all(f"{name}: " in action.help for name in ZSESettings.recipes())
            assert "default" in action.help or of_recipes, action.dest
    parser.format_help()


@pytest.mark.parametrize(
    ("parse", "titles"),
    [
        (
            options.train_options,
            ["data", "model", "run", "validation, as test.py scores", "recipe", "speed"],
        ),
        (options.test_options, ["data", "model", "run", "evaluation", "speed", "training"]),
    ],
)
def test_help_explains_itself_in_groups_those_of_the_method_last(parse, titles, capsys):
    said = _help(parse, capsys)
    assert _titles(said) == ["options", *titles, "zse_sbir alone"]
    assert "%(" not in said


@pytest.mark.parametrize("word", ["-save", "-load=x.pth", "-choose_cuda", "-testall"])
def test_a_long_option_with_one_dash_is_never_read_as_a_short_one(refusal, word):
    said = refusal(word, "x")
    assert f"write -{word.split('=')[0]}" in said


@pytest.mark.parametrize(
    ("parse", "words", "said"),
    [
        (options.prepare_options, ["synthetic", "--sise", "3"], "write --size "),
        (options.prepare_options, ["synthetic", "-sheet", "a.png"], "write --sheet "),
        (options.bench_options, ["train", "--reciep", "paper"], "write --recipe "),
        (options.bench_options, ["pairs", "-vit", "x"], "write --vit "),
        (options.quickstart_options, ["-save", "here"], "write --save "),
    ],
)
def test_every_program_answers_with_the_right_spelling(parse, words, said, capsys):
    with pytest.raises(SystemExit) as error:
        parse(words)
    assert error.value.code == 2
    answer = capsys.readouterr().err
    assert len(answer.splitlines()) == 1 and f"{words[-2]!r} is no option: {said}" in answer


def test_quickstart_passes_on_what_it_does_not_know():
    words = ["--epoch", "3", "--save", "here", "--no-whitening"]
    assert options.quickstart_options(words).training == ["--epoch", "3", "--no-whitening"]


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (options.retrieve_options, ["index", "--photos", "p", "-l", "c", "--out", "g"]),
        (options.retrieve_options, ["search", "--gallery", "g", "--sketch", "s", "--out", "f"]),
        (options.bench_options, ["train"]),
        (options.quickstart_options, []),
    ],
)
def test_a_program_of_one_process_refuses_several_gpus_and_names_no_torchrun(parse, words, capsys):
    with pytest.raises(SystemExit):
        parse([*words, "-c", "0,1"])
    said = capsys.readouterr().err
    assert "'0,1' names several GPUs: this program uses one" in said and "torchrun" not in said


def test_what_test_ignores_stands_in_its_group_of_ignored_options(capsys):
    said = _help(options.test_options, capsys)
    ignored = _group(said, "training")
    assert "Ignored:" in ignored
    for name in ("cls_number", "pretrained", "pretrained_path", "seed", *OF_RECIPES):
        assert re.search(rf"^  --{name}\b", ignored, flags=re.MULTILINE), name


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
        ([*SEARCH, "-k", "0"], "'0' is not a whole number from 1 to 1,000,000,000"),
        ([*SEARCH, "-k", "al"], "'al' is not a whole number from 1 to 1,000,000,000"),
        ([*SEARCH, "--shortlist", "5"], "-r rerank scores: -r is sa"),
        ([*SEARCH, "--clean", "maybe"], "invalid choice: 'maybe'"),
        ([*SEARCH, "--tokens"], "'--tokens' is no option; --help lists them all"),
        ([*SEARCH, "--short_list", "5"], "'--short_list' is no option: write --shortlist "),
        ([*SEARCH, "-out", "x"], "'-out' is no option: write --out "),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_in_a_line(capsys, words, said):
    with pytest.raises(SystemExit) as error:
        options.retrieve_options(words)
    answer = capsys.readouterr().err
    assert error.value.code == 2 and said in answer
    assert len(answer.splitlines()) == 1


@pytest.mark.parametrize("task", ["index", "search"])
def test_help_of_retrieve_has_every_default(task, capsys):
    said = " ".join(_help(options.retrieve_options, capsys, task).split())
    said = said.split(" -h, --help ")[1]
    assert said.count("(default") + said.count("(required)") >= said.count(" --") - 1


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
    return seen[-1]  # another one only looks for --method


def _help(parse, capsys, *words: str) -> str:
    """What --help prints."""
    with pytest.raises(SystemExit) as ended:
        parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def _titles(help: str) -> list[str]:
    """The titles of its groups, in their order."""
    return re.findall(r"^(\S.*):$", help, flags=re.MULTILINE)


def _group(help: str, title: str) -> str:
    """What stands under a title."""
    return re.split(r"^\S.*:$", help.split(f"\n{title}:\n")[1], flags=re.MULTILINE)[0]
