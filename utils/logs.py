"""Console, log file, JSON, and a display of progress that is quiet under nohup."""

import json
import logging
import logging.handlers
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from utils.console import visible
from utils.errors import InputError
from utils.files import open_regular, reason, written_whole

SECONDS_BETWEEN_LINES = 60

log = logging.getLogger("sbir")
_started: datetime | None = None  # when start_logging() was called


def start_logging(file: Path | None = None, quiet: bool = False) -> None:
    """Send the project's log and Python's warnings to the console and, if given, to a file.

    quiet: warnings only on the console (the processes of a run other than the first). Raises
    InputError where the file cannot be opened. Where it cannot be written later, one warning goes
    to the console, and the file gets the messages that come after the trouble.
    """
    global _started
    _started = datetime.now().astimezone()
    kept = None if file is None else _open_log(file)
    logging.captureWarnings(True)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_Console())
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [console]
    if kept is not None:
        handlers.append(kept)
    log.setLevel(logging.INFO)
    for logger in (log, logging.getLogger("py.warnings")):
        for former in logger.handlers[:]:
            logger.removeHandler(former)
            former.close()
        for handler in handlers:
            logger.addHandler(handler)


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Yield the items, showing how far we are: a bar on a terminal, else a line a minute."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, leave=False, dynamic_ncols=True)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - started) / (done + 1) * (total - done - 1)
            log.info("%s: %d of %d, %s left", what, done + 1, total, duration(left))


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 5 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def write_json(path: Path, content: object) -> None:
    """Write JSON for people and programs, whole or not at all."""
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def environment(device: str) -> dict:
    """The circumstances of a number besides the options: versions, device, commit, command line.

    started: when start_logging() was called, None where it was not.
    """
    import torch

    versions = {}
    for package in ("torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": _started and _started.isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of this code, with '+' where files were changed; None if unknown."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _open_log(file: Path) -> logging.Handler:
    try:
        if os.path.exists(file):
            open_regular(file).close()  # to open a pipe would last for ever
        handler = _LogFile(file, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written ({reason(error)}). May you write there, and is there space "
            "left?"
        ) from error
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    return handler


class _LogFile(logging.handlers.WatchedFileHandler):
    """A log file that may vanish or fill its disk: that is one sentence, and no traceback."""

    def __init__(self, file: Path, encoding: str):
        self.failing = False
        super().__init__(file, encoding=encoding)

    def emit(self, record: logging.LogRecord) -> None:
        self.failed = False
        try:
            super().emit(record)  # which opens the file anew where another or none stands there
        except OSError:
            self.handleError(record)
        if self.failing and not self.failed:
            self.failing = False
            log.info("%s is written again.", self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, as logging calls it
        """Called where an error is handled; warns at the first of several in a row."""
        self.failed = True
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)  # a mistake in our code
        elif not self.failing:
            self.failing = True  # first: the warning comes here too
            log.warning(
                "%s cannot be written (%s): until it can, only the console says everything.",
                self.baseFilename,
                reason(error),
            )

    def close(self) -> None:
        with suppress(OSError):  # of a full disk
            super().close()


class _Plain(logging.Formatter):
    """Messages are one line each, in which control characters of names of files are visible."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, as logging calls it
        """All but a traceback."""
        message = record.message
        if record.name == "py.warnings":  # "file:line: Category: message\n  source line"
            message = message.split("Warning: ", 1)[-1].split("\n")[0]
        record.message = visible(message)
        return super().formatMessage(record)


class _Console(_Plain):
    """The message alone; warnings and errors have their level before it."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return (
            f"{record.levelname.lower()}: {message}" if record.levelno > logging.INFO else message
        )
