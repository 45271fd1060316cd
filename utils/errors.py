"""The one exception that means: something the user gave cannot be used."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message is a sentence for the user: what, where, and what to do about it."""

    def __init__(self, message: str):
        super().__init__(visible(message))


def visible(text: str) -> str:
    """The text as one line: what is no letter, sign or blank is written as Python would.

    Names of files may hold codes that a terminal obeys, line breaks, and bytes that are no text.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main; an InputError becomes one line on stderr and exit status 1."""
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
