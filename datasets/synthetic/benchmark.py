"""Drawn objects, no download: the built-in benchmark.

Every instance of a category is drawn twice, as a photo and as a sketch, each with a mask that tells
which part of the object one sees at each pixel.
"""

import json
import os
import shutil
from dataclasses import dataclass
from errno import EEXIST, ENOTEMPTY
from functools import cache
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from datasets.benchmark import PHOTO, SKETCH, Benchmark
from datasets.layout import SPLIT_FILES, Layout
from datasets.synthetic.drawn import CATEGORIES
from datasets.synthetic.drawn.photo import draw_photo
from datasets.synthetic.drawn.pose import draw_pose, part_labels
from datasets.synthetic.drawn.shapes import Measures
from datasets.synthetic.drawn.sketch import draw_sketch, leave_out
from utils.distributed import wait_for_all
from utils.errors import InputError
from utils.files import open_regular
from utils.logs import log, progress, write_json
from utils.world import is_main

SPLIT = "test_class_synthetic10"
LAYOUT = Layout(
    folder="Synthetic",
    splits={SPLIT: "zeroshot"},
    lists={PHOTO: "all_photo_filelist_{}.txt", SKETCH: "sketch_filelist_{}.txt"},
    images={PHOTO: ("photo",), SKETCH: ("sketch",)},
    every={SKETCH: 4, PHOTO: 1},
)
STANDARD = {"version": 1, "instances": 40, "size": 96, "seed": 0}
"""What the benchmark's numbers refer to. version: rises when the same seed draws other pictures."""

DESCRIPTION = "drawn.json"
MASKS = "parts"
JPEG_QUALITY = 90
PHOTO_POSE = {"size": (0.6, 0.9), "turn": 9, "shear": 0.06, "margin": 0.03}
SKETCH_POSE = {"size": (0.74, 0.88), "turn": 5, "shear": 0.06, "margin": 0.06}


@dataclass(frozen=True)
class Pair:
    """One instance: photo (RGB), sketch (L), and the part at each pixel of both (L).

    A mask's value is the place of the part's name in part_names(category), from 1; 0 is none.
    """

    photo: Image.Image
    photo_parts: Image.Image
    sketch: Image.Image
    sketch_parts: Image.Image


def load_synthetic(split: str, root: Path, **settings) -> Benchmark:
    """The built-in benchmark, drawn below `root` where it is absent; settings: see load_layout."""
    folder = Path(root) / LAYOUT.folder
    if is_main():
        _draw_if_absent(folder)
    wait_for_all()
    _draw_if_absent(folder)  # on another machine than the first process
    drawn = read_description(folder)
    benchmark = LAYOUT(split, root, **settings)
    other = {name: drawn.get(name) for name in STANDARD if drawn.get(name) != STANDARD[name]}
    if other:
        ours = ", ".join(f"{name} {value}" for name, value in other.items())
        standard = ", ".join(f"{name} {STANDARD[name]}" for name in other)
        benchmark.notes.append(
            f"{folder} was drawn with {ours}, the standard is {standard}: numbers compare with "
            "those of the same drawing only."
        )
    return benchmark


def write_synthetic(
    root: Path,
    *,
    instances: int = STANDARD["instances"],
    size: int = STANDARD["size"],
    seed: int = STANDARD["seed"],
) -> Path:
    """Draw the benchmark in the published layout; the folder, which appears when all is written.

    instances: of each category. size: side of the pictures in px. Photos and sketches of an
    instance share their name, <category>_<number>; masks of the parts (palette PNG) lie below
    parts/ under the same path, names of the parts in parts/names.json. Raises InputError where the
    folder exists or cannot be written.
    """
    folder = Path(root) / LAYOUT.folder
    aside = folder.with_name(f".{folder.name}.{uuid4().hex}.tmp")
    if os.path.lexists(folder):
        raise _ExistsError(folder)
    try:
        _write_lists(aside, instances)
        _write_pictures(aside, instances, size, seed)
        write_json(aside / MASKS / "names.json", {name: part_names(name) for name in CATEGORIES})
        drawn = {"version": STANDARD["version"], "instances": instances, "size": size, "seed": seed}
        write_json(aside / DESCRIPTION, drawn)
        aside.rename(folder)
    except OSError as error:
        if error.errno in (EEXIST, ENOTEMPTY) and os.path.lexists(folder):
            raise _ExistsError(folder) from error
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}). Name another place with "
            "--data_path."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def read_description(folder: Path) -> dict:
    """The settings with which the folder was drawn. Raises InputError where they are not there."""
    file = folder / DESCRIPTION
    try:
        with open_regular(file) as stream:
            drawn = json.load(stream)
    except (OSError, ValueError, RecursionError):
        drawn = None
    if not isinstance(drawn, dict):
        raise InputError(f"{file}: is missing or damaged. Delete {folder} to have it drawn anew.")
    return drawn


def draw_pair(category: str, number: int, size: int, seed: int) -> Pair:
    """Instance `number` of a category, `size` px wide: a pure function of the arguments."""
    photo, photo_parts = draw_photo_of(category, number, size, seed)
    sketch, sketch_parts = draw_sketch_of(category, number, size, seed)
    return Pair(photo, photo_parts, sketch, sketch_parts)


def draw_photo_of(category: str, number: int, size: int, seed: int) -> tuple[Image.Image, ...]:
    """The photo of draw_pair, and its mask."""
    instance, camera, _ = _generators(category, number, seed)
    flip = _is_flipped(instance)
    parts = CATEGORIES[category](Measures(instance))
    pose = draw_pose(parts, camera, flip=flip, **PHOTO_POSE)
    photo = draw_photo(parts, pose, size, camera)
    return photo, part_labels(parts, pose, size, part_names(category))


def draw_sketch_of(category: str, number: int, size: int, seed: int) -> tuple[Image.Image, ...]:
    """The sketch of draw_pair, and its mask: of the same instance, with mistaken proportions."""
    instance, _, hand = _generators(category, number, seed)
    flip = _is_flipped(instance)
    parts = leave_out(CATEGORIES[category](Measures(instance, misjudged=hand)), hand)
    pose = draw_pose(parts, hand, flip=flip, **SKETCH_POSE)
    sketch = draw_sketch(parts, pose, size, hand)
    return sketch, part_labels(parts, pose, size, part_names(category))


@cache
def part_names(category: str) -> list[str]:
    """The names of all parts that instances of a category may have, in alphabetical order."""
    build = CATEGORIES[category]
    drawn = (build(Measures(np.random.default_rng(number))) for number in range(64))
    return sorted({part.name for parts in drawn for part in parts})


def _draw_if_absent(folder: Path) -> None:
    if os.path.lexists(folder):
        return
    log.info("drawing the built-in benchmark (once): %s", folder)
    try:
        write_synthetic(folder.parent)
    except _ExistsError:
        log.info("%s: another process has drawn it meanwhile; that one is used.", folder)


def _generators(category: str, number: int, seed: int) -> list[np.random.Generator]:
    """Of an instance's proportions, its photo and its sketch: each a stream of its own."""
    key = [seed, list(CATEGORIES).index(category), number]
    return [np.random.default_rng([*key, purpose]) for purpose in range(3)]


def _is_flipped(instance: np.random.Generator) -> bool:
    return bool(instance.random() < 0.5)


def _write_lists(folder: Path, instances: int) -> None:
    """The published lists: paths with labels, and the names of the labels."""
    place = folder / LAYOUT.splits[SPLIT]
    place.mkdir(parents=True)
    for side, suffix, names in (("seen", "train", ""), ("unseen", "zero", "_zero")):
        categories = (SPLIT_FILES / f"{SPLIT}.{side}.txt").read_text(encoding="utf-8").split()
        named = [f"{name} {label}" for label, name in enumerate(categories)]
        _write_lines(place / f"cname_cid{names}.txt", named)
        for modality, list_name in LAYOUT.lists.items():
            rows = [
                f"{_path(modality, category, number)} {label}"
                for label, category in enumerate(categories)
                for number in range(instances)
            ]
            _write_lines(place / list_name.format(suffix), rows)


def _write_pictures(folder: Path, instances: int, size: int, seed: int) -> None:
    for category in CATEGORIES:
        for modality in (PHOTO, SKETCH):
            (folder / modality / category).mkdir(parents=True)
            (folder / MASKS / modality / category).mkdir(parents=True)
    keys = [(category, number) for category in CATEGORIES for number in range(instances)]
    for category, number in progress(keys, len(keys), "instances drawn"):
        pair = draw_pair(category, number, size, seed)
        photo, sketch = (_path(modality, category, number) for modality in (PHOTO, SKETCH))
        pair.photo.save(folder / photo, quality=JPEG_QUALITY)
        pair.sketch.save(folder / sketch)
        for path, labels in ((photo, pair.photo_parts), (sketch, pair.sketch_parts)):
            labels.putpalette(_PALETTE)
            labels.save((folder / MASKS / path).with_suffix(".png"))


class _ExistsError(InputError):
    """The folder is there already."""

    def __init__(self, folder: Path):
        super().__init__(f"{folder}: exists already. Delete it to have it drawn anew.")


def _path(modality: str, category: str, number: int) -> str:
    suffix = "jpg" if modality == PHOTO else "png"
    return f"{modality}/{category}/{category}_{number:03d}.{suffix}"


def _write_lines(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")


_PALETTE = [
    *(0, 0, 0, 230, 60, 60, 60, 180, 75, 255, 225, 25, 0, 130, 200, 245, 130, 48, 145, 30, 180),
    *(70, 240, 240, 240, 50, 230, 210, 245, 60, 250, 190, 212, 0, 128, 128, 220, 190, 255),
]
"""Colours in which an image viewer shows the masks."""
