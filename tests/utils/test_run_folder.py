"""The folder of a run: one run at a time, and no trouble with the disk ends it."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from report.curves import draw_curves
from utils import checkpoints, run_folder
from utils.checkpoints import load_file
from utils.errors import InputError
from utils.logs import start_logging
from utils.run_folder import BEST, CURVES, LAST, LOG, METRICS, RUN, RunFolder
from utils.run_lock import OWNER

ROOT = Path(__file__).parents[2]


def never() -> bool:
    pytest.fail("nothing to give up")


def names(folder: RunFolder) -> set[str]:
    """Of the files that are left, without those of the lock."""
    return {file.name for file in folder.path.iterdir() if not file.name.startswith("run.lock")}


def metrics(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.path / METRICS).read_text().splitlines()]


# ---- opening


def test_a_folder_is_made_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", writes=True)
    assert folder.open(resume=False) is folder
    assert folder.path.is_dir() and folder.log == folder.path / LOG
    folder.close()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_end_of_a_with_block_lets_other_runs_in(tmp_path, error):
    ended = pytest.raises(error) if error else nullcontext()
    with ended, RunFolder(tmp_path, writes=True).open(resume=False) as folder:
        folder.save(LAST, {"epoch": 1})
        with pytest.raises(InputError, match="another run writes there"):
            RunFolder(tmp_path, writes=True).open(resume=True)
        if error:
            raise error
    RunFolder(tmp_path, writes=True).open(resume=True).close()


@pytest.mark.parametrize("name", [LAST, BEST, METRICS])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="already holds a run or a checkpoint"):
        RunFolder(tmp_path, writes=True).open(resume=False)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_where_there_is_nothing_to_resume_nothing_is_made(tmp_path):
    for writes in (True, False):
        with pytest.raises(InputError, match=f"holds no {LAST} to resume"):
            RunFolder(tmp_path / "run", writes).open(resume=True)
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused_while_a_run_is_open_and_not_after(folder):
    code = """
import sys
from pathlib import Path
from utils.run_folder import RunFolder

RunFolder(Path(sys.argv[1]), writes=True).open(resume="--resume" in sys.argv)
"""
    folder.save(LAST, {"epoch": 1})

    def other() -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, str(folder.path), "--resume"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    refused = other()
    assert refused.returncode == 1
    assert f"another run writes there (process {os.getpid()} on" in refused.stderr
    folder.close()
    assert other().returncode == 0


def test_a_run_that_ends_while_another_opens_its_folder_is_not_written_over(tmp_path, monkeypatch):
    """Between the look and the lock, that is."""
    take = run_folder.RunLock.take

    def take_late(lock):
        (tmp_path / LAST).touch()
        take(lock)

    monkeypatch.setattr(run_folder.RunLock, "take", take_late)
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder(tmp_path, writes=True).open(resume=False)
    monkeypatch.undo()
    resumed = RunFolder(tmp_path, writes=True)
    resumed.open(resume=True)  # the lock is free again
    resumed.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            InputError, match=rf"{path}: (is a file, not|cannot be written \(.*directory)"
        ):
            RunFolder(path, writes=True).open(resume=False)


def test_what_killed_processes_left_half_written_goes_and_all_else_stays(tmp_path):
    left = [f"{LAST}.17.tmp", f"{BEST}.18.tmp", f"{METRICS}.19.tmp", f"{RUN}.1.tmp"]
    left += [f"{CURVES}.20.tmp", "resumed_in_epoch_2_step_0.json.21.tmp", "run.lock.json.22.tmp"]
    other = [LAST, f"{LAST}.tmp", f"{LAST}.old.tmp", "mine.pth.17.tmp", f"my_{LAST}.17.tmp"]
    other += [f"{LAST}.17.tmp.old", "results.json.5.tmp"]
    for name in [*left, *other]:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder(tmp_path, writes=True).open(resume=False)
    RunFolder(tmp_path, writes=False).open(resume=True)
    assert {file.name for file in tmp_path.iterdir()} == {*left, *other}  # not without the lock
    folder = RunFolder(tmp_path, writes=True)
    folder.open(resume=True)
    assert names(folder) == set(other)
    folder.close()


def test_a_process_that_does_not_write_writes_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.open(resume=False)
    assert folder.save(LAST, {}) and folder.save(BEST, {})
    folder.save_rest(never)
    folder.add_metrics({"kind": "steps"})
    folder.describe(RUN, {})
    folder.drop_later(0, 0)
    folder.draw(lambda *_: pytest.fail("nothing to draw"))
    folder.close()
    assert folder.log is None and not list(tmp_path.iterdir())


# ---- checkpoints


def test_what_is_saved_is_there(folder, caplog):
    assert folder.save(LAST, {"epoch": 1}) and folder.save(BEST, {"epoch": 2})
    folder.save_rest(never)
    assert load_file(folder.path / LAST) == {"epoch": 1} and names(folder) == {LAST, BEST}
    assert caplog.messages == [] and folder.unsaved == {}


def test_a_full_disk_is_one_warning_for_each_reason_and_training_goes_on(
    folder, caplog, monkeypatch
):
    reasons = iter(["full", "full", "slow", "full", None, "full"])

    def save(content, path):
        words = next(reasons)
        if words:
            raise InputError("whatever") from OSError(28, words)

    monkeypatch.setattr("utils.checkpoints.save_atomically", save)
    caplog.set_level("INFO")
    assert [folder.save(LAST, {}) for _ in range(6)] == [False] * 4 + [True, False]
    path = folder.path / LAST
    goes_on = "Training goes on and tries again at the next save."
    assert caplog.messages == [
        f"{path} cannot be written (full). {goes_on}",
        f"{path} cannot be written (slow). {goes_on}",
        f"{path} cannot be written (full). {goes_on}",
        f"{path} is written again.",
        f"{path} cannot be written (full). {goes_on}",
    ]


def test_a_folder_that_vanishes_is_made_again_with_a_word_and_its_lock(folder, caplog):
    shutil.rmtree(folder.path)
    assert folder.save(LAST, {"epoch": 1})
    assert caplog.messages == [f"{folder.path} had vanished, and what was in it: made anew."]
    with pytest.raises(InputError, match="another run writes there"):
        RunFolder(folder.path, writes=True).open(resume=True)


def test_a_disk_that_is_away_is_not_replaced_by_a_folder_on_another(folder, caplog):
    away = folder.path.parent.with_name("away")
    folder.path.parent.rename(away)
    assert not folder.save(LAST, {"epoch": 1})
    folder.add_metrics({"kind": "steps", "step": 1})
    assert not folder.path.parent.exists() and len(caplog.messages) == 2
    assert all("No such file or directory" in message for message in caplog.messages)
    away.rename(folder.path.parent)
    assert folder.save(LAST, {"epoch": 2})
    folder.add_metrics({"kind": "steps", "step": 2})
    assert [line["step"] for line in metrics(folder)] == [1, 2]
    with pytest.raises(InputError, match="another run writes there"):
        RunFolder(folder.path, writes=True).open(resume=True)


def test_a_folder_that_another_run_took_over_is_left_to_it(folder, caplog):
    """It was removed while the first run was still at work, and another began there."""
    shutil.rmtree(folder.path)
    other = folder.path.with_name("of_the_other.pth")
    checkpoints.save_atomically({"epoch": 9}, other)  # here: there, torch would have to load
    code = "import shutil, sys; from pathlib import Path; from utils.run_folder import *; "
    code += "folder = RunFolder(Path(sys.argv[1]), True); folder.open(False); "
    code += "shutil.copy(sys.argv[2], folder.path / LAST); folder.close()"
    command = [sys.executable, "-c", code, str(folder.path), str(other)]
    subprocess.run(command, cwd=ROOT, check=True)
    for _ in range(2):
        assert not folder.save(LAST, {"epoch": 1})
    (message,) = caplog.messages
    assert "another run has used the folder since" in message
    assert load_file(folder.path / LAST) == {"epoch": 9}


# ---- checkpoints that the disk has refused


def checkpoint(epoch: int, value: float) -> dict:
    return {"epoch": epoch, "model": {"weight": torch.full((3,), value)}}


@pytest.fixture
def refused(monkeypatch):
    """The names of files that the disk refuses; a test changes them."""
    names, save = set(), checkpoints.save_atomically

    def save_unless_refused(content, path):
        if path.name in names:
            raise InputError("refused") from OSError(28, "No space left on device")
        save(content, path)

    monkeypatch.setattr(checkpoints, "save_atomically", save_unless_refused)
    return names


def test_a_refused_checkpoint_is_unsaved_until_one_of_its_name_is_written(folder, refused):
    refused.add(LAST)
    for epoch in (1, 2):
        assert not folder.save(LAST, checkpoint(epoch, 1.0))
        assert {name: kept["epoch"] for name, kept in folder.unsaved.items()} == {LAST: epoch}
    refused.clear()
    assert folder.save(LAST, checkpoint(3, 1.0))
    assert folder.unsaved == {} and load_file(folder.path / LAST)["epoch"] == 3
    folder.save_rest(never)


def test_a_refused_best_checkpoint_is_written_at_the_next_save_as_it_was(folder, refused, caplog):
    """Training goes on with its tensors meanwhile."""
    refused.add(BEST)
    best = checkpoint(1, 1.0)
    assert not folder.save(BEST, best)
    best["model"]["weight"].fill_(2.0)
    assert folder.save(LAST, checkpoint(1, 2.0))  # and tries the best one in vain
    assert list(folder.unsaved) == [BEST] and names(folder) == {LAST}
    refused.clear()
    assert folder.save(LAST, checkpoint(2, 3.0))
    assert folder.unsaved == {}
    assert load_file(folder.path / BEST)["epoch"] == 1
    assert load_file(folder.path / BEST)["model"]["weight"].tolist() == [1.0] * 3
    assert load_file(folder.path / LAST)["model"]["weight"].tolist() == [3.0] * 3
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]  # once
    assert f"{BEST} cannot be written (No space left on device)" in message


def test_of_two_refused_best_checkpoints_the_later_one_counts(folder, refused):
    refused.add(BEST)
    for epoch in (1, 2):
        assert not folder.save(BEST, checkpoint(epoch, float(epoch)))
    refused.clear()
    folder.save_rest(never)
    assert folder.unsaved == {} and load_file(folder.path / BEST)["epoch"] == 2


def test_a_better_checkpoint_that_is_written_takes_the_place_of_a_refused_one(folder, refused):
    refused.add(BEST)
    assert not folder.save(BEST, checkpoint(1, 1.0))
    refused.clear()
    assert folder.save(BEST, checkpoint(2, 2.0))
    assert folder.unsaved == {} and load_file(folder.path / BEST)["epoch"] == 2


def test_the_last_checkpoint_is_tried_until_it_is_written(folder, caplog, monkeypatch):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 150:
            away.rename(folder.path.parent)

    away = folder.path.parent.with_name("away")
    folder.path.parent.rename(away)
    assert not folder.save(LAST, {"epoch": 1})
    monkeypatch.setattr(run_folder.time, "sleep", sleep)
    caplog.set_level("INFO")
    caplog.clear()
    folder.save_rest(lambda: False)
    assert waits == [1] * 180 and load_file(folder.path / LAST) == {"epoch": 1}
    assert folder.unsaved == {}
    warned, again = caplog.messages
    assert "It is the end of a training: tries again every 60 s until Ctrl-C." in warned
    assert again.endswith("is written again.")


def test_all_that_is_unsaved_is_saved_at_the_end(folder, refused):
    refused.update((BEST, LAST))
    assert not folder.save(BEST, checkpoint(1, 1.0)) and not folder.save(LAST, checkpoint(2, 2.0))
    refused.clear()
    folder.save_rest(never)
    assert names(folder) == {BEST, LAST} and folder.unsaved == {}
    assert load_file(folder.path / BEST)["epoch"] == 1


def test_the_last_checkpoint_can_be_given_up(folder):
    folder.path.parent.rename(folder.path.parent.with_name("away"))
    assert not folder.save(LAST, {"epoch": 1})
    sentence = f"{folder.path / LAST}: was not written; the end of the training is not in it."
    with pytest.raises(InputError) as error:
        folder.save_rest(lambda: True)
    assert str(error.value) == sentence and list(folder.unsaved) == [LAST]
    folder.path.parent.with_name("away").rename(folder.path.parent)


# ---- what is written at the start and at the end


def test_what_is_trained_is_described(folder):
    folder.describe(RUN, {"options": {"batch": 3}})
    assert json.loads((folder.path / RUN).read_text()) == {"options": {"batch": 3}}


def test_a_description_that_cannot_be_written_is_an_error(folder):
    (folder.path / RUN).mkdir()
    with pytest.raises(InputError, match=r"run\.json: cannot be written \(Is a directory\)"):
        folder.describe(RUN, {})


def test_a_finished_run_has_its_curves(folder, caplog):
    folder.add_metrics({"kind": "steps", "epoch": 1, "step": 3, "total": 1.5})
    folder.draw(draw_curves)
    assert (folder.path / CURVES).read_bytes().startswith(b"\x89PNG")
    assert names(folder) == {METRICS, CURVES} and caplog.messages == []


def test_curves_that_cannot_be_drawn_are_a_warning(folder, caplog, monkeypatch):
    folder.add_metrics({"kind": "steps", "epoch": 1, "step": 3, "total": 1.5})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder.draw(draw_curves)
    (message,) = caplog.messages
    assert message.startswith(f"{folder.path / CURVES} is not drawn (") and "matplotlib" in message
    assert names(folder) == {METRICS}


def test_a_run_that_has_measured_nothing_has_no_curves(folder, caplog):
    folder.draw(lambda *_: pytest.fail("nothing to draw"))
    assert names(folder) == set() and caplog.messages == []


def test_curves_are_drawn_of_the_metrics_under_the_name_of_the_folder(folder, monkeypatch):
    drawn = []
    folder.add_metrics({"kind": "steps"})
    folder.draw(lambda *given: drawn.append(given))
    monkeypatch.chdir(folder.path)
    RunFolder(Path(), writes=True).draw(lambda *given: drawn.append(given))
    assert drawn == [
        (folder.path / METRICS, folder.path / CURVES, "run"),
        (Path(METRICS), Path(CURVES), "run"),
    ]


# ---- pipes, which would be waited for without end


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("name", [METRICS, LOG, OWNER])
def test_a_pipe_in_the_place_of_a_file_holds_nothing_up(tmp_path, caplog, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / LAST).touch()
    with RunFolder(tmp_path, writes=True).open(resume=True) as folder:
        folder.add_metrics({"kind": "steps"})
        with pytest.raises(InputError) if name == LOG else nullcontext():
            start_logging(folder.log)
        folder.draw(draw_curves)
    start_logging()
    told = [METRICS, CURVES] if name == METRICS else [CURVES]
    assert [Path(message.split(" ")[0]).name for message in caplog.messages] == told
