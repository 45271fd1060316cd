"""Ctrl-C and SIGTERM: noted so that nothing is lost, or the end of the program."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from utils.hold import hold_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SENTENCES = {signal.SIGINT: "interrupted.", signal.SIGTERM: "terminated."}


def status_after(number: int) -> int:
    """The exit status after a signal, as shells have it."""
    return 128 + number


@contextmanager
def held_signals() -> Iterator[None]:
    """Within: signals wait."""
    former = hold_signals()
    try:
        yield
    finally:
        if former is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


def waiting_signals() -> set[int]:
    """Those that came while they were held."""
    return signal.sigpending() & {*SIGNALS} if hasattr(signal, "sigpending") else set()


@contextmanager
def handled_by(handlers: Mapping[int, Callable]) -> Iterator[None]:
    """Within: these functions handle signals, by number. Afterwards they are handled as before."""
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class EndingSignals:
    """From handle() on, a signal raises KeyboardInterrupt; once `over` is set, it ends Python.

    number: of the first signal; None before.
    """

    def __init__(self):
        self.number: int | None = None
        self.over = False

    def handle(self) -> None:
        """Handle the signals that are not ignored, as those of a job in the background may be."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._end)

    def _end(self, number: int, frame: object) -> None:
        if self.over:
            with suppress(OSError):
                os.write(2, f"{SENTENCES[number]}\n".encode())
            os._exit(status_after(number))
        self.number = self.number or number
        raise KeyboardInterrupt(self.number)


class StopSignals:
    """Within noted(): notes the first signal; a second one raises KeyboardInterrupt.

    number: of the first signal; None before.
    """

    def __init__(self):
        self.number: int | None = None
        self._at_once = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within: signals are noted. Afterwards they are handled as before."""
        with handled_by(dict.fromkeys(SIGNALS, self._note)):
            yield

    @property
    def received(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, and within noted(): a signal, also one noted before, raises KeyboardInterrupt."""
        self._at_once = True
        try:
            if self.received:
                raise KeyboardInterrupt(self.number)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: object) -> None:
        second = self.received
        self.number = self.number or number
        if second or self._at_once:
            raise KeyboardInterrupt(self.number)


def ignore_signals() -> None:
    """Ignore both from here on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
