"""A file of JSON lines, each after its checksum: a torn or changed line is noticed."""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.files import append_lines, open_regular, written_whole


def read_lines(file: Path) -> list[dict | None]:
    """The lines in order, None in place of a damaged one; no lines where there is no file."""
    try:
        with open_regular(file) as stream:
            lines = stream.read().split(b"\n")
    except OSError:
        return []
    return [_checked(line) for line in lines if line]


def append_line(file: Path, content: Mapping) -> None:
    """Add a line at the end, all or nothing; one that a crash tore before stays a line of its own.

    Raises OSError.
    """
    append_lines(file, [_line(content)])


def write_lines(file: Path, lines: Iterable[Mapping]) -> None:
    """Write a file of these lines, whole or not at all."""
    with written_whole(file) as stream:
        stream.writelines(f"{_line(content)}\n".encode() for content in lines)


def _line(content: Mapping) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _checked(line: bytes) -> dict | None:
    checksum, _, text = line.partition(b" ")
    try:
        return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None
    except ValueError:
        return None
