"""Published names to ours and back, settings from shapes, and the converter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import build_model
from model.zse import published
from model.zse.published import UNUSED, from_published, to_ours, to_published, to_theirs
from model.zse.settings import PAPER, ZSESettings
from utils.checkpoints import load_file
from utils.errors import InputError, run_script

ROOT = Path(__file__).parents[3]
SMALL = {"vit": "test_vit"}  # what the user has to name: these shapes are those of no known ViT
SHAPES = json.loads((ROOT / "tests/golden/official_a_keys.json").read_text())


# ---- names


@pytest.fixture(scope="module")
def vit_base():
    """The published network without memory for its weights."""
    return _build_without_weights(vit="vit_base_patch16_224")


def test_every_published_name_becomes_one_of_ours_and_comes_back(vit_base):
    read = [name for name in SHAPES if not name.startswith(UNUSED)]
    assert len(read) < len(SHAPES)
    assert {to_ours(name) for name in read} == set(vit_base.state_dict())
    assert [to_theirs(to_ours(name)) for name in read] == read


def test_every_tensor_of_ours_becomes_a_published_one_and_comes_back(vit_base):
    ours = vit_base.state_dict()
    assert [to_ours(to_theirs(name)) for name in ours] == list(ours)
    for name, tensor in ours.items():
        assert list(tensor.shape) == SHAPES[to_theirs(name)], name


def test_written_names_and_shapes_are_exactly_the_published_ones(vit_base, checkpoint_of):
    written = to_published(checkpoint_of(vit_base))["model"]
    assert {name: list(tensor.shape) for name, tensor in written.items()} == SHAPES


def test_names_of_more_layers_than_one_are_kept_apart(build_small, checkpoint_of):
    method = build_small(layers=2)
    written = to_published(checkpoint_of(method))
    assert "ca.encoder.layer2.1.self_attn.linears.2.weight" in written["model"]
    assert "ca.encoder.layers.1.self_attn.linears.2.weight" in written["model"]
    back = from_published(written, "file", SMALL)
    assert back["settings"]["layers"] == 2
    _assert_same_tensors(back["model"], method.state_dict())


def test_there_and_back_is_the_same_to_the_bit(build_small, checkpoint_of):
    ours = checkpoint_of(build_small())
    back = from_published(to_published(ours), "file", SMALL)
    _assert_same_tensors(back["model"], ours["model"])
    assert build_model(ZSESettings(**back["settings"])).settings.of_model() == ours["settings"]
    assert {n: back[n] for n in ("epoch", "map_all", "precision_100")} == {
        n: ours[n] for n in ("epoch", "map_all", "precision_100")
    }


def test_an_unvalidated_checkpoint_goes_there_and_back(build_small, checkpoint_of):
    ours = checkpoint_of(build_small(), map_all=None, precision_100=None)
    back = from_published(to_published(ours), "file", SMALL)
    _assert_same_tensors(back["model"], ours["model"])


# ---- settings


@pytest.mark.parametrize(
    ("vit", "anchors", "keep_rate"),
    [
        ("vit_tiny_patch16_224", 49, 1.0),
        ("vit_tiny_patch16_224", 196, 1.0),
        ("vit_tiny_patch16_224", 36, 0.9),
        ("vit_tiny_patch16_224", 144, 0.9),
        ("vit_small_patch16_224", 49, 1.0),
        ("vit_base_patch16_224", 49, 1.0),
        ("vit_large_patch16_224", 49, 1.0),
    ],
)
def test_shapes_tell_the_settings(vit, anchors, keep_rate):
    given = {"heads": 4, "layers": 2, "hidden": 100, "anchors": anchors, "keep_rate": keep_rate}
    method = _build_without_weights(vit=vit, **given)
    state = {to_theirs(name): tensor for name, tensor in method.state_dict().items()}
    found = from_published(state, "file", {"heads": 4})["settings"]
    assert _build_without_weights(**found).settings == method.settings


def test_settings_that_no_shape_shows_are_the_published_ones_unless_named(build_small):
    state = {to_theirs(name): tensor for name, tensor in build_small().state_dict().items()}
    assert from_published(state, "file", SMALL)["settings"]["heads"] == PAPER.heads == 8
    named = {**SMALL, "heads": 2, "epochs": 3}
    assert from_published(state, "file", named)["settings"]["heads"] == 2


def test_the_vit_that_is_named_does_not_replace_the_one_that_shapes_show(vit_base):
    state = {to_theirs(name): tensor for name, tensor in vit_base.state_dict().items()}
    found = from_published(state, "file", {"vit": "vit_tiny_patch16_224"})["settings"]
    assert found["vit"] == "vit_base_patch16_224"


def test_vit_base_has_the_published_settings(vit_base):
    assert vit_base.settings.of_model() == {
        "vit": "vit_base_patch16_224",
        "width": 768,
        "heads": 8,
        "layers": 1,
        "hidden": 1024,
        "anchors": 49,
        "downsampling": "published",
        "shortcut": False,
        "keep_rate": 1.0,
        "whitening": False,
    }
    trained = {
        "draws": "triplets",
        "triplet_weight": 2.0,
        "relation_weight": 4.0,
        "relation_loss": "mse",
        "contrastive_weight": 0.0,
        "temperature": 0.07,
        "learn_temperature": False,
        "classification_weight": 0.0,
        "dropout": 0.1,
    }
    assert {name: getattr(vit_base.settings, name) for name in trained} == trained


def test_what_only_training_uses_is_not_handed_on(build_small, checkpoint_of):
    plain = to_published(checkpoint_of(build_small()))
    method = build_small(
        classification_weight=1.0,
        classes=3,
        contrastive_weight=1.0,
        learn_temperature=True,
    )
    assert to_published(checkpoint_of(method))["model"].keys() == plain["model"].keys()


@pytest.mark.parametrize(("name", "said"), [("shortcut", "shortcut"), ("whitening", "whiten")])
def test_what_the_published_program_lacks_is_not_handed_on(name, said, build_small, checkpoint_of):
    with pytest.raises(InputError, match=f"{said}.*published program does not have"):
        to_published(checkpoint_of(build_small(**{name: True})))
    plain = checkpoint_of(build_small(**{name: False}))
    del plain["settings"][name]  # as in a checkpoint of an older version
    to_published(plain)


def test_a_width_and_depth_without_a_name_asks_for_one(build_small, checkpoint_of):
    content = to_published(checkpoint_of(build_small()))
    with pytest.raises(InputError, match=r"width 64 and depth 6.*--vit"):
        from_published(content, "file", {})


@pytest.mark.parametrize("content", [{"model": 3}, {"model": {"a": 1}}, {"epoch": 3}, {}])
def test_something_else_is_no_checkpoint(content):
    assert from_published(content, "file", SMALL) is None


def test_a_damaged_file_is_refused_with_the_tensor_that_it_lacks(build_small, checkpoint_of):
    content = to_published(checkpoint_of(build_small()))
    del content["model"]["rn.rn.0.weight"]
    with pytest.raises(InputError, match=r"file: .*no tensor 'rn\.rn\.0\.weight'.*again"):
        from_published(content, "file", SMALL)


# ---- python -m model.zse.published OURS THEIRS


@pytest.fixture
def refusal(monkeypatch, capsys):
    """A function that runs the converter in this process, where it refuses: the sentence."""

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["published.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_script(published._main)
        said = capsys.readouterr().err
        assert ended.value.code == 1
        assert said.startswith("error: ") and len(said.splitlines()) == 1
        return said

    return run


@pytest.mark.slow
def test_the_converter_writes_what_the_published_program_reads(
    tmp_path, build_small, checkpoint_of
):
    """As a program of its own."""
    method = build_small()
    torch.save(checkpoint_of(method), tmp_path / "ours.pth")
    command = [sys.executable, "-m", "model.zse.published", "ours.pth", "theirs.pth"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")
    written = load_file(tmp_path / "theirs.pth")
    assert set(written) == {"model", "epoch", "map_all", "precision_100"}
    _assert_same_tensors(written["model"], to_published(checkpoint_of(method))["model"])


def _spatial(checkpoint):
    checkpoint["settings"] = {**checkpoint["settings"], "anchors": 49, "downsampling": "spatial"}


def _selecting(checkpoint):
    checkpoint["settings"] = {**checkpoint["settings"], "keep_rate": 0.9}


def _foreign(checkpoint):
    del checkpoint["method"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_spatial, "spatial down-sampling"),
        (_selecting, "token selection"),
        (_foreign, "is not a ZSE-SBIR checkpoint of ours"),
    ],
)
def test_the_converter_refuses_what_the_published_program_lacks(
    change, reason, tmp_path, build_small, checkpoint_of, refusal
):
    checkpoint = checkpoint_of(build_small())
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "ours.pth")
    assert reason in refusal(tmp_path / "ours.pth", tmp_path / "theirs.pth")
    assert not (tmp_path / "theirs.pth").exists()


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"]])
def test_the_converter_wants_two_arguments(arguments, refusal):
    assert "usage: python -m model.zse.published OURS THEIRS" in refusal(*arguments)


def test_the_converter_does_not_write_over_a_folder(tmp_path, build_small, checkpoint_of, refusal):
    torch.save(checkpoint_of(build_small()), tmp_path / "ours.pth")
    (tmp_path / "theirs").mkdir()
    assert str(tmp_path / "theirs") in refusal(tmp_path / "ours.pth", tmp_path / "theirs")


def test_spatial_downsampling_is_refused_for_every_size_of_image(build_small, checkpoint_of):
    checkpoint = checkpoint_of(build_small(anchors=25, downsampling="spatial"))
    with pytest.raises(InputError, match="spatial down-sampling"):
        to_published(checkpoint)


def test_spatial_does_not_matter_where_nothing_is_downsampled(build_small, checkpoint_of):
    to_published(checkpoint_of(build_small(anchors=100, downsampling="spatial")))


def _build_without_weights(**settings):
    with torch.device("meta"):
        return build_model(ZSESettings(**settings))


def _assert_same_tensors(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
