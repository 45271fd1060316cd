"""A gallery on disk: only what is new is encoded, and nothing is lost."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import FakeMethod
from filelock import FileLock
from galleries import (
    MODES,
    PHOTOS,
    SKETCHES,
    CosineMethod,
    assert_searched_alike,
    build,
    content,
    encoder_of,
    found,
    picture,
    search,
    write_photos,
)

from datasets.unlabelled import folder_images, image_list
from retrieval import building
from retrieval import encoder as encoder_module
from retrieval import store as store_module
from retrieval.evaluate import evaluate
from retrieval.gallery import GALLERY, Gallery
from retrieval.scoring import RANKERS
from utils.errors import InputError


@pytest.fixture
def method():
    return CosineMethod().eval()


@pytest.fixture(autouse=True)
def _blocks_of_four(monkeypatch):
    monkeypatch.setattr(encoder_module, "block_sizes", lambda *_, **__: (4, 4))


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    write_photos(root, [f"{'ab'[n % 2]}/{n}-photo.jpg" for n in range(PHOTOS)])
    return root


@pytest.fixture
def sketches(tmp_path) -> list[Path]:
    names = [f"{n}-sketch.png" for n in range(SKETCHES)]
    write_photos(tmp_path / "sketches", names)
    return [tmp_path / "sketches" / name for name in names]


# ---- incremental


def test_an_unchanged_folder_is_not_encoded_again(tmp_path, photos, method):
    first = build(tmp_path / "G", photos, method)
    before = content(tmp_path / "G")
    second = build(tmp_path / "G", photos, method)
    assert (first.encoded, second.encoded, second.photos) == (PHOTOS, 0, PHOTOS)
    assert len(method.encoded["photo"]) == PHOTOS
    assert content(tmp_path / "G") == before


def change_photos(photos: Path) -> None:
    """Two are removed, one is changed, one breaks, two are new."""
    (photos / "a/2-photo.jpg").unlink()
    (photos / "b/21-photo.jpg").unlink()
    (photos / "b/3-photo.jpg").write_bytes(b"changed")
    (photos / "a/4-photo.jpg").write_bytes(b"broken since")
    write_photos(photos, ["c/50-photo.jpg", "51-photo.jpg"])


def test_new_changed_and_removed_photos_give_what_a_fresh_build_gives(
    tmp_path, photos, sketches, method
):
    build(tmp_path / "G", photos, method)
    method.encoded["photo"].clear()
    change_photos(photos)
    built = build(tmp_path / "G", photos, method)
    assert sorted(method.encoded["photo"]) == [3, 50, 51]
    assert (built.photos, built.encoded, built.removed) == (PHOTOS - 1, 3, 2)
    assert len(built.broken) == 1 and "a/4-photo.jpg: unreadable" in built.broken[0]
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)
    (photos / "a/4-photo.jpg").write_bytes(b"mended")
    built = build(tmp_path / "G", photos, method)
    assert (built.photos, built.encoded, built.broken) == (PHOTOS, 1, [])


def test_rows_of_many_former_photos_are_cleared_away(tmp_path, photos, sketches, method):
    write_photos(photos, ["a/60-broken.jpg"])
    build(tmp_path / "G", photos, method)
    for number in range(0, PHOTOS - 1, 2):
        (photos / f"a/{number}-photo.jpg").unlink()
    built = build(tmp_path / "G", photos, method)
    kept = PHOTOS // 2 + 1
    assert (built.photos, built.encoded, len(built.broken)) == (kept, 0, 1)
    (vectors,) = (tmp_path / "G").glob("retrieval.*")
    (tokens,) = (tmp_path / "G").glob("tokens.*")
    assert (vectors.stat().st_size, tokens.stat().st_size) == (kept * 6 * 4, kept * 6 * 2)
    assert len(list((tmp_path / "G").glob("entries.*"))) == 1
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)
    built = build(tmp_path / "G", photos, method)
    assert (built.photos, built.encoded, len(built.broken)) == (kept, 0, 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_search_goes_on_reading_while_rows_are_cleared_away(
    tmp_path, photos, sketches, method, mode
):
    build(tmp_path / "G", photos, method)
    gallery = Gallery(tmp_path / "G", encoder_of(method))
    before = found(search(gallery, method, sketches, 9, mode))
    for number in range(0, PHOTOS - 1, 2):
        (photos / f"a/{number}-photo.jpg").unlink()
    build(tmp_path / "G", photos, method)
    assert found(search(gallery, method, sketches, 9, mode)) == before


# ---- tokens


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_gallery_gets_tokens_later(tmp_path, photos, sketches, method, kind):
    write_photos(photos, ["a/60-broken.jpg"])
    build(tmp_path / "G", photos, method, tokens=False, kind=kind)
    assert not list((tmp_path / "G").glob("tokens.*"))
    method.encoded["photo"].clear()
    built = build(tmp_path / "G", photos, method, tokens=True)
    assert (built.photos, built.encoded, len(built.broken)) == (PHOTOS, PHOTOS, 1)
    (vectors,) = (tmp_path / "G").glob("retrieval.*")
    (tokens,) = (tmp_path / "G").glob("tokens.*")
    assert (vectors.stat().st_size, tokens.stat().st_size) == (PHOTOS * 6 * 4, PHOTOS * 6 * 2)
    build(tmp_path / "fresh", photos, method, kind=kind)
    method.encoded["photo"].clear()
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)
    assert method.encoded["photo"] == []


def test_tokens_stay_where_a_later_build_does_not_name_them(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method, tokens=True)
    assert build(tmp_path / "G", photos, method, tokens=False).encoded == 0
    change_photos(photos)
    assert build(tmp_path / "G", photos, method, tokens=False).encoded == 3
    build(tmp_path / "fresh", photos, method, tokens=True)
    method.encoded["photo"].clear()
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)
    assert method.encoded["photo"] == []


def test_a_build_that_was_to_add_tokens_goes_on(tmp_path, photos, sketches, method, monkeypatch):
    build(tmp_path / "G", photos, method, tokens=False)
    before = found(search(tmp_path / "G", method, sketches, mode="rn"))
    stop_build(tmp_path / "G", photos, method, monkeypatch, at=7, killed=True)
    assert found(search(tmp_path / "G", method, sketches, mode="rn")) == before
    method.encoded["photo"].clear()
    build(tmp_path / "G", photos, method, tokens=True)
    assert 7 in method.encoded["photo"] and len(method.encoded["photo"]) < PHOTOS
    method.encoded["photo"].clear()
    assert found(search(tmp_path / "G", method, sketches, mode="rn")) == before
    assert method.encoded["photo"] == []


# ---- rows of an evaluation


def evaluated(folder, photos, sketches, method, mode="rn", **settings) -> None:
    """Score the sketches with the photos; the features of both stay in the folder."""
    queries = image_list(sketches[0].parent, [file.name for file in sketches], "sketch")
    gallery = folder_images(photos, "photo")
    evaluate(
        encoder_of(method, skip_bad=True, store=folder, **settings),
        replace(queries, target=np.zeros(len(queries), dtype=np.int64)),
        replace(gallery, target=np.zeros(len(gallery), dtype=np.int64)),
        RANKERS[mode],
    )


def assert_rows_are_those_of_a_fresh_build(tmp_path, photos, method, tokens):
    build(tmp_path / "fresh", photos, method, tokens)
    one, other = (Gallery(tmp_path / n, encoder_of(method)) for n in ("G", "fresh"))
    assert one.paths.tolist() == other.paths.tolist()
    for name in ("retrieval", "tokens") if tokens else ("retrieval",):
        assert torch.equal(one.rows[name][:], other.rows[name][:])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("mode", ["sa", "rn"])
def test_rows_are_copied_from_an_evaluation(tmp_path, photos, sketches, method, tokens, mode):
    write_photos(photos, ["a/60-broken.jpg"])
    evaluated(tmp_path / "features", photos, sketches, method, mode)
    method.encoded["photo"].clear()
    built = build(tmp_path / "G", photos, method, tokens, features=tmp_path / "features")
    copied = 0 if tokens and mode == "sa" else PHOTOS
    assert (built.photos, built.copied, len(built.broken)) == (PHOTOS, copied, 1)
    assert built.encoded == PHOTOS - copied
    assert len(method.encoded["photo"]) == PHOTOS - copied
    assert_rows_are_those_of_a_fresh_build(tmp_path, photos, method, tokens)
    again = build(tmp_path / "G", photos, method, tokens, features=tmp_path / "features")
    assert (again.encoded, again.copied) == (0, 0)


def test_rows_of_changed_and_new_photos_are_not_copied(tmp_path, photos, sketches, method):
    evaluated(tmp_path / "features", photos, sketches, method)
    change_photos(photos)
    method.encoded["photo"].clear()
    built = build(tmp_path / "G", photos, method, features=tmp_path / "features")
    assert sorted(method.encoded["photo"]) == [3, 50, 51]
    assert (built.encoded, built.copied) == (3, PHOTOS - 4)
    assert_rows_are_those_of_a_fresh_build(tmp_path, photos, method, tokens=True)


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.bfloat16}, {"views": "mirror"}, {"precision": "fp32"}, "weights", "absent"],
)
def test_rows_of_other_settings_are_not_copied(tmp_path, photos, sketches, method, other):
    evaluator = CosineMethod().eval()
    if other == "weights":
        torch.nn.init.constant_(evaluator.weight, 2)
    if other != "absent":
        settings = other if isinstance(other, dict) else {}
        evaluated(tmp_path / "features", photos, sketches, evaluator, **settings)
    built = build(tmp_path / "G", photos, method, features=tmp_path / "features")
    assert (built.encoded, built.copied) == (PHOTOS, 0)


@pytest.mark.parametrize("feature", ["retrieval", "tokens"])
def test_damaged_rows_of_an_evaluation_are_encoded_instead(
    tmp_path, photos, sketches, method, feature
):
    evaluated(tmp_path / "features", photos, sketches, method)
    method.encoded["photo"].clear()
    for file in (tmp_path / "features").glob(f"*/{feature}.*"):
        flip(file, 50)
    built = build(tmp_path / "G", photos, method, features=tmp_path / "features")
    assert (built.encoded, built.copied) == (1, PHOTOS - 1)
    assert_rows_are_those_of_a_fresh_build(tmp_path, photos, method, tokens=True)


# ---- broken, stopped, refused


def test_broken_photos_are_named_skipped_counted_and_tried_again(
    tmp_path, photos, sketches, method, caplog
):
    write_photos(photos, ["a/60-broken.jpg", "z/61-broken.jpg"])
    for encoded in (PHOTOS, 0):
        caplog.clear()
        built = build(tmp_path / "G", photos, method)
        assert built.encoded == encoded and len(built.broken) == 2
        assert "a/60-broken.jpg: unreadable" in caplog.text
    paths = search(tmp_path / "G", method, sketches)[0].photos
    assert len(paths) == PHOTOS and not any("broken" in path for path in paths)


def test_a_photo_that_could_not_be_read_is_read_once_it_can_be(tmp_path, photos, method):
    """A share of the network may have been away: the file is as it was."""

    def away(file, modality):
        if file.name.startswith("7-"):
            raise InputError(f"{file}: unreadable (away).")
        return picture(file, modality)

    assert build(tmp_path / "G", photos, method, tokens=False, levels=away).photos == PHOTOS - 1
    built = build(tmp_path / "G", photos, method, tokens=False)
    assert (built.photos, built.encoded, built.broken) == (PHOTOS, 1, [])
    assert_rows_are_those_of_a_fresh_build(tmp_path, photos, method, tokens=False)


def test_a_folder_of_broken_photos_alone_is_no_gallery(tmp_path, method):
    write_photos(tmp_path / "photos", ["1-broken.jpg", "2-broken.jpg"])
    with pytest.raises(InputError, match="none of its 2 images can be read"):
        build(tmp_path / "G", tmp_path / "photos", method)
    write_photos(tmp_path / "photos", ["3-photo.jpg"])
    built = build(tmp_path / "G", tmp_path / "photos", method)
    assert (built.photos, built.encoded, len(built.broken)) == (1, 1, 2)


def stop_build(folder, photos, method, monkeypatch, at: int, killed: bool = False) -> None:
    """Stop a build when it comes to this photo.

    killed: leave the folder as a kill leaves it, at once; else as an interrupt does.
    """
    encode, left = type(method).encode, folder.with_name("left")

    def stopped(images, modality):
        if modality == "photo" and at in images[:, 0, 0, 0].long().tolist():
            if killed:
                shutil.copytree(folder, left)
            raise KeyboardInterrupt
        return encode(method, images, modality)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(method, "encode", stopped)
        build(folder, photos, method)
    if killed:
        shutil.rmtree(folder)
        left.rename(folder)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("tail", [b"", b'1a2b3c4d {"names":["a/'])
def test_a_stopped_build_goes_on_where_it_was(
    tmp_path, photos, sketches, method, monkeypatch, killed, tail, caplog
):
    caplog.set_level("INFO")
    write_photos(photos, ["a/0-broken.jpg"])
    stop_build(tmp_path / "G", photos, method, monkeypatch, 7, killed)
    before = len(method.encoded["photo"])
    assert before and before < PHOTOS
    (entries,) = (tmp_path / "G").glob("entries.*")
    with open(entries, "ab") as file:
        file.write(tail)  # a line that was cut short
    with pytest.raises(InputError, match="not finished"):
        Gallery(tmp_path / "G", encoder_of(method))
    caplog.clear()
    built = build(tmp_path / "G", photos, method)
    done = PHOTOS - built.encoded
    assert done >= before and f"{built.encoded + 1} to encode, {done} unchanged" in caplog.text
    assert built.photos == PHOTOS and len(built.broken) == 1
    assert sorted(method.encoded["photo"]) == list(range(PHOTOS))  # each once
    sizes = [file.stat().st_size for file in (tmp_path / "G").glob("*.rows")]
    assert sorted(sizes) == [PHOTOS * 6 * 2, PHOTOS * 6 * 4]
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)


def test_photos_may_change_while_a_build_is_stopped(
    tmp_path, photos, sketches, method, monkeypatch
):
    stop_build(tmp_path / "G", photos, method, monkeypatch, at=11, killed=True)
    done = set(method.encoded["photo"])
    assert {2, 4} < done and 3 not in done and 21 not in done
    change_photos(photos)
    (photos / "a/6-photo.jpg").write_bytes(b"changed after it was encoded")
    built = build(tmp_path / "G", photos, method)
    assert (built.photos, len(built.broken)) == (PHOTOS - 1, 1)
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)


def test_a_build_that_is_stopped_twice_keeps_both_parts(tmp_path, photos, method, monkeypatch):
    for number in (20, 21):  # in the second block, in the fifth
        stop_build(tmp_path / "G", photos, method, monkeypatch, number, killed=True)
    assert build(tmp_path / "G", photos, method).photos == PHOTOS
    assert sorted(method.encoded["photo"]) == list(range(PHOTOS))


def test_a_stopped_update_leaves_the_former_gallery_to_searches(
    tmp_path, photos, sketches, method, monkeypatch
):
    build(tmp_path / "G", photos, method)
    before = found(search(tmp_path / "G", method, sketches))
    write_photos(photos, [f"c/{number}-photo.jpg" for number in range(50, 60)])
    stop_build(tmp_path / "G", photos, method, monkeypatch, at=57, killed=True)
    assert found(search(tmp_path / "G", method, sketches)) == before
    encoded = len(method.encoded["photo"])
    assert build(tmp_path / "G", photos, method).photos == PHOTOS + 10
    assert len(method.encoded["photo"]) < encoded + 10


@pytest.mark.parametrize("step", ["write_lines", "written_whole"])
def test_a_build_may_stop_while_it_clears_rows_away(
    tmp_path, photos, sketches, method, monkeypatch, step
):
    build(tmp_path / "G", photos, method)
    before = found(search(tmp_path / "G", method, sketches, mode="rn"))
    for number in range(0, PHOTOS - 1, 2):
        (photos / f"a/{number}-photo.jpg").unlink()

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module if step == "write_lines" else building, step, stopped)
        build(tmp_path / "G", photos, method)
    assert found(search(tmp_path / "G", method, sketches, mode="rn")) == before
    assert build(tmp_path / "G", photos, method).encoded == 0
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)
    assert len(list((tmp_path / "G").glob("*.rows"))) == 2


def test_rows_without_an_entry_are_written_again(tmp_path, photos, sketches, method, monkeypatch):
    stop_build(tmp_path / "G", photos, method, monkeypatch, at=7)
    (vectors,) = (tmp_path / "G").glob("retrieval.*")
    with open(vectors, "ab") as file:
        file.write(b"\xff" * 100)
    build(tmp_path / "G", photos, method)
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)


def other_method() -> CosineMethod:
    """With other weights."""
    other = CosineMethod().eval()
    torch.nn.init.constant_(other.weight, 2)
    return other


def test_what_a_build_with_another_checkpoint_has_left_is_not_used(
    tmp_path, photos, sketches, method, monkeypatch
):
    stop_build(tmp_path / "G", photos, method, monkeypatch, at=7)
    other = other_method()
    assert build(tmp_path / "G", photos, other).encoded == PHOTOS
    build(tmp_path / "fresh", photos, other)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", other, sketches)
    assert len(list((tmp_path / "G").glob("entries.*"))) == 1


def test_a_gallery_of_another_checkpoint_is_refused(tmp_path, photos, method):
    build(tmp_path / "G", photos, method)
    with pytest.raises(InputError, match=r"another checkpoint \(a.pth\)"):
        build(tmp_path / "G", photos, other_method())
    with pytest.raises(InputError, match=r"another checkpoint \(a.pth\)"):
        Gallery(tmp_path / "G", encoder_of(other_method()))


def test_other_settings_and_another_folder_of_photos_are_refused(tmp_path, photos, method):
    build(tmp_path / "G", photos, method)
    with pytest.raises(InputError, match="--amp"):
        build(tmp_path / "G", photos, method, dtype=torch.bfloat16)
    write_photos(tmp_path / "others", ["1-photo.jpg"])
    with pytest.raises(InputError, match="one folder of photos"):
        build(tmp_path / "G", tmp_path / "others", method)


def test_a_folder_of_photos_may_move(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    photos.rename(tmp_path / "moved")
    assert build(tmp_path / "G", tmp_path / "moved", method).encoded == 0
    gallery = Gallery(tmp_path / "G", encoder_of(method))
    assert gallery.root == tmp_path / "moved"


def test_a_second_writer_is_refused(tmp_path, photos, method):
    (tmp_path / "G").mkdir()
    with (
        FileLock(tmp_path / "G" / "writer.lock"),
        pytest.raises(InputError, match="another program"),
    ):
        build(tmp_path / "G", photos, method)
    assert build(tmp_path / "G", photos, method).photos == PHOTOS


def test_a_folder_with_other_files_is_left_alone(tmp_path, photos, method):
    before = sorted(photos.rglob("*"))
    with pytest.raises(InputError, match="holds other files"):
        build(photos, photos, method)
    assert sorted(photos.rglob("*")) == before
    with pytest.raises(InputError, match="is a file"):
        build(before[-1], photos, method)


def test_too_small_a_disk_is_named_before_the_work(tmp_path, photos, method, monkeypatch):
    little = SimpleNamespace(free=100)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: little)
    with pytest.raises(InputError, match=r"MB needed, .* MB free"):
        build(tmp_path / "G", photos, method)
    assert len(method.encoded["photo"]) <= 4


def test_what_was_encoded_before_the_disk_refuses_is_kept(tmp_path, photos, method, monkeypatch):
    append = store_module.append_line

    def refuse_later(file, line):
        if len(method.encoded["photo"]) > 8:
            raise OSError(28, "No space left on device")
        append(file, line)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "append_line", refuse_later)
        with pytest.raises(InputError, match=r"No space left on device.* is kept.* to go on"):
            build(tmp_path / "G", photos, method)
    assert build(tmp_path / "G", photos, method).encoded == PHOTOS - 8


# ---- damaged


def flip(file: Path, place: int) -> None:
    """Change a byte."""
    changed = bytearray(file.read_bytes())
    changed[place] ^= 0x10
    file.write_bytes(changed)


def damage(folder: Path, kind: str) -> None:
    """Damage a gallery in one of many ways."""
    part, _, how = kind.partition(" ")
    (file,) = folder.glob(f"{part}.*")
    lines = file.read_bytes().split(b"\n")
    if how == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "absent":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "byte":
        flip(file, 50)
    elif how == "header":
        flip(file, 20)
    elif how == "line":
        flip(file, len(b"\n".join(lines[:3])) + 30)
    elif how == "torn":
        file.write_bytes(b"\n".join(lines[:-2]) + b"\n" + lines[-2][:40])


ROWS = [f"{part} {how}" for part in ("retrieval", "tokens") for how in ("short", "absent", "byte")]
ENTRIES = [f"entries {how}" for how in ("header", "line", "torn", "absent", "empty")]


@pytest.mark.parametrize("kind", [*ROWS, *ENTRIES])
def test_damage_is_a_sentence_to_a_search(tmp_path, photos, sketches, method, kind):
    build(tmp_path / "G", photos, method)
    damage(tmp_path / "G", kind)
    with pytest.raises(InputError, match=r"Run retrieve\.py index again") as caught:
        search(tmp_path / "G", method, sketches, mode="rn")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [*ROWS, *ENTRIES])
@pytest.mark.parametrize("index_kind", ["exact", "ivf"])
def test_damaged_rows_are_encoded_again(tmp_path, photos, sketches, method, kind, index_kind):
    write_photos(photos, ["a/60-broken.jpg"])
    build(tmp_path / "G", photos, method, kind=index_kind)
    damage(tmp_path / "G", kind)
    method.encoded["photo"].clear()
    built = build(tmp_path / "G", photos, method)
    encoded = len(method.encoded["photo"])
    if kind.endswith("byte"):
        assert encoded == 1
    elif kind.endswith(("short", "line", "torn")):
        assert 1 <= encoded <= 4
    else:
        assert encoded == PHOTOS
    assert built.photos == PHOTOS and len(built.broken) == 1
    build(tmp_path / "fresh", photos, method, kind=index_kind)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)
    assert build(tmp_path / "G", photos, method).encoded == 0


@pytest.mark.parametrize("kind", ["retrieval short", "retrieval byte", "tokens byte"])
def test_damaged_rows_of_photos_that_have_gone_do_not_matter(
    tmp_path, photos, sketches, method, kind
):
    """Many others are gone as well, so that all rows are written anew."""
    build(tmp_path / "G", photos, method)
    damage(tmp_path / "G", kind)
    for name in [f"a/{number}-photo.jpg" for number in range(0, 22, 2)] + ["b/9-photo.jpg"]:
        (photos / name).unlink()
    built = build(tmp_path / "G", photos, method)
    assert built.photos == 11
    build(tmp_path / "fresh", photos, method)
    assert_searched_alike(tmp_path / "G", tmp_path / "fresh", method, sketches)


@pytest.mark.parametrize("text", ['{"form', "[]", "", '{"photos": []}', '{"format": 3}'], ids=repr)
def test_a_damaged_description_is_a_sentence(tmp_path, photos, method, text):
    build(tmp_path / "G", photos, method)
    (tmp_path / "G" / GALLERY).write_text(text)
    for use in (Gallery, lambda folder, encoder: build(folder, photos, encoder.method)):
        with pytest.raises(
            InputError, match=r"Remove it and run retrieve\.py index again"
        ) as caught:
            use(tmp_path / "G", encoder_of(method))
        assert "\n" not in str(caught.value)
    (tmp_path / "G" / GALLERY).unlink()
    assert build(tmp_path / "G", photos, method).encoded == 0


@pytest.mark.parametrize(("version", "kind"), [(1, "exact"), (1, "hnsw"), (99, "exact")])
def test_a_gallery_of_another_format_is_a_sentence(tmp_path, photos, method, version, kind):
    build(tmp_path / "G", photos, method)
    described = content(tmp_path / "G") | {"format": version, "index": {"kind": kind}}
    (tmp_path / "G" / GALLERY).write_text(json.dumps(described))
    before = sorted(os.listdir(tmp_path / "G"))
    for use in (Gallery, lambda folder, encoder: build(folder, photos, encoder.method)):
        with pytest.raises(InputError, match=f"has format {version}.* another folder"):
            use(tmp_path / "G", encoder_of(method))
    assert sorted(os.listdir(tmp_path / "G")) == before


def test_a_gallery_of_the_first_format_is_a_sentence(tmp_path, photos, method):
    """With the files that the first version wrote."""
    folder = tmp_path / "G"
    folder.mkdir()
    described = {
        "format": 1,
        "weights": "0" * 16,
        "computed_in": "torch.float32",
        "tokens": False,
        "generation": 0,
        "rows": 1,
        "shapes": {"retrieval": [6]},
        "photos": {"path": ["a/0-photo.jpg"], "state": [[1, 2]], "row": [0]},
        "broken": {},
        "checkpoint": "a.pth",
        "root": str(photos),
        "index": {"kind": "hnsw", "file": "index.0.hnsw", "recall": 1.0, "number": 0},
    }
    (folder / GALLERY).write_text(json.dumps(described))
    (folder / "retrieval.0.float32").write_bytes(bytes(24))
    for use in (Gallery, lambda folder, encoder: build(folder, photos, encoder.method)):
        with pytest.raises(InputError, match=r"has format 1.* another folder"):
            use(folder, encoder_of(method))
    assert len(list(folder.iterdir())) == 2


def test_no_gallery_is_a_sentence(tmp_path, method):
    with pytest.raises(InputError, match="is no gallery"):
        Gallery(tmp_path / "absent", encoder_of(method))


# ---- index


def test_an_approximate_index_is_kept_until_the_photos_change(tmp_path, photos, sketches, method):
    pytest.importorskip("faiss")
    built = build(tmp_path / "G", photos, method, kind="ivf")
    assert 0.9 <= built.recall <= 1
    first = content(tmp_path / "G")["index"]
    build(tmp_path / "G", photos, method, kind="ivf")
    assert content(tmp_path / "G")["index"] == first
    search(tmp_path / "G", method, sketches, 3)
    write_photos(photos, ["c/70-photo.jpg"])
    build(tmp_path / "G", photos, method)  # of the same kind
    second = content(tmp_path / "G")["index"]
    assert second["file"] != first["file"]
    assert [file.name for file in (tmp_path / "G").glob("index.*")] == [second["file"]]
    assert len(search(tmp_path / "G", method, sketches, 99)[0].photos) == PHOTOS + 1
    assert build(tmp_path / "G", photos, method, kind="exact").recall is None
    assert list((tmp_path / "G").glob("index.*")) == []


@pytest.mark.parametrize("how", ["damaged", "absent"])
def test_a_damaged_index_is_a_sentence_and_built_again(tmp_path, photos, sketches, method, how):
    pytest.importorskip("faiss")
    build(tmp_path / "G", photos, method, kind="ivf")
    (file,) = (tmp_path / "G").glob("index.*")
    if how == "damaged":
        file.write_bytes(b"damaged")
    else:
        file.unlink()
    with pytest.raises(InputError, match="builds it anew"):
        search(tmp_path / "G", method, sketches, 3)
    build(tmp_path / "G", photos, method, kind="ivf")
    search(tmp_path / "G", method, sketches, 3)


def test_a_method_that_compares_in_its_own_way_has_no_approximate_index(tmp_path, photos):
    with pytest.raises(InputError, match="only exact"):
        build(tmp_path / "G", photos, FakeMethod().eval(), kind="ivf")


def test_an_unknown_kind_of_index_is_a_sentence(tmp_path, photos, method):
    pytest.importorskip("faiss")
    with pytest.raises(InputError, match="hnsw"):
        build(tmp_path / "G", photos, method, kind="hnsw")
    build(tmp_path / "H", photos, method, kind="ivf")
    described = content(tmp_path / "H")
    described["index"]["kind"] = "hnsw"
    (tmp_path / "H" / GALLERY).write_text(json.dumps(described))
    for use in (Gallery, lambda folder, encoder: build(folder, photos, encoder.method)):
        with pytest.raises(InputError, match="hnsw"):
            use(tmp_path / "H", encoder_of(method))
