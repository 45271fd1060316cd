"""Sketchy, TU-Berlin and QuickDraw read from their class folders, where there are no lists."""

import pytest
from PIL import Image
from sample_data import class_names, shared_file, write_benchmark

from datasets import DATASETS, load_benchmark
from utils.errors import InputError

EVERY = [(name, split) for name, row in DATASETS.items() for split in row.splits]
SPLIT = "test_class_sketchy25"


def write(root, dataset="sketchy_extend", split=None):
    return write_benchmark(root, dataset, split, sketches=1, photos=1, size=8, lists=False)


@pytest.mark.parametrize(("dataset", "split"), EVERY)
def test_all_pictures_of_the_split_are_read_with_a_note(tmp_path, dataset, split):
    write(tmp_path, dataset, split)
    benchmark = load_benchmark(dataset, split, tmp_path, validation=False)
    seen, unseen = class_names(split, "seen"), class_names(split, "unseen")
    assert benchmark.train.classes() == seen
    assert benchmark.queries.classes() == benchmark.gallery.classes() == unseen
    assert len(benchmark.train) == 2 * len(seen) and len(benchmark.gallery) == len(unseen)
    assert benchmark.gallery.target.tolist() == list(range(len(unseen)))
    assert all(benchmark.gallery.file(i).is_file() for i in range(len(unseen)))
    (note,) = benchmark.notes
    assert "class folders are read instead of lists" in note
    unlisted = {"sketchy_extend": "5,000", "tu_berlin": "2,200"}.get(dataset)
    assert unlisted is None or f"{unlisted} of the folders' sketches" in note


def test_photos_come_from_both_photo_folders_of_sketchy(tmp_path):
    folder = write(tmp_path)
    extended = folder / "EXTEND_image_sketchy_ready" / "cup"
    extended.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(extended / "n1.webp")
    gallery = load_benchmark("sketchy_extend", SPLIT, tmp_path, seen=False).gallery
    assert gallery.path[gallery.class_name == "cup"].tolist() == [
        "256x256/photo/tx_000000000000_ready/cup/photo 0.jpg",
        "EXTEND_image_sketchy_ready/cup/n1.webp",
    ]


def test_files_that_are_no_pictures_are_passed_over(tmp_path):
    photos = write(tmp_path) / "256x256/photo/tx_000000000000_ready/cup"
    (photos / "Thumbs.db").write_bytes(b"x")
    (photos / "readme.txt").write_text("x")
    (photos / "photo 9.JPG").write_bytes((photos / "photo 0.jpg").read_bytes())
    gallery = load_benchmark("sketchy_extend", SPLIT, tmp_path, seen=False).gallery
    names = [path.rsplit("/", 1)[1] for path in gallery.path[gallery.class_name == "cup"]]
    assert names == ["photo 0.jpg", "photo 9.JPG"]


def test_hidden_files_of_other_systems_are_passed_over(tmp_path):
    photos = write(tmp_path) / "256x256/photo/tx_000000000000_ready/cup"
    (photos / "._photo 0.jpg").write_bytes(b"what macOS leaves beside a file in an archive")
    gallery = load_benchmark("sketchy_extend", SPLIT, tmp_path, seen=False).gallery
    assert len(gallery) == 25


def test_class_folders_are_found_under_the_spellings_of_other_mirrors(tmp_path):
    folder = write(tmp_path) / "256x256/sketch/tx_000000000000_ready"
    (folder / "teddy_bear").rename(folder / "Teddy Bear")
    (folder / "hot-air_balloon").rename(folder / "hot_air_balloon")
    benchmark = load_benchmark("sketchy_extend", SPLIT, tmp_path)
    queries = benchmark.queries
    (path,) = queries.path[queries.class_name == "teddy_bear"]
    assert path == "256x256/sketch/tx_000000000000_ready/Teddy Bear/sketch_0-1.png"


def test_classes_without_pictures_are_named(tmp_path):
    folder = write(tmp_path) / "256x256/sketch/tx_000000000000_ready"
    (folder / "swan" / "sketch_0-1.png").unlink()
    (folder / "bell").rename(folder / "no bell")
    with pytest.raises(InputError, match=r"no sketch of swan, bell \(test_class_sketchy25, unseen"):
        load_benchmark("sketchy_extend", SPLIT, tmp_path)


def test_real_pictures_without_their_lists_are_all_read(tmp_path):
    images = shared_file("data/sketchy_mini/Sketchy/256x256")
    (tmp_path / "Sketchy").mkdir()
    (tmp_path / "Sketchy" / "256x256").symlink_to(images, target_is_directory=True)
    benchmark = load_benchmark("sketchy_extend", SPLIT, tmp_path, validation=False)
    assert len(benchmark.train.of("sketch")) == len(benchmark.train.of("photo")) == 2500
    assert len(benchmark.queries) == len(benchmark.gallery) == 625
