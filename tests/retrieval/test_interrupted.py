"""Scores of pairs on disk: a stopped evaluation goes on, and stale or damaged ones are not used."""

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeMethod, World, image_list, on_disk, picture
from retrieval.interrupted import Interrupted, Scored

from retrieval import interrupted as interrupted_module
from retrieval.evaluate import Evaluation, evaluate

QUERY_TARGETS = [0, 1, 2, 0, 1, 2, 2]
GALLERY_TARGETS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]
PAIRS = {"rn": 2 * 13, "rerank": 2 * (5 + 13)}  # of a block of two sketches, all of them checked
ALL = {"rn": 7 * 13, "rerank": 7 * (5 + 13)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def queries(tmp_path):
    return on_disk(image_list("sketch", QUERY_TARGETS), tmp_path)


@pytest.fixture
def gallery(tmp_path):
    return on_disk(image_list("photo", GALLERY_TARGETS), tmp_path)


def score(method, queries, gallery, cache, **settings):
    settings = {"mode": "rn", "shortlist": 5, "query_block": 2, "gallery_block": 5} | settings
    method.pairs = 0
    device = torch.device("cpu")
    return evaluate(method, queries, gallery, picture, device=device, cache=cache, **settings)


def fresh(queries, gallery, **settings):
    """What a run finds that keeps nothing."""
    return score(FakeMethod(), queries, gallery, None, **settings)


def stopping(method, pairs):
    """The method, which is stopped once it has scored so many pairs."""
    scored = method.pair_similarity

    def pair_similarity(queries, gallery):
        if method.pairs >= pairs:
            raise KeyboardInterrupt
        return scored(queries, gallery)

    method.pair_similarity = pair_similarity
    return method


def stop(queries, gallery, folder, blocks=2, mode="rn", **settings):
    """A run that is stopped in the block of sketches after the first `blocks`."""
    method = stopping(FakeMethod(), blocks * PAIRS[mode] + 1)
    assert not finished(method, queries, gallery, folder, mode=mode, **settings)


def finished(method, *lists, **settings):
    """Whether a run comes to its end. Of a stopped one nothing stays, as of a program that ends."""
    try:
        score(method, *lists, **settings)
    except KeyboardInterrupt:
        return False
    return True


def folders(folder):
    return sorted(folder.glob("*.scores"))


def assert_same(one, other):
    for field in dataclasses.fields(Evaluation):
        found, expected = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("queries", "gallery"):
            assert found.path.tolist() == expected.path.tolist()
        elif isinstance(found, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        elif field.name != "seconds":
            assert found == expected


# ---- stopped, and run again


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["rn", "rerank"])
def test_scored_blocks_are_not_scored_again(method, queries, gallery, folder, mode, blocks, caplog):
    caplog.set_level(logging.INFO)
    stop(queries, gallery, folder, blocks, mode)
    assert "scoring goes on" not in caplog.text
    kept = [file.name for path in folders(folder) for file in path.iterdir()]
    assert sorted(kept) == ["0-1.npz", "2-3.npz", "4-5.npz"][:blocks]
    found = score(method, queries, gallery, folder, mode=mode)
    assert method.pairs == ALL[mode] - blocks * PAIRS[mode]
    assert_same(found, fresh(queries, gallery, mode=mode))
    assert ("scoring goes on" in caplog.text) == (blocks > 0)
    assert folders(folder) == []


def test_a_run_may_be_stopped_again_and_again(method, queries, gallery, folder):
    for _ in range(2):
        stop(queries, gallery, folder, blocks=1)
    assert len(list(folders(folder)[0].iterdir())) == 2
    found = score(method, queries, gallery, folder)
    assert method.pairs == 3 * 13
    assert_same(found, fresh(queries, gallery))


@pytest.mark.parametrize("mode", ["rn", "rerank"])
def test_a_finished_run_leaves_nothing_and_scores_anew(method, queries, gallery, folder, mode):
    for _ in range(2):
        found = score(method, queries, gallery, folder, mode=mode)
        assert method.pairs == ALL[mode] and folders(folder) == []
    assert_same(found, fresh(queries, gallery, mode=mode))


def test_unreadable_images_do_not_disturb(method, tmp_path, folder):
    queries = on_disk(image_list("sketch", QUERY_TARGETS, broken=[0, 2, 3]), tmp_path)
    gallery = on_disk(image_list("photo", GALLERY_TARGETS, broken=[4, 12]), tmp_path)
    settings = {"mode": "rn", "skip_bad": True}
    interrupting = stopping(FakeMethod(), 11 + 2 * 11 + 1)  # of sketch 1; none; 4 and 5
    assert not finished(interrupting, queries, gallery, folder, **settings)
    found = score(method, queries, gallery, folder, **settings)
    assert method.pairs == 11 and len(found.skipped) == 5
    assert_same(found, fresh(queries, gallery, **settings))


@pytest.mark.parametrize("blocks", [1, 3, 100])
def test_blocks_of_another_size_are_scored_again(method, queries, gallery, folder, blocks):
    stop(queries, gallery, folder)
    found = score(method, queries, gallery, folder, query_block=blocks)
    assert method.pairs == ALL["rn"]
    assert_same(found, fresh(queries, gallery))
    assert folders(folder) == []


def test_a_run_stopped_while_it_writes_goes_on(method, queries, gallery, folder, monkeypatch):
    renamed = os.replace

    def stopped(aside, file):
        if file.suffix == ".npz":
            raise KeyboardInterrupt
        renamed(aside, file)

    stop(queries, gallery, folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(interrupted_module.os, "replace", stopped)
        assert not finished(FakeMethod(), queries, gallery, folder)
    assert len(list(folders(folder)[0].iterdir())) == 2  # a block, and what it was to become
    found = score(method, queries, gallery, folder)
    assert method.pairs == 5 * 13
    assert_same(found, fresh(queries, gallery))
    assert folders(folder) == []


def shared_by_two(monkeypatch, queries, gallery, folder, limits, **settings):
    """What each of two processes finds and how many pairs it scores, up to its limit."""

    def work(rank):
        method = stopping(FakeMethod(), limits[rank])
        try:
            found = score(method, queries, gallery, folder, shared=True, **settings)
        except KeyboardInterrupt:
            return "stopped", method.pairs
        return found, method.pairs

    return World(2).run(monkeypatch, work)


@pytest.mark.parametrize("mode", ["rn", "rerank"])
def test_processes_go_on_where_they_were_stopped(queries, gallery, folder, monkeypatch, mode):
    limits = [PAIRS[mode] + 1] * 2  # sketches 0 2 | 4 6 and 1 3 | 5
    ends = shared_by_two(monkeypatch, queries, gallery, folder, limits, mode=mode)
    assert [found for found, _ in ends] == ["stopped"] * 2
    assert sorted(file.name for file in folders(folder)[0].iterdir()) == ["0-2.npz", "1-3.npz"]
    ends = shared_by_two(monkeypatch, queries, gallery, folder, [ALL[mode]] * 2, mode=mode)
    assert [pairs for _, pairs in ends] == [PAIRS[mode], PAIRS[mode] // 2]
    for found, _ in ends:
        assert_same(found, fresh(queries, gallery, mode=mode))
    assert folders(folder) == []


def test_one_process_does_not_take_blocks_of_several_for_its_own(
    method, queries, gallery, folder, monkeypatch
):
    limits = [3 * 13 + 1, 1]  # sketches 0 2 4 | 6 and 1 3 5
    ends = shared_by_two(monkeypatch, queries, gallery, folder, limits, query_block=3)
    assert [found for found, _ in ends] == ["stopped"] * 2
    assert [file.name for file in folders(folder)[0].iterdir()] == ["0-4.npz"]
    found = score(method, queries, gallery, folder, query_block=5)  # 0 1 2 3 4 | 5 6
    assert method.pairs == ALL["rn"]
    assert_same(found, fresh(queries, gallery))


# ---- what other scores depend on


CHANGES = [
    {"mode": "rn"},
    {"fuse": 0.5},
    {"shortlist": 4},
    {"expand": 1},
    {"views": "mirror"},
    {"amp": "bf16"},
    {"precision": "fp32"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_other_settings_have_a_folder_of_their_own(method, queries, gallery, folder, change):
    stop(queries, gallery, folder, mode="rerank")
    settings = {"mode": "rerank"} | change
    found = score(method, queries, gallery, folder, **settings)
    expected = FakeMethod()
    assert_same(found, score(expected, queries, gallery, None, **settings))
    assert method.pairs == expected.pairs
    score(method, queries, gallery, folder, mode="rerank")  # those of before are still there
    assert method.pairs == ALL["rerank"] - 2 * PAIRS["rerank"]


def longer(file):
    file.write_bytes(file.read_bytes() + b"!")


def later(file):
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("which", ["queries", "gallery"])
@pytest.mark.parametrize("change", [longer, later, os.unlink])
def test_scores_of_a_changed_file_are_not_used(method, queries, gallery, folder, which, change):
    stop(queries, gallery, folder)
    change({"queries": queries, "gallery": gallery}[which].file(6))
    found = score(method, queries, gallery, folder)
    assert method.pairs == ALL["rn"]
    assert_same(found, fresh(queries, gallery))


@pytest.mark.parametrize("change", ["order", "targets", "fewer"])
@pytest.mark.parametrize("which", ["queries", "gallery"])
def test_scores_of_another_list_are_not_used(method, queries, gallery, folder, change, which):
    lists = {"queries": queries, "gallery": gallery}
    stop(queries, gallery, folder)
    images = lists[which]
    lists[which] = {
        "order": images.select(np.arange(len(images))[::-1]),
        "targets": dataclasses.replace(images, target=np.roll(images.target, 1)),
        "fewer": images.select(np.arange(len(images) - 1)),
    }[change]
    found = score(method, **lists, cache=folder)
    assert method.pairs == len(lists["queries"]) * len(lists["gallery"])
    assert_same(found, fresh(**lists))


def test_scores_of_other_weights_are_removed_and_nothing_else(method, queries, gallery, folder):
    stop(queries, gallery, folder)
    (old,) = folders(folder)
    others = ["my-notes.scores", f"{old.stem}.scores.old", f"{old.stem[:-1]}.scores"]
    for name in others:
        (folder / name).mkdir()
    torch.nn.init.constant_(method.weight, 2.0)
    found = score(method, queries, gallery, folder)
    assert method.pairs == ALL["rn"] and not old.exists()
    assert all((folder / name).is_dir() for name in others)
    same = FakeMethod()
    torch.nn.init.constant_(same.weight, 2.0)
    assert_same(found, score(same, queries, gallery, None))


def test_without_pairs_scores_of_other_weights_are_removed_too(method, queries, gallery, folder):
    stop(queries, gallery, folder)
    torch.nn.init.constant_(method.weight, 2.0)
    score(method, queries, gallery, folder, mode="sa")
    assert folders(folder) == []


@pytest.mark.parametrize(
    ("mode", "cached", "kept"),
    [("rn", True, True), ("rerank", True, True), ("sa", True, False), ("rn", False, False)],
)
def test_scores_are_kept_where_pairs_are_scored_and_there_is_a_cache(
    method, queries, gallery, folder, monkeypatch, mode, cached, kept
):
    written = []
    monkeypatch.setattr(Interrupted, "write", lambda self, scored: written.append(scored))
    score(method, queries, gallery, folder if cached else None, mode=mode)
    assert len(written) == (4 if kept else 0)


# ---- damaged, or refused by the disk


def garbage(file):
    file.write_bytes(b"these are no scores")


def cut_short(file):
    os.truncate(file, file.stat().st_size - 30)


def cut_in_half(file):
    os.truncate(file, file.stat().st_size // 2)


def emptied(file):
    file.write_bytes(b"")


def flipped(file):
    """One bit of an array is another."""
    content = bytearray(file.read_bytes())
    content[content.index(np.lib.format.MAGIC_PREFIX) + 130] ^= 1
    file.write_bytes(content)


def without_rankings(file):
    with np.load(file) as arrays:
        kept = {name: arrays[name] for name in arrays if name != "rankings"}
    np.savez(file, **kept)


def pickled(file):
    with np.load(file) as arrays:
        kept = dict(arrays)
    np.savez(file, **kept | {"rankings": np.array([None])})


def a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [garbage, cut_short, cut_in_half, emptied, flipped, without_rankings, pickled, a_folder],
)
def test_a_damaged_block_is_scored_again_with_a_warning(
    method, queries, gallery, folder, damage, caplog
):
    stop(queries, gallery, folder)
    damage(folders(folder)[0] / "0-1.npz")
    found = score(method, queries, gallery, folder)
    assert method.pairs == (2 + 3) * 13
    assert caplog.text.count("0-1.npz cannot be used") == 1 and "scoring again" in caplog.text
    assert_same(found, fresh(queries, gallery))


def refused():
    raise OSError("no space left")


def full_disk(patch, asked):
    def savez(stream, **arrays):
        asked.append(stream)
        stream.write(b"half of it")
        refused()

    patch.setattr(interrupted_module.np, "savez", savez)


def no_renaming(patch, asked):
    patch.setattr(interrupted_module.os, "replace", lambda *files: asked.append(files) or refused())


def no_folder(patch, asked):
    made = Path.mkdir

    def mkdir(path, **settings):
        if path.suffix != ".scores":
            return made(path, **settings)
        asked.append(path)
        return refused()

    patch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize("refuse", [full_disk, no_renaming, no_folder])
def test_a_disk_that_refuses_is_one_warning(
    method, queries, gallery, folder, monkeypatch, caplog, refuse
):
    score(method, queries, gallery, folder)  # features are there
    asked = []
    with monkeypatch.context() as patch:
        refuse(patch, asked)
        found = score(method, queries, gallery, folder)
    assert len(asked) == 1
    assert caplog.text.count("scores are not kept") == caplog.text.count("no space left") == 1
    assert method.pairs == ALL["rn"]
    assert_same(found, fresh(queries, gallery))
    assert folders(folder) == []


# ---- a block


def block(numbers, checked):
    random = np.random.default_rng(0)
    names, Q = ("map_all", "precision@1"), len(numbers)
    return Scored(
        numbers=np.array(numbers),
        values={name: random.random(Q) for name in names},
        rankings=random.integers(0, 9, (Q, 4), dtype=np.int32),
        similarities=np.array([[1.5, 0.0, -np.inf, np.nan]] * Q, dtype=np.float32),
        checked=np.arange(Q) < checked,
        by_pairs={name: random.random(checked) for name in names} if checked else {},
    )


@pytest.mark.parametrize(("numbers", "checked"), [([0], 0), ([7], 1), ([3, 5, 9], 2)])
def test_a_block_comes_back_as_it_was(queries, gallery, folder, numbers, checked):
    written = block(numbers, checked)
    Interrupted(folder, "0" * 16, queries, gallery, ["rn"]).write(written)
    found = Interrupted(folder, "0" * 16, queries, gallery, ["rn"]).read(np.array(numbers))
    for field in dataclasses.fields(Scored):
        one, other = getattr(found, field.name), getattr(written, field.name)
        if isinstance(other, dict):
            assert list(one) == list(other)
        else:
            one, other = {"": one}, {"": other}
        for name, expected in other.items():
            assert one[name].dtype == expected.dtype
            np.testing.assert_array_equal(one[name], expected)


@pytest.mark.parametrize("others", [[0, 4], [0, 1, 2, 3, 4], [0, 3, 4], [0, 2], [2, 4], [4, 2, 0]])
def test_a_block_is_of_its_queries_alone(queries, gallery, folder, others, caplog):
    interrupted = Interrupted(folder, "0" * 16, queries, gallery, ["rn"])
    interrupted.write(block([0, 2, 4], 1))
    assert interrupted.read(np.array(others)) is None
    assert interrupted.read(np.array([0, 2, 4])) is not None
    assert caplog.text == ""
