"""The built-in benchmark: what is written, that it is always the same, and who draws it when."""

import errno
import json
import multiprocessing
import os
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_data import class_names

from datasets import DATASETS, load_benchmark
from datasets.synthetic import benchmark as synthetic
from datasets.synthetic.benchmark import (
    SPLIT,
    STANDARD,
    draw_pair,
    draw_photo_of,
    draw_sketch_of,
    part_names,
    read_description,
    write_synthetic,
)
from datasets.synthetic.drawn import CATEGORIES
from datasets.synthetic.drawn.shapes import Measures
from utils.errors import InputError

pytestmark = pytest.mark.slow

SMALL = {"instances": 2, "size": 24, "seed": 5}
SMALLEST = {"instances": 1, "size": 8}
LISTS = {"photo": "all_photo_filelist_{}.txt", "sketch": "sketch_filelist_{}.txt"}
SIDES = {"seen": ("train", "cname_cid.txt"), "unseen": ("zero", "cname_cid_zero.txt")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small drawing that no test changes."""
    return write_synthetic(tmp_path_factory.mktemp("drawn"), **SMALL)


@pytest.fixture
def drawn_small(monkeypatch):
    """load_synthetic draws as few and as small pictures as can be."""
    monkeypatch.setattr(synthetic, "write_synthetic", partial(write_synthetic, **SMALLEST))


def load(root, **wanted):
    return load_benchmark("synthetic", SPLIT, root, **{"validation": False, **wanted})


def contents(folder):
    """Bytes of every file below the folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def rows(folder, name):
    """(path or class name, label) of each line of a list."""
    lines = (folder / "zeroshot" / name).read_text(encoding="utf-8").splitlines()
    return [(path, int(label)) for path, label in (line.split() for line in lines)]


def pixels(pair):
    return [np.asarray(picture) for picture in vars(pair).values()]


# ---- what is written


def test_the_folder_holds_these_files_and_no_others(folder):
    expected = {"drawn.json", "parts/names.json"}
    for name, numbers in ((category, ("000", "001")) for category in CATEGORIES):
        for place in (f"{name}/{name}_{number}" for number in numbers):
            expected |= {f"photo/{place}.jpg", f"sketch/{place}.png"}
            expected |= {f"parts/photo/{place}.png", f"parts/sketch/{place}.png"}
    for suffix, names in SIDES.values():
        files = (names, *(name.format(suffix) for name in LISTS.values()))
        expected |= {f"zeroshot/{file}" for file in files}
    assert set(contents(folder)) == expected
    assert list(folder.parent.iterdir()) == [folder]


def test_40_seen_and_10_unseen_classes_are_all_categories_once():
    seen, unseen = class_names(SPLIT, "seen"), class_names(SPLIT, "unseen")
    assert (len(seen), len(unseen)) == (40, 10)
    assert sorted(seen + unseen) == sorted(CATEGORIES)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("modality", LISTS)
def test_lists_name_every_file_of_their_classes_with_its_label(folder, side, modality):
    suffix, names = SIDES[side]
    labels = dict(rows(folder, names))
    assert list(labels) == class_names(SPLIT, side)
    assert list(labels.values()) == list(range(len(labels)))
    listed = rows(folder, LISTS[modality].format(suffix))
    assert len({path for path, _ in listed}) == len(listed) == 2 * len(labels)
    for path, label in listed:
        kind, category, file = path.split("/")
        assert (kind, labels[category]) == (modality, label) and file.startswith(f"{category}_")
        assert (folder / path).is_file()


def test_photo_sketch_and_masks_of_an_instance_share_their_name(folder):
    names = {}
    for place in ("photo", "sketch", "parts/photo", "parts/sketch"):
        files = (folder / place).glob("*/*")
        names[place] = {file.relative_to(folder / place).with_suffix("") for file in files}
    assert len(names["photo"]) == 2 * len(CATEGORIES)
    assert all(found == names["photo"] for found in names.values())


@pytest.mark.parametrize("category", ["cup", "bicycle", "octopus"])
def test_files_show_what_draw_pair_draws(folder, category):
    for number in (0, 1):
        pair = draw_pair(category, number, SMALL["size"], SMALL["seed"])
        place = f"{category}/{category}_{number:03d}"
        with Image.open(folder / f"photo/{place}.jpg") as photo:
            assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (24, 24))
            lost = np.abs(np.asarray(photo, dtype=int) - np.asarray(pair.photo, dtype=int))
            assert lost.mean() < 15
        for file, picture in (
            (f"sketch/{place}.png", pair.sketch),
            (f"parts/photo/{place}.png", pair.photo_parts),
            (f"parts/sketch/{place}.png", pair.sketch_parts),
        ):
            with Image.open(folder / file) as found:
                assert np.array_equal(np.asarray(found), np.asarray(picture)), file


def test_masks_are_palette_pictures_of_the_numbers_of_parts(folder):
    names = json.loads((folder / "parts" / "names.json").read_text(encoding="utf-8"))
    assert names == {category: part_names(category) for category in CATEGORIES}
    for modality in LISTS:
        for category in CATEGORIES:
            found = set()
            for file in (folder / "parts" / modality / category).iterdir():
                with Image.open(file) as mask:
                    assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (24, 24))
                    found |= set(np.unique(np.asarray(mask)))
                    colours = {tuple(np.asarray(mask.convert("RGB"))[at]) for at in _firsts(mask)}
                    assert len(colours) == len(_firsts(mask))  # each part has its own
            assert {0} < found <= set(range(len(names[category]) + 1))


def _firsts(mask):
    """Where each number first stands."""
    numbers, places = np.unique(np.asarray(mask), return_index=True)
    assert len(numbers) > 1
    return [np.unravel_index(place, (mask.height, mask.width)) for place in places]


def test_the_palette_has_a_colour_for_every_part():
    colours = np.reshape(synthetic._PALETTE, (-1, 3)).tolist()
    assert len(colours) > max(len(part_names(category)) for category in CATEGORIES)
    assert len({tuple(colour) for colour in colours}) == len(colours)


def test_part_names_are_all_that_instances_have():
    for category, build in CATEGORIES.items():
        generators = (np.random.default_rng([7, number]) for number in range(40))
        parts = [part for random in generators for part in build(Measures(random))]
        assert {part.name for part in parts} <= set(part_names(category)), category
        assert part_names(category) == sorted(set(part_names(category)))


def test_the_description_says_how_it_was_drawn(folder):
    assert read_description(folder) == {"version": STANDARD["version"], **SMALL}


# ---- always the same


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path):
    one, again, other = (
        contents(write_synthetic(tmp_path / name, **SMALLEST, seed=seed))
        for name, seed in (("one", 3), ("again", 3), ("other", 4))
    )
    assert one == again
    assert one.keys() == other.keys()
    pictures = [name for name in one if name.startswith(("photo/", "sketch/"))]
    changed = [name for name in pictures if one[name] != other[name]]
    assert len(pictures) == 100 and len(changed) >= 98


def test_an_instance_does_not_depend_on_how_many_are_drawn(folder, tmp_path):
    few = contents(write_synthetic(tmp_path, **{**SMALL, "instances": 1}))
    more = contents(folder)
    pictures = [name for name in few if name.endswith(("_000.jpg", "_000.png"))]
    assert len(pictures) == 200
    assert all(few[name] == more[name] for name in pictures)


KEYS = st.lists(
    st.tuples(st.sampled_from(sorted(CATEGORIES)), st.integers(0, 50), st.integers(0, 3)),
    min_size=2,
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(KEYS)
def test_a_pair_depends_on_its_arguments_alone(keys):
    """Not on the order of calls, nor on other random numbers."""
    first = [pixels(draw_pair(name, number, 16, seed)) for name, number, seed in keys]
    np.random.seed(1)
    np.random.random(3)
    later = [pixels(draw_pair(name, number, 16, seed)) for name, number, seed in reversed(keys)]
    for one, other in zip(first, reversed(later), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("category", "in_photo", "in_sketch", "tint", "paper"),
    [
        ("cup", 0.329, 0.330, (149, 160, 163), 241),
        ("bicycle", 0.111, 0.166, (78, 123, 126), 227),
        ("snail", 0.300, 0.241, (121, 157, 172), 229),
        ("tree", 0.221, 0.277, (127, 136, 126), 242),
        ("fish", 0.176, 0.222, (85, 154, 96), 234),
    ],
)
def test_the_standard_pictures_are_those_of_this_version(
    category, in_photo, in_sketch, tint, paper
):
    """Where this fails, other pictures are drawn: raise STANDARD["version"], and record anew."""
    pair = draw_pair(category, 0, STANDARD["size"], STANDARD["seed"])
    photo, photo_parts, sketch, sketch_parts = pixels(pair)
    assert STANDARD["version"] == 1
    assert np.mean(photo_parts > 0) == pytest.approx(in_photo, abs=0.004)  # share of the object
    assert np.mean(sketch_parts > 0) == pytest.approx(in_sketch, abs=0.004)
    assert np.allclose(photo.mean(axis=(0, 1)), tint, atol=2)
    assert sketch.mean() == pytest.approx(paper, abs=2)


def test_instances_seeds_and_categories_differ():
    keys = [("cup", 0, 0), ("cup", 1, 0), ("cup", 0, 1), ("teapot", 0, 0)]
    drawn = [pixels(draw_pair(name, number, 24, seed)) for name, number, seed in keys]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_photo_and_sketch_are_the_same_drawn_alone():
    pair = pixels(draw_pair("fish", 4, 24, 1))
    alone = [*draw_sketch_of("fish", 4, 24, 1), *draw_photo_of("fish", 4, 24, 1)]
    sketch, sketch_parts, photo, photo_parts = map(np.asarray, alone)
    for one, other in zip(pair, (photo, photo_parts, sketch, sketch_parts), strict=True):
        assert np.array_equal(one, other)


def test_other_sizes_show_the_same_instance():
    small, large = (np.asarray(draw_pair("house", 2, size, 0).photo_parts) for size in (24, 96))
    agree = np.mean(small == large[2::4, 2::4])
    assert agree > 0.85


# ---- whole or not at all


def test_an_existing_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "Synthetic").mkdir()
    (tmp_path / "Synthetic" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=r"Synthetic: exists already\. Delete it"):
        write_synthetic(tmp_path, **SMALLEST)
    assert contents(tmp_path) == {"Synthetic/mine.txt": b"kept"}
    assert len(list(tmp_path.iterdir())) == 1


def fail_at(monkeypatch, call, error):
    """Let the drawing of a pair fail at this call."""
    calls = Counter()

    def draw(*key):
        calls["pairs"] += 1
        if calls["pairs"] == call:
            raise error
        return draw_pair(*key)

    monkeypatch.setattr(synthetic, "draw_pair", draw)


@pytest.mark.parametrize("call", [1, 30])
def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch, call):
    fail_at(monkeypatch, call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, **SMALLEST)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    fail_at(monkeypatch, 20, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)") as error:
        load_benchmark("synthetic", SPLIT, tmp_path)
    assert "--data_path" in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_says_what_it_is(tmp_path, monkeypatch):
    fail_at(monkeypatch, 1, OSError("encoder error -2"))
    with pytest.raises(InputError, match=r"cannot be written \(encoder error -2\)"):
        write_synthetic(tmp_path, **SMALLEST)


def test_the_folder_appears_at_once_or_not_at_all(tmp_path, monkeypatch):
    def rename(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(InputError, match="cannot be written"):
        write_synthetic(tmp_path, **SMALLEST)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    seen = []

    def draw(*key):
        seen.append((tmp_path / "Synthetic").exists())
        return draw_pair(*key)

    monkeypatch.setattr(synthetic, "draw_pair", draw)
    write_synthetic(tmp_path, **SMALLEST)
    assert seen == [False] * len(CATEGORIES)
    assert [path.name for path in tmp_path.iterdir()] == ["Synthetic"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, below):
    (tmp_path / "file").write_text("a file, where a folder is needed")
    with pytest.raises(InputError, match=r"cannot be written .*--data_path") as error:
        load(tmp_path / "file" / below)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_place_is_made(tmp_path):
    folder = write_synthetic(tmp_path / "not" / "yet", **SMALLEST)
    assert folder == tmp_path / "not" / "yet" / "Synthetic"
    assert (folder / "drawn.json").is_file()


# ---- loading


def test_it_is_drawn_where_it_is_absent_and_only_then(tmp_path, drawn_small, monkeypatch):
    first = load(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(synthetic, "write_synthetic", None)  # calling it would fail
    again = load(tmp_path)
    assert contents(tmp_path) == before
    assert (len(first.train), len(first.queries), len(first.gallery)) == (80, 10, 10)
    assert again.train.path.tolist() == first.train.path.tolist()
    assert all(first.train.file(i).is_file() for i in range(80))


def test_loading_draws_the_standard(monkeypatch, tmp_path):
    drawn = []

    def write_pictures(folder, *settings):
        drawn.append(settings)
        (folder / "parts").mkdir()

    monkeypatch.setattr(synthetic, "_write_pictures", write_pictures)
    with pytest.raises(InputError, match="listed files missing"):
        load(tmp_path)
    assert drawn == [(STANDARD["instances"], STANDARD["size"], STANDARD["seed"])]
    assert read_description(tmp_path / "Synthetic") == STANDARD


def test_the_table_of_benchmarks_has_the_counts_of_the_standard():
    split = DATASETS["synthetic"].splits[SPLIT]
    assert split.sketches == split.photos == 10 * STANDARD["instances"]


def test_sides_and_validation_are_as_for_any_benchmark(folder):
    benchmark = load(folder.parent, validation=True)
    assert len(benchmark.validation.classes()) == 4 and len(benchmark.train.classes()) == 36
    assert benchmark.every == {"sketch": 4, "photo": 1}
    unseen = load(folder.parent, seen=False)
    assert len(unseen.train) == 0
    assert unseen.queries.classes() == unseen.gallery.classes() == class_names(SPLIT, "unseen")


def test_a_drawing_that_is_not_standard_is_noted(folder, monkeypatch):
    (note,) = load(folder.parent).notes
    assert str(folder) in note
    assert "drawn with instances 2, size 24, seed 5, the standard is instances 40, size 96" in note
    assert "version" not in note  # which is the standard's
    monkeypatch.setitem(synthetic.STANDARD, "version", STANDARD["version"] + 1)
    (note,) = load(folder.parent).notes
    assert f"drawn with version {STANDARD['version'] - 1}, instances 2" in note


def test_a_standard_drawing_has_no_note(folder, monkeypatch):
    monkeypatch.setattr(synthetic, "STANDARD", {"version": STANDARD["version"], **SMALL})
    assert load(folder.parent).notes == []


@pytest.mark.parametrize("content", [None, b"", b'{"version": 1', b"[]", b"null", b"\xff"])
def test_a_missing_or_damaged_description_says_what_to_do(tmp_path, drawn_small, content):
    load(tmp_path)
    file = tmp_path / "Synthetic" / "drawn.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"drawn\.json: is missing or damaged\. Delete .* anew"):
        load(tmp_path)


# ---- several processes


def test_the_other_processes_wait_for_the_first_one(tmp_path, drawn_small, monkeypatch):
    def first_one_draws():
        write_synthetic(tmp_path, **SMALLEST)
        monkeypatch.setattr(synthetic, "write_synthetic", None)  # calling it would fail

    monkeypatch.setattr(synthetic, "is_main", lambda: False)
    monkeypatch.setattr(synthetic, "wait_for_all", first_one_draws)
    assert len(load(tmp_path).queries) == 10


def test_a_process_on_another_machine_draws_its_own(tmp_path, drawn_small, monkeypatch):
    monkeypatch.setattr(synthetic, "is_main", lambda: False)
    assert len(load(tmp_path).queries) == 10


def overtaken(monkeypatch, root):
    """While a pair is drawn, another process finishes the whole drawing, with another seed."""

    def draw(*key):
        if not (root / "Synthetic").exists():
            monkeypatch.setattr(synthetic, "draw_pair", draw_pair)
            write_synthetic(root, **SMALLEST, seed=9)
        return draw_pair(*key)

    monkeypatch.setattr(synthetic, "draw_pair", draw)


def test_a_drawing_that_comes_second_is_dropped(tmp_path, drawn_small, monkeypatch):
    overtaken(monkeypatch, tmp_path)
    assert len(load(tmp_path).queries) == 10
    assert read_description(tmp_path / "Synthetic")["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["Synthetic"]


def test_writing_a_drawing_that_comes_second_is_an_error(tmp_path, monkeypatch):
    overtaken(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="exists already"):
        write_synthetic(tmp_path, **SMALLEST, seed=3)
    assert read_description(tmp_path / "Synthetic")["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["Synthetic"]


def test_two_processes_that_find_nothing_end_with_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    both_draw = context.Barrier(2, timeout=60)
    work = partial(_load_beside_another, tmp_path, both_draw)
    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["Synthetic"]
    found = contents(tmp_path / "Synthetic")
    assert found == contents(write_synthetic(tmp_path / "alone", **SMALLEST))


def _load_beside_another(root, both_draw):
    first = iter([True])

    def draw(*key):
        if next(first, False):
            both_draw.wait()
        return draw_pair(*key)

    synthetic.draw_pair = draw
    synthetic.write_synthetic = partial(write_synthetic, **SMALLEST)
    benchmark = load(root)
    assert (len(benchmark.train), len(benchmark.queries)) == (80, 10)
