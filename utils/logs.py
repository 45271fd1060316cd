"""What a run leaves behind: console, log file, JSON, and progress that is quiet under nohup."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60

log = logging.getLogger("sbir")


def start_logging(file: Path | None = None, quiet: bool = False) -> None:
    """Send the project's log and Python's warnings to the console and, if given, to a file.

    quiet: warnings only on the console (the processes of a run other than the first).
    """
    logging.captureWarnings(True)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_ConsoleFormatter())
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [console]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
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
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def append_json_line(path: Path, content: dict) -> None:
    """Add one line to a .jsonl file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def environment(device: str) -> dict:
    """What a number depends on besides the options: versions, device, commit, command line."""
    import torch

    versions = {}
    for package in ("torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of the code that runs, '+' behind it where files were changed; None if unknown."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class _ConsoleFormatter(logging.Formatter):
    """The message alone; warnings and errors say what they are."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        if record.name == "py.warnings":  # "file:line: Category: message\n  source line"
            message = message.split("Warning: ", 1)[-1].split("\n")[0]
        return (
            f"{record.levelname.lower()}: {message}" if record.levelno > logging.INFO else message
        )
