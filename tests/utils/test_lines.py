"""Lines of JSON behind their checksums: a torn or changed one is noticed, and no other is lost."""

import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.lines import append_line, read_lines, write_lines

FIRST, SECOND = {"name": "a b/ä.jpg", "state": [1, 2.5]}, {"other": None}


def on_disk(content) -> bytes:
    """A line by hand: eight hex digits of the checksum, a blank, JSON without blanks."""
    text = json.dumps(content, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "lines.jsonl"


def test_what_is_written_and_appended_comes_back_in_order(file):
    write_lines(file, [FIRST, SECOND])
    append_line(file, {})
    append_line(file, FIRST)
    assert read_lines(file) == [FIRST, SECOND, {}, FIRST]
    assert file.read_bytes() == b"".join(map(on_disk, [FIRST, SECOND, {}, FIRST]))


def test_no_file_and_an_empty_one_have_no_lines(file):
    assert read_lines(file) == []
    file.touch()
    assert read_lines(file) == []
    append_line(file, FIRST)
    assert read_lines(file) == [FIRST] and file.read_bytes() == on_disk(FIRST)
    write_lines(file, [])
    assert read_lines(file) == [] and file.read_bytes() == b""


def test_the_first_line_that_is_appended_makes_the_file(file):
    append_line(file, SECOND)
    assert read_lines(file) == [SECOND]


@pytest.mark.parametrize("kept", range(1, len(on_disk(SECOND)) - 1))
def test_a_line_that_was_torn_anywhere_is_damaged_and_stays_a_line_of_its_own(file, kept):
    file.write_bytes(on_disk(FIRST) + on_disk(SECOND)[:kept])
    assert read_lines(file) == [FIRST, None]
    append_line(file, SECOND)
    append_line(file, FIRST)
    assert read_lines(file) == [FIRST, None, SECOND, FIRST]


def test_a_line_that_lacks_its_end_alone_is_whole(file):
    file.write_bytes(on_disk(FIRST) + on_disk(SECOND)[:-1])
    assert read_lines(file) == [FIRST, SECOND]
    append_line(file, FIRST)
    assert read_lines(file) == [FIRST, SECOND, FIRST]


@pytest.mark.parametrize("place", range(len(on_disk(FIRST)) - 1))
def test_a_line_with_a_changed_byte_is_damaged_and_no_other_is(file, place):
    changed = bytearray(on_disk(FIRST))
    changed[place] ^= 1
    assert changed[place] != ord("\n")
    file.write_bytes(on_disk(SECOND) + changed + on_disk(SECOND))
    assert read_lines(file) == [SECOND, None, SECOND]


def test_a_newline_that_was_changed_joins_two_lines_into_one_damaged_one(file):
    file.write_bytes(on_disk(FIRST)[:-1] + b"x" + on_disk(SECOND) + on_disk(FIRST))
    assert read_lines(file) == [None, FIRST]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"no checksum", b"00000000 ", b" ", b"\x00" * 50])
def test_what_is_no_line_of_ours_is_damaged(file, line):
    file.write_bytes(on_disk(FIRST) + line + b"\n" + on_disk(SECOND))
    assert read_lines(file) == [FIRST, None, SECOND]


def test_a_failure_leaves_the_former_lines(file):
    def broken():
        yield SECOND
        raise OSError("full")

    write_lines(file, [FIRST])
    with pytest.raises(OSError, match="full"):
        write_lines(file, broken())
    assert read_lines(file) == [FIRST] and list(file.parent.iterdir()) == [file]


CONTENT = st.dictionaries(
    st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=8)), max_size=3
)


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(CONTENT, max_size=5), cut=st.integers(0, 400))
def test_of_a_file_that_was_cut_all_whole_lines_come_back(tmp_path_factory, lines, cut):
    file = tmp_path_factory.getbasetemp() / "cut.jsonl"
    write_lines(file, lines)
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    found = read_lines(file)
    left = [on_disk(line) for line in lines]
    ends = [sum(map(len, left[: i + 1])) for i in range(len(left))]
    count = sum(end <= cut + 1 for end in ends)  # the last newline may be missing
    assert found[:count] == lines[:count] and found[count:] in ([], [None])
