"""Images without labels: those of any folder, and open ones."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from datasets.benchmark import ImageList
from datasets.images import ImageSource
from utils.errors import InputError

ENDINGS = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"}
ENDINGS |= {".ppm", ".tga", ".tif", ".tiff", ".webp"}
"""Endings of image files, in lower case."""


class LooseImages:
    """Images of one modality, in the place of an ImageList: names of files, or open images."""

    def __init__(self, sources: Sequence[ImageSource], modality: str):
        self.sources = list(sources)
        self.modality = [modality] * len(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def read(self, index: int, preprocessing: Callable[[ImageSource, str], Tensor]) -> Tensor:
        """Image number `index`, prepared."""
        return preprocessing(self.sources[index], self.modality[index])


class UnlabelledList(ImageList):
    """Images that no list names: messages about one have its path alone."""

    def read(self, index: int, preprocessing: Callable[[Path, str], Tensor]) -> Tensor:
        """Image number `index`, prepared."""
        return preprocessing(self.file(index), self.modality[index])


def folder_images(root: str | Path, modality: str, leave_out: Path | None = None) -> UnlabelledList:
    """Every image below a folder, by path; hidden files and folders are passed over.

    Links are followed, each folder once. leave_out: a folder to pass over. Raises
    InputError where `root` is no folder, cannot be read, or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder.")
    paths = sorted(_walk(root, ENDINGS, leave_out))
    if not paths:
        raise InputError(f"{root}: holds no image, nor do its folders ({_some(ENDINGS)}).")
    return image_list(root, paths, modality)


def named_images(names: Iterable[str], endings: Iterable[str] = ()) -> list[Path]:
    """The files that are named, and the images of the folders that are named, in that order.

    endings: further ones that count in folders. Raises InputError for a name that does not exist,
    and for a folder without an image.
    """
    wanted, found = ENDINGS | set(endings), []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [path / inner for inner in sorted(_walk(path, wanted, None))]
            if not inside:
                raise InputError(f"{path}: holds no image, nor do its folders ({_some(wanted)}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: there is no such file or folder.")
    return list(dict.fromkeys(found))


def image_list(root: Path, paths: list[str], modality: str) -> UnlabelledList:
    """A list of images of one modality by their paths below `root`, all of no class."""
    columns = {
        "path": paths,
        "class_name": [""] * len(paths),
        "modality": [modality] * len(paths),
        "origin": [""] * len(paths),
        "location": [""] * len(paths),
    }
    plain = {name: np.array(column, dtype=object) for name, column in columns.items()}
    return UnlabelledList(root=root, target=np.full(len(paths), -1), **plain)


def _walk(root: Path, endings: Iterable[str], leave_out: Path | None) -> Iterator[str]:
    """Paths of the images below a folder, relative to it, with / on every system."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error

    seen = {os.path.realpath(leave_out)} if leave_out else set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in files:
            if os.path.splitext(name)[1].lower() in endings and not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(folder, name), root)).as_posix()


def _some(endings: Iterable[str]) -> str:
    return " ".join(sorted(endings))
