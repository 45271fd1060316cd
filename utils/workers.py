"""Data workers, the processes that read for torch's DataLoader: they end with their program.

What goes wrong between them and the program becomes one sentence: a dead one, with what it was
reading; too little shared memory; too many open files.
"""

import atexit
import ctypes
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.queues import Queue

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.errors import InputError
from utils.files import reason
from utils.hold import release_signals
from utils.signals import held_signals, ignore_signals

SECONDS_TO_DIE = 1  # from the loss of its connections to the end of a process
NOTHING = -1
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
OPEN_FILES = 2**16  # that are allowed to a program where its limit can be raised
DEAD = re.compile(r"DataLoader worker \(pid.* (is killed by signal|exited unexpectedly)")
"""Torch's sentences about dead workers, from its signal handler and from its own checks."""
NUMBER = re.compile(r"\((\d+)\)$")
"""Of an error of the system, at the end of what torch says of shared memory."""
SHARED = ("shared memory", "<filename not specified>")  # in what torch says of it
CHANNEL = ("multiprocessing.", "torch.multiprocessing.", "torch.utils.data.")
"""The modules in which workers are started and hand over."""
OF_FILES = (errno.EMFILE, errno.ENFILE)
OF_MEMORY = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSYS)

_loaders: set["Loader"] = set()  # whose workers have not all come to their end
_row: np.ndarray | None = None  # in a worker: its own of Loader.table


class Loader(DataLoader):
    """torch's, with workers that end when this process does, and that leave signals to it.

    name: what to call item `number`, as note() has it, in messages. settings: further arguments of
    DataLoader.

    processes (attribute): the workers that were started last. table: (workers, 2), what each of
    them reads, and the number of the error that ended it: in memory that all share.
    """

    def __init__(self, dataset: Dataset, workers: int, name: Callable[[int], str], **settings):
        self.name, self.processes = name, []
        if workers:
            _allow_open_files()
            self.table = torch.full((workers, 2), NOTHING).share_memory_()
            settings["worker_init_fn"] = partial(_begin, self.table, os.getpid())
        super().__init__(dataset, num_workers=workers, **settings)

    def __iter__(self) -> Iterator:
        with held_signals():  # until each worker ignores them
            return super().__iter__()

    def _get_iterator(self) -> Iterator:
        if not self.num_workers:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        iterator = _Reading(self)
        self.processes = iterator._workers
        ended = {one for one in _loaders if all(p.exitcode == 0 for p in one.processes)}
        _loaders.difference_update(ended)
        _loaders.add(self)
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)  # before what multiprocessing does at the end
        return iterator


class _Reading(_MultiProcessingDataLoaderIter):
    """torch's, whose end is quiet also where not all workers could be started.

    And in a worker, which inherits the readings of its parent.
    """

    def __init__(self, loader: Loader):
        self._owner = os.getpid()
        super().__init__(loader)

    def __del__(self):
        if self._owner == os.getpid():
            with suppress(AttributeError):
                super().__del__()


def note(number: int) -> None:
    """In a worker: note what it reads from now on; NOTHING once it is done. Elsewhere nothing."""
    if _row is not None:
        _row[0] = number


@contextmanager
def data_workers() -> Iterator[None]:
    """Within: what goes wrong with workers is an InputError. At the end none of them is left.

    torch tells of a dead worker from a signal handler, hence anywhere in the main thread.
    """
    handler = None
    try:
        try:
            yield
        finally:
            handler = _silence_deaths()  # of others, meanwhile
    except (RuntimeError, OSError, EOFError, ImportError) as error:
        explained = explain(error)
        if explained is None:
            raise
        raise explained from error
    finally:
        handler = _silence_deaths() or handler
        _end_workers()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def explain(error: BaseException) -> InputError | None:
    """A sentence for an error of workers, or of what connects them; None: it is another one."""
    number = _number_of(error)
    if number in OF_FILES:
        return _about_channel(error)
    is_death = any(DEAD.search(str(cause)) for cause in _causes(error))
    if not (is_death or _is_of_channel(error)):
        return None
    return _about_dead() or _about_channel(error)


def _begin(table: torch.Tensor, main: int, worker: int) -> None:
    """What a new worker does first. main: the process that it is to end with."""
    global _row
    ignore_signals()  # Ctrl-C reaches the whole process group, but the main process decides
    release_signals()
    _end_with(main)
    _row = table[worker].numpy()
    # What its other threads cannot hand over would be waited for without end.
    Queue._on_queue_feeder_error = staticmethod(lambda error, _: _give_up(error))
    sys.excepthook = lambda _, error, __: _give_up(error)


def _end_with(main: int) -> None:
    """Have Linux kill this process when its parent ends; elsewhere torch's loop notices it.

    That is, when the thread of the parent ends that started it.
    """
    with suppress(OSError, AttributeError, TypeError):  # of other systems
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if multiprocessing.get_start_method() == "fork" and os.getppid() != main:
        os._exit(1)  # it has ended before


def _give_up(error: BaseException) -> None:
    """In a worker: end at once, so that the main process notices."""
    number = _number_of(error)
    if number is None:
        traceback.print_exception(error)  # a mistake in our code
    else:
        _row[1] = number
    os._exit(1)


def _end_workers() -> None:
    """Kill all workers: they ignore SIGTERM, after which multiprocessing would wait for them."""
    _silence_deaths()
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
            worker.join()
    _loaders.clear()


def _silence_deaths() -> Callable | None:
    """Have no function called when a process ends; the one that was."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() != threading.main_thread():
        return None
    former = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return former if callable(former) else None


def _about_dead() -> InputError | None:
    """The sentence about workers that have died, with what they were reading; None: none has."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while not (dead := _dead()) and time.monotonic() < deadline:
        time.sleep(0.01)
    told, files = [], 0
    for loader, place in dead:
        process, (item, number) = loader.processes[place], loader.table[place].tolist()
        if number != NOTHING:
            return _about_channel(OSError(number, os.strerror(number)))
        code = process.exitcode
        how = f"was killed ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"
        told.append(f"data worker {process.pid} {how}")
        if item != NOTHING:
            files += 1
            told[-1] += f" while it read {loader.name(item)}"
    if not told:
        return None
    check = ["", "; else check that file", "; else check those files"][min(files, 2)]
    return InputError(
        f"D{'; '.join(told)[1:]}. If the machine's memory or /dev/shm ran out, lower "
        f"--num_workers{check}."
    )


def _dead() -> list[tuple[Loader, int]]:
    """The workers that have ended otherwise than at the end of their work, by their place."""
    return [
        (loader, place)
        for loader in _loaders
        for place, process in enumerate(loader.processes)
        if process.exitcode not in (None, 0)
    ]


def _about_channel(error: BaseException) -> InputError:
    """The sentence about what connects workers with the main process."""
    number = _number_of(error)
    why = reason(error) if number is None else os.strerror(number)
    if number in OF_FILES:
        return InputError(
            f"too many files are open ({why}). Allow more, as with ulimit -n 4096, or lower "
            "--num_workers; with 0 there are no data workers."
        )
    if number in OF_MEMORY:
        return InputError(
            f"/dev/shm, the shared memory in which data workers hand over images: {why}. Make room "
            "there (docker run --shm-size 2g), or lower --num_workers; with 0 none is needed."
        )
    return InputError(
        f"data workers cannot be started, or hand nothing over ({why}). Lower --num_workers; with "
        "0 there are none."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number_of(error: BaseException) -> int | None:
    """The system's number of an error, errno; None: it has none."""
    said = str(error)
    if "Too many open files" in said or "ancillary data" in said:  # in an error of a worker too
        return errno.EMFILE
    if isinstance(error, OSError):
        return error.errno
    found = NUMBER.search(said) if any(part in said for part in SHARED) else None
    return int(found[1]) if found else None


def _is_of_channel(error: BaseException) -> bool:
    """Whether an error was raised where workers are started or connected."""
    if not isinstance(error, OSError | EOFError | ImportError):
        return _number_of(error) is not None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith(CHANNEL)


def _allow_open_files() -> None:
    """Raise the limit of open files as far as the system allows: each block takes some."""
    with suppress(ImportError, OSError, ValueError):  # ImportError: Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
