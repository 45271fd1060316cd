"""Data workers end with their program, and what goes wrong with them is one sentence."""

import errno
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest
import torch

from utils import workers
from utils.errors import InputError
from utils.signals import SIGNALS
from utils.workers import NOTHING, Loader, data_workers, explain, note

ROOT = Path(__file__).parents[2]
PATIENCE = 100  # seconds


class Items(torch.utils.data.Dataset):
    """Item i is a tensor of i; act is called at item 2."""

    def __init__(self, act=lambda: None, length=8, size=3):
        self.act, self.length, self.size = act, length, size

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        note(index)
        if index == 2:
            self.act()
        note(NOTHING)
        return torch.full((self.size,), index)


def name(index):
    return f"{index}.jpg (named in a.txt, line {index + 1})"


def loader(act=lambda: None, count=1, **facts):
    return Loader(Items(act, **facts), count, name, batch_size=None)


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_items_come_in_order_however_many_workers_there_are(count):
    with data_workers():
        assert [int(item[0]) for item in loader(count=count)] == list(range(8))


# ---- the dead


@pytest.mark.parametrize(
    ("act", "how"),
    [(kill_me, "was killed (Killed)"), (lambda: os._exit(3), "ended with status 3")],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_dead_worker_is_one_sentence_with_its_file(act, how, count):
    with pytest.raises(InputError) as raised, data_workers():
        list(loader(act, count))
    assert re.fullmatch(
        rf"Data worker \d+ {re.escape(how)} while it read {re.escape(name(2))}\. If the machine's "
        r"memory or /dev/shm ran out, lower --num_workers; else check that file\.",
        str(raised.value),
    )
    assert multiprocessing.active_children() == []


def test_of_all_workers_killed_at_once_the_program_hears_once():
    def kill_all():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(PATIENCE)

    with pytest.raises(InputError, match="was killed"), data_workers():
        for _ in loader(count=2, length=100):
            kill_all()
    assert multiprocessing.active_children() == []


def test_workers_that_do_nothing_end_with_what_has_them():
    """As those of train.py after an error: they wait for more, and ignore SIGTERM."""
    with pytest.raises(KeyError), data_workers():
        held = Loader(Items(), 2, name, batch_size=None, persistent_workers=True)
        next(iter(held))
        assert len(multiprocessing.active_children()) == 2
        raise KeyError
    assert multiprocessing.active_children() == []


def test_after_a_dead_worker_the_next_one_is_found_too():
    for _ in range(2):
        with pytest.raises(InputError, match="was killed"), data_workers():
            list(loader(kill_me))


def test_a_mistake_in_a_worker_keeps_its_traceback_once(capfd):
    def mistake():
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="Original Traceback") as raised, data_workers():
        list(loader(mistake))
    assert str(raised.value).count("in mistake") == 1 and capfd.readouterr().err == ""


def test_what_cannot_be_sent_ends_the_program_with_its_traceback(capfd):
    """torch would wait for it without end."""

    class Local:
        pass

    class Unsendable(Items):
        def __getitem__(self, index):
            return Local()

    with pytest.raises(InputError, match="ended with status 1"), data_workers():
        list(Loader(Unsendable(), 1, name, batch_size=None))
    assert capfd.readouterr().err.count("Can't pickle local object") == 1


def test_workers_ignore_signals_which_are_for_the_main_process():
    def send():
        for number in SIGNALS:
            os.kill(os.getpid(), number)

    with data_workers():
        assert len(list(loader(send))) == 8


def test_a_program_ends_though_it_has_not_ended_its_workers():
    """Without data_workers(), as one that uses the library may be."""
    program = """
import torch
from utils.workers import Loader

held = Loader(torch.arange(9), 2, str, batch_size=None, persistent_workers=True)
print(next(iter(held)))
raise KeyError("a mistake")
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (1, "tensor(0)\n")
    assert ended.stderr.splitlines()[-1] == "KeyError: 'a mistake'"


LEFT_ALONE = """
import os, sys, time
import torch
from utils.workers import Loader

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        print(os.getpid(), flush=True)
        time.sleep(100)

next(iter(Loader(Slow(), 2, str, batch_size=None)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's prctl")
def test_workers_end_when_their_program_is_killed():
    command = [sys.executable, "-c", LEFT_ALONE]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pids = [int(program.stdout.readline()) for _ in range(2)]
    program.kill()
    program.wait()
    deadline = time.monotonic() + PATIENCE
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_there, pids))


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# ---- what torch says


class Process:
    """In the place of a worker's."""

    def __init__(self, pid, exitcode):
        self.pid, self.exitcode = pid, exitcode


@pytest.fixture
def two_workers(monkeypatch):
    """Of a loader: 11, which was killed at item 3, and 22, which reads nothing."""
    found = loader(count=2)
    found.table[:] = torch.tensor([(3, NOTHING), (NOTHING, NOTHING)])
    found.processes = [Process(11, -signal.SIGKILL), Process(22, None)]
    monkeypatch.setattr(workers, "_loaders", {found})
    return found


SAID = "DataLoader worker (pid(s) 11, 22) exited unexpectedly"
REMEDY = ". If the machine's memory or /dev/shm ran out, lower --num_workers"


@pytest.mark.parametrize(
    "said",
    [
        SAID,
        "DataLoader worker (pid 11) is killed by signal: Killed. ",
        "DataLoader worker (pid 11) exited unexpectedly with exit code 1. Details are lost.",
    ],
)
def test_what_torch_says_becomes_a_sentence(two_workers, said):
    sentence = f"Data worker 11 was killed (Killed) while it read {name(3)}{REMEDY}; else check "
    assert str(explain(RuntimeError(said))) == sentence + "that file."


def test_a_worker_that_read_nothing_has_no_file_to_check(two_workers):
    two_workers.processes = [Process(11, None), Process(22, -signal.SIGBUS)]
    sentence = f"Data worker 22 was killed (Bus error){REMEDY}."
    assert str(explain(RuntimeError(SAID))) == sentence


def test_two_files_are_two_to_check(two_workers):
    two_workers.table[1, 0] = 4
    two_workers.processes[1].exitcode = 3
    sentence = str(explain(RuntimeError(SAID)))
    assert f"read {name(3)}; data worker 22 ended with status 3 while it read {name(4)}" in sentence
    assert sentence.endswith("else check those files.")


def test_a_death_is_looked_for_in_what_led_to_the_error(two_workers):
    error = RuntimeError("another")
    error.__cause__ = RuntimeError(SAID)
    assert "11 was killed (Killed) while" in str(explain(error))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        RuntimeError("shapes do not match (28)"),
        ValueError("DataLoader worker (pid 11) is killed by signal: Killed"),
        OSError(errno.ENOSPC, "No space left on device", "results.json"),
        EOFError(),
    ],
    ids=str,
)
def test_other_errors_are_left_alone(two_workers, error):
    with pytest.raises(type(error)) as raised, data_workers():
        raise error
    assert raised.value is error


# ---- what connects them


MEMORY = "/dev/shm, the shared memory in which data workers hand over images: "


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, MEMORY + "No space left on device. Make room there (docker run --shm"),
        (errno.EROFS, MEMORY + "Read-only file system. "),
        (errno.EMFILE, "too many files are open (Too many open files). Allow more, as with ulimit"),
    ],
)
def test_a_worker_that_cannot_hand_over_says_why(monkeypatch, capfd, number, sentence):
    """In the thread that sends, where torch prints the error and waits for ever."""

    class Refusing(torch.Tensor):
        def __reduce_ex__(self, _):
            said = "unable to allocate shared memory(shm) for file </torch_1>: "
            raise RuntimeError(f"{said}{os.strerror(number)} ({number})")

    class Refused(Items):
        def __getitem__(self, index):
            return {"picture": Refusal() if index else 0}

    class Refusal:
        def __reduce__(self):
            return Refusing([1.0]).__reduce_ex__(2)

    with pytest.raises(InputError) as raised, data_workers():
        list(Loader(Refused(), 2, name, batch_size=None))
    assert str(raised.value).startswith(sentence) and "--num_workers" in str(raised.value)
    assert capfd.readouterr().err == ""


def raising(error: Exception, module: str) -> Callable:
    """A function that raises it, as one of that module does."""

    def fail(*_, **__):
        raise error

    return FunctionType(fail.__code__, {"__name__": module}, closure=fail.__closure__)


def test_semaphores_that_are_refused_are_shared_memory(monkeypatch):
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    refuse = raising(error, "multiprocessing.synchronize")
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    with pytest.raises(InputError, match=r"/dev/shm.*Read-only"), data_workers():
        list(loader())


@pytest.mark.parametrize("started", [0, 1])
def test_processes_that_are_refused_are_a_sentence(monkeypatch, started):
    error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    forks = [os.fork] * started
    refuse = raising(error, "multiprocessing.popen_fork")
    monkeypatch.setattr(os, "fork", lambda: (forks.pop() if forks else refuse)())
    said = r"^data workers cannot be started.*unavailable\)\. Lower"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of pytest, about destructors
        with pytest.raises(InputError, match=said), data_workers():
            list(loader(count=2))
        gc.collect()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), EOFError()])
def test_a_connection_that_ends_with_its_worker_is_told_as_its_death(two_workers, error):
    said = r"^Data worker 11 was killed \(Killed\) while it read 3\.jpg"
    with pytest.raises(InputError, match=said), data_workers():
        raising(error, "multiprocessing.connection")()


@pytest.mark.parametrize("count", [0, 1])
def test_too_many_open_files_are_a_sentence_wherever_they_are(count):
    def open_one():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "photo.jpg")

    with pytest.raises(InputError, match=r"^too many files are open"), data_workers():
        list(loader(open_one, count))


def test_the_limit_of_open_files_is_raised(monkeypatch):
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, former[1]))
    try:
        loader()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(workers.OPEN_FILES, former[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
