"""Checkpoints of ours and published ones, loaded from files; which files are refused."""

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch

from model import checkpoint_of as content_of
from model import load_model
from model.zse.published import UNUSED, to_theirs
from utils.errors import InputError

SMALL = {"vit": "test_vit"}
TRAINED_OTHERWISE = {
    "shortcut": True,
    "whitening": True,
    "draws": "classes",
    "relation_loss": "logistic",
    "contrastive_weight": 0.5,
    "temperature": 0.2,
    "learn_temperature": True,
    "classification_weight": 0.25,
    "classes": 3,
    "distillation_weight": 2.0,
}
SETTINGS_OF_0260CF6 = (
    "vit",
    "width",
    "heads",
    "layers",
    "hidden",
    "anchors",
    "downsampling",
    "keep_rate",
    "triplet_weight",
    "relation_weight",
    "contrastive_weight",
    "classification_weight",
    "classes",
    "dropout",
)
"""What a checkpoint told before there were others."""


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
    method = build_small(anchors=100, heads=4, hidden=24, layers=2, **TRAINED_OTHERWISE)
    method.whitening.follow(torch.randn(9, 64), torch.randn(9, 64))
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, checkpoint = load_model(tmp_path / "file.pth", resumed=True)
    assert loaded.settings == method.settings
    assert checkpoint["classes"] == ["cat", "dog"]
    _assert_same_tensors(loaded.state_dict(), method.state_dict())


def test_a_setting_of_another_version_is_refused_where_it_is_on(
    tmp_path, build_small, checkpoint_of
):
    checkpoint = checkpoint_of(build_small())
    checkpoint["settings"] |= {"spikes": 3, "wheels": False}
    torch.save(checkpoint, tmp_path / "file.pth")
    with pytest.raises(InputError, match="was trained with spikes, which this version does not"):
        load_model(tmp_path / "file.pth")
    checkpoint["settings"]["spikes"] = 0
    torch.save(checkpoint, tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth")
    assert not {"spikes", "wheels"} & loaded.settings.keys()


def test_a_setting_of_training_can_be_replaced(tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small()), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", replaced={"contrastive_weight": 0.5})
    assert loaded.weights["contrastive"] == loaded.settings["contrastive_weight"] == 0.5


def test_what_only_training_uses_may_be_absent(tmp_path, build_small, checkpoint_of):
    """As in best_checkpoint.pth, which is there to be scored."""
    method = build_small(**TRAINED_OTHERWISE)
    checkpoint = checkpoint_of(method)
    for name in method.state_dict():
        if name.startswith(("classifier.", "teacher.", "contrastive_scale")):
            del checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth")
    assert loaded.settings == method.settings
    assert loaded.state_dict().keys() == method.state_dict().keys()
    for name, tensor in checkpoint["model"].items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert 1 / loaded.contrastive_scale.exp().item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["whitening.means", "relation.shortcut.weights"])
def test_what_scoring_uses_may_not_be_absent(name, tmp_path, build_small, checkpoint_of):
    checkpoint = checkpoint_of(build_small(**TRAINED_OTHERWISE))
    del checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"missing: {name}"):
        load_model(tmp_path / "file.pth")


@pytest.mark.parametrize("contrastive_weight", [0.0, 0.5])
def test_a_checkpoint_of_an_older_version_loads(
    contrastive_weight, tmp_path, build_small, checkpoint_of, draw_images
):
    method = build_small(contrastive_weight=contrastive_weight)
    checkpoint = checkpoint_of(method)
    checkpoint["settings"] = {name: method.settings[name] for name in SETTINGS_OF_0260CF6}
    checkpoint["model"].pop("contrastive_scale", None)
    torch.save(checkpoint, tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", wanted={"shortcut": False, "whitening": False})
    assert loaded.settings == method.settings
    _assert_same_tensors(loaded.state_dict(), method.state_dict())
    with pytest.raises(InputError, match="shortcut = False, but True"):
        load_model(tmp_path / "file.pth", wanted={"shortcut": True})


def test_what_only_training_uses_starts_anew_unless_resumed(tmp_path, build_small, checkpoint_of):
    former = build_small(classification_weight=1.0, classes=3, contrastive_weight=1.0)
    with torch.no_grad():
        former.contrastive_scale.fill_(4.0)
    torch.save(checkpoint_of(former), tmp_path / "file.pth")
    shared = {
        n: t for n, t in former.state_dict().items() if not n.startswith(former.training_only)
    }
    for weight, classes in ((1.0, 5), (0.0, None), (1.0, 3)):
        replaced = {"classification_weight": weight, "classes": classes, "temperature": 0.5}
        loaded, _ = load_model(tmp_path / "file.pth", replaced=replaced)
        _assert_same_tensors({n: loaded.state_dict()[n] for n in shared}, shared)
        assert loaded.contrastive_scale.exp().item() == pytest.approx(2)
        if weight:
            assert len(loaded.classifier.bias) == classes
    assert not torch.equal(loaded.classifier.weight, former.classifier.weight)
    resumed, _ = load_model(tmp_path / "file.pth", replaced={"dropout": 0.0}, resumed=True)
    _assert_same_tensors(resumed.state_dict(), former.state_dict())


# ---- what is saved


@pytest.mark.parametrize("training", [True, False])
def test_what_is_saved_of_a_method_rebuilds_it(training, tmp_path, build_small):
    method = build_small(**TRAINED_OTHERWISE)
    method.whitening.follow(torch.randn(9, 64), torch.randn(9, 64))
    content = content_of(method, training)
    left_out = {name for name in method.state_dict() if name not in content["model"]}
    only_for_training = ("classifier.", "teacher.", "contrastive_scale")
    assert left_out == {
        name for name in method.state_dict() if name.startswith(only_for_training) and not training
    }
    torch.save(content, tmp_path / "file.pth")
    loaded, checkpoint = load_model(tmp_path / "file.pth", resumed=training)
    assert (checkpoint["method"], loaded.settings) == ("zse_sbir", method.settings)
    state = loaded.state_dict()
    _assert_same_tensors({name: state[name] for name in content["model"]}, content["model"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["tokenizer.vit.pos_embed", "whitening.means", "teacher.vit"])
def test_weights_that_are_not_finite_are_not_saved(name, value, build_small):
    method = build_small(**TRAINED_OTHERWISE)
    content_of(method, training=True)
    tensor = next(t for n, t in method.state_dict().items() if n.startswith(name))
    tensor.view(-1)[-1] = value
    with pytest.raises(InputError, match=r"no longer finite and are not saved.*--resume"):
        content_of(method, training=True)


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
        ("shortcut", True),
        ("keep_rate", 0.9),
        ("whitening", True),
    ],
)
@pytest.mark.parametrize("published", [True, False])
def test_settings_that_contradict_the_file_are_refused(
    published, name, value, tmp_path, build_small, as_downloaded, checkpoint_of
):
    method = build_small()
    content = as_downloaded(method) if published else checkpoint_of(method)
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "file.pth", wanted={**SMALL, name: value})
    assert str(error.value) == (
        f"{tmp_path / 'file.pth'}: was trained with {name} = {method.settings[name]}, but {value} "
        "was asked for. Leave that option out; the checkpoint brings its own."
    )


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


def test_a_backbone_is_told_from_a_checkpoint(tmp_path):
    torch.save({"pos_embedding": torch.zeros(1), "cls": torch.zeros(1)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="--pretrained_path"):
        load_model(tmp_path / "file.pth")


class _Malicious:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


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
