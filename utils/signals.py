"""Ctrl-C and SIGTERM, noted, so that a program can stop where it loses nothing."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled_by(handlers: Mapping[int, Callable]) -> Iterator[None]:
    """Within: these functions handle signals, by number. Afterwards they are handled as before."""
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


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
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: object) -> None:
        second = self.received
        self.number = self.number or number
        if second or self._at_once:
            raise KeyboardInterrupt


def leave_signals_to_main(worker: int) -> None:
    """For a data worker: Ctrl-C reaches the whole process group, but the main process decides."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
