"""What a search found: values by hand, and what happens to odd files and full disks.

tests/test_retrieve.py looks at the results of whole searches.
"""

import json
import math
import os
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import report.found
from report.found import LONGEST, PAGE, RANKING, STRIPS, Found, prepare_folder, write_found
from retrieval.gallery import Answer
from utils.errors import InputError

NAN = math.nan
CONTENT = {"checkpoint": "best.pth", "skipped": ["broken.png: unreadable."], "options": {"k": 3}}


class Photos:
    """A gallery of photos in a folder, without a network."""

    def __init__(self, folder, count):
        self.folder, self.root, self.kind = folder / "G", folder / "photos", "exact"
        self.content = {"index": {"kind": "exact", "file": None}}
        see = SimpleNamespace(levels=self.levels)
        self.encoder = SimpleNamespace(preprocessing=see, weights="0123456789abcdef")
        self.paths = [f"{number}.png" for number in range(count)]
        self.root.mkdir(parents=True)
        for number, path in enumerate(self.paths):
            Image.new("RGB", (30, 20), (20 * number, 90, 40)).save(self.root / path)

    def __len__(self):
        return len(self.paths)

    def levels(self, image, modality):
        """As it is given, a little smaller."""
        assert modality == "sketch"
        pixels = np.array(image.convert("RGB").resize((16, 16)))
        return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.fixture
def gallery(tmp_path):
    return Photos(tmp_path / "place", 5)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    prepare_folder(folder, tmp_path / "place")
    return folder


def found_for(file, gallery, scores, note="", image=None):
    image = image or Image.new("L", (40, 30), "white")
    if file.suffix != ".svg" and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, format="PNG")
    answer = Answer(0, gallery.paths, scores, {"encode": 2.0, "compare": 0.5})
    return Found.of(file, image, note, answer, gallery)


def sketches(tmp_path, gallery, names=("a.png",), **more):
    scores = [0.9, 0.5, -0.25, NAN, NAN][: len(gallery)]
    return [found_for(tmp_path / name, gallery, scores, **more) for name in names]


def ranking_of(out):
    def refuse(word):
        pytest.fail(f"{word} is no JSON")

    text = (out / RANKING).read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def page_of(out):
    return (out / PAGE).read_text(encoding="utf-8")


# ---- values


def test_the_best_photos_have_scores_as_text(tmp_path, gallery):
    (one,) = sketches(tmp_path, gallery)
    assert one.best(2) == [("0.png", "0.900"), ("1.png", "0.500")]
    assert one.best(9)[2:] == [("2.png", "-0.250"), *((f"{n}.png", "not scored") for n in (3, 4))]
    assert one.best(0) == [] and one.milliseconds == 2.5


def test_the_ranking_is_json_that_any_program_reads(tmp_path, gallery, out):
    found = sketches(tmp_path, gallery, ["a.png", "b.png"], note="faint: made dark")
    files = write_found(out, gallery, found, CONTENT, "tokens")
    assert files == {"ranking": out / RANKING, "pictures": out / STRIPS, "page": out / PAGE}
    content = ranking_of(out)
    rankings = content.pop("rankings")
    assert content == {
        "gallery": str(gallery.folder),
        "photos": str(gallery.root),
        "fingerprint": "0123456789abcdef",
        "index": {"kind": "exact", "file": None},
        "counts": {"photos": 5, "sketches": 2, "skipped": 1},
        **CONTENT,
    }
    assert rankings == [
        {
            "sketch": str(tmp_path / name),
            "done": "faint: made dark",
            "milliseconds": {"encode": 2.0, "compare": 0.5},
            "paths": gallery.paths,
            "scores": [0.9, 0.5, -0.25, None, None],
        }
        for name in ("a.png", "b.png")
    ]


def test_the_page_has_the_facts_of_the_search(tmp_path, gallery, out):
    write_found(out, gallery, sketches(tmp_path, gallery), CONTENT, "tokens (-r sa)")
    page = page_of(out)
    for fact in (
        *("Sketch a.png: photos found", "G, 5 photos", "tokens (-r sa); index: exact", "2.5 ms"),
        *("0123456789abcdef", "0.900", "not scored"),
    ):
        assert fact in page
    write_found(out, gallery, sketches(tmp_path, gallery, ["a.png", "b.png"]), CONTENT, "tokens")
    assert "2 sketches: photos found" in page_of(out)


# ---- pictures


def test_strips_stand_in_the_order_of_the_sketches(tmp_path, gallery, out):
    names = ["z.png", *(f"{number}.png" for number in range(9)), "folder/z.png"]
    write_found(out, gallery, sketches(tmp_path, gallery, names), CONTENT, "tokens")
    strips = sorted(file.name for file in (out / STRIPS).iterdir())
    stems = [f"{number:02}_{Path(name).stem}.png" for number, name in enumerate(names, 1)]
    assert strips == stems  # also of two sketches of one name


def test_a_very_long_name_is_cut_in_that_of_its_strip(tmp_path, gallery, out):
    name = "x" * 200
    write_found(out, gallery, sketches(tmp_path, gallery, [f"{name}.png"]), CONTENT, "tokens")
    (strip,) = (out / STRIPS).iterdir()
    assert strip.name == f"1_{'x' * LONGEST}.png" and f"{name}.png" in page_of(out)


def test_each_photo_is_opened_once_for_all_sketches(tmp_path, gallery, out, monkeypatch):
    opened, open_image = [], report.found.open_image

    def noted(source):
        opened.append(Path(source).name)
        return open_image(source)

    monkeypatch.setattr(report.found, "open_image", noted)
    write_found(out, gallery, sketches(tmp_path, gallery, ["x", "y", "z"]), CONTENT, "tokens")
    assert sorted(opened) == [*gallery.paths, "x", "y", "z"]


def test_a_photo_that_has_gone_is_a_gap_in_the_page_and_absent_from_the_strip(
    tmp_path, gallery, out, monkeypatch
):
    drawn, draw_sheet = [], report.found.draw_sheet

    def noted(strips, title):
        drawn.append((strips, title))
        return draw_sheet(strips, title)

    monkeypatch.setattr(report.found, "draw_sheet", noted)
    (gallery.root / "1.png").unlink()
    (gallery.root / "2.png").write_bytes(b"no image")
    write_found(out, gallery, sketches(tmp_path, gallery), CONTENT, "tokens")
    assert page_of(out).count("not there any more") == 2
    (((strip,), title),) = drawn
    assert strip.photo_names == ["0.png", "3.png", "4.png"] and len(strip.photos) == 3
    assert title == "a.png: the first 3 of 5"


@pytest.mark.parametrize(("in_page", "shown"), [(1, 1), (4, 1), (9, 3), (100, 4)])
def test_many_sketches_share_the_photos_of_the_page(
    tmp_path, gallery, out, monkeypatch, caplog, in_page, shown
):
    """One each at least, and never more than four here."""
    monkeypatch.setattr(report.found, "IN_PAGE", in_page)
    monkeypatch.setattr(report.found, "SHOWN", 4)
    caplog.set_level("INFO")
    write_found(out, gallery, sketches(tmp_path, gallery, ["x", "y", "z"]), CONTENT, "tokens")
    assert page_of(out).count("<img") == 3 * (2 + shown)
    assert caplog.messages == [f"the page shows the first {shown} photos of each sketch."]
    assert {len(ranking["paths"]) for ranking in ranking_of(out)["rankings"]} == {5}


def test_a_sketch_is_shown_as_its_file_is_and_as_the_network_sees_it(tmp_path, gallery, out):
    """An SVG, which cannot be opened, as it was drawn."""
    white, black = (Image.new("RGB", (40, 30), colour) for colour in ("white", "black"))
    white.save(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text("<svg/>")
    scores = [0.5] * 5
    found = [
        found_for(tmp_path / name, gallery, scores, image=black) for name in ("a.png", "b.svg")
    ]
    sections = list(report.found._sections(out / STRIPS, gallery, found, 5))
    shades = {
        which: [np.asarray(Image.open(BytesIO(getattr(s, which)))).mean() > 128 for s in sections]
        for which in ("given", "seen")
    }
    assert shades == {"given": [True, False], "seen": [False, False]}


# ---- disks that refuse


def test_a_folder_of_results_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match=rf"^{place}: cannot be made \(.+\)\.$"):
            prepare_folder(place, tmp_path / "photos")
    for _ in range(2):  # one that is there will do
        prepare_folder(tmp_path / "new" / "out", tmp_path / "photos")
    assert (tmp_path / "new" / "out" / STRIPS).is_dir()


@pytest.mark.parametrize(
    "files",
    [
        {"index.html": "my home page"},
        {"ranking.json": "[1, 2]", "index.html": ""},
        {"ranking.json": "rankings"},
        {"strips/mine.png": ""},
        {"notes.txt": ""},
    ],
)
def test_a_folder_of_other_files_is_left_alone(tmp_path, files):
    for name, content in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    with pytest.raises(InputError, match="holds other files, and no search"):
        prepare_folder(tmp_path / "out", tmp_path / "photos")
    found = {str(f.relative_to(tmp_path / "out")) for f in tmp_path.rglob("*") if f.is_file()}
    assert found == files.keys()


@pytest.mark.parametrize("place", ["photos", "photos/a/found", "link"])
def test_results_do_not_go_among_the_photos(tmp_path, place):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(InputError, match="lies in the folder of photos"):
        prepare_folder(tmp_path / place, tmp_path / "photos")


def test_nothing_of_a_former_search_stays(tmp_path, gallery, out):
    write_found(out, gallery, sketches(tmp_path, gallery, ["a.png", "b.png"]), CONTENT, "tokens")
    (out / "notes.txt").write_text("mine")
    prepare_folder(out, gallery.root)
    write_found(out, gallery, sketches(tmp_path, gallery, ["c.png"]), CONTENT, "tokens")
    assert [file.name for file in (out / STRIPS).iterdir()] == ["1_c.png"]
    assert "b.png" not in page_of(out) and (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [RANKING, PAGE, "1_a.png"])
def test_a_full_disk_is_a_sentence_and_mixes_no_two_searches(
    tmp_path, gallery, out, monkeypatch, name
):
    found, replace = sketches(tmp_path, gallery), os.replace
    write_found(out, gallery, found, CONTENT, "tokens")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def refuse(source, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError) as error:
        write_found(out, gallery, found, {**CONTENT, "options": {}}, "pairs")
    assert str(error.value) == f"{out}: cannot be written (No space left on device)."
    after = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    if name == RANKING:
        assert after == before
    else:
        assert ranking_of(out)["options"] == {} and out / PAGE not in after
