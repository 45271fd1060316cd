"""The published class names, and which seen classes are trained and which validated on."""

import numpy as np
import pytest
from sample_data import class_names, write_benchmark

from datasets import DATASETS, load_benchmark
from datasets.layout import SPLIT_FILES
from utils.errors import InputError

COUNTS = {  # split: seen, unseen classes
    "test_class_sketchy25": (100, 25),
    "test_class_sketchy21": (104, 21),
    "test_class_tuberlin30": (220, 30),
    "Quickdraw": (80, 30),
    "test_class_synthetic10": (40, 10),
}


def load(root, split="test_class_sketchy25", **settings):
    return load_benchmark("sketchy_extend", split, root, **settings)


def held_out(benchmark):
    return benchmark.validation.classes()


def test_every_split_belongs_to_one_benchmark():
    assert sorted(split for row in DATASETS.values() for split in row.splits) == sorted(COUNTS)


@pytest.mark.parametrize("split", COUNTS)
def test_split_files_hold_the_published_classes_once(split):
    seen, unseen = class_names(split, "seen"), class_names(split, "unseen")
    assert (len(seen), len(unseen)) == COUNTS[split]
    assert len(set(seen) | set(unseen)) == len(seen) + len(unseen)
    assert all(name == name.strip() and name for name in seen + unseen)


def test_there_are_no_other_split_files():
    expected = {f"{split}.{side}.txt" for split in COUNTS for side in ("seen", "unseen")}
    assert {file.name for file in SPLIT_FILES.iterdir()} == expected


def test_both_sketchy_splits_divide_the_same_125_classes():
    classes = [
        {*class_names(split, "seen"), *class_names(split, "unseen")}
        for split in DATASETS["sketchy_extend"].splits
    ]
    assert classes[0] == classes[1] and len(classes[0]) == 125


def test_17_unseen_classes_of_one_sketchy_split_are_seen_in_the_other():
    seen = set(class_names("test_class_sketchy25", "seen"))
    assert len(seen & set(class_names("test_class_sketchy21", "unseen"))) == 17


@pytest.mark.parametrize(("seen", "expected"), [(4, 2), (6, 2), (20, 2), (30, 3), (100, 10)])
def test_a_tenth_of_the_seen_classes_but_two_at_least_is_validated_on(tmp_path, seen, expected):
    write_benchmark(tmp_path, seen=seen, sketches=1, photos=1, size=8)
    benchmark = load(tmp_path)
    assert len(held_out(benchmark)) == expected
    assert set(held_out(benchmark)) | set(benchmark.train.classes()) == set(
        class_names("test_class_sketchy25", "seen")[:seen]
    )
    assert not set(held_out(benchmark)) & set(benchmark.train.classes())
    assert len(benchmark.train) + len(benchmark.validation) == 2 * seen
    held_out_in_list_order = [
        n for n in load(tmp_path, validation=False).train.classes() if n in held_out(benchmark)
    ]
    assert held_out(benchmark) == held_out_in_list_order


@pytest.mark.parametrize("count", [2, 3, 4])
def test_so_many_seen_classes_are_validated_on_as_the_setting_says(tmp_path, count):
    write_benchmark(tmp_path, sketches=1, photos=1, size=8)
    benchmark = load(tmp_path, validation_classes=count)
    trained, validated = set(benchmark.train.classes()), set(held_out(benchmark))
    assert (len(trained), len(validated)) == (6 - count, count)
    assert trained | validated == set(class_names("test_class_sketchy25", "seen")[:6])
    assert len(benchmark.train) == 2 * (6 - count) and len(benchmark.validation) == 2 * count
    assert len(benchmark.queries) == len(benchmark.gallery) == 3  # the test is not touched


def test_the_seed_chooses_the_validation_classes_whatever_their_number(tmp_path):
    write_benchmark(tmp_path, seen=40, sketches=1, photos=1, size=8)
    first, *others = (held_out(load(tmp_path, seed=n, validation_classes=20)) for n in range(4))
    assert held_out(load(tmp_path, seed=0, validation_classes=20, unseen=False)) == first
    assert all(other != first for other in others)
    assert held_out(load(tmp_path, validation_classes=4)) == held_out(load(tmp_path))  # a tenth


def test_their_number_holds_of_the_first_classes_too_and_for_nothing_without_validation(tmp_path):
    write_benchmark(tmp_path, sketches=1, photos=1, size=8)
    of_five = load(tmp_path, classes=5, validation_classes=3)
    assert (len(of_five.train.classes()), len(held_out(of_five))) == (2, 3)
    without = load(tmp_path, validation=False, validation_classes=3)
    assert len(without.train.classes()) == 6 and len(without.validation) == 0


@pytest.mark.parametrize("count", [5, 6, 100])
def test_two_classes_are_left_to_train_on_or_it_is_an_error(tmp_path, count):
    write_benchmark(tmp_path, sketches=1, photos=1, size=8)
    with pytest.raises(InputError, match="6 seen classes are too few"):
        load(tmp_path, validation_classes=count)


def test_too_few_seen_classes_for_validation_say_so(tmp_path):
    write_benchmark(tmp_path, seen=3)
    with pytest.raises(InputError, match=r"3 seen classes are too few .* --validate none"):
        load(tmp_path)
    assert len(load(tmp_path, validation=False).train.classes()) == 3


def test_the_seed_alone_chooses_the_validation_classes(tmp_path):
    write_benchmark(tmp_path, seen=40, sketches=1, photos=1, size=8)
    first = held_out(load(tmp_path, seed=1))
    others = [held_out(load(tmp_path, seed=seed)) for seed in range(2, 8)]
    np.random.seed(5)
    np.random.random(100)  # neither what was loaded before nor the global generator matters
    assert held_out(load(tmp_path, seed=1, unseen=False)) == first
    assert any(other != first for other in others)


def test_without_validation_all_seen_classes_are_trained_on(tmp_path):
    write_benchmark(tmp_path)
    benchmark = load(tmp_path, validation=False)
    assert len(benchmark.train.classes()) == 6 and len(benchmark.validation) == 0


def test_cls_number_takes_the_first_seen_classes(tmp_path):
    write_benchmark(tmp_path, seen=8)
    benchmark = load(tmp_path, classes=5, validation=False)
    assert benchmark.train.classes() == class_names("test_class_sketchy25", "seen")[:5]
    with_validation = load(tmp_path, classes=5)
    first_five = set(benchmark.train.classes())
    assert set(held_out(with_validation)) < first_five
    assert set(with_validation.train.classes()) < first_five
    assert len(load(tmp_path, classes=5).queries) == 12  # the test is not touched


@pytest.mark.parametrize("classes", [-1, 0, 1, 7, 100])
def test_cls_number_out_of_bounds_says_how_many_there_are(tmp_path, classes):
    write_benchmark(tmp_path)
    with pytest.raises(InputError, match=f"cls_number {classes}: .* has 6 seen classes"):
        load(tmp_path, classes=classes)


def test_cls_number_of_all_classes_is_allowed(tmp_path):
    write_benchmark(tmp_path)
    assert len(load(tmp_path, classes=6, validation=False).train.classes()) == 6
