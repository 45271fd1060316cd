"""The console, whatever it is: closed, full, no terminal, or of an encoding that lacks letters.

Telling never fails, so that work goes on and results are written.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Console:
    """A stream that never fails: what cannot be written is left out.

    stream: None where it is closed. plain: show control characters, as visible() does, so that no
    name in a text can command a terminal.

    failure (attribute): what kept a text from being written first, or None.
    """

    def __init__(self, stream: TextIO | None, plain: bool = False):
        self.stream, self.plain = stream or open(os.devnull, "w"), plain  # noqa: SIM115
        self.failure: OSError | None = None
        with suppress(AttributeError, OSError):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or leave it."""
        shown = "\n".join(map(visible, text.split("\n"))) if self.plain else text
        self._attempt(self.stream.write, shown)
        return len(text)

    def flush(self) -> None:
        """Write what waits in a buffer, or leave it."""
        self._attempt(self.stream.flush)

    def _attempt(self, act, *arguments) -> None:
        if self.failure is not None:
            return
        try:
            act(*arguments)
        except OSError as error:
            self.failure = error
            with suppress(OSError, ValueError):  # Python flushes once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def visible(text: str) -> str:
    """A text in which control characters, ends of lines too, are written as Python writes them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def console_that_never_fails() -> Iterator[Console]:
    """Of stdout and stderr; stdout, which is plain, is yielded."""
    former = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Console(sys.stdout, plain=True), Console(sys.stderr)
    try:
        yield sys.stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = former
