"""train.py --resume: what may not change, and that a run in parts equals one in a piece."""

import json
import signal
from pathlib import Path

import pytest
import torch
from sample_data import write_benchmark
from training_runs import (
    STEPS_AN_EPOCH,
    assert_equal,
    assert_same_state,
    lines,
    replace_validation,
    run,
    run_as_started,
    saved_step,
    start,
    stop_in_step,
    weights,
    words,
)

from options import changed_options, plain_options, train_options
from utils.checkpoints import load_file
from utils.errors import InputError
from utils.run_folder import BEST, CURVES, LAST


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root)
    return root


# ---- which folders


def test_a_folder_with_a_run_is_refused_with_two_ways_out(data, finished):
    with pytest.raises(InputError, match=r"--resume.*--save"):
        run(data, finished)


def test_a_downloaded_checkpoint_in_the_save_folder_is_never_overwritten(data, tmp_path):
    (tmp_path / BEST).write_bytes(b"a download")
    with pytest.raises(InputError, match="already holds"):
        run(data, tmp_path)
    assert (tmp_path / BEST).read_bytes() == b"a download"


def test_resuming_nothing_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="to resume"):
        run(data, tmp_path, "--resume")


def test_resuming_a_finished_run_is_one_sentence_and_changes_nothing(data, finished, caplog):
    before = {file.name for file in finished.iterdir()}
    with caplog.at_level("INFO"):
        assert run(data, finished, *FINISHED, "--resume") == 0
    assert "has finished its 1 epochs already" in caplog.text
    assert {file.name for file in finished.iterdir()} == before


# ---- what may not change

DECISIVE = {  # option of a run: its value there, another one; None: nothing is said
    "cls_number": ("6", "5"),
    "draws": ("classes", "triplets"),
    "per_class": ("1", "2"),
    "own_photo": ("0", "0.5"),
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
    "amp": ("off", "bf16"),
    "tf32": (None, True),
    "compile": (None, True),
    "accumulate": ("1", "2"),
    "clip": ("0", "1"),
    "seed": ("2021", "1"),
    "validate": ("seen", "none"),
    "validation_classes": (None, "3"),
    "batch": ("3", "4"),
}
OF_VALIDATION = {
    "retrieval": ("sa", "rn"),
    "views": ("plain", "mirror"),
    "expand": ("0", "1"),
    "part": ("1 1", "2 1"),
}
ALL = {**DECISIVE, **OF_VALIDATION}


def typed(option: str, value: str | bool | None) -> list[str]:
    """The words for this value on the command line; None: no words."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", *value.split()]


FINISHED = ["--epoch", "1", "--downsampling", "spatial", "--shortcut", "--whitening"]
for name, (here, _) in ALL.items():
    FINISHED += typed(name, here)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a finished run of one epoch; no test may change it."""
    save = tmp_path_factory.mktemp("finished") / "run"
    run(data, save, *FINISHED)
    before = (save / LAST).read_bytes()
    yield save
    assert (save / LAST).read_bytes() == before


@pytest.mark.parametrize("option", ALL)
def test_resuming_with_another_value_is_refused_by_name(data, finished, option):
    with pytest.raises(InputError, match="Resume with the same") as error:
        run(data, finished, *FINISHED, "--resume", *typed(option, ALL[option][1]))
    assert f"was trained with --{option} " in str(error.value)
    assert str(error.value).count("(now ") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("anchors", "--anchor_number 16"),
        ("heads", "--head 4"),
        ("downsampling", "--downsampling published"),
        ("shortcut", "--no-shortcut"),
        ("whitening", "--no-whitening"),
    ],
)
def test_resuming_with_another_network_is_refused_by_name(data, finished, name, words):
    with pytest.raises(InputError, match=f"with {name} = .* is wanted"):
        run(data, finished, *FINISHED, "--resume", *words.split())


def test_nothing_that_may_not_change_is_forgotten_here(data, tmp_path):
    """What is validated has further options, which need others: tests/test_options.py."""
    args = train_options(words(data, tmp_path, *FINISHED))
    then = plain_options(args)
    refused = {name for name in then if changed_options(args, {**then, name: "another"})}
    of_others = {"dataset", "test_class", "testall", "shortlist", "fuse"}
    of_others |= {"epoch"}  # where the schedule runs over all of them, see below
    assert refused | {"batch"} == ALL.keys() | of_others


def test_resuming_with_the_other_recipe_is_refused_with_what_it_changes(data, finished):
    with pytest.raises(InputError, match=r"--draws classes \(now triplets\)") as error:
        run(data, finished, "--resume", "--epoch", "1", "--recipe", "paper")
    assert "--contrastive_weight 1.0 (now 0.0)" in str(error.value)


def test_more_epochs_are_refused_where_the_schedule_runs_over_all_of_them(data, finished):
    with pytest.raises(InputError, match=r"--epoch 1 \(now 2\)"):
        run(data, finished, *FINISHED, "--resume", "--epoch", "2")


def test_where_nothing_is_validated_the_options_of_validation_do_not_matter(data, tmp_path):
    more = ["--validate", "none", "--schedule", "constant"]
    run(data, tmp_path, *more, "--epoch", "1")
    other = ["-r", "rn", "--part", "2", "2", "--resume"]
    assert run(data, tmp_path, *more, "--epoch", "2", *other) == 0
    assert load_file(tmp_path / LAST)["epoch"] == 2


def test_what_auto_became_may_not_change_with_the_machine(data, tmp_path, monkeypatch):
    more = ["--schedule", "constant", "--validate", "none"]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    run(data, tmp_path, *more, "--amp", "auto", "--epoch", "1")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(InputError, match=r"--amp bf16 \(now off\)"):
        run(data, tmp_path, *more, "--amp", "auto", "--epoch", "2", "--resume")
    assert run(data, tmp_path, *more, "--amp", "bf16", "--epoch", "2", "--resume") == 0


# ---- a damaged checkpoint


def _first_moment(checkpoint):
    return checkpoint["optimizer"]["state"][0]


DAMAGES = {
    "optimizer": lambda c: c.pop("optimizer"),
    "options": lambda c: c.update(options=[1]),
    "seed is": lambda c: c["options"].update(seed=torch.ones(2)),
    "draws": lambda c: c.update(draws=10**8),
    "optimizer.state has no 0": lambda c: c["optimizer"]["state"].pop(0),
    "exp_avg is": lambda c: _first_moment(c).update(exp_avg=torch.ones(1)),
    "exp_avg_sq is": lambda c: _first_moment(c)["exp_avg_sq"].fill_(float("nan")),
    "those of this model": lambda c: c["optimizer"]["param_groups"].pop(),
    "not finite": lambda c: c["model"]["tokenizer.vit.norm.bias"].fill_(float("inf")),
    "has no step": lambda c: c.pop("step"),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_resuming_from_a_damaged_checkpoint_is_one_sentence(data, finished, tmp_path, said):
    checkpoint = load_file(finished / LAST)
    DAMAGES[said](checkpoint)
    torch.save(checkpoint, tmp_path / LAST)
    with pytest.raises(InputError, match=said) as error:
        run(data, tmp_path, *FINISHED, "--resume")
    assert str(error.value).startswith(str(tmp_path / LAST))


def test_the_average_is_checked_too(data, tmp_path):
    more = ["--ema", "0.5", "--epoch", "1"]
    run(data, tmp_path, *more)
    whole = load_file(tmp_path / LAST)
    first = next(name for name, tensor in whole["average"].items() if tensor.is_floating_point())
    for average, said in (
        (None, "missing"),
        ({**whole["average"], first: torch.ones(1)}, "misshapen"),
        ({**whole["average"], first: whole["average"][first] * float("nan")}, "not finite"),
    ):
        torch.save({**whole, "average": average}, tmp_path / LAST)
        with pytest.raises(InputError, match=rf"{LAST}: average: .*{said}"):
            run(data, tmp_path, *more, "--resume")


# ---- in parts as in a piece


@pytest.mark.parametrize(
    ("recipe", "ema"),
    [
        ("strong", "0.2"),
        ("paper", "0"),
        pytest.param("strong", "0", marks=pytest.mark.slow),
        pytest.param("paper", "0.2", marks=pytest.mark.slow),
    ],
)
def test_more_epochs_after_a_finished_run_equal_one_long_run(data, tmp_path, recipe, ema):
    more = ["--recipe", recipe, "--schedule", "constant", "--ema", ema]
    run(data, tmp_path / "short", *more, "--epoch", "1")
    run(data, tmp_path / "short", *more, "--epoch", "2", "--resume")
    run(data, tmp_path / "long", *more, "--epoch", "2")
    short, long = load_file(tmp_path / "short" / LAST), load_file(tmp_path / "long" / LAST)
    assert_same_state(short, long)
    assert_equal(weights(tmp_path / "short", BEST), weights(tmp_path / "long", BEST))


STOPPED = ["--dropout", "0.1", "--ema", "0.5", "--augment", "strong", "--clip", "0.5"]
STOPPED += ["--accumulate", "2", "--datasetLen", "18", "--own_photo", "0.5"]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("whole") / "run"
    run(data, save, *STOPPED)
    return save


@pytest.mark.parametrize(
    ("epoch", "step"),
    [
        (0, 1),
        (1, STEPS_AN_EPOCH - 1),
        *(
            pytest.param(*place, marks=pytest.mark.slow)
            for place in ((0, 0), (0, 2), (1, 0), (1, 1))
        ),
    ],
)
def test_a_run_stopped_in_any_step_goes_on_as_if_it_had_not(
    data, tmp_path, monkeypatch, whole, epoch, step
):
    """After the last step of an epoch too, where the signal keeps it from being validated."""
    with monkeypatch.context() as context:
        stop_in_step(context, epoch, step)
        assert run(data, tmp_path, *STOPPED) == 128 + signal.SIGTERM
    stopped = load_file(tmp_path / LAST)
    assert (stopped["epoch"], stopped["step"], stopped["draws"]) == (epoch, step + 1, 6 * step + 6)
    assert [row["epoch"] for row in lines(tmp_path, "epoch")] == list(range(1, epoch + 1))
    assert run(data, tmp_path, *STOPPED, "--resume") == 0
    assert_same_state(load_file(tmp_path / LAST), load_file(whole / LAST))
    assert_equal(weights(tmp_path, BEST), weights(whole, BEST))
    assert [row["validation"] for row in lines(tmp_path, "epoch")] == [
        row["validation"] for row in lines(whole, "epoch")
    ]
    ends = [(row["epoch"], row["step"]) for row in lines(tmp_path, "steps")]
    assert ends == [(1, STEPS_AN_EPOCH), (2, STEPS_AN_EPOCH)]


def test_a_stopped_run_shows_its_curves_and_how_to_go_on(data, tmp_path, monkeypatch, caplog):
    stop_in_step(monkeypatch, epoch=1, step=0)
    with caplog.at_level("INFO"):
        assert run(data, tmp_path, curves=True) == 128 + signal.SIGTERM
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")
    assert "in epoch 2 after step 1; saved. Go on with" in caplog.text
    described = tmp_path / "resumed_in_epoch_2_step_1.json"
    assert not described.exists()
    monkeypatch.undo()
    run(data, tmp_path, "--resume", "--num_workers", "1")
    assert json.loads(described.read_text())["options"]["num_workers"] == 1


def test_a_signal_in_validation_leaves_the_epoch_to_be_validated(data, tmp_path, monkeypatch):
    run(data, tmp_path / "whole")
    save = tmp_path / "stopped"

    def validate_and_stop(_, validate):
        metrics = validate()
        signal.raise_signal(signal.SIGINT)
        return metrics

    with monkeypatch.context() as context:
        replace_validation(context, validate_and_stop)
        assert run(data, save) == 128 + signal.SIGINT
    stopped = load_file(save / LAST)
    assert (stopped["epoch"], stopped["step"]) == (0, STEPS_AN_EPOCH)
    assert not (save / BEST).exists() and lines(save, "epoch") == []
    assert run(data, save, "--resume") == 0
    assert_same_state(load_file(save / LAST), load_file(tmp_path / "whole" / LAST))
    assert_equal(weights(save, BEST), weights(tmp_path / "whole", BEST))
    losses = [[row["losses"] for row in lines(at, "epoch")] for at in (save, tmp_path / "whole")]
    assert losses[0] == losses[1] and losses[0][0]


def test_the_time_of_all_parts_counts(data, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        stop_in_step(context)
        run(data, tmp_path)
    checkpoint = load_file(tmp_path / LAST)
    assert checkpoint["seconds"] > 0
    torch.save({**checkpoint, "seconds": 1000.0}, tmp_path / LAST)
    run(data, tmp_path, "--resume")
    assert 1000 < load_file(tmp_path / LAST)["seconds"] < 1100


# ---- a signal from outside

STEPS = 30
LONG = ["--datasetLen", str(3 * STEPS), "--epoch", "1", "--num_workers", "1", "--validate", "none"]
LONG += ["--draws", "classes", "--shortcut", "--whitening", "--learn_temperature", "--ema", "0.9"]
LONG += ["--augment", "strong", "--dropout", "0.1", "--schedule", "cosine", "--layer_decay", "0.7"]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_as_started(data, save, *LONG)
    return save


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resuming_equals_an_uninterrupted_run(
    data, tmp_path, number, uninterrupted
):
    """Sent to the whole process group, as Ctrl-C on a terminal is: workers leave it to others."""
    save = tmp_path / "stopped"
    process = start(data, save, *LONG, "--save_minutes", "0.001")
    try:
        process.wait_for(lambda: saved_step(save))
        process.send_to_all(number)
        assert process.wait() == 128 + number, process.output
    finally:
        process.end()
    assert "--resume" in process.output and "Traceback" not in process.output
    stopped = load_file(save / LAST)
    assert stopped["epoch"] == 0 and 0 < stopped["step"] < STEPS
    run_as_started(data, save, *LONG, "--resume")
    resumed, whole = load_file(save / LAST), load_file(uninterrupted / LAST)
    assert_same_state(resumed, whole)
    assert_equal(weights(save, BEST), weights(uninterrupted, BEST))
    assert whole["model"]["contrastive_scale"] != stopped["model"]["contrastive_scale"]
