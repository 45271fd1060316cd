"""A run that is killed again and again ends as one that was left alone, to the bit.

Killed as by a system out of memory: SIGKILL to all its processes, in the midst of anything.
"""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from copies import Script
from sample_data import write_benchmark
from training_runs import assert_equal, assert_same_state, lines, run_as_started, start

from utils.checkpoints import load_file
from utils.files import TEMPORARY
from utils.run_folder import BEST, CURVES, LAST, METRICS

SEED = 20240607
STEPS, EPOCHS, WORKERS = 52, 2, 2
RUN = ["--datasetLen", str(3 * STEPS), "--epoch", str(EPOCHS), "--num_workers", str(WORKERS)]
RUN += ["--recipe", "strong", "--augment", "strong", "--own_photo", "0.5", "--dropout", "0.1"]
RUN += ["--shortcut", "--whitening", "--ema", "0.9", "--schedule", "cosine", "-r", "rn"]
SAVE_OFTEN = ["--save_minutes", "0.003"]
TORN = re.compile(rf"{re.escape(LAST)}{TEMPORARY}")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


def torn_file(save: Path) -> Path | None:
    """A checkpoint that is being written."""
    return next((save / name for name in os.listdir(save) if TORN.fullmatch(name)), None)


def halt_in_a_save(process: Script, save: Path) -> Path:
    """Stop all its processes while a checkpoint is half written, which is returned."""
    while True:
        file = process.wait_for(lambda: torn_file(save), every=0.001)
        process.send_to_all(signal.SIGSTOP)
        process.wait_for(lambda: state(process.pid)[0] == "T", every=0.001)
        if file.exists():
            return file
        process.send_to_all(signal.SIGCONT)  # it was done in the meantime


def state(number: int) -> list[str]:
    """Of a process: a letter (T: stopped), then numbers: parent, group, session and more."""
    return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()


def steps_done(save: Path) -> int:
    """Of the whole run, in the checkpoint to go on from; -1 where there is none."""
    if not (save / LAST).is_file():
        return -1
    checkpoint = load_file(save / LAST)
    return STEPS * checkpoint["epoch"] + checkpoint["step"]


def members(session: int) -> list[int]:
    """The processes of a session: what was started, and its data workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            letter, _, _, its_session, *_ = state(int(folder.name))
            if int(its_session) == session and letter != "Z":  # Z: ended, and not noticed yet
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="looks for processes in /proc, which only Linux has"
)
def test_a_run_killed_five_times_ends_as_one_left_alone(data, tmp_path):
    print(f"seed of the moments: {SEED}")
    random = np.random.default_rng(SEED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_as_started(data, whole, *RUN)
    moments = np.sort(random.choice(STEPS * EPOCHS - 20, size=5, replace=False)).tolist()
    in_a_save = random.choice(5, size=2, replace=False).tolist()
    places, torn, sessions = [], [], []
    for number, moment in enumerate(moments):
        process = start(data, killed, *RUN, *SAVE_OFTEN, *(["--resume"] if number else []))
        sessions.append(process.pid)
        try:
            process.wait_for(lambda moment=moment: steps_done(killed) >= moment, every=0.2)
            if number in in_a_save:
                torn.append(halt_in_a_save(process, killed))
            else:
                time.sleep(random.uniform(0, 0.2))
            assert len(members(process.pid)) >= 1 + WORKERS
        finally:
            process.end()
        assert process.status == -signal.SIGKILL
        places.append(steps_done(killed))
    print(f"killed after steps {places}, {in_a_save} in the midst of a save")
    assert places == sorted(places) and places[-1] < STEPS * EPOCHS
    assert len({file.name for file in torn}) == 2  # of two processes
    assert not any(map(members, sessions))
    run_as_started(data, killed, *RUN, *SAVE_OFTEN, "--resume")

    for name in (LAST, BEST):
        one, other = load_file(killed / name), load_file(whole / name)
        assert_equal(one["model"], other["model"])
        for fact in ("epoch", "step", "draws", "metrics", "best", "classes", "map_all"):
            assert one[fact] == other[fact], fact
    assert_same_state(load_file(killed / LAST), load_file(whole / LAST))
    steps = [(row["epoch"], row["step"]) for row in lines(killed, "steps")]
    assert steps == [(row["epoch"], row["step"]) for row in lines(whole, "steps")]
    assert steps == [(epoch, step) for epoch in (1, 2) for step in (50, STEPS)]
    validated = [(row["epoch"], row["validation"]) for row in lines(killed, "epoch")]
    assert validated == [(row["epoch"], row["validation"]) for row in lines(whole, "epoch")]
    assert [epoch for epoch, _ in validated] == [1, 2]
    assert {LAST, BEST, METRICS, CURVES} <= {file.name for file in killed.iterdir()}
    assert not list(killed.glob("*.tmp"))
