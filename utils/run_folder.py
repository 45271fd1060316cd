"""The folder of a training run: one run at a time writes there, and a full disk does not end it."""

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from utils.errors import InputError
from utils.files import TEMPORARY, append_lines, reason, written_whole
from utils.logs import log, write_json
from utils.run_lock import OWNER, RunLock
from utils.unreadable import check_name

LAST, BEST = "last_checkpoint.pth", "best_checkpoint.pth"
RUN, METRICS, LOG, CURVES = "run.json", "metrics.jsonl", "train.log", "curves.png"
NAMES = "|".join(map(re.escape, (LAST, BEST, RUN, METRICS, CURVES, OWNER)))
LEFT_BEHIND = re.compile(rf"({NAMES}|resumed_\w+\.json){TEMPORARY}")

RETRY_SECONDS = 60  # between attempts to save the end of a training
PENDING_LINES = 10_000  # of metrics that wait for the disk: half a million steps, 5 MB


class RunFolder:
    """A run's checkpoints, options, metrics and log.

    writes: whether this process is the one that writes; in the others of a run, calls do nothing.
    From open() to close() no other run can open the folder; `with folder.open(...)` closes it.
    unsaved (attribute): checkpoints that the disk has refused, by name.
    """

    def __init__(self, path: Path, writes: bool):
        self.path = path
        self.writes = writes
        self._lock = RunLock(path)
        self._pending: deque[str] = deque(maxlen=PENDING_LINES)
        self._refusals: dict[str, str] = {}  # file name -> the warning when it was refused last
        self.unsaved: dict[str, dict] = {}

    def open(self, resume: bool) -> "RunFolder":
        """Make the folder, keep other runs out, and remove the torn files of killed ones.

        Raises InputError where it holds a run, or none to resume, or another run writes there.
        """
        check_name(self.path / LAST)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file, not a folder. Name another with --save.")
        self._check(resume)
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.take()
            self._check(resume)  # another run may have ended between the first look and the lock
            for file in self.path.iterdir():
                if LEFT_BEHIND.fullmatch(file.name):
                    file.unlink(missing_ok=True)
        except OSError as error:
            self.close()
            raise _refused(self.path, error) from error
        except InputError:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let other runs in. Try once more to write the metrics that the disk has refused."""
        if self._pending:
            self._write_pending()
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def log(self) -> Path | None:
        """The log file of the process that writes."""
        return self.path / LOG if self.writes else None

    def describe(self, name: str, content: dict) -> None:
        """Write a description of the run as JSON. Raises InputError."""
        if not self.writes:
            return
        try:
            self._make_ready()
            write_json(self.path / name, content)
        except OSError as error:
            raise _refused(self.path / name, error) from error

    def save(self, name: str, checkpoint: dict) -> bool:
        """Write a checkpoint, whole or not at all; whether it is on the disk.

        A disk that refuses is a warning, once for each reason; the checkpoint is then kept in
        `unsaved` until one of this name is written. True in processes that do not write.
        """
        again = "Training goes on and tries again at the next save"
        written = self._save(name, checkpoint, again)
        if not written:
            # Training goes on with the tensors of a best checkpoint; the last one is made anew.
            self.unsaved[name] = _copied(checkpoint) if name == BEST else checkpoint
            return False
        self.unsaved.pop(name, None)
        for other in list(self.unsaved):
            if self._save(other, self.unsaved[other], again):
                del self.unsaved[other]
        return True

    def save_rest(self, give_up: Callable[[], bool]) -> None:
        """Save what is unsaved at the end of a training, however many attempts it takes.

        give_up: called every second between attempts; True ends them with an InputError.
        """
        again = f"It is the end of a training: tries again every {RETRY_SECONDS} s until Ctrl-C"
        for name in list(self.unsaved):
            while not self._save(name, self.unsaved[name], again):
                for _ in range(RETRY_SECONDS):
                    if give_up():
                        raise InputError(
                            f"{self.path / name}: was not written; the end of the training is not "
                            "in it."
                        )
                    time.sleep(1)
            del self.unsaved[name]

    def add_metrics(self, line: dict) -> None:
        """Append to the metrics, which have one JSON object a line.

        Lines that the disk refuses wait for the next call; of more than PENDING_LINES the oldest
        are lost.
        """
        if self.writes:
            self._pending.append(json.dumps(line))
            self._write_pending()

    def drop_later(self, epoch: int, step: int) -> None:
        """Remove from the metrics the steps that a resumed run will do again, and torn lines.

        epoch, step: of the checkpoint: whole epochs done, and steps of the next. Raises InputError.
        """
        path = self.path / METRICS
        if not (self.writes and path.is_file()):
            return
        try:
            self._make_ready()
            before = path.read_bytes()
            kept = [line for line in before.splitlines() if _is_done(line, epoch, step)]
            after = b"".join(line + b"\n" for line in kept)
            if after != before:
                with written_whole(path) as file:
                    file.write(after)
        except OSError as error:
            raise _refused(path, error) from error

    def draw(self, draw_curves: Callable[[Path, Path, str], None]) -> None:
        """Draw the metrics, if there are some, as a picture. A failure is a warning.

        draw_curves: takes the file of metrics, that of the picture, and a title.
        """
        if not (self.writes and os.path.exists(self.path / METRICS)):
            return
        try:
            self._make_ready()
            draw_curves(self.path / METRICS, self.path / CURVES, self.path.resolve().name)
        except Exception as error:  # the training is done and saved: no picture may spoil that
            log.warning("%s is not drawn (%s).", self.path / CURVES, reason(error))

    # ---- whether it may be used, and what the disk refuses

    def _check(self, resume: bool) -> None:
        if resume and not (self.path / LAST).is_file():
            raise InputError(
                f"{self.path}: holds no {LAST} to resume. Leave --resume out to start a run, or "
                "name its folder with --save."
            )
        held = any((self.path / name).exists() for name in (LAST, BEST, METRICS))
        if self.writes and held and not resume:
            raise InputError(
                f"{self.path}: already holds a run or a checkpoint. Go on with it with --resume, "
                "or choose another folder with --save."
            )

    def _make_ready(self) -> None:
        """Make a folder that has vanished again, and check that it is still ours. Raises OSError.

        Not its parents: where they are gone too, a disk may be, and be back later.
        """
        if not self.path.exists():
            self.path.mkdir()
            log.warning("%s had vanished, and what was in it: made anew.", self.path)
        self._lock.keep()

    def _save(self, name: str, checkpoint: dict, again: str) -> bool:
        from utils.checkpoints import save_atomically

        path = self.path / name
        if not self.writes:
            return True
        return self._attempt(path, lambda: save_atomically(checkpoint, path), again)

    def _write_pending(self) -> None:
        path, lines = self.path / METRICS, list(self._pending)
        again = "Training goes on; the lines wait in memory for the next attempt"
        if self._attempt(path, lambda: append_lines(path, lines), again):
            self._pending.clear()

    def _attempt(self, path: Path, write: Callable[[], object], again: str) -> bool:
        """Write a file, or warn that the disk refuses, once for each reason.

        again: what happens next, a sentence without its full stop.
        """
        try:
            self._make_ready()
            write()
        except (OSError, InputError) as error:
            warning = f"({reason(error)}). {again}."
            if self._refusals.get(path.name) != warning:
                log.warning("%s cannot be written %s", path, warning)
            self._refusals[path.name] = warning
            return False
        if self._refusals.pop(path.name, None):
            log.info("%s is written again.", path)
        return True


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({reason(error)}). Is there space left, and may you write "
        "there?"
    )


def _copied(checkpoint: dict) -> dict:
    """The same with weights that training does not change."""
    weights = {name: tensor.cpu().clone() for name, tensor in checkpoint["model"].items()}
    return {**checkpoint, "model": weights}


def _is_done(line: bytes, epoch: int, step: int) -> bool:
    """Whether a line of metrics is whole, and of no later time than the checkpoint."""
    try:
        content = json.loads(line)
        if content["kind"] == "steps":
            return (content["epoch"] - 1, content["step"]) <= (epoch, step)
        return content["kind"] != "epoch" or content["epoch"] <= epoch
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
