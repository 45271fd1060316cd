"""Short runs of train.py on a small drawn benchmark, and what tests look at in them."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

import train
from model.backbone import SMALL_VITS
from training.run import Run
from utils.checkpoints import load_file
from utils.run_folder import LAST, METRICS

ROOT = Path(__file__).parent.parent
SMALL_VITS["vit_least_patch8_32"] = {  # here and in each Script: half the time of a mini one
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
}
NETWORK = "--vit vit_least_patch8_32 --no-pretrained -c cpu --num_workers 0 --amp off"
STEPS_AN_EPOCH = 3
SHORT = f"{NETWORK} --batch 3 --datasetLen 9 --epoch 2 --learning_rate 1e-3 -r sa".split()
PATIENCE = 120  # seconds that a process may take for anything

# Before a Script is copied: what scripts import once they know their options.
IMPORTED = ["pytest", "test", "training_runs", "retrieval.stored", "report.results"]
IMPORTED += ["retrieval.evaluate", "model.zse.method", "datasets.zeroshot", "report.curves"]
IMPORTED += ["matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.serialization"]
IMPORTED += ["PIL.PngImagePlugin", "PIL.JpegImagePlugin"]


def words(data: Path, save: Path, *more: str) -> list[str]:
    """The command line of a run of two epochs of three steps, validated on all images."""
    part = [] if "--part" in more else ["--testall"]
    return [*SHORT, *part, "--data_path", str(data), "-s", str(save), *more]


def run(data: Path, save: Path, *more: str, curves: bool = False) -> int:
    """In this process, which has torch already; the exit status.

    curves: draw them too, which takes as long as all the rest.
    """
    if curves:
        return train.main(words(data, save, *more))
    with patch("report.curves.draw_curves"):
        return train.main(words(data, save, *more))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: as many as a Script has, so that sums are made in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_as_started(data: Path, save: Path, *more: str, curves: bool = False) -> None:
    """To its end, as start() does, but in this process."""
    with one_thread():
        assert run(data, save, *more, curves=curves) == 0


class Script:
    """Python that runs a script in a process of its own, the first of a session, in one thread.

    The process is a copy of one that has imported torch, and has done nothing else: a new Python
    would need seconds for that. environment: more of its environment variables.

    pid (attribute): its number, which is that of its session and its process group too.
    """

    def __init__(self, file: str | Path, *words: object, **environment: object):
        self._output = tempfile.NamedTemporaryFile("w+", prefix="output")  # noqa: SIM115
        environment = {name: str(value) for name, value in environment.items()}
        arguments = (str(file), list(map(str, words)), environment, self._output.name)
        path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        with patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path):
            self._process = _copies().Process(target=_run_script, args=arguments)
            self._process.start()
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, minus the number of a signal that killed it; None while it runs."""
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What it has written so far."""
        return Path(self._output.name).read_text()

    def wait(self) -> int:
        """Until it has ended: its exit status."""
        self._process.join(PATIENCE)
        assert self.status is not None, self.output
        return self.status

    def wait_for(self, happened: Callable[[], object], every: float = 0.02) -> object:
        """Until something has happened, while it runs; the result. every: seconds between looks."""
        deadline = time.monotonic() + PATIENCE
        while not (found := happened()):
            assert self.status is None and time.monotonic() < deadline, self.output
            time.sleep(every)
        return found

    def send(self, number: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)

    def send_to_all(self, number: int) -> None:
        """Send a signal to it and its data workers, as Ctrl-C on a terminal does."""
        os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill it, and data workers with it, whatever has become of a test."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        self.wait()


def start(data: Path, save: Path, *more: str) -> Script:
    """A run in a process of its own."""
    return Script(ROOT / "train.py", *words(data, save, *more))


def start_together(file: str | Path, *words: object, count: int = 2) -> list[Script]:
    """The processes of a script as torchrun starts them, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": number, "LOCAL_RANK": number} for number in range(count)]
    return [Script(file, *words, **world, **rank) for rank in ranks]


def end_well(processes: list[Script]) -> list[str]:
    """Wait for processes, which all have to end with status 0; what each has written."""
    try:
        status = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.end()
    said = [process.output for process in processes]
    assert status == [0] * len(processes), "\n".join(said)
    return said


@cache
def _copies() -> multiprocessing.context.BaseContext:
    """A process that has imported torch, and copies itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _run_script(file: str, words: list[str], environment: dict[str, str], output: str) -> None:
    """In a new process: become Python that runs this script."""
    os.setsid()
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.chdir(ROOT)
    os.environ.update(environment)
    usual = multiprocessing.get_all_start_methods()[0]
    multiprocessing.set_start_method(usual, force=True)  # of data workers: not as this process
    sys.argv = [file, *words]
    runpy.run_path(file, run_name="__main__")


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
