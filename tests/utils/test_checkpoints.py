"""Checkpoints: written whole or not at all, read without trusting them, loaded strictly."""

import argparse
import decimal
import io
import math
import os
import pickle
import shutil
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.checkpoints import (
    load_file,
    load_strictly,
    save_atomically,
    split_prefix,
    weights_in,
    without_prefix,
)
from utils.errors import InputError

CONTENT = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 3, "best": None}


def files(folder):
    return sorted(file.name for file in folder.iterdir())


# ---- saving


def test_what_is_saved_is_loaded(tmp_path):
    save_atomically(CONTENT, tmp_path / "last.pth")
    loaded = load_file(tmp_path / "last.pth")
    assert torch.equal(loaded["model"]["weight"], CONTENT["model"]["weight"])
    assert loaded["epoch"] == 3 and loaded["best"] is None
    assert files(tmp_path) == ["last.pth"]


def test_saving_replaces_the_former_file(tmp_path):
    save_atomically({"epoch": 1}, tmp_path / "last.pth")
    save_atomically({"epoch": 2}, tmp_path / "last.pth")
    assert load_file(tmp_path / "last.pth") == {"epoch": 2} and files(tmp_path) == ["last.pth"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError("No space left on device"), InputError),
        (RuntimeError("write() failed"), InputError),  # what torch makes of a full disk
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failure_in_the_middle_of_writing_leaves_the_former_file(
    tmp_path, monkeypatch, error, raised
):
    save_atomically({"epoch": 1}, tmp_path / "last.pth")

    def half(content, file):
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(raised):
        save_atomically({"epoch": 2}, tmp_path / "last.pth")
    assert load_file(tmp_path / "last.pth") == {"epoch": 1} and files(tmp_path) == ["last.pth"]


def test_content_that_cannot_be_saved_leaves_the_former_file(tmp_path):
    save_atomically({"epoch": 1}, tmp_path / "last.pth")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_atomically({"weights": torch.ones(1000), "function": lambda: 0}, tmp_path / "last.pth")
    assert load_file(tmp_path / "last.pth") == {"epoch": 1} and files(tmp_path) == ["last.pth"]


def test_failure_to_rename_leaves_the_former_file(tmp_path, monkeypatch):
    save_atomically({"epoch": 1}, tmp_path / "last.pth")

    def refuse(source, target):
        raise PermissionError(target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"last\.pth: cannot be written"):
        save_atomically({"epoch": 2}, tmp_path / "last.pth")
    assert load_file(tmp_path / "last.pth") == {"epoch": 1} and files(tmp_path) == ["last.pth"]


def test_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent/last\.pth: cannot be written"):
        save_atomically({"epoch": 1}, tmp_path / "absent" / "last.pth")


def test_a_folder_that_vanishes_while_its_checkpoint_is_written_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()

    def vanish(content, file):
        shutil.rmtree(folder)

    monkeypatch.setattr(torch, "save", vanish)
    with pytest.raises(InputError, match=r"run/last\.pth: cannot be written \(No such file"):
        save_atomically({"epoch": 1}, folder / "last.pth")
    assert not folder.exists()


# ---- reading


def fails_naming(file):
    with pytest.raises(InputError) as error:
        load_file(file)
    assert str(file) in str(error.value)
    return str(error.value)


def saved_bytes(zipped=True):
    stream = io.BytesIO()
    torch.save(CONTENT, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def test_missing_file_and_folder_are_named(tmp_path):
    assert "no such file" in fails_naming(tmp_path / "absent.pth")
    fails_naming(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_download_is_named(tmp_path, zipped, share):
    whole = saved_bytes(zipped)
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    assert "Is the download complete" in fails_naming(tmp_path / "cut.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # of damaged bytes
@settings(max_examples=200, deadline=None)
@given(
    zipped=st.booleans(),
    keep=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
)
def test_damaged_file_is_read_or_named(tmp_path_factory, zipped, keep, damage):
    content = bytearray(saved_bytes(zipped))
    for place, value in damage:
        content[int(place * (len(content) - 1))] = value
    file = tmp_path_factory.getbasetemp() / "damaged.pth"
    file.write_bytes(content[: round(keep * len(content))])
    try:
        assert isinstance(load_file(file), dict)
    except InputError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><head><title>Virus scan warning</title>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"\0" * 100,
        b"PK\3\4" + b"x" * 100,
        b"\x80\2}q\0.",
        b"\x80\2X\xff\0\0\0short",
        b"\x93NUMPY\1\0",
    ],
    ids=["web page", "pointer", "zeros", "zip", "pickle", "broken pickle", "numpy"],
)
def test_something_else_than_a_checkpoint_is_named(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    fails_naming(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), 5, nn.Linear(2, 2)])
def test_content_that_is_no_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    fails_naming(tmp_path / "other.pth")


class RunsCode:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    torch.save({"model": RunsCode(tmp_path / "written by the file")}, tmp_path / "evil.pth")
    fails_naming(tmp_path / "evil.pth")
    assert files(tmp_path) == ["evil.pth"]


def test_ordered_dict_is_a_dict(tmp_path):
    torch.save(OrderedDict(weight=torch.ones(1)), tmp_path / "state.pth")
    assert type(load_file(tmp_path / "state.pth")) is dict


SCALARS = {
    "map_all": np.float64(0.736),
    "precision_100": np.float32(0.5),
    "half": np.float16(0.25),
    "epoch": np.int64(7),
    "flag": np.bool_(True),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_scalars_are_read(tmp_path, zipped):
    file = tmp_path / "numpy.pth"
    torch.save(SCALARS, file, _use_new_zipfile_serialization=zipped)
    assert load_file(file) == SCALARS


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_are_read_under_the_old_and_the_new_name(tmp_path, module):
    torch.save(SCALARS, tmp_path / "ours.pth")
    here = np.float64(0).__reduce__()[0].__module__.encode()
    with (
        zipfile.ZipFile(tmp_path / "ours.pth") as ours,
        zipfile.ZipFile(tmp_path / "renamed.pth", "w") as renamed,
    ):
        for name in ours.namelist():
            content = ours.read(name)
            if name.endswith("data.pkl"):
                assert b"c" + here + b"\nscalar\n" in content
                content = content.replace(here + b"\n", module.encode() + b"\n")
            renamed.writestr(name, content)
    assert load_file(tmp_path / "renamed.pth") == SCALARS


HARMLESS = {
    "namespace": argparse.Namespace(lr=0.1, out=Path("a") / "b"),
    "simple": types.SimpleNamespace(a=1),
    "path": Path("/data") / "run",
    "array": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "single": np.array(0.7),
    "texts": np.array(["a", "bc"]),
    "none": np.array([], dtype=np.int64),
    "dtype": np.dtype("float32"),
    "torch dtype": torch.float16,
    "size": torch.Size([2, 3]),
    "ordered": OrderedDict(a=1),
    "default": defaultdict(list, a=[1]),
    "text": np.str_("a"),
    "complex": np.complex64(1 + 2j),
    "set": {1, 2},
    "bytes": b"abc",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_objects_are_read(name, zipped, tmp_path):
    content, file = {"model": {"a": torch.ones(2)}, name: HARMLESS[name]}, tmp_path / "file.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found = load_file(file)
    assert torch.equal(found["model"]["a"], torch.ones(2))
    if isinstance(HARMLESS[name], np.ndarray):
        np.testing.assert_array_equal(found[name], HARMLESS[name])
    else:
        assert str(found[name]) == str(HARMLESS[name]) or found[name] == HARMLESS[name]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (decimal.Decimal("1.5"), "decimal.Decimal"),
        (np.datetime64("2020-01-01"), ""),
        (np.array([None, object()]), ""),
    ],
    ids=["module", "class", "date", "objects"],
)
def test_other_objects_are_named_and_no_advice_is_unsafe(zipped, value, named, tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"model": value}, file, _use_new_zipfile_serialization=zipped)
    said = fails_naming(file)
    assert named in said and len(said) < 500 + len(str(file))
    for word in ("weights_only", "add_safe_globals", "\x1b", "\n", "allowlist"):
        assert word not in said


def test_terminal_codes_in_the_name_of_a_class_are_made_visible(tmp_path):
    torch.save({"model": decimal.Decimal(1)}, tmp_path / "ours.pth")
    _rewrite(tmp_path / "ours.pth", tmp_path / "evil.pth", {b"cdecimal": b"c\x1b[2J\x07"})
    said = fails_naming(tmp_path / "evil.pth")
    assert said.isprintable() and r"\x1b[2J" in said


def _rewrite(file, new, parts):
    """Replace bytes in each record of a zip file, with the right checksums."""
    with zipfile.ZipFile(file) as former, zipfile.ZipFile(new, "w") as written:
        for name in former.namelist():
            content = former.read(name)
            for part, other in parts.items():
                content = content.replace(part, other)
            written.writestr(name, content)


# ---- what is no checkpoint, or a damaged one


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\0" * 5000, "full of zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\0\0\0", "packed with gzip"),
        (b"{'epoch': 1}\n" * 100, "text file"),
        ("größer\n".encode() * 1000, "text file"),
        (b"\x80\x04\x95\0\0", "pickle that torch.save did not write"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "no checkpoint"),
    ],
)
def test_what_a_file_is_instead_is_said(content, said, suffix, tmp_path):
    (tmp_path / f"file{suffix}").write_bytes(content)
    assert said in fails_naming(tmp_path / f"file{suffix}")


def test_a_folder_is_a_folder_and_its_checkpoints_are_named(tmp_path):
    assert "is a folder" in fails_naming(tmp_path) and "holds none" in fails_naming(tmp_path)
    for name in ("last_checkpoint.pth", "best_checkpoint.pth", "run.json"):
        (tmp_path / name).touch()
    said = fails_naming(tmp_path)
    assert f"Name the file: {tmp_path / 'best_checkpoint.pth'} (also there: last_check" in said
    assert "run.json" not in said


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    assert "no regular file" in fails_naming(tmp_path / "pipe.pth")
    assert "no regular file" in fails_naming(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 4000, "a\0b"])
def test_names_that_no_file_has_are_one_sentence(name, tmp_path):
    with pytest.raises(InputError) as error:
        load_file(tmp_path / name)
    assert "cannot be opened" in str(error.value) and len(str(error.value)) < 300


def test_a_loop_of_links_is_one_sentence(tmp_path):
    (tmp_path / "a.pth").symlink_to(tmp_path / "a.pth")
    assert "Too many levels" in fails_naming(tmp_path / "a.pth")


def test_a_flipped_bit_in_a_tensor_is_noticed_which_torch_does_not(tmp_path):
    content = bytearray(saved_bytes())
    place = content.index(CONTENT["model"]["weight"].numpy().tobytes())
    content[place + 2] ^= 1
    (tmp_path / "file.pth").write_bytes(content)
    loaded = torch.load(tmp_path / "file.pth", weights_only=True)["model"]["weight"]
    assert not torch.equal(loaded, CONTENT["model"]["weight"])
    assert "the checksum of" in fails_naming(tmp_path / "file.pth")


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "file.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_file(tmp_path / "file.pth")["epoch"] == 3


def test_a_packed_file_is_read_and_a_bomb_is_not(tmp_path):
    torch.save({"a": torch.randn(100, 100), "b": b"0" * 10**7}, tmp_path / "ours.pth")
    for name, length in (("packed.pth", 10), ("bomb.pth", 10**7)):
        with zipfile.ZipFile(tmp_path / "ours.pth") as ours:
            parts = {entry: ours.read(entry) for entry in ours.namelist()}
        torch.save({"a": torch.randn(100, 100), "b": b"0" * length}, tmp_path / "new.pth")
        with zipfile.ZipFile(tmp_path / "new.pth") as ours:
            parts = {entry: ours.read(entry) for entry in ours.namelist()}
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
            for entry, content in parts.items():
                packed.writestr(entry, content)
    assert load_file(tmp_path / "packed.pth")["b"] == b"0" * 10
    assert "unpacks to" in fails_naming(tmp_path / "bomb.pth")


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["weight"], torch.ones(2))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.SAFETENSORS", "a"])
@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_what_a_file_is_follows_from_its_content(form, name, tmp_path):
    from safetensors.torch import save

    state = {"weight": torch.arange(3.0)}
    if form == "safetensors":
        (tmp_path / name).write_bytes(save(state))
    else:
        with open(tmp_path / name, "wb") as file:
            torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(load_file(tmp_path / name)["weight"], state["weight"])


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_truncated_safetensors_are_named(tmp_path, keep):
    from safetensors.torch import save

    whole = save({"weight": torch.ones(20)})
    (tmp_path / "cut.safetensors").write_bytes(whole[:keep])
    fails_naming(tmp_path / "cut.safetensors")


# ---- loading


def test_every_tensor_is_copied(tmp_path):
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_strictly(target, source.state_dict(), "file")
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, source.bias)


def test_every_fault_is_listed_and_nothing_is_copied():
    module = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1)})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {
        "a.weight": torch.zeros(3, 5),
        "a.bias": torch.zeros(3),
        "b.scale": torch.zeros(1),
        "c": torch.zeros(1),
    }
    with pytest.raises(InputError) as error:
        load_strictly(module, state, "best_checkpoint.pth")
    message = str(error.value)
    assert message.startswith("best_checkpoint.pth: does not fit")
    assert "missing: b.weight, b.bias" in message
    assert "unexpected: b.scale, c" in message
    assert "misshapen: a.weight is (3, 5) and should be (3, 2)" in message
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_scalar_does_not_pass_for_a_tensor_of_one():
    module = nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"bias is \(\) and should be \(1,\)"):
        load_strictly(module, {"weight": torch.ones(1, 1), "bias": torch.tensor(1.0)}, "file")


def test_only_names_that_may_be_absent_may_be():
    module = nn.ModuleDict({"stem": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    before = module["stem"].weight.clone()
    state = {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}
    load_strictly(module, state, "file", may_miss=["stem."])
    assert torch.equal(module["stem"].weight, before)
    assert torch.equal(module["head"].bias, torch.ones(2))
    with pytest.raises(InputError, match=r"missing: stem\.weight, stem\.bias"):
        load_strictly(module, state, "file", may_miss=["head."])


def test_half_precision_is_loaded_into_full():
    module = nn.Linear(2, 2)
    state = {name: torch.ones_like(t).half() for name, t in module.state_dict().items()}
    load_strictly(module, state, "file")
    assert module.weight.dtype == torch.float32 and (module.weight == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_numbers_of_any_kind_are_loaded(dtype):
    module = nn.Linear(2, 2)
    load_strictly(module, {n: torch.ones_like(t).to(dtype) for n, t in _state()}, "file")
    assert module.weight.dtype == torch.float32 and (module.weight == 1).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_named_and_nothing_is_copied(value, dtype):
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    state = {name: torch.ones_like(tensor).to(dtype) for name, tensor in _state()}
    state["bias"][1] = value
    with pytest.raises(InputError, match=r"^file: the tensor bias holds numbers that are not fin"):
        load_strictly(module, state, "file")
    assert torch.equal(module.weight, before)


def test_numbers_too_large_for_the_network_are_not_finite_there():
    state = {name: torch.full_like(t, 1e300, dtype=torch.float64) for name, t in _state()}
    with pytest.raises(InputError, match="the tensor weight holds"):
        load_strictly(nn.Linear(2, 2), state, "file")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8),
    ],
    ids=["meta", "sparse", "complex", "quantised"],
)
def test_tensors_of_another_make_are_named(tensor):
    with pytest.raises(InputError, match="without plain real numbers: weight"):
        load_strictly(nn.Linear(2, 2), {**dict(_state()), "weight": tensor}, "file")


@pytest.mark.parametrize("value", [5, None, "text", [1.0], np.ones(2)])
def test_what_is_no_tensor_is_named(value):
    with pytest.raises(InputError, match=r"^file: bias is .*, and should be a tensor\."):
        load_strictly(nn.Linear(2, 2), {**dict(_state()), "bias": value}, "file")


def test_long_lists_of_names_are_cut():
    module = nn.ModuleList(nn.Linear(1, 1) for _ in range(500))
    with pytest.raises(
        InputError, match=r"missing: 0\.weight, 0\.bias, 1\.weight and 997 more\."
    ) as e:
        load_strictly(module, {}, "file")
    assert len(str(e.value)) < 200


def _state():
    return nn.Linear(2, 2).state_dict().items()


# ---- prefixes and wrappers


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "net.backbone."]
)
def test_a_prefix_is_left_out(prefix):
    state = {f"{prefix}a.weight": 1, f"{prefix}a.bias": 2, "other": 3, "my_a.weight": 4}
    found, others = split_prefix(state, "a.weight", "file")
    assert (found["a.weight"], found["a.bias"]) == (1, 2)
    assert {**others, **found} == without_prefix(state, "a.weight", "file")
    assert {"other", "my_a.weight"} <= without_prefix(state, "a.weight", "file").keys()


def test_names_put_in_between_are_left_out():
    state = {"a._orig_mod.weight": 1, "a._checkpoint_wrapped_module.b._fsdp_wrapped_module.c": 2}
    assert without_prefix(state, "a.weight", "file") == {"a.weight": 1, "a.b.c": 2}


def test_a_student_and_a_teacher_are_named():
    state = {"student.a.weight": 1, "teacher.a.weight": 2}
    with pytest.raises(InputError, match=r"^file: holds several networks: student\., teacher\."):
        split_prefix(state, "a.weight", "file")
    tensors = {"a": torch.ones(1)}
    with pytest.raises(InputError, match=r"several networks: student, teacher\."):
        weights_in({"student": tensors, "teacher": tensors, "epoch": 3}, "file")


@pytest.mark.parametrize("key", ["model", "state_dict", "network", "anything"])
def test_the_weights_in_a_training_programs_file_are_found(key):
    tensors, others = {"a": torch.ones(1)}, {"epoch": 3, "optimizer": {"state": {}, "groups": []}}
    assert weights_in({**others, key: tensors}, "file") is tensors
    assert weights_in(tensors, "file") is tensors
    assert weights_in({"model_ema": tensors, "model": {"b": torch.ones(1)}}, "file") == {
        "b": torch.ones(1)
    }
