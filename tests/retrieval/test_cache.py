"""Features on disk: read instead of encoded, taken up where they stop, refused where damaged."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from fakes import FakeMethod, image_list, on_disk, picture
from filelock import FileLock
from retrieval.cache import INDEX
from retrieval.features import Encoder

from retrieval import cache as cache_module
from utils.errors import InputError

NAMES = ("retrieval", "tokens")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def photos(tmp_path):
    """Nine photos, whose files exist."""
    return on_disk(image_list("photo", [0, 1, 2] * 3), tmp_path)


def encoder(method, folder, **settings):
    settings = {"workers": 0, "skip_bad": True, "keep": NAMES, "cache": folder} | settings
    return Encoder(method, settings.pop("preprocessing", picture), torch.device("cpu"), **settings)


def whole(method, folder, images, size=4, **settings):
    """Features of the list, and the numbers of the images that were encoded for it."""
    method.encoded["photo"].clear()
    with torch.inference_mode():
        made = encoder(method, folder, **settings).whole(images, size, "images")
    return made, list(method.encoded["photo"])


def assert_same(one, other):
    assert one[0] == other[0] and one[2] == other[2] and one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.equal(tensor.float(), other[1][name].float())


def only(folder):
    """The one cache there is."""
    (path,) = [path for path in folder.iterdir() if path.is_dir()]
    return path


def test_the_second_time_nothing_is_encoded(method, folder, photos):
    plain, encoded = whole(method, None, photos)
    first, again = whole(method, folder, photos)
    assert encoded == again == list(range(9))
    second, encoded = whole(method, folder, photos, size=2)
    assert encoded == []
    assert_same(plain, first)
    assert_same(plain, second)


def test_blocks_come_from_the_cache_as_they_would_be_encoded(method, folder, photos):
    whole(method, folder, photos)
    method.encoded["photo"].clear()
    with torch.inference_mode():
        kept = list(encoder(method, folder).blocks(photos, 2, "images"))
        fresh = list(encoder(method, None).blocks(photos, 2, "images"))
    assert method.encoded["photo"] == list(range(9))  # by the second
    for one, other in zip(kept, fresh, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("stopped_at", [0, 3, 4, 8])
def test_encoding_goes_on_where_it_was_stopped(method, folder, photos, stopped_at):
    def stopped(file, modality):
        if file.name.startswith(f"{stopped_at}-"):
            raise KeyboardInterrupt
        return picture(file, modality)

    with pytest.raises(KeyboardInterrupt):
        whole(method, folder, photos, size=2, preprocessing=stopped)
    done = stopped_at // 2 * 2  # whole blocks
    made, encoded = whole(method, folder, photos, size=2)
    assert encoded == list(range(done, 9))
    assert_same(made, whole(method, None, photos)[0])


@pytest.mark.parametrize("changed", [0, 5, 8])
def test_from_a_changed_file_on_images_are_encoded_again(method, folder, photos, changed, caplog):
    whole(method, folder, photos)
    photos.file(changed).write_bytes(b"another picture")
    made, encoded = whole(method, folder, photos)
    assert encoded == list(range(changed, 9)) and "have changed" in caplog.text
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, folder, photos)[1] == []


def damage(path, kind):
    index = path / INDEX
    if kind == "index is no JSON":
        index.write_text("{")
    elif kind == "no index":
        index.unlink()
    elif kind == "another format":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 0}))
    elif kind == "array cut short":
        os.truncate(path / "tokens.float16", 10)
    elif kind == "array gone":
        (path / "retrieval.float32").unlink()


@pytest.mark.parametrize(
    "kind",
    ["index is no JSON", "no index", "another format", "array cut short", "array gone"],
)
def test_what_is_damaged_is_encoded_again(method, folder, photos, kind, caplog):
    whole(method, folder, photos)
    damage(only(folder), kind)
    made, encoded = whole(method, folder, photos)
    assert encoded == list(range(9)) and "encoding again" in caplog.text
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, folder, photos)[1] == []


def test_features_of_other_weights_are_removed_and_nothing_else(method, folder, photos):
    whole(method, folder, photos)
    (folder / "my-notes").mkdir()
    old = [path for path in folder.iterdir() if path.is_dir() and path.name != "my-notes"]
    other = FakeMethod().eval()
    torch.nn.init.constant_(other.weight, 2.0)
    made, encoded = whole(other, folder, photos)
    assert encoded == list(range(9))
    assert_same(made, whole(other, None, photos)[0])
    assert not old[0].exists() and (folder / "my-notes").is_dir()


@pytest.mark.parametrize(
    "change", [{"views": "mirror"}, {"keep": NAMES[:1]}, {"precision": "fp32"}]
)
def test_other_settings_have_a_cache_of_their_own(method, folder, photos, change):
    whole(method, folder, photos)
    made, encoded = whole(method, folder, photos, **change)
    assert set(encoded) == set(range(9))
    assert_same(made, whole(method, None, photos, **change)[0])
    assert whole(method, folder, photos)[1] == whole(method, folder, photos, **change)[1] == []


def test_another_list_has_a_cache_of_its_own(method, folder, photos):
    whole(method, folder, photos)
    some = photos.select(np.array([2, 1]))
    made, encoded = whole(method, folder, some)
    assert encoded == [2, 1]
    assert_same(made, whole(method, None, some)[0])


@pytest.mark.parametrize(("precision", "exact"), [("fp16", False), ("fp32", True)])
def test_tokens_are_rounded_as_asked_and_retrieval_vectors_are_not(
    method, folder, photos, precision, exact
):
    torch.nn.init.constant_(method.weight, 1 / 3)
    plain, _ = whole(method, None, photos)
    (_, first, _), _ = whole(method, folder, photos, precision=precision)
    (_, second, _), _ = whole(method, folder, photos, precision=precision)
    for made in (first, second):
        assert torch.equal(made["retrieval"], plain[1]["retrieval"])
        assert torch.equal(made["tokens"].float(), plain[1]["tokens"]) == exact
        torch.testing.assert_close(made["tokens"].float(), plain[1]["tokens"], rtol=1e-3, atol=0)
    with torch.inference_mode():  # blocks are rounded the first time already
        new = encoder(method, folder / "new", precision=precision).blocks(photos, 9, "images")
        ((_, block, _),) = list(new)
    assert torch.equal(block["tokens"], first["tokens"].float())


def no_room(monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: type("", (), {"free": 3}))


def refused(monkeypatch):
    def reserve(file, size):
        raise OSError("quota exceeded")

    monkeypatch.setattr(cache_module, "_reserve", reserve)


@pytest.mark.parametrize("refuse", [no_room, refused])
def test_a_full_disk_is_a_warning(method, folder, photos, refuse, monkeypatch, caplog):
    refuse(monkeypatch)
    made, _ = whole(method, folder, photos)
    assert_same(made, whole(method, None, photos)[0])
    assert caplog.text.count("not kept") == 1
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_an_index_that_cannot_be_written_stops_nothing(method, folder, photos, monkeypatch, caplog):
    def refuse(path, content):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "write_json", refuse)
        made, _ = whole(method, folder, photos, size=2)
    assert "will encode again" in caplog.text
    assert caplog.text.count("no space left") == 2  # at the first block and at the end
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, folder, photos)[1] == list(range(9))


def test_a_file_system_without_locks_is_a_warning(method, folder, photos, monkeypatch, caplog):
    def refuse(self, timeout):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(cache_module.FileLock, "acquire", refuse)
    made, _ = whole(method, folder, photos)
    assert "not kept" in caplog.text and "no flock here" in caplog.text
    assert_same(made, whole(method, None, photos)[0])


def test_a_folder_that_cannot_be_made_is_a_warning(method, tmp_path, photos, caplog):
    (tmp_path / "file").touch()
    made, _ = whole(method, tmp_path / "file" / "features", photos)
    assert_same(made, whole(method, None, photos)[0])
    assert "not kept" in caplog.text


def test_where_another_program_writes_nothing_is_kept(method, folder, photos, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "SECONDS_TO_WAIT", 0)
    whole(method, folder, photos)
    (only(folder) / INDEX).unlink()  # as if it were not finished
    with FileLock(only(folder).with_suffix(".lock")):
        made, encoded = whole(method, folder, photos)
    assert encoded == list(range(9)) and "another program is writing" in caplog.text
    assert_same(made, whole(method, None, photos)[0])


def test_unreadable_images_are_remembered(method, folder):
    images = image_list("photo", [0] * 7, broken=[1, 4, 5, 6])
    fresh, _ = whole(method, None, images, size=2)
    first, _ = whole(method, folder, images, size=2)
    second, encoded = whole(method, folder, images, size=3)
    assert encoded == [] and len(second[2]) == 4
    assert_same(fresh, first)
    assert_same(fresh, second)
    with pytest.raises(InputError, match="1-broken"):
        whole(method, folder, images, skip_bad=False)


def test_what_is_kept_and_where_is_said(method, folder, photos, caplog):
    caplog.set_level(logging.INFO)
    whole(method, folder, photos)
    assert f"features go to {only(folder)}: 0.0 MB (--no_cache: none)" in caplog.text
    caplog.clear()
    whole(method, folder, photos)
    assert f"features of 9 of 9 images: from {only(folder)}" in caplog.text
