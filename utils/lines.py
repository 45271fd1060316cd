"""A file of JSON lines, each after its checksum: a torn or changed line is noticed."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.files import written_whole


def read_lines(file: Path) -> list[dict | None]:
    """The lines in order, None in place of a damaged one; no lines where there is no file."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return []
    return [_checked(line) for line in lines if line]


def append_line(file: Path, content: Mapping) -> None:
    """Add a line at the end; one that a crash tore before stays a line of its own."""
    torn = file.exists() and not _ends_in_newline(file)
    with open(file, "ab") as stream:
        stream.write(b"\n" * torn + _line(content))


def write_lines(file: Path, lines: Iterable[Mapping]) -> None:
    """Write a file of these lines, whole or not at all."""
    with written_whole(file) as stream:
        stream.writelines(map(_line, lines))


def _line(content: Mapping) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> dict | None:
    checksum, _, text = line.partition(b" ")
    try:
        return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None
    except ValueError:
        return None


def _ends_in_newline(file: Path) -> bool:
    with open(file, "rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"
