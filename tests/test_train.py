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

import test
import train
from datasets import load_benchmark
from datasets.images import Preprocessing
from model import load_model
from model.recipes import RECIPES
from model.zse import ZSE
from options import RESULT_OPTIONS, evaluation_settings, train_options
from retrieval.evaluate import evaluate
from utils.checkpoints import load_file
from utils.errors import InputError
from utils.run_folder import BEST, LAST, LOG, METRICS, RUN

ROOT = Path(__file__).parent.parent
NETWORK = "--vit vit_mini_patch8_48 --no-pretrained -c cpu --num_workers 0"
FOLLOWING = {f"whitening.{n}" for n in ("means", "covariance", "batches")}
"""Tensors that follow the images, whatever the learning rate."""
SMALL = f"{NETWORK} --batch 3 --datasetLen 9 --epoch 2 --learning_rate 1e-3 --testall -r sa".split()
LOSSES = {
    "paper": {"triplet", "relation", "total"},
    "strong": {"triplet", "relation", "contrastive", "classification", "total"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


@pytest.fixture(params=RECIPES)
def recipe(request) -> str:
    return request.param


def words(data: Path, save: Path, *more: str) -> list[str]:
    return [*SMALL, "--data_path", str(data), "-s", str(save), *more]


def run(data: Path, save: Path, *more: str) -> int:
    return train.main(words(data, save, *more))


def start(data: Path, save: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", *words(data, save, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(save: Path, name: str = LAST) -> dict:
    return load_file(save / name)["model"]


def assert_equal(one: dict, other: dict) -> None:
    """Of two dicts of tensors."""
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def lines(save: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (save / METRICS).read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_a_run_leaves_checkpoints_options_metrics_and_log(data, tmp_path, recipe):
    save = tmp_path / "run"
    assert run(data, save, "--recipe", recipe) == 0
    last, best = load_file(save / LAST), load_file(save / BEST)
    assert (last["epoch"], last["step"]) == (2, 0)
    assert best["optimizer"] is None and last["optimizer"] is not None
    assert best["map_all"] == max(row["validation"]["map_all"] for row in lines(save, "epoch"))
    described = json.loads((save / RUN).read_text())
    assert described["options"]["batch"] == 3
    assert described["options"]["draws"] == RECIPES[recipe]["draws"]
    assert torch.__version__.startswith(described["environment"]["torch"].split("+")[0])
    assert described["validation"]["kind"] == "seen"
    assert set(described["validation"]["classes"]).isdisjoint(described["seen_classes"])
    assert lines(save, "epoch")[0]["losses"].keys() == LOSSES[recipe]
    log = (save / LOG).read_text()
    assert f"recipe: {recipe}\n" in log and "Best checkpoint" in log.splitlines()[-1]


def test_denormal_numbers_are_as_before_after_a_run(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1")
    assert torch.tensor([1e-39]) * 1 != 0


def test_strong_is_the_default(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1")
    assert lines(tmp_path / "run", "epoch")[0]["losses"].keys() == LOSSES["strong"]


def test_the_best_checkpoint_leaves_out_what_only_training_needs(data, tmp_path, recipe):
    run(data, tmp_path, "--recipe", recipe, "--epoch", "1")
    last, best = load_file(tmp_path / LAST), load_file(tmp_path / BEST)
    assert last.keys() == best.keys()
    assert [best[name] for name in ("optimizer", "rng", "average")] == [None] * 3
    kept = {n: t for n, t in last["model"].items() if not n.startswith(ZSE.training_only)}
    assert_equal(best["model"], kept)
    left_out = {name.split(".")[0] for name in last["model"].keys() - kept.keys()}
    expected = {"paper": set(), "strong": {"classifier", "contrastive_scale"}}
    assert left_out == expected[recipe]


@pytest.mark.parametrize("mode", ["sa", "rn"])
def test_the_best_checkpoint_is_scored_by_test(data, tmp_path, recipe, mode):
    run(data, tmp_path, "--recipe", recipe, "--epoch", "1", "--ema", "0.5")
    shared = ["--data_path", str(data), "-s", str(tmp_path), "-c", "cpu", "--num_workers", "0"]
    assert test.main([*shared, "--testall", "-r", mode]) == 0
    result = tmp_path / f"best_checkpoint.test_class_sketchy25.{mode}.all.json"
    assert 0 < json.loads(result.read_text())["average_precision"] <= 1


@pytest.mark.parametrize("ema", ["0", "0.2"])
@pytest.mark.parametrize("mode", ["sa", "rn"])
def test_what_is_kept_as_best_is_what_was_validated(data, tmp_path, mode, ema):
    more = ["--epoch", "1", "-r", mode, "--ema", ema]
    run(data, tmp_path, *more)
    args = train_options(words(data, tmp_path, *more))
    split = (args.dataset, args.test_class, data)
    validation = load_benchmark(*split, unseen=False, seed=args.seed).validation
    method, checkpoint = load_model(tmp_path / BEST)
    found = evaluate(
        method,
        validation.of("sketch"),
        validation.of("photo"),
        Preprocessing(**method.inputs),
        device=torch.device("cpu"),
        **evaluation_settings(args),
    )
    assert found.metrics == pytest.approx(checkpoint["metrics"])
    assert lines(tmp_path, "epoch")[0]["validation"] == pytest.approx(found.metrics)


def test_the_average_is_that_of_the_steps_written_out(data, tmp_path, monkeypatch):
    steps, follow = [], train.Training._follow

    def record(training):
        steps.append({n: t.clone() for n, t in training.method.state_dict().items()})
        follow(training)

    monkeypatch.setattr(train.Training, "_follow", record)
    run(data, tmp_path, "--ema", "0.24", "--validate", "none")
    average = steps[0]
    for taken, weights_now in enumerate(steps[1:], start=1):
        decay = [None, 2 / 11, 0.24, 0.24, 0.24, 0.24][taken]  # 3 / 12 and more are too much
        average = {n: decay * average[n] + (1 - decay) * t for n, t in weights_now.items()}
    last, best = load_file(tmp_path / LAST), load_file(tmp_path / BEST)
    assert len(steps) == 6 and best["epoch"] == 2
    assert_equal(last["model"], steps[-1])
    for name, tensor in best["model"].items():
        assert torch.allclose(tensor, average[name], rtol=1e-4, atol=1e-6), name
        assert torch.equal(tensor, last["average"][f"module.{name}"])
    moved = [n for n in best["model"] if not torch.equal(best["model"][n], last["model"][n])]
    assert {*FOLLOWING, "tokenizer.vit.pos_embed"} <= set(moved)


def test_the_temperature_is_learned_where_it_is_set_free(data, tmp_path):
    start = torch.tensor(1 / 0.2).log()
    for word, learned in (("--learn_temperature", True), ("--no-learn_temperature", False)):
        run(data, tmp_path / word, word, "--temperature", "0.2", "--epoch", "1")
        scale = weights(tmp_path / word)["contrastive_scale"]
        assert bool(scale != start) == learned
        assert torch.isclose(scale, start, atol=0.05)


def test_a_temperature_that_is_given_counts_whatever_was_learned(data, tmp_path):
    run(data, tmp_path / "first", "--epoch", "1", "--learn_temperature")
    more = ["--epoch", "1", "--no-learn_temperature", "--temperature", "0.2"]
    for name in (BEST, LAST):
        run(data, tmp_path / name, *more, "-l", str(tmp_path / "first" / name))
        scale = weights(tmp_path / name)["contrastive_scale"]
        assert scale.item() == pytest.approx(np.log(5))


def test_bf16_trains_and_differs_little_from_full_precision(data, tmp_path, recipe):
    """At a learning rate of 0, where differences do not add up."""
    more = ["--recipe", recipe, "--learning_rate", "0", "--epoch", "1", "--dropout", "0"]
    for amp in ("off", "bf16"):
        run(data, tmp_path / amp, *more, "--amp", amp)
    full, half = (lines(tmp_path / amp, "epoch")[0]["losses"] for amp in ("off", "bf16"))
    assert half == pytest.approx(full, rel=0.05) and half != full
    assert {t.dtype for t in weights(tmp_path / "bf16").values()} == {torch.float32}


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


def test_what_draws_are_told_reaches_training(data, tmp_path):
    """At a learning rate of 0, so that the losses differ by the pictures alone."""
    found = []
    for number, words in enumerate(("--augment none", "--augment light", "--augment none")):
        more = [*words.split(), "--learning_rate", "0", "--epoch", "1", "--validate", "none"]
        run(data, tmp_path / str(number), *more)
        found.append(lines(tmp_path / str(number), "epoch")[0]["losses"]["classification"])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("count", [2, 3])
def test_so_many_classes_are_validated_on_as_asked(data, tmp_path, count):
    run(data, tmp_path, "--epoch", "1", "--validation_classes", str(count))
    described = json.loads((tmp_path / RUN).read_text())
    validated, trained = described["validation"]["classes"], described["seen_classes"]
    assert (len(validated), len(trained)) == (count, 6 - count)
    assert sorted(load_file(tmp_path / BEST)["classes"]) == sorted(validated + trained)


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


DECISIVE = {  # option of a run: its value there, another one
    "cls_number": ("6", "5"),
    "draws": ("classes", "triplets"),
    "per_class": ("1", "2"),
    "own_photo": ("0", "0.5"),
    "batch": ("3", "4"),
    "datasetLen": ("9", "12"),
    "augment": ("flip", "light"),
    "dropout": ("0", "0.5"),
    "learning_rate": ("1e-3", "2e-3"),
    "layer_decay": ("1", "0.5"),
    "new_rate": ("1", "2"),
    "weight_decay": ("0.05", "0"),
    "schedule": ("cosine", "constant"),
    "ema": ("0", "0.5"),
    "triplet_weight": ("0", "0.5"),
    "relation_weight": ("1", "0"),
    "relation_loss": ("logistic", "mse"),
    "contrastive_weight": ("1", "0"),
    "temperature": ("0.07", "0.1"),
    "learn_temperature": (True, False),
    "classification_weight": ("1", "0"),
    "distillation_weight": ("0", "1"),
    "amp": ("off", "bf16"),
    "seed": ("2021", "1"),
    "validate": ("seen", "none"),
    "validation_classes": (None, "3"),
}
OF_THE_NETWORK = {
    "downsampling": ("spatial", "published"),
    "shortcut": (True, False),
    "whitening": (True, False),
}


def typed(option: str, value: str | bool | None) -> list[str]:
    """The words that say so on the command line; None: nothing is said."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", value]


FINISHED = ["--epoch", "1"]
for name, (here, _) in {**DECISIVE, **OF_THE_NETWORK}.items():
    FINISHED += typed(name, here)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a run whose one epoch is done; no test may change it."""
    save = tmp_path_factory.mktemp("finished") / "run"
    run(data, save, *FINISHED)
    before = (save / LAST).read_bytes()
    yield save
    assert (save / LAST).read_bytes() == before


@pytest.mark.parametrize("option", DECISIVE)
def test_resuming_with_another_value_is_refused_by_name(data, finished, option):
    other = typed(option, DECISIVE[option][1])
    if option == "distillation_weight":  # which needs weights to start from
        other += ["-l", "anything"]
    with pytest.raises(InputError, match="Resume with the same") as error:
        run(data, finished, *FINISHED, "--resume", *other)
    assert f"was trained with --{option} " in str(error.value)
    assert str(error.value).count("(now ") == 1


@pytest.mark.parametrize("option", OF_THE_NETWORK)
def test_resuming_with_another_network_is_refused_by_name(data, finished, option):
    with pytest.raises(InputError, match=f"{option} = .* was asked for"):
        run(data, finished, *FINISHED, "--resume", *typed(option, OF_THE_NETWORK[option][1]))


def test_nothing_that_may_not_change_is_forgotten_here():
    named = DECISIVE.keys() | OF_THE_NETWORK.keys()
    assert set(RESULT_OPTIONS) - named == {"dataset", "test_class"}


def test_resuming_with_the_other_recipe_is_refused_with_what_it_changes(data, finished):
    with pytest.raises(InputError, match=r"--draws classes \(now triplets\)") as error:
        run(data, finished, "--resume", "--epoch", "1", "--recipe", "paper")
    assert "--contrastive_weight 1.0 (now 0.0)" in str(error.value)
    assert "--shortcut True (now False)" in str(error.value)


def test_more_epochs_are_refused_where_the_schedule_runs_over_all_of_them(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1", "--schedule", "cosine")
    with pytest.raises(InputError, match="--epoch 1"):
        run(data, tmp_path / "run", "--resume", "--epoch", "2", "--schedule", "cosine")


@pytest.mark.parametrize("ema", ["0", "0.2"])
def test_more_epochs_after_a_finished_run_equal_one_long_run(data, tmp_path, recipe, ema):
    more = ["--recipe", recipe, "--schedule", "constant", "--ema", ema]
    run(data, tmp_path / "short", *more, "--epoch", "1")
    run(data, tmp_path / "short", *more, "--epoch", "2", "--resume")
    run(data, tmp_path / "long", *more, "--epoch", "2")
    short, long = load_file(tmp_path / "short" / LAST), load_file(tmp_path / "long" / LAST)
    assert_same_state(short, long)
    assert_equal(weights(tmp_path / "short", BEST), weights(tmp_path / "long", BEST))


def assert_same_state(one: dict, other: dict) -> None:
    """Of two checkpoints to resume from: weights, their average, the optimiser."""
    assert_equal(one["model"], other["model"])
    assert (one["average"] is None) == (other["average"] is None)
    if one["average"]:
        assert_equal(one["average"], other["average"])
    for number, state in one["optimizer"]["state"].items():
        assert_equal(state, other["optimizer"]["state"][number])
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]


STEPS = 50
LONG = ("--datasetLen", str(3 * STEPS), "--epoch", "1", "--num_workers", "1", "--validate", "none")
LONG += (
    "--draws",
    "classes",
    "--shortcut",
    "--whitening",
    "--learn_temperature",
    "--ema",
    "0.9",
    "--augment",
    "strong",
)
LONG += ("--dropout", "0.1", "--schedule", "cosine", "--layer_decay", "0.7")


def run_as_started(data: Path, save: Path, *more: str) -> None:
    """As start() does, but in this process, which has torch already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(data, save, *more) == 0
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_as_started(data, save, *LONG)
    return save


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resuming_equals_an_uninterrupted_run(
    data, tmp_path, number, uninterrupted
):
    save = tmp_path / "stopped"
    process = start(data, save, *LONG)
    deadline = time.monotonic() + 120
    while "runs on" not in _log(save) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, said
    assert "--resume" in said and "Traceback" not in said
    stopped = load_file(save / LAST)
    assert stopped["epoch"] == 0 and 0 < stopped["step"] < STEPS
    run_as_started(data, save, *LONG, "--resume")
    resumed, whole = load_file(save / LAST), load_file(uninterrupted / LAST)
    assert_same_state(resumed, whole)
    assert_equal(weights(save, BEST), weights(uninterrupted, BEST))
    assert whole["model"]["contrastive_scale"] != stopped["model"]["contrastive_scale"]


def test_load_starts_from_the_weights_of_a_checkpoint(data, tmp_path):
    run(data, tmp_path / "first", "--epoch", "1")
    first = tmp_path / "first" / BEST
    run(data, tmp_path / "second", "--epoch", "1", "-l", str(first), "--learning_rate", "0")
    before, after = weights(tmp_path / "first", BEST), weights(tmp_path / "second")
    assert before.keys() > FOLLOWING and before.keys() < after.keys()
    for name in before.keys() - FOLLOWING:
        assert torch.equal(before[name], after[name])


def test_load_may_change_the_losses_but_not_the_architecture(data, tmp_path):
    run(data, tmp_path / "first", "--epoch", "1", "--recipe", "paper")
    first = str(tmp_path / "first" / BEST)
    run(data, tmp_path / "second", "--epoch", "1", "-l", first)
    assert lines(tmp_path / "second", "epoch")[0]["losses"].keys() == LOSSES["strong"]
    settings = load_file(tmp_path / "second" / BEST)["settings"]
    assert (settings["downsampling"], settings["shortcut"]) == ("published", False)
    for name in (BEST, LAST):  # without a classifier; with one of more classes
        second = str(tmp_path / "second" / name)
        run(data, tmp_path / f"fewer {name}", "--epoch", "1", "-l", second, "--cls_number", "4")
    with pytest.raises(InputError, match="downsampling = published"):
        run(data, tmp_path / "third", "-l", first, "--downsampling", "spatial")


def test_distillation_keeps_to_what_was_loaded_also_when_resumed(data, tmp_path):
    run(data, tmp_path / "first", "--epoch", "1")
    first = tmp_path / "first" / BEST
    loaded = {n: t for n, t in load_file(first)["model"].items() if n.startswith("tokenizer.")}
    save = tmp_path / "second"
    more = ["-l", str(first), "--distillation_weight", "1", "--schedule", "constant"]
    for epochs, resume in (("1", []), ("2", ["--resume"])):
        run(data, save, *more, "--epoch", epochs, *resume)
        now = weights(save)
        assert_equal({n: now[n.replace("tokenizer", "teacher", 1)] for n in loaded}, loaded)
        assert any(not torch.equal(now[n], loaded[n]) for n in loaded)
    assert all("distillation" in row["losses"] for row in lines(save, "epoch"))
    assert lines(save, "epoch")[1]["losses"]["distillation"] > 0
    assert not any(name.startswith("teacher.") for name in weights(save, BEST))


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
    """Losses are averaged over ranks; that of each image alone is then exactly as in one."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--validate", "none", "--epoch", "1", "--datasetLen", "24", "--learning_rate", "0"]
    options += ["--shortcut", "--whitening", "--learn_temperature"]
    save = tmp_path / "two"
    done = subprocess.run(
        [sys.executable, *command, "train.py", *words(data, save, *options, "--batch", "3")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run(data, tmp_path / "one", *options, "--batch", "6")
    two, one = lines(save, "epoch"), lines(tmp_path / "one", "epoch")
    assert len(two) == 1  # only the first process writes
    assert lines(save, "steps")[-1]["step"] == lines(tmp_path / "one", "steps")[-1]["step"] == 4
    two, one = two[0]["losses"], one[0]["losses"]
    assert two.keys() == one.keys() == LOSSES["strong"]
    assert two["classification"] == pytest.approx(one["classification"], rel=1e-4)
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    for name in FOLLOWING:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert one["whitening.means"].any()


def _log(save: Path) -> str:
    file = save / LOG
    return file.read_text() if file.is_file() else ""
