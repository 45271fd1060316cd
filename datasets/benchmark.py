"""Benchmark and ImageList: which images there are, as plain columns."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from utils.errors import InputError

SKETCH, PHOTO = "sketch", "photo"
SKETCH_NUMBER = re.compile(r"-\d+$")  # which of several sketches of one photo


@dataclass(frozen=True)
class ImageList:
    """Columns of equal length, one entry an image.

    path: as the list spells it, relative to `root`; it names the image in results and breaks ties.
    class_name: of the class. target: integer; a photo is relevant to a sketch with the same target.
    modality: "sketch" or "photo". origin: where the image is named ("list.txt, line 7"), for
    messages. location: the file as it is on disk where that differs from `path`, else "".
    """

    root: Path
    path: np.ndarray
    class_name: np.ndarray
    target: np.ndarray
    modality: np.ndarray
    origin: np.ndarray
    location: np.ndarray

    @classmethod
    def of_columns(
        cls,
        root: Path,
        path: Sequence[str],
        modality: Sequence[str] | str,
        target: Sequence[int] | int = -1,
        class_name: Sequence[str] | str = "",
        origin: Sequence[str] | str = "",
        location: Sequence[str] | str = "",
    ) -> "ImageList":
        """A list from columns; one value in the place of a column is that of all images."""

        def column(values: Sequence | str | int, kind: type = object) -> np.ndarray:
            filled = np.empty(len(path), dtype=kind)
            filled[:] = values
            return filled

        return cls(
            root=root,
            path=column(path),
            class_name=column(class_name),
            target=column(target, np.int64),
            modality=column(modality),
            origin=column(origin),
            location=column(location),
        )

    def __len__(self) -> int:
        return len(self.path)

    def file(self, index: int) -> Path:
        """Where image number `index` lies on disk."""
        return self.root / (self.location[index] or self.path[index])

    def read(self, index: int, preprocessing: Callable[[Path, str], Tensor]) -> Tensor:
        """Image number `index`, prepared. An InputError of preprocessing gains list and line."""
        try:
            return preprocessing(self.file(index), self.modality[index])
        except InputError as error:
            raise InputError(f"{error} (named in {self.origin[index]})") from error

    def name(self, index: int) -> str:
        """What messages call image number `index`: its file, and where that is named."""
        return f"{self.file(index)} (named in {self.origin[index]})"

    def select(self, which: np.ndarray) -> "ImageList":
        """The images that a boolean mask or an array of indices picks, in that order."""
        columns = ("path", "class_name", "target", "modality", "origin", "location")
        return replace(self, **{name: getattr(self, name)[which] for name in columns})

    def of(self, modality: str) -> "ImageList":
        """The images of one modality."""
        return self.select(self.modality == modality)

    def every(self, step: int) -> "ImageList":
        """Every `step`-th image: numbers 0, step, 2 * step, ..."""
        return self.select(np.arange(0, len(self), step))

    def own_photos(self) -> np.ndarray:
        """Of each image, the number of the photo it was drawn from; -1: the names do not show it.

        They show it where a sketch is named as a photo of its class, with a number after it
        (Sketchy: n02691156_10151-3.png) or without (the built-in benchmark); a mere number shows
        nothing.
        """
        stems = [PurePosixPath(path).stem for path in self.path]
        photos: dict[tuple, int] = {}
        for number in np.flatnonzero(self.modality == PHOTO):
            photos.setdefault((self.target[number], stems[number]), number)
        own = np.full(len(self), -1)
        for number in np.flatnonzero(self.modality == SKETCH):
            target, stem = self.target[number], stems[number]
            names = [name for name in (stem, SKETCH_NUMBER.sub("", stem)) if not name.isdigit()]
            own[number] = next((photos[target, n] for n in names if (target, n) in photos), -1)
        return own

    def classes(self) -> list[str]:
        """Class names by ascending target."""
        first = np.unique(self.target, return_index=True)[1]
        return [str(name) for name in self.class_name[first]]


@dataclass(frozen=True)
class Benchmark:
    """The images for training, for validation and for the test.

    train and validation hold sketches and photos of seen classes, with no class in common; queries
    (sketches) and gallery (photos) are of unseen classes. every: the published test without
    --testall takes every n-th image of a modality. notes: sentences for the user about the data.
    skipped: missing files that were left out.
    """

    train: ImageList
    validation: ImageList
    queries: ImageList
    gallery: ImageList
    every: dict[str, int]
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def plain_name(name: str) -> str:
    """A file or class name without what mirrors change: case, blanks, _, -, .jpg, .jpeg."""
    name = name.lower().removesuffix(".jpeg").removesuffix(".jpg")
    return "".join(character for character in name if character not in " _-")
