"""The folder a training run writes to: what its files are called, and when it may be used."""

from pathlib import Path

from utils.errors import InputError
from utils.logs import append_json_line, write_json

LAST, BEST = "last_checkpoint.pth", "best_checkpoint.pth"
RUN, METRICS, LOG = "run.json", "metrics.jsonl", "train.log"


class RunFolder:
    """A run's checkpoints, options, metrics and log.

    writes: whether this process is the one that writes; in the others of a run, calls do nothing.
    """

    def __init__(self, path: Path, writes: bool):
        self.path = path
        self.writes = writes

    def open(self, resume: bool) -> None:
        """Make the folder. Raises InputError where it holds a run, or none to resume."""
        if resume and not (self.path / LAST).is_file():
            raise InputError(
                f"{self.path}: holds no {LAST} to resume. Leave --resume out to start a run, or "
                "name its folder with --save."
            )
        if self.writes and not resume:
            if any((self.path / name).exists() for name in (LAST, BEST, METRICS)):
                raise InputError(
                    f"{self.path}: already holds a run or a checkpoint. Go on with it with "
                    "--resume, or choose another folder with --save."
                )
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be made ({error.strerror}).") from error

    @property
    def log(self) -> Path | None:
        """The log file of the process that writes."""
        return self.path / LOG if self.writes else None

    def save(self, name: str, checkpoint: dict) -> None:
        """Write a checkpoint, whole or not at all."""
        from utils.checkpoints import save_atomically

        if self.writes:
            save_atomically(checkpoint, self.path / name)

    def add_metrics(self, line: dict) -> None:
        """Append to the metrics, which have one JSON object a line."""
        if self.writes:
            append_json_line(self.path / METRICS, line)

    def describe(self, name: str, content: dict) -> None:
        """Write down as JSON what is about to be trained, and how."""
        if self.writes:
            write_json(self.path / name, content)
