"""A gallery on disk: only what is new is encoded, nothing is lost, and it ranks as a test does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeMethod, picture
from filelock import FileLock
from retrieval.features import Encoder
from retrieval.rows import GALLERY, JOURNAL, LOCK

from datasets.unlabelled import folder_images, image_list
from model.method import Method
from retrieval import building
from retrieval.building import build_gallery
from retrieval.evaluate import evaluate
from retrieval.gallery import Gallery
from retrieval.scoring import MODES
from utils.errors import InputError

CPU = torch.device("cpu")
PHOTOS, SKETCHES = 23, 7
BOTH = ("retrieval", "tokens")


class CosineMethod(FakeMethod):
    """The fake, compared as methods are by default."""

    similarity = Method.similarity


@pytest.fixture
def method():
    return CosineMethod().eval()


@pytest.fixture(autouse=True)
def _blocks_of_four(monkeypatch):
    monkeypatch.setattr(building, "block_sizes", lambda *_, **__: (4, 4))


def encoder_of(method, keep=BOTH, **settings) -> Encoder:
    settings = {"device": CPU, "workers": 0, "skip_bad": True, "keep": keep} | settings
    return Encoder(method, picture, **settings)


def write_photos(root: Path, names) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"photo " + name.encode())


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    write_photos(root, [f"{'ab'[n % 2]}/{n}-photo.jpg" for n in range(PHOTOS)])
    return root


@pytest.fixture
def sketches(tmp_path):
    names = [f"{n}-sketch.png" for n in range(SKETCHES)]
    write_photos(tmp_path / "sketches", names)
    return image_list(tmp_path / "sketches", names, "sketch")


def build(folder, photos, method, keep=BOTH, kind=None, **settings):
    encoder = encoder_of(method, keep, **settings)
    return build_gallery(
        folder, folder_images(photos, "photo"), encoder, checkpoint="a.pth", kind=kind
    )


def ask(folder, method, sketches, k=PHOTOS, mode="sa", **settings):
    answers, bad = Gallery(folder, encoder_of(method), image_list).search(
        sketches, k, mode, **settings
    )
    assert bad == []
    return answers


def found(answers) -> list:
    """Paths and scores; nan is not equal to itself, so scores are as text."""
    return [(answer.photos, [f"{score:.6f}" for score in answer.scores]) for answer in answers]


def content(folder: Path) -> dict:
    return json.loads((folder / GALLERY).read_text())


# ---- search


@pytest.mark.parametrize("keep", [("retrieval",), BOTH])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method_class", [FakeMethod, CosineMethod])
def test_ranks_as_an_evaluation_does(tmp_path, photos, sketches, keep, mode, method_class):
    method = method_class().eval()
    build(tmp_path / "G", photos, method, keep)
    evaluation = evaluate(
        method,
        replace(sketches, target=np.zeros(SKETCHES, dtype=np.int64)),
        replace(folder_images(photos, "photo"), target=np.zeros(PHOTOS, dtype=np.int64)),
        picture,
        mode=mode,
        shortlist=5,
        device=CPU,
    )
    answers = ask(tmp_path / "G", method, sketches, mode=mode, shortlist=5, at_a_time=3)
    assert [answer.sketch for answer in answers] == list(range(SKETCHES))
    for answer, ranking, scores in zip(
        answers, evaluation.rankings, evaluation.similarities, strict=True
    ):
        assert answer.photos == evaluation.gallery.path[ranking].tolist()
        np.testing.assert_allclose(answer.scores, scores, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 4, PHOTOS, 10 * PHOTOS])
def test_the_first_k_are_the_first_of_all(tmp_path, photos, sketches, method, mode, k):
    build(tmp_path / "G", photos, method)
    every = found(ask(tmp_path / "G", method, sketches, mode=mode, shortlist=6))
    some = found(ask(tmp_path / "G", method, sketches, k, mode, shortlist=6))
    assert some == [(paths[:k], scores[:k]) for paths, scores in every]


def test_only_photos_of_the_shortlist_are_encoded_where_tokens_are_not_kept(
    tmp_path, photos, sketches, method
):
    build(tmp_path / "G", photos, method, ("retrieval",))
    method.encoded["photo"].clear()
    answers = ask(tmp_path / "G", method, sketches, 5, "rerank", shortlist=2)
    wanted = {int(Path(p).name.split("-")[0]) for answer in answers for p in answer.photos[:2]}
    assert sorted(method.encoded["photo"]) == sorted(wanted)


def test_kept_tokens_need_no_photo(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    method.encoded["photo"].clear()
    ask(tmp_path / "G", method, sketches, 5, "rn")
    assert method.encoded["photo"] == []


def test_a_photo_that_cannot_be_read_any_more_is_named(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method, ("retrieval",))

    def gone(file, modality):
        if modality == "photo":
            raise InputError(f"{file}: no such file.")
        return picture(file, modality)

    encoder = replace(encoder_of(method), preprocessing=gone)
    with pytest.raises(InputError, match=r"photo.jpg: no such file.*retrieve.py index"):
        Gallery(tmp_path / "G", encoder, image_list).search(sketches, 3, "rerank")


def test_unreadable_sketches_are_told_and_the_others_answered(tmp_path, photos, method):
    build(tmp_path / "G", photos, method)
    mixed = image_list(tmp_path, ["0-sketch.png", "1-broken.png", "2-sketch.png"], "sketch")
    gallery = Gallery(tmp_path / "G", encoder_of(method), image_list)
    answers, bad = gallery.search(mixed, 3)
    assert [answer.sketch for answer in answers] == [0, 2]
    assert len(bad) == 1 and "1-broken.png" in bad[0] and "None" not in bad[0]


def test_milliseconds_are_of_the_block_shared(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    times = [answer.milliseconds for answer in ask(tmp_path / "G", method, sketches, at_a_time=7)]
    assert all(time == times[0] for time in times)
    assert set(times[0]) == {"encode", "compare"} and min(times[0].values()) >= 0


# ---- incremental


def test_an_unchanged_folder_is_not_encoded_again(tmp_path, photos, method):
    first = build(tmp_path / "G", photos, method)
    before = content(tmp_path / "G")
    second = build(tmp_path / "G", photos, method)
    assert (first.encoded, second.encoded, second.photos) == (PHOTOS, 0, PHOTOS)
    assert len(method.encoded["photo"]) == PHOTOS
    assert content(tmp_path / "G") == before


def test_new_changed_and_removed_photos_give_what_a_fresh_build_gives(
    tmp_path, photos, sketches, method
):
    build(tmp_path / "G", photos, method)
    method.encoded["photo"].clear()
    (photos / "a/2-photo.jpg").unlink()
    (photos / "b/3-photo.jpg").write_bytes(b"changed")
    write_photos(photos, ["c/50-photo.jpg", "51-photo.jpg"])
    built = build(tmp_path / "G", photos, method)
    assert sorted(method.encoded["photo"]) == [3, 50, 51]
    assert (built.photos, built.encoded, built.removed) == (PHOTOS + 1, 3, 1)
    build(tmp_path / "fresh", photos, method)
    for mode in MODES:
        updated, fresh = (
            found(ask(tmp_path / name, method, sketches, 99, mode)) for name in ("G", "fresh")
        )
        assert updated == fresh


def test_rows_of_many_former_photos_are_cleared_away(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    for number in range(0, PHOTOS - 1, 2):
        (photos / f"a/{number}-photo.jpg").unlink()
    built = build(tmp_path / "G", photos, method)
    kept = PHOTOS // 2 + 1
    assert (built.photos, built.encoded) == (kept, 0)
    (vectors,) = (tmp_path / "G").glob("retrieval.*")
    (tokens,) = (tmp_path / "G").glob("tokens.*")
    assert (vectors.stat().st_size, tokens.stat().st_size) == (kept * 6 * 4, kept * 6 * 2)
    build(tmp_path / "fresh", photos, method)
    for mode in MODES:
        updated, fresh = (
            found(ask(tmp_path / name, method, sketches, 99, mode)) for name in ("G", "fresh")
        )
        assert updated == fresh


def test_a_search_goes_on_reading_while_rows_are_cleared_away(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    gallery = Gallery(tmp_path / "G", encoder_of(method), image_list)
    before = found(gallery.search(sketches, 9, "rn")[0])
    for number in range(0, PHOTOS - 1, 2):
        (photos / f"a/{number}-photo.jpg").unlink()
    build(tmp_path / "G", photos, method)
    assert found(gallery.search(sketches, 9, "rn")[0]) == before


# ---- broken, stopped, refused


def test_broken_photos_are_named_skipped_counted_and_not_tried_again(
    tmp_path, photos, sketches, method, caplog
):
    write_photos(photos, ["a/60-broken.jpg", "z/61-broken.jpg"])
    for encoded in (PHOTOS + 2, 0):
        caplog.clear()
        built = build(tmp_path / "G", photos, method)
        assert built.encoded == encoded and len(built.broken) == 2
        assert "a/60-broken.jpg: unreadable" in caplog.text
    paths = ask(tmp_path / "G", method, sketches)[0].photos
    assert len(paths) == PHOTOS and not any("broken" in path for path in paths)


def test_a_folder_of_broken_photos_alone_is_no_gallery(tmp_path, method):
    write_photos(tmp_path / "photos", ["1-broken.jpg", "2-broken.jpg"])
    with pytest.raises(InputError, match="none of its 2 images can be read"):
        build(tmp_path / "G", tmp_path / "photos", method)


def stop_at(monkeypatch, method, number: int) -> None:
    """Encoding ends as a kill would end it, when it comes to this photo."""
    encode = type(method).encode

    def killed(images, modality):
        if modality == "photo" and number in images[:, 0, 0, 0].long().tolist():
            raise KeyboardInterrupt
        return encode(method, images, modality)

    monkeypatch.setattr(method, "encode", killed)


@pytest.mark.parametrize("tail", ["", '{"shapes": {"retr'])
def test_a_killed_build_goes_on_where_it_was(
    tmp_path, photos, sketches, method, monkeypatch, tail, caplog
):
    write_photos(photos, ["a/0-broken.jpg"])
    caplog.set_level("INFO")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, method, 7)
        build(tmp_path / "G", photos, method)
    before = len(method.encoded["photo"])
    assert before and before < PHOTOS
    with open(tmp_path / "G" / JOURNAL, "a") as journal:
        journal.write(tail)  # a line that was cut short
    with pytest.raises(InputError, match="not finished"):
        Gallery(tmp_path / "G", encoder_of(method), image_list)
    built = build(tmp_path / "G", photos, method)
    assert "going on" in caplog.text
    assert built.photos == PHOTOS and len(built.broken) == 1
    assert sorted(method.encoded["photo"]) == list(range(PHOTOS))  # each once
    assert not (tmp_path / "G" / JOURNAL).exists()
    build(tmp_path / "fresh", photos, method)
    for mode in MODES:
        resumed, fresh = (
            found(ask(tmp_path / name, method, sketches, mode=mode)) for name in ("G", "fresh")
        )
        assert resumed == fresh


def test_a_build_that_is_killed_twice_keeps_both_parts(tmp_path, photos, method, monkeypatch):
    for number in (20, 21):  # in the second block, in the fifth
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, method, number)
            build(tmp_path / "G", photos, method)
    assert build(tmp_path / "G", photos, method).photos == PHOTOS
    assert sorted(method.encoded["photo"]) == list(range(PHOTOS))


def test_a_killed_update_leaves_the_former_gallery_to_searches(
    tmp_path, photos, sketches, method, monkeypatch
):
    build(tmp_path / "G", photos, method)
    before = found(ask(tmp_path / "G", method, sketches))
    write_photos(photos, [f"c/{number}-photo.jpg" for number in range(50, 60)])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, method, 57)
        build(tmp_path / "G", photos, method)
    assert found(ask(tmp_path / "G", method, sketches)) == before
    encoded = len(method.encoded["photo"])
    assert build(tmp_path / "G", photos, method).photos == PHOTOS + 10
    assert len(method.encoded["photo"]) < encoded + 10


def test_rows_without_a_word_of_whose_they_are_are_written_again(
    tmp_path, photos, sketches, method, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, method, 7)
        build(tmp_path / "G", photos, method)
    (vectors,) = (tmp_path / "G").glob("retrieval.*")
    with open(vectors, "ab") as file:
        file.write(b"\xff" * 100)
    build(tmp_path / "G", photos, method)
    build(tmp_path / "fresh", photos, method)
    resumed, fresh = (found(ask(tmp_path / name, method, sketches)) for name in ("G", "fresh"))
    assert resumed == fresh


def test_what_another_checkpoint_has_left_is_not_taken_up(tmp_path, photos, method, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, method, 7)
        build(tmp_path / "G", photos, method)
    other = CosineMethod().eval()
    torch.nn.init.constant_(other.weight, 2)
    assert build(tmp_path / "G", photos, other).encoded == PHOTOS


def test_a_gallery_of_another_checkpoint_is_refused(tmp_path, photos, method):
    build(tmp_path / "G", photos, method)
    other = CosineMethod().eval()
    torch.nn.init.constant_(other.weight, 2)
    with pytest.raises(InputError, match=r"another checkpoint \(a.pth\)"):
        build(tmp_path / "G", photos, other)
    with pytest.raises(InputError, match=r"another checkpoint \(a.pth\)"):
        Gallery(tmp_path / "G", encoder_of(other), image_list)


def test_other_settings_and_another_folder_of_photos_are_refused(tmp_path, photos, method):
    build(tmp_path / "G", photos, method)
    with pytest.raises(InputError, match="--tokens"):
        build(tmp_path / "G", photos, method, ("retrieval",))
    with pytest.raises(InputError, match="--amp"):
        build(tmp_path / "G", photos, method, dtype=torch.bfloat16)
    write_photos(tmp_path / "others", ["1-photo.jpg"])
    with pytest.raises(InputError, match="one folder of photos"):
        build(tmp_path / "G", tmp_path / "others", method)


def test_a_folder_of_photos_may_move(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    photos.rename(tmp_path / "moved")
    assert build(tmp_path / "G", tmp_path / "moved", method).encoded == 0
    gallery = Gallery(tmp_path / "G", encoder_of(method), image_list)
    assert gallery.root == tmp_path / "moved"


def test_a_second_writer_is_refused(tmp_path, photos, method):
    (tmp_path / "G").mkdir()
    with FileLock(tmp_path / "G" / LOCK), pytest.raises(InputError, match="another program"):
        build(tmp_path / "G", photos, method)
    assert build(tmp_path / "G", photos, method).photos == PHOTOS


def test_a_folder_with_other_files_is_left_alone(tmp_path, photos, method):
    with pytest.raises(InputError, match="holds other files"):
        build(photos, photos, method)
    assert len(list(photos.rglob("*.jpg"))) == PHOTOS
    assert not list(photos.glob("*.json*"))


def test_too_small_a_disk_is_told_before_the_work(tmp_path, photos, method, monkeypatch):
    monkeypatch.setattr("retrieval.rows.RowWriter.free_bytes", lambda self: 100)
    with pytest.raises(InputError, match=r"are needed and .* free"):
        build(tmp_path / "G", photos, method)
    assert len(method.encoded["photo"]) <= 4


@pytest.mark.parametrize("damage", ["short", "absent", "json", "format"])
def test_a_damaged_gallery_is_a_sentence(tmp_path, photos, method, damage):
    build(tmp_path / "G", photos, method)
    (vectors,) = (tmp_path / "G").glob("retrieval.*")
    if damage == "short":
        vectors.write_bytes(vectors.read_bytes()[:-1])
    elif damage == "absent":
        vectors.unlink()
    elif damage == "json":
        (tmp_path / "G" / GALLERY).write_text('{"form')
    else:
        (tmp_path / "G" / GALLERY).write_text(json.dumps(content(tmp_path / "G") | {"format": 99}))
    with pytest.raises(InputError, match=r"again|incomplete"):
        Gallery(tmp_path / "G", encoder_of(method), image_list)


def test_no_gallery_is_a_sentence(tmp_path, method):
    with pytest.raises(InputError, match="is no gallery"):
        Gallery(tmp_path / "absent", encoder_of(method), image_list)


# ---- index


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_is_kept_until_the_photos_change(
    tmp_path, photos, sketches, method, kind
):
    pytest.importorskip("faiss")
    built = build(tmp_path / "G", photos, method, kind=kind)
    assert 0.9 <= built.recall <= 1
    first = content(tmp_path / "G")["index"]
    build(tmp_path / "G", photos, method, kind=kind)
    assert content(tmp_path / "G")["index"] == first
    ask(tmp_path / "G", method, sketches, 3)
    write_photos(photos, ["c/70-photo.jpg"])
    build(tmp_path / "G", photos, method)  # of the same kind
    second = content(tmp_path / "G")["index"]
    assert second["file"] != first["file"]
    assert [file.name for file in (tmp_path / "G").glob("index.*")] == [second["file"]]
    assert len(ask(tmp_path / "G", method, sketches, 99)[0].photos) == PHOTOS + 1
    assert build(tmp_path / "G", photos, method, kind="exact").recall is None
    assert list((tmp_path / "G").glob("index.*")) == []


def test_a_damaged_index_is_a_sentence_and_built_again(tmp_path, photos, sketches, method):
    pytest.importorskip("faiss")
    build(tmp_path / "G", photos, method, kind="hnsw")
    (file,) = (tmp_path / "G").glob("index.*")
    file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="builds it anew"):
        ask(tmp_path / "G", method, sketches, 3)
    build(tmp_path / "G", photos, method, kind="hnsw")
    ask(tmp_path / "G", method, sketches, 3)


def test_a_method_that_compares_in_its_own_way_has_no_approximate_index(tmp_path, photos):
    with pytest.raises(InputError, match="only exact"):
        build(tmp_path / "G", photos, FakeMethod().eval(), kind="hnsw")
