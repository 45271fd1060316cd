"""Kept pictures are those that preprocessing makes, whatever happened to files or to the disk."""

import errno
import multiprocessing
import os
import pickle
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from sample_data import training_list
from torch.utils.data import DataLoader

import training.picture_cache
from datasets.images import Preprocessing
from training.picture_cache import PAGE, STAMP, PictureCache, open_picture_cache
from utils.errors import InputError

HALF = (0.5, 0.5, 0.5)
READ = Preprocessing(size=16, mean=HALF, std=HALF, crop=True)


@pytest.fixture
def images(tmp_path):
    return training_list(tmp_path / "data", seen=2, sketches=2, photos=3)


@pytest.fixture
def reads(monkeypatch):
    """The names of the image files that were opened, in order."""
    opened, levels = [], Preprocessing.levels

    def noted(self, file, modality):
        opened.append(file.name)
        return levels(self, file, modality)

    monkeypatch.setattr(Preprocessing, "levels", noted)
    return opened


@pytest.fixture
def said(monkeypatch):
    """The lines of the log."""
    lines = []
    for level in ("info", "warning"):
        note = lambda text, *values: lines.append(text % values)  # noqa: E731
        monkeypatch.setattr(training.picture_cache.log, level, note)
    return lines


def cache_of(tmp_path, images, preprocessing=READ):
    return PictureCache(tmp_path / "kept", images, preprocessing)


def every_picture(cache):
    return torch.stack([cache.read(number) for number in range(len(cache.images))])


def fresh(images, preprocessing=READ):
    pictures = [images.read(number, preprocessing.levels) for number in range(len(images))]
    return torch.stack(pictures)


def file_in(tmp_path):
    (file,) = (tmp_path / "kept").glob("*.pictures")
    return file


def start_of_pictures(images):
    return -(-(PAGE + len(images) * STAMP.itemsize) // PAGE) * PAGE


def test_kept_pictures_equal_fresh_ones_and_are_read_once(tmp_path, images, reads):
    expected = fresh(images)
    reads.clear()
    cache = cache_of(tmp_path, images)
    assert reads == []  # opening decodes nothing
    for _ in range(2):
        assert torch.equal(every_picture(cache), expected)
    assert len(reads) == len(images) == 10
    assert torch.equal(every_picture(cache_of(tmp_path, images)), expected)
    assert len(reads) == 10


def test_pictures_are_copies(tmp_path, images):
    cache, expected = cache_of(tmp_path, images), images.read(0, READ.levels)
    made, kept, again = (cache.read(0) for _ in range(3))
    for changed, other in ((made, kept), (kept, again)):
        changed.fill_(7)
        assert torch.equal(other, expected) and torch.equal(cache.read(0), expected)


def test_a_killed_run_loses_nothing_it_has_read(tmp_path, images, reads):
    cache_of(tmp_path, images).read(3)
    reads.clear()
    every_picture(cache_of(tmp_path, images))
    assert len(reads) == 9


def test_the_file_is_as_large_as_announced_from_the_start(tmp_path, images, said):
    cache_of(tmp_path, images)
    file = file_in(tmp_path)
    assert file.stat().st_size == start_of_pictures(images) + 10 * 3 * 16 * 16
    if hasattr(os, "posix_fallocate"):  # reserved, not only promised
        assert file.stat().st_blocks * 512 >= file.stat().st_size
    assert said == [f"keeps 10 pictures, 0.0 MB, in {file}: each once it is first read"]
    cache_of(tmp_path, images).read(0)
    cache_of(tmp_path, images)
    assert said[1:] == [f"pictures: {n} of 10 are kept in {file}" for n in (0, 1)]


# ---- what is made again


def test_a_changed_file_is_read_again_by_the_next_run(tmp_path, images, reads):
    former = every_picture(cache_of(tmp_path, images))
    file, number = images.file(9), 9
    Image.new("RGB", (48, 48), "red").save(file)
    reads.clear()
    cache = cache_of(tmp_path, images)
    assert torch.equal(every_picture(cache), fresh(images))
    assert not torch.equal(cache.read(number), former[number])
    assert reads.count(file.name) >= 2 and len(reads) == 11  # one by the cache, ten by fresh()


def test_a_file_of_the_same_size_but_another_time_is_read_again(tmp_path, images, reads):
    every_picture(cache_of(tmp_path, images))
    state = images.file(4).stat()
    os.utime(images.file(4), ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    reads.clear()
    every_picture(cache_of(tmp_path, images))
    assert reads == [images.file(4).name]


@pytest.mark.parametrize("torn", ["picture", "stamp", "both"])
def test_what_a_crash_tore_is_made_again(tmp_path, images, reads, torn):
    expected = every_picture(cache_of(tmp_path, images))
    content = bytearray(file_in(tmp_path).read_bytes())
    if torn != "stamp":  # the second half of picture 2 never reached the disk
        middle = start_of_pictures(images) + 2 * 768 + 384
        content[middle : middle + 384] = bytes(384)
    if torn != "picture":
        place = PAGE + 2 * STAMP.itemsize + 16
        content[place : place + 8] = bytes(8)
    file_in(tmp_path).write_bytes(content)
    reads.clear()
    assert torch.equal(every_picture(cache_of(tmp_path, images)), expected)
    assert reads == [images.file(2).name]


def test_a_new_stamp_beside_a_former_picture_and_sum_does_not_pass(tmp_path, images):
    """As where a crash tore a stamp in two: the sum is over size and time as well."""
    every_picture(cache_of(tmp_path, images))
    Image.new("RGB", (48, 48), "red").save(images.file(9))
    state = images.file(9).stat()
    with open(file_in(tmp_path), "r+b") as file:
        file.seek(PAGE + 9 * STAMP.itemsize)
        file.write(np.array([state.st_size, state.st_mtime_ns], dtype="<i8").tobytes())
    assert torch.equal(cache_of(tmp_path, images).read(9), images.read(9, READ.levels))


@pytest.mark.parametrize("damage", ["first line", "cut", "empty", "longer"])
def test_a_damaged_file_is_made_anew_with_a_word(tmp_path, images, said, damage):
    expected = every_picture(cache_of(tmp_path, images))
    content = file_in(tmp_path).read_bytes()
    damaged = {
        "first line": b"{" + content[:-1],
        "cut": content[:-1],
        "empty": b"",
        "longer": content + b"x",
    }[damage]
    file_in(tmp_path).write_bytes(damaged)
    said.clear()
    assert torch.equal(every_picture(cache_of(tmp_path, images)), expected)
    assert said[0] == f"{file_in(tmp_path)}: damaged; it is made anew."
    assert len(file_in(tmp_path).read_bytes()) == len(content)


# ---- which lists share a file


@pytest.mark.parametrize(
    "other",
    [
        replace(READ, size=17),
        replace(READ, crop=False),
        replace(READ, draft=True),
    ],
)
def test_another_preprocessing_has_another_file(tmp_path, images, other):
    one, two = cache_of(tmp_path, images), cache_of(tmp_path, images, other)
    assert one.file != two.file
    assert torch.equal(every_picture(one), fresh(images))
    assert torch.equal(every_picture(two), fresh(images, other))


def test_what_is_done_to_levels_later_has_the_same_file(tmp_path, images):
    other = replace(READ, mean=(0.5, 0.5, 0.4), std=(0.1, 0.2, 0.3))
    one, two = cache_of(tmp_path, images), cache_of(tmp_path, images, other)
    assert one.file == two.file
    assert torch.equal(every_picture(one), fresh(images, other))
    assert torch.equal(every_picture(two), fresh(images))


def test_another_list_has_another_file(tmp_path, images):
    swapped = images.select(np.arange(len(images))[::-1])
    part = images.select(np.arange(4))
    as_photos = replace(images, modality=np.full(len(images), "photo", dtype=object))
    caches = [cache_of(tmp_path, chosen) for chosen in (images, swapped, part, as_photos)]
    assert len({cache.file for cache in caches}) == 4
    for cache in caches:
        assert torch.equal(every_picture(cache), fresh(cache.images))


def test_the_same_list_elsewhere_has_the_same_name(tmp_path, images):
    moved = replace(images, root=tmp_path / "elsewhere")
    os.rename(images.root, moved.root)
    assert cache_of(tmp_path, images).file == cache_of(tmp_path, moved).file


# ---- files that cannot be read


@pytest.mark.parametrize("fault", ["broken", "absent"])
def test_an_unreadable_file_is_refused_as_without_a_cache_and_not_kept(tmp_path, images, fault):
    whole = images.file(5).read_bytes()
    if fault == "broken":
        images.file(5).write_bytes(b"no image")
    else:
        images.file(5).unlink()
    with pytest.raises(InputError) as plain:
        images.read(5, READ.levels)
    cache = cache_of(tmp_path, images)
    for _ in range(2):
        with pytest.raises(InputError) as error:
            cache.read(5)
        assert str(error.value) == str(plain.value)
    images.file(5).write_bytes(whole)
    assert torch.equal(cache_of(tmp_path, images).read(5), images.read(5, READ.levels))


def test_a_file_that_has_gone_is_refused_although_its_picture_is_kept(tmp_path, images):
    every_picture(cache_of(tmp_path, images))
    images.file(5).unlink()
    with pytest.raises(InputError, match="no such file"):
        cache_of(tmp_path, images).read(5)


def test_a_file_that_came_after_the_opening_is_read_but_not_kept(tmp_path, images, reads):
    whole = images.file(5).read_bytes()
    images.file(5).unlink()
    cache = cache_of(tmp_path, images)
    images.file(5).write_bytes(whole)
    assert torch.equal(cache.read(5), cache.read(5))
    assert len(reads) == 2


def test_an_empty_sketch_warns_when_it_is_made(tmp_path, images):
    number = int(np.flatnonzero(images.modality == "sketch")[0])
    Image.new("RGB", (48, 48), "white").save(images.file(number))
    cache = cache_of(tmp_path, images)
    with pytest.warns(UserWarning, match="no stroke found"):
        cache.read(number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (cache.read(number) == 255).all()


# ---- disks that refuse


def refusal(tmp_path, images):
    with pytest.raises(InputError) as error:
        cache_of(tmp_path, images)
    sentence = str(error.value)
    assert "--cache_images" in sentence and str(tmp_path / "kept") in sentence
    assert not list(tmp_path.glob("kept/*.pictures*"))
    return sentence


def test_a_folder_that_cannot_be_made_is_named(tmp_path, images):
    (tmp_path / "kept").write_text("a file")
    assert "(Not a directory)" in refusal(tmp_path, images)


def test_too_little_space_is_an_error_before_anything_is_read(tmp_path, images, monkeypatch, reads):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(training.picture_cache.shutil, "disk_usage", lambda folder: usage)
    assert "only 0.0 MB are free" in refusal(tmp_path, images)
    assert reads == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no space")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_space_is_reserved_is_an_error(tmp_path, images, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert os.strerror(code) in refusal(tmp_path, images)


@pytest.mark.parametrize("missing", ["function", "in the file system"])
def test_where_no_space_can_be_reserved_the_file_is_only_made_long(
    tmp_path, images, monkeypatch, missing
):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if missing == "function":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert torch.equal(every_picture(cache_of(tmp_path, images)), fresh(images))


def test_a_file_system_without_locks_will_do(tmp_path, images, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert torch.equal(every_picture(cache_of(tmp_path, images)), fresh(images))


# ---- processes


class AsDataset:
    """What a data worker needs of a cache."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache.images)

    def __getitem__(self, number):
        return self.cache.read(number)


@pytest.mark.parametrize(
    ("start", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)]
)
def test_data_workers_fill_and_read_the_file(tmp_path, images, reads, start, workers):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {start}")
    expected = fresh(images)
    cache = cache_of(tmp_path, images)
    more = {"num_workers": workers, "batch_size": 5, "multiprocessing_context": start}
    assert torch.equal(torch.cat(list(DataLoader(AsDataset(cache), **more))), expected)
    reads.clear()
    assert torch.equal(every_picture(cache), expected)
    assert reads == []  # the workers have kept them all


def test_a_pickled_cache_carries_no_pictures(tmp_path, images, reads):
    cache = cache_of(tmp_path, replace(images, path=images.path))
    expected = every_picture(cache)
    content = pickle.dumps(cache)
    reads.clear()
    assert torch.equal(every_picture(pickle.loads(content)), expected)
    assert reads == []
    assert expected.numpy().tobytes()[:768] not in content


def _open_and_read(place, images, results):
    results.put(every_picture(PictureCache(place, images, READ)).numpy())


def test_processes_that_open_it_at_once_share_one_file(tmp_path, images, reads):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    more = (tmp_path / "kept", images, results)
    processes = [context.Process(target=_open_and_read, args=more) for _ in range(4)]
    for process in processes:
        process.start()
    made = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    for pictures in made:
        np.testing.assert_array_equal(pictures, fresh(images))
    assert sorted(file.suffix for file in (tmp_path / "kept").iterdir()) == [".lock", ".pictures"]
    reads.clear()
    every_picture(cache_of(tmp_path, images))
    assert reads == []


def test_the_first_process_of_a_run_makes_it_and_the_others_open_it(tmp_path, images, monkeypatch):
    order = []
    made = PictureCache._make
    monkeypatch.setattr(PictureCache, "_make", lambda self: (order.append("made"), made(self)))
    monkeypatch.setattr(training.picture_cache, "wait_for_all", lambda: order.append("waited"))
    for rank, expected in ((0, ["made", "waited"]), (1, ["waited"])):
        order.clear()
        monkeypatch.setenv("RANK", str(rank))
        cache = open_picture_cache(tmp_path / "kept", images, READ)
        assert order == expected
        assert torch.equal(every_picture(cache), fresh(images))
