"""Rows of features on disk: what is added is read back, by others too, and damage is noticed."""

import os

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval import store as store_module
from retrieval.store import DamagedError, FeatureStore, state_of
from utils.errors import InputError
from utils.lines import read_lines, write_lines

KEY = {"weights": "0" * 16, "views": "plain"}
TYPES = {"retrieval": "float32", "tokens": "float16"}
BOTH = ("retrieval", "tokens")


def rows_of(names, feature):
    """Rows that are another for each name."""
    shape = {"retrieval": (3,), "tokens": (2, 2)}[feature]
    rows = [
        np.random.default_rng([*name.encode(), len(feature)]).normal(size=shape) for name in names
    ]
    return np.array(rows, dtype=TYPES[feature]).reshape(len(names), *shape)


def add(store, names, features=BOTH, state=(1, 2)):
    content = {feature: rows_of(names, feature) for feature in features}
    store.add(names, [list(state)] * len(names), content)


def known(store, names, features=BOTH, state=(1, 2)):
    return store.known(names, [list(state)] * len(names), features).tolist()


def assert_rows(store, names, features=BOTH):
    for feature in features:
        np.testing.assert_array_equal(store.read(feature, names), rows_of(names, feature))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(folder):
    """Open for writing; three images are in it, in two blocks."""
    store = FeatureStore(folder, KEY, TYPES)
    store.start_writing()
    add(store, ["a", "b"])
    add(store, ["c"])
    yield store
    store.close()


def reopened(folder, key=KEY, snapshot=None):
    return FeatureStore(folder, key, TYPES, snapshot)


def test_what_is_added_is_read_back_in_any_order(store, folder):
    for found in (store, reopened(folder)):
        assert known(found, ["a", "b", "c", "d"]) == [True] * 3 + [False]
        for names in (["a"], ["c", "a"], ["b", "c", "a", "b"], []):
            if names:
                assert_rows(found, names)


def test_opening_writes_nothing(folder):
    assert known(reopened(folder), ["a"]) == [False] and not folder.exists()


def test_a_file_in_another_state_is_not_known(store):
    assert known(store, ["a", "b"], state=(1, 3)) == [False, False]
    add(store, ["a"], state=(1, 3))
    assert known(store, ["a", "b"], state=(1, 3)) == [True, False]
    assert known(store, ["a", "b"]) == [False, True]


def test_of_a_name_that_comes_twice_the_last_row_counts(store, folder):
    state, rows = [[1, 2]] * 3, np.arange(9).reshape(3, 3)
    store.add(["d", "e", "d"], state, {"retrieval": rows})
    for found in (store, reopened(folder)):
        assert found.read("retrieval", ["d", "e"]).tolist() == [[6, 7, 8], [3, 4, 5]]


def test_rows_that_are_not_one_an_image_are_refused(store):
    with pytest.raises(ValueError, match="2 rows of retrieval for 1 images"):
        store.add(["d"], [[1, 2]], {"retrieval": np.zeros((2, 3))})


def test_numbers_beyond_fp16_are_refused_and_not_kept_as_infinite(store, folder):
    with pytest.raises(InputError, match="too large for fp16"):
        store.add(["d"], [[1, 2]], {"tokens": np.full((1, 2, 2), 70_000.0)})
    assert known(store, ["d"], ["tokens"]) == [False]


@pytest.mark.parametrize(
    "change",
    [
        lambda line: [],
        lambda line: {},
        lambda line: line | {"names": "ab"},
        lambda line: line | {"names": ["a"]},
        lambda line: line | {"names": ["a", 2]},
        lambda line: line | {"states": [[1, 2], [1]]},
        lambda line: line | {"states": [[1, 2], [1, -2]]},
        lambda line: line | {"states": None},
        lambda line: line | {"features": []},
        lambda line: changed_feature(line, first=-1),
        lambda line: changed_feature(line, first=0.5),
        lambda line: changed_feature(line, first=True),
        lambda line: changed_feature(line, first=10**30),
        lambda line: changed_feature(line, shape=[0]),
        lambda line: changed_feature(line, shape=[10**30]),
        lambda line: changed_feature(line, shape="ab"),
        lambda line: changed_feature(line, sums=[1]),
        lambda line: changed_feature(line, sums=[1, "a"]),
        lambda line: changed_feature(line, sums=None),
        lambda line: line | {"features": line["features"] | {"others": {}}},
    ],
)
def test_entries_are_checked_whoever_wrote_them(store, folder, change):
    """Their checksums are right: a program wrote this."""
    store.close()
    file = folder / "entries.0.jsonl"
    header, first, second = read_lines(file)
    write_lines(file, [header, change(first), second])
    found = reopened(folder)
    assert known(found, ["a", "b", "c"]) == [False, False, True]
    assert_rows(found, ["c"])


def changed_feature(line, **values):
    about = line["features"]["retrieval"] | values
    return line | {"features": line["features"] | {"retrieval": about}}


def test_features_may_come_one_after_the_other(folder):
    store = FeatureStore(folder, KEY, TYPES)
    store.start_writing()
    add(store, ["a", "b"], ["retrieval"])
    assert known(store, ["a"], ["retrieval"]) == [True] and known(store, ["a"]) == [False]
    add(store, ["b", "c"], ["tokens"])
    assert known(store, ["a", "b", "c"]) == [False, True, False]
    store.close()
    found = reopened(folder)
    assert known(found, ["a", "b", "c"]) == [False, True, False]
    assert_rows(found, ["b", "a"], ["retrieval"])
    assert_rows(found, ["c", "b"], ["tokens"])


def test_another_key_and_a_foreign_format_count_as_absent(store, folder, monkeypatch):
    assert known(reopened(folder, {**KEY, "views": "many"}), ["a"]) == [False]
    monkeypatch.setattr(store_module, "FORMAT", 99)
    assert known(reopened(folder), ["a"]) == [False]


def test_what_has_another_key_is_replaced_by_what_is_written(store, folder):
    store.close()
    other = reopened(folder, {"weights": "1" * 16})
    other.start_writing()
    add(other, ["a"])
    other.remove_former()
    other.close()
    assert known(reopened(folder, {"weights": "1" * 16}), ["a", "b"]) == [True, False]
    assert known(reopened(folder), ["a"]) == [False]
    assert len(list(folder.glob("*.rows"))) == 2


# ---- several programs


def test_a_second_writer_is_refused(store, folder):
    with pytest.raises(OSError, match="another program is writing there"):
        reopened(folder).start_writing()
    store.close()
    other = reopened(folder)
    other.start_writing()
    other.close()


def test_a_writer_goes_on_from_what_another_has_added_meanwhile(store, folder):
    other = reopened(folder)
    add(store, ["d"])
    store.close()
    other.start_writing()
    add(other, ["e"])
    other.close()
    assert_rows(reopened(folder), ["d", "e", "a"])


def test_a_snapshot_is_what_was_there_then(store, folder):
    before = store.snapshot
    add(store, ["a"], state=(5, 5))
    assert known(reopened(folder, snapshot=before), ["a"]) == [True]
    assert known(reopened(folder), ["a"]) == [False]


def test_readers_of_a_former_generation_go_on_reading(store, folder):
    before = reopened(folder, snapshot=store.snapshot)
    snapshot = store.snapshot
    store.keep_only(["c"])
    assert store.snapshot[0] == snapshot[0] + 1
    assert_rows(before, ["a", "b", "c"])
    assert_rows(reopened(folder, snapshot=snapshot), ["a", "b"])
    store.remove_former()
    assert len(list(folder.glob("*.rows"))) == 2
    assert_rows(before, ["b", "a", "c"])
    assert_rows(reopened(folder), ["c"])


def test_without_locks_nothing_is_written(folder, monkeypatch):
    def refuse(lock, timeout):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OSError, match="no locks"):
        FeatureStore(folder, KEY, TYPES).start_writing()


# ---- forgetting


def test_few_forgotten_images_leave_the_rows_where_they_are(folder):
    store = FeatureStore(folder, KEY, TYPES)
    store.start_writing()
    add(store, list("abcdefgh"))
    size = (folder / "retrieval.0.rows").stat().st_size
    store.keep_only(list("abcdefg"))
    assert known(store, ["h"]) == [False] and (folder / "retrieval.0.rows").stat().st_size == size
    assert_rows(store, list("gfa"))
    store.close()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_rewriting_keeps_what_is_kept(data, tmp_path_factory):
    """Whatever was added, in whatever blocks and features, and whichever images stay."""
    folder = tmp_path_factory.mktemp("store")
    store = FeatureStore(folder, KEY, TYPES)
    store.start_writing()
    names, has = list("abcdefghij"), {}
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=5))
        features = data.draw(st.sampled_from([BOTH, ("retrieval",), ("tokens",)]))
        add(store, block, features)
        for name in block:
            has.setdefault(name, set()).update(features)
    kept = [name for name in has if data.draw(st.booleans())]
    store.keep_only(kept)
    store.remove_former()
    store.close()
    for found in (store, reopened(folder)) if store.snapshot[0] else (store,):
        for name in has:
            for feature in BOTH:
                there = name in kept and feature in has[name]
                assert known(found, [name], [feature]) == [there]
                if there:
                    assert_rows(found, [name], [feature])


# ---- space


def test_space_is_set_aside_and_given_back(store, folder):
    size = store.reserve({"retrieval": (3,), "tokens": (2, 2)}, 1000)
    assert size == 1000 * (12 + 8)
    if hasattr(os, "posix_fallocate"):
        assert (folder / "tokens.0.rows").stat().st_size == (3 + 1000) * 8
    add(store, ["d"])
    store.close()
    assert (folder / "tokens.0.rows").stat().st_size == 4 * 8
    assert_rows(reopened(folder), list("abcd"))


def test_a_disk_without_room_refuses_before_the_work(store, monkeypatch):
    free = type("", (), {"free": 5_000_000})
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"20\.0 MB needed, 5\.0 MB free"):
        store.reserve({"retrieval": (3,), "tokens": (2, 2)}, 1_000_000)
    add(store, ["d"])
    assert_rows(store, ["d", "a"])


def test_after_a_refusal_the_next_block_is_added_in_its_place(store, folder, monkeypatch):
    def refuse(file, line):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "append_line", refuse)
        with pytest.raises(OSError, match="no space left"):
            add(store, ["d", "e"])
    assert known(store, ["d", "c"]) == [False, True]
    add(store, ["f"])
    store.close()
    assert_rows(reopened(folder), ["f", "c", "a"])


# ---- damage


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("feature", BOTH)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_bit_is_noticed_in_its_row_alone(store, folder, feature, number):
    flip(folder / f"{feature}.0.rows", number * store.bytes_of_row(feature))
    names = ["a", "b", "c"]
    for found in (store, reopened(folder)):
        others = [name for name in names if name != names[number]]
        assert_rows(found, others)
        assert found.sound(names, BOTH).tolist() == [name in others for name in names]
        with pytest.raises(DamagedError, match=f"row of {names[number]} is damaged, and 0 more"):
            found.read(feature, names)


def test_rows_that_change_places_are_noticed(store, folder):
    file = folder / "retrieval.0.rows"
    content = file.read_bytes()
    file.write_bytes(content[12:24] + content[:12] + content[24:])
    with pytest.raises(DamagedError, match="and 1 more"):
        store.read("retrieval", ["a", "b", "c"])


@pytest.mark.parametrize("size", [0, 1, 24, 35])
def test_rows_cut_short_count_as_absent_and_are_never_zeros(store, folder, size):
    store.close()
    os.truncate(folder / "retrieval.0.rows", size)
    found = reopened(folder)
    assert known(found, ["a", "b", "c"]) == [size >= 24, size >= 24, False]
    found.start_writing()
    add(found, ["c", "a", "b"])
    found.close()
    assert_rows(reopened(folder), ["a", "b", "c"])


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_entries_never_gives_another_answer(store, folder, place, bit):
    file = folder / "entries.0.jsonl"
    before = file.read_bytes()
    content = bytearray(before)
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content)
    try:
        found = reopened(folder)
        for name in ("a", "b", "c"):
            if known(found, [name]) == [True]:
                assert_rows(found, [name])
    finally:
        file.write_bytes(before)


def test_the_state_of_a_file_changes_with_its_size_and_time(tmp_path):
    file = tmp_path / "a"
    assert state_of(file) == []
    file.write_bytes(b"1")
    one = state_of(file)
    file.write_bytes(b"12")
    assert state_of(file) != one and state_of(file)[0] == 2
    os.utime(file, ns=(5, 7))
    assert state_of(file) == [2, 7]
