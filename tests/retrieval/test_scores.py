"""Scores of pairs on disk: a stopped evaluation goes on, without stale or damaged ones."""

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeMethod, World, encoder_and_settings, image_list, on_disk

from retrieval import store as store_module
from retrieval.evaluate import Evaluation, evaluate
from retrieval.metrics import METRICS
from retrieval.scores import Scores
from retrieval.scoring import RANKERS
from retrieval.store import FeatureStore

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


def score(method, queries, gallery, store, **settings):
    settings = {"mode": "rn", "shortlist": 5, "query_block": 2, "gallery_block": 5} | settings
    mode, shortlist = settings.pop("mode"), settings.pop("shortlist")
    own = {name: settings.pop(name) for name in ("fuse", "expand") if name in settings}
    if mode == "rerank":
        own["shortlist"] = shortlist
    method.pairs = 0
    encoder, settings = encoder_and_settings(method, settings | {"store": store})
    return evaluate(encoder, queries, gallery, RANKERS[mode], own, **settings)


def fresh(queries, gallery, **settings):
    """The evaluation of a run that keeps nothing."""
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


def entries(folder):
    """Files with entries of the scores."""
    return sorted(file for path in folders(folder) for file in path.glob("*/entries.*.jsonl"))


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
    found = score(method, queries, gallery, folder, mode=mode)
    assert method.pairs == ALL[mode] - blocks * PAIRS[mode]
    assert_same(found, fresh(queries, gallery, mode=mode))
    assert ("scoring goes on" in caplog.text) == (blocks > 0)
    assert folders(folder) == []


def test_a_run_may_be_stopped_again_and_again(method, queries, gallery, folder):
    for _ in range(2):
        stop(queries, gallery, folder, blocks=1)
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
def test_a_run_goes_on_with_blocks_of_another_size(method, queries, gallery, folder, blocks):
    stop(queries, gallery, folder)
    found = score(method, queries, gallery, folder, query_block=blocks)
    assert method.pairs == 3 * 13
    assert_same(found, fresh(queries, gallery))
    assert folders(folder) == []


def test_a_run_stopped_while_it_writes_goes_on(method, queries, gallery, folder, monkeypatch):
    append = store_module.append_line

    def stopped(file, line):
        if ".scores" in str(file):
            with open(file, "ab") as stream:
                stream.write(b"00000000 {")
            raise KeyboardInterrupt
        append(file, line)

    stop(queries, gallery, folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "append_line", stopped)
        assert not finished(FakeMethod(), queries, gallery, folder)
    found = score(method, queries, gallery, folder)
    assert method.pairs == 5 * 13
    assert_same(found, fresh(queries, gallery))
    assert folders(folder) == []


def shared_by_two(monkeypatch, queries, gallery, folder, limits, **settings):
    """Of each of two processes its evaluation, and how many pairs it scores, up to its limit."""

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
    assert len(entries(folder)) == 2
    ends = shared_by_two(monkeypatch, queries, gallery, folder, [ALL[mode]] * 2, mode=mode)
    assert [pairs for _, pairs in ends] == [PAIRS[mode], PAIRS[mode] // 2]
    for found, _ in ends:
        assert_same(found, fresh(queries, gallery, mode=mode))
    assert folders(folder) == []


def test_one_process_goes_on_where_several_were_stopped(
    method, queries, gallery, folder, monkeypatch
):
    limits = [3 * 13 + 1, 1]  # sketches 0 2 4 | 6 and 1 3 5
    ends = shared_by_two(monkeypatch, queries, gallery, folder, limits, query_block=3)
    assert [found for found, _ in ends] == ["stopped"] * 2
    found = score(method, queries, gallery, folder, query_block=5)
    assert method.pairs == 4 * 13
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
    stop(queries, gallery, folder)  # sketches 0 to 3 are done
    change({"queries": queries, "gallery": gallery}[which].file(2))
    found = score(method, queries, gallery, folder)
    assert method.pairs == {"queries": 4 * 13, "gallery": ALL["rn"]}[which]
    assert_same(found, fresh(queries, gallery))


@pytest.mark.parametrize("change", ["order", "targets", "fewer"])
@pytest.mark.parametrize("which", ["queries", "gallery"])
def test_scores_of_another_gallery_are_not_used_and_those_of_a_sketch_are(
    method, queries, gallery, folder, change, which
):
    lists = {"queries": queries, "gallery": gallery}
    stop(queries, gallery, folder)
    images = lists[which]
    lists[which] = {
        "order": images.select(np.arange(len(images))[::-1]),
        "targets": dataclasses.replace(images, target=np.roll(images.target, 1)),
        "fewer": images.select(np.arange(len(images) - 1)),
    }[change]
    found = score(method, **lists, store=folder)
    same_target = {"order": 4, "targets": 0, "fewer": 4}[change] if which == "queries" else 0
    assert method.pairs == (len(lists["queries"]) - same_target) * len(lists["gallery"])
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
def test_scores_are_kept_where_pairs_are_scored_and_there_is_a_store(
    method, queries, gallery, folder, monkeypatch, mode, cached, kept
):
    written, add = [], FeatureStore.add

    def counted(store, states, *more):
        written.extend(states if ".scores" in str(store.folder) else ())
        add(store, states, *more)

    monkeypatch.setattr(FeatureStore, "add", counted)
    score(method, queries, gallery, folder if cached else None, mode=mode)
    assert len(written) == (7 if kept else 0)


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
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def gone(file):
    file.unlink()


@pytest.mark.parametrize("name", ["entries.0.jsonl", "values.0.rows", "rankings.0.rows"])
@pytest.mark.parametrize("damage", [garbage, cut_short, cut_in_half, emptied, flipped, gone])
def test_damaged_scores_are_scored_again(method, queries, gallery, folder, damage, name, caplog):
    stop(queries, gallery, folder)
    (place,) = folders(folder)
    damage(place / "0" / name)
    found = score(method, queries, gallery, folder)
    assert method.pairs > 3 * 13
    assert (place.name in caplog.text) == (damage is not gone or name != "entries.0.jsonl")
    assert_same(found, fresh(queries, gallery))


def refused():
    raise OSError("no space left")


def full_disk(patch, tried):
    add = FeatureStore.add

    def refuse(store, *arguments):
        if ".scores" not in str(store.folder):
            return add(store, *arguments)
        tried.append(store)
        return refused()

    patch.setattr(FeatureStore, "add", refuse)


def no_folder(patch, tried):
    made = Path.mkdir

    def mkdir(path, **settings):
        if ".scores" not in str(path):
            return made(path, **settings)
        tried.append(path)
        return refused()

    patch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize("refuse", [full_disk, no_folder])
def test_a_disk_that_refuses_is_one_warning(
    method, queries, gallery, folder, monkeypatch, caplog, refuse
):
    score(method, queries, gallery, folder)  # features are there
    tried = []
    with monkeypatch.context() as patch:
        refuse(patch, tried)
        found = score(method, queries, gallery, folder)
    assert len(tried) == 1
    assert caplog.text.count("scores are not kept") == caplog.text.count("no space left") == 1
    assert method.pairs == ALL["rn"]
    assert_same(found, fresh(queries, gallery))
    assert folders(folder) == []


# ---- of a query


def drawn(Q, checked):
    """Scores of Q queries, of which some are checked, among 9 photos."""
    random = np.random.default_rng(0)
    scores = {
        "values": random.random((Q, len(METRICS))),
        "rankings": random.integers(0, 9, (Q, 9), dtype=np.int32),
        "similarities": np.array([[1.5, 0.0, -np.inf, np.nan, *range(5)]] * Q, dtype=np.float32),
    }
    if checked:
        scores["all_pairs"] = random.random((checked, len(METRICS)))
    return scores


@pytest.mark.parametrize("numbers", [[0], [6], [1, 3, 4]])
@pytest.mark.parametrize("checked", [(), (1,), (0, 3, 4, 6)])
def test_scores_come_back_as_they_were(queries, folder, numbers, checked):
    is_checked, key = np.isin(np.arange(7), checked), {"weights": "0" * 16}
    written, read = (Scores(queries, 9, is_checked) for _ in range(2))
    written.keep_in(folder, key, 0)
    content = drawn(len(numbers), int(is_checked[numbers].sum()))
    written.add(np.array(numbers), content)
    written.close()
    read.keep_in(folder, key, 0)
    assert read.missing().tolist() == [n for n in range(7) if n not in numbers]
    for name, rows in read.result().items():
        expected = written.result()[name]
        assert rows.dtype == expected.dtype
        np.testing.assert_array_equal(rows, expected)
        if name in content and name != "all_pairs":
            np.testing.assert_array_equal(rows, content[name])
    read.close()


def test_scores_with_another_key_are_not_read(queries, folder):
    for number, expected in enumerate([7, 6, 7]):
        scores = Scores(queries, 9, np.zeros(7, dtype=bool))
        scores.keep_in(folder, {"weights": "0" * 16, "gallery": number // 2}, 0)
        assert len(scores.missing()) == expected
        scores.add(np.array([2]), drawn(1, 0))
        scores.close()
