"""One run at a time writes to a folder."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from utils import run_lock
from utils.errors import InputError
from utils.run_lock import LOCK, OWNER, RunLock

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from utils.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
input()
"""


@pytest.fixture
def other_run(tmp_path):
    """A real second process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_folder_that_another_process_holds_is_refused_by_its_name(tmp_path, other_run):
    said = rf"{tmp_path}: another run writes there \(process {other_run.pid} on .*, since 20.*\)"
    with pytest.raises(InputError, match=said):
        RunLock(tmp_path).take()
    assert json.loads((tmp_path / OWNER).read_text())["process"] == other_run.pid


def test_without_a_word_on_who_holds_it_the_folder_is_refused_too(tmp_path, other_run):
    for content in (None, "", "[]", '{"process": 1}'):
        (tmp_path / OWNER).unlink() if content is None else (tmp_path / OWNER).write_text(content)
        with pytest.raises(InputError, match=r"another run writes there\. Choose another --save"):
            RunLock(tmp_path).take()


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_process_lets_others_in(tmp_path, other_run, number):
    other_run.communicate("end\n") if number is None else other_run.send_signal(number)
    other_run.wait(timeout=60)
    lock = RunLock(tmp_path)
    lock.take()
    assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
    lock.release()


def test_one_process_can_hold_a_folder_once_and_again_after_release(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        second.take()
    first.release()
    second.take()
    first.release()  # which holds nothing
    with pytest.raises(InputError, match="another run writes there"):
        RunLock(tmp_path).take()
    second.release()


def test_a_forked_data_worker_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    worker = multiprocessing.get_context("fork").Process(target=str)
    worker.start()
    worker.join()
    with pytest.raises(InputError, match="another run writes there"):
        RunLock(tmp_path).take()
    lock.release()


def test_the_workers_of_a_killed_run_get_time_to_leave(tmp_path, monkeypatch):
    """As with versions of filelock that leave locks to forked processes."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    held = RunLock(tmp_path)
    held.take()
    owner = {**json.loads((tmp_path / OWNER).read_text()), "process": dead.pid}
    (tmp_path / OWNER).write_text(json.dumps(owner))
    waits, acquire = [], FileLock.acquire

    def leave_while_waiting(lock, timeout):
        waits.append(timeout)
        if timeout:
            held.release()
        return acquire(lock, timeout=timeout)

    monkeypatch.setattr(FileLock, "acquire", leave_while_waiting)
    lock = RunLock(tmp_path)
    lock.take()
    assert waits == [0, run_lock.SECONDS_TO_LEAVE]
    lock.release()


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("FileSystem does not appear to support flock"),
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
    ],
)
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, error):
    def refuse(lock, timeout):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    lock = RunLock(tmp_path)
    lock.take()
    lock.keep()
    lock.release()
    (message,) = caplog.messages
    assert "has no locks" in message and str(tmp_path) in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_refuses_the_lock_is_an_error(tmp_path, monkeypatch, number):
    def refuse(lock, timeout):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        RunLock(tmp_path).take()


def test_where_the_owner_cannot_be_written_down_nothing_is_held(tmp_path):
    (tmp_path / OWNER).mkdir()
    with pytest.raises(OSError):
        RunLock(tmp_path).take()
    (tmp_path / OWNER).rmdir()
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


# ---- a folder that is removed while it is held


def removed(folder: Path) -> None:
    (folder / LOCK).unlink()
    (folder / OWNER).unlink()


def test_a_lock_that_stands_is_kept_as_it_is(tmp_path, monkeypatch):
    lock = RunLock(tmp_path)
    lock.keep()  # nothing is held yet: nothing to keep
    assert not list(tmp_path.iterdir())
    lock.take()
    monkeypatch.setattr(FileLock, "acquire", None)  # is not called
    lock.keep()
    lock.release()
    lock.keep()


def test_in_a_folder_made_anew_the_lock_is_acquired_anew(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    removed(tmp_path)
    lock.keep()
    with pytest.raises(InputError, match="another run writes there"):
        RunLock(tmp_path).take()
    lock.release()


def test_a_disk_that_is_back_with_another_number_is_known_by_its_owner(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).touch()
    lock.keep()
    with pytest.raises(InputError, match="another run writes there"):
        RunLock(tmp_path).take()
    lock.release()


def test_after_trouble_with_the_disk_the_lock_is_held_again(tmp_path, monkeypatch):
    def refuse(lock, timeout):
        raise OSError(errno.EIO, "Input/output error")

    lock = RunLock(tmp_path)
    lock.take()
    with monkeypatch.context() as trouble:
        trouble.setattr(run_lock, "_identity", lambda file: None)
        trouble.setattr(FileLock, "acquire", refuse)
        with pytest.raises(OSError, match="Input/output"):
            lock.keep()
    lock.keep()
    with pytest.raises(InputError, match="another run writes there"):
        RunLock(tmp_path).take()
    lock.release()


@pytest.mark.parametrize("ended", [False, True])
def test_what_another_run_holds_meanwhile_is_not_touched(tmp_path, ended):
    lock = RunLock(tmp_path)
    lock.take()
    removed(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        if ended:
            other.communicate("end\n", timeout=60)
        for _ in range(2):
            with pytest.raises(OSError, match="another run has used the folder"):
                lock.keep()
        assert json.loads((tmp_path / OWNER).read_text())["process"] == other.pid
    finally:
        other.kill()
        other.communicate()
    lock.release()
