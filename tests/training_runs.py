"""Short runs of train.py on a small drawn benchmark, and what tests look at in them."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import least_vit  # noqa: F401
import torch
from copies import ROOT, Script, start_importing

import train
from training.run import Run
from utils.checkpoints import load_file
from utils.run_folder import LAST, METRICS

NETWORK = "--vit vit_least_patch8_32 --no-pretrained -c cpu --num_workers 0 --amp off"
STEPS_AN_EPOCH = 3
SHORT = f"{NETWORK} --batch 3 --datasetLen 9 --epoch 2 --learning_rate 1e-3 -r sa".split()


start_importing()


def words(data: Path, save: Path, *more: str) -> list[str]:
    """The command line of a run of two epochs of three steps, validated on all images."""
    part = [] if "--part" in more else ["--testall"]
    return [*SHORT, *part, "--data_path", str(data), "-s", str(save), *more]


def run(data: Path, save: Path, *more: str, curves: bool = False) -> int:
    """In this process, which has torch already; the exit status.

    curves: draw them too, which takes as long as all the rest; else an empty file stands for them.
    No test pulls the plug: none waits until files are on the disk.
    """
    stand_in = nullcontext() if curves else patch("report.curves.draw_curves", _leave_empty)
    with patch("os.fsync"), stand_in:
        return train.main(words(data, save, *more))


def _leave_empty(metrics: Path, picture: Path, title: str) -> None:
    assert metrics.is_file() and title
    picture.touch()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: as many as a Script has, so that sums are made in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_as_started(data: Path, save: Path, *more: str) -> None:
    """To its end, as start() does, but in this process."""
    with one_thread():
        assert run(data, save, *more) == 0


def start(data: Path, save: Path, *more: str) -> Script:
    """A run in a process of its own."""
    return Script(ROOT / "train.py", *words(data, save, *more))


def before_step(monkeypatch, act, epoch: int = 0, step: int = 0) -> None:
    """Have `act` called before that step of that epoch, both from 0, is computed."""
    seed = Run._seed

    def seed_and_act(run, number: int) -> None:
        seed(run, number)
        if (run.epoch, number) == (epoch, step):
            act()

    monkeypatch.setattr(Run, "_seed", seed_and_act)


def stop_in_step(monkeypatch, epoch: int = 0, step: int = 0) -> None:
    """Have SIGTERM come in that step, which is then the last one of the run."""
    before_step(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), epoch, step)


def replace_validation(monkeypatch, replacement: Callable) -> None:
    """Have `replacement` called with a run and a function that validates as usual: the metrics."""
    fit = Run.fit

    def fit_with_it(run: Run, validate: Callable) -> int:
        return fit(run, lambda method: replacement(run, lambda: validate(method)))

    monkeypatch.setattr(Run, "fit", fit_with_it)


def weights(save: Path, name: str = LAST) -> dict:
    return load_file(save / name)["model"]


def saved_step(save: Path) -> int:
    """Of the checkpoint to go on from, in its epoch; 0 where there is none."""
    return load_file(save / LAST)["step"] if (save / LAST).is_file() else 0


def assert_equal(one: dict, other: dict) -> None:
    """Of two dicts of tensors: to the bit."""
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ


def assert_same_state(one: dict, other: dict) -> None:
    """Of two checkpoints to resume from: weights, their average, the optimiser."""
    assert_equal(one["model"], other["model"])
    assert (one["average"] is None) == (other["average"] is None)
    if one["average"]:
        assert_equal(one["average"], other["average"])
    former, latter = one["optimizer"]["state"], other["optimizer"]["state"]
    assert former.keys() == latter.keys()
    for number, state in former.items():
        assert_equal(state, latter[number])
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]


def lines(save: Path, kind: str) -> list[dict]:
    """The metrics of a kind, 'steps' or 'epoch'; none where a run was stopped before any."""
    file = save / METRICS
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in rows if row["kind"] == kind]
