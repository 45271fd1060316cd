"""Options as rows of tables, and parsers that answer a mistake in one line."""

import argparse
import math
import sys

import pytest

from utils.arguments import (
    Option,
    Parser,
    add_group,
    choice,
    count,
    device,
    device_of_process,
    switch,
    text,
)

SHARE = Option(0.5, "a share", least=0, most=1, excluded=0, metavar="SHARE")


def parser_with(**options) -> Parser:
    parser = Parser(prog="prog.py")
    add_group(parser, "", options)
    return parser


def parsed(options: dict, *words: str) -> dict:
    return vars(parser_with(**options).parse_args(words))


def help_of(options: dict) -> str:
    return " ".join(parser_with(**options).format_help().split())


@pytest.fixture
def refusal(capsys):
    """What a parser that ends the program says: one line on stderr."""

    def run(parse, *words: str) -> str:
        with pytest.raises(SystemExit) as end:
            parse(words)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == "" and err.endswith("\n")
        return err[:-1]

    return run


# ---- one option


@pytest.mark.parametrize(
    ("option", "accepted", "refused"),
    [
        (count(5, ""), [1, 5, 10**9], [0, -1, 1.0, "5", None, math.inf, True]),
        (count(0, "", least=0), [0, 1], [-1]),
        (count(None, ""), [None, 1], [0, "none"]),
        (Option(1.0, ""), [-1e9, 0, 0.5, 7], [math.nan, math.inf, -math.inf, "1", None, True]),
        (SHARE, [1e-9, 0.5, 1, 1.0], [0, 0.0, -0.1, 1.0001, math.nan]),
        (choice("a", "", "a", "b"), ["a", "b"], ["c", "", None, 1]),
        (choice(None, "", "a", "b"), [None, "b"], ["c"]),
        (text("x", "", "NAME"), ["", "any"], [None, 3]),
        (text(None, "", "NAME"), [None, "any"], [3]),
        (switch(""), [True, False], [None, 0, 1, "on"]),
    ],
)
def test_what_an_option_accepts_by_hand(option, accepted, refused):
    assert all(option.accepts(value) for value in accepted)
    assert [value for value in refused if option.accepts(value)] == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (count(5, ""), "a whole number from 1 to 1,000,000,000"),
        (Option(5, "", least=1), "a whole number from 1 on"),
        (Option(5, "", least=0, most=3), "a whole number from 0 to 3"),
        (SHARE, "a number from 0 to 1 and not 0"),
        (Option(1.0, ""), "a number"),
        (choice("a", "", "a", "b"), "one of a, b"),
        (text("x", "", "NAME"), "text"),
        (switch(""), "True or False"),
    ],
)
def test_what_is_allowed_in_words(option, words):
    assert option.allowed == words


@pytest.mark.parametrize(
    ("option", "word", "value"),
    [
        (count(5, ""), "12", 12),
        (count(None, ""), "12", 12),
        (SHARE, "1", 1.0),
        (SHARE, "1e-3", 0.001),
        (text(None, "", "NAME"), "12", "12"),
    ],
)
def test_a_word_becomes_a_value_of_the_type(option, word, value):
    found = option.parse(word)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        (count(5, ""), "0"),
        (count(5, ""), "1.0"),
        (count(5, ""), "five"),
        (count(5, ""), ""),
        (SHARE, "0"),
        (SHARE, "1.1"),
        (SHARE, "nan"),
        (Option(1.0, ""), "inf"),
    ],
)
def test_a_word_that_is_not_allowed_is_named_with_what_is(option, word):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        option.parse(word)
    assert str(error.value) == f"{word!r} is not {option.allowed}"


# ---- an option of a parser


TABLE = {
    "batch": count(15, "draws a batch"),
    "share": SHARE,
    "mode": choice("sa", "what is compared", "sa", "rn", short="r"),
    "folder": text(None, "where it lies", "DIR"),
    "fast": switch("be fast"),
    "cache": switch("keep features", default=True),
    "epochs": count(3, "epochs", flag="epoch"),
}


def test_options_that_are_not_named_have_their_defaults_under_their_flags():
    defaults = {"batch": 15, "share": 0.5, "mode": "sa", "folder": None, "fast": False}
    assert parsed(TABLE) == {**defaults, "cache": True, "epoch": 3}


def test_options_that_are_named_have_their_values():
    words = ["--batch=2", "--share=1", "-r", "rn", "--folder=a/b", "--fast", "--no-cache"]
    words += ["--epoch", "9"]
    assert parsed(TABLE, *words) == {
        **{"batch": 2, "share": 1.0, "mode": "rn", "folder": "a/b", "fast": True},
        **{"cache": False, "epoch": 9},
    }
    assert parsed(TABLE, "--cache", "--mode=sa")["cache"] is True


def test_help_has_the_default_once_and_in_words():
    shown = help_of(TABLE)
    for line in (
        "--batch N draws a batch (default 15)",
        "--share SHARE a share (default 0.5)",
        "-r {sa,rn}, --mode {sa,rn} what is compared (default sa)",
        "--folder DIR where it lies --fast be fast (default off)",
        "--cache, --no-cache keep features (default on)",
    ):
        assert line in shown
    assert shown.count("default") == 6 and "SUPPRESS" not in shown


@pytest.mark.parametrize("name", TABLE)
def test_with_a_note_an_option_has_no_default_and_is_absent_unless_it_is_named(name):
    parser = Parser(prog="prog.py")
    TABLE[name].add_to(parser, name, note="(follows from the recipe)")
    assert vars(parser.parse_args([])) == {}
    flag = TABLE[name].flag or name
    values = {"batch": "3", "share": "1", "mode": "rn", "folder": "x", "epochs": "4"}
    words = [f"--{flag}", *([values[name]] if name in values else [])]
    assert vars(parser.parse_args(words)).keys() == {flag}
    shown = " ".join(parser.format_help().split())
    assert f"{TABLE[name].help} (follows from the recipe)" in shown and "default" not in shown


def test_with_a_note_a_switch_can_be_turned_off():
    parser = Parser(prog="prog.py")
    TABLE["fast"].add_to(parser, "fast", note="(follows)")
    assert vars(parser.parse_args(["--no-fast"])) == {"fast": False}


def test_an_option_that_is_required_must_be_there(refusal):
    parser = parser_with(out=text(None, "a folder", "DIR", required=True))
    assert refusal(parser.parse_args).endswith("the following arguments are required: --out")
    assert vars(parser.parse_args(["--out", "x"])) == {"out": "x"}


def test_a_dict_in_a_table_holds_arguments_of_argparse():
    several = {"words": ["-s", "--sketch"], "nargs": "+", "default": [], "help": "some files"}
    options = {"sketch": several, "gallery": {"help": "a folder"}}
    assert parsed(options, "-s", "a", "b", "--gallery", "G") == {
        **{"sketch": ["a", "b"], "gallery": "G"}
    }
    assert several == {
        "words": ["-s", "--sketch"],
        "nargs": "+",
        "default": [],
        **{"help": "some files"},
    }  # the table is not changed


def test_a_table_with_a_title_has_a_heading_in_the_help():
    parser = Parser(prog="prog.py")
    add_group(parser, "speed", {"fast": TABLE["fast"]})
    add_group(parser, "", {"batch": TABLE["batch"]})
    shown = parser.format_help()
    assert shown.index("--batch N") < shown.index("\nspeed:\n") < shown.index("--fast  ")


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "argument --batch: '0' is not a whole number from 1 to "),
        (["--share", "2"], "argument --share: '2' is not a number from 0 to 1 and not 0"),
        (["-r", "cosine"], "argument -r/--mode: invalid choice: 'cosine' (choose from"),
        (["--batch"], "argument --batch: expected one argument"),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line(words, said, refusal):
    assert refusal(parser_with(**TABLE).parse_args, *words).startswith(f"prog.py: error: {said}")


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("--bach", "--batch"),
        ("--batch_=3", "--batch"),
        ("-batch", "--batch"),
        ("-mode=rn", "--mode"),
        ("—folder", "--folder"),
        ("--epochs", "--epoch"),
        ("-cache", "--cache"),
    ],
)
def test_a_word_that_is_no_option_is_answered_with_the_nearest_one(word, right, refusal):
    said = refusal(parser_with(**TABLE).parse_args, word)
    assert said == (
        f"prog.py: error: {word!r} is no option: write {right} (two dashes, no blank after them)"
    )


def test_a_word_like_no_option_sends_to_the_help(refusal):
    said = refusal(parser_with(**TABLE).parse_args, "--zzzzzz", "7")
    assert said == "prog.py: error: '--zzzzzz' is no option; --help lists them all"


def test_what_the_caller_knows_of_a_word_comes_first(refusal):
    known = {"--bach": "--bach: is an option of another method."}
    parser = Parser(prog="prog.py", explain=known.get)
    add_group(parser, "", TABLE)
    said = refusal(parser.parse_args, "--bach", "--zzz")
    assert said == "prog.py: error: --bach: is an option of another method."


def test_a_part_of_a_name_is_no_option(refusal):
    assert "write --folder" in refusal(parser_with(**TABLE).parse_args, "--fold", "x")


def test_dashes_apart_from_their_word_are_answered_with_the_word(refusal):
    said = refusal(parser_with(**TABLE).parse_args, "--", "batch", "3")
    assert "'batch' is no option: write --batch (two dashes, no blank after them)" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["draw", "--bach", "3"], "prog.py draw: error: '--bach' is no option: write --batch "),
        (["draw", "-batch", "3"], "prog.py draw: error: '-batch' is no option: write --batch "),
        (["draw", "stray"], "prog.py draw: error: 'stray' is no option; --help lists them all"),
        (["-help"], "prog.py: error: '-help' is no option: write --help "),
    ],
)
def test_subcommands_read_as_strictly(words, said, refusal):
    parser = Parser(prog="prog.py")
    task = parser.add_subparsers(dest="task").add_parser("draw")
    add_group(task, "", {"batch": TABLE["batch"], "b": count(1, "a short one", short="b")})
    assert refusal(parser.parse_args, *words).startswith(said)
    assert vars(parser.parse_args(["draw", "--batch", "3"]))["batch"] == 3


def test_words_for_another_program_come_back_in_their_order(refusal):
    parser = parser_with(**TABLE)
    args, others = parser.parse_some(["--other", "3", "--batch", "2", "--more"])
    assert args.batch == 2 and others == ["--other", "3", "--more"]
    assert "write --mode" in refusal(parser.parse_some, "-mode", "rn")


# ---- devices


@pytest.mark.parametrize("parse", [device, device_of_process])
@pytest.mark.parametrize("name", ["cpu", "0", "3", "12"])
def test_a_device_is_cpu_or_a_number(parse, name):
    assert parse(name) == name


@pytest.mark.parametrize("parse", [device, device_of_process])
@pytest.mark.parametrize("name", ["", "gpu", "-1", "0,", "0,a", "cuda:0", "1.5", "²"])
def test_what_is_no_device_is_named(parse, name):
    with pytest.raises(argparse.ArgumentTypeError, match="neither the number of a GPU nor cpu"):
        parse(name)


def test_a_program_of_one_process_takes_one_gpu():
    with pytest.raises(argparse.ArgumentTypeError) as error:
        device("0,2")
    assert str(error.value) == "'0,2' names several GPUs: this program uses one"


@pytest.mark.parametrize(
    "words", [["-c", "0,2"], ["--choose_cuda", "0,2"], ["-c0,2"], ["--choose_cuda=0,2"]]
)
def test_several_gpus_are_answered_with_the_command_that_uses_them(words, monkeypatch):
    given = ["/there/train.py", "--save", "my run", *words, "--batch", "3"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(argparse.ArgumentTypeError) as error:
        device_of_process("0,2")
    assert str(error.value).splitlines()[1] == (
        "CUDA_VISIBLE_DEVICES=0,2 torchrun --nproc_per_node=2 train.py --save 'my run' --batch 3"
    )
