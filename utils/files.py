"""Files written whole or not at all, even on a full disk."""

import errno
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError

TEMPORARY = r"\.\d+\.tmp"
"""How the names end that written_whole() writes under, as a regular expression."""

WITHOUT_RESERVING = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of the file system


def check_folder(file: Path, option: str) -> None:
    """Refuse, before any work is done, a file that cannot be written: InputError.

    That is one in a folder that is not there, in the place of one, or of an impossible name.
    option: names the file on the command line.
    """
    if not os.path.isdir(file.parent):
        raise InputError(f"{option} {file}: there is no folder {file.parent}. Make it first.")
    if os.path.isdir(file):
        raise InputError(f"{option} {file}: is a folder. Name a file in it.")
    try:
        os.lstat(_aside(file))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{option} {file}: cannot be written ({reason(error)}).") from error


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to beside `path`; at the end it is synced, then renamed over `path`.

    A crash at any moment leaves either the former file or the new one, never a part of one. Where
    the writing fails, nothing of it is left, and the error goes on.
    """
    aside = _aside(path)
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):  # the folder may be gone too: say what went wrong first
            aside.unlink(missing_ok=True)
        raise
    # The file is in place by now. File systems that sync no folders leave it at that.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. Raises OSError for anything else, at once.

    To open a pipe may last for ever, and to open a device may change it. A reader that asks for
    more than is left, as a damaged header has it, takes no memory for that.
    """

    def check(state: os.stat_result) -> None:
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "a pipe, socket or device, no file", path)

    def opener(name: str, flags: int) -> int:
        check(os.stat(name))
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        try:
            check(os.fstat(descriptor))  # it may have been replaced meanwhile
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return _BoundedReader(open(path, "rb", buffering=0, opener=opener))


class _BoundedReader(io.BufferedReader):
    """Sets aside memory for what the file has, not for what it is asked for."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def append_whole(path: Path, content: bytes) -> None:
    """Add to the end of a file all or nothing: after a failure the file is as before."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(content)
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a text file, all or none. A torn last line stays a line of its own."""
    start = ""
    if path.exists():
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            start = "" if file.read() in (b"", b"\n") else "\n"
    append_whole(path, (start + "".join(f"{line}\n" for line in lines)).encode())


def reserve(file: BinaryIO, first: int, size: int) -> None:
    """Have the disk set aside `size` bytes of a file from `first` on: it refuses now or not at all.

    Raises OSError where there is no room. File systems that cannot do this only see a longer file.
    """
    if size <= 0:
        return
    try:
        os.posix_fallocate(file.fileno(), first, size)
        return
    except AttributeError:  # a system without it
        pass
    except OSError as error:
        if error.errno not in WITHOUT_RESERVING:
            raise
    file.truncate(max(first + size, os.fstat(file.fileno()).st_size))


def read_json(path: Path, remedy: str) -> object:
    """The content of a JSON file. Raises InputError, which ends in the remedy."""
    try:
        with open_regular(path) as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no JSON, or damaged"
        raise InputError(f"{path}: cannot be read ({why}). {remedy}") from error


def _aside(path: Path) -> Path:
    """Where a file is written before it is in its place: see TEMPORARY."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def reason(error: BaseException) -> str:
    """Why something failed, in a few words: those of the operating system where it has some.

    torch wraps these into long sentences, and we into InputErrors.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    first = error.__cause__ or error
    return str(first).strip().split("\n")[0][:200] or type(first).__name__
