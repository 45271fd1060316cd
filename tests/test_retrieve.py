"""retrieve.py as its users run it, on a small drawn benchmark and odd sketches."""

import base64
import json
import re
import shutil
from collections import defaultdict
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import numpy as np
import pytest
import torch
from checkpoints_for_tests import write_checkpoint
from PIL import Image, ImageOps
from sample_data import write_benchmark

import retrieve
import test
from datasets import load_benchmark
from model import load_model
from report import found as found_module
from retrieval.encoder import Encoder
from retrieval.gallery import Gallery
from utils.errors import InputError

MODES = ("sa", "rn", "rerank")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A benchmark, and its unseen images alone in folders that keep their paths."""
    root = tmp_path_factory.mktemp("place")
    write_benchmark(root / "data")
    benchmark = load_benchmark("sketchy_extend", "test_class_sketchy25", root / "data", seen=False)
    for folder, images in (("photos", benchmark.gallery), ("sketches", benchmark.queries)):
        for number, path in enumerate(images.path):
            file = root / folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(images.file(number))
    write_checkpoint(root / "best_checkpoint.pth", classes=["pig"])
    return root


def run(*words: object) -> int:
    return retrieve.main([*map(str, words), "-c", "cpu", "--num_workers", "0"])


def index(place: Path, out: Path, *more: object, photos: Path | None = None) -> int:
    given = ["--photos", photos or place / "photos", "-l", place / "best_checkpoint.pth"]
    return run("index", *given, "--out", out, *more)


def search(gallery: Path, out: Path, *sketches: object, pictures: bool = True) -> dict:
    """The content of ranking.json. pictures: draw them too, which takes most of the time."""
    with nullcontext() if pictures else patch("report.found.write_page"):
        assert run("search", "--gallery", gallery, "--out", out, "--sketch", *sketches) == 0
    return json.loads((out / "ranking.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gallery(place) -> Path:
    """Without tokens."""
    assert index(place, place / "G") == 0
    return place / "G"


@pytest.fixture(scope="module")
def gallery_with_tokens(place) -> Path:
    assert index(place, place / "with tokens", "--tokens") == 0
    return place / "with tokens"


@pytest.fixture(scope="module")
def metrics_of(place):
    """The metrics of test.py, by the value of -r."""

    @cache
    def score(mode: str) -> dict:
        given = ["--data_path", place / "data", "-l", place / "best_checkpoint.pth", "--testall"]
        given += ["-c", "cpu", "--num_workers", 0, "--no_cache", "-r", mode]
        given += ["--shortlist", "4"] if mode == "rerank" else []
        test.main([str(word) for word in given])
        return json.loads(next(place.glob(f"*.{mode}*.all.json")).read_text())

    return score


@pytest.fixture(scope="module")
def sketch(place) -> Path:
    return min((place / "sketches").rglob("*.png"))


def class_of(path: str) -> str:
    return Path(path).parent.name


# ---- numbers


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_metrics_of_ranking_json_are_those_of_test_py(
    place, gallery, gallery_with_tokens, metrics_of, tmp_path, mode, tokens
):
    shortlist = ["--shortlist", "4"] if mode == "rerank" else []
    found = search(
        gallery_with_tokens if tokens else gallery,
        tmp_path / "out",
        *(place / "sketches", "-k", "all", "-r", mode, *shortlist),
        pictures=False,
    )
    expected = metrics_of(mode)
    precisions, first = [], []
    for ranking in found["rankings"]:
        assert len(ranking["paths"]) == found["counts"]["photos"] == 15
        assert len(set(ranking["paths"])) == 15
        right = np.array([class_of(p) == class_of(ranking["sketch"]) for p in ranking["paths"]])
        ranks = np.flatnonzero(right) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        first.append(right[0])
        scored = [score for score in ranking["scores"] if score is not None]
        assert len(scored) == (4 if mode == "rerank" else 15)
        assert scored == sorted(scored, reverse=True)
    assert len(precisions) == 12
    rounded = 0.03 if tokens and mode != "sa" else 1e-9  # fp16 may swap photos that nearly tie
    assert np.mean(precisions) == pytest.approx(expected["average_precision"], abs=rounded)
    assert np.mean(first) == pytest.approx(expected["accuracy@1"], abs=3 * rounded)


@pytest.mark.parametrize("k", [4, 6, "all"])
def test_behind_the_shortlist_photos_are_not_scored(gallery_with_tokens, sketch, tmp_path, k):
    more = [sketch, "-r", "rerank", "--shortlist", 4]
    (short,) = search(gallery_with_tokens, tmp_path / "4", *more, pictures=False)["rankings"]
    (found,) = search(gallery_with_tokens, tmp_path / "k", *more, "-k", k)["rankings"]
    count = 15 if k == "all" else k
    assert len(found["paths"]) == len(set(found["paths"])) == count
    assert found["paths"][:4] == short["paths"][:4]
    assert found["scores"] == [*short["scores"][:4], *[None] * (count - 4)]
    page = (tmp_path / "k/index.html").read_text(encoding="utf-8")
    assert page.count("not scored") == count - 4


def test_open_images_are_searched_as_their_files_are(gallery, place, tmp_path):
    found = search(gallery, tmp_path / "out", place / "sketches", "-k", 5, pictures=False)
    files = [ranking["sketch"] for ranking in found["rankings"]]
    method, _ = load_model(place / "best_checkpoint.pth")
    opened = Gallery(gallery, Encoder(method, torch.device("cpu")))
    for sources in (files, list(map(Path, files)), list(map(Image.open, files))):
        answers, faults = opened.search(sources, 5)
        assert faults == {}
        for ranking, answer in zip(found["rankings"], answers, strict=True):
            assert (ranking["paths"], ranking["scores"]) == (answer.photos, answer.scores)


def test_what_is_kept_beside_the_ranking(gallery, place, tmp_path):
    found = search(gallery, tmp_path / "out", place / "sketches", "-k", 3, pictures=False)
    assert found["counts"] == {"photos": 15, "sketches": 12, "skipped": 0}
    assert found["options"]["k"] == 3 and found["options"]["retrieval"] == "sa"
    assert found["environment"]["device"] == "cpu" and found["environment"]["faiss"]
    assert len(found["fingerprint"]) == 16
    for ranking in found["rankings"]:
        assert len(ranking["paths"]) == len(ranking["scores"]) == 3
        assert set(ranking["milliseconds"]) == {"encode", "compare"}
        assert (Path(found["photos"]) / ranking["paths"][0]).is_file()


# ---- index


def test_a_second_time_only_what_is_new_is_encoded(place, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 20, 90)).save(photos / f"{number}.png")
    for encoded in (3, 0):
        index(place, tmp_path / "G", photos=photos)
        assert f"3 photos in {tmp_path / 'G'}: {encoded} encoded" in capsys.readouterr().out
    (photos / "0.png").unlink()
    (photos / "broken.jpg").write_bytes(b"no image")
    index(place, tmp_path / "G", photos=photos)
    assert "0 encoded" in (printed := capsys.readouterr().out)
    assert "2 photos" in printed and "1 gone, 1 broken and skipped" in printed


def test_the_recall_of_an_approximate_index_is_printed(place, sketch, tmp_path, capsys):
    pytest.importorskip("faiss")
    index(place, tmp_path / "G", "--index", "ivf")
    assert re.search(r"index ivf: recall [01]\.\d{4} of the ten", capsys.readouterr().out)
    search(tmp_path / "G", tmp_path / "out", sketch, pictures=False)


def test_a_gallery_inside_the_folder_of_photos_holds_no_photos(place, tmp_path, capsys):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "1.png")
    index(place, tmp_path / "G", photos=tmp_path)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "G" / "2.png")
    index(place, tmp_path / "G", photos=tmp_path)
    assert "1 photos in" in capsys.readouterr().out


def test_rows_are_copied_from_what_test_py_has_encoded(place, tmp_path, capsys):
    """Beside the checkpoint; photos of seen classes lie in the same folder, and are encoded."""
    checkpoint = tmp_path / "best_checkpoint.pth"
    checkpoint.symlink_to(place / "best_checkpoint.pth")
    given = ["--data_path", place / "data", "-l", checkpoint, "--testall", "-r", "rn", "-c", "cpu"]
    test.main([str(word) for word in [*given, "--num_workers", 0]])
    photos = place / "data/Sketchy/256x256/photo"
    of_unseen = len(list((place / "photos/256x256/photo").rglob("*.jpg")))
    of_seen = len(list(photos.rglob("*.jpg"))) - of_unseen
    assert of_seen and of_unseen
    capsys.readouterr()
    given = ["--photos", photos, "-l", checkpoint, "--out", tmp_path / "G", "--tokens"]
    run("index", *given)
    printed = capsys.readouterr().out
    encoded, copied = map(
        int, re.search(r"(\d+) encoded in [^,]*, (\d+) copied from", printed).groups()
    )
    assert (encoded, copied) == (of_seen, of_unseen)
    run("index", *given)
    printed = capsys.readouterr().out
    assert "0 encoded" in printed and "0 copied" in printed


def test_tokens_may_come_later_and_stay(place, sketch, gallery_with_tokens, tmp_path, capsys):
    expected = search(gallery_with_tokens, tmp_path / "1", sketch, "-r", "rn", pictures=False)
    for words, encoded in (([], 15), (["--tokens"], 15), ([], 0)):
        index(place, tmp_path / "G", *words)
        assert f": {encoded} encoded in" in capsys.readouterr().out
    found = search(tmp_path / "G", tmp_path / "2", sketch, "-r", "rn", pictures=False)
    (one,), (other,) = expected["rankings"], found["rankings"]
    assert (one["paths"], one["scores"]) == (other["paths"], other["scores"])


@pytest.mark.parametrize("tokens", [False, True])
def test_copies_of_a_photo_stand_in_the_order_of_their_paths(place, tmp_path, tokens):
    checkpoint, photos = tmp_path / "mini.pth", tmp_path / "photos"
    write_checkpoint(checkpoint, classes=["pig"], vit="vit_mini_patch8_48")
    originals = sorted((place / "photos").rglob("*.jpg"))[:6]
    for number, those in enumerate([range(6), range(6), [0], [1], [0]]):
        (photos / str(number)).mkdir(parents=True)
        for original in those:
            shutil.copyfile(originals[original], photos / str(number) / f"{original}.jpg")
    given = ["--photos", photos, "-l", checkpoint, "--out", tmp_path / "G"]
    run("index", *given, *["--tokens"] * tokens)
    disordered = defaultdict(list)
    for mode in MODES:
        shortlist = ["--shortlist", 5] if mode == "rerank" else []
        words = [place / "sketches", "-k", "all", "-r", mode, *shortlist]
        found = search(tmp_path / "G", tmp_path / mode, *words, pictures=False)
        for ranking in found["rankings"]:
            groups = defaultdict(list)
            for path in ranking["paths"]:
                groups[Path(path).name].append(crc32(path.encode()))
            assert sorted(map(len, groups.values())) == [2, 2, 2, 2, 3, 4]
            disordered[mode] += [n for n, group in groups.items() if group != sorted(group)]
    assert disordered == {mode: [] for mode in MODES}


def test_a_gallery_of_another_checkpoint_is_refused(gallery, place, tmp_path):
    write_checkpoint(tmp_path / "other.pth", classes=["pig"], anchors=100)
    more = ["--sketch", place / "sketches", "--out", tmp_path / "out", "-l", tmp_path / "other.pth"]
    with pytest.raises(InputError, match="another checkpoint"):
        run("search", "--gallery", gallery, *more)


def test_what_does_not_exist_is_a_sentence(gallery, place, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        index(place, tmp_path / "G", photos=tmp_path / "absent")
    with pytest.raises(InputError, match="no such file or folder"):
        search(gallery, tmp_path / "out", tmp_path / "absent.png")
    with pytest.raises(InputError, match="is no gallery"):
        search(tmp_path, tmp_path / "out", place / "sketches")
    assert not (tmp_path / "out").exists()


def test_a_gallery_of_a_former_version_is_a_sentence(gallery, place, tmp_path):
    shutil.copytree(gallery, tmp_path / "G")
    content = json.loads((tmp_path / "G/gallery.json").read_text())
    old = content | {"format": 1, "index": {"kind": "hnsw", "file": "index.0.hnsw"}}
    (tmp_path / "G/gallery.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"has format 1.* in another folder"):
        search(tmp_path / "G", tmp_path / "out", place / "sketches")
    with pytest.raises(InputError, match=r"has format 1.* in another folder"):
        index(place, tmp_path / "G")


def test_results_that_cannot_be_written_are_a_sentence(gallery, sketch, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be made \(.*\)"):
        search(gallery, tmp_path / "file", sketch)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(found_module, "write_page", refuse)
    with pytest.raises(InputError, match=r"out: cannot be written \(No space left on device\)"):
        search(gallery, tmp_path / "out", sketch)


# ---- sketches as people have them


def test_odd_sketches_are_searched_with_and_a_note_names_what_was_done(
    gallery, sketch, tmp_path, capsys
):
    grey = Image.open(sketch).convert("L")
    kinds = {
        "light on dark": ImageOps.invert(grey),
        "transparent": Image.merge("LA", [grey, ImageOps.invert(grey)]),
        "coloured": ImageOps.colorize(grey, (240, 150, 30), "white"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = search(gallery, tmp_path / "out", *sorted(tmp_path.glob("*.png")))
    assert [Path(r["sketch"]).stem for r in found["rankings"]] == sorted(kinds)
    assert len(found["skipped"]) == 1 and "broken.png" in found["skipped"][0]
    printed = capsys.readouterr().out
    for ranking in found["rankings"]:
        assert Path(ranking["sketch"]).stem in ranking["done"]
        assert f"[{ranking['done']}]" in printed


def test_broken_sketches_alone_are_a_sentence(gallery, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no readable sketch"):
        search(gallery, tmp_path / "out", tmp_path / "broken.png")


# ---- pictures


def test_a_strip_a_sketch_and_a_page_that_needs_nothing_else(gallery, place, tmp_path, capsys):
    found = search(gallery, tmp_path / "out", place / "sketches", "-k", 4)
    strips = sorted((tmp_path / "out/strips").iterdir())
    assert len(strips) == 12 and strips[0].name.startswith("01_sketch_")
    assert all(Image.open(strip).width > 5 * 128 for strip in strips)
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == 12 * (4 + 2)
    assert max(len(base64.b64decode(image)) for image in images) < 20_000
    for path in {Path(path).name for r in found["rankings"] for path in r["paths"]}:
        assert path in page
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {tmp_path / 'out/index.html'}"


def test_a_photo_that_has_gone_leaves_a_gap_in_the_page_alone(place, sketch, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 20, 90)).save(photos / f"{number}.png")
    index(place, tmp_path / "G", photos=photos)
    (photos / "1.png").unlink()
    found = search(tmp_path / "G", tmp_path / "out", sketch)
    assert len(found["rankings"][0]["paths"]) == 3
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert page.count("not there any more") == 1 and page.count("<img") == 2 + 2


def test_many_photos_are_shown_in_part(gallery, place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(found_module, "IN_PAGE", 24)
    caplog.set_level("INFO")
    found = search(gallery, tmp_path / "out", place / "sketches", "-k", "all")
    assert {len(r["paths"]) for r in found["rankings"]} == {15}
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert page.count("<img") == 12 * (2 + 2)
    assert "shows the first 2 photos" in caplog.text
