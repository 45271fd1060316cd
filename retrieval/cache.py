"""Features on disk: what was encoded once is not encoded again, nor lost when the program stops.

A folder a list of images. In it index.json (how far encoding has come, which files were read and
which could not be) and, for each feature, the rows of the readable images in list order.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from utils.logs import log, write_json

FORMAT = 1
INDEX = "index.json"
NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}(\.scores)?")  # folders: weights, list
PRECISIONS = {"fp16": np.float16, "fp32": np.float32}
SECONDS_BETWEEN_INDEXES = 10
SECONDS_TO_WAIT = 5  # for others that look what is there; who writes takes longer

Features = dict[str, Tensor]


def open_cache(
    folder: Path, weights: str, images, settings: list, precision: str
) -> "FeatureCache | None":
    """The cache of a list in a folder of caches, and what else lies there of other weights dropped.

    weights: fingerprint of the method. settings: what else the features depend on, plain values.
    None, with a warning, where the disk refuses or another program writes.
    """
    lists = [[str(path) for path in images.path], [str(name) for name in images.modality]]
    content = json.dumps([*lists, settings, precision])  # escapes what is no text
    of_list = hashlib.sha256(content.encode()).hexdigest()[:16]
    try:
        for other in folder.glob("*-*"):
            if NAME.fullmatch(other.name) and not other.name.startswith(weights):
                log.info("%s is of other weights: removed.", other)
                shutil.rmtree(other)
        return FeatureCache(folder / f"{weights}-{of_list}", images, precision)
    except (OSError, NotImplementedError) as error:  # the latter: file systems without locks
        log.warning("features are not kept in %s: %s.", folder, error)
        return None


class FeatureCache:
    """The features of one list of images on disk.

    folder: for this list, its weights and settings alone. images: the list. precision: a key of
    PRECISIONS; retrieval vectors are small and stay in fp32. Takes up what an interrupted program
    left there. What is damaged, of another format or made from files that have changed since is
    encoded again, with a word. Only one process at a time may write: another raises OSError.
    """

    def __init__(self, folder: Path, images, precision: str):
        self.folder = folder
        self.precision = precision
        self.files = [state_of(images.file(number)) for number in range(len(images))]
        self.done = 0  # images of the list that were looked at
        self.faults: dict[int, str] = {}  # of those, what was wrong with the unreadable ones
        self.arrays: dict[str, np.memmap] = {}  # (images, ...)
        self.written = 0.0  # when the index was
        self.refused = False  # by the disk
        self.lock = FileLock(folder.with_suffix(".lock"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=SECONDS_TO_WAIT)
        except Timeout as error:
            raise OSError("another program is writing there") from error
        self._take_up()
        if self.done == len(self.files):
            self.lock.release()  # there is nothing to write any more

    def close(self) -> None:
        """Write what is not on disk yet, and let others write."""
        if self.lock.is_locked:
            if self.arrays:
                self._write_index()
            self.lock.release()

    def seen(self, first: int, last: int) -> tuple[list[int], list[str]]:
        """Of the images first to last - 1, all done: the readable ones, what others suffer from."""
        numbers = [number for number in range(first, last) if number not in self.faults]
        return numbers, [self.faults[n] for n in range(first, last) if n in self.faults]

    def read(self, first: int, last: int) -> Features:
        """Features of the readable ones of the images first to last - 1, all done."""
        row = first - sum(number < first for number in self.faults)
        numbers, _ = self.seen(first, last)
        return self._rows(row, row + len(numbers)) if numbers else {}

    def add(self, features: Features, faults: dict[int, str], count: int) -> Features:
        """Keep the next `count` images: features of the readable ones, faults of the others.

        Returns the features as read() will. Without room on the disk for all images nothing is
        kept, with a warning, and they come back as they are.
        """
        if features and not self.arrays and not self.refused:
            self._make_room(features)
        if self.refused:
            return features
        row = self._readable()
        for name, tensor in features.items():
            rows = tensor.cpu().float().numpy()  # which knows no bfloat16
            self.arrays[name][row : row + len(tensor)] = rows
        self.faults |= faults
        self.done += count
        if self.arrays and time.monotonic() - self.written > SECONDS_BETWEEN_INDEXES:
            self._write_index()
        kept = self._rows(row, self._readable()) if features else {}
        return {name: tensor.to(features[name].device) for name, tensor in kept.items()}

    def features(self) -> Features:
        """Of all readable images: (G, ...), as they lie on disk."""
        count = self._readable()
        return {name: torch.from_numpy(array[:count]) for name, array in self.arrays.items()}

    def _readable(self) -> int:
        return self.done - len(self.faults)

    def _rows(self, first: int, last: int) -> Features:
        """In fp32, whatever they are kept in."""
        rows = {name: torch.from_numpy(array[first:last]) for name, array in self.arrays.items()}
        return {name: tensor.float() for name, tensor in rows.items()}

    def _make_room(self, features: Features) -> None:
        """Reserve the space for all images now: a full disk is noticed before the work is done."""
        shapes = {name: (len(self.files), *tensor.shape[1:]) for name, tensor in features.items()}
        size = sum(math.prod(shape) * self._type(name).itemsize for name, shape in shapes.items())
        try:
            self.folder.mkdir(exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if size > free:
                raise OSError(f"{_megabytes(size)} needed, {_megabytes(free)} free")
            log.info("features go to %s: %s (--no_cache: none)", self.folder, _megabytes(size))
            for name, shape in shapes.items():
                with open(self._file(name), "wb") as file:
                    _reserve(file, math.prod(shape) * self._type(name).itemsize)
            self.arrays = {name: self._open(name, shape) for name, shape in shapes.items()}
        except OSError as error:
            log.warning("features are not kept in %s: %s.", self.folder, error)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.refused = True

    def _take_up(self) -> None:
        """Go on from what lies in the folder."""
        if not self.folder.exists():
            return
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            if index["format"] != FORMAT or len(index["files"]) != len(self.files):
                raise ValueError("it was written by another version")
            self.arrays = {
                name: self._open(name, tuple(shape)) for name, shape in index["shapes"].items()
            }
            same = [old == new for old, new in zip(index["files"], self.files, strict=True)]
            self.done = min(index["done"], [*same, False].index(False))
            faults = {int(number): fault for number, fault in index["faults"].items()}
            self.faults = {number: fault for number, fault in faults.items() if number < self.done}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used (%s): encoding again.", self.folder, error)
            shutil.rmtree(self.folder)
            self.done, self.faults, self.arrays = 0, {}, {}
            return
        if self.done < index["done"]:
            log.warning("images have changed since %s was written: encoding again.", self.folder)
        log.info("features of %d of %d images: from %s", self.done, len(self.files), self.folder)

    def _write_index(self) -> None:
        """Say what is there. Where that fails the arrays still serve this run, not the next."""
        for array in self.arrays.values():
            array.flush()
        content = {
            "format": FORMAT,
            "done": self.done,
            "shapes": {name: array.shape for name, array in self.arrays.items()},
            "faults": self.faults,
            "files": self.files,
        }
        try:
            write_json(self.folder / INDEX, content)
            self.written = time.monotonic()
        except OSError as error:
            log.warning("%s: the next run will encode again (%s).", self.folder / INDEX, error)
            self.written = math.inf  # do not try at every block

    def _open(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        size = math.prod(shape) * self._type(name).itemsize
        if self._file(name).stat().st_size != size:
            raise ValueError(f"{self._file(name).name} is not of {size} bytes")
        return np.memmap(self._file(name), dtype=self._type(name), mode="r+", shape=shape)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.{self._type(name).name}"

    def _type(self, name: str) -> np.dtype:
        return np.dtype(np.float32 if name == "retrieval" else PRECISIONS[self.precision])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _reserve(file, size: int) -> None:
    """Make a new file of so many bytes, which the disk has set aside where the system can."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def state_of(file: Path) -> list[int]:
    """What tells whether a file has changed: its size and time; empty where there is none."""
    try:
        state = file.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]
