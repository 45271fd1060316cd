"""The one exception that means: something the user gave cannot be used."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message is a sentence for the user: what, where, and what to do about it."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main; an InputError becomes one line on stderr and exit status 1."""
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
