"""What a gallery keeps on disk: a row of features a photo, appended, and whose rows they are.

A folder with gallery.json (which photos, in which rows, made by what), a file of rows a feature,
and, while a build runs, a journal of what was encoded since: a killed build goes on from there.
Rows that gallery.json names are never written again, so that searches may read while a build runs.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from utils.errors import InputError
from utils.files import written_whole
from utils.logs import log

FORMAT = 1
GALLERY, JOURNAL, LOCK = "gallery.json", "encoded.jsonl", "writer.lock"
TYPES = {"retrieval": np.dtype(np.float32), "tokens": np.dtype(np.float16)}
MOST_DEAD = 0.25  # share of rows that belong to no photo any more, before they are cleared away
COPIED = 1024  # rows at a time


@dataclass(frozen=True)
class Entry:
    """What is known of a photo: the state of its file when it was read; its row, or its fault."""

    state: list[int]
    row: int | None
    fault: str = ""


def read_gallery(folder: Path) -> dict:
    """What gallery.json says. Raises InputError where there is none that can be used."""
    if not (folder / GALLERY).is_file():
        if (folder / JOURNAL).is_file():
            raise InputError(f"{folder}: is not finished. Run retrieve.py index again to go on.")
        raise InputError(f"{folder}: is no gallery. Make one with retrieve.py index.")
    try:
        content = json.loads((folder / GALLERY).read_text(encoding="utf-8"))
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / GALLERY}: cannot be used ({type(error).__name__}: {error}). Remove the "
            "folder and run retrieve.py index again."
        ) from error
    if version != FORMAT:
        raise InputError(
            f"{folder / GALLERY}: has format {version}, and this version reads format {FORMAT}. "
            "Build the gallery again in another folder."
        )
    return content


def open_rows(folder: Path, content: Mapping, name: str) -> np.ndarray:
    """All rows of a feature, as they lie on disk: (rows, ...), not to be written.

    content: what gallery.json says. Raises InputError where the file is absent or too short.
    """
    file = folder / _file_name(name, content["generation"])
    shape = (content["rows"], *content["shapes"][name])
    size = math.prod(shape) * TYPES[name].itemsize
    if not file.is_file() or file.stat().st_size < size:
        raise InputError(
            f"{file}: is absent or incomplete. Remove {folder} and run retrieve.py index again."
        )
    return np.memmap(file, dtype=TYPES[name], mode="r", shape=shape)


def read_vectors(folder: Path, content: dict) -> Tensor:
    """The retrieval vectors of a gallery's photos, in order: (G, D)."""
    rows = np.array(content["photos"]["row"], dtype=np.int64)
    return torch.from_numpy(np.array(open_rows(folder, content, "retrieval")[rows]))


def check_weights(folder: Path, content: Mapping, weights: str) -> None:
    """InputError where a gallery was made with other weights. content: what gallery.json says."""
    if content["weights"] != weights:
        raise InputError(
            f"{folder}: was built with another checkpoint ({content['checkpoint']}), whose vectors "
            "do not compare with those of this one. Use that checkpoint, or build a gallery with "
            "this one elsewhere."
        )


class RowWriter:
    """Adds rows to a gallery's folder; one program at a time may.

    folder: made where it does not exist. header: what rows depend on, plain values; with another
    header a journal is of no use. Raises InputError where another program writes, or the disk
    refuses. `entries` is what is known of photos by path.
    """

    def __init__(self, folder: Path, header: dict):
        self.folder = folder
        self.header = header
        self.shapes: dict[str, list[int]] = {}
        self.entries: dict[str, Entry] = {}
        self.rows, self.generation = 0, 0
        self.lock = FileLock(folder / LOCK)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder}: another program is building this gallery. Wait until it is done, or "
                "choose another folder."
            ) from error
        except (OSError, NotImplementedError) as error:
            raise InputError(f"{folder}: cannot be written ({error}).") from error

    def take_up(self, content: dict | None) -> None:
        """Know what gallery.json says, and go on from a journal where there is one."""
        if content:
            self.shapes, self.rows = dict(content["shapes"]), content["rows"]
            self.generation, self.entries = content["generation"], entries_of(content)
        found = self._read_journal()
        if found:
            log.info("going on: %d photos were encoded before the stop.", found)
        else:
            (self.folder / JOURNAL).unlink(missing_ok=True)
        self._remove_strangers()
        for name in self.shapes:
            with open(self._file(name), "r+b") as file:  # a block without a word of whose it is
                file.truncate(self.rows * self.bytes_of_row(name))

    def add(self, features: Mapping[str, np.ndarray], entries: Mapping[str, Entry]) -> None:
        """Append rows, and then the word of whose they are.

        features: (n, ...) each; entries: by path, whose rows are counted from 0 in `features`.
        """
        try:
            if features and not self.shapes:
                self.shapes = {name: list(rows.shape[1:]) for name, rows in features.items()}
            for name, rows in features.items():
                with open(self._file(name), "r+b" if self._file(name).exists() else "wb") as file:
                    file.seek(self.rows * self.bytes_of_row(name))
                    file.write(np.ascontiguousarray(rows, dtype=TYPES[name]).tobytes())
            self._append_to_journal(entries)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror or error}). What was encoded "
                "is kept; make room and run the same command to go on."
            ) from error
        for path, entry in entries.items():
            row = None if entry.row is None else self.rows + entry.row
            self.entries[path] = Entry(entry.state, row, entry.fault)
        self.rows += len(next(iter(features.values()), ()))

    def bytes_of_row(self, name: str) -> int:
        """What a photo's row takes in the file of a feature."""
        return math.prod(self.shapes[name]) * TYPES[name].itemsize

    def content(self, paths: Iterable[str]) -> dict:
        """What gallery.json is to say with these photos only, without rows of others if many."""
        known = {path: self.entries[path] for path in paths}
        if self.rows - sum(entry.row is not None for entry in known.values()) > (
            MOST_DEAD * self.rows
        ):
            known = self._cleared(known)
        self.entries = known
        good = {path: entry for path, entry in known.items() if entry.row is not None}
        bad = {path: entry for path, entry in known.items() if entry.row is None}
        return {
            "format": FORMAT,
            **self.header,
            "generation": self.generation,
            "shapes": self.shapes,
            "rows": self.rows,
            "photos": {
                "path": list(good),
                "state": [entry.state for entry in good.values()],
                "row": [entry.row for entry in good.values()],
            },
            "broken": {path: [entry.state, entry.fault] for path, entry in bad.items()},
        }

    def finish(self, content: dict) -> None:
        """Put the new state in the place of the old one, and remove what it does not need."""
        try:
            for name in self.shapes:
                with open(self._file(name), "r+b") as file:
                    os.fsync(file.fileno())
            with written_whole(self.folder / GALLERY) as file:
                file.write((json.dumps(content) + "\n").encode())
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error}).") from error
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self._remove_strangers()

    def close(self) -> None:
        """Let others write."""
        self.lock.release()

    def free_bytes(self) -> int:
        """Room left on the disk."""
        return shutil.disk_usage(self.folder).free

    def _file(self, name: str) -> Path:
        return self.folder / _file_name(name, self.generation)

    def _append_to_journal(self, entries: Mapping[str, Entry]) -> None:
        """A line a block; the first one tells what the rest belongs to."""
        told = {path: [e.state, e.row, e.fault] for path, e in entries.items()}
        lines = [{"shapes": self.shapes, "photos": told}]
        if not (self.folder / JOURNAL).exists():
            lines.insert(0, self._belongs_to())
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def _belongs_to(self) -> dict:
        """What a journal that begins now belongs to."""
        return {"header": self.header, "generation": self.generation, "rows": self.rows}

    def _read_journal(self) -> int:
        """Take over what a stopped build has encoded; how many photos, readable or not."""
        try:
            lines = (self.folder / JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]
            first, *blocks = map(json.loads, lines)
        except (OSError, ValueError):
            return 0
        if first != self._belongs_to():
            log.info("what a stopped build of other settings has left is not taken up.")
            return 0
        taken, read = 0, 1
        for block in blocks:
            self.shapes = self.shapes or block["shapes"]
            added = sum(row is not None for _, row, _ in block["photos"].values())
            if any(self.rows + added > self._rows_in(name) for name in self.shapes):
                break
            for path, (state, row, fault) in block["photos"].items():
                row = None if row is None else self.rows + row
                self.entries[path] = Entry(state, row, fault)
            self.rows += added
            taken += len(block["photos"])
            read += 1
        whole = "".join(line + "\n" for line in lines[:read])
        (self.folder / JOURNAL).write_text(whole, encoding="utf-8")  # without a line cut short
        return taken

    def _rows_in(self, name: str) -> int:
        if not self._file(name).exists():
            return 0
        return self._file(name).stat().st_size // self.bytes_of_row(name)

    def _cleared(self, known: dict[str, Entry]) -> dict[str, Entry]:
        """Copy the rows of these photos into new files, in this order; the entries with new rows.

        The old files stay until gallery.json names the new ones.
        """
        numbers = np.array([e.row for e in known.values() if e.row is not None], dtype=np.int64)
        old = {"generation": self.generation, "rows": self.rows, "shapes": self.shapes}
        log.info("clearing away the rows of %d former photos.", self.rows - len(numbers))
        for name in self.shapes:
            rows = open_rows(self.folder, old, name)
            try:
                with open(self.folder / _file_name(name, self.generation + 1), "wb") as file:
                    for first in range(0, len(numbers), COPIED):
                        file.write(rows[numbers[first : first + COPIED]].tobytes())
            except OSError as error:
                raise InputError(f"{self.folder}: cannot be written ({error}).") from error
        self.generation, self.rows = self.generation + 1, len(numbers)
        places = iter(range(len(numbers)))
        return {
            path: Entry(e.state, None if e.row is None else next(places), e.fault)
            for path, e in known.items()
        }

    def _remove_strangers(self) -> None:
        """Files that a stopped build or a former state left."""
        for file in self.folder.glob(f"{GALLERY}.*.tmp"):
            file.unlink(missing_ok=True)
        kept = {self._file(name) for name in self.shapes}
        for name, type_ in TYPES.items():
            for file in set(self.folder.glob(f"{name}.*.{type_.name}")) - kept:
                with suppress(OSError):  # Windows, where a search reads there
                    file.unlink()


def entries_of(content: Mapping) -> dict[str, Entry]:
    """What gallery.json knows of photos, by path."""
    columns = content["photos"]
    rows = zip(columns["path"], columns["state"], columns["row"], strict=True)
    entries = {path: Entry(state, row) for path, state, row in rows}
    broken = content["broken"].items()
    return entries | {path: Entry(state, None, fault) for path, (state, fault) in broken}


def _file_name(name: str, generation: int) -> str:
    return f"{name}.{generation}.{TYPES[name].name}"
