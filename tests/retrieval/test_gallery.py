"""Searching a gallery: it ranks as a test does, however it was built and is searched."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from fakes import FakeMethod
from galleries import (
    CPU,
    MODES,
    PHOTOS,
    SKETCHES,
    CosineMethod,
    bits,
    build,
    encoder_of,
    found,
    picture,
    search,
    write_photos,
)
from PIL import Image

from datasets.unlabelled import folder_images, image_list
from retrieval import encoder as encoder_module
from retrieval.building import build_gallery
from retrieval.encoder import Encoder
from retrieval.evaluate import evaluate
from retrieval.gallery import Gallery
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


# ---- search


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method_class", [FakeMethod, CosineMethod])
def test_ranks_as_an_evaluation_does(tmp_path, photos, sketches, tokens, mode, method_class):
    method = method_class().eval()
    build(tmp_path / "G", photos, method, tokens)
    queries = image_list(tmp_path / "sketches", [file.name for file in sketches], "sketch")
    evaluation = evaluate(
        encoder_of(method),
        replace(queries, target=np.zeros(SKETCHES, dtype=np.int64)),
        replace(folder_images(photos, "photo"), target=np.zeros(PHOTOS, dtype=np.int64)),
        RANKERS[mode],
        {"shortlist": 5} if mode == "rerank" else {},
    )
    answers = search(tmp_path / "G", method, sketches, mode=mode, shortlist=5, at_a_time=3)
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
    every = found(search(tmp_path / "G", method, sketches, mode=mode, shortlist=6))
    some = found(search(tmp_path / "G", method, sketches, k, mode, shortlist=6))
    assert some == [(paths[:k], scores[:k]) for paths, scores in every]


def test_only_photos_of_the_shortlist_are_encoded_where_tokens_are_not_kept(
    tmp_path, photos, sketches, method
):
    build(tmp_path / "G", photos, method, tokens=False)
    method.encoded["photo"].clear()
    answers = search(tmp_path / "G", method, sketches, 5, "rerank", shortlist=2)
    wanted = {int(Path(p).name.split("-")[0]) for answer in answers for p in answer.photos[:2]}
    assert sorted(method.encoded["photo"]) == sorted(wanted)


def test_kept_tokens_need_no_photo(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    method.encoded["photo"].clear()
    search(tmp_path / "G", method, sketches, 5, "rn")
    assert method.encoded["photo"] == []


def test_a_photo_that_cannot_be_read_any_more_is_named(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method, tokens=False)

    def gone(file, modality):
        if modality == "photo":
            raise InputError(f"{file}: no such file.")
        return picture(file, modality)

    gallery = Gallery(tmp_path / "G", encoder_of(method, gone))
    with pytest.raises(InputError, match=r"photo.jpg: no such file.*retrieve.py index"):
        search(gallery, method, sketches, 3, "rerank")


def test_unreadable_sketches_are_named_and_the_others_answered(tmp_path, photos, method):
    build(tmp_path / "G", photos, method)
    names = ["0-sketch.png", "1-broken.png", "2-sketch.png"]
    write_photos(tmp_path, names)
    answers, faults = Gallery(tmp_path / "G", encoder_of(method)).search(
        [tmp_path / name for name in names], 3
    )
    assert [answer.sketch for answer in answers] == [0, 2]
    assert faults.keys() == {1} and "1-broken.png" in faults[1] and "None" not in faults[1]


def test_milliseconds_are_of_the_block_shared(tmp_path, photos, sketches, method):
    build(tmp_path / "G", photos, method)
    answers = search(tmp_path / "G", method, sketches, at_a_time=7)
    times = [answer.milliseconds for answer in answers]
    assert all(time == times[0] for time in times)
    assert set(times[0]) == {"encode", "compare"} and min(times[0].values()) >= 0


@pytest.fixture
def drawn(tmp_path) -> list[Path]:
    """Sketches as files of many kinds."""
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(4, 40, 30), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {f"{name}.png": {} for name in ("grey", "transparent", "palette")}
    files["turned.jpg"] = {"exif": turned}
    (tmp_path / "drawn").mkdir()
    for (name, settings), levels in zip(files.items(), pixels, strict=True):
        image = Image.fromarray(levels)
        if name.startswith("transparent"):
            image = Image.merge("LA", [image, Image.fromarray(255 - levels)])
        elif name.startswith("palette"):
            image = image.convert("P")
        image.save(tmp_path / "drawn" / name, **settings)
    return [tmp_path / "drawn" / name for name in files]


@pytest.mark.parametrize("mode", MODES)
def test_sketches_are_file_names_or_open_images(tmp_path, photos, drawn, method, mode):
    build(tmp_path / "G", photos, method)
    gallery = Gallery(str(tmp_path / "G"), Encoder(method, CPU))  # reads sketches as they are
    expected = bits(search(gallery, method, drawn, mode=mode, shortlist=9))
    assert len(set(map(repr, expected))) == len(drawn)
    decoded = []
    for file in drawn:
        with Image.open(file) as image:
            decoded.append(image.copy())
            decoded[-1].info["exif"] = image.info.get("exif", b"")
    for sources in (
        list(map(str, drawn)),
        list(map(Image.open, drawn)),  # not decoded yet
        decoded,
        [str(drawn[0]), drawn[1], Image.open(drawn[2]), decoded[3]],
    ):
        assert bits(search(gallery, method, sources, mode=mode, shortlist=9)) == expected


def test_an_open_image_that_cannot_be_decoded_is_named(tmp_path, photos, drawn, method):
    build(tmp_path / "G", photos, method)
    drawn[0].write_bytes(drawn[0].read_bytes()[:200])
    gallery = Gallery(tmp_path / "G", Encoder(method, CPU))
    answers, faults = gallery.search([Image.open(drawn[0]), Image.open(drawn[1])], 3)
    assert [answer.sketch for answer in answers] == [1]
    assert faults.keys() == {0} and faults[0].startswith(f"{drawn[0]}: unreadable")


def test_data_workers_read_open_images_too(tmp_path, photos, drawn, method):
    build(tmp_path / "G", photos, method)
    sources = [Image.open(drawn[0]), str(drawn[1]), *drawn[2:]]
    alone, helped = (
        bits(search(Gallery(tmp_path / "G", encoder), method, sources))
        for encoder in (Encoder(method, CPU), Encoder(method, CPU, workers=1))
    )
    assert alone == helped


# ---- beyond the shortlist


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> SimpleNamespace:
    """A gallery of thousands of photos in groups, with an approximate index, and some sketches."""
    pytest.importorskip("faiss")
    root, method = tmp_path_factory.mktemp("many"), CosineMethod().eval()
    names = [f"{number}.jpg" for number in range(2000)]
    random = np.random.default_rng(1)
    middles = random.normal(size=(60, 12))

    def grouped(file, modality):
        number = int(Path(file).stem)
        noise = np.random.default_rng(number).normal(scale=0.5, size=12)
        levels = torch.tensor(middles[number % 60] + noise, dtype=torch.float32).view(3, 2, 2)
        levels[0] = number
        return levels

    (root / "photos").mkdir()
    for name in names:
        (root / "photos" / name).touch()
    images, encoder = folder_images(root / "photos", "photo"), encoder_of(method, grouped)
    made = {"checkpoint": "a.pth", "tokens": True, "kind": "ivf"}
    build_gallery(root / "G", images, encoder, **made)
    gallery = Gallery(root / "G", encoder)
    gallery.index.index.nprobe = 4  # it misses some of the closest
    sketches = [Path(f"{number}.png") for number in range(5000, 5012)]
    return SimpleNamespace(gallery=gallery, method=method, sketches=sketches)


def search_many(many, k, mode="sa", **settings):
    return search(many.gallery, many.method, many.sketches, k, mode, **settings)


@pytest.mark.parametrize("shortlist", [1, 7, 40])
@pytest.mark.parametrize("more", [1, 60, 1000, 10**9])
def test_behind_a_shortlist_no_photo_stands_twice(many, shortlist, more):
    first = search_many(many, shortlist)
    alone = bits(search_many(many, shortlist, "rerank", shortlist=shortlist))
    answers = search_many(many, shortlist + more, "rerank", shortlist=shortlist)
    for closest, (paths, scores), answer in zip(first, alone, answers, strict=True):
        assert len(answer.photos) == min(shortlist + more, len(many.gallery))
        assert len(set(answer.photos)) == len(answer.photos)
        assert answer.photos[:shortlist] == paths and set(paths) == set(closest.photos)
        assert list(map(repr, answer.scores[:shortlist])) == scores
        assert np.isnan(answer.scores[shortlist:]).all()


def test_a_search_of_everything_finds_what_the_approximate_index_misses(many):
    few, every = search_many(many, 40), search_many(many, 10**9)
    pairs = list(zip(few, every, strict=True))
    assert any(one.photos != other.photos[:40] for one, other in pairs)  # else it proves nothing
    assert all(set(other.photos) == set(many.gallery.paths) for _, other in pairs)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("method_class", [FakeMethod, CosineMethod])
@pytest.mark.parametrize("k", [5, 6, 12, 10**9])
def test_behind_a_shortlist_come_the_others_by_vectors(
    tmp_path, photos, sketches, tokens, method_class, k
):
    method = method_class().eval()
    build(tmp_path / "G", photos, method, tokens)
    gallery = Gallery(tmp_path / "G", encoder_of(method))
    by_vectors = search(gallery, method, sketches)
    by_pairs = search(gallery, method, sketches, mode="rn")
    answers = search(gallery, method, sketches, k, "rerank", shortlist=5)
    for vectors, pairs, answer in zip(by_vectors, by_pairs, answers, strict=True):
        head = [path for path in pairs.photos if path in vectors.photos[:5]]
        assert answer.photos == (head + vectors.photos[5:])[:k]
        score = dict(zip(pairs.photos, pairs.scores, strict=True))
        assert answer.scores[:5] == [score[path] for path in head]
        assert np.isnan(answer.scores[5:]).all()


# ---- identical photos


class RoundingMethod(CosineMethod):
    """Numbers of many digits; their products round."""

    def encode(self, images, modality):
        features = super().encode(images / 3, modality)
        self.encoded[modality][-len(images) :] = images[:, 0, 0, 0].long().tolist()
        return features


@pytest.fixture
def copies(photos) -> list[list[str]]:
    """Paths of photos, in groups of identical ones."""
    groups = []
    for number, count in ((0, 2), (1, 5), (5, 9)):
        first = f"{'ab'[number % 2]}/{number}-photo.jpg"
        others = [f"{'cde'[i % 3]}/{number}-copy {i}.jpg" for i in range(count - 1)]
        for name in others:
            (photos / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(photos / first, photos / name)
        groups.append([first, *others])
    return groups


def in_path_order(group, paths) -> bool:
    """Whether those of a group that are among the paths are the first ones, in their order."""
    wanted = sorted(group, key=lambda path: crc32(path.encode()))
    listed = [path for path in paths if path in group]
    return listed == wanted[: len(listed)]


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("method_class", "kind"),
    [(FakeMethod, "exact"), (RoundingMethod, "exact"), (RoundingMethod, "ivf")],
)
def test_identical_photos_stand_in_the_order_of_their_paths(
    tmp_path, photos, copies, sketches, tokens, mode, method_class, kind
):
    method = method_class().eval()
    build(tmp_path / "G", photos, method, tokens, kind)
    gallery = Gallery(tmp_path / "G", encoder_of(method))
    for k in (3, 12, 10**9):
        for at_a_time in (1, 3, 100):
            answers = search(gallery, method, sketches, k, mode, shortlist=8, at_a_time=at_a_time)
            for answer in answers:
                assert all(in_path_order(group, answer.photos) for group in copies)
                score = dict(zip(answer.photos, answer.scores, strict=True))
                for group in copies:
                    scores = {score[path] for path in group if path in score}
                    assert len({s for s in scores if not np.isnan(s)}) <= 1


@pytest.mark.parametrize("tokens", [False, True])
def test_of_identical_photos_one_is_encoded_and_scored(
    tmp_path, photos, copies, sketches, method, tokens
):
    build(tmp_path / "G", photos, method, tokens)
    method.pairs, method.encoded["photo"] = 0, []
    search(tmp_path / "G", method, sketches, mode="rn")
    assert method.pairs == SKETCHES * PHOTOS
    encoded = [] if tokens else list(range(PHOTOS))
    assert sorted(method.encoded["photo"]) == encoded


class HalfBlindMethod(CosineMethod):
    """Vectors know half of what tokens know."""

    def encode(self, images, modality):
        features = super().encode(images, modality)
        return {**features, "retrieval": features["retrieval"][:, :3]}


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("mode", ["rn", "rerank"])
def test_photos_of_one_vector_and_other_tokens_are_scored_each(
    tmp_path, photos, sketches, tokens, mode
):
    def levels(file, modality):
        numbers = picture(file, modality)
        if modality == "photo":
            numbers[1].view(-1)[:3] = 1.0  # the vector: the first three of six
        return numbers

    method = HalfBlindMethod().eval()
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))):
        file.write_bytes(bytes([number]) * (100 + number))  # of another size each
    images, encoder = folder_images(photos, "photo"), encoder_of(method, levels)
    build_gallery(tmp_path / "G", images, encoder, checkpoint="a.pth", tokens=tokens)
    gallery = Gallery(tmp_path / "G", encoder)
    answers = search(gallery, method, sketches, mode=mode, shortlist=PHOTOS)
    with torch.no_grad():
        made = [encoder.encode(list(map(images.file, range(PHOTOS))), "photo")]
        made.append(encoder.encode(sketches, "sketch"))
        expected = method.pair_similarity(made[1], made[0])
    for answer, scores in zip(answers, expected.tolist(), strict=True):
        place = {str(path): number for number, path in enumerate(images.path)}
        assert answer.scores == [scores[place[path]] for path in answer.photos]
        assert len(set(answer.scores)) > 1
