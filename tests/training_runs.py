"""Short runs of train.py on a small drawn benchmark, and what tests look at in them."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

import train
from utils.checkpoints import load_file
from utils.run_folder import LAST, METRICS

ROOT = Path(__file__).parent.parent
NETWORK = "--vit vit_mini_patch8_48 --no-pretrained -c cpu --num_workers 0 --amp off"
STEPS_AN_EPOCH = 3
SHORT = f"{NETWORK} --batch 3 --datasetLen 9 --epoch 2 --learning_rate 1e-3 -r sa".split()


def words(data: Path, save: Path, *more: str) -> list[str]:
    """The command line of a run of two epochs of three steps, validated on all images."""
    part = [] if "--part" in more else ["--testall"]
    return [*SHORT, *part, "--data_path", str(data), "-s", str(save), *more]


def run(data: Path, save: Path, *more: str) -> int:
    """In this process, which has torch already; the exit status."""
    return train.main(words(data, save, *more))


def start(data: Path, save: Path, *more: str) -> subprocess.Popen:
    """In a process of its own, the first of a process group."""
    return subprocess.Popen(
        [sys.executable, "train.py", *words(data, save, *more)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_as_started(data: Path, save: Path, *more: str) -> None:
    """To its end, as start() does, but in this process, which has torch already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(data, save, *more) == 0
    finally:
        torch.set_num_threads(threads)


def end(process: subprocess.Popen) -> None:
    """Kill it, and data workers with it, whatever has become of a test."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def before_step(monkeypatch, act, epoch: int = 0, step: int = 0) -> None:
    """Have `act` called before that step of that epoch, both from 0, is computed."""
    seed = train.Training._seed

    def seed_and_act(training, number: int) -> None:
        seed(training, number)
        if (training.epoch, number) == (epoch, step):
            act()

    monkeypatch.setattr(train.Training, "_seed", seed_and_act)


def stop_in_step(monkeypatch, epoch: int = 0, step: int = 0) -> None:
    """Have SIGTERM come in that step, which is then the last one of the run."""
    before_step(monkeypatch, lambda: signal.raise_signal(signal.SIGTERM), epoch, step)


def weights(save: Path, name: str = LAST) -> dict:
    return load_file(save / name)["model"]


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
