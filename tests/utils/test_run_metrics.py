"""metrics.jsonl of a run: every line once, whatever the disk does and whoever resumes."""

import json
import os

import pytest

from utils import run_folder
from utils.errors import InputError
from utils.run_folder import METRICS, RunFolder


def metrics(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.path / METRICS).read_text().splitlines()]


def nothing_aside(folder: RunFolder) -> bool:
    return not list(folder.path.glob("*.tmp"))


def test_lines_are_kept_as_they_were_when_they_were_added(folder):
    folder.path.parent.rename(folder.path.parent.with_name("away"))
    line = {"kind": "steps", "step": 1}
    folder.add_metrics(line)
    line["step"] = 2
    folder.path.parent.with_name("away").rename(folder.path.parent)
    folder.add_metrics(line)
    assert [line["step"] for line in metrics(folder)] == [1, 2]


def test_of_too_many_waiting_lines_the_oldest_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PENDING_LINES", 3)
    folder = RunFolder(tmp_path / "parent" / "run", writes=True)
    for step in range(5):
        folder.add_metrics({"step": step})
    folder.path.parent.mkdir()
    folder.close()  # writes them at last
    assert [line["step"] for line in metrics(folder)] == [2, 3, 4]


def a_line(kind: str, epoch: int, step: int = 0) -> str:
    return json.dumps({"kind": kind, "epoch": epoch, **({"step": step} if step else {})})


HISTORY = [
    a_line("steps", 1, 50),
    a_line("steps", 1, 60),
    a_line("epoch", 1),
    a_line("steps", 2, 50),
    a_line("steps", 2, 60),
    a_line("epoch", 2),
]


@pytest.mark.parametrize(
    ("epoch", "step", "left"),
    [(0, 0, 0), (0, 49, 0), (0, 50, 1), (0, 60, 2), (1, 0, 3), (1, 50, 4), (1, 60, 5), (2, 0, 6)],
)
@pytest.mark.parametrize("torn", ["", '{"kind": "steps", "epo', '{"kind": "other"}\n{"kin'])
def test_a_resumed_run_has_each_step_once(folder, epoch, step, left, torn):
    """By hand: a checkpoint of epoch 1, step 50 is of the 50th step of the second epoch."""
    path = folder.path / METRICS
    path.write_text("".join(f"{line}\n" for line in HISTORY) + torn)
    folder.drop_later(epoch, step)
    expected = HISTORY[:left] + (['{"kind": "other"}'] if "other" in torn else [])
    assert path.read_text() == "".join(f"{line}\n" for line in expected)
    folder.add_metrics({"kind": "steps", "epoch": epoch + 1, "step": step + 1})
    assert metrics(folder)[-1]["step"] == step + 1 and nothing_aside(folder)


def test_a_whole_last_line_without_its_end_is_ended(folder):
    (folder.path / METRICS).write_text("\n".join(HISTORY))
    folder.drop_later(2, 0)
    assert (folder.path / METRICS).read_text() == "\n".join(HISTORY) + "\n"


def test_metrics_that_lack_nothing_are_not_written_again(folder):
    path = folder.path / METRICS
    folder.drop_later(1, 0)
    assert not path.exists()
    path.write_text("\n".join(HISTORY) + "\n")
    before = path.stat()
    folder.drop_later(2, 0)
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns


def test_metrics_that_cannot_be_written_again_are_an_error_and_left(folder, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    path = folder.path / METRICS
    path.write_text("\n".join(HISTORY) + "\n")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(No space left"):
        folder.drop_later(1, 0)
    assert path.read_text() == "\n".join(HISTORY) + "\n" and nothing_aside(folder)
