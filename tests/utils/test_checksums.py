"""A checksum of each row, which a changed byte, a torn end and words that change places change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.checksums import row_sums

TYPES = ["<f2", "<f4", "<f8", "u1", "<i8"]
ODD = (0x2F4BA6408E4D89B, 0x3DD62B0B9CA8C5B3, 0x1C8667A55D902E79)  # the first three numbers


def slow_sums(rows):
    """Byte by byte: words of 8, 4, 2 or 1 bytes, the widest that fills a row."""
    sums = []
    for row in rows:
        content = row.tobytes()
        word = next(size for size in (8, 4, 2, 1) if len(content) % size == 0)
        words = [content[i : i + word] for i in range(0, len(content), word)]
        odd = [number | 1 for number in np.random.Philox(key=0).random_raw(len(words)).tolist()]
        products = (int.from_bytes(w, "little") * n for w, n in zip(words, odd, strict=True))
        sums.append(sum(products) % 2**64)
    return sums


def test_by_hand():
    """Stores on disk hold such sums: they are the same in every version."""
    a, b, c = ODD
    words = np.array([[1, 2, 3], [0, 0, 2**64 - 1]], dtype="<u8")
    assert row_sums(words).tolist() == [(a + 2 * b + 3 * c) % 2**64, -c % 2**64]
    assert row_sums(np.array([[1, 0, 2]], dtype="u1")).tolist() == [(a + 2 * c) % 2**64]
    assert row_sums(np.array([[1, 1]], dtype="<u2")).tolist() == [(2**16 + 1) * a % 2**64]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    count=st.integers(1, 5),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_the_sums_of_any_rows_equal_the_slow_loop(dtype, count, shape, seed):
    rows = np.random.default_rng(seed).integers(-100, 100, (count, *shape)).astype(dtype)
    sums = row_sums(rows)
    assert sums.dtype == np.uint64 and sums.shape == (count,)
    assert sums.tolist() == slow_sums(rows)


def test_rows_of_any_layout_have_the_sums_of_their_numbers():
    rows = np.random.default_rng(0).standard_normal((6, 4, 5)).astype(np.float32)
    expected = row_sums(rows)
    assert np.array_equal(row_sums(np.asfortranarray(rows)), expected)
    assert np.array_equal(row_sums(np.repeat(rows, 2, axis=0)[::2]), expected)
    assert np.array_equal(row_sums(rows[::-1]), expected[::-1])
    assert np.array_equal(row_sums(rows.reshape(6, 20)), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 3, 4, 7, 768])
def test_any_changed_byte_changes_the_sum_of_its_row_alone(dtype, width):
    random = np.random.default_rng(0)
    rows = random.integers(1, 100, (3, width)).astype(dtype)
    before = row_sums(rows)
    for place in random.integers(rows[1].nbytes, size=20):
        changed = rows.copy()
        changed[1].view(np.uint8)[place] ^= 1 << random.integers(8)
        assert (row_sums(changed) != before).tolist() == [False, True, False]


def test_a_row_of_which_the_end_was_torn_off_has_another_sum():
    rows = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float16)
    torn = rows.copy()
    torn[:, 40:] = 0
    assert (row_sums(torn) != row_sums(rows)).all()


def test_no_rows_have_no_sums():
    assert row_sums(np.zeros((0, 3, 2), dtype=np.float32)).shape == (0,)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (3, 60), (0, 512)])
def test_words_that_change_places_change_the_sum(one, other):
    rows = np.random.default_rng(0).standard_normal((3, 2052)).astype(np.float16)
    changed = rows.copy()
    words = changed.view(np.uint64)
    words[1, [one, other]] = words[1, [other, one]]
    assert (row_sums(changed) != row_sums(rows)).tolist() == [False, True, False]
