"""Galleries of fake photos, built and searched: for test_gallery.py and test_building.py."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from fakes import FakeEncoder, FakeMethod

from datasets.unlabelled import folder_images
from model.method import Method
from retrieval.building import build_gallery
from retrieval.encoder import Encoder
from retrieval.gallery import GALLERY, Gallery
from retrieval.scoring import RANKERS
from utils.errors import InputError

CPU = torch.device("cpu")
PHOTOS, SKETCHES = 23, 7
MODES = tuple(RANKERS)


class CosineMethod(FakeMethod):
    """The fake, compared as methods are by default."""

    similarity = Method.similarity


def picture(file, modality):
    """The levels of an image: its number, then numbers drawn from its content.

    Half precision holds them, and no two cosines of different ones nearly tie.
    """
    content = Path(file).read_bytes()
    if content.startswith(b"broken"):
        raise InputError(f"{file}: unreadable (broken).")
    random = np.random.default_rng(crc32(content))
    numbers = torch.tensor(random.integers(1, 129, size=(3, 2, 2)) / 64, dtype=torch.float32)
    numbers[0] = int(Path(file).stem.split("-")[0])
    return numbers


def encoder_of(method, levels=picture, **settings) -> Encoder:
    return FakeEncoder(method, levels=levels, **settings)


def write_photos(root: Path, names) -> None:
    """Files of other content each, some of them broken, as their names say."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = b"broken" if "broken" in name else b"image"
        (root / name).write_bytes(kind + b" " + name.encode())


def build(folder, photos, method, tokens=True, kind=None, features=None, **settings):
    return build_gallery(
        folder,
        folder_images(photos, "photo"),
        encoder_of(method, **settings),
        checkpoint="a.pth",
        tokens=tokens,
        kind=kind,
        features=features,
    )


def search(folder, method, sketches, k=PHOTOS, mode="sa", shortlist=200, **settings):
    """The answers of a gallery, which may be a folder."""
    gallery = folder if isinstance(folder, Gallery) else Gallery(folder, encoder_of(method))
    own = {"shortlist": shortlist} if mode == "rerank" else {}
    answers, faults = gallery.search(sketches, k, RANKERS[mode], own, **settings)
    assert faults == {}
    return answers


def found(answers) -> list:
    """Paths and scores; nan is not equal to itself, so scores are as text."""
    return [(answer.photos, [f"{score:.6f}" for score in answer.scores]) for answer in answers]


def bits(answers) -> list:
    """Paths and scores to the last bit."""
    return [(answer.photos, list(map(repr, answer.scores))) for answer in answers]


def assert_searched_alike(one, other, method, sketches):
    """Two galleries give the same answers, however photos are compared."""
    for mode in MODES:
        first, second = (found(search(g, method, sketches, 99, mode)) for g in (one, other))
        assert first == second


def content(folder: Path) -> dict:
    return json.loads((folder / GALLERY).read_text())
