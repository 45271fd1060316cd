"""Command lines: options as rows of tables, and parsers that answer a mistake in one line."""

import argparse
import difflib
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name.

    default: None where it follows from something else; `help` then names it. help: a phrase.
    kind: the type of its values, where `default` does not show it. least, most: bounds; excluded:
    a bound that is not allowed itself. choices: the allowed values. flag: the name on the command
    line, where that differs from the field's. short: a second flag, of one letter. required:
    whether a command line must have it. group: the heading in --help. metavar: stands for the value
    there.
    """

    default: object
    help: str
    kind: type | None = None
    least: float = -math.inf
    most: float = math.inf
    excluded: float | None = None
    choices: tuple = ()
    flag: str = ""
    short: str = ""
    required: bool = False
    group: str = ""
    metavar: str | None = None

    @property
    def type(self) -> type:
        """The type of its values."""
        return self.kind or type(self.default)

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        text = words[self.type]
        if self.least != -math.inf:
            text += f" from {self.least:,} "
            text += "on" if self.most == math.inf else f"to {self.most:,}"
        return text if self.excluded is None else f"{text} and not {self.excluded:g}"

    def spellings(self, name: str) -> list[str]:
        """All words that name it on a command line. name: of its field."""
        flag = self.flag or name
        words = [f"-{self.short}"] if self.short else []
        return [*words, f"--{flag}", *([f"--no-{flag}"] if self.type is bool else [])]

    def accepts(self, value: object) -> bool:
        """Whether `value` is allowed."""
        if value is None:
            return self.default is None
        if self.choices:
            return value in self.choices
        if self.type is not bool and isinstance(value, bool):
            return False  # True is 1 in Python
        if self.type in (bool, str):
            return isinstance(value, self.type)
        if not isinstance(value, (int, float) if self.type is float else int):
            return False
        return (
            self.least <= value <= self.most
            and value != self.excluded
            and (self.type is int or math.isfinite(value))
        )

    def parse(self, text: str) -> object:
        """The value that `text` stands for. Raises ArgumentTypeError for one not allowed."""
        try:
            value = self.type(text)
        except ValueError:
            value = None
        if value is None or not self.accepts(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.allowed}")
        return value

    def add_to(self, parser: argparse._ActionsContainer, name: str, note: str = "") -> None:
        """Add this option to a parser. name: of its field. note: tells the default in --help.

        With a note the option has no default of its own: what is not given is not in the result.
        """
        flag = self.flag or name
        words = [f"--{flag}"] if not self.short else [f"-{self.short}", f"--{flag}"]
        help = " ".join(filter(None, [self.help, note or self._default_note]))
        if self.type is bool and (note or self.default):
            parser.add_argument(
                *words,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,  # argparse would add a note of its own
                help=help,
            )
            if not note:
                parser.set_defaults(**{flag: self.default})
        elif self.type is bool:
            parser.add_argument(*words, action="store_true", help=help)
        else:
            parser.add_argument(
                *words,
                type=str if self.choices else self.parse,
                choices=self.choices or None,
                default=argparse.SUPPRESS if note else self.default,
                required=self.required,
                metavar=self.metavar,
                help=help,
            )

    @property
    def _default_note(self) -> str:
        if self.default is None:
            return ""
        shown = {True: "on", False: "off"}.get(self.default) if self.type is bool else self.default
        return f"(default {shown})"


def count(default: int | None, help: str, least: int = 1, most: int = 10**9, **facts) -> Option:
    """A whole number from `least` to `most`."""
    return Option(default, help, kind=int, least=least, most=most, **{"metavar": "N", **facts})


def text(default: str | None, help: str, metavar: str, **facts) -> Option:
    """A text, as the name of a file or a folder."""
    return Option(default, help, kind=str, metavar=metavar, **facts)


def choice(default: str | None, help: str, *choices: str, **facts) -> Option:
    """One of some words."""
    return Option(default, help, kind=str, choices=choices, **facts)


def switch(help: str, default: bool = False) -> Option:
    """On or off."""
    return Option(default, help)


class Parser(argparse.ArgumentParser):
    """Answers a mistake in one line, without the usage; so do the parsers of its subcommands.

    Names of options may not be shortened. A word that is no option ends the program, with the right
    spelling. explain: gives a sentence for such a word, where it knows one.
    """

    def __init__(self, explain: Callable[[str], str | None] = lambda word: None, **facts):
        super().__init__(allow_abbrev=False, **facts)
        self.explain = explain

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The options, and no other word: what parse_args() and argparse's subcommands call."""
        found, stray = self.parse_some(args, namespace)
        stray = [word for word in stray if word != "--"] or stray
        if stray:
            self.error(self.explain(stray[0]) or self._about_stray(stray[0]))
        return found, stray

    def parse_some(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The options, and the words that are none, for another program."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:  # argparse would read -save as -s ave
            if word.startswith("-") and f"-{word.split('=')[0]}" in self._option_string_actions:
                self.error(self._about_stray(word))
        return super().parse_known_args(words, namespace)

    def _about_stray(self, word: str) -> str:
        known = [w.lstrip("-") for action in self._actions for w in action.option_strings]
        near = difflib.get_close_matches(word.lstrip("-–—").split("=")[0], known, n=1)
        if not near:
            return f"{word!r} is no option; --help lists them all"
        dashes = "--" if len(near[0]) > 1 else "-"
        return f"{word!r} is no option: write {dashes}{near[0]} (two dashes, no blank after them)"


def add_group(
    parser: argparse._ActionsContainer, title: str, options: Mapping[str, Option | dict]
) -> None:
    """Add a table of options to a parser or a group of one, under a title where one is given.

    A dict in place of an Option holds arguments of add_argument(); words: how it is written.
    """
    group = parser.add_argument_group(title) if title else parser
    for name, option in options.items():
        if isinstance(option, Option):
            option.add_to(group, name)
            continue
        facts = dict(option)
        group.add_argument(*facts.pop("words", [f"--{name}"]), **facts)


def device(text: str) -> str:
    """'cpu' or a GPU's number, for a program of one process. Raises ArgumentTypeError."""
    if text == "cpu" or text.isdecimal():
        return text
    if _count_gpus(text) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} names several GPUs: this program uses one")
    raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a GPU nor cpu")


def device_of_process(text: str) -> str:
    """The same for a program that torchrun starts; for several GPUs, the answer has the command."""
    count = _count_gpus(text)
    if count > 1:
        script, *rest = _without_device(sys.argv)
        line = ["torchrun", f"--nproc_per_node={count}", Path(script).name, *rest]
        raise argparse.ArgumentTypeError(
            "several GPUs take one process each. Start them with:\n"
            f"CUDA_VISIBLE_DEVICES={text} {shlex.join(line)}"
        )
    return device(text)


def _count_gpus(text: str) -> int:
    """How many GPUs a list such as 0,1 names; 0 where it is no list of numbers."""
    numbers = text.split(",")
    return len(numbers) if all(number.isdecimal() for number in numbers) else 0


def _without_device(words: Sequence[str]) -> list[str]:
    """A command line without its -c option."""
    kept, skip = [], False
    for word in words:
        is_device = word.startswith(("-c", "--choose_cuda")) and not skip
        if not skip and not is_device:
            kept.append(word)
        skip = is_device and word in ("-c", "--choose_cuda")
    return kept
