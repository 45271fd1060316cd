"""Scalars for TensorBoard, read back with TensorBoard's own reader."""

import itertools
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from full_disk import run_with_limits

from utils.board import Board
from utils.errors import InputError


def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("tensorboard.", "torch.utils.tensorboard")):
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
    seconds = itertools.count(1_700_000_000)  # one a call: readers order files by their time
    clock = SimpleNamespace(time=lambda: next(seconds))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)
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


def test_a_run_that_adds_nothing_closes_as_often_as_one_likes(place):
    board = Board(place, 0)
    board.close()
    board.close()
    assert read(place) == {} and len(list(place.iterdir())) == 1


FULL = """
import sys
from utils.board import Board
from utils.logs import start_logging

start_logging()
sys.setswitchinterval(1e-6)
for points in (2, 0):
    for number in range(40):
        folder = Path(sys.argv[1]) / str(points) / str(number)
        room(None if points else 20)
        board = Board(folder, 0)
        for step in range(points):
            board.add(step, {"loss": step})
        room(sum(file.stat().st_size for file in folder.glob("*")) + 20 if points else 20)
        for step in range(points, points + 3):
            board.add(step, {"loss": step, "rate": 1.0})
        room(None)
        board.add(9, {"loss": 9})
        board.close()
    print(f"--- {points}", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder of boards on a full disk, and what each kind of them wrote on the console.

    TensorBoard's thread meets the end of the room at any moment: hence many boards, and threads
    that take turns all the time.
    """
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    folder = tmp_path_factory.mktemp("boards")
    done = run_with_limits(FULL, folder)
    assert done.returncode == 0, done.stderr
    after_two, at_once = done.stderr.split("--- 0\n")[0].split("--- 2\n")
    return folder, {2: after_two, 0: at_once}


@pytest.mark.parametrize("points", [2, 0])
def test_a_full_disk_ends_the_board_with_one_warning_and_no_traceback(full, points):
    """After some points, or with no room even for the head of the file."""
    folder, written = full
    assert written[points].splitlines() == [
        f"warning: {folder / str(points) / str(number)}: TensorBoard's curves cannot be written "
        "(File too large) and end here. Training goes on."
        for number in range(40)
    ]
    before = {"loss": [(step, float(step)) for step in range(points)]} if points else {}
    assert read(folder / str(points) / "0") == before


def test_a_folder_that_cannot_be_made_ends_the_board_with_one_warning(tmp_path, caplog, place):
    (tmp_path / "file").touch()
    board = Board(tmp_path / "file" / "tensorboard", 0)
    board.add(1, {"loss": 1.0})
    board.close()
    (message,) = caplog.messages
    assert "cannot be written (Not a directory) and end here. Training goes on." in message


def test_a_folder_that_vanishes_ends_the_board_with_one_warning(tmp_path, caplog, place):
    """It is not made anew: a disk may be away, and be back later."""
    board = Board(place, 0)
    board.add(1, {"loss": 1.0})
    shutil.rmtree(place)
    board.add(2, {"loss": 2.0})
    place.mkdir()
    board.add(3, {"loss": 3.0})
    board.close()
    (message,) = caplog.messages
    assert message.startswith(f"{place}: TensorBoard's curves cannot be written (No such file")
    assert not list(place.iterdir())


def test_other_errors_of_threads_are_shown_as_before(place, monkeypatch):
    """The board keeps back the tracebacks of refusals alone, and only while it is at work."""
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda found: shown.append(found.exc_type))

    def fail(error):
        raise error

    def fail_in_a_thread(error):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()

    board = Board(place, 0)
    flush = board._writer.flush
    board._writer.flush = lambda: (fail_in_a_thread(ValueError("a mistake")), flush())
    board.add(1, {"loss": 1.0})
    board.close()
    assert shown == [ValueError]
    fail_in_a_thread(OSError("full"))
    assert shown == [ValueError, OSError]
