"""Images -> features, each image once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retrieval.cache import FeatureCache, Features, open_cache
from retrieval.views import encode_views
from utils.errors import InputError
from utils.logs import progress

Block = tuple[list[int], Features, list[str]]
"""Numbers of the readable images, their features on the device, what was wrong with others."""


class Images(Dataset):
    """A list's images for a loader, each as (tensor or None, the sentence of what went wrong).

    images: an image list of one modality; its read(index, preprocessing) is called.
    preprocessing: (file, modality) -> (3, S, S); raises InputError for an unreadable file.
    """

    def __init__(self, images, preprocessing: Callable[[Path, str], Tensor]):
        self.images = images
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str | None]:
        try:
            return self.images.read(index, self.preprocessing), None
        except InputError as error:
            return None, str(error)


@dataclass
class Encoder:
    """Makes features of image lists, block by block, each image once.

    preprocessing: (file, modality) -> (3, S, S); raises InputError for an unreadable file. keep:
    names of the features wanted. views: a name in VIEWS. Unreadable images are left out under
    skip_bad; else: InputError. cache: a folder in which features are kept in `precision`, and
    looked for before anything is encoded, see cache.py.
    """

    method: object
    preprocessing: Callable[[Path, str], Tensor]
    device: torch.device
    workers: int
    skip_bad: bool
    keep: tuple[str, ...]
    views: str = "plain"
    cache: Path | None = None
    precision: str = "fp16"

    def blocks(self, images, size: int, what: str) -> Iterator[Block]:
        """A list by blocks of `size`. what: for the progress display."""
        with self._opened(images) as cache:
            done = cache.done if cache else 0
            for first in range(0, done, size):
                last = min(first + size, done)
                numbers, faults = cache.seen(first, last)
                self._check(faults)
                features = cache.read(first, last)
                yield numbers, {n: tensor.to(self.device) for n, tensor in features.items()}, faults
            yield from self._new_blocks(images, cache, size, what)

    def whole(self, images, size: int, what: str) -> Block:
        """A list as one block, encoded by blocks of `size`: in the cache, or in main memory."""
        rows: Features = {}
        with self._opened(images) as cache:
            kept, bad = cache.seen(0, cache.done) if cache else ([], [])
            self._check(bad)
            for numbers, features, faults in self._new_blocks(images, cache, size, what):
                bad += faults
                if cache is None or not cache.arrays:
                    _append(rows, len(kept), features, len(images))
                kept += numbers
        if cache is not None and cache.arrays:
            rows = cache.features()
        return kept, {name: tensor[: len(kept)] for name, tensor in rows.items()}, bad

    def _opened(self, images) -> AbstractContextManager[FeatureCache | None]:
        if self.cache is None:
            return nullcontext()
        settings = [self.views, self.keep]
        cache = open_cache(self.cache, self._weights, images, settings, self.precision)
        return closing(cache) if cache else nullcontext()

    @cached_property
    def _weights(self) -> str:
        return fingerprint(self.method)

    def _new_blocks(
        self, images, cache: FeatureCache | None, size: int, what: str
    ) -> Iterator[Block]:
        """Encode what the cache does not have."""
        done = cache.done if cache else 0
        left = images.select(np.arange(done, len(images)))
        loader = DataLoader(
            Images(left, self.preprocessing),
            batch_size=size,
            num_workers=self.workers,
            collate_fn=list,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # leaves the global random numbers to training
        )
        first = done
        for block in progress(loader, len(loader), what):
            faults = {first + i: fault for i, (_, fault) in enumerate(block) if fault}
            self._check(list(faults.values()))
            numbers, features = self._encode(images, first, block)
            if cache:
                features = cache.add(features, faults, len(block))
            first += len(block)
            yield numbers, features, list(faults.values())

    def _encode(self, images, first: int, block: list) -> tuple[list[int], Features]:
        """Numbers and features of the readable images of a block that begins at number `first`."""
        read = [i for i, (image, _) in enumerate(block) if image is not None]
        numbers = [first + i for i in read]
        if not read:
            return [], {}
        batch = torch.stack([block[i][0] for i in read]).to(self.device, non_blocking=True)
        modality = str(images.modality[numbers[0]])
        features = encode_views(self.method, batch, modality, self.views)
        return numbers, {name: features[name] for name in self.keep}

    def _check(self, faults: list[str]) -> None:
        if faults and not self.skip_bad:
            raise InputError(f"{faults[0]} Mend the file, or go on without such with --skip_bad.")


def _append(rows: Features, first: int, features: Features, total: int) -> None:
    """Put features into rows from number `first` on; where there are none yet, make room."""
    for name, tensor in features.items():
        if name not in rows:
            rows[name] = tensor.new_empty((total, *tensor.shape[1:]), device="cpu")
        rows[name][first : first + len(tensor)] = tensor


def fingerprint(method, *lists) -> str:
    """Sixteen hex digits that change with the weights, the preprocessing or the images' names.

    Weights that only training uses do not count: a checkpoint need not have them.
    """
    digest = hashlib.sha256(json.dumps([method.settings, method.inputs]).encode())
    for name, tensor in sorted(method.state_dict().items()):
        if name.startswith(method.training_only):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    for images in lists:
        digest.update("\n".join([*images.path, ""]).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
