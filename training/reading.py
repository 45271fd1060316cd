"""Notes of what data workers read, so that one that dies is reported with its file."""

import os
import re

import torch
from torch.utils.data import DataLoader, get_worker_info

from datasets.benchmark import ImageList
from utils.errors import InputError

NOTHING = -1
DEAD = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) "
    r"(?:is killed by signal: (?P<signal>[^.]+)"
    r"|exited unexpectedly(?: with exit code (?P<code>\d+))?)"
)
"""Torch's sentences about dead workers, from its signal handler and from its own checks."""


class Reading:
    """Which image each worker is reading: in memory that the workers share with the main process.

    rows: (workers, 2), process id and number in the list of images.
    """

    def __init__(self, workers: int):
        self.rows = torch.full((workers, 2), NOTHING).share_memory_()

    def note(self, number: int) -> None:
        """In a worker: note what it reads from now on; NOTHING once it is done."""
        worker = get_worker_info()
        if worker is not None:
            self.rows.numpy()[worker.id] = (os.getpid(), number)

    def of(self, pid: int) -> int:
        """The number of the image that this worker noted last."""
        return dict(self.rows.tolist()).get(pid, NOTHING)


def explain_dead_worker(loader: DataLoader, error: BaseException) -> InputError | None:
    """A sentence for torch's error about dead workers of a loader of build_batches().

    torch raises it from a signal handler, hence anywhere in the main thread. None: the error is
    another one.
    """
    found = _match_of_torch(error)
    if found is None:
        return None
    images, reading = loader.dataset.images, loader.dataset.reading
    how = "ended unexpectedly"
    if found["signal"]:
        how = f"was killed ({found['signal']})"
    elif found["code"]:
        how = f"ended with exit code {found['code']}"
    pids = list(map(int, found["pids"].split(",")))
    numbers = {pid: reading.of(pid) if reading else NOTHING for pid in pids}
    what = "; ".join(
        f"data worker {pid} {how}{_while_reading(images, number)}"
        for pid, number in numbers.items()
    )
    named = len([number for number in numbers.values() if number != NOTHING])
    check = ["", "; else check that file", "; else check those files"][min(named, 2)]
    return InputError(f"D{what[1:]}. If the machine's memory ran out, lower --num_workers{check}.")


def _match_of_torch(error: BaseException | None) -> re.Match | None:
    """The match in the error or in its causes; only the first one may name the signal."""
    found = None
    while error is not None:
        match = DEAD.search(str(error)) if isinstance(error, RuntimeError) else None
        if match and (found is None or match["signal"] or match["code"]):
            found = match
        error = error.__cause__ or error.__context__
    return found


def _while_reading(images: ImageList, number: int) -> str:
    if number == NOTHING:
        return ""
    return f" while it read {images.file(number)} (named in {images.origin[number]})"
