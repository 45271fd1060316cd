"""Images -> features, each image once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retrieval.cache import FeatureCache, Features, open_cache
from retrieval.views import encode_views
from utils.distributed import broadcast, from_main, gather_objects, is_main, rank, world_size
from utils.errors import InputError
from utils.logs import progress
from utils.precision import half_where_safe

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
    names of the features wanted. views: a name in VIEWS. dtype: in which the network runs where
    that is safe. Unreadable images are left out under skip_bad; else: InputError. cache: a folder
    in which features are kept in `precision`, and looked for before anything is encoded, see
    cache.py.
    """

    method: object
    preprocessing: Callable[[Path, str], Tensor]
    device: torch.device
    workers: int
    skip_bad: bool
    keep: tuple[str, ...]
    views: str = "plain"
    dtype: torch.dtype = torch.float32
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
            firsts = range(done, len(images), size)
            yield from self._kept(self._encoded(images, firsts, size, what), cache)

    def whole(self, images, size: int, what: str, shared: bool = False) -> Block:
        """A list as one block, encoded by blocks of `size`: in the cache, or in main memory.

        shared: every process of torchrun encodes some of the blocks, and all return the whole; the
        smallest `size` is that of all.
        """
        rows: Features = {}
        keeps = is_main() or not shared  # else what the first process keeps is handed round
        if shared:
            size = min(gather_objects(size))
        with self._opened(images) if keeps else nullcontext() as cache:
            done = cache.done if cache else 0
            kept, bad = cache.seen(0, done) if cache else ([], [])
            if shared:
                done, bad = from_main((done, bad))
            self._check(bad)
            firsts = range(done, len(images), size)
            encode = self._encoded_by_all if shared else self._encoded
            for numbers, features, faults in self._kept(encode(images, firsts, size, what), cache):
                bad += faults
                if keeps and (cache is None or not cache.arrays):
                    _append(rows, len(kept), features, len(images))
                kept += numbers
        if cache is not None and cache.arrays:
            rows = cache.features()
        rows = {name: tensor[: len(kept)] for name, tensor in rows.items()}
        if shared and world_size() > 1:
            kept, bad, in_cache = from_main((kept, bad, cache is not None and bool(cache.arrays)))
            rows = self._handed_round(rows, images, size, in_cache)
        return kept, rows, bad

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the method."""
        return fingerprint(self.method)

    def _opened(self, images) -> AbstractContextManager[FeatureCache | None]:
        if self.cache is None:
            return nullcontext()
        settings = [self.views, self.keep, str(self.dtype)]
        cache = open_cache(self.cache, self.weights, images, settings, self.precision)
        return closing(cache) if cache else nullcontext()

    def _kept(self, blocks: Iterator[tuple], cache: FeatureCache | None) -> Iterator[Block]:
        """Encoded blocks, checked and put into the cache."""
        for numbers, features, faults, count in blocks:
            self._check(list(faults.values()))
            if cache:
                features = cache.add(features, faults, count)
            yield numbers, features, list(faults.values())

    def _encoded(self, images, firsts: Sequence[int], size: int, what: str) -> Iterator[tuple]:
        """Blocks that begin at the numbers `firsts`, up to `size` long.

        Each as numbers of the readable images, their features, faults of others by number, and how
        many images the block has.
        """
        blocks = [range(first, min(first + size, len(images))) for first in firsts]
        loader = DataLoader(
            Images(images, self.preprocessing),
            batch_sampler=blocks,
            num_workers=self.workers,
            collate_fn=list,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # leaves the global random numbers to training
        )
        read_blocks = progress(loader, len(loader), what)
        for block, content in zip(blocks, read_blocks, strict=True):
            numbered = list(zip(block, content, strict=True))
            faults = {number: fault for number, (_, fault) in numbered if fault}
            read = {number: image for number, (image, _) in numbered if image is not None}
            yield list(read), self._features(images, read), faults, len(block)

    def _encoded_by_all(
        self, images, firsts: Sequence[int], size: int, what: str
    ) -> Iterator[tuple]:
        """As _encoded(), each process encoding every n-th block; all of them get every block."""
        mine = self._encoded(images, firsts[rank() :: world_size()], size, what)
        for _ in range(0, len(firsts), world_size()):
            block = next(mine, None)
            told = None
            if block:
                numbers, features, faults, count = block
                kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in features.items()}
                told = numbers, kinds, faults, count
            for source, about in enumerate(gather_objects(told)):
                if about is None:
                    continue
                numbers, kinds, faults, count = about
                shared = {}
                for name, (shape, dtype) in kinds.items():
                    if source == rank():
                        shared[name] = block[1][name].contiguous()
                    else:
                        shared[name] = torch.empty(shape, dtype=dtype, device=self.device)
                    broadcast(shared[name], source)
                yield numbers, shared, faults, count

    def _handed_round(self, rows: Features, images, size: int, in_cache: bool) -> Features:
        """What the first process has in its cache, or in its memory, for all processes."""
        if in_cache and not is_main():
            with self._opened(images) as cache:
                rows = cache.features() if cache and cache.done == len(images) else {}
        if in_cache and all(gather_objects(bool(rows))):
            return rows
        made = {}
        for name, (shape, dtype) in from_main(
            {name: (tensor.shape, tensor.dtype) for name, tensor in rows.items()}
        ).items():
            made[name] = rows[name] if is_main() else torch.empty(shape, dtype=dtype)
            for block in made[name].split(size):
                on_device = block.to(self.device, copy=True)
                broadcast(on_device, 0)
                if not is_main():
                    block.copy_(on_device)
        return made

    def _features(self, images, read: dict[int, Tensor]) -> Features:
        """Features of readable images of one modality, by their numbers; retrieval in fp32."""
        if not read:
            return {}
        batch = torch.stack(list(read.values())).to(self.device, non_blocking=True)
        modality = str(images.modality[next(iter(read))])
        with half_where_safe(self.device, self.dtype):
            features = encode_views(self.method, batch, modality, self.views)
        features = {name: features[name] for name in self.keep}
        return features | {"retrieval": features["retrieval"].float()}

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
