"""What a full disk does to checkpoint, metrics and log: one sentence, and nothing is lost."""

import json

import pytest
from full_disk import run_with_limits

from utils.run_folder import LAST, METRICS

pytestmark = pytest.mark.slow

SHARES = (0, 0.001, 0.2, 0.7, 0.999)
CHECKPOINTS = """
import sys, torch
from utils.checkpoints import load_file, save_atomically
from utils.errors import InputError

new = {"epoch": 2, "weights": [torch.ones(100_000) for _ in range(4)], "names": ["x"] * 50}
for share in sys.argv[2:]:
    last = Path(sys.argv[1]) / share / "last.pth"
    last.parent.mkdir()
    save_atomically(new, last)
    whole = last.stat().st_size
    save_atomically({"epoch": 1}, last)
    room(int(float(share) * whole))
    try:
        save_atomically(new, last)
    except InputError as error:
        print(error)
    print(load_file(last))
    room(None)
    save_atomically(new, last)
    print(load_file(last)["epoch"])
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The folder of checkpoints, and three lines about each share of the room it needs."""
    folder = tmp_path_factory.mktemp("checkpoints")
    done = run_with_limits(CHECKPOINTS, folder, *SHARES)
    assert done.returncode == 0 and done.stderr == ""
    lines = iter(done.stdout.splitlines())
    return folder, {share: [next(lines) for _ in range(3)] for share in SHARES}


@pytest.mark.parametrize("share", SHARES)
def test_a_checkpoint_that_does_not_fit_leaves_the_former_one(checkpoints, share):
    """torch meets the end of the room in its own writer, in python's buffer or at the end."""
    folder, lines = checkpoints
    last = folder / str(share) / "last.pth"
    sentence, kept, then = lines[share]
    assert sentence.startswith(f"{last}: cannot be written (File too large). What")
    assert kept == "{'epoch': 1}" and then == "2"
    assert list(last.parent.iterdir()) == [last]


def test_a_log_file_is_one_warning_and_what_was_said_comes_later(tmp_path):
    code = """
import sys
from utils.logs import log, start_logging

start_logging(Path(sys.argv[1]))
log.info("before")
room(60)
for number in range(3):
    log.info("full %d", number)
room(None)
log.info("after")
room(0)
log.info("full again")
start_logging()  # closes a file whose disk takes nothing more
log.info("end")
"""
    file = tmp_path / "train.log"
    done = run_with_limits(code, file)
    assert done.returncode == 0 and done.stdout == ""
    warning = f"warning: {file} cannot be written (File too large): until it can, only the console "
    warning += "says everything."
    assert done.stderr.splitlines() == [
        "before",
        "full 0",
        warning,
        "full 1",
        "full 2",
        "after",
        f"{file} is written again.",
        "full again",
        warning,
        "end",
    ]
    kept = [line.split(" ", 3)[3] for line in file.read_text(encoding="utf-8").splitlines()]
    assert kept[0] == "before" and kept[-2:] == ["after", f"{file} is written again."]


def test_a_run_keeps_its_checkpoint_and_all_its_metrics(tmp_path):
    code = """
import sys, torch
from utils.logs import start_logging
from utils.run_folder import LAST, RunFolder

folder = RunFolder(Path(sys.argv[1]), writes=True)
folder.open(resume=False)
start_logging()
print(folder.save(LAST, {"epoch": 1}))
for epoch, space in ((1, None), (2, 20), (3, 20), (4, None)):
    room(space)
    folder.add_metrics({"kind": "epoch", "epoch": epoch, "text": "x" * 20})
    print(folder.save(LAST, {"epoch": epoch, "weights": torch.ones(epoch * 1000)}))
    room(None)
    print(torch.load(folder.path / LAST)["epoch"])
folder.close()
"""
    done = run_with_limits(code, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()) == "True True 1 False 1 False 1 True 4"
    said = done.stderr.splitlines()
    assert [line.split(str(tmp_path / "run") + "/")[1].split(" (")[0] for line in said] == [
        f"{METRICS} cannot be written",
        f"{LAST} cannot be written",
        f"{METRICS} is written again.",
        f"{LAST} is written again.",
    ]
    written = (tmp_path / "run" / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in written] == [1, 2, 3, 4]
