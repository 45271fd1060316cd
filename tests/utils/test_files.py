"""Files written whole or not at all."""

import errno
import os
import re
from pathlib import Path

import pytest
from full_disk import run_with_limits

from utils.errors import InputError
from utils.files import (
    TEMPORARY,
    append_lines,
    append_whole,
    check_folder,
    open_regular,
    reason,
    reserve,
    written_whole,
)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---- before anything is written


def test_a_file_needs_the_folder_that_it_is_to_go_to(tmp_path, monkeypatch):
    check_folder(tmp_path / "any.json", "--json")
    monkeypatch.chdir(tmp_path)
    check_folder(Path("any.json"), "--json")
    with pytest.raises(InputError) as error:
        check_folder(Path("absent/any.json"), "--json")
    assert str(error.value) == "--json absent/any.json: there is no folder absent. Make it first."


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name, tmp_path):
    """Of the second one, where its content would stand first."""
    with pytest.raises(InputError, match=r"^--json .*: cannot be written \("):
        check_folder(tmp_path / name, "--json")


# ---- whole files


def test_a_file_is_under_its_name_once_it_is_whole(tmp_path):
    with written_whole(tmp_path / "run.json") as file:
        file.write(b"half")
        file.flush()
        (name,) = files(tmp_path)
        assert re.fullmatch(rf"run\.json{TEMPORARY}", name)
        file.write(b" and half")
    assert files(tmp_path) == {"run.json": b"half and half"}


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_former_file_alone(tmp_path, error):
    (tmp_path / "run.json").write_bytes(b"former")
    with pytest.raises(error), written_whole(tmp_path / "run.json") as file:
        file.write(b"new")
        raise error
    assert files(tmp_path) == {"run.json": b"former"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_former_file_alone(tmp_path, monkeypatch, call):
    def refuse(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "run.json").write_bytes(b"former")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="Input/output"), written_whole(tmp_path / "run.json") as file:
        file.write(b"new")
    assert files(tmp_path) == {"run.json": b"former"}


def test_a_folder_that_vanishes_meanwhile_is_the_error(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(FileNotFoundError), written_whole(folder / "run.json") as file:
        file.write(b"new")
        (aside,) = folder.iterdir()
        aside.unlink()
        folder.rmdir()
    assert not folder.exists()


def test_that_nothing_can_be_cleared_away_does_not_hide_the_reason(tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError("unlink")

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    with pytest.raises(OSError, match="full"), written_whole(tmp_path / "run.json"):
        raise OSError("full")


def test_a_file_system_that_syncs_no_folders_has_the_file_all_the_same(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def only_files(number):
        synced.append(number)
        if len(synced) == 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", only_files)
    with written_whole(tmp_path / "run.json") as file:
        file.write(b"new")
    assert len(synced) == 2 and files(tmp_path) == {"run.json": b"new"}
    with pytest.raises(OSError):  # the folder was closed again: its number is free
        os.fstat(synced[1])


# ---- lines


def test_lines_are_added_behind_those_that_are_there(tmp_path):
    append_lines(tmp_path / "lines", ["one"])
    append_lines(tmp_path / "lines", ["two", "drei äöü"])
    append_lines(tmp_path / "lines", [])
    assert (tmp_path / "lines").read_text(encoding="utf-8") == "one\ntwo\ndrei äöü\n"


def test_what_a_crash_tore_stays_a_line_of_its_own(tmp_path):
    (tmp_path / "lines").write_text('one\n{"kin')
    append_lines(tmp_path / "lines", ["two"])
    assert (tmp_path / "lines").read_text() == 'one\n{"kin\ntwo\n'


def test_lines_that_do_not_fit_are_left_out_whole(tmp_path):
    code = """
import sys
from utils.files import append_lines

lines = Path(sys.argv[1])
append_lines(lines, ["first"])
room(12)
for more in (["second, too long"], ["2nd", "3rd"]):
    try:
        append_lines(lines, more)
    except OSError as error:
        print(error.strerror, lines.read_bytes())
append_lines(lines, ["2nd"])
room(None)
append_lines(lines, ["3rd"])
print(lines.read_bytes())
"""
    done = run_with_limits(code, tmp_path / "lines")
    assert done.returncode == 0, done.stderr
    full = r"File too large b'first\n'"
    assert done.stdout.splitlines() == [full, full, r"b'first\n2nd\n3rd\n'"]


def test_what_is_added_to_a_file_that_is_not_there_begins_it(tmp_path):
    append_whole(tmp_path / "bytes", b"one")
    append_whole(tmp_path / "bytes", b"two")
    assert files(tmp_path) == {"bytes": b"onetwo"}
    with pytest.raises(FileNotFoundError):
        append_whole(tmp_path / "absent" / "bytes", b"one")


# ---- space set aside


def lacks_function(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)


def lacks_it_in_the_file_system(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)


@pytest.fixture(params=[None, lacks_function, lacks_it_in_the_file_system])
def system(request, monkeypatch):
    """With a system that reserves space, and without; whether it does."""
    if request.param is not None:
        request.param(monkeypatch)
        return False
    return hasattr(os, "posix_fallocate")


@pytest.mark.parametrize("before", [b"", b"what is there"])
def test_reserved_space_is_part_of_the_file_and_changes_nothing_in_it(tmp_path, system, before):
    place = tmp_path / "rows"
    place.write_bytes(before)
    with open(place, "r+b") as file:
        reserve(file, len(before), 100_000)
    assert place.read_bytes() == before + bytes(100_000)
    if system:  # reserved, not only promised
        assert place.stat().st_blocks * 512 >= 100_000


def test_space_inside_a_file_is_there_already(tmp_path, system):
    place = tmp_path / "rows"
    place.write_bytes(b"0123456789")
    with open(place, "r+b") as file:
        reserve(file, 2, 3)
    assert place.read_bytes() == b"0123456789"


@pytest.mark.parametrize("size", [0, -5])
def test_no_space_is_no_work(tmp_path, system, size):
    place = tmp_path / "rows"
    place.write_bytes(b"rows")
    with open(place, "r+b") as file:
        reserve(file, 1, size)
    assert place.read_bytes() == b"rows"


def test_what_is_written_before_and_after_is_kept(tmp_path, system):
    with open(tmp_path / "rows", "wb") as file:
        file.write(b"head")
        reserve(file, 4, 6)
        file.write(b"tail")
    assert files(tmp_path) == {"rows": b"headtail" + bytes(2)}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no space")
def test_a_disk_without_room_refuses_at_once(tmp_path):
    code = """
import sys
from utils.files import reserve

place = Path(sys.argv[1])
place.write_bytes(b"rows")
room(1000)
with open(place, "r+b") as file:
    try:
        reserve(file, 4, 2000)
    except OSError as error:
        print(error.strerror)
    reserve(file, 4, 900)
print(place.read_bytes() == b"rows" + bytes(900))
"""
    done = run_with_limits(code, tmp_path / "rows")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["File too large", "True"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_is_not_one_that_cannot_reserve(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with open(tmp_path / "rows", "wb") as file, pytest.raises(OSError, match=os.strerror(code)):
        reserve(file, 0, 10)
    assert files(tmp_path) == {"rows": b""}


# ---- reasons


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("another program writes"), "another program writes"),
        (RuntimeError("unexpected pos 8 vs 6\nframe #0: c10::Error"), "unexpected pos 8 vs 6"),
        (caused(RuntimeError("long"), OSError(errno.EIO, "Input/output error")), "Input/output"),
        (caused(ValueError("run/last.pth: ..."), RuntimeError("no memory")), "no memory"),
        (ValueError("x" * 500), "x" * 200),
        (KeyError(), "KeyError"),
    ],
)
def test_a_reason_is_short(error, words):
    assert reason(error).startswith(words) and len(reason(error)) <= 200


# ---- only files


def test_a_regular_file_is_read_as_open_reads_it(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    with open_regular(tmp_path / "file") as file:
        assert file.read(5) == content[:5]
        assert file.read(1 << 62) == content[5:]  # memory for what there is
        assert file.read(1 << 62) == b""
        assert (file.seek(3), file.read()) == (3, content[3:])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_may_block_is_not_opened_even_if_it_comes_in_between(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="no file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    former = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda name: former)  # as it was a moment before
    with pytest.raises(OSError, match="no file"):
        open_regular(tmp_path / "pipe")
