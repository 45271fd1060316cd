"""The one exception that means: something the user gave cannot be used."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message is a sentence for the user: what, where, and what to do about it.

    Terminal codes and other letters that do not print, as in names of files, are made visible.
    """

    def __init__(self, message: str = ""):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main; an InputError becomes one line on stderr and exit status 1.

    So does memory that does not suffice, as for the numbers of a command line.
    """
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).strip().split("\n")[0][:200]
        sys.exit(f"error: the memory does not suffice ({first_line}). Take smaller numbers.")
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(130)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch got no memory."""
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
