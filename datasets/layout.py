"""Benchmarks in the published layout: lists of images, or the class folders."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.benchmark import PHOTO, SKETCH, Benchmark, ImageList, plain_name
from datasets.lists import Disk, difference, read_lines, read_names, read_rows, shown, unprepared
from datasets.opening import ENDINGS
from utils.errors import InputError

SPLIT_FILES = Path(__file__).parent / "splits"
NAMED_FAULTS = 5  # how many missing files a message names
NAMES = {"seen": "cname_cid.txt", "unseen": "cname_cid_zero.txt"}
SUFFIXES = {"seen": "train", "unseen": "zero"}  # of lists


@dataclass(frozen=True)
class Layout:
    """Where a benchmark keeps its lists and images, below the data path. Called, it loads them.

    folder: its name. splits: folder of the lists of each split. lists: names of the photo and the
    sketch list; {} is "train" (seen) or "zero" (unseen). images: folders of class folders, by
    modality. every: published test subsample. unlisted: what the class folders hold that no list
    has, for the note that they are read instead of lists.
    """

    folder: str
    splits: dict[str, str]
    lists: dict[str, str]
    images: dict[str, tuple[str, ...]]
    every: dict[str, int]
    unlisted: str = ""

    def __call__(self, split: str, root: Path, **settings) -> Benchmark:
        """The benchmark below `root`; settings as in load_layout()."""
        return load_layout(self, split, root, **settings)


def load_layout(
    layout: Layout,
    split: str,
    root: Path,
    *,
    seen: bool = True,
    unseen: bool = True,
    validation: bool = True,
    validation_classes: int | None = None,
    seed: int = 0,
    classes: int | None = None,
    skip_bad: bool = False,
) -> Benchmark:
    """A benchmark below `root` (the --data_path), in its layout.

    seen, unseen: which sides are wanted; the lists of the other side stay empty, unread.
    validation: cut some of the seen classes from the training list for validation.
    validation_classes: how many (None: a tenth). seed: which classes those are.
    classes: train on the first so many seen classes (None: all).
    skip_bad: leave missing files out, instead of raising InputError.
    Raises InputError where data or lists are absent, or lists do not agree.
    """
    source = _Source(layout, split, root, skip_bad)
    train = source.images("seen") if seen else source.nothing()
    targets = np.unique(train.target)
    if classes is not None and seen:
        if not 2 <= classes <= len(targets):
            raise InputError(
                f"--cls_number {classes}: {layout.folder} ({split}) has {len(targets)} seen "
                f"classes; choose 2 to {len(targets)}."
            )
        targets = targets[:classes]
        train = train.select(np.isin(train.target, targets))
    held_out = _held_out(targets, validation_classes, seed) if validation and seen else targets[:0]
    is_held_out = np.isin(train.target, held_out)
    tested = source.images("unseen") if unseen else source.nothing()
    return Benchmark(
        train=train.select(~is_held_out),
        validation=train.select(is_held_out),
        queries=tested.of(SKETCH),
        gallery=tested.of(PHOTO),
        every=layout.every,
        notes=source.notes(tested.of(PHOTO)),
        skipped=source.missing,
    )


def _held_out(targets: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """So many of the classes (None: a tenth, two at least), drawn with the seed."""
    count = count or max(2, round(len(targets) / 10))
    if len(targets) < count + 2:
        raise InputError(
            f"{len(targets)} seen classes are too few to validate on {count} of them and train on "
            "two or more: use --validate none, or --validation_classes with a smaller number."
        )
    return np.random.default_rng(seed).choice(targets, size=count, replace=False)


class _Source:
    """One benchmark's folder: reads its lists or, where there are none, its class folders."""

    def __init__(self, layout: Layout, split: str, root: Path, skip_bad: bool):
        self.layout = layout
        self.split = split
        self.skip_bad = skip_bad
        self.root = Path(root) / layout.folder
        self.missing: list[str] = []
        self.absent = ""  # the folder in which the first missing file would be
        self.respelt = 0
        self.elsewhere: Counter[tuple[str, str]] = Counter()  # folder in the lists, on disk
        self.misnamed: list[str] = []
        if not os.path.isdir(self.root):
            raise InputError(
                f"{self.root}: no such folder. Set --data_path to the folder that holds "
                f"{layout.folder}/ (the README shows the layout)."
            )
        self.lists = self.root / layout.splits[split]
        self.has_lists = os.path.isdir(self.lists)
        self.disk = Disk(self.root)

    def images(self, side: str) -> ImageList:
        """All sketches and photos of the side's classes; side: "seen" or "unseen"."""
        rows = []
        names = self._names(side)
        if side == "seen":
            self._check_sides(names)
        for modality in (SKETCH, PHOTO):
            read = self._listed if self.has_lists else self._in_folders
            rows.append(read(side, names, modality))
        if self.missing and not self.skip_bad:
            more = len(self.missing) - NAMED_FAULTS
            raise InputError(
                f"{len(self.missing)} listed files missing below {self.root}: "
                + "; ".join(self.missing[:NAMED_FAULTS])
                + (f"; and {more} more. " if more > 0 else ". ")
                + self.absent
                + "Complete the data, or go on without them with --skip_bad."
            )
        for modality, found in zip((SKETCH, PHOTO), rows, strict=True):
            if not found:
                raise InputError(
                    f"{self.root}: no {side} images are left of {self.split}: every {modality} is "
                    f"missing. {self.absent}"
                )
        return self._table(rows[0] + rows[1])

    def nothing(self) -> ImageList:
        """An empty list."""
        return self._table([])

    def notes(self, gallery: ImageList) -> list[str]:
        """Sentences about the data that one should know before reading numbers."""
        notes = []
        if not self.has_lists:
            note = f"{self.lists} is not there: the class folders are read instead of lists"
            notes.append(f"{note}; {self.layout.unlisted}." if self.layout.unlisted else f"{note}.")
        if self.respelt:
            notes.append(f"{self.respelt} listed files were found under another spelling.")
        for (said, there), count in self.elsewhere.items():
            notes.append(
                f"{count} listed files were found elsewhere: the lists say {shown(said)}, and "
                f"{self.root} has {shown(there)}."
            )
        if self.misnamed:
            notes.append(
                f"{len(self.misnamed)} listed files lie in the folder of another class than their "
                f"label names, {self.misnamed[0]} first. Check lists and class ids."
            )
        names = Counter(
            (class_name, PurePosixPath(path).name)
            for class_name, path in zip(gallery.class_name, gallery.path, strict=True)
        )
        doubles = sum(count - 1 for count in names.values())
        if doubles:
            notes.append(
                f"{doubles} of the gallery's {len(gallery)} photos are the same file a second "
                "time, as in the published lists; some papers score on the distinct ones."
            )
        return notes

    def _names(self, side: str) -> list[str]:
        """Class names by label: those of the lists' own file, else in the published order."""
        file = self.lists / NAMES[side]
        if os.path.lexists(file):
            return read_names(file)
        return read_lines(SPLIT_FILES / f"{self.split}.{side}.txt")

    def _check_sides(self, seen: list[str]) -> None:
        """InputError where a class is both trained on and tested on."""
        known = {plain_name(name) for name in seen}
        both = [name for name in self._names("unseen") if plain_name(name) in known]
        if both:
            raise InputError(
                f"{self.lists}: {len(both)} classes are both seen ({NAMES['seen']}) and unseen "
                f"({NAMES['unseen']}), {shown(both[0])} first. Let each be on one side."
            )

    def _listed(self, side: str, names: list[str], modality: str) -> list[tuple]:
        """Rows of a published list."""
        file = self.lists / self.layout.lists[modality].format(SUFFIXES[side])
        if not os.path.lexists(file):
            raise InputError(
                f"{file}: no such list, though its folder is there. Complete the lists, or rename "
                f"{self.lists} to have the class folders read instead."
            )
        rows = []
        labels = {name: label for label, name in enumerate(names)}
        for number, said, label in read_rows(file, len(names)):
            origin = f"{file.name}, line {number}"
            path, location = self._located(said)
            if location is None:
                self.missing.append(f"{said if len(said) < 200 else shown(said)} ({origin})")
                self.absent = self.absent or self.disk.explain_absence(said)
                continue
            moved = difference(said, location)
            self.respelt += location != path and not moved
            self.elsewhere.update([moved] if moved else [])
            named = labels.get(PurePosixPath(path).parent.name, label)
            self.misnamed += [] if named == label else [f"{path} ({origin})"]
            rows.append((path, names[label], label, modality, origin, location))
        return rows

    def _located(self, said: str) -> tuple[str, str | None]:
        """The path below the root, and the file as it is on disk (None: absent).

        The path begins at a folder of images: lists of other machines have more before it.
        """
        for path in self._beginnings(said):
            location = self.disk.locate(path)
            if location is not None:
                return path, location
        return said, None

    def _beginnings(self, said: str) -> Iterator[str]:
        yield said
        folders = [folder for some in self.layout.images.values() for folder in some]
        heads = {unprepared(folder.split("/")[0]) for folder in folders}
        parts = said.split("/")
        for start in range(1, len(parts)):
            if unprepared(parts[start]) in heads:
                yield "/".join(parts[start:])

    def _in_folders(self, side: str, names: list[str], modality: str) -> list[tuple]:
        """Rows of every image in the class folders of the side's classes."""
        rows = []
        absent = []
        for label, name in enumerate(names):
            before = len(rows)
            for parent in self.layout.images[modality]:
                folder = self.disk.locate(f"{parent}/{name}")
                for file in sorted(self.disk.names(folder)) if folder else ():
                    suffix = PurePosixPath(file).suffix.lower()
                    if suffix in ENDINGS and not file.startswith("."):
                        path = f"{folder}/{file}"
                        rows.append((path, name, label, modality, folder, path))
            if len(rows) == before:
                absent.append(name)
        if absent:
            folders = " or ".join(self.layout.images[modality])
            raise InputError(
                f"{self.root}: no {modality} of {', '.join(absent)} ({self.split}, {side}) in "
                f"{folders}/<class>/, and no lists in {self.lists}."
            )
        return rows

    def _table(self, rows: list[tuple]) -> ImageList:
        columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
        path, class_name, target, modality, origin, location = columns
        return ImageList.of_columns(self.root, path, modality, target, class_name, origin, location)
