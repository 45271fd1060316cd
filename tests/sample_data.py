"""Tiny drawn benchmarks in the published layout, and the real pictures some tests compare with."""

import json
from functools import cache
from io import BytesIO
from pathlib import Path
from zlib import crc32

import pytest
from PIL import Image

from datasets import DATASETS, load_benchmark
from datasets.synthetic.benchmark import DESCRIPTION, STANDARD, draw_photo_of, draw_sketch_of
from datasets.synthetic.drawn import CATEGORIES

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
LISTS = {"test_class_sketchy25": "zeroshot1", "test_class_sketchy21": "zeroshot0"}  # else zeroshot
CHECKSUM_START = 4  # with it the first classes of every split become different categories
LAYOUT = {  # folder; photo list, sketch list; folders of photos, folder of sketches
    "sketchy_extend": (
        "Sketchy",
        ("all_photo_filelist_{}.txt", "sketch_tx_000000000000_ready_filelist_{}.txt"),
        ("256x256/photo/tx_000000000000_ready", "EXTEND_image_sketchy_ready"),
        "256x256/sketch/tx_000000000000_ready",
    ),
    "tu_berlin": (
        "TUBerlin",
        ("ImageResized_ready_filelist_{}.txt", "png_ready_filelist_{}.txt"),
        ("ImageResized_ready",),
        "png_ready",
    ),
    "Quickdraw": (
        "QuickDraw",
        ("all_photo_{}.txt", "sketch_{}.txt"),
        ("images",),
        "sketches",
    ),
    "synthetic": (
        "Synthetic",
        ("all_photo_filelist_{}.txt", "sketch_filelist_{}.txt"),
        ("photo",),
        "sketch",
    ),
}


def write_benchmark(
    root,
    dataset="sketchy_extend",
    split=None,
    seen=6,
    unseen=3,
    sketches=4,
    photos=5,
    size=48,
    lists=True,
):
    """Draw a benchmark below `root` (the --data_path); the folder that holds its lists and images.

    seen, unseen: how many of the split's classes, the first ones; without lists all of them, since
    the loader then needs every class. sketches, photos: a class. size: side in pixels.
    """
    split = split or next(iter(DATASETS[dataset].splits))
    folder, (photo_list, sketch_list), photo_folders, sketch_folder = LAYOUT[dataset]
    folder = Path(root) / folder
    for side, suffix, count in (("seen", "train", seen), ("unseen", "zero", unseen)):
        names = class_names(split, side)[: count if lists else None]
        rows = {photo_list: [], sketch_list: []}
        for label, name in enumerate(names):
            for i in range(photos):
                path = f"{photo_folders[i % len(photo_folders)]}/{name}/photo {i}.jpg"
                draw_picture(folder / path, name, i, size, outline=False)
                rows[photo_list].append(f"{path} {label}")
            for i in range(sketches):
                path = f"{sketch_folder}/{name}/sketch_{i}-1.png"
                draw_picture(folder / path, name, i, size, outline=True)
                rows[sketch_list].append(f"{path} {label}")
        if lists:
            named = [f"{name} {label}" for label, name in enumerate(names)]
            rows["cname_cid.txt" if side == "seen" else "cname_cid_zero.txt"] = named
            place = folder / LISTS.get(split, "zeroshot")
            place.mkdir(parents=True, exist_ok=True)
            for file, lines in rows.items():
                (place / file.format(suffix)).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if dataset == "synthetic":  # its loader reads how it was drawn
        (folder / DESCRIPTION).write_text(json.dumps(STANDARD), encoding="utf-8")
    return folder


def training_list(root, **counts):
    """The images of seen classes of a small benchmark, none of them for validation."""
    write_benchmark(root, unseen=1, **counts)
    split = "test_class_sketchy25"
    return load_benchmark("sketchy_extend", split, root, unseen=False, validation=False).train


def class_names(split, side):
    """The split's class names in the published order."""
    file = REPOSITORY / "datasets" / "splits" / f"{split}.{side}.txt"
    return file.read_text(encoding="utf-8").splitlines()


def draw_picture(file, class_name, number, size, outline):
    """Instance `number` of a class, from the drawn objects: as a sketch (outline), or a photo."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_encoded(class_name, number, size, outline, file.suffix))


@cache
def _encoded(class_name, number, size, outline, suffix):
    """The bytes of such a file; drawn once, since most tests need the same pictures."""
    seed = crc32(class_name.encode(), CHECKSUM_START)
    category = "".join(filter(str.isalpha, class_name.lower()))
    if category not in CATEGORIES:
        category = list(CATEGORIES)[seed % len(CATEGORIES)]
    draw = draw_sketch_of if outline else draw_photo_of
    picture, _ = draw(category, number, size, seed)
    file = BytesIO()
    picture.convert("RGB").save(file, format=Image.registered_extensions()[suffix], quality=95)
    return file.getvalue()


def shared_file(name):
    """A file or folder of the real pictures and recorded outputs; skips the test without it."""
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there (real pictures, not part of the repository)")
    return SHARED / name
