"""train.py as its users run it, on a small drawn benchmark: what it trains, and what it leaves."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from copies import ROOT, end_well, start_together
from sample_data import write_benchmark
from torch.optim.swa_utils import AveragedModel
from training_runs import assert_equal, lines, run, weights, words

import test
import train
from datasets import load_benchmark
from model import load_model
from model.zse.method import ZSE
from model.zse.settings import ZSESettings
from options import block_settings, encoder_settings, ranker_settings, train_options
from retrieval.encoder import Encoder
from retrieval.evaluate import evaluate
from retrieval.scoring import RANKERS
from utils import precision
from utils.checkpoints import load_file
from utils.errors import InputError
from utils.run_folder import BEST, CURVES, LAST, LOG, RUN

FOLLOWING = {f"whitening.{n}" for n in ("means", "covariance", "batches")}
"""Tensors that follow the images, whatever the learning rate."""
LOSSES = {
    "paper": {"triplet", "relation", "total"},
    "strong": {"relation", "contrastive", "classification", "total"},
}
RECIPES = ZSESettings.recipes(pretrained=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


@pytest.fixture(params=RECIPES)
def recipe(request) -> str:
    return request.param


def test_a_run_leaves_checkpoints_options_metrics_and_log(data, tmp_path, recipe):
    save = tmp_path / "run"
    assert run(data, save, "--recipe", recipe, curves=True) == 0
    last, best = load_file(save / LAST), load_file(save / BEST)
    assert (last["epoch"], last["step"]) == (2, 0)
    assert "optimizer" not in best and last["optimizer"]["state"]
    assert best["map_all"] == max(row["validation"]["map_all"] for row in lines(save, "epoch"))
    described = json.loads((save / RUN).read_text())
    assert described["options"]["batch"] == 3
    assert described["options"]["draws"] == RECIPES[recipe].draws
    assert torch.__version__.startswith(described["environment"]["torch"].split("+")[0])
    assert described["validation"]["kind"] == "seen"
    assert set(described["validation"]["classes"]).isdisjoint(described["seen_classes"])
    assert lines(save, "epoch")[0]["losses"].keys() == LOSSES[recipe]
    assert (save / CURVES).read_bytes().startswith(b"\x89PNG")
    log = (save / LOG).read_text()
    held_out = ", ".join(described["validation"]["classes"])
    assert f"validation: seen classes, not trained on, choose the checkpoint: {held_out}\n" in log
    assert f"recipe: {recipe}\n" in log and "Best checkpoint" in log.splitlines()[-1]


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_a_line_is_printed_before_torch_loads(tmp_path, script):
    """Which takes seconds, in which a user would wonder."""
    (tmp_path / "torch.py").write_text("import sys\nsys.exit('torch')\n")
    done = subprocess.run(
        [sys.executable, script, "-l", "any.pth", "-s", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.splitlines() == ["loading PyTorch", "torch"]


def test_denormal_numbers_are_as_before_after_a_run(data, tmp_path):
    run(data, tmp_path / "run", "--epoch", "1")
    assert torch.tensor([1e-39]) * 1 != 0


def test_strong_is_the_default(plain):
    assert lines(plain, "epoch")[0]["losses"].keys() == LOSSES["strong"]


@pytest.mark.parametrize(
    ("named", "others"),
    [({"relation", "classification"}, {"triplet", "contrastive"}), ({"contrastive"}, {"relation"})],
)
def test_a_loss_of_weight_0_is_named_nowhere(data, tmp_path, named, others):
    weighted = [word for name in named for word in (f"--{name}_weight", "1")]
    weighted += [word for name in others for word in (f"--{name}_weight", "0")]
    run(data, tmp_path, "--epoch", "1", "--validate", "none", *weighted)
    (steps,), (epoch,) = lines(tmp_path, "steps"), lines(tmp_path, "epoch")
    log = (tmp_path / LOG).read_text()
    for losses in (steps.keys(), epoch["losses"].keys(), set(re.findall(r"(\w+):\d", log))):
        assert losses >= named | {"total"} and not losses & others


def test_the_best_checkpoint_leaves_out_what_only_training_needs(data, tmp_path, recipe):
    run(data, tmp_path, "--recipe", recipe, "--epoch", "1")
    last, best = load_file(tmp_path / LAST), load_file(tmp_path / BEST)
    assert last.keys() - best.keys() == {"optimizer", "average"} and best.keys() <= last.keys()
    kept = {n: t for n, t in last["model"].items() if not n.startswith(ZSE.training_only)}
    assert_equal(best["model"], kept)
    left_out = {name.split(".")[0] for name in last["model"].keys() - kept.keys()}
    expected = {"paper": set(), "strong": {"classifier", "contrastive_scale"}}
    assert left_out == expected[recipe]


def test_the_best_checkpoint_is_scored_by_test(data, tmp_path, recipe):
    run(data, tmp_path, "--recipe", recipe, "--epoch", "1", "--ema", "0.5", "--validate", "none")
    shared = ["--data_path", str(data), "-s", str(tmp_path), "-c", "cpu", "--num_workers", "0"]
    for mode in ("sa", "rn"):
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
        Encoder(method, torch.device("cpu"), **encoder_settings(args)),
        validation.of("sketch"),
        validation.of("photo"),
        RANKERS[mode],
        ranker_settings(args),
        **block_settings(args),
    )
    assert found.metrics == pytest.approx(checkpoint["metrics"])
    assert lines(tmp_path, "epoch")[0]["validation"] == pytest.approx(found.metrics)


def test_the_average_is_that_of_the_steps_written_out(data, tmp_path, monkeypatch):
    steps, follow = [], AveragedModel.update_parameters

    def record(average, method):
        steps.append({n: t.clone() for n, t in method.state_dict().items()})
        follow(average, method)

    monkeypatch.setattr(AveragedModel, "update_parameters", record)
    run(data, tmp_path, "--ema", "0.24", "--validate", "none")
    average = steps[0]
    for number, weights_now in enumerate(steps[1:], start=1):
        decay = [None, 2 / 11, 0.24, 0.24, 0.24, 0.24][number]  # 3 / 12 and more are too much
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
def test_opens_images_of_unseen_classes_only_to_validate_on_them(data, tmp_path, validate):
    opened: set[str] = set()
    active = True

    def record(event: str, arguments: tuple) -> None:
        if active and event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.add(os.fspath(arguments[0]))

    sys.addaudithook(record)  # sees every open() of this process, the image library's too
    try:
        run(data, tmp_path / "run", "--validate", validate, "--epoch", "1")
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


def test_options_of_draws_reach_training(data, tmp_path):
    """At a learning rate of 0, so that the losses differ by the pictures alone."""
    found = []
    for number, kind in enumerate(("none", "light", "none")):
        more = ["--augment", kind, "--learning_rate", "0", "--epoch", "1", "--validate", "none"]
        run(data, tmp_path / str(number), *more)
        found.append(lines(tmp_path / str(number), "epoch")[0]["losses"]["classification"])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("options", "least", "scored", "says"),
    [
        ([], 3, (24, 30), True),
        ([], 2, (2, 3), False),
        (["--part", "20", "10"], 3, (2, 3), False),
        (["--testall"], 30, (24, 30), False),
        (["--validate", "test"], 3, (12, 15), True),
    ],
)
def test_where_a_published_part_is_a_handful_all_is_validated(
    data, monkeypatch, caplog, options, least, scored, says
):
    """Of 6 or 3 classes with 4 sketches and 5 photos each: every 20th, and every 10th."""
    monkeypatch.setattr(train, "LEAST_SKETCHES", least)
    benchmark = load_benchmark("sketchy_extend", "test_class_sketchy25", data, validation=False)
    benchmark = replace(benchmark, validation=benchmark.train)

    def score(method, queries, gallery):
        return SimpleNamespace(metrics=(len(queries), len(gallery)), skipped=[])

    with caplog.at_level("INFO"):
        args, run = train_options(options), SimpleNamespace(unreadable=set())
        assert train._validation(args, benchmark, run, score)(None) == scored
    said = f"the published part has {2 if scored[0] == 24 else 1} sketches, too few to choose by"
    assert (said in caplog.text) == says


@pytest.mark.parametrize("count", [2, 3])
def test_as_many_classes_are_validated_on_as_the_option_says(data, tmp_path, count):
    run(data, tmp_path, "--epoch", "1", "--validation_classes", str(count))
    described = json.loads((tmp_path / RUN).read_text())
    validated, trained = described["validation"]["classes"], described["seen_classes"]
    assert (len(validated), len(trained)) == (count, 6 - count)
    assert sorted(load_file(tmp_path / BEST)["classes"]) == sorted(validated + trained)


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
    best = load_file(tmp_path / "second" / BEST)
    described = json.loads((tmp_path / "second" / RUN).read_text())
    for settings in (best["settings"], best["options"], described["options"]):
        assert (settings["downsampling"], settings["shortcut"]) == ("published", False)
    assert best["options"]["d_model"] == best["settings"]["width"] > 0
    assert run(data, tmp_path / "second", "--epoch", "1", "-l", first, "--resume") == 0
    for name in (BEST, LAST):  # without a classifier; with one of more classes
        second = str(tmp_path / "second" / name)
        run(data, tmp_path / f"fewer {name}", "--epoch", "1", "-l", second, "--cls_number", "4")
    with pytest.raises(InputError, match="downsampling = published"):
        run(data, tmp_path / "third", "-l", first, "--downsampling", "spatial")


@pytest.mark.parametrize("before", [["elsewhere"], None])
def test_a_checkpoint_names_the_classes_of_all_the_training_before_it(data, tmp_path, before):
    """None: those of a published checkpoint are not known."""
    more = ["--validate", "none", "--schedule", "constant"]
    run(data, tmp_path / "first", *more, "--epoch", "1")
    first, save = load_file(tmp_path / "first" / BEST), tmp_path / "second"
    torch.save({**first, "classes": before}, tmp_path / "file.pth")
    expected = before and [*before, *first["classes"]]
    more += ["-l", str(tmp_path / "file.pth")]
    run(data, save, *more, "--epoch", "1")
    assert load_file(save / BEST)["classes"] == expected
    run(data, save, *more, "--epoch", "2", "--resume")
    assert load_file(save / BEST)["classes"] == load_file(save / LAST)["classes"] == expected


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
    """At a learning rate of 0, so that rounding does not add up."""
    options = ["--validate", "none", "--epoch", "1", "--datasetLen", "24", "--learning_rate", "0"]
    options += ["--shortcut", "--whitening", "--learn_temperature"]
    save = tmp_path / "two"
    end_well(start_together(ROOT / "train.py", *words(data, save, *options, "--batch", "3")))
    run(data, tmp_path / "one", *options, "--batch", "6")
    two, one = lines(save, "epoch"), lines(tmp_path / "one", "epoch")
    assert len(two) == 1  # only the first process writes
    assert lines(save, "steps")[-1]["step"] == lines(tmp_path / "one", "steps")[-1]["step"] == 4
    two, one = two[0]["losses"], one[0]["losses"]
    assert two.keys() == one.keys() == LOSSES["strong"]
    for name in ("contrastive", "classification"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    for name in FOLLOWING:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert one["whitening.means"].any()


# ---- how a step is computed


@pytest.mark.parametrize(
    ("dtype", "said"),
    [(torch.bfloat16, "bf16"), (torch.float32, "off"), (torch.float16, "off")],
)
def test_what_auto_became_stands_in_the_json(data, tmp_path, monkeypatch, dtype, said):
    """fp16, which GPUs without bfloat16 would take, needs scaled losses: then it is off."""
    wanted, seen, losses = [], [], ZSE.losses

    def dtype_of(amp, device):
        wanted.append(amp)
        return dtype

    def losses_in(method, batch, progress):
        seen.append(torch.is_autocast_enabled("cpu"))
        return losses(method, batch, progress)

    monkeypatch.setattr(precision, "dtype_of", dtype_of)
    monkeypatch.setattr(ZSE, "losses", losses_in)
    run(data, tmp_path, "--amp", "auto", "--epoch", "1", "--validate", "none")
    assert wanted == ["auto"] and seen == [said == "bf16"] * 3
    assert json.loads((tmp_path / RUN).read_text())["options"]["amp"] == said
    assert load_file(tmp_path / LAST)["options"]["amp"] == said


THOROUGH = ["--dropout", "0.1", "--shortcut", "--augment", "strong", "--ema", "0.5"]


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("plain") / "run"
    run(data, save, *THOROUGH)
    return save


@pytest.mark.parametrize(
    "more",
    ["--checkpoint_blocks", "--cache_images", "--num_workers 2", "--save_minutes 0", "--clip 1e9"],
)
def test_what_costs_no_accuracy_changes_no_weight_to_the_bit(data, tmp_path, plain, more):
    more = more.split()
    if more == ["--cache_images"]:
        more.append(str(tmp_path / "pictures"))
    run(data, tmp_path / "run", *THOROUGH, *more)
    for name in (BEST, LAST):
        assert_equal(weights(tmp_path / "run", name), weights(plain, name))
    figures = lines(tmp_path / "run", "epoch"), lines(plain, "epoch")
    for row, expected in zip(*figures, strict=True):
        assert row["validation"] == expected["validation"]
        assert row["losses"] == expected["losses"]
    if more[0] == "--cache_images":
        assert any(file.is_file() for file in (tmp_path / "pictures").rglob("*"))


def test_clipping_changes_what_is_learned(data, tmp_path, plain):
    run(data, tmp_path, *THOROUGH, "--clip", "1e-3")
    assert lines(tmp_path, "steps")[0]["gradient_norm"] > 1e-3  # as before it was clipped
    now, before = weights(tmp_path), weights(plain)
    assert any(not torch.equal(now[name], before[name]) for name in before)


def test_steps_of_several_batches_take_as_many_draws_more(data, tmp_path):
    run(data, tmp_path, "--accumulate", "3", "--datasetLen", "18", "--epoch", "1")
    (steps,) = lines(tmp_path, "steps")
    assert (steps["step"], steps["steps"]) == (2, 2)
    assert "2 steps of 9 draws" in (tmp_path / LOG).read_text()
    with pytest.raises(InputError, match=r"does not fill one batch of 3 on 1 .*x 4"):
        run(data, tmp_path / "other", "--accumulate", "4", "--epoch", "1")


# ---- what it tells of itself


def test_metrics_tell_speed_and_gradient_of_each_report(data, tmp_path):
    run(data, tmp_path, "--validate", "none")
    rows = lines(tmp_path, "steps")
    assert [(row["epoch"], row["step"], row["steps"]) for row in rows] == [(1, 3, 3), (2, 3, 3)]
    for row in rows:
        assert row.keys() >= LOSSES["strong"]
        assert row["images_per_second"] > 0 and 0 < row["data_wait"] < 1
        assert row["gradient_norm"] > 0 and 0 < row["learning_rate"] < 1e-3
        total = sum(row[name] for name in LOSSES["strong"] - {"total"})
        assert row["total"] == pytest.approx(total, rel=1e-5)
    assert [row["kind"] for row in lines(tmp_path, "epoch")] == ["epoch"] * 2


FIGURES = ("learning_rate", "images_per_second", "data_wait", "gradient_norm")


def test_tensorboard_shows_what_the_metrics_say(data, tmp_path):
    reason = "the package tensorboard is not installed"
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=reason
    )
    run(data, tmp_path, "--tensorboard")
    board = reading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = {}
    for row in lines(tmp_path, "steps"):
        place = 3 * (row["epoch"] - 1) + row["step"]
        for name in LOSSES["strong"]:
            expected.setdefault(f"loss/{name}", []).append((place, row[name]))
        for name in FIGURES:
            expected.setdefault(name, []).append((place, row[name]))
    for row in lines(tmp_path, "epoch"):
        for name, value in row["validation"].items():
            expected.setdefault(f"validation/{name}", []).append((3 * row["epoch"], value))
    assert set(board.Tags()["scalars"]) == expected.keys()
    assert {"loss/total", "validation/map_all"} <= expected.keys()
    for name, points in expected.items():
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [(place, pytest.approx(value, rel=1e-6)) for place, value in points]


def test_without_tensorboard_nothing_is_written_for_it(data, plain):
    assert not (plain / "tensorboard").exists()
