"""Images and vectors without meaning, to measure with."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets.benchmark import ImageList
from model.method import Method

SIDE = 256  # px
STROKES, PATCHES = 8, 16


class Vectors:
    """In the place of a method, where its retrieval vectors are drawn."""

    similarity = Method.similarity


def noise_list(root: Path, names: list[str], targets: np.ndarray, modality: str) -> ImageList:
    """A list of images of one modality, by the names of their files; targets: (len(names),)."""
    class_names = [f"class {target}" for target in targets.tolist()]
    return ImageList.of_columns(root, names, modality, targets, class_names, "noise")


def draw_noise(folder: Path, modality: str, count: int, seed: int, side: int = SIDE) -> ImageList:
    """Write `count` files, sketches of random strokes or photos of coloured patches; their list.

    side: of the pictures, px.
    """
    random = np.random.default_rng(seed)
    draw, ending = {"sketch": (_sketch, "png"), "photo": (_photo, "jpg")}[modality]
    names = [f"{modality}_{number:05}.{ending}" for number in range(count)]
    for name in names:
        draw(random, side).save(folder / name)
    return noise_list(folder, names, np.zeros(count, dtype=np.int64), modality)


def draw_noise_classes(folder: Path, count: int, seed: int, side: int = SIDE) -> ImageList:
    """Write `count` files of two classes, sketches and photos in equal parts; their list."""
    parts = [draw_noise(folder, m, count // 2, seed, side) for m in ("sketch", "photo")]
    parts = [replace(part, target=np.arange(len(part)) % 2) for part in parts]
    names = [field.name for field in fields(ImageList) if field.name != "root"]
    columns = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
    return ImageList(root=folder, **columns)


def _sketch(random: np.random.Generator, side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    strokes = random.integers(20, side - 20, 2 * STROKES).tolist()
    ImageDraw.Draw(image).line(strokes, fill="black", width=3)
    return image


def _photo(random: np.random.Generator, side: int) -> Image.Image:
    patches = random.integers(0, 256, (PATCHES, PATCHES, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
