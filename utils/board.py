"""Scalars for TensorBoard."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from utils.errors import InputError
from utils.files import reason
from utils.logs import log


class Board:
    """Curves in a folder that `tensorboard --logdir` shows.

    first_step: the step after which this run adds points; later points of former runs are hidden.
    Raises InputError where TensorBoard is not installed. A disk that refuses ends the board with
    one warning.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--tensorboard needs the package tensorboard: pip install tensorboard"
            ) from error
        self.folder = folder
        self._writer = None
        _silence_writing_threads()
        with self._ended_by_refusal():
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve. step: of the whole training. values: by the curve's name."""
        with self._ended_by_refusal():
            for name, value in values.items():
                self._call(lambda w, n=name, v=value: w.add_scalar(n, v, step))
            self._call(lambda writer: writer.flush())

    def close(self) -> None:
        """Write what is not on the disk yet."""
        with self._ended_by_refusal():
            self._call(lambda writer: writer.close())

    def _call(self, act: Callable) -> None:
        if self._writer is not None:
            act(self._writer)

    @contextmanager
    def _ended_by_refusal(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            log.warning(
                "%s: TensorBoard's curves cannot be written (%s) and end here. Training goes on.",
                self.folder,
                reason(error),
            )


@cache
def _silence_writing_threads() -> None:
    """Print no traceback of TensorBoard's threads: their errors come back from the next call, too.

    From now on, since a thread may fail at any time.
    """
    former = threading.excepthook

    def report(arguments: threading.ExceptHookArgs) -> None:
        of_board = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (of_board and isinstance(arguments.exc_value, OSError)):
            former(arguments)

    threading.excepthook = report
