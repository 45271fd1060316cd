"""The features of a list of images in a store: those that are there, and a place for the others."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.method import Features, Method
from retrieval.store import FeatureStore, state_of
from utils.files import reason
from utils.logs import log

SECONDS_TO_WAIT = 5  # for another program that is about to finish
ADDRESS = 16  # hex digits
STORES = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}(\.scores)?")  # names: weights, all of the key


class StoredRows:
    """The rows of a feature, read from a store when they are indexed, as a tensor would be."""

    def __init__(self, store: FeatureStore, feature: str, names: Sequence[str]):
        self.store, self.feature, self.names = store, feature, list(names)
        self.shape = (len(self.names), *store.shapes[feature])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, numbers: slice | Tensor) -> Tensor:
        """Rows by their numbers, on the CPU, of the type that they are stored in."""
        return torch.from_numpy(self.store.read(self.feature, self._named(numbers)))

    def sums(self, numbers: slice | Tensor) -> np.ndarray:
        """Checksums of rows by their numbers: equal where the rows are. Reads no row."""
        return self.store.sums(self.feature, self._named(numbers))

    def _named(self, numbers: slice | Tensor) -> list[str]:
        if isinstance(numbers, slice):
            return self.names[numbers]
        return [self.names[number] for number in numbers.tolist()]


class StoredList:
    """A list of images in a store: reads their features there, and writes them.

    store: of the list's modality. features: names of those wanted.

    known (attribute): which images the store has, (len(images),) booleans.
    """

    def __init__(self, store: FeatureStore, images, features: Sequence[str]):
        self.store, self.features = store, tuple(features)
        files = [images.file(number) for number in range(len(images))]
        self.names = [os.path.abspath(file) for file in files]
        self.states = [state_of(file) for file in files]
        self.known = store.known(self.names, self.states, self.features)
        self.refused = False  # by the disk, or by another writer
        self.writes = False

    def read(self, numbers: Sequence[int]) -> Features:
        """Features of some known images, in fp32 on the CPU."""
        names = [self.names[number] for number in numbers]
        return {
            feature: torch.from_numpy(self.store.read(feature, names)).float()
            for feature in self.features
        }

    def rows(self, feature: str, numbers: Sequence[int]) -> StoredRows:
        """A feature of known images, to be read later."""
        return StoredRows(self.store, feature, [self.names[number] for number in numbers])

    def add(self, numbers: Sequence[int], features: Features) -> bool:
        """Store features of these images; whether it was possible.

        What the store has of an image stays as it is. Without room for all images of the list, or
        where another program writes, nothing is stored, with a warning.
        """
        if not self.writes and not self.refused and len(numbers):
            self._start(features)
        if not self.writes:
            return False
        if not len(numbers):
            return True
        names, states = zip(*((self.names[n], self.states[n]) for n in numbers), strict=True)
        rows = {name: tensor.cpu().float().numpy() for name, tensor in features.items()}
        try:
            self.store.add(names, states, rows)
        except OSError as error:
            log.warning("%s: cannot be written (%s).", self.store.folder, reason(error))
            self.refused, self.writes = True, False
        return self.writes

    def rounded(self, features: Features) -> Features:
        """Features as they will be read from the store, in fp32 on their device."""
        types = {name: getattr(torch, self.store.types[name]) for name in features}
        return {name: tensor.to(types[name]).float() for name, tensor in features.items()}

    def close(self) -> None:
        """Let other programs write."""
        self.store.close()

    def _start(self, features: Features) -> None:
        """Begin to write. Space for all images is set aside now."""
        missing = int((~self.known).sum())
        try:
            self.store.start_writing(SECONDS_TO_WAIT)
            shapes = {name: tuple(tensor.shape[1:]) for name, tensor in features.items()}
            size = self.store.reserve(shapes, missing)
        except OSError as error:
            log.warning("features are not kept in %s: %s.", self.store.folder, reason(error))
            self.store.close()
            self.refused = True
            return
        log.info(
            "features go to %s: %s MB (--no_cache: none)",
            *(self.store.folder, f"{size / 1e6:,.1f}"),
        )
        self.writes = True


def features_of(checkpoint: Path) -> Path:
    """The folder of stores of a checkpoint, beside it."""
    return checkpoint.parent / "features" / checkpoint.stem


def open_store(folder: Path, key: Mapping, types: Mapping[str, str]) -> FeatureStore:
    """The store with this key in a folder of stores."""
    return FeatureStore(folder / name_of_store(key), key, types)


def name_of_store(key: Mapping) -> str:
    """The name of a store's folder: STORES matches it, and its beginning are the weights."""
    address = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:ADDRESS]
    return f"{key['weights']}-{address}"


def open_stored_list(
    folder: Path, images, features: Sequence[str], key: Mapping, types: Mapping[str, str]
) -> StoredList | None:
    """A list of images of one modality in a folder of stores; None, with a warning, if refused.

    key: all that features depend on besides the image, as plain values; stores of other "weights"
    are removed. types: numpy's name of the type of each feature that the store may hold.
    """
    try:
        for other in folder.glob("*-*"):
            if STORES.fullmatch(other.name) and not other.name.startswith(key["weights"]):
                log.info("%s is of other weights: removed.", other)
                shutil.rmtree(other)
        store = open_store(folder, key, types)
        found = StoredList(store, images, features)
    except OSError as error:
        log.warning("features are not kept in %s: %s.", folder, reason(error))
        return None
    if found.known.any():
        count, of = int(found.known.sum()), len(images)
        log.info("features of %d of %d images: from %s", count, of, store.folder)
    return found


def fingerprint(method: Method, *lists) -> str:
    """Sixteen hex digits that change with the weights, the preprocessing or the images' names.

    Weights that only training uses do not count: a checkpoint need not have them.
    """
    content = [method.settings.of_model(), method.inputs]
    digest = hashlib.sha256(json.dumps(content).encode())
    for name, tensor in sorted(method.without_training(method.state_dict()).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    for images in lists:
        digest.update("\n".join([*images.path, ""]).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
