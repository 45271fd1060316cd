"""Sketchy, TU-Berlin and QuickDraw read from lists: rows, names, counts, and what lists get wrong.

Reading class folders instead of lists is tested in test_class_folders.py, splits and validation in
test_splits.py.
"""

import numpy as np
import pytest
from sample_data import LAYOUT, class_names, shared_file, write_benchmark

from datasets import DATASETS, load_benchmark
from utils.errors import InputError

SPLIT = "test_class_sketchy25"
EVERY = [(name, split) for name, row in DATASETS.items() for split in row.splits]
PHOTOS, SKETCHES = LAYOUT["sketchy_extend"][1]


def load(root, dataset="sketchy_extend", split=SPLIT, **settings):
    return load_benchmark(dataset, split, root, **{"validation": False, **settings})


def rewrite(file, change):
    lines = change(file.read_text(encoding="utf-8").splitlines())
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def counts(images):
    return len(images.of("sketch")), len(images.of("photo"))


@pytest.mark.parametrize(("dataset", "split"), EVERY)
def test_every_benchmark_keeps_the_contract(tmp_path, dataset, split):
    write_benchmark(tmp_path, dataset, split)
    benchmark = load(tmp_path, dataset, split, validation=True)
    assert counts(benchmark.train) == (4 * 4, 4 * 5)  # four classes, and two for validation
    assert counts(benchmark.validation) == (2 * 4, 2 * 5)
    assert counts(benchmark.queries) == (3 * 4, 0)
    assert counts(benchmark.gallery) == (0, 3 * 5)
    assert set(benchmark.every) == {"sketch", "photo"}
    assert benchmark.notes == [] and benchmark.skipped == []
    for images in (benchmark.train, benchmark.validation, benchmark.queries, benchmark.gallery):
        columns = (images.class_name, images.target, images.modality, images.origin)
        assert {len(column) for column in columns} == {len(images)}
        assert np.issubdtype(images.target.dtype, np.integer)
        assert all(images.file(i).is_file() for i in range(len(images)))
    assert set(benchmark.queries.classes()) == set(benchmark.gallery.classes())
    three = load(tmp_path, dataset, split, validation=True, validation_classes=3)
    assert (counts(three.train), counts(three.validation)) == ((3 * 4, 3 * 5),) * 2


@pytest.mark.parametrize(
    ("dataset", "every"),
    [
        ("sketchy_extend", {"sketch": 20, "photo": 10}),
        ("tu_berlin", {"sketch": 3, "photo": 20}),
        ("Quickdraw", {"sketch": 120, "photo": 30}),
    ],
)
def test_published_subsample_of_the_test(tmp_path, dataset, every):
    write_benchmark(tmp_path, dataset)
    (split, *_) = DATASETS[dataset].splits
    assert load(tmp_path, dataset, split, seen=False).every == every


@pytest.mark.parametrize(
    ("split", "seen", "unseen"),
    [
        ("test_class_sketchy25", (2303, 2500), (625, 625)),
        ("test_class_sketchy21", (2384, 2600), (525, 525)),
    ],
)
def test_published_lists_of_the_real_pictures(split, seen, unseen):
    benchmark = load(shared_file("data/sketchy_mini"), split=split)
    assert counts(benchmark.train) == seen
    assert (len(benchmark.queries), len(benchmark.gallery)) == unseen
    assert benchmark.train.classes() == class_names(split, "seen")
    assert benchmark.gallery.classes() == class_names(split, "unseen")


def test_a_row_is_read_as_the_list_has_it(tmp_path):
    write_benchmark(tmp_path, "tu_berlin", unseen=7)  # number 6 is "bottle opener"
    queries = load(tmp_path, "tu_berlin", "test_class_tuberlin30", seen=False).queries
    at = 6 * 4 + 1  # four sketches a class; the second one
    assert queries.path[at] == "png_ready/bottle opener/sketch_1-1.png"
    assert queries.class_name[at] == "bottle opener"
    assert queries.target[at] == 6
    assert queries.modality[at] == "sketch"
    assert queries.origin[at] == "png_ready_filelist_zero.txt, line 26"
    assert queries.file(at) == tmp_path / "TUBerlin" / queries.path[at]


def test_empty_lines_are_passed_over_and_still_counted(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    rewrite(lists / PHOTOS.format("zero"), lambda lines: [lines[0], "", "   ", *lines[1:]])
    gallery = load(tmp_path, seen=False).gallery
    assert len(gallery) == 15
    assert gallery.origin[1] == "all_photo_filelist_zero.txt, line 4"


def test_ids_name_the_labels_in_any_order_of_the_lines(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    (lists / "cname_cid_zero.txt").write_text("palm tree 2\nt-shirt 0\n\ncar (sedan)\t01\n")
    gallery = load(tmp_path, seen=False).gallery
    assert gallery.classes() == ["t-shirt", "car (sedan)", "palm tree"]
    assert gallery.target[gallery.class_name == "palm tree"].tolist() == [2] * 5


def test_a_reordered_file_of_names_gives_the_same_classes(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    names = load(tmp_path).gallery.class_name.tolist()
    for file in ("cname_cid.txt", "cname_cid_zero.txt"):
        rewrite(lists / file, lambda lines: lines[::-1])
    benchmark = load(tmp_path)
    assert benchmark.gallery.class_name.tolist() == names and benchmark.notes == []


def test_class_names_that_do_not_fit_the_folders_are_noted(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    (lists / "cname_cid_zero.txt").write_text("cup 0\nharp 1\nswan 2\n")
    (note,) = load(tmp_path).notes
    assert note.startswith(f"{2 * (4 + 5)} listed files lie in the folder of another class")
    assert "swan/sketch_0-1.png (sketch_tx_000000000000_ready_filelist_zero.txt, line 5)" in note


def test_without_class_lines_the_published_order_names_the_labels(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    (lists / "cname_cid.txt").unlink()
    (lists / "cname_cid_zero.txt").unlink()
    benchmark = load(tmp_path)
    assert benchmark.train.classes() == class_names(SPLIT, "seen")[:6]
    assert benchmark.gallery.classes() == ["cup", "swan", "harp"]


def test_files_are_found_under_the_spellings_of_other_mirrors(tmp_path):
    folder = write_benchmark(tmp_path, "tu_berlin", unseen=9)
    photos = folder / "ImageResized_ready"
    (photos / "bottle opener").rename(photos / "Bottle_Opener")
    (photos / "canoe").rename(photos / "can-oe")
    for file in list((photos / "banana").iterdir()):
        file.rename(file.with_suffix(".JPEG"))
    (photos / "fan" / "photo 0.jpg").rename(photos / "fan" / "photo_0.jpeg")
    benchmark = load(tmp_path, "tu_berlin", "test_class_tuberlin30", seen=False)
    gallery = benchmark.gallery
    assert len(gallery) == 9 * 5 and all(gallery.file(i).is_file() for i in range(len(gallery)))
    assert gallery.path[0] == "ImageResized_ready/banana/photo 0.jpg"  # as the list spells it
    assert gallery.file(0) == photos / "banana" / "photo 0.JPEG"
    respelt = 5 + 5 + 5 + 1
    assert benchmark.notes == [f"{respelt} listed files were found under another spelling."]


def test_of_two_files_under_similar_spellings_none_is_guessed(tmp_path):
    photos = write_benchmark(tmp_path) / "EXTEND_image_sketchy_ready" / "cup"
    (photos / "photo 1.jpg").rename(photos / "photo_1.jpg")
    (photos / "photo-1.jpg").write_bytes((photos / "photo_1.jpg").read_bytes())
    with pytest.raises(InputError, match=r"cup/photo 1\.jpg"):
        load(tmp_path, seen=False)


def test_missing_files_are_named_with_list_and_line(tmp_path):
    folder = write_benchmark(tmp_path)
    (folder / "256x256/photo/tx_000000000000_ready/cup/photo 2.jpg").unlink()
    (folder / "256x256/sketch/tx_000000000000_ready/swan/sketch_0-1.png").unlink()
    with pytest.raises(InputError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "2 listed files missing" in message and "--skip_bad" in message
    assert "cup/photo 2.jpg (all_photo_filelist_zero.txt, line 3)" in message
    sketch = "swan/sketch_0-1.png (sketch_tx_000000000000_ready_filelist_zero.txt, line 5)"
    assert sketch in message


def test_many_missing_files_are_counted_after_the_first_five(tmp_path):
    folder = write_benchmark(tmp_path)
    for name in ("cup", "swan"):
        for file in (folder / "256x256/sketch/tx_000000000000_ready" / name).iterdir():
            file.unlink()
    with pytest.raises(InputError, match=r"^8 listed files .*line 5\); and 3 more"):
        load(tmp_path)


def test_skip_bad_leaves_missing_files_out_and_lists_them(tmp_path):
    folder = write_benchmark(tmp_path)
    (folder / "256x256/photo/tx_000000000000_ready/cup/photo 2.jpg").unlink()
    (folder / "256x256/sketch/tx_000000000000_ready/pig/sketch_3-1.png").unlink()
    benchmark = load(tmp_path, skip_bad=True)
    assert counts(benchmark.train) == (6 * 4 - 1, 6 * 5)
    assert (len(benchmark.queries), len(benchmark.gallery)) == (3 * 4, 3 * 5 - 1)
    assert len(benchmark.skipped) == 2
    assert any("cup/photo 2.jpg" in entry for entry in benchmark.skipped)
    assert not any("cup/photo 2.jpg" in path for path in benchmark.gallery.path)


def test_notes_and_the_number_of_missing_files_are_logged(tmp_path, caplog):
    folder = write_benchmark(tmp_path) / "256x256/photo/tx_000000000000_ready"
    (folder / "cup" / "photo 2.jpg").unlink()
    (folder / "swan" / "photo 2.jpg").unlink()
    (folder / "harp" / "photo 2.jpg").rename(folder / "harp" / "Photo_2.jpeg")
    benchmark = load(str(tmp_path), skip_bad=True)
    note = "1 listed files were found under another spelling."
    assert benchmark.notes == [note]
    assert caplog.messages == [note, "2 missing files are left out."]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_skip_bad_with_no_file_at_all_is_an_error(tmp_path):
    folder = write_benchmark(tmp_path)
    for name in ("256x256", "EXTEND_image_sketchy_ready"):
        (folder / name).rename(folder / f"{name} elsewhere")
    with pytest.raises(InputError, match="no unseen images are left"):
        load(tmp_path, seen=False, skip_bad=True)


@pytest.mark.parametrize(
    "line",
    [
        "no_label.jpg",
        "with_word.jpg cup",
        "with_fraction.jpg 1.0",
        "negative.jpg -1",
        "too_large.jpg 3",
        "7",
    ],
)
def test_malformed_line_and_label_out_of_range_are_named(tmp_path, line):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    rewrite(lists / PHOTOS.format("zero"), lambda lines: [lines[0], line, *lines[1:]])
    with pytest.raises(InputError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "all_photo_filelist_zero.txt, line 2" in message
    assert repr(line) in message and "label from 0 to 2" in message


def test_missing_root_says_which_folder_is_expected(tmp_path):
    with pytest.raises(InputError, match=r"--data_path .* Sketchy/"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [PHOTOS, SKETCHES])
def test_missing_list_beside_other_lists_is_named(tmp_path, name):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    (lists / name.format("zero")).unlink()
    with pytest.raises(InputError, match=name.format("zero")):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"\xef\xbb\xbf" + text],
    ids=["carriage returns", "byte order mark"],
)
def test_lists_that_windows_wrote_are_read(tmp_path, change):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    for file in (lists / PHOTOS.format("zero"), lists / "cname_cid_zero.txt"):
        file.write_bytes(change(file.read_bytes()))
    gallery = load(tmp_path, seen=False).gallery
    assert len(gallery) == 15 and gallery.classes() == ["cup", "swan", "harp"]


def test_list_that_is_not_utf_8_is_an_input_error(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    file = lists / PHOTOS.format("zero")
    file.write_bytes(b"caf\xe9.jpg 0\n" + file.read_bytes())
    with pytest.raises(InputError, match="all_photo_filelist_zero"):
        load(tmp_path, seen=False)


@pytest.mark.parametrize(("wanted", "unwanted"), [("seen", "zero"), ("unseen", "train")])
def test_an_unwanted_side_stays_empty_and_its_lists_unread(tmp_path, wanted, unwanted):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    (lists / PHOTOS.format(unwanted)).write_text("not a row")
    (lists / SKETCHES.format(unwanted)).unlink()
    benchmark = load(tmp_path, seen=wanted == "seen", unseen=wanted == "unseen", validation=True)
    sizes = [len(part) for part in (benchmark.train, benchmark.queries, benchmark.gallery)]
    assert sizes == ([4 * 9, 0, 0] if wanted == "seen" else [0, 3 * 4, 3 * 5])
    assert len(benchmark.validation) == (2 * 9 if wanted == "seen" else 0)


def test_a_class_that_no_line_names_is_no_class_to_train_on(tmp_path):
    lists = write_benchmark(tmp_path) / "zeroshot1"
    for name in (PHOTOS, SKETCHES):
        rewrite(
            lists / name.format("train"),
            lambda lines: [line for line in lines if not line.endswith(" 1")],
        )
    train = load(tmp_path).train
    assert train.classes() == ["pig", "chair", "hotdog", "helicopter", "bat"]
    assert sorted(set(train.target)) == [0, 2, 3, 4, 5]


def test_photos_listed_twice_are_kept_and_noted(tmp_path):
    folder = write_benchmark(tmp_path)
    photo = "tx_000000000000_ready/cup/photo 0.jpg"
    copy = folder / "EXTEND_image_sketchy_ready/cup/photo 0.jpg"
    copy.write_bytes((folder / "256x256/photo" / photo).read_bytes())
    again = "EXTEND_image_sketchy_ready/cup/photo 0.jpg 0"
    rewrite(folder / "zeroshot1" / PHOTOS.format("zero"), lambda lines: [*lines, again])
    benchmark = load(tmp_path)
    assert len(benchmark.gallery) == 16
    (note,) = benchmark.notes
    assert note.startswith("1 of the gallery's 16 photos are the same file a second time")


def test_photos_of_one_name_in_two_classes_are_no_doubles(tmp_path):
    write_benchmark(tmp_path)  # every class has a "photo 0.jpg"
    assert load(tmp_path).notes == []
