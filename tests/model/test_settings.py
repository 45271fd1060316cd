"""Settings of training: what each accepts and refuses, and what follows from a field."""

import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path

import pytest

from model import METHODS, settings_class
from model.settings import TrainingSettings, options_of, setting
from model.zse.settings import ZSESettings
from utils.errors import InputError

ROOT = Path(__file__).parents[2]
COUNTS = ([1, 15, 100], [0, -3, 10**12, 2**63, 1.5, math.nan, "7", None])
WEIGHTS = ([0, 0.25, 100], [-1e-9, 1e300, math.nan, math.inf, -math.inf, "one", None, True])
SHARES = ([0, 0.25, 1], [-1e-9, 1.000001, math.nan, "all", None])
SWITCHES = ([True, False], [0, 1, "on", None])
OF_TRAINING = {  # field: values that it accepts, the bounds among them, and values that it refuses
    "draws": (["triplets", "classes"], ["pairs", "", None, 3]),
    "per_class": COUNTS,
    "own_photo": SHARES,
    "augment": (["none", "flip", "light", "strong"], ["mirror", "", None, True]),
    "batch": COUNTS,
    "accumulate": COUNTS,
    "draws_an_epoch": COUNTS,
    "epochs": COUNTS,
    "learning_rate": WEIGHTS,
    "schedule": (["constant", "cosine"], ["linear", None, 1]),
    "layer_decay": ([1e-9, 0.75, 1], [0, -0.1, 1.000001, math.nan, None]),
    "new_rate": WEIGHTS,
    "weight_decay": WEIGHTS,
    "clip": WEIGHTS,
    "ema": ([0, 0.999999], [1, 1.01, -0.1, math.nan, None]),
    "amp": (["auto", "off", "bf16"], ["fp16", "fp32", "", None, True]),
    "tf32": SWITCHES,
    "compile": SWITCHES,
    "checkpoint_blocks": SWITCHES,
}
OF_ZSE = {
    "vit": (["vit_tiny_patch16_224"], [None, 16, True]),
    "width": ([None, 1, 768], [0, -1, 1.5, "768"]),
    "hidden": ([None, 1, 1024], [0, -1, 1.5, "1024"]),
    "heads": COUNTS,
    "layers": COUNTS,
    "anchors": ([None, 1, 49], [0, -1, 1.5, "49"]),
    "downsampling": (["published", "spatial"], ["other", None]),
    "keep_rate": ([1e-9, 0.9, 1], [0, -0.1, 1.1, math.nan, None]),
    "shortcut": SWITCHES,
    "whitening": SWITCHES,
    "triplet_weight": WEIGHTS,
    "relation_weight": WEIGHTS,
    "relation_loss": (["mse", "logistic"], ["hinge", None]),
    "contrastive_weight": WEIGHTS,
    "temperature": ([0.01, 0.07, 0.999999], [0.009, 0, 1, 1.01, math.nan, None]),
    "learn_temperature": SWITCHES,
    "classification_weight": WEIGHTS,
    "dropout": ([0, 0.999999], [1, -0.1, math.nan, None]),
}
ROWS = [
    *((TrainingSettings, name, *values) for name, values in OF_TRAINING.items()),
    *((ZSESettings, name, *values) for name, values in (OF_TRAINING | OF_ZSE).items()),
]
FLAGS = {"draws_an_epoch": "datasetLen", "epochs": "epoch", "width": "d_model", "hidden": "d_ff"}
FLAGS |= {"heads": "head", "layers": "number", "anchors": "anchor_number"}
"""The published names, by field; the others are those of the fields."""


def test_every_field_is_tested():
    assert OF_TRAINING.keys() == options_of(TrainingSettings).keys()
    assert (OF_TRAINING | OF_ZSE).keys() == options_of(ZSESettings).keys()


@pytest.mark.parametrize(("kind", "name", "accepted", "refused"), ROWS)
def test_what_is_within_bounds_is_accepted_as_it_is(kind, name, accepted, refused):
    for value in accepted:
        assert getattr(kind(**{name: value}), name) is value


@pytest.mark.parametrize(("kind", "name", "accepted", "refused"), ROWS)
def test_what_is_out_of_bounds_is_refused_in_a_sentence(kind, name, accepted, refused):
    for value in refused:
        with pytest.raises(InputError) as error:
            kind(**{name: value})
        said = str(error.value)
        flag = re.escape(FLAGS.get(name, name))
        assert re.fullmatch(rf"--{flag} {re.escape(repr(value))}: is not .+\.", said), said
        assert "\n" not in said


@pytest.mark.parametrize("value", [True, False])
def test_on_and_off_are_no_numbers(value):
    with pytest.raises(
        InputError, match=f"--epoch {value}: is not a whole number from 1 to 1,000,000"
    ):
        TrainingSettings(epochs=value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", 0, "--epoch 0: is not a whole number from 1 to 1,000,000."),
        ("own_photo", 2, "--own_photo 2: is not a number from 0 to 1."),
        ("layer_decay", 0, "--layer_decay 0: is not a number from 0 to 1 and not 0."),
        ("clip", -1.0, "--clip -1.0: is not a number from 0 to 1,000,000,000."),
        ("tf32", "on", "--tf32 'on': is not True or False."),
        ("amp", "fp16", "--amp 'fp16': is not one of auto, off, bf16."),
    ],
)
def test_a_refusal_names_option_value_and_what_is_allowed(name, value, said):
    with pytest.raises(InputError) as error:
        TrainingSettings(**{name: value})
    assert str(error.value) == said


def test_settings_do_not_change():
    settings = ZSESettings()
    with pytest.raises(FrozenInstanceError):
        settings.batch = 1
    with pytest.raises(TypeError, match="spikes"):
        ZSESettings(spikes=1)


# ---- what follows from a field


@dataclass(frozen=True)
class Wider(TrainingSettings):
    """A method with two fields of its own."""

    method = "wider"

    gate: float = setting(0.5, "share of tokens", least=0, most=2, excluded=2, rebuilds=True)
    rounds: int = setting(3, "rounds", least=2, most=9, flag="round_count")


def test_a_new_field_has_its_default_and_its_bounds():
    assert (Wider().gate, Wider().rounds) == (0.5, 3)
    assert Wider(gate=0, rounds=2) and Wider(gate=1.99, rounds=9)
    for refused in ({"gate": 2}, {"gate": -1}, {"rounds": 1}, {"rounds": 10}):
        with pytest.raises(InputError, match="is not a"):
            Wider(**refused)


def test_a_new_field_is_among_the_models_settings_where_it_rebuilds_the_model():
    assert Wider(gate=1.5, rounds=4, epochs=7).of_model() == {"gate": 1.5}
    assert TrainingSettings().of_model() == {}


def test_a_new_field_has_its_name_on_the_command_line():
    found = Wider(gate=1.5, rounds=4).by_flag()
    assert (found["gate"], found["round_count"], found["datasetLen"]) == (1.5, 4, 10000)
    assert len(found) == len(options_of(TrainingSettings)) + 2


def test_without_recipes_of_its_own_a_method_has_its_defaults():
    for pretrained in (True, False):
        assert Wider.recipes(pretrained) == {"default": Wider()}


# ---- settings of all methods


@pytest.mark.parametrize("method", METHODS)
def test_a_method_changes_nothing_that_all_have(method):
    """Names on the command line and bounds mean the same for every method."""
    shared, own = options_of(TrainingSettings), options_of(settings_class(method))
    assert {name: own[name] for name in shared} == shared
    flags = [option.flag or name for name, option in own.items()]
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize("method", METHODS)
def test_every_field_has_a_default_that_it_accepts(method):
    for entry in fields(settings_class(method)):
        option = entry.metadata["option"]
        assert option.accepts(entry.default) and option.default == entry.default, entry.name
        assert option.help and "\n" not in option.help, entry.name


def test_settings_of_every_method_load_no_torch():
    code = (
        "import sys, model\n"
        "for method in model.METHODS: model.settings_class(method)\n"
        "assert not {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
