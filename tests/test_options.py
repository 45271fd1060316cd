"""Names, defaults and refusals of the command line; help without torch."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import options

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
    "test_sk": 20,
    "test_im": 20,
    "num_workers": 4,
    "choose_cuda": "0",
    "seed": 2021,
}
"""None: follows from the data, from the ViT (768, 1024 and 49 for ViT-B), or is not used."""


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


def test_published_options_keep_names_and_defaults(parse):
    args = vars(parse())
    assert {name: args[name] for name in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS


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
    ],
)
def test_options_take_their_values(words, name, value, parse):
    assert getattr(parse(*words), name) == value


@pytest.mark.parametrize(
    ("dataset", "splits", "folder"),
    [
        ("sketchy_extend", ["test_class_sketchy25", "test_class_sketchy21"], "sketchy_ext"),
        ("tu_berlin", ["test_class_tuberlin30"], "tuberlin_ext"),
        ("Quickdraw", ["Quickdraw"], "quickdraw_ext"),
    ],
)
def test_split_and_save_folder_follow_from_the_dataset(dataset, splits, folder, parse):
    args = parse("--dataset", dataset)
    assert (args.test_class, args.save) == (splits[0], f"./checkpoints/{folder}")
    for split in splits:
        args = parse("--dataset", dataset, "--test_class", split, "-s", "elsewhere")
        assert (args.test_class, args.save) == (split, "elsewhere")


# ---- what the model is told


def test_settings_are_those_of_the_model(parse):
    args = parse("--head", "4", "-a", "196", "--downsampling", "spatial")
    assert options.settings_of(args) == {
        "vit": "vit_base_patch16_224",
        "width": None,
        "hidden": None,
        "heads": 4,
        "layers": 1,
        "anchors": 196,
        "downsampling": "spatial",
        "keep_rate": 1.0,
    }
    assert options.named_settings(args) == {"heads": 4, "anchors": 196, "downsampling": "spatial"}


def test_a_setting_named_with_its_default_counts_as_named(parse):
    assert options.named_settings(parse()) == {}
    named = options.named_settings(parse("--head", "8", "--vit", "vit_base_patch16_224"))
    assert named == {"heads": 8, "vit": "vit_base_patch16_224"}


def test_plain_options_are_json_and_lack_nothing(parse):
    args = parse("--head", "4")
    plain = options.plain_options(args)
    assert json.loads(json.dumps(plain)) == plain
    assert set(vars(args)) - set(plain) == {"given"}


def test_what_follows_from_elsewhere_is_told(parse):
    settings = {"width": 768, "hidden": 1024, "anchors": 49, "heads": 8}
    line = options.resolved(parse("--dataset", "tu_berlin"), settings, classes=220)
    assert set(line.split()) >= {
        "test_class=test_class_tuberlin30",
        "save=./checkpoints/tuberlin_ext",
        "cls_number=220",
        "d_model=768",
        "d_ff=1024",
        "anchor_number=49",
    }
    assert "cls_number" not in options.resolved(parse(), settings)


def test_what_may_not_change_on_resuming_are_options_of_training():
    assert set(options.RESULT_OPTIONS) <= set(vars(options.train_options([])))


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


def test_weights_cannot_be_named_and_forbidden(refusal):
    said = refusal("--no-pretrained", "--pretrained_path", "file.pth")
    assert "--pretrained_path" in said
    assert "--no-pretrained" in said


@pytest.mark.parametrize(
    "words",
    [
        ["--contrastive_weight", "-1"],
        ["--triplet_weight", "-1"],
        ["--relation_weight", "nan"],
        ["--classification_weight", "one"],
        ["--schedule", "linear"],
        ["--validate", "all"],
        ["--dropout", "1"],
        ["--dropout", "-0.1"],
    ],
    ids=" ".join,
)
def test_bad_values_of_training_alone(words, capsys):
    with pytest.raises(SystemExit):
        options.train_options(words)
    assert words[0] in capsys.readouterr().err


def test_options_of_training_alone():
    args = options.train_options([])
    assert (args.contrastive_weight, args.dropout) == (0, 0.1)
    assert (args.validate, args.resume, args.schedule) == ("seen", False, "constant")
    assert not args.flip and options.train_options(["--flip"]).flip
    words = "--contrastive_weight 0.5 --dropout 0 --validate test --resume"
    args = options.train_options(words.split())
    assert (args.contrastive_weight, args.dropout) == (0.5, 0)
    assert (args.validate, args.resume) == ("test", True)


def test_settings_of_the_losses():
    published = {"triplet_weight": 2, "relation_weight": 4, "contrastive_weight": 0}
    published |= {"classification_weight": 0, "dropout": 0.1}
    assert options.loss_settings(options.train_options([])) == published
    words = "--triplet_weight 0 --relation_weight 1 --classification_weight 0.5"
    changed = options.loss_settings(options.train_options(words.split()))
    asked = {"triplet_weight": 0, "relation_weight": 1, "classification_weight": 0.5}
    assert changed == {**published, **asked}
    assert published.keys() - {"dropout"} <= set(options.RESULT_OPTIONS)


def test_options_of_testing_alone(capsys):
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
            assert "default" in action.help, action.dest
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
