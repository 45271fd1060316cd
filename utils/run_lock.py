"""A lock, so that one run at a time writes to a folder; it ends with its process."""

import errno
import json
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError
from utils.files import open_regular, reason
from utils.logs import log, write_json

LOCK, OWNER = "run.lock", "run.lock.json"  # the latter names the last holder of the former
SECONDS_TO_LEAVE = 10  # until the data workers of a killed run have noticed
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class RunLock:
    """The lock of a folder. On a file system without locks, a warning stands for it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock: FileLock | None = None  # while it is held
        self._file: tuple[int, int] | None = None  # its device and inode; None: nothing to keep
        self._me: dict | None = None

    def take(self) -> None:
        """Raises InputError where another run holds it, OSError where the folder refuses."""
        lock = FileLock(self.folder / LOCK)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                lock.acquire(timeout=0 if _lives(self._owner()) else SECONDS_TO_LEAVE)
        except Timeout as error:
            owner = self._owner()
            note = ""
            if owner:
                note = " (process {process} on {host}, since {started})".format(**owner)
            raise InputError(
                f"{self.folder}: another run writes there{note}. Choose another --save, or stop "
                "that run."
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
                raise
            log.warning(
                "%s: this file system has no locks (%s). See to it that no other run writes there.",
                self.folder,
                reason(error),
            )
            self._file = None
            return
        try:
            self._write_owner()
        except BaseException:
            lock.release()
            raise
        self._lock, self._file = lock, _identity(self.folder / LOCK)

    def keep(self) -> None:
        """Acquire the lock again where its file has gone, as with a folder that was removed.

        Raises OSError where another run has used the folder since, and where the folder refuses.
        """
        same = self._lock is not None and _identity(self.folder / LOCK) == self._file
        if self._file is None or same:
            return
        if self._owner() not in (None, self._me):  # a disk that was away and is back has ours
            raise OSError(errno.EBUSY, "another run has used the folder since")
        self._let_go()
        try:
            self.take()
        except InputError as error:
            raise OSError(errno.EBUSY, "another run writes there now") from error

    def release(self) -> None:
        """Let other runs in."""
        self._let_go()
        self._file = None

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_owner(self) -> None:
        if self._me is None:
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            self._me = {"process": os.getpid(), "host": socket.gethostname(), "started": started}
        write_json(self.folder / OWNER, self._me)

    def _owner(self) -> dict | None:
        """The last holder of the lock; None where it is not known."""
        try:
            with open_regular(self.folder / OWNER) as file:
                owner = json.load(file)
            return {name: owner[name] for name in ("process", "host", "started")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _lives(owner: dict | None) -> bool:
    """Whether the owner's process is there, as far as this machine can tell."""
    if owner is None or owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(owner["process"]), 0)
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True
