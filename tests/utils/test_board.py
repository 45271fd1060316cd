"""Scalars for TensorBoard, read back with TensorBoard's own reader."""

import sys
from pathlib import Path

import pytest
from full_disk import run_with_limits

from utils.board import Board
from utils.errors import InputError


def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="--tensorboard needs the package tensorboard: pip"):
        Board(tmp_path / "tensorboard", 0)
    assert not list(tmp_path.iterdir())


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every curve in a folder."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the package tensorboard",
    )
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


@pytest.fixture
def place(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    return tmp_path / "tensorboard"


def test_what_is_added_is_there_at_once(place):
    board = Board(place, 0)
    board.add(50, {"loss/total": 1.5, "speed/images_per_second": 400})
    assert read(place) == {"loss/total": [(50, 1.5)], "speed/images_per_second": [(50, 400.0)]}
    board.add(100, {"loss/total": 0.25})
    board.close()
    assert read(place)["loss/total"] == [(50, 1.5), (100, 0.25)]
    assert len(list(place.iterdir())) == 1


def test_the_first_point_may_be_at_step_0(place):
    board = Board(place, 0)
    board.add(0, {"learning_rate": 0.5})
    assert read(place) == {"learning_rate": [(0, 0.5)]}


def test_a_loss_that_is_no_number_is_kept(place):
    Board(place, 0).add(1, {"loss": float("inf")})
    assert read(place) == {"loss": [(1, float("inf"))]}


def test_a_resumed_run_hides_what_came_after_its_checkpoint(place, monkeypatch):
    clock = iter(range(1_700_000_000, 1_700_000_100))  # a second a call: files by their time
    monkeypatch.setattr("utils.board.time.time", lambda: next(clock))
    killed = Board(place, 0)
    for step in (50, 100, 150):
        killed.add(step, {"loss": 1.0, "only then": 1.0})
    resumed = Board(place, 100)
    resumed.add(120, {"loss": 2.0})
    resumed.close()
    assert read(place) == {
        "loss": [(50, 1.0), (100, 1.0), (120, 2.0)],
        "only then": [(50, 1.0), (100, 1.0)],
    }


def test_a_run_that_adds_nothing_writes_nothing_before_it_closes(place):
    board = Board(place, 0)
    assert not place.exists()
    board.close()
    board.close()
    assert read(place) == {} and len(list(place.iterdir())) == 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_full_disk_is_one_warning_and_the_points_come_later(place, begun):
    """The room ends in the middle of an event, where a reader would see nothing of what follows."""
    code = """
import sys
from utils.board import Board
from utils.logs import start_logging

start_logging()
place = Path(sys.argv[1])
board = Board(place, 0)
for step in range(0, 50, 10):
    size = sum(file.stat().st_size for file in place.glob("*"))
    room(size + 20 if (step > 0) == (sys.argv[2] == "True") and step < 30 else None)
    board.add(step, {"loss": step})
    room(None)
board.close()
"""
    done = run_with_limits(code, place, begun)
    assert done.returncode == 0, done.stderr
    warned, again = done.stderr.splitlines()
    assert "cannot be written (File too large). Training goes on" in warned
    assert again == f"{place}: TensorBoard's curves are written again."
    assert read(place)["loss"] == [(step, float(step)) for step in range(0, 50, 10)]
    assert len(list(place.iterdir())) == 1


def test_a_vanished_folder_is_made_again_and_a_vanished_parent_is_not(tmp_path, caplog, place):
    parent = tmp_path / "run"
    parent.mkdir()
    board = Board(parent / "tensorboard", 0)
    board.add(1, {"loss": 1.0})
    for file in (parent / "tensorboard").iterdir():
        file.unlink()
    board.add(2, {"loss": 2.0})
    assert read(parent / "tensorboard") == {"loss": [(2, 2.0)]}
    parent.rename(tmp_path / "away")
    board.add(3, {"loss": 3.0})
    assert not parent.exists() and len(caplog.messages) == 1
    parent.mkdir()
    board.add(4, {"loss": 4.0})
    assert read(parent / "tensorboard") == {"loss": [(3, 3.0), (4, 4.0)]}


def test_of_too_many_waiting_points_the_oldest_are_lost(tmp_path, place, monkeypatch):
    monkeypatch.setattr("utils.board.PENDING_EVENTS", 2)
    board = Board(tmp_path / "run" / "tensorboard", 0)
    for step in range(5):
        board.add(step, {"loss": 1.0})
    (tmp_path / "run").mkdir()
    board.close()
    assert read(tmp_path / "run" / "tensorboard") == {"loss": [(3, 1.0), (4, 1.0)]}
