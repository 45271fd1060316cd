"""Galleries damaged at random: the right answer or one sentence, and never another answer."""

import json
import random
import shutil
from pathlib import Path

import pytest
from fakes import FakeMethod
from galleries import build, encoder_of, found, search, write_photos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.gallery import GALLERY, Gallery
from utils.errors import InputError

MODES = ("sa", "rn", "rerank")
SOME = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OTHERS = [None, True, -1, 0, 1, 1.5, 10**400, "", "exact", "x", [], [1], [-1, 0], {}, {"a": 1}]
"""Values to put in the place of others."""


@pytest.fixture(scope="module", params=["exact", "ivf"])
def place(request, tmp_path_factory):
    """Photos, sketches, a gallery, and a damaged copy of it that each trial makes anew."""
    if request.param == "ivf":
        pytest.importorskip("faiss")
    root = tmp_path_factory.mktemp("place")
    write_photos(root / "photos", [f"a/{number}-photo.jpg" for number in range(8)])
    write_photos(root / "photos", ["b/8-broken.jpg"])
    write_photos(root / "sketches", ["0-sketch.png", "1-sketch.png"])
    build(root / "G", root / "photos", Cosines().eval(), kind=request.param)
    return root


class Cosines(FakeMethod):
    from model.method import Method

    similarity = Method.similarity


def answers(root: Path, folder: str) -> list:
    """Of all modes."""
    sketches = sorted((root / "sketches").iterdir())
    gallery = Gallery(root / folder, encoder_of(Cosines().eval()))
    return [found(search(gallery, None, sketches, 20, mode)) for mode in MODES]


def assert_right_or_a_sentence(root: Path) -> None:
    """Of a search; then of another build, after which all is right."""
    expected = answers(root, "G")
    for mend in (False, True):
        try:
            if mend:
                build(root / "damaged", root / "photos", Cosines().eval(), tokens=True)
            made = answers(root, "damaged")
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
        else:
            assert made == expected


def damaged(root: Path) -> Path:
    shutil.rmtree(root / "damaged", ignore_errors=True)
    return Path(shutil.copytree(root / "G", root / "damaged"))


@SOME
@given(seed=st.integers(0, 10**9))
def test_files_that_are_damaged(place, seed):
    folder, draw = damaged(place), random.Random(seed)
    files = sorted(file for file in folder.iterdir() if file.stat().st_size)
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    kind = draw.choice(["flip", "flip", "flips", "cut", "longer", "zeros", "swap", "gone"])
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 20):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[draw.randrange(len(content)) :]
    elif kind == "longer":
        content += draw.randbytes(50)
    elif kind == "zeros":
        first = draw.randrange(len(content))
        content[first : first + 40] = bytes(len(content[first : first + 40]))
    elif kind == "swap":
        content = draw.choice(files).read_bytes()
    file.write_bytes(content)
    if kind == "gone":
        file.unlink()
    assert_right_or_a_sentence(place)


@SOME
@given(seed=st.integers(0, 10**9))
def test_descriptions_that_are_edited(place, seed):
    folder, draw = damaged(place), random.Random(seed)
    content = json.loads((folder / GALLERY).read_text())
    for _ in range(draw.choice([1, 1, 2])):
        edit(content, draw)
    (folder / GALLERY).write_text(json.dumps(content))
    assert_right_or_a_sentence(place)


def edit(content, draw: random.Random) -> None:
    """Change, remove or double a value anywhere but the folder of photos, which may move."""
    keys = list(content if isinstance(content, dict) else range(len(content)))
    keys = [key for key in keys if key != "root"]
    if not keys:
        return
    key = draw.choice(keys)
    if isinstance(content[key], dict | list) and content[key] and draw.random() < 0.7:
        edit(content[key], draw)
    elif draw.random() < 0.25:
        del content[key]
    else:
        content[key] = draw.choice([*OTHERS, content[draw.choice(keys)]])
