"""quickstart.py: which commands it runs; it runs whole in test_commands.py."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import options
import quickstart
from datasets.synthetic import benchmark as drawn
from utils.errors import InputError
from utils.run_folder import BEST, LAST

OPTIONS = {
    "train.py": options.train_options,
    "test.py": options.test_options,
    "quickstart.py": options.quickstart_options,
    "retrieve.py": options.retrieve_options,
}


@pytest.fixture
def calls(monkeypatch):
    """The commands that would be run; test.py leaves its result as the real one does."""
    made = []

    def run(command):
        script, words = Path(command[1]).name, command[2:]
        made.append((script, words))
        if script == "test.py":
            args = options.test_options(words)
            part = "all" if args.testall else "part"
            file = f"best_checkpoint.{args.test_class}.{args.retrieval}.{part}.json"
            place = Path(args.save)
            place.mkdir(parents=True, exist_ok=True)
            scores = {"average_precision": 0.5, "precision@10": 0.4, "accuracy@1": 0.3}
            (place / file).write_text(json.dumps({**scores, "chance": scores}))
        return 0

    monkeypatch.setattr(quickstart, "_status_of", run)
    return made


def test_every_command_is_one_that_the_script_accepts(calls, tmp_path, capsys):
    assert quickstart.main(["--save", str(tmp_path), "-c", "cpu"]) == 0
    scripts = [script for script, _ in calls]
    assert scripts == ["train.py", "train.py", "test.py", "test.py", "test.py"]
    for script, words in calls:
        OPTIONS[script](words)
    shown = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert shown == [f"python {script} {shlex.join(words)}" for script, words in calls]


def test_the_untrained_and_the_trained_network_start_alike(calls, tmp_path):
    quickstart.main(["--save", str(tmp_path), "-c", "cpu", "--seed", "7"])
    untrained, trained = (
        options.train_options(words) for script, words in calls if script == "train.py"
    )
    assert untrained.settings.learning_rate == 0 < trained.settings.learning_rate
    for name in ("vit", "downsampling", "anchors", "classification_weight"):
        assert getattr(untrained.settings, name) == getattr(trained.settings, name)
    assert untrained.seed == trained.seed == 7
    assert not untrained.pretrained and not trained.pretrained


def test_further_options_reach_training(calls, tmp_path):
    quickstart.main(["--save", str(tmp_path), "--triplet_weight", "2", "--epoch", "3"])
    untrained, trained = (
        options.train_options(words) for script, words in calls if script == "train.py"
    )
    assert trained.settings.triplet_weight == 2 and trained.settings.epochs == 3
    assert untrained.settings.learning_rate == 0 and untrained.settings.epochs == 1


def test_a_stopped_run_is_resumed(calls, tmp_path):
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / LAST).touch()
    quickstart.main(["--save", str(tmp_path)])
    resumed = [
        options.train_options(words).resume for script, words in calls if script == "train.py"
    ]
    assert resumed == [False, True]


def test_the_suggested_commands_are_accepted(calls, tmp_path, capsys):
    quickstart.main(["--save", str(tmp_path / "a b"), "-c", "cpu", "--data_path", "d e"])
    lines = capsys.readouterr().out.splitlines()
    suggested = [shlex.split(line)[1:] for line in lines if line.startswith("python ")]
    scripts = [script for script, *_ in suggested]
    assert scripts == ["retrieve.py"] * 2 + ["test.py"] + ["quickstart.py"] * 2
    index, search, *others = [OPTIONS[script](words) for script, *words in suggested]
    assert Path(index.load) == tmp_path / "a b" / "trained" / BEST
    assert (index.task, search.task, search.gallery) == ("index", "search", index.out)
    layout = drawn.LAYOUT
    (photos,), (sketches,) = layout.images["photo"], layout.images["sketch"]
    assert Path(index.photos) == Path("d e") / layout.folder / photos
    (sketch,) = map(Path, search.sketch)
    assert sketch.parent == Path("d e") / layout.folder / sketches
    assert sketch.name in drawn.CATEGORIES
    for args in others:
        assert "a b" in args.save and args.data_path == "d e"
        options.train_options(getattr(args, "training", []))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (3, "ended with exit status 3"),
        (137, "ended with exit status 137"),
        (-signal.SIGKILL, r"was ended by signal 9 \(Killed\); the same command goes on"),
        (-signal.SIGSEGV, r"was ended by signal 11 \(Segmentation fault\)"),
    ],
)
def test_a_step_that_fails_ends_it_with_a_sentence(status, said, monkeypatch, tmp_path):
    monkeypatch.setattr(quickstart, "_status_of", lambda command: status)
    with pytest.raises(InputError, match=rf"^train\.py {said}"):
        quickstart.main(["--save", str(tmp_path)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("noted", [True, False])
def test_a_step_that_is_stopped_stops_it_with_the_same_exit_status(
    number, noted, monkeypatch, tmp_path, capsys
):
    """noted: the step has ended by itself, once it had saved."""
    monkeypatch.setattr(quickstart, "_status_of", lambda _: 128 + number if noted else -number)
    with pytest.raises(SystemExit) as ended:
        quickstart.main(["--save", str(tmp_path)])
    assert ended.value.code == 128 + number
    said = "train.py was stopped; the same command goes on from there.\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("content", [None, "{"])
def test_results_that_are_not_there_are_a_sentence(content, calls, monkeypatch, tmp_path):
    run = quickstart._status_of

    def run_and_lose(command):
        run(command)
        for file in tmp_path.glob("*/*.rn.*.json"):
            file.unlink() if content is None else file.write_text(content)
        return 0

    monkeypatch.setattr(quickstart, "_status_of", run_and_lose)
    with pytest.raises(InputError, match=r"trained.*\.rn\..*json: test\.py left no results there"):
        quickstart.main(["--save", str(tmp_path)])


WAITING = """
import signal, sys, time
from utils.hold import release_signals

def stop(number, frame):
    time.sleep(0.2)  # as saving takes
    sys.exit(int(sys.argv[1]))

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
release_signals()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("status", [99, 0])
def test_a_signal_leaves_the_step_the_time_to_end(number, status):
    """As from a terminal, Ctrl-C reaches all of the group; kill reaches the first process.

    A step that ends well all the same is not followed by another.
    """
    code = (
        "import quickstart, sys; "
        "print(quickstart._status_of([sys.executable, '-c', *sys.argv[1:]]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, WAITING, str(status)],
        cwd=Path(quickstart.__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.communicate(timeout=30)[0].strip() == str(status or 128 + number)
