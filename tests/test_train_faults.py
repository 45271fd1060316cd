"""What goes wrong in the midst of a training: losses, memory, workers, disks, a second run."""

import errno
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from copies import Script
from sample_data import write_benchmark
from training_runs import (
    assert_equal,
    assert_same_state,
    before_step,
    lines,
    replace_validation,
    run,
    weights,
    words,
)

import training.run
import utils.checkpoints
from model.zse.method import ZSE
from utils import run_folder
from utils.checkpoints import load_file
from utils.errors import InputError
from utils.run_folder import BEST, CURVES, LAST, LOG, METRICS, RunFolder

NOT_FINITE = training.run.NOT_FINITE
QUICK = ("--validate", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


def all_finite(save: Path) -> bool:
    return all(tensor.isfinite().all() for tensor in weights(save).values())


# ---- losses and weights that are not finite


def spoil_losses(monkeypatch, call: int, name: str, value: float) -> None:
    """One loss of the batch of that number, from 0, of the whole run."""
    losses, calls = ZSE.losses, []

    def spoilt(method, batch, progress):
        found = losses(method, batch, progress)
        calls.append(1)
        return {**found, name: found[name] * value} if len(calls) == call + 1 else found

    monkeypatch.setattr(ZSE, "losses", spoilt)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_written_down_with_its_files(
    data, tmp_path, monkeypatch, value
):
    """In step 2 of epoch 2, of two batches a step; the checkpoint is of step 1."""
    spoil_losses(monkeypatch, 2 * 3 + 2, "relation", value)
    more = ["--accumulate", "2", "--datasetLen", "18", "--save_minutes", "0"]
    with pytest.raises(InputError, match=r"epoch 2, step 2: the loss relation, total is") as error:
        run(data, tmp_path, *QUICK, *more)
    said = str(error.value)
    assert "\n" not in said and str(tmp_path / NOT_FINITE) in said
    assert "--learning_rate" in said and "--clip 1" in said
    written = json.loads((tmp_path / NOT_FINITE).read_text())
    assert written.keys() == {"epoch", "step", "processes"}
    assert (written["epoch"], written["step"]) == (2, 2)
    (found,) = written["processes"]
    spoilt, sound = found["losses"]
    assert not math.isfinite(spoilt["relation"]) and not math.isfinite(spoilt["total"])
    assert math.isfinite(spoilt["contrastive"]) and all(map(math.isfinite, sound.values()))
    assert len(found["files"]) == 2 * 3 * 2  # batches, draws, a sketch and a photo
    assert all(Path(file).is_file() for file in found["files"])
    assert {Path(file).suffix for file in found["files"]} == {".png", ".jpg"}
    last = load_file(tmp_path / LAST)
    assert (last["epoch"], last["step"]) == (1, 1) and all_finite(tmp_path)


def test_after_such_a_loss_a_run_goes_on_from_before(data, tmp_path, monkeypatch):
    """Whatever it was that spoilt the loss is not in the checkpoint."""
    run(data, tmp_path / "whole", *QUICK)
    with monkeypatch.context() as context:
        spoil_losses(context, 4, "contrastive", math.nan)
        with pytest.raises(InputError, match="epoch 2, step 2"):
            run(data, tmp_path / "spoilt", *QUICK)
    run(data, tmp_path / "spoilt", *QUICK, "--resume")
    states = [load_file(tmp_path / name / LAST) for name in ("spoilt", "whole")]
    assert_same_state(*states)


def test_a_learning_rate_beyond_reason_ends_so(data, tmp_path):
    with pytest.raises(InputError, match=r"step 3: the loss .* is no longer finite"):
        run(data, tmp_path, *QUICK, "--learning_rate", "100", "--new_rate", "1e6")
    assert (tmp_path / NOT_FINITE).is_file()
    last = load_file(tmp_path / LAST)
    assert (last["epoch"], last["step"]) == (0, 0) and all_finite(tmp_path)
    assert not (tmp_path / BEST).exists()


def test_weights_that_are_not_finite_replace_no_checkpoint(data, tmp_path, monkeypatch):
    """The losses of the last step are finite, and what the optimiser makes of them is not."""

    def spoil(method, step):
        if step == 6:
            with torch.no_grad():
                method.tokenizer.vit.pos_embed[0, 0, 0] = math.inf

    monkeypatch.setattr(ZSE, "after_step", spoil)
    with pytest.raises(InputError, match=r"not saved\. Go on from the checkpoint before with"):
        run(data, tmp_path, *QUICK)
    last = load_file(tmp_path / LAST)
    assert (last["epoch"], last["step"]) == (1, 0) and all_finite(tmp_path)
    assert load_file(tmp_path / BEST)["epoch"] == 1


# ---- no memory


def fail_with(monkeypatch, error) -> None:
    """Have `error`, an exception or what raises one, in the second step."""
    losses, calls = ZSE.losses, []

    def failing(method, batch, progress):
        calls.append(1)
        if len(calls) == 2:
            if isinstance(error, BaseException):
                raise error
            error()
        return losses(method, batch, progress)

    monkeypatch.setattr(ZSE, "losses", failing)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more"),
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "can't allocate memory"),
        (MemoryError("no room"), "no room"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["of a GPU", "as a CPU says it", "Python's own", "Python's own, which says nothing"],
)
def test_where_memory_runs_out_one_sentence_says_what_to_do(
    data, tmp_path, monkeypatch, error, reason
):
    fail_with(monkeypatch, error)
    with pytest.raises(InputError, match="memory does not suffice") as raised:
        run(data, tmp_path, *QUICK)
    said = str(raised.value)
    assert said.startswith("cpu: its memory does not suffice (") and reason in said
    assert "\n" not in said
    for option in ("--batch", "--accumulate", "--checkpoint_blocks", "--amp bf16"):
        assert option in said


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("a mistake")])
def test_mistakes_of_the_code_are_not_explained_away(data, tmp_path, monkeypatch, error):
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        run(data, tmp_path, *QUICK)
    assert raised.value is error


# ---- dead workers


DYING = """
import datasets.images, os, runpy, signal
from pathlib import Path

main, open_image = os.getpid(), datasets.images.open_image

def open_or_die(file, *more):
    if os.getpid() != main:
        Path({note!r}).write_text(str(file))
        os.kill(os.getpid(), signal.SIGKILL)
    return open_image(file, *more)

datasets.images.open_image = open_or_die
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_dead_worker_is_one_sentence_with_its_file(data, tmp_path):
    """As when a decoder crashes, or the system is out of memory and kills."""
    note, script = tmp_path / "note", tmp_path / "dying.py"
    script.write_text(DYING.format(note=str(note)))
    process = Script(script, *words(data, tmp_path / "run", *QUICK, "--num_workers", "1"))
    assert process.wait() == 1 and "Traceback" not in process.output
    said = process.output.splitlines()[-1]
    assert re.match(r"error: Data worker \d+ was killed \(Killed\)", said)
    file = note.read_text()
    kind = "sketch_tx_000000000000_ready" if "sketch" in Path(file).name else "all_photo"
    assert f"{file} (named in " in said and f"{kind}_filelist_train.txt, line " in said
    assert "--num_workers" in said


# ---- the disk


class Disk:
    """Stands before save_atomically, and refuses while `refuses` returns True."""

    def __init__(self, monkeypatch):
        self.refuses = lambda: False
        self.refused: list[str] = []
        self.write = utils.checkpoints.save_atomically
        monkeypatch.setattr(utils.checkpoints, "save_atomically", self.save)

    def save(self, content, path):
        if self.refuses():
            self.refused.append(path.name)
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise InputError(f"{path}: cannot be written.") from full
        self.write(content, path)


@pytest.fixture
def disk(monkeypatch) -> Disk:
    monkeypatch.setattr(run_folder, "RETRY_SECONDS", 0)
    return Disk(monkeypatch)


def score(monkeypatch, *maps: float) -> None:
    """Set the scores of the epochs."""

    def scores(run, _):
        return {"map_all": maps[run.epoch], "precision_100": 0.5}

    replace_validation(monkeypatch, scores)


@pytest.fixture(scope="module", params=["0", "0.5"])
def scored(data, tmp_path_factory, request) -> tuple[Path, str]:
    """The folder of a run with the best epoch first, and the decay of its average."""
    save = tmp_path_factory.mktemp("scored") / "run"
    with pytest.MonkeyPatch.context() as patch:
        score(patch, 0.9, 0.1)
        run(data, save, "--ema", request.param)
    return save, request.param


@pytest.mark.parametrize("times", [1, 3, 5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_disk_that_refuses_for_a_while_ends_nothing(
    data, tmp_path, disk, scored, monkeypatch, caplog, times
):
    """The best epoch is the first; when it is written late, training has changed the weights."""
    whole, ema = scored
    score(monkeypatch, 0.9, 0.1)
    disk.refuses = lambda: len(disk.refused) < times
    with caplog.at_level("INFO"):
        assert run(data, tmp_path / "refused", "--ema", ema) == 0
    assert len(disk.refused) == times
    states = [load_file(save / LAST) for save in (tmp_path / "refused", whole)]
    assert states[0]["epoch"] == 2
    assert_same_state(*states)
    for name in (BEST, LAST):
        assert_equal(weights(tmp_path / "refused", name), weights(whole, name))
    assert load_file(tmp_path / "refused" / BEST)["epoch"] == 1
    assert f"{LAST} cannot be written" in caplog.text and os.strerror(errno.ENOSPC) in caplog.text
    assert f"{LAST} is written again" in caplog.text


def test_a_disk_that_refuses_to_the_end_is_tried_until_a_signal(data, tmp_path, disk, monkeypatch):
    disk.refuses = lambda: True
    monkeypatch.setattr(run_folder, "RETRY_SECONDS", 1)
    monkeypatch.setattr(
        run_folder.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(InputError, match="the end of the training is not in it"):
        run(data, tmp_path, *QUICK)


def test_a_stop_that_cannot_be_saved_is_an_error(data, tmp_path, disk, monkeypatch):
    def refuse_and_stop():
        disk.refuses = lambda: True
        signal.raise_signal(signal.SIGTERM)

    before_step(monkeypatch, refuse_and_stop, epoch=1, step=1)
    with pytest.raises(InputError, match="in epoch 2 after step 2, which could not be saved"):
        run(data, tmp_path, *QUICK)
    assert load_file(tmp_path / LAST)["epoch"] == 1


def test_a_folder_that_vanishes_is_made_anew(data, tmp_path, monkeypatch, caplog):
    run(data, tmp_path / "whole")
    save = tmp_path / "vanishes"
    before_step(monkeypatch, lambda: shutil.rmtree(save), epoch=0, step=1)
    with caplog.at_level("INFO"):
        assert run(data, save) == 0
    assert "vanished" in caplog.text
    assert_same_state(load_file(save / LAST), load_file(tmp_path / "whole" / LAST))
    assert_equal(weights(save, BEST), weights(tmp_path / "whole", BEST))
    assert [row["epoch"] for row in lines(save, "epoch")] == [1, 2]
    assert (save / CURVES).is_file() and "Finished in" in (save / LOG).read_text()


def test_a_folder_that_vanishes_with_its_parent_comes_back_with_it(data, tmp_path, monkeypatch):
    """As a disk that is unplugged, or a network that is down."""
    mount, away = tmp_path / "mount", tmp_path / "away"
    save = mount / "run"
    save.mkdir(parents=True)
    before_step(monkeypatch, lambda: mount.rename(away), epoch=0, step=1)
    before_step(monkeypatch, lambda: away.rename(mount), epoch=1, step=2)
    assert run(data, save) == 0
    assert load_file(save / LAST)["epoch"] == 2 and (save / BEST).is_file()
    assert [row["epoch"] for row in lines(save, "epoch")] == [1, 2]
    assert [row["epoch"] for row in lines(save, "steps")] == [1, 2]


# ---- two runs


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(data, tmp_path):
    first = RunFolder(tmp_path, writes=True)
    first.open(resume=False)
    with pytest.raises(InputError, match=rf"another run writes there \(process {os.getpid()} on"):
        run(data, tmp_path, *QUICK)
    assert not (tmp_path / METRICS).exists() and not (tmp_path / LAST).exists()
    first.close()
    assert run(data, tmp_path, *QUICK) == 0


def test_a_run_that_fails_lets_the_next_one_in(data, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        fail_with(context, MemoryError("no room"))
        with pytest.raises(InputError):
            run(data, tmp_path, *QUICK)
    assert run(data, tmp_path, *QUICK, "--resume") == 0
