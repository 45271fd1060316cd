"""FeatureStore: rows of features on disk, by the files that they were made from.

Encoded once, an image is not encoded again while its file stays as it is: neither by the next test
nor after a stop nor for a gallery. A folder holds a file of rows for each feature, and
entries.N.jsonl: a header, then a line a block of images with their names, states of files, places
and checksums of rows. Rows and lines are only appended, lines after their rows; N counts rewritings
of all.
"""

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from retrieval.entries import Entries, State
from utils.checksums import row_sums
from utils.errors import InputError
from utils.files import reason, reserve
from utils.lines import append_line, read_lines, write_lines
from utils.logs import log

FORMAT = 3
ENTRIES = re.compile(r"entries\.(\d+)\.jsonl")
MOST_DEAD = 0.25  # share of rows without an image, before all rows are written anew
COPIED = 1024  # rows at a time
CHECKED = 2**26  # bytes at a time


class DamagedError(InputError):
    """A file of a store is not as it was written."""


class FeatureStore(Entries):
    """Features of images in a folder, which other programs may read while one writes.

    key: all that rows depend on besides the image, as plain values. types: numpy's name of the type
    of each feature's rows. snapshot: generation and number of lines to read; None: all of the
    newest. advice: a sentence for messages about damage. Opening writes nothing; what has another
    key, or is damaged, counts as absent. What was there then can be read on, even where another
    program writes all rows anew.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping,
        types: Mapping[str, str],
        snapshot: tuple[int, int] | None = None,
        advice: str = "",
    ):
        self.folder, self.key, self.types = folder, dict(key), dict(types)
        self.advice = advice or f"Remove {folder} and run the same command again."
        self._lock = FileLock(folder / "writer.lock")
        self._read(*(snapshot or (None, None)))

    @property
    def snapshot(self) -> tuple[int, int]:
        """What is there now: see the constructor."""
        return self.generation, self.lines

    # ---- reading

    def read(self, feature: str, names: Sequence[str]) -> np.ndarray:
        """The rows of known images: (len(names), ...). Raises DamagedError."""
        content = self._content(feature, names)
        damaged = np.flatnonzero(row_sums(content) != self.sums(feature, names))
        if len(damaged):
            raise DamagedError(
                f"{self._file(feature)}: the row of {names[damaged[0]]} is damaged, and "
                f"{len(damaged) - 1} more. {self.advice}"
            )
        return content

    def sound(self, names: Sequence[str], features: Sequence[str]) -> np.ndarray:
        """Whether the rows of known images are as they were written: booleans (len(names),).

        Reads all of them.
        """
        found = np.ones(len(names), dtype=bool)
        for feature in features if len(names) else ():
            step = max(1, CHECKED // self.bytes_of_row(feature))
            for first in range(0, len(names), step):
                some = names[first : first + step]
                try:
                    sums = row_sums(self._content(feature, some))
                except DamagedError:
                    sums = ~self.sums(feature, some)
                found[first : first + step] &= sums == self.sums(feature, some)
        return found

    def bytes_of_row(self, feature: str) -> int:
        """The size of a row on disk."""
        return math.prod(self.shapes[feature]) * np.dtype(self.types[feature]).itemsize

    # ---- writing

    def start_writing(self, timeout: float = 0.0) -> None:
        """Keep other writers out, and go on from what is there.

        timeout: seconds to wait for another writer. Raises OSError where there is one, and where
        the disk refuses.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            raise OSError("another program is writing there") from None
        except NotImplementedError:
            raise OSError("the file system has no locks") from None
        self._read()

    def reserve(self, shapes: Mapping[str, tuple], count: int) -> int:
        """Have the disk set space aside for `count` more rows of each feature: bytes, in all.

        shapes: of a row. Raises OSError where there is too little: before the work is done.
        """
        self.shapes |= {name: tuple(shape) for name, shape in shapes.items()}
        needed = sum(count * self.bytes_of_row(name) for name in shapes)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"{needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free")
        for name in shapes:
            with self._to_write(name) as file:
                size = self.bytes_of_row(name)
                reserve(file, self.used[name] * size, count * size)
        return needed

    def add(
        self, names: Sequence[str], states: Sequence[State], features: Mapping[str, np.ndarray]
    ) -> None:
        """Append a block of images: names, states of files, rows of each feature, in one order.

        Of a name that comes twice the last row counts. Raises OSError, and InputError where a type
        is too narrow for the rows; what was added before stays.
        """
        line = {"names": list(names), "states": list(states), "features": {}}
        for name, rows in features.items():
            rows = np.ascontiguousarray(rows, dtype=self.types[name])
            if len(rows) != len(names):
                raise ValueError(f"{len(rows)} rows of {name} for {len(names)} images")
            if rows.dtype == np.float16 and np.isinf(rows).any():
                raise InputError(
                    f"{self._file(name)}: some features are too large for fp16. Take "
                    "--cache_precision fp32, or --no_cache."
                )
            self.shapes.setdefault(name, rows.shape[1:])
            first = self.used[name]
            with self._to_write(name) as file:
                file.seek(first * self.bytes_of_row(name))
                file.write(rows.tobytes())
            about = {"first": first, "shape": list(rows.shape[1:]), "sums": row_sums(rows).tolist()}
            line["features"][name] = about
        if not self._entries_file().exists():
            append_line(self._entries_file(), {"format": FORMAT, "key": self.key})
        append_line(self._entries_file(), line)
        self.note(line)
        self.lines += 1

    def sync(self) -> None:
        """Give unused space back, and see that all rows are on the disk. Raises OSError."""
        for name in self.shapes:
            if self._file(name).exists():
                with open(self._file(name), "r+b") as file:
                    file.truncate(self.used[name] * self.bytes_of_row(name))
                    os.fsync(file.fileno())

    def close(self) -> None:
        """Let other programs write."""
        if self._lock.is_locked:
            with suppress(OSError):
                self.sync()
            self._lock.release()

    def keep_only(self, names: Sequence[str]) -> None:
        """Forget all other images; write all rows anew where many are of no image any more.

        The former files stay until remove_former() is called. Raises OSError, DamagedError.
        """
        self.forget_others(names)
        used = max(self.used.values(), default=0)
        if used - len(set(names)) > MOST_DEAD * used:
            self._rewrite()

    def remove_former(self) -> None:
        """Remove the files of other generations, and those that a stopped writer left."""
        kept = {self._entries_file(), *(self._file(name) for name in self.shapes)}
        patterns = ("entries.*.jsonl", *(f"{name}.*.rows" for name in self.types))
        for file in (file for pattern in patterns for file in self.folder.glob(pattern)):
            if file not in kept:
                with suppress(OSError):  # Windows, where another program reads there
                    file.unlink()

    # ---- files

    def _read(self, generation: int | None = None, lines: int | None = None) -> None:
        """Read the entries."""
        if generation is None:
            generation = max(_generations(self.folder), default=0)
        super().__init__(tuple(self.types))
        self.generation, self.lines = generation, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, BinaryIO] = {}
        header, *blocks = read_lines(self._entries_file()) or [None]
        damaged = 0
        if header != {"format": FORMAT, "key": self.key}:
            damaged, blocks = int(self._entries_file().exists()), []
            self.generation += damaged  # writing begins anew
        for line in blocks[:lines]:
            self.lines += 1
            if self.is_entry(line) and self._is_whole(line):
                self.note(line)
            else:
                damaged += 1
        for feature in self.shapes:
            with suppress(OSError):
                self._opened(feature)
        if damaged:
            log.warning("%s: parts are damaged or incomplete, and count as absent.", self.folder)

    def _is_whole(self, line: dict) -> bool:
        """Whether the rows of an entry are there."""
        for name, about in line["features"].items():
            shape = tuple(about["shape"])
            if name not in self.types or self.shapes.get(name, shape) != shape:
                return False
            last = about["first"] + len(about["sums"])
            file, size = self._file(name), math.prod(shape) * np.dtype(self.types[name]).itemsize
            if not file.exists() or file.stat().st_size < last * size:
                return False
        self.shapes |= {name: tuple(about["shape"]) for name, about in line["features"].items()}
        return True

    def _content(self, feature: str, names: Sequence[str]) -> np.ndarray:
        """Rows as they lie on disk, read in runs of consecutive ones. Raises DamagedError."""
        rows = self.rows(feature, names)
        shape, type_ = self.shapes[feature], np.dtype(self.types[feature])
        content = np.empty((len(rows), *shape), dtype=type_)
        size = self.bytes_of_row(feature)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        try:
            file = self._opened(feature)
            for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
                file.seek(int(rows[first]) * size)
                rest = memoryview(content[first:last].view(np.uint8).reshape(-1))
                while rest:
                    read = file.readinto(rest)
                    if not read:
                        raise OSError("it is too short")
                    rest = rest[read:]
        except OSError as error:
            raise DamagedError(
                f"{self._file(feature)}: cannot be read ({reason(error)}). {self.advice}"
            ) from error
        return content

    def _to_write(self, feature: str) -> BinaryIO:
        file = self._file(feature)
        return open(file, "r+b" if file.exists() else "w+b")

    def _opened(self, feature: str) -> BinaryIO:
        """The file of rows, without a buffer: the writer may be adding to it."""
        if feature not in self._files:
            self._files[feature] = open(self._file(feature), "rb", buffering=0)  # noqa: SIM115
        return self._files[feature]

    def _rewrite(self) -> None:
        """Write the rows of all images into files of the next generation."""
        lines, first = [{"format": FORMAT, "key": self.key}], dict.fromkeys(self.types, 0)
        files = {name: self._file(name, self.generation + 1).open("wb") for name in self.shapes}
        states = self.states()
        for features, names in self.groups().items():
            line = {"names": names, "states": [states[name] for name in names], "features": {}}
            lines.append(line)
            for feature in features:
                for place in range(0, len(names), COPIED):
                    rows = self.read(feature, names[place : place + COPIED])
                    files[feature].write(rows.tobytes())
                about = {"first": first[feature], "shape": list(self.shapes[feature])}
                about["sums"] = self.sums(feature, names).tolist()
                line["features"][feature] = about
                first[feature] += len(names)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        write_lines(self._entries_file(self.generation + 1), lines)
        self._read()

    def _entries_file(self, generation: int | None = None) -> Path:
        return (
            self.folder / f"entries.{self.generation if generation is None else generation}.jsonl"
        )

    def _file(self, feature: str, generation: int | None = None) -> Path:
        number = self.generation if generation is None else generation
        return self.folder / f"{feature}.{number}.rows"


def state_of(file: Path) -> State:
    """The state of a file, which changes with its content."""
    try:
        state = file.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _generations(folder: Path) -> list[int]:
    names = map(ENTRIES.fullmatch, os.listdir(folder) if folder.is_dir() else ())
    return [int(name.group(1)) for name in names if name]
