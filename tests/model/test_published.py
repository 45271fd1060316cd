import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from model import build_model, load_model
from model.published import UNUSED, from_published, to_ours, to_published, to_theirs
from utils.checkpoints import load_file
from utils.errors import InputError

ROOT = Path(__file__).parents[2]
SHAPES = json.loads((ROOT / "tests/golden/official_a_keys.json").read_text())
SMALL = {"vit": "test_vit"}


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
    assert back["settings"] == ours["settings"]
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
    assert from_published(state, "file", heads=4)["settings"] == method.settings


def test_vit_base_has_the_published_settings(vit_base):
    assert vit_base.settings == {
        "vit": "vit_base_patch16_224",
        "width": 768,
        "heads": 8,
        "layers": 1,
        "hidden": 1024,
        "anchors": 49,
        "downsampling": "published",
        "keep_rate": 1.0,
        "contrastive_weight": 0.0,
        "dropout": 0.1,
    }


def test_a_width_and_depth_without_a_name_asks_for_one(build_small, checkpoint_of):
    content = to_published(checkpoint_of(build_small()))
    with pytest.raises(InputError, match=r"width 64 and depth 6.*--vit"):
        from_published(content, "file", heads=8)


@pytest.mark.parametrize("content", [{"model": 3}, {"model": {"a": 1}}, {"epoch": 3}])
def test_something_else_is_no_checkpoint(content):
    with pytest.raises(InputError, match="neither a checkpoint of ours nor a published one"):
        from_published(content, "file", heads=8)


def test_a_backbone_is_told_from_a_checkpoint(tmp_path):
    torch.save({"pos_embedding": torch.zeros(1), "cls": torch.zeros(1)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="--pretrained_path"):
        load_model(tmp_path / "file.pth")


# ---- files


@pytest.mark.parametrize("kind", ["as written today", "by an old numpy", "by an old torch"])
def test_a_file_as_downloaded_loads(kind, tmp_path, build_small, as_downloaded, draw_images):
    method, path = build_small(), tmp_path / "best_checkpoint.pth"
    torch.save(
        as_downloaded(method), path, _use_new_zipfile_serialization=kind != "by an old torch"
    )
    if kind == "by an old numpy":
        _name_the_old_numpy(path)
    with pytest.raises(Exception, match=r"multiarray\.scalar"):  # what makes such a file special
        torch.load(path, weights_only=True)

    loaded, checkpoint = load_model(path, wanted=SMALL)

    assert checkpoint["classes"] is None
    assert (checkpoint["epoch"], checkpoint["map_all"]) == (12, 0.698)
    assert checkpoint["precision_100"] == 0.797
    assert type(checkpoint["map_all"]) is float
    assert loaded.settings == method.settings
    _assert_same_tensors(loaded.state_dict(), method.state_dict())
    with torch.inference_mode():
        wanted = method.encode(draw_images(1), "sketch")["tokens"]
        assert torch.equal(loaded.eval().encode(draw_images(1), "sketch")["tokens"], wanted)


def test_a_bare_state_dict_loads(tmp_path, build_small, as_downloaded):
    method = build_small()
    torch.save(as_downloaded(method)["model"], tmp_path / "file.pth")
    loaded, checkpoint = load_model(tmp_path / "file.pth", wanted=SMALL)
    assert checkpoint["epoch"] is None
    _assert_same_tensors(loaded.state_dict(), method.state_dict())


def test_unread_tensors_may_be_absent(build_small, as_downloaded, tmp_path):
    content = as_downloaded(build_small())
    content["model"] = {n: t for n, t in content["model"].items() if UNUSED not in n}
    torch.save(content, tmp_path / "file.pth")
    load_model(tmp_path / "file.pth", wanted=SMALL)


def test_a_checkpoint_of_ours_rebuilds_its_model_by_itself(tmp_path, build_small, checkpoint_of):
    method = build_small(anchors=100, heads=4, hidden=24, layers=2, contrastive_weight=0.5)
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, checkpoint = load_model(tmp_path / "file.pth")
    assert loaded.settings == method.settings
    assert checkpoint["classes"] == ["cat", "dog"]
    _assert_same_tensors(loaded.state_dict(), method.state_dict())


def test_a_setting_of_training_can_be_replaced(tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small()), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", replaced={"contrastive_weight": 0.5})
    assert loaded.contrastive_weight == loaded.settings["contrastive_weight"] == 0.5


class _Malicious:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cannot_run_code(zipped, tmp_path, build_small, as_downloaded):
    content = {**as_downloaded(build_small()), "note": _Malicious(tmp_path / "made")}
    path = tmp_path / "file.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_model(path, wanted=SMALL)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("published", [True, False])
def test_every_tensor_that_does_not_fit_is_listed(
    published, tmp_path, build_small, as_downloaded, checkpoint_of
):
    method = build_small()
    content = as_downloaded(method) if published else checkpoint_of(method)
    state, before = content["model"], "module." if published else ""
    theirs = to_theirs if published else str
    del state[before + theirs("tokenizer.vit.norm.bias")]
    del state[before + theirs("tokenizer.scale_stem.convolutions.1.weight")]
    state[before + "surplus.weight"] = torch.zeros(1)
    state[before + theirs("cross_attention.photo_layers.0.fc2.bias")] = torch.zeros(65)
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "file.pth", wanted=SMALL)
    message = str(error.value)
    missing, unexpected, misshapen = re.search(
        r"missing: (.*); unexpected: (.*); misshapen: (.*)", message
    ).groups()
    assert set(missing.split(", ")) == {
        "tokenizer.vit.norm.bias",
        "tokenizer.scale_stem.convolutions.1.weight",
    }
    assert unexpected == "surplus.weight"
    assert misshapen.startswith("cross_attention.photo_layers.0.fc2.bias is (65,)")
    assert "should be (64,)" in misshapen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 768),
        ("layers", 2),
        ("hidden", 1024),
        ("anchors", 100),
        ("downsampling", "spatial"),
        ("keep_rate", 0.9),
    ],
)
@pytest.mark.parametrize("published", [True, False])
def test_settings_that_contradict_the_file_are_refused(
    published, name, value, tmp_path, build_small, as_downloaded, checkpoint_of
):
    method = build_small()
    content = as_downloaded(method) if published else checkpoint_of(method)
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"{name} = {method.settings[name]}, but {value}"):
        load_model(tmp_path / "file.pth", wanted={**SMALL, name: value})


@pytest.mark.parametrize(("name", "value"), [("heads", 4), ("vit", "vit_tiny_patch16_224")])
def test_what_only_our_files_tell_is_refused_too(name, value, tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small()), tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"{name} = .*, but {value}"):
        load_model(tmp_path / "file.pth", wanted={name: value})


def test_settings_that_agree_with_the_file_are_taken(tmp_path, build_small, checkpoint_of):
    method = build_small()
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", wanted=method.settings)
    assert loaded.settings == method.settings


def test_heads_of_a_published_file_are_the_users(tmp_path, build_small, as_downloaded):
    torch.save(as_downloaded(build_small()), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", wanted={**SMALL, "heads": 4})
    assert loaded.settings["heads"] == 4


def test_an_unknown_method_is_refused(tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small(), method="of_tomorrow"), tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"'of_tomorrow'.*zse_sbir"):
        load_model(tmp_path / "file.pth")


# ---- python -m model.published OURS THEIRS


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
    _assert_refused(_convert(*arguments), "usage: python -m model.published OURS THEIRS")


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
    command = [sys.executable, "-m", "model.published", *map(str, arguments)]
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


def _name_the_old_numpy(path: Path) -> None:
    """Rewrite the pickle in a file of torch.save as numpy before 2.0 would have named things."""
    with zipfile.ZipFile(path) as file:
        parts = {entry.filename: file.read(entry) for entry in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in parts.items():
            if name.endswith("/data.pkl"):
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
                assert b"cnumpy.core.multiarray\nscalar\n" in content
            file.writestr(name, content)
