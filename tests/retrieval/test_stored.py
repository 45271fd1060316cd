"""Features on disk: read instead of encoded, gone on with, encoded again where damaged."""

import logging
import os

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, FakeMethod, image_list, on_disk, picture
from filelock import FileLock

from retrieval import store as store_module
from retrieval import stored as stored_module
from utils.errors import InputError

NAMES = ("retrieval", "tokens")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def photos(tmp_path):
    """Nine photos, whose files exist."""
    return on_disk(image_list("photo", [0, 1, 2] * 3), tmp_path)


def encoder(method, folder, levels=picture, **settings):
    settings = {"skip_bad": True, "store": folder} | settings
    return FakeEncoder(method, levels=levels, **settings)


def whole(method, folder, images, size=4, names=NAMES, **settings):
    """Features of the list, and the numbers of the images that were encoded for it."""
    method.encoded["photo"].clear()
    with torch.inference_mode():
        made = encoder(method, folder, **settings).whole(images, names, size, "images")
    return made, list(method.encoded["photo"])


def assert_same(one, other):
    assert one[0] == other[0] and one[2] == other[2] and one[1].keys() == other[1].keys()
    for name, rows in one[1].items():
        assert torch.equal(rows[:].float(), other[1][name][:].float())


def only(folder):
    """The one store there is."""
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


def test_blocks_come_from_the_store_as_they_would_be_encoded(method, folder, photos):
    whole(method, folder, photos)
    method.encoded["photo"].clear()
    with torch.inference_mode():
        kept = list(encoder(method, folder).blocks(photos, NAMES, 2, "images"))
        fresh = list(encoder(method, None).blocks(photos, NAMES, 2, "images"))
    assert method.encoded["photo"] == list(range(9))  # by the second
    for one, other in zip(kept, fresh, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_a_file_that_is_listed_twice_has_its_rows_at_both_places(method, folder, photos, size):
    twice = photos.select(np.array([0, 1, 0, 2, 3, 2, 2, 1, 4]))
    plain, _ = whole(method, None, twice, size=size)
    for encoded in (9, 0):  # the second time from the store
        made, numbers = whole(method, folder, twice, size=size)
        assert len(numbers) == encoded
        assert_same(made, plain)


def test_an_unreadable_file_is_tried_again(method, folder, photos):
    def away(file, modality):
        if file.name.startswith("3-"):
            raise InputError(f"{file}: unreadable (away).")
        return picture(file, modality)

    (kept, _, faults), _ = whole(method, folder, photos, levels=away)
    assert 3 not in kept and list(faults) == [3]
    made, encoded = whole(method, folder, photos)
    assert encoded == [3]
    assert_same(made, whole(method, None, photos)[0])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_blocks_of_what_is_stored_and_what_is_unreadable(method, folder, photos, size):
    def away(file, modality):
        if file.name.startswith(("3-", "4-")):
            raise InputError(f"{file}: unreadable (away).")
        return picture(file, modality)

    with torch.inference_mode():
        fresh = list(encoder(method, None, away).blocks(photos, NAMES, size, "images"))
        whole(method, folder, photos, levels=away)
        kept = list(encoder(method, folder, away).blocks(photos, NAMES, size, "images"))
    for one, other in zip(kept, fresh, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("stopped_at", [0, 3, 4, 8])
def test_encoding_goes_on_where_it_was_stopped(method, folder, photos, stopped_at):
    def stopped(file, modality):
        if file.name.startswith(f"{stopped_at}-"):
            raise KeyboardInterrupt
        return picture(file, modality)

    with pytest.raises(KeyboardInterrupt):
        whole(method, folder, photos, size=2, levels=stopped)
    done = stopped_at // 2 * 2  # whole blocks
    made, encoded = whole(method, folder, photos, size=2)
    assert encoded == list(range(done, 9))
    assert_same(made, whole(method, None, photos)[0])


@pytest.mark.parametrize("changed", [0, 5, 8])
def test_a_changed_file_alone_is_encoded_again(method, folder, photos, changed):
    whole(method, folder, photos)
    photos.file(changed).write_bytes(b"another picture")
    made, encoded = whole(method, folder, photos)
    assert encoded == [changed]
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, folder, photos)[1] == []


@pytest.mark.parametrize("modality", ["photo", "sketch"])
def test_another_order_and_another_part_encode_what_is_missing(method, folder, tmp_path, modality):
    images = on_disk(image_list(modality, [0, 1, 2] * 3), tmp_path)
    some, others = images.select(np.array([7, 2, 4])), images.select(np.array([4, 8, 2, 0]))
    for part, missing in ((some, [7, 2, 4]), (others, [8, 0]), (images, [1, 3, 5, 6])):
        method.encoded[modality].clear()
        made, _ = whole(method, folder, part, size=3)
        assert method.encoded[modality] == missing
        assert_same(made, whole(method, None, part)[0])


def test_vectors_are_there_once_pairs_were_scored_and_tokens_are_encoded_once_more(
    method, folder, tmp_path, photos
):
    whole(method, folder, photos)
    vectors, encoded = whole(method, folder, photos, names=NAMES[:1])
    assert encoded == []
    assert_same(vectors, whole(method, None, photos, names=NAMES[:1])[0])
    other = tmp_path / "other"
    assert whole(method, other, photos, names=NAMES[:1])[1] == list(range(9))
    made, encoded = whole(method, other, photos)
    assert encoded == list(range(9))
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, other, photos)[1] == []


def damage(path, kind):
    entries = path / "entries.0.jsonl"
    if kind == "entries are no JSON":
        entries.write_text("{")
    elif kind == "no entries":
        entries.unlink()
    elif kind == "another header":
        entries.write_bytes(entries.read_bytes().replace(b'"format":3', b'"format":4', 1))
    elif kind == "rows cut short":
        os.truncate(path / "tokens.0.rows", 10)
    elif kind == "rows gone":
        (path / "retrieval.0.rows").unlink()


@pytest.mark.parametrize(
    "kind",
    ["entries are no JSON", "no entries", "another header", "rows cut short", "rows gone"],
)
def test_damaged_parts_are_encoded_again(method, folder, photos, kind, caplog):
    whole(method, folder, photos)
    damage(only(folder), kind)
    made, encoded = whole(method, folder, photos)
    assert encoded == list(range(9))
    assert ("parts are damaged" in caplog.text) == (kind != "no entries")
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, folder, photos)[1] == []


@pytest.mark.parametrize("feature", NAMES)
def test_a_changed_row_is_a_sentence(method, folder, photos, feature):
    (_, rows, _), _ = whole(method, folder, photos)
    file = only(folder) / f"{feature}.0.rows"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{feature}.0.rows: the row of .*8-photo.png is damaged"):
        whole(method, folder, photos)[0][1][feature][:]
    assert torch.equal(rows["tokens"][:4], whole(method, None, photos)[0][1]["tokens"][:4])


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
    "change", [{"views": "mirror"}, {"dtype": torch.bfloat16}, {"precision": "fp32"}]
)
def test_other_settings_have_a_store_of_their_own(method, folder, photos, change):
    whole(method, folder, photos)
    made, encoded = whole(method, folder, photos, **change)
    assert set(encoded) == set(range(9))
    assert_same(made, whole(method, None, photos, **change)[0])
    assert whole(method, folder, photos)[1] == whole(method, folder, photos, **change)[1] == []


@pytest.mark.parametrize(("precision", "exact"), [("fp16", False), ("fp32", True)])
def test_tokens_are_rounded_and_retrieval_vectors_are_not(method, folder, photos, precision, exact):
    torch.nn.init.constant_(method.weight, 1 / 3)
    plain, _ = whole(method, None, photos)
    (_, first, _), _ = whole(method, folder, photos, precision=precision)
    (_, second, _), _ = whole(method, folder, photos, precision=precision)
    for made in (first, second):
        assert torch.equal(made["retrieval"], plain[1]["retrieval"])
        tokens = made["tokens"][:].float()
        assert torch.equal(tokens, plain[1]["tokens"]) == exact
        torch.testing.assert_close(tokens, plain[1]["tokens"], rtol=1e-3, atol=0)
    with torch.inference_mode():  # blocks are rounded the first time already
        new = encoder(method, folder / "new", precision=precision)
        ((_, block, _),) = list(new.blocks(photos, NAMES, 9, "images"))
    assert torch.equal(block["tokens"], first["tokens"][:].float())


def no_room(monkeypatch):
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: type("", (), {"free": 3}))


def refused(monkeypatch):
    def reserve(file, first, size):
        raise OSError("quota exceeded")

    monkeypatch.setattr(store_module, "reserve", reserve)


@pytest.mark.parametrize("refuse", [no_room, refused])
def test_a_full_disk_is_a_warning(method, folder, photos, refuse, monkeypatch, caplog):
    refuse(monkeypatch)
    made, _ = whole(method, folder, photos)
    assert_same(made, whole(method, None, photos)[0])
    assert caplog.text.count("not kept") == 1
    monkeypatch.undo()
    assert whole(method, folder, photos)[1] == list(range(9))


@pytest.mark.parametrize("refuse", [no_room, refused])
def test_what_was_kept_before_the_disk_was_full_is_used(
    method, folder, photos, refuse, monkeypatch
):
    whole(method, folder, photos.select(np.arange(5)))
    refuse(monkeypatch)
    made, encoded = whole(method, folder, photos, size=2)
    assert encoded == [5, 6, 7, 8]
    assert_same(made, whole(method, None, photos)[0])
    with torch.inference_mode():
        blocks = list(encoder(method, folder).blocks(photos, NAMES, 4, "images"))
    found = torch.cat([block.features["tokens"] for block in blocks])
    assert torch.equal(found, whole(method, None, photos)[0][1]["tokens"])


def test_a_disk_that_refuses_later_stops_nothing(method, folder, photos, monkeypatch, caplog):
    append, lines = store_module.append_line, []

    def refuse(file, line):
        lines.append(line)
        if len(lines) > 2:  # a header and a block
            raise OSError("no space left")
        append(file, line)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "append_line", refuse)
        made, _ = whole(method, folder, photos, size=2)
    assert caplog.text.count("no space left") == 1
    assert_same(made, whole(method, None, photos)[0])
    assert whole(method, folder, photos)[1] == list(range(2, 9))


def test_a_file_system_without_locks_is_a_warning(method, folder, photos, monkeypatch, caplog):
    def refuse(self, timeout):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(store_module.FileLock, "acquire", refuse)
    made, _ = whole(method, folder, photos)
    assert "not kept" in caplog.text and "the file system has no locks" in caplog.text
    assert_same(made, whole(method, None, photos)[0])


def test_a_folder_that_cannot_be_made_is_a_warning(method, tmp_path, photos, caplog):
    (tmp_path / "file").touch()
    made, _ = whole(method, tmp_path / "file" / "features", photos)
    assert_same(made, whole(method, None, photos)[0])
    assert "not kept" in caplog.text


def test_where_another_program_writes_nothing_is_kept(method, folder, photos, monkeypatch, caplog):
    monkeypatch.setattr(stored_module, "SECONDS_TO_WAIT", 0)
    whole(method, folder, photos.select(np.arange(4)))
    with FileLock(only(folder) / "writer.lock"):
        made, encoded = whole(method, folder, photos)
    assert encoded == [4, 5, 6, 7, 8] and "another program is writing" in caplog.text
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


def test_what_is_kept_and_where_is_logged(method, folder, photos, caplog):
    caplog.set_level(logging.INFO)
    whole(method, folder, photos)
    assert f"features go to {only(folder)}: 0.0 MB (--no_cache: none)" in caplog.text
    caplog.clear()
    whole(method, folder, photos)
    assert f"features of 9 of 9 images: from {only(folder)}" in caplog.text
