"""Prepared pictures on disk: decoded and preprocessed once, and only copied from then on.

One memory-mapped file for each list of images: a line with its format, a stamp for each image, then
the pictures. The first reader of an image stores it there; workers, ranks and other runs share it.
"""

import errno
import hashlib
import json
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from datasets.benchmark import ImageList
from datasets.images import Preprocessing
from utils.distributed import wait_for_all
from utils.errors import InputError
from utils.files import open_regular, reason, reserve, written_whole
from utils.logs import log
from utils.world import is_main

FORMAT = 1  # raise it whenever datasets/images.py makes other levels of the same file
OF_LEVELS = ("size", "crop", "draft")
"""What of the preprocessing decides the levels of a picture; mean and std are applied later."""
PAGE = 4096  # bytes: the first line takes one, and the pictures start at one
STAMP = np.dtype([("bytes", "<i8"), ("mtime_ns", "<i8"), ("sum", "<u8")])
"""Of the image file that a picture was made from: size and time. sum: of these and the picture."""
ABSENT = -1  # the size of a file that is not there: never of one that was read
SECONDS_TO_WAIT = 60  # for another program that reserves the same file


def open_picture_cache(
    folder: Path, images: ImageList, preprocessing: Preprocessing
) -> "PictureCache":
    """The cache of a list, in every process of a run: the first one makes it where it is absent."""
    cache = PictureCache(folder, images, preprocessing) if is_main() else None
    wait_for_all()
    return cache or PictureCache(folder, images, preprocessing)


class PictureCache:
    """The prepared pictures of one list of images, `file` in a folder of such files.

    Disk space for all pictures is reserved at once. An image file of another size or time than the
    one a picture was made from, and a picture that a crash tore, are made again. Raises InputError
    where the folder refuses or has too little space.
    """

    def __init__(self, folder: Path, images: ImageList, preprocessing: Preprocessing):
        self.images = images
        self.preprocessing = preprocessing
        key = _key(images, preprocessing)
        self.file = folder / f"{key[:16]}.pictures"
        self.shape = (len(images), 3, preprocessing.size, preprocessing.size)
        about = {"format": FORMAT, "key": key, "shape": self.shape}
        self.first_line = (json.dumps(about).ljust(PAGE - 1) + "\n").encode()
        self.stamps = np.zeros(len(images), dtype=STAMP)  # of the files as they are now
        for number in range(len(images)):
            try:
                state = images.file(number).stat()
            except OSError:
                self.stamps[number] = (ABSENT, ABSENT, 0)
            else:
                self.stamps[number] = (state.st_size, state.st_mtime_ns, 0)
        self._make_where_absent()
        self._open()

    def read(self, index: int) -> Tensor:
        """Image number `index`, (3, S, S) uint8: what preprocessing.levels makes of it.

        Raises the InputError of ImageList.read for an unreadable file, which is not kept.
        """
        kept, file = self._kept[index], self.stamps[index]
        if kept["bytes"] == file["bytes"] and kept["mtime_ns"] == file["mtime_ns"]:
            levels = self._pictures[index].copy()  # first: others may be writing
            if kept["sum"] == _sum(levels, file):
                return torch.from_numpy(levels)
        made = self.images.read(index, self.preprocessing.levels).contiguous()
        if file["bytes"] != ABSENT:
            self._pictures[index] = made.numpy()
            self._kept[index] = (file["bytes"], file["mtime_ns"], _sum(made.numpy(), file))
        return made

    def __getstate__(self) -> dict:
        """For data workers that are started anew: they map the file themselves."""
        return {n: value for n, value in vars(self).items() if n not in ("_kept", "_pictures")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open()

    @property
    def _start(self) -> int:
        """Where the pictures begin, in bytes."""
        stamps = PAGE + len(self.images) * STAMP.itemsize
        return -(-stamps // PAGE) * PAGE

    @property
    def _size(self) -> int:
        return self._start + int(np.prod(self.shape, dtype=np.int64))

    def _open(self) -> None:
        """Map stamps and pictures."""
        try:
            mapped = np.memmap(self.file, dtype=np.uint8, mode="r+", shape=(self._size,))
        except (OSError, ValueError) as error:
            raise self._refused(error) from error
        plain = mapped.view(np.ndarray)  # rows of a memmap are slow to make
        self._kept = plain[PAGE:][: self.stamps.nbytes].view(STAMP)
        self._pictures = plain[self._start :].reshape(self.shape)

    def _make_where_absent(self) -> None:
        lock = FileLock(self.file.with_suffix(".lock"))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # The latter: file systems without locks. Two that make the file at once do no harm: the
            # later one stays.
            with suppress(Timeout, NotImplementedError):
                lock.acquire(timeout=SECONDS_TO_WAIT)
            if not self._is_whole():
                self._make()
        except FileExistsError as error:  # the folder is a file
            no_folder = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            raise self._refused(no_folder) from error
        except OSError as error:
            raise self._refused(error) from error
        finally:
            lock.release()

    def _is_whole(self) -> bool:
        """Whether the file is there and is ours; logs how much it holds, or that it is damaged."""
        if not os.path.exists(self.file):
            return False
        with open_regular(self.file) as file:
            first_line, kept = file.read(PAGE), file.read(self.stamps.nbytes)
        if first_line != self.first_line or self.file.stat().st_size != self._size:
            log.warning("%s: damaged; it is made anew.", self.file)
            return False
        same = np.ones(len(self.images), dtype=bool)
        for name in ("bytes", "mtime_ns"):
            same &= np.frombuffer(kept, STAMP)[name] == self.stamps[name]
        log.info("pictures: %d of %d are kept in %s", same.sum(), len(same), self.file)
        return True

    def _make(self) -> None:
        log.info(
            "keeps %d pictures, %s, in %s: each once it is first read",
            len(self.images),
            _gigabytes(self._size),
            self.file,
        )
        free = shutil.disk_usage(self.file.parent).free
        if self._size > free:  # else a full disk would end the first epoch with a bus error
            raise OSError(f"only {_gigabytes(free)} are free")
        with written_whole(self.file) as file:
            reserve(file, 0, self._size)
            file.write(self.first_line)

    def _refused(self, error: Exception) -> InputError:
        return InputError(
            f"{self.file}: {_gigabytes(self._size)} for {len(self.images)} pictures cannot be kept "
            f"there ({reason(error)}). Give --cache_images another folder, or leave it out."
        )


def _key(images: ImageList, preprocessing: Preprocessing) -> str:
    """64 hex digits that change with the names of the list's files and with what decides levels."""
    columns = [list(map(str, c)) for c in (images.path, images.location, images.modality)]
    how = {name: getattr(preprocessing, name) for name in OF_LEVELS}
    content = json.dumps([FORMAT, *columns, how])
    return hashlib.sha256(content.encode()).hexdigest()


def _sum(picture: np.ndarray, stamp: np.void) -> int:
    """A checksum of a picture and of its file's size and time: of what a crash may have torn."""
    return zlib.crc32(picture, zlib.crc32(stamp.tobytes()[:16]))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
