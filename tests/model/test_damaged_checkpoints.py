"""Checkpoints damaged at random, of ours and published: the right weights or one sentence."""

import copy
import io
import json
import struct

import least_vit  # noqa: F401
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from model import build_model, checkpoint_of, load_model
from model.zse.published import to_published
from model.zse.settings import ZSESettings
from utils.errors import InputError

CLASSES = ["cat", "dog"]
KEYS = ("format", "method", "settings", "model", "epoch", "classes")
REBUILDING = ("vit", "width", "hidden", "heads", "layers", "anchors", "downsampling", "keep_rate")
OF_ANOTHER_KIND = [
    None,
    True,
    -1,
    0,
    10**13,
    2**70,
    1.5,
    float("nan"),
    "",
    "x" * 1000,
    b"x",
    [],
    [1, None],
    [["a"]],
    {},
    {"a": 1},
    {1: 2},
    {"a": torch.ones(1)},
    torch.ones(2),
    torch.zeros(3, device="meta"),
    torch.tensor(float("nan")),
    {"a", "b"},
]


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    return build_model(ZSESettings(vit="vit_least_patch8_32")).eval()


@pytest.fixture(scope="module")
def ours(method):
    return {**checkpoint_of(method, training=False), "epoch": 7, "classes": CLASSES}


@pytest.fixture(scope="module")
def published(ours):
    return to_published({**ours, "map_all": 0.5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def load_or_refuse(path, right: dict, wanted: dict | None = None) -> str:
    """The sentence, or "" where the right weights were loaded. Anything else fails."""
    try:
        loaded, checkpoint = load_model(path, wanted or {"vit": "vit_least_patch8_32"})
    except InputError as error:
        said = str(error)
        assert said.startswith(str(path)) and said.isprintable() and said[-1] in ".?", said
        assert len(said) < 700 and "weights_only" not in said, said
        return said
    assert checkpoint["classes"] in (CLASSES, None)
    state = loaded.state_dict()
    assert state.keys() == right.keys()
    assert all(torch.equal(state[name], right[name]) for name in state)
    return ""


def saved(content, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def test_undamaged_files_load(folder, method, ours, published):
    for number, content in enumerate((ours, published)):
        for zipped in (True, False):
            path = folder / f"whole_{number}_{zipped}.pth"
            path.write_bytes(saved(content, zipped))
            assert load_or_refuse(path, method.state_dict()) == ""


# ---- keys


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_absent_is_one_sentence(key, folder, method, ours):
    path = folder / "absent.pth"
    torch.save({name: value for name, value in ours.items() if name != key}, path)
    said = load_or_refuse(path, method.state_dict())
    assert key in said or key == "format"
    assert said


@pytest.mark.parametrize("key", REBUILDING)
def test_a_setting_that_is_absent_is_one_sentence(key, folder, method, ours):
    path = folder / "absent.pth"
    settings = {name: value for name, value in ours["settings"].items() if name != key}
    torch.save({**ours, "settings": settings}, path)
    assert f"settings has no {key}" in load_or_refuse(path, method.state_dict())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("number", range(len(OF_ANOTHER_KIND)))
def test_a_key_of_another_kind_is_one_sentence(key, number, folder, method, ours):
    path, value = folder / "kind.pth", OF_ANOTHER_KIND[number]
    torch.save({**ours, key: value}, path)
    said = load_or_refuse(path, method.state_dict())
    is_epoch = key == "epoch" and (value is None or (type(value) is int and 0 <= value < 2**63))
    assert bool(said) != (is_epoch or (key == "classes" and value is None))


@pytest.mark.slow
@pytest.mark.parametrize("key", REBUILDING)
@pytest.mark.parametrize("number", range(len(OF_ANOTHER_KIND)))
def test_a_setting_of_another_kind_is_one_sentence(key, number, folder, method, ours):
    path = folder / "setting.pth"
    torch.save({**ours, "settings": {**ours["settings"], key: OF_ANOTHER_KIND[number]}}, path)
    load_or_refuse(path, method.state_dict(), {"dropout": 0.1})


@pytest.mark.parametrize("name", ["hidden", "layers"])
def test_a_size_that_no_memory_has_is_refused_before_it_is_taken(name, folder, method, ours):
    path = folder / "large.pth"
    large = {"hidden": 65536, "layers": 100}[name]
    torch.save({**ours, "settings": {**ours["settings"], name: large}}, path)
    said = load_or_refuse(path, method.state_dict(), {})
    assert "does not fit this model" in said or "GB" in said


@pytest.mark.parametrize("number", range(len(OF_ANOTHER_KIND)))
@pytest.mark.parametrize("ours_too", [True, False])
def test_a_tensor_of_another_kind_is_named(number, ours_too, folder, method, ours, published):
    content = copy.copy(ours if ours_too else published)
    name = list(content["model"])[3]
    content["model"] = {**content["model"], name: OF_ANOTHER_KIND[number]}
    torch.save(content, folder / "tensor.pth")
    assert load_or_refuse(folder / "tensor.pth", method.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("key", ["epoch", "map_all", "precision_100"])
@pytest.mark.parametrize("number", range(len(OF_ANOTHER_KIND)))
def test_what_a_published_file_tells_of_itself_does_not_matter(
    key, number, folder, method, published
):
    torch.save({**published, key: OF_ANOTHER_KIND[number]}, folder / "told.pth")
    assert load_or_refuse(folder / "told.pth", method.state_dict()) == ""


# ---- bytes


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    which=st.booleans(),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3),
    cut=st.booleans(),
)
def test_flipped_bits_and_cut_files(which, keep, flips, cut, folder, method, ours, published):
    content = bytearray(saved(ours if which else published))
    for place, bit in flips:
        content[int(place * (len(content) - 1))] ^= 1 << bit
    if cut:
        content = content[: int(keep * len(content))]
    (folder / "bits.pth").write_bytes(content)
    load_or_refuse(folder / "bits.pth", method.state_dict())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_changed_byte_of_an_old_file(place, value, folder, ours):
    """Those from before torch 1.6 have no checksums: other numbers cannot be noticed."""
    content = bytearray(saved(ours, zipped=False))
    content[int(place * (len(content) - 1))] = value
    (folder / "old.pth").write_bytes(content)
    try:
        loaded, _ = load_model(folder / "old.pth")
        assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
    except InputError as error:
        assert str(error).startswith(str(folder / "old.pth"))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(0, 2**64 - 1), place=st.floats(0, 1), value=st.integers(0, 255))
def test_safetensors_with_other_sizes(size, place, value, folder, method, published):
    whole = save_safetensors({n: t.contiguous().clone() for n, t in published["model"].items()})
    path = folder / "file.safetensors"
    path.write_bytes(struct.pack("<Q", size) + whole[8:])
    load_or_refuse(path, method.state_dict())
    header = struct.unpack("<Q", whole[:8])[0]
    content = bytearray(whole)
    content[int(place * (header + 7))] = value
    path.write_bytes(content)
    load_or_refuse(path, method.state_dict())
    path.write_bytes(whole)
    assert load_or_refuse(path, method.state_dict()) == ""


FOREIGN = {
    "text": b"epoch 3",
    "json": json.dumps({"format": 1}).encode(),
    "list": saved([1, 2]),
    "tensor": saved(torch.ones(3)),
    "empty dict": saved({}),
    "optimizer": saved({"state": {}, "param_groups": []}),
    "numbers": saved({1: 2, None: torch.ones(1)}),
    "nested": saved({"model": {"model": {"a": torch.ones(1)}}}),
    "names": saved({"model": {1: torch.ones(1)}}),
    "deep": b"\x80\x02" + b"]" * 10_000 + b".",
    "itself": saved({"model": {"sa.model.cls": torch.ones(1)}}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_one_sentence(name, folder, method):
    (folder / "other.pth").write_bytes(FOREIGN[name])
    assert load_or_refuse(folder / "other.pth", method.state_dict())


def test_a_structure_that_holds_itself_is_one_sentence(folder, method, ours):
    content = {**ours}
    content["settings"] = {"vit": content}
    torch.save(content, folder / "loop.pth")
    assert load_or_refuse(folder / "loop.pth", method.state_dict())
    deep: list = []
    for _ in range(400):
        deep = [deep]
    torch.save({**ours, "classes": deep}, folder / "deep.pth")
    assert load_or_refuse(folder / "deep.pth", method.state_dict())
