"""Images without labels: those of any folder, and open ones."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from datasets.benchmark import ImageList
from datasets.opening import ENDINGS, ImageSource, name_of
from utils.console import visible
from utils.errors import InputError
from utils.logs import log

SHOWN = 5  # endings of files that are left out


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

    def name(self, index: int) -> str:
        """What messages call image number `index`."""
        return name_of(self.sources[index])


class UnlabelledList(ImageList):
    """Images that no list names: messages about one have its path alone."""

    def read(self, index: int, preprocessing: Callable[[Path, str], Tensor]) -> Tensor:
        """Image number `index`, prepared."""
        return preprocessing(self.file(index), self.modality[index])

    def name(self, index: int) -> str:
        """What messages call image number `index`."""
        return str(self.file(index))


def folder_images(root: str | Path, modality: str, leave_out: Path | None = None) -> UnlabelledList:
    """Every image below a folder, by path; hidden files and folders are passed over.

    Links are followed, each folder once. Files without the ending of an image are counted in a
    warning. leave_out: a folder to pass over. Raises InputError where `root` is no folder, is the
    one to pass over, cannot be read, or holds no image.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise InputError(f"{root}: there is no such folder.")
    if leave_out and os.path.realpath(leave_out) == os.path.realpath(root):
        raise InputError(
            f"{root}: holds the photos, and cannot be the gallery too. Choose another folder for "
            "the gallery (--out)."
        )
    return image_list(root, _images_below(root, ENDINGS, leave_out), modality)


def named_images(names: Iterable[str], endings: Collection[str]) -> list[Path]:
    """The files that are named, and the images of the folders that are named, in that order.

    endings: further ones that count in folders. Raises InputError for a name that does not exist,
    and for a folder without an image.
    """
    found = []
    for name in names:
        path = Path(name)
        if os.path.isdir(path):
            found += [path / inner for inner in _images_below(path, ENDINGS | set(endings))]
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise InputError(f"{path}: there is no such file or folder.")
    return list(dict.fromkeys(found))


def image_list(root: Path, paths: list[str], modality: str) -> UnlabelledList:
    """A list of images of one modality by their paths below `root`, all of no class."""
    return UnlabelledList.of_columns(root, paths, modality)


def _images_below(root: Path, endings: Collection[str], leave_out: Path | None = None) -> list[str]:
    """Paths of the images below a folder, sorted; what else lies there is counted in a warning.

    Raises InputError where there is none.
    """
    images, others = [], Counter()
    for path in _walk(root, leave_out):
        ending = os.path.splitext(path)[1].lower()
        if ending in endings:
            images.append(path)
        else:
            others[ending or "without an ending"] += 1
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    left_out = ", ".join(f"{count} {visible(ending)}" for ending, count in most[:SHOWN])
    left_out += f", {len(most) - SHOWN} other endings" if len(most) > SHOWN else ""
    if not images:
        there = f"; there are files of other kinds: {left_out}" if others else ""
        raise InputError(
            f"{root}: holds no image, nor do its folders{there}. Images end in "
            f"{' '.join(sorted(endings))}."
        )
    if others:
        log.warning(
            "%s: %d files without the ending of an image are left out (%s).",
            visible(str(root)),
            others.total(),
            left_out,
        )
    return sorted(images)


def _walk(root: Path, leave_out: Path | None) -> Iterator[str]:
    """Paths of the files below a folder, relative to it, with / on every system."""

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
            if not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(folder, name), root)).as_posix()
