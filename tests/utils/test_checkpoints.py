"""Checkpoints: written whole or not at all, read without trusting them, loaded strictly."""

import io
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.checkpoints import load_file, load_strictly, plain_state, save_atomically
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


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["weight"], torch.ones(2))


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


def test_prefix_of_data_parallel_is_removed_once():
    state = {"module.module.weight": 1, "bias": 2, "my_module.bias": 3}
    assert plain_state(state) == {"module.weight": 1, "bias": 2, "my_module.bias": 3}
