"""The one exception that means: something the user gave cannot be used; and how scripts end."""

import _thread
import sys
from collections.abc import Callable
from threading import Timer

from utils.console import console_that_never_fails, visible

SOON = 0.01  # seconds
NO_MEMORY = (
    "the memory does not suffice. Take smaller numbers, such as fewer images at a time (--batch in "
    "training, else --test_sk and --test_im), or fewer --num_workers."
)
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


class InputError(ValueError):
    """Bad input. The message is a sentence for the user: what, where, and what to do about it.

    Control characters, as names of files may hold, are made visible.
    """

    def __init__(self, message: str = ""):
        super().__init__(visible(message))


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main and leave Python.

    An InputError, and memory that does not suffice, become one line on stderr and exit status 1;
    Ctrl-C a line and 130, also where it
    falls into a destructor, whose exceptions Python drops. What cannot be printed is an error where
    the disk is full, and none where nobody reads on (`| head`).
    """
    sys.unraisablehook = _interrupt_again
    with console_that_never_fails() as console:
        try:
            status = main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"error: {NO_MEMORY}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            print("interrupted.", file=sys.stderr)
            status = INTERRUPTED
        console.flush()
        if console.failure is not None and not isinstance(console.failure, BrokenPipeError):
            why = console.failure.strerror or console.failure
            print(f"error: not all could be printed ({why}); files are written.", file=sys.stderr)
            status = status or 1
    sys.exit(status)


def _interrupt_again(unraisable) -> None:
    """In the place of Python's message about an exception in a destructor."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        Timer(SOON, _thread.interrupt_main).start()  # once the destructor has ended
    else:
        sys.__unraisablehook__(unraisable)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy or torch got no memory."""
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
