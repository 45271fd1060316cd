"""train.py as its users run it, on a small drawn benchmark."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_data import write_benchmark

import train
from utils.checkpoints import load_file
from utils.errors import InputError
from utils.run_folder import BEST, LAST, LOG, METRICS, RUN

ROOT = Path(__file__).parent.parent
SMALL = "--vit test_vit --no-pretrained --batch 2 --datasetLen 8 --epoch 2 -c cpu --num_workers 0"
SMALL = [*SMALL.split(), "--learning_rate", "1e-3", "--testall", "-r", "sa"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


def run(data: Path, save: Path, *more: str) -> int:
    return train.main([*SMALL, "--data_path", str(data), "-s", str(save), *more])


def start(data: Path, save: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", *SMALL, "--data_path", data, "-s", save, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(save: Path, name: str = LAST) -> dict:
    return load_file(save / name)["model"]


def lines(save: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (save / METRICS).read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_a_run_leaves_checkpoints_options_metrics_and_log(data, tmp_path):
    save = tmp_path / "run"
    assert run(data, save, "--contrastive_weight", "1") == 0
    last, best = load_file(save / LAST), load_file(save / BEST)
    assert (last["epoch"], last["step"]) == (2, 0)
    assert best["optimizer"] is None and last["optimizer"] is not None
    assert best["map_all"] == max(row["validation"]["map_all"] for row in lines(save, "epoch"))
    described = json.loads((save / RUN).read_text())
    assert described["options"]["batch"] == 2
    assert torch.__version__.startswith(described["environment"]["torch"].split("+")[0])
    assert described["validation"]["kind"] == "seen"
    assert set(described["validation"]["classes"]).isdisjoint(described["seen_classes"])
    assert {"triplet", "relation", "contrastive"} <= lines(save, "epoch")[0]["losses"].keys()
    assert "Best checkpoint" in (save / LOG).read_text().splitlines()[-1]


def test_denormal_numbers_are_as_before_after_a_run(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1")
    assert torch.tensor([1e-39]) * 1 != 0


def test_published_losses_alone_by_default(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1")
    losses = lines(tmp_path / "run", "epoch")[0]["losses"]
    assert losses.keys() == {"triplet", "relation", "total"}


@pytest.mark.parametrize("validate", ["seen", "none", "test"])
def test_opens_images_of_unseen_classes_only_if_told_to(data, tmp_path, validate):
    opened: set[str] = set()
    active = True

    def record(event: str, arguments: tuple) -> None:
        if active and event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.add(os.fspath(arguments[0]))

    sys.addaudithook(record)  # sees every open() of this process, the image library's too
    try:
        run(data, tmp_path / "run", "--validate", validate)
    finally:
        active = False
    unseen = (data / "Sketchy/zeroshot1/cname_cid_zero.txt").read_text().split("\n")
    unseen = {line.rsplit(None, 1)[0] for line in unseen if line.strip()}
    images = {Path(name) for name in opened if Path(name).suffix in {".png", ".jpg"}}
    assert images
    assert bool({image.parent.name for image in images} & unseen) == (validate == "test")


def test_paper_habit_and_its_warning_stand_in_the_json(data, tmp_path):
    run(data, tmp_path / "run", "--validate", "test", "--epoch", "1")
    validation = json.loads((tmp_path / "run" / RUN).read_text())["validation"]
    assert validation["kind"] == "test"
    assert "unseen" in validation["note"]


def test_without_validation_all_classes_are_trained_and_the_last_epoch_is_best(data, tmp_path):
    run(data, tmp_path / "run", "--validate", "none")
    best = load_file(tmp_path / "run" / BEST)
    assert best["epoch"] == 2 and best["map_all"] is None
    assert len(json.loads((tmp_path / "run" / RUN).read_text())["seen_classes"]) == 6


def test_a_folder_with_a_run_is_refused_with_two_ways_out(data, tmp_path):
    run(data, tmp_path, "--epoch", "1")
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(InputError, match=r"--resume.*--save"):
        run(data, tmp_path)
    assert (tmp_path / LAST).read_bytes() == before


def test_a_downloaded_checkpoint_in_the_save_folder_is_never_overwritten(data, tmp_path):
    (tmp_path / BEST).write_bytes(b"a download")
    with pytest.raises(InputError, match="already holds"):
        run(data, tmp_path)
    assert (tmp_path / BEST).read_bytes() == b"a download"


def test_resuming_nothing_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="to resume"):
        run(data, tmp_path, "--resume")


def test_a_finished_run_resumed_says_so_and_changes_nothing(data, tmp_path, caplog):
    run(data, tmp_path / "run", "--epoch", "1")
    before = (tmp_path / "run" / LAST).read_bytes()
    with caplog.at_level("INFO"):
        assert run(data, tmp_path / "run", "--epoch", "1", "--resume") == 0
    assert "has finished its 1 epochs already" in caplog.text
    assert (tmp_path / "run" / LAST).read_bytes() == before


def test_resuming_with_other_data_or_losses_is_refused_by_name(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1")
    with pytest.raises(InputError, match="--seed 2021"):
        run(data, tmp_path / "run", "--resume", "--seed", "1")
    with pytest.raises(InputError, match="heads = 8"):
        run(data, tmp_path / "run", "--resume", "--head", "4")


def test_more_epochs_are_refused_where_the_schedule_runs_over_all_of_them(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1", "--schedule", "cosine")
    with pytest.raises(InputError, match="--epoch 1"):
        run(data, tmp_path / "run", "--resume", "--epoch", "2", "--schedule", "cosine")


def test_more_epochs_after_a_finished_run_equal_one_long_run(data, tmp_path):
    run(data, tmp_path / "short", "--epoch", "1")
    run(data, tmp_path / "short", "--epoch", "2", "--resume")
    run(data, tmp_path / "long", "--epoch", "2")
    short, long = weights(tmp_path / "short"), weights(tmp_path / "long")
    assert all(torch.equal(short[name], long[name]) for name in long)


LONG = ("--datasetLen", "40", "--epoch", "1", "--num_workers", "1", "--validate", "none")
LONG += ("--schedule", "cosine", "--classification_weight", "1", "--flip")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> dict:
    save = tmp_path_factory.mktemp("uninterrupted") / "run"
    said = start(data, save, *LONG).communicate(timeout=120)[0]
    assert "Best checkpoint" in said
    return weights(save)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resuming_equals_an_uninterrupted_run(
    data, tmp_path, number, uninterrupted
):
    save = tmp_path / "stopped"
    process = start(data, save, *LONG)
    deadline = time.monotonic() + 120
    while "runs on" not in _log(save) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, said
    assert "--resume" in said and "Traceback" not in said
    stopped = load_file(save / LAST)
    assert stopped["epoch"] == 0 and 0 < stopped["step"] < 20
    again = start(data, save, *LONG, "--resume").communicate(timeout=120)[0]
    assert "Best checkpoint" in again
    resumed = weights(save)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_load_starts_from_the_weights_of_a_checkpoint(data, tmp_path):
    run(data, tmp_path / "first", "--epoch", "1")
    first = tmp_path / "first" / BEST
    run(data, tmp_path / "second", "--epoch", "1", "-l", str(first), "--learning_rate", "0")
    before, after = load_file(first)["model"], weights(tmp_path / "second")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_load_may_change_the_losses_but_not_the_architecture(data, tmp_path):
    run(data, tmp_path / "first", "--epoch", "1")
    first = str(tmp_path / "first" / BEST)
    losses = ("--contrastive_weight", "2", "--classification_weight", "1")
    run(data, tmp_path / "second", "--epoch", "1", "-l", first, *losses)
    named = lines(tmp_path / "second", "epoch")[0]["losses"].keys()
    assert {"contrastive", "classification"} <= named
    second = str(tmp_path / "second" / BEST)
    run(data, tmp_path / "fewer", "--epoch", "1", "-l", second, *losses, "--cls_number", "4")
    with pytest.raises(InputError, match="downsampling = published"):
        run(data, tmp_path / "third", "-l", first, "--downsampling", "spatial")


def test_an_unreadable_image_is_named_with_its_list_and_line(tmp_path):
    write_benchmark(tmp_path)
    broken = sorted((tmp_path / "Sketchy").glob("256x256/photo/*/*/*"))
    for file in broken:
        file.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"all_photo_filelist_train\.txt, line \d+.*--skip_bad"):
        run(tmp_path, tmp_path / "run", "--validate", "none")


def test_skip_bad_goes_on_without_unreadable_images_and_counts_them(tmp_path, caplog):
    write_benchmark(tmp_path)
    folders = sorted((tmp_path / "Sketchy").glob("256x256/photo/*/*"))
    broken = [sorted(folder.iterdir())[0] for folder in folders]
    for file in broken:
        file.write_bytes(b"not an image")
    options = ("--validate", "none", "--skip_bad", "--datasetLen", "24", "--epoch", "1")
    with caplog.at_level("WARNING"):
        assert run(tmp_path, tmp_path / "run", *options) == 0
    assert "unreadable files were skipped" in caplog.text


def test_skip_bad_gives_up_with_a_sentence_where_nothing_is_readable(tmp_path):
    write_benchmark(tmp_path)
    for file in (tmp_path / "Sketchy").glob("256x256/*/*/*/*"):
        file.write_bytes(b"not an image")
    with pytest.raises(InputError, match="no draw without an unreadable file"):
        run(tmp_path, tmp_path / "run", "--validate", "none", "--skip_bad")


def test_validation_is_the_same_whatever_the_number_of_blocks(data, tmp_path):
    run(data, tmp_path / "one", "--epoch", "1", "--test_sk", "1", "--test_im", "3", "-r", "rn")
    run(data, tmp_path / "two", "--epoch", "1", "-r", "rn")
    one, two = (lines(tmp_path / name, "epoch")[0]["validation"] for name in ("one", "two"))
    assert np.isclose(list(one.values()), list(two.values())).all()


def test_two_processes_train_as_one_with_twice_the_batch(data, tmp_path):
    """Losses are averaged over ranks; with dropout on, weights agree only in expectation."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--validate", "none", "--epoch", "1", "--batch", "1", "--learning_rate", "0"]
    save = tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, "train.py", *SMALL, "--data_path", data, "-s", save, *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run(data, tmp_path / "one", *options, "--batch", "2")
    two, one = lines(save, "epoch"), lines(tmp_path / "one", "epoch")
    assert len(two) == 1  # only the first process writes
    assert lines(save, "steps")[-1]["step"] == lines(tmp_path / "one", "steps")[-1]["step"] == 4
    assert abs(two[0]["losses"]["relation"] - one[0]["losses"]["relation"]) < 0.05


def _log(save: Path) -> str:
    file = save / LOG
    return file.read_text() if file.is_file() else ""
