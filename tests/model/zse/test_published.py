"""Published names to ours and back, settings told by shapes, and the converter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import build_model
from model.zse.published import UNUSED, from_published, to_ours, to_published, to_theirs
from utils.checkpoints import load_file
from utils.errors import InputError

ROOT = Path(__file__).parents[2]
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


def test_names_of_more_layers_than_one_are_told_apart(build_small, checkpoint_of):
    method = build_small(layers=2)
    written = to_published(checkpoint_of(method))
    assert "ca.encoder.layer2.1.self_attn.linears.2.weight" in written["model"]
    assert "ca.encoder.layers.1.self_attn.linears.2.weight" in written["model"]
    back = from_published(written, "file", heads=8, vit="test_vit")
    assert back["settings"]["layers"] == 2
    _assert_same_tensors(back["model"], method.state_dict())


def test_there_and_back_is_the_same_to_the_bit(build_small, checkpoint_of):
    ours = checkpoint_of(build_small())
    back = from_published(to_published(ours), "file", heads=8, vit="test_vit")
    _assert_same_tensors(back["model"], ours["model"])
    assert build_model("zse_sbir", **back["settings"]).settings == ours["settings"]
    assert {n: back[n] for n in ("epoch", "map_all", "precision_100")} == {
        n: ours[n] for n in ("epoch", "map_all", "precision_100")
    }


def test_an_unvalidated_checkpoint_goes_there_and_back(build_small, checkpoint_of):
    ours = checkpoint_of(build_small(), map_all=None, precision_100=None)
    back = from_published(to_published(ours), "file", heads=8, vit="test_vit")
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
    told = from_published(state, "file", heads=4)["settings"]
    assert _build_without_weights(**told).settings == method.settings


def test_vit_base_has_the_published_settings(vit_base):
    assert vit_base.settings == {
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
        "draws": "triplets",
        "triplet_weight": 2.0,
        "relation_weight": 4.0,
        "relation_loss": "mse",
        "contrastive_weight": 0.0,
        "temperature": 0.07,
        "learn_temperature": False,
        "classification_weight": 0.0,
        "classes": None,
        "distillation_weight": 0.0,
        "dropout": 0.1,
    }


def test_what_only_training_uses_is_not_handed_on(build_small, checkpoint_of):
    plain = to_published(checkpoint_of(build_small()))
    method = build_small(
        classification_weight=1.0,
        classes=3,
        contrastive_weight=1.0,
        learn_temperature=True,
        distillation_weight=1.0,
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
        from_published(content, "file", heads=8)


@pytest.mark.parametrize("content", [{"model": 3}, {"model": {"a": 1}}, {"epoch": 3}])
def test_something_else_is_no_checkpoint(content):
    with pytest.raises(InputError, match="neither a checkpoint of ours nor a published one"):
        from_published(content, "file", heads=8)


# ---- python -m model.zse.published OURS THEIRS


def test_the_converter_writes_what_the_published_program_reads(
    tmp_path, build_small, checkpoint_of
):
    method = build_small()
    torch.save(checkpoint_of(method), tmp_path / "ours.pth")
    result = _convert(tmp_path / "ours.pth", tmp_path / "theirs.pth")
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
    change, reason, tmp_path, build_small, checkpoint_of
):
    checkpoint = checkpoint_of(build_small())
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "ours.pth")
    _assert_refused(_convert(tmp_path / "ours.pth", tmp_path / "theirs.pth"), reason)
    assert not (tmp_path / "theirs.pth").exists()


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"]])
def test_the_converter_wants_two_arguments(arguments):
    _assert_refused(_convert(*arguments), "usage: python -m model.zse.published OURS THEIRS")


def test_the_converter_does_not_write_over_a_folder(tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small()), tmp_path / "ours.pth")
    (tmp_path / "theirs").mkdir()
    _assert_refused(_convert(tmp_path / "ours.pth", tmp_path / "theirs"), str(tmp_path / "theirs"))


def test_spatial_downsampling_is_refused_for_every_size_of_image(build_small, checkpoint_of):
    checkpoint = checkpoint_of(build_small(anchors=25, downsampling="spatial"))
    with pytest.raises(InputError, match="spatial down-sampling"):
        to_published(checkpoint)


def test_spatial_does_not_matter_where_nothing_is_downsampled(build_small, checkpoint_of):
    to_published(checkpoint_of(build_small(anchors=100, downsampling="spatial")))


def _convert(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "model.zse.published", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def _assert_refused(result: subprocess.CompletedProcess, reason: str) -> None:
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def _build_without_weights(**settings):
    with torch.device("meta"):
        return build_model("zse_sbir", **settings)


def _assert_same_tensors(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
