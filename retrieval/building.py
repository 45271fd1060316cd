"""Building a gallery: new and changed photos are encoded, those that have gone are dropped."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from retrieval.encoder import Encoder
from retrieval.gallery import (
    FORMAT,
    GALLERY,
    check_weights,
    open_index,
    read_gallery,
    sum_of_description,
)
from retrieval.neighbours import KINDS, Index, compares_cosines, recall_of_photos
from retrieval.store import FeatureStore, state_of
from retrieval.stored import open_store
from utils.checksums import file_sum
from utils.errors import InputError
from utils.files import reason, written_whole
from utils.logs import log
from utils.precision import tf32
from utils.unreadable import check_name

POOR_RECALL = 0.9
NAMED = 20  # broken files
COPIED = 1024  # rows at a time


@dataclass(frozen=True)
class Built:
    """What a build did.

    photos, encoded, copied, removed: how many. broken: a sentence each. index: a key of KINDS;
    recall: None where it is exact.
    """

    photos: int
    encoded: int
    copied: int
    removed: int
    broken: list[str]
    bytes: int
    index: str
    recall: float | None
    seconds: dict[str, float]


@torch.inference_mode()
def build_gallery(
    folder: str | Path,
    images,
    encoder: Encoder,
    *,
    checkpoint: str,
    tokens: bool = False,
    kind: str | None = None,
    features: Path | None = None,
) -> Built:
    """Bring a gallery up to date with a list of photos.

    images: with paths relative to their `root`. checkpoint: the file of the weights. tokens: keep
    all that pair scores read; a gallery that keeps it goes on doing so. kind: a key of
    retrieval.neighbours.KINDS; None: as it was, exact at first. features: a folder of stores, from
    which rows are copied where they are of the same photos. A build that was stopped goes on.
    Raises InputError where the folder holds something else, a gallery of other weights or settings,
    or is being written to.
    """
    folder, encoder = Path(folder), replace(encoder, skip_bad=True, store=None)
    encoder.method.eval()
    if kind not in (None, *KINDS):
        raise InputError(f"index {kind!r}: choose one of {', '.join(KINDS)}.")
    if kind == "ivf" and not compares_cosines(encoder.method):
        raise InputError(f"{encoder.method.name} compares in its own way: only exact is possible.")
    _check_place(folder)
    former = read_gallery(folder) if (folder / GALLERY).exists() else None
    if former:
        _check_same(folder, former, encoder, images.root)
    store = FeatureStore(folder, encoder.key("photo"), encoder.types)
    try:
        store.start_writing()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({reason(error)}). Wait for the other program, "
            "or choose another folder."
        ) from error
    try:
        build = _Build(store, former, images, encoder, tokens, kind)
        return build.run(checkpoint, features)
    finally:
        store.close()


class _Build:
    """One build of a gallery. Its store is open for writing."""

    def __init__(
        self,
        store: FeatureStore,
        former: dict | None,
        images,
        encoder: Encoder,
        tokens: bool,
        kind: str | None,
    ):
        self.store, self.former, self.images, self.encoder = store, former, images, encoder
        self.tokens = tokens or bool(former and former["tokens"])
        self.kind = kind or (former["index"]["kind"] if former else "exact")
        self.names = tuple(encoder.types) if self.tokens else ("retrieval",)
        self.paths = [str(path) for path in images.path]
        self.states = [state_of(images.file(number)) for number in range(len(images))]

    def run(self, checkpoint: str, features: Path | None) -> Built:
        """Encode, index, and put the new description in the place of the former one."""
        started = time.perf_counter()
        missing = self._missing()
        copied = self._copy(features, missing) if features else []
        new = [number for number in missing if number not in set(copied)]
        log.info(
            "%d images: %d to encode, %d unchanged, %d copied from evaluations.",
            *(len(self.paths), len(new), len(self.paths) - len(missing), len(copied)),
        )
        faults = self._encode(new)
        done = time.perf_counter()
        unreadable = {self.paths[number] for number in faults}
        good = [path for path in dict.fromkeys(self.paths) if path not in unreadable]
        broken = list(faults.values())
        _warn_of(broken, self.store.folder)
        if not good:
            raise InputError(
                f"{self.images.root}: none of its {len(self.paths)} images can be read."
            )
        listed = self.former["photos"] + self.former["broken"] if self.former else []
        try:
            self.store.keep_only(good)
            content = self._content(good, checkpoint)
            self.store.sync()
            with written_whole(self.store.folder / GALLERY) as file:
                file.write((json.dumps(content) + "\n").encode())
        except OSError as error:
            raise InputError(
                f"{self.store.folder}: cannot be written ({reason(error)})."
            ) from error
        self.store.remove_former()
        _remove_other_indexes(self.store.folder, content["index"]["file"])
        return Built(
            photos=len(good),
            encoded=len(new) - len(broken),
            copied=len(copied),
            removed=len(set(listed) - set(self.paths)),
            broken=broken,
            bytes=sum(file.stat().st_size for file in self.store.folder.iterdir()),
            index=self.kind,
            recall=content["index"]["recall"],
            seconds={"encode": done - started, "index": time.perf_counter() - done},
        )

    def _missing(self) -> list[int]:
        """Numbers of the photos that the store does not have, or not as they were written."""
        known = self.store.known(self.paths, self.states, self.names)
        there = np.flatnonzero(known)
        known[there] = self.store.sound([self.paths[number] for number in there], self.names)
        if not known[there].all():
            log.warning("%s: damaged rows are encoded again.", self.store.folder)
        return np.flatnonzero(~known).tolist()

    def _copy(self, features: Path, missing: list[int]) -> list[int]:
        """Copy the rows of these photos that an evaluation has kept; numbers of the photos."""
        source = open_store(features, self.encoder.key("photo"), self.encoder.types)
        names = [os.path.abspath(self.images.file(number)) for number in missing]
        states = [self.states[number] for number in missing]
        there = np.flatnonzero(source.known(names, states, self.names))
        there = there[source.sound([names[place] for place in there], self.names)].tolist()
        for first in range(0, len(there), COPIED):
            places = there[first : first + COPIED]
            rows = {f: source.read(f, [names[p] for p in places]) for f in self.names}
            self._add([missing[place] for place in places], rows)
        return [missing[place] for place in there]

    def _encode(self, missing: list[int]) -> dict[int, str]:
        """Encode these photos, by blocks, each stored at once; sentences about unreadable ones."""
        faults: dict[int, str] = {}
        encoder = self.encoder
        _, size = encoder.block_sizes(photos=0, pairs=False)
        reserved, left = False, len(missing)
        with tf32(allowed=False):
            images = self.images.select(np.array(missing, dtype=np.int64))
            for block in encoder.blocks(images, self.names, size, "photos encoded"):
                rows = {n: tensor.float().cpu().numpy() for n, tensor in block.features.items()}
                if rows and not reserved:
                    self._reserve(rows, left)
                    reserved = True
                if rows:
                    self._add([missing[number] for number in block.numbers], rows)
                faults |= {missing[number]: fault for number, fault in block.faults.items()}
                left -= len(block.numbers) + len(block.faults)
        return faults

    def _reserve(self, rows: dict[str, np.ndarray], photos: int) -> None:
        """Have the disk set space aside. Raises InputError where it has too little."""
        folder = self.store.folder
        try:
            size = self.store.reserve({n: r.shape[1:] for n, r in rows.items()}, photos)
        except OSError as error:
            raise InputError(
                f"{folder}: {reason(error)}. Make room, or leave --tokens out."
            ) from error
        of_photo = size / photos / 1e3
        log.info("%s: %.1f MB for these, %.1f kB a photo.", folder, size / 1e6, of_photo)

    def _add(self, numbers: list[int], rows: dict[str, np.ndarray]) -> None:
        names, states = [self.paths[n] for n in numbers], [self.states[n] for n in numbers]
        try:
            self.store.add(names, states, rows)
        except OSError as error:
            raise InputError(
                f"{self.store.folder}: cannot be written ({reason(error)}). What was "
                "encoded is kept; make room and run the same command to go on."
            ) from error

    def _content(self, good: list[str], checkpoint: str) -> dict:
        """The description of the gallery; its index is built on the way."""
        fixed = {
            "key": self.store.key,
            "tokens": self.tokens,
            "snapshot": self.store.snapshot,
            "photos": good,
            "broken": sorted(set(self.paths) - set(good)),
            "index": self._index(good),
        }
        return {
            "format": FORMAT,
            **fixed,
            "crc32": sum_of_description(fixed),
            "checkpoint": checkpoint,
            "root": str(self.images.root.resolve()),
        }

    def _index(self, good: list[str]) -> dict:
        """The description of the index: the former one where its vectors are the same, or built."""
        if self.kind == "exact":
            return {"kind": self.kind, "file": None, "recall": None}
        vectors = torch.from_numpy(self.store.read("retrieval", good))
        folder, sums = self.store.folder, self.store.sums("retrieval", good)
        content = hashlib.sha256(sums.tobytes()).hexdigest()
        if self.former and self.former["index"]["kind"] == self.kind:
            index = self.former["index"]
            if index["vectors"] == content:
                try:
                    open_index(folder, index, vectors, torch.device("cpu"))
                    return index
                except InputError as error:
                    log.warning("%s", error)
        log.info("building the index (%s) of %d vectors.", self.kind, len(vectors))
        index = Index(vectors, self.kind, torch.device("cpu"))
        file = f"index.{time.time_ns():x}.{self.kind}"
        index.write(folder / file)
        recall = recall_of_photos(index, vectors)
        if recall < POOR_RECALL:
            log.warning("recall is %.3f: exact search may serve you better.", recall)
        kept = {"file": file, "crc32": file_sum(folder / file)}
        return {"kind": self.kind, **kept, "recall": recall, "vectors": content}


def _warn_of(broken: Sequence[str], folder: Path) -> None:
    for fault in broken[:NAMED]:
        log.warning("skipped: %s", fault)
    if len(broken) > NAMED:
        log.warning("skipped: %d more, see %s.", len(broken) - NAMED, folder / GALLERY)


def _check_place(folder: Path) -> None:
    """InputError where a folder is not ours to write to."""
    check_name(folder / GALLERY)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file. Choose a folder for the gallery.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / GALLERY).exists():
        ours = [*folder.glob("entries.*.jsonl"), *folder.glob("writer.lock")]
        if not ours:
            raise InputError(
                f"{folder}: holds other files and is no gallery. Choose another folder."
            )


def _check_same(folder: Path, former: dict, encoder: Encoder, root: Path) -> None:
    """InputError where a gallery cannot be brought up to date with these settings."""
    check_weights(folder, former, encoder.weights)
    then, now = former["key"]["computed_in"], str(encoder.dtype)
    if then != now:
        raise InputError(
            f"{folder}: was computed in {then}, and {now} is wanted (--amp). Use the same option, "
            "or build another gallery elsewhere."
        )
    if Path(former["root"]) != root.resolve() and Path(former["root"]).is_dir():
        raise InputError(
            f"{folder}: is the gallery of {former['root']}, and {root.resolve()} is wanted. A "
            "gallery has one folder of photos: put both into one, or choose another --out."
        )


def _remove_other_indexes(folder: Path, kept: str | None) -> None:
    for file in folder.glob("index.*"):
        if file.name != kept:
            file.unlink(missing_ok=True)
