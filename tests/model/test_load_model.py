"""Checkpoints of ours and published ones, loaded from files; which files are refused."""

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch

from model import METHODS, load_model, read_checkpoint, rebuild_model
from model import checkpoint_of as content_of
from model.settings import TrainingSettings
from model.zse.published import UNUSED, to_theirs
from model.zse.settings import ZSESettings
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
}
TRAINING_ONLY = ("classifier.", "contrastive_scale")
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
"""Settings in a checkpoint of a very old version."""
SETTINGS_OF_FAB8B47 = {
    "draws": "classes",
    "triplet_weight": 0.0,
    "relation_weight": 1.0,
    "contrastive_weight": 1.0,
    "classification_weight": 0.5,
    "distillation_weight": 1.0,
    "relation_loss": "logistic",
    "temperature": 0.07,
    "learn_temperature": True,
    "classes": 100,
    "dropout": 0.0,
}
"""Settings in a checkpoint of the version before settings were a class, besides the model's."""


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
        assert torch.equal(loaded.encode(draw_images(1), "sketch")["tokens"], wanted)


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
    method = build_small(classes=3, anchors=100, heads=4, hidden=24, layers=2, **TRAINED_OTHERWISE)
    method.whitening.follow(torch.randn(9, 64), torch.randn(9, 64))
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, checkpoint = load_model(tmp_path / "file.pth")
    assert not loaded.training
    assert loaded.settings.of_model() == method.settings.of_model()
    assert checkpoint["classes"] == ["cat", "dog"]
    scoring = {n: t for n, t in method.state_dict().items() if not n.startswith(TRAINING_ONLY)}
    _assert_same_tensors(loaded.state_dict(), scoring)


def test_a_resumed_run_has_every_tensor_and_trains_as_its_settings_say(
    tmp_path, build_small, checkpoint_of
):
    method = build_small(classes=3, anchors=100, heads=4, hidden=24, layers=2, **TRAINED_OTHERWISE)
    method.whitening.follow(torch.randn(9, 64), torch.randn(9, 64))
    settings = ZSESettings(**TRAINED_OTHERWISE)  # the rest of the model is the checkpoint's
    resumed = _train_on(checkpoint_of(method), settings, classes=3, resumed=True)
    assert resumed.settings == method.settings
    _assert_same_tensors(resumed.state_dict(), method.state_dict())


@pytest.mark.parametrize("value", [3, True, "many", [1]])
def test_a_setting_of_another_version_is_refused_where_it_is_on(
    value, tmp_path, build_small, checkpoint_of
):
    checkpoint = checkpoint_of(build_small())
    checkpoint["settings"] |= {"spikes": value, "wheels": False}
    torch.save(checkpoint, tmp_path / "file.pth")
    with pytest.raises(InputError, match="was trained with spikes, which this version does not"):
        load_model(tmp_path / "file.pth")


@pytest.mark.parametrize("value", [0, False, None, ""])
def test_a_setting_of_another_version_that_is_off_does_not_matter(
    value, tmp_path, build_small, checkpoint_of
):
    checkpoint = checkpoint_of(build_small())
    checkpoint["settings"]["spikes"] = value
    torch.save(checkpoint, tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth")
    assert "spikes" not in loaded.settings.of_model()


def test_training_goes_on_with_the_settings_of_today(build_small, checkpoint_of):
    checkpoint = checkpoint_of(build_small())
    loaded = _train_on(checkpoint, ZSESettings(contrastive_weight=0.5, epochs=3, batch=7))
    assert loaded.settings.loss_weights()["contrastive"] == 0.5
    assert (loaded.settings.epochs, loaded.settings.batch) == (3, 7)


def test_settings_that_rebuild_the_model_stay_the_checkpoints(build_small, checkpoint_of):
    method = build_small(anchors=100, shortcut=True, heads=4)
    others = ZSESettings(anchors=196, whitening=True, downsampling="spatial", layers=3)
    loaded = _train_on(checkpoint_of(method), others)
    assert loaded.settings.of_model() == method.settings.of_model()


def test_what_only_training_uses_may_be_absent(tmp_path, build_small, checkpoint_of):
    """As in best_checkpoint.pth, which is there to be scored."""
    method = build_small(classes=3, **TRAINED_OTHERWISE)
    checkpoint = checkpoint_of(method)
    for name in method.state_dict():
        if name.startswith(TRAINING_ONLY):
            del checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "file.pth")
    scored, _ = load_model(tmp_path / "file.pth")
    assert scored.settings.of_model() == method.settings.of_model()
    trained = _train_on(checkpoint, method.settings, classes=3)
    assert trained.settings == method.settings
    assert trained.state_dict().keys() == method.state_dict().keys()
    for name, tensor in checkpoint["model"].items():
        assert torch.equal(scored.state_dict()[name], tensor), name
        assert torch.equal(trained.state_dict()[name], tensor), name
    assert 1 / trained.contrastive_scale.exp().item() == pytest.approx(0.2)


def test_a_run_is_not_resumed_without_what_training_uses(build_small, checkpoint_of):
    method = build_small(classes=3, **TRAINED_OTHERWISE)
    checkpoint = checkpoint_of(method)
    del checkpoint["model"]["contrastive_scale"]
    with pytest.raises(InputError, match="missing: contrastive_scale"):
        _train_on(checkpoint, method.settings, classes=3, resumed=True)


@pytest.mark.parametrize("name", ["whitening.means", "relation.shortcut.weights"])
def test_what_scoring_uses_may_not_be_absent(name, tmp_path, build_small, checkpoint_of):
    checkpoint = checkpoint_of(build_small(classes=3, **TRAINED_OTHERWISE))
    del checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"missing: {name}"):
        load_model(tmp_path / "file.pth")


@pytest.mark.parametrize("contrastive_weight", [0.0, 0.5])
def test_a_checkpoint_of_the_first_version_loads(
    contrastive_weight, tmp_path, build_small, checkpoint_of
):
    method = build_small()
    checkpoint = checkpoint_of(method)
    former = {**vars(method.settings), "contrastive_weight": contrastive_weight, "classes": None}
    checkpoint["settings"] = {name: former[name] for name in SETTINGS_OF_0260CF6}
    torch.save(checkpoint, tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", wanted={"shortcut": False, "whitening": False})
    assert loaded.settings == method.settings
    _assert_same_tensors(loaded.state_dict(), method.state_dict())
    with pytest.raises(InputError, match="shortcut = False, but True"):
        load_model(tmp_path / "file.pth", wanted={"shortcut": True})


def test_a_checkpoint_with_settings_of_training_and_a_teacher_loads(
    tmp_path, build_small, checkpoint_of, draw_images
):
    """As versions wrote it that had distillation, and settings of training in checkpoints."""
    method = build_small(classes=3, **TRAINED_OTHERWISE)
    checkpoint = checkpoint_of(method)
    checkpoint["settings"] |= SETTINGS_OF_FAB8B47
    teacher = {f"teacher.{n}": t.clone() for n, t in method.tokenizer.state_dict().items()}
    checkpoint["model"] |= teacher
    torch.save(checkpoint, tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth")
    assert loaded.settings.of_model() == method.settings.of_model()
    assert not SETTINGS_OF_FAB8B47.keys() & loaded.settings.of_model().keys()
    assert not any(name.startswith("teacher.") for name in loaded.state_dict())
    with torch.inference_mode():
        wanted = method.encode(draw_images(1), "sketch")
        torch.testing.assert_close(loaded.encode(draw_images(1), "sketch"), wanted, rtol=0, atol=0)
    new = _train_on(checkpoint, method.settings, classes=3)  # a new run starts from it, too
    assert torch.equal(new.tokenizer.vit.pos_embed, method.tokenizer.vit.pos_embed)
    with pytest.raises(InputError, match=r"unexpected: teacher\."):
        _train_on(checkpoint, method.settings, classes=3, resumed=True)


def test_what_only_training_uses_starts_anew_unless_resumed(build_small, checkpoint_of):
    trains = {"classification_weight": 1.0, "contrastive_weight": 1.0}
    former = build_small(classes=3, **trains)
    with torch.no_grad():
        former.contrastive_scale.fill_(4.0)
    checkpoint = checkpoint_of(former)
    shared = {
        n: t for n, t in former.state_dict().items() if not n.startswith(former.training_only)
    }
    for weight, classes in ((1.0, 5), (0.0, None), (1.0, 3)):
        settings = ZSESettings(**{**trains, "classification_weight": weight, "temperature": 0.5})
        loaded = _train_on(checkpoint, settings, classes)
        _assert_same_tensors({n: loaded.state_dict()[n] for n in shared}, shared)
        assert loaded.contrastive_scale.exp().item() == pytest.approx(2)
        if weight:
            assert len(loaded.classifier.bias) == classes
    assert not torch.equal(loaded.classifier.weight, former.classifier.weight)
    resumed = _train_on(checkpoint, ZSESettings(**trains, dropout=0.0), 3, resumed=True)
    _assert_same_tensors(resumed.state_dict(), former.state_dict())


# ---- what is saved


@pytest.mark.parametrize("training", [True, False])
def test_what_is_saved_of_a_method_rebuilds_it(training, tmp_path, build_small):
    method = build_small(classes=3, **TRAINED_OTHERWISE)
    method.whitening.follow(torch.randn(9, 64), torch.randn(9, 64))
    content = content_of(method, training)
    left_out = {name for name in method.state_dict() if name not in content["model"]}
    assert left_out == {
        name for name in method.state_dict() if name.startswith(TRAINING_ONLY) and not training
    }
    content |= {"epoch": 3, "classes": ["cat", "dog"]}  # which the run adds
    torch.save(content, tmp_path / "file.pth")
    checkpoint = read_checkpoint(tmp_path / "file.pth")
    loaded = _train_on(checkpoint, method.settings, classes=3, resumed=training)
    assert (checkpoint["method"], loaded.settings) == ("zse_sbir", method.settings)
    state = loaded.state_dict()
    _assert_same_tensors({name: state[name] for name in content["model"]}, content["model"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["tokenizer.vit.pos_embed", "whitening.means", "classifier.weight"]
)
def test_weights_that_are_not_finite_are_not_saved(name, value, build_small):
    method = build_small(classes=3, **TRAINED_OTHERWISE)
    content_of(method, training=True)
    with torch.no_grad():
        method.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(InputError, match=r"no longer finite and are not saved.*--resume"):
        content_of(method, training=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cannot_run_code(zipped, tmp_path, build_small, as_downloaded):
    content = {**as_downloaded(build_small()), "note": _Malicious(tmp_path / "made")}
    path = tmp_path / "file.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"holds posix\.mkdir, which is neither"):
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
        f"{tmp_path / 'file.pth'}: was trained with {name} = {getattr(method.settings, name)}, but "
        f"{value} is wanted. Leave that option out; the checkpoint brings its own."
    )


@pytest.mark.parametrize(("name", "value"), [("heads", 4), ("vit", "vit_tiny_patch16_224")])
def test_what_only_our_files_tell_is_refused_too(name, value, tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small()), tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"{name} = .*, but {value}"):
        load_model(tmp_path / "file.pth", wanted={name: value})


def test_settings_that_agree_with_the_file_are_accepted(tmp_path, build_small, checkpoint_of):
    method = build_small()
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", wanted=method.settings.of_model())
    assert loaded.settings == method.settings


def test_settings_of_training_contradict_no_file(tmp_path, build_small, checkpoint_of):
    """One command line serves train.py and test.py."""
    torch.save(checkpoint_of(build_small()), tmp_path / "file.pth")
    load_model(tmp_path / "file.pth", wanted={"epochs": 1, "batch": 3, "learning_rate": 0.5})


def test_a_setting_that_only_another_method_has_is_refused(tmp_path, build_small, checkpoint_of):
    """test.py --method other --gate 1 -l FILE, where the file holds the first method."""
    torch.save(checkpoint_of(build_small()), tmp_path / "file.pth")
    with pytest.raises(InputError, match="gate"):
        load_model(tmp_path / "file.pth", wanted={"gate": 1})


def test_heads_of_a_published_file_are_the_users(tmp_path, build_small, as_downloaded):
    torch.save(as_downloaded(build_small()), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth", wanted={**SMALL, "heads": 4})
    assert loaded.settings.heads == 4


def test_an_unknown_method_is_refused(tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small(), method="of_tomorrow"), tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"'of_tomorrow'.*zse_sbir"):
        load_model(tmp_path / "file.pth")


def test_a_newer_format_is_refused(tmp_path, build_small, checkpoint_of):
    torch.save(checkpoint_of(build_small(), format=2), tmp_path / "file.pth")
    with pytest.raises(InputError, match="has format 2; this version reads up to 1"):
        load_model(tmp_path / "file.pth")


def test_a_checkpoint_is_not_trained_as_another_method(build_small, checkpoint_of):
    class OtherSettings(TrainingSettings):
        method = "other"

    with pytest.raises(InputError, match=r"holds the method zse_sbir.*Choose --method zse_sbir\."):
        _train_on(checkpoint_of(build_small()), OtherSettings())


def test_a_backbone_is_no_checkpoint(tmp_path):
    torch.save({"pos_embedding": torch.zeros(1), "cls": torch.zeros(1)}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="--pretrained_path"):
        load_model(tmp_path / "file.pth")


@pytest.mark.parametrize("content", [{"model": 3}, {"model": {"a": 1}}, {"epoch": 3}])
def test_something_else_is_no_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(
        InputError, match="neither a checkpoint of ours nor a published one"
    ) as error:
        load_model(tmp_path / "file.pth")
    assert all(name in str(error.value) for name in METHODS)


def _train_on(checkpoint, settings, classes=None, resumed=False):
    """The method in a checkpoint, to be trained with these settings."""
    return rebuild_model(
        checkpoint, "file.pth", training=settings, classes=classes, resumed=resumed
    )


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
