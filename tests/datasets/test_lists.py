"""Lists that disagree with themselves or the disk: a sentence with file, line, and what to do."""

import os

import numpy as np
import pytest
from sample_data import LAYOUT, write_benchmark

from datasets import load_benchmark
from datasets.lists import read_lines, shown
from utils.errors import InputError

PHOTOS, SKETCHES = (name.format("zero") for name in LAYOUT["sketchy_extend"][1])
SPLIT = "test_class_sketchy25"


@pytest.fixture
def root(tmp_path):
    write_benchmark(tmp_path, sketches=2, photos=2, size=8)
    return tmp_path


@pytest.fixture
def lists(root):
    return root / "Sketchy" / "zeroshot1"


def load(root, **settings):
    settings = {"validation": False, "seen": False, **settings}
    return load_benchmark("sketchy_extend", SPLIT, root, **settings)


def refusal(root, **settings):
    with pytest.raises(InputError) as error:
        load(root, **settings)
    assert len(str(error.value)) < 700 + 3 * len(str(root))
    return str(error.value)


def rewrite(file, change):
    lines = change(file.read_text(encoding="utf-8").splitlines())
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- names of classes


@pytest.mark.parametrize(
    ("content", "where", "why"),
    [
        ("cup 0\nswan 1\nharp 1", 3, "the id of 'harp 1' is that of line 2 too"),
        ("cup 0\ncup 1\nharp 2", 2, "the class of 'cup 1' is that of line 1 too"),
        ("hot dog 0\nHot_Dog 1\nharp 2", 2, "the class of 'Hot_Dog 1' is that of line 1 too"),
        ("cup 0\nswan 1\nharp 3", 3, "an id from 0 to 2, found 'harp 3'"),
        ("cup 1\nswan 2\nharp 3", 3, "an id from 0 to 2, found 'harp 3'"),
        ("cup\nswan\nharp", 1, "expected 'class name id' with an id from 0 to 2, found 'cup'"),
        ("0 cup\n1 swan\n2 harp", 1, "found '0 cup'"),
        ("cup -1\nswan 1\nharp 2", 1, "found 'cup -1'"),
        ("cup 0.0\nswan 1\nharp 2", 1, "found 'cup 0.0'"),
        ("cup \u00b2\nswan 1\nharp 0", 1, "found 'cup \u00b2'"),
        ("cup " + "9" * 5000, 1, "an id from 0 to 0, found 'cup 999"),
        ("a\x1b[31m\x00 9", 1, r"found 'a\x1b[31m\x00 9'"),
    ],
)
def test_names_of_classes_must_agree(root, lists, content, where, why):
    file = lists / "cname_cid_zero.txt"
    file.write_text(content)
    sentence = refusal(root)
    assert sentence.startswith(f"{file}, line {where}: ") and why in sentence


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_of_names_is_named_itself(root, lists, content):
    (lists / "cname_cid_zero.txt").write_text(content)
    assert refusal(root).startswith(f"{lists / 'cname_cid_zero.txt'}: names no class.")


def test_a_class_that_is_seen_and_unseen_is_no_training(root, lists):
    rewrite(lists / "cname_cid.txt", lambda lines: ["Cup 0", *lines[1:]])
    for settings in ({"unseen": True}, {"unseen": False}):
        sentence = refusal(root, seen=True, **settings)
        assert "1 classes are both seen (cname_cid.txt) and unseen (cname_cid_zero.txt), 'cup'" in (
            sentence
        )
    assert len(load(root).gallery) == 6  # a test asks the checkpoint what it has seen


# ---- lists of images


@pytest.mark.parametrize("name", [PHOTOS, SKETCHES])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_list_is_named(root, lists, name, content):
    (lists / name).write_text(content)
    assert refusal(root) == f"{lists / name}: lists no image. Complete the list."
    assert refusal(root, skip_bad=True) == f"{lists / name}: lists no image. Complete the list."


@pytest.mark.parametrize(
    "line", ["a.jpg " + "9" * 5000, "a.jpg " + "0" * 5000 + "9", "x" * 5000, "a.jpg \u0663"]
)
def test_a_label_that_is_none_is_shown_short(root, lists, line):
    rewrite(lists / PHOTOS, lambda lines: [line, *lines])
    sentence = refusal(root)
    assert f"{PHOTOS}, line 1: expected 'relative/path label' with a label from 0 to 2" in sentence


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 2500 + "a", "y" * 5000, "a\0b", "a\x1b[2Jb"])
def test_paths_that_no_disk_has_are_missing_files(root, lists, name):
    rewrite(lists / PHOTOS, lambda lines: [f"{name}.jpg 0", *lines])
    sentence = refusal(root)
    assert sentence.startswith("1 listed files missing") and sentence.isprintable()
    assert len(load(root, skip_bad=True).gallery) == 6


def test_an_image_with_two_labels_is_named_with_both_lines(root, lists):
    rewrite(lists / PHOTOS, lambda lines: [*lines, lines[1].rsplit(" ", 1)[0] + " 2"])
    assert f"{PHOTOS}, line 7: " in refusal(root)
    assert "has label 2, and in line 2 label 0" in refusal(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", [PHOTOS, "cname_cid_zero.txt"])
def test_a_list_that_is_a_pipe_or_folder_is_named(root, lists, name):
    for make in (os.mkfifo, os.mkdir):
        (lists / name).unlink()
        make(lists / name)
        assert refusal(root).startswith(f"{lists / name}: cannot be read (")
        if make is os.mkfifo:
            continue
        (lists / name).rmdir()


def test_lines_are_those_of_editors(tmp_path):
    (tmp_path / "x").write_bytes("\ufeffa\u2028b\x0c 1\r\nc\rd\n\n".encode())
    assert read_lines(tmp_path / "x") == ["a\u2028b\x0c 1", "c", "d", ""]
    (tmp_path / "x").write_bytes("a 0\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"x: is not UTF-8 text \(byte 1\)\. Save it as UTF-8\."):
        read_lines(tmp_path / "x")


def test_long_texts_are_cut_in_the_middle():
    assert shown("a" * 80) == repr("a" * 80)
    assert shown("a" * 100 + "b" * 100) == repr("a" * 40 + " ... " + "b" * 20)


# ---- dialects: lists of other machines


DIALECTS = {
    "backslashes": lambda path: path.replace("/", "\\"),
    "from above": lambda path: f"Sketchy/{path}",
    "here": lambda path: f"./{path}",
    "of another machine": lambda path: f"/home/someone/data/Sketchy/{path}",
    "of another Windows": lambda path: "D:\\images\\" + path.replace("/", "\\"),
    "official folders": lambda path: path.replace("tx_000000000000_ready", "tx_000000000000"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lists_of_other_machines_find_the_same_images(root, lists, dialect):
    plain = load(root)
    for name in (PHOTOS, SKETCHES):
        rewrite(lists / name, lambda lines: [DIALECTS[dialect](line) for line in lines])
    benchmark = load(root)
    for found, expected in ((benchmark.gallery, plain.gallery), (benchmark.queries, plain.queries)):
        files = [found.file(number).resolve() for number in range(len(found))]
        assert files == [expected.file(number).resolve() for number in range(len(expected))]
        np.testing.assert_array_equal(found.target, expected.target)
        if dialect in ("backslashes", "from above", "of another machine", "of another Windows"):
            assert found.path.tolist() == expected.path.tolist()


def test_official_folders_on_disk_are_found_and_the_difference_is_noted(root):
    photos = root / "Sketchy/256x256/photo"
    (photos / "tx_000000000000_ready").rename(photos / "tx_000000000000")
    benchmark = load(root)
    assert all(benchmark.gallery.file(number).is_file() for number in range(6))
    assert benchmark.gallery.path[0].startswith("256x256/photo/tx_000000000000_ready/")
    (note,) = benchmark.notes
    assert note == (
        "3 listed files were found elsewhere: the lists say "
        f"'256x256/photo/tx_000000000000_ready', and {root / 'Sketchy'} has "
        "'256x256/photo/tx_000000000000'."
    )


def test_where_a_folder_has_another_name_both_are_named(root):
    photos = root / "Sketchy/256x256/photo"
    (photos / "tx_000000000000_ready").rename(photos / "tx_000100000000")
    assert (
        f"The lists say '256x256/photo/tx_000000000000_ready', and {photos} has "
        "'tx_000100000000'. Complete the data"
    ) in refusal(root)


def test_of_one_modality_without_a_file_skip_bad_tells_which(root):
    (root / "Sketchy/256x256/sketch").rename(root / "Sketchy/256x256/drawings")
    sentence = refusal(root, skip_bad=True)
    assert "no unseen images are left" in sentence and "every sketch is missing" in sentence
    assert "has 'drawings', 'photo'" in sentence


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000, "a\0b"])
def test_a_data_path_that_no_disk_has_is_a_sentence(name):
    with pytest.raises(InputError, match=r"no such folder\. Set --data_path"):
        load(name)
    if "\0" not in name:
        with pytest.raises(InputError, match="cannot be written"):
            load_benchmark("synthetic", "test_class_synthetic10", name)
