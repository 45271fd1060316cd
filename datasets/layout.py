"""Benchmarks in the published layout: lists of images, or the class folders."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.benchmark import PHOTO, SKETCH, Benchmark, ImageList, plain_name
from utils.errors import InputError

SPLIT_FILES = Path(__file__).parent / "splits"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
NAMED_FAULTS = 5  # how many missing files a message names


@dataclass(frozen=True)
class Layout:
    """Where a benchmark keeps its lists and images, below the data path.

    lists: names of the photo and the sketch list; {} is "train" (seen) or "zero" (unseen).
    images: folders of class folders, by modality. every: published test subsample.
    """

    folder: str
    splits: dict[str, str]
    lists: dict[str, str]
    images: dict[str, tuple[str, ...]]
    every: dict[str, int]
    unlisted: str = ""


def load_layout(
    name: str,
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
    """
    source = _Source(layout, split, root, skip_bad)
    train = source.images("seen") if seen else source.nothing()
    targets = np.unique(train.target)
    if classes is not None and seen:
        if not 2 <= classes <= len(targets):
            raise InputError(f"cls_number {classes}: {split} has {len(targets)} seen classes.")
        targets = targets[:classes]
        train = train.select(np.isin(train.target, targets))
    held_out = _held_out(targets, validation_classes, seed) if validation and seen else targets[:0]
    is_held_out = np.isin(train.target, held_out)
    tested = source.images("unseen") if unseen else source.nothing()
    return Benchmark(
        name=name,
        split=split,
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
        self.respelt = 0
        if not self.root.is_dir():
            raise InputError(
                f"{self.root}: no such folder. Set --data_path to the folder that holds "
                f"{layout.folder}/ (the README shows the layout)."
            )
        self.lists = self.root / layout.splits[split]
        self.disk = _Disk(self.root)

    def images(self, side: str) -> ImageList:
        """All sketches and photos of the side's classes; side: "seen" or "unseen"."""
        rows = []
        read = self._listed if self.lists.is_dir() else self._in_folders
        for modality in (SKETCH, PHOTO):
            rows += read(side, modality)
        if self.missing and not self.skip_bad:
            more = len(self.missing) - NAMED_FAULTS
            raise InputError(
                f"{len(self.missing)} listed files missing below {self.root}: "
                + "; ".join(self.missing[:NAMED_FAULTS])
                + (f"; and {more} more" if more > 0 else "")
                + ". Complete the data, or go on without them with --skip_bad."
            )
        if not rows:
            raise InputError(f"{self.root}: no {side} images are left of {self.split}.")
        return self._table(rows)

    def nothing(self) -> ImageList:
        """An empty list."""
        return self._table([])

    def notes(self, gallery: ImageList) -> list[str]:
        """Sentences about the data that one should know before reading numbers."""
        notes = []
        if not self.lists.is_dir():
            note = f"{self.lists} is not there: the class folders are read instead of lists"
            notes.append(f"{note}; {self.layout.unlisted}." if self.layout.unlisted else f"{note}.")
        if self.respelt:
            notes.append(f"{self.respelt} listed files were found under another spelling.")
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

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Class names by label: the lists' own file, else the published order."""
        names = {}
        for side, file in (("seen", "cname_cid.txt"), ("unseen", "cname_cid_zero.txt")):
            published = SPLIT_FILES / f"{self.split}.{side}.txt"
            names[side] = _lines(published)
            if (self.lists / file).is_file():
                lines = _lines(self.lists / file)
                names[side] = [line.rsplit(None, 1)[0] for line in lines if line.strip()]
        return names

    def _listed(self, side: str, modality: str) -> list[tuple]:
        """Rows of a published list."""
        file = self.lists / self.layout.lists[modality].format(
            {"seen": "train", "unseen": "zero"}[side]
        )
        if not file.is_file():
            raise InputError(
                f"{file}: no such list, though its folder is there. Complete the lists, or rename "
                f"{self.lists} to have the class folders read instead."
            )
        rows = []
        names = self._names[side]
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            origin = f"{file.name}, line {number}"
            path, _, label = line.strip().rpartition(" ")
            if not path or not label.isdecimal() or int(label) >= len(names):
                raise InputError(
                    f"{file}, line {number}: expected 'relative/path label' with a label from 0 to "
                    f"{len(names) - 1}, found {line.strip()!r}."
                )
            path = path.strip()
            location = self.disk.locate(path)
            if location is None:
                self.missing.append(f"{path} ({origin})")
                continue
            self.respelt += location != path
            rows.append((path, names[int(label)], int(label), modality, origin, location))
        return rows

    def _in_folders(self, side: str, modality: str) -> list[tuple]:
        """Rows of every image in the class folders of the side's classes."""
        rows = []
        absent = []
        for label, name in enumerate(self._names[side]):
            before = len(rows)
            for parent in self.layout.images[modality]:
                folder = self.disk.locate(f"{parent}/{name}")
                for file in sorted(self.disk.names(folder)) if folder else ():
                    suffix = PurePosixPath(file).suffix.lower()
                    if suffix in IMAGE_SUFFIXES and not file.startswith("."):
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
        return ImageList(
            root=self.root,
            path=np.array(path, dtype=object),
            class_name=np.array(class_name, dtype=object),
            target=np.array(target, dtype=np.int64),
            modality=np.array(modality, dtype=object),
            origin=np.array(origin, dtype=object),
            location=np.array(location, dtype=object),
        )


class _Disk:
    """The files below a root, found although mirrors spell names differently.

    Each folder is read once.
    """

    def __init__(self, root: Path):
        self.root = root
        self._names: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, str | None]] = {}

    def names(self, folder: str) -> set[str]:
        """Names in a folder below the root; none where there is no such folder."""
        if folder not in self._names:
            path = self.root / folder
            self._names[folder] = {p.name for p in path.iterdir()} if path.is_dir() else set()
        return self._names[folder]

    def locate(self, path: str) -> str | None:
        """The path as it is on disk, whatever its case, blanks, hyphens or .jpeg; None: absent."""
        folder, _, name = path.rpartition("/")
        if name in self.names(folder):
            return path
        found = ""
        for part in path.split("/"):
            if part not in self.names(found):
                part = self._spelling(found).get(plain_name(part))
                if part is None:
                    return None
            found = f"{found}/{part}" if found else part
        return found

    def _spelling(self, folder: str) -> dict[str, str | None]:
        """Plain spelling -> the one name in the folder so spelt (None where there are several)."""
        if folder not in self._spellings:
            spellings: dict[str, str | None] = {}
            for name in self.names(folder):
                plain = plain_name(name)
                spellings[plain] = None if plain in spellings else name
            self._spellings[folder] = spellings
        return self._spellings[folder]


def _lines(file: Path) -> list[str]:
    """Lines of a text file, with or without the byte order mark that Windows writes."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text ({error}). Save it as such.") from error
