"""Image lists as columns, and names without what mirrors change."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from datasets.benchmark import ImageList, plain_name


def image_list():
    columns = {
        "path": ["b/1.png", "b/2.jpg", "a/3.png", "a/4.jpg", "b/5.jpg"],
        "class_name": ["bee", "bee", "ant", "ant", "bee"],
        "target": [7, 7, 2, 2, 7],
        "modality": ["sketch", "photo", "sketch", "photo", "photo"],
        "origin": [f"list.txt, line {i}" for i in range(1, 6)],
        "location": ["", "b/2.JPEG", "", "", ""],
    }
    columns = {name: np.array(column, dtype=object) for name, column in columns.items()}
    columns["target"] = columns["target"].astype(np.int64)
    return ImageList(root=Path("data"), **columns)


def test_one_value_in_the_place_of_a_column_is_that_of_all_images():
    images = ImageList.of_columns(Path("data"), ["a", "b"], "photo", origin=["x", "y"])
    assert images.modality.tolist() == ["photo", "photo"] and images.origin.tolist() == ["x", "y"]
    assert images.target.tolist() == [-1, -1] and images.target.dtype == np.int64
    assert len(ImageList.of_columns(Path("data"), [], "photo")) == 0


def test_a_modality_keeps_its_rows_in_order():
    photos = image_list().of("photo")
    assert photos.path.tolist() == ["b/2.jpg", "a/4.jpg", "b/5.jpg"]
    assert photos.target.tolist() == [7, 2, 7]
    assert photos.origin[2] == "list.txt, line 5"


def test_rows_are_selected_by_mask_or_in_the_order_of_indices():
    images = image_list()
    assert images.select(np.array([4, 0])).path.tolist() == ["b/5.jpg", "b/1.png"]
    assert images.select(images.target == 2).path.tolist() == ["a/3.png", "a/4.jpg"]
    assert len(images.select(np.array([], dtype=np.int64))) == 0


@pytest.mark.parametrize(("step", "count"), [(1, 5), (2, 3), (4, 2), (20, 1)])
def test_every_nth_image_begins_with_the_first(step, count):
    images = image_list()
    assert images.every(step).path.tolist() == images.path[::step].tolist()
    assert len(images.every(step)) == count


def test_classes_stand_in_the_order_of_their_targets():
    assert image_list().classes() == ["ant", "bee"]


def named(*rows):
    """An image list of such (target, modality, file name)."""
    target, modality, names = zip(*rows, strict=True)
    columns = {
        "path": [f"folder of {m}s/{name}" for m, name in zip(modality, names, strict=True)],
        "class_name": [str(number) for number in target],
        "target": target,
        "modality": modality,
        "origin": [""] * len(rows),
        "location": [""] * len(rows),
    }
    columns = {name: np.array(column, dtype=object) for name, column in columns.items()}
    return ImageList(root=Path("data"), **{**columns, "target": np.array(target)})


def test_names_tell_the_photo_a_sketch_was_drawn_from():
    images = named(
        (3, "sketch", "n02691156_10151-3.png"),
        (3, "sketch", "n02691156_10151-4.png"),
        (3, "sketch", "plane_007.png"),
        (3, "photo", "n02691156_10152.jpg"),
        (3, "photo", "n02691156_10151.jpg"),
        (3, "photo", "n02691156_10151.jpg"),  # listed twice, as Sketchy's are
        (3, "photo", "plane_007.jpg"),
    )
    assert images.own_photos().tolist() == [4, 4, 6, -1, -1, -1, -1]


def test_numbers_other_classes_and_other_sketches_tell_nothing():
    images = named(
        (1, "sketch", "17.png"),
        (1, "sketch", "17-1.png"),
        (1, "sketch", "ant-2.png"),
        (1, "sketch", "ant-2-1.png"),
        (1, "photo", "17.jpg"),
        (2, "photo", "ant.jpg"),
        (2, "photo", "ant-2.jpg"),
    )
    assert images.own_photos().tolist() == [-1] * 7
    assert named((1, "photo", "a.jpg")).select(np.array([], dtype=int)).own_photos().size == 0


def test_a_sketch_of_the_same_name_comes_before_one_with_a_number_less():
    images = named((1, "sketch", "owl-2.png"), (1, "photo", "owl.jpg"), (1, "photo", "owl-2.jpg"))
    assert images.own_photos().tolist() == [2, -1, -1]


def test_file_lies_where_the_disk_has_it_else_where_the_list_says():
    images = image_list()
    assert images.file(0) == Path("data/b/1.png")
    assert images.file(1) == Path("data/b/2.JPEG")


def test_a_list_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        image_list().root = Path("elsewhere")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hot-air_balloon", "Hot Air Balloon"),
        ("n01_12.JPEG", "n01_12.jpg"),
        ("photo 1.jpeg", "photo-1.JPG"),
        ("t-shirt", "tshirt"),
    ],
)
def test_spellings_of_mirrors_are_one_name(one, other):
    assert plain_name(one) == plain_name(other)


@pytest.mark.parametrize(
    ("one", "other"), [("bear (animal)", "bear"), ("a.png", "a.jpg"), ("n1_12", "n1_13")]
)
def test_different_names_stay_different(one, other):
    assert plain_name(one) != plain_name(other)
