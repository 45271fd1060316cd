"""The one exception that means: something the user gave cannot be used; and how scripts end."""

import _thread
import atexit
import signal
import sys
from collections.abc import Callable
from threading import Timer

from utils.console import console_that_never_fails, visible
from utils.hold import release_signals
from utils.signals import SENTENCES, EndingSignals, ignore_signals, status_after

SOON = 0.01  # seconds
NO_MEMORY = (
    "the memory does not suffice. Take smaller numbers, such as fewer images at a time (--batch in "
    "training, else --test_sk and --test_im), or fewer --num_workers."
)


class InputError(ValueError):
    """Bad input. The message is a sentence for the user: what, where, and what to do about it.

    Control characters, as names of files may hold, are made visible.
    """

    def __init__(self, message: str = ""):
        super().__init__(visible(message))


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main and leave Python, with the signals that were held until here.

    An InputError, and memory that does not suffice, become one line on stderr and exit status 1;
    Ctrl-C a line and 130, SIGTERM a line and 143, also where they fall into a destructor, whose
    exceptions Python drops, or make other code fail. What cannot be printed is an error where the
    disk is full, and none where nobody reads on (`| head`).
    """
    sys.unraisablehook = _interrupt_again
    signals = EndingSignals()
    signals.handle()
    atexit.register(ignore_signals)  # in Python's last act, which would call no handler
    with console_that_never_fails() as console:
        try:
            status = _status_of(main, signals)
            console.flush()
            signals.over = True
        except KeyboardInterrupt as interruption:
            signals.over = True
            number = (*interruption.args, signal.SIGINT)[0]
            print(SENTENCES[number], file=sys.stderr)
            status = status_after(number)
        console.flush()
        if console.failure is not None and not isinstance(console.failure, BrokenPipeError):
            why = console.failure.strerror or console.failure
            print(f"error: not all could be printed ({why}); files are written.", file=sys.stderr)
            status = status or 1
    sys.exit(status)


def _status_of(main: Callable[[], int | None], signals: EndingSignals) -> int | None:
    """What main returns or exits with, or the status of its error.

    Raises KeyboardInterrupt after a signal, whatever that made of it.
    """
    try:
        release_signals()
        return main()
    except SystemExit as end:  # of the parser of a command line
        return end.code
    except Exception as error:
        if signals.number is not None:
            raise KeyboardInterrupt(signals.number) from error
        if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
            error = NO_MEMORY
        elif not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


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
