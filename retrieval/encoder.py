"""Images -> features, block by block, each image once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.images import ImageSource, Preprocessing
from datasets.unlabelled import LooseImages
from model.method import Features, Method
from retrieval.blocks import Block, block_sizes, merge_blocks, split_numbers
from retrieval.stored import StoredList, StoredRows, fingerprint, open_stored_list
from retrieval.views import encode_views
from utils.distributed import broadcast, from_main, gather_objects
from utils.errors import InputError
from utils.logs import progress
from utils.precision import half_where_safe
from utils.workers import NOTHING, Loader, note
from utils.world import is_main, rank, world_size

AT_A_TIME = 32  # images of encode()
PRECISIONS = {"fp16": "float16", "fp32": "float32"}
Rows = Mapping[str, Tensor | StoredRows]
"""Features by name, (G, ...) each; rows are had by indexing with a slice or a tensor of numbers."""


@dataclass
class Encoder:
    """Makes features of images.

    method: on the device, in evaluation mode. workers: processes that read images. skip_bad: leave
    unreadable images out, instead of raising InputError. views: a name in retrieval.views.VIEWS.
    dtype: of the network where that is safe. store: a folder that keeps features, the tokens in
    `precision`; what lies there is not encoded again.
    """

    method: Method
    device: torch.device
    workers: int = 0
    skip_bad: bool = False
    views: str = "plain"
    dtype: torch.dtype = torch.float32
    store: Path | None = None
    precision: str = "fp16"

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of the method."""
        return Preprocessing(**self.method.inputs)

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the method."""
        return fingerprint(self.method)

    @property
    def types(self) -> dict[str, str]:
        """Numpy's name of the type in which each feature is stored."""
        types = dict.fromkeys(self.method.pair_features, PRECISIONS[self.precision])
        return {"retrieval": "float32", **types}

    def key(self, modality: str) -> dict:
        """All that features of a modality depend on besides the image, as plain values."""
        return {
            "weights": self.weights,
            "modality": modality,
            "views": self.views,
            "computed_in": str(self.dtype),
            "precision": self.precision,
        }

    def block_sizes(self, photos: int, pairs: bool) -> tuple[int, int]:
        """How many sketches and how many photos at a time: see retrieval/blocks.py."""
        return block_sizes(self.method, self.device, self.dtype, photos=photos, pairs=pairs)

    def encode(self, images: Sequence[ImageSource], modality: str) -> Features:
        """All features of some images: names of files, or open images (PIL). (B, ...) each.

        modality: "sketch" or "photo". Raises InputError for an unreadable file, and for no image.
        """
        if not images:
            raise InputError("there is no image to encode.")
        blocks = [
            range(i, min(i + AT_A_TIME, len(images))) for i in range(0, len(images), AT_A_TIME)
        ]
        made = []
        for block in self._encoded(LooseImages(images, modality), blocks, None, "images"):
            if block.faults:
                raise InputError(next(iter(block.faults.values())))
            made.append(block.features)
        return {name: torch.cat([part[name] for part in made]) for name in made[0]}

    def blocks(self, images, names: Sequence[str], size: int, what: str) -> Iterator[Block]:
        """A list by blocks of `size`, with the features of these names.

        what: for the display of progress.
        """
        stored = self._open(images, names)
        with closing(stored) if stored else nullcontext():
            known = stored.known if stored else np.zeros(len(images), dtype=bool)
            groups = split_numbers(range(len(images)), size)
            missing = [[number for number in group if not known[number]] for group in groups]
            encoded = self._encoded(images, list(filter(None, missing)), names, what)
            for group, absent in zip(groups, missing, strict=True):
                block = next(encoded) if absent else None
                if block and stored and stored.add(block.numbers, block.features):
                    block = block._replace(features=stored.rounded(block.features))
                if len(absent) < len(group):
                    there = self._read(stored, [number for number in group if known[number]])
                    block = merge_blocks(block, there) if block else there
                self._check(block.faults)
                yield block

    def whole(
        self, images, names: Sequence[str], size: int, what: str, shared: bool = False
    ) -> tuple[list[int], Rows, dict[int, str]]:
        """A list as a whole, encoded by blocks of `size`.

        Numbers of the readable images; their features by name, retrieval vectors in main memory;
        and a sentence about each other image, by number. shared: each process of torchrun encodes
        some of the blocks, and all return the same.
        """
        writes = is_main() or not shared
        size = min(gather_objects(size)) if shared else size
        stored = self._open(images, names) if writes else None
        with closing(stored) if stored else nullcontext():
            known = stored.known if stored else np.zeros(len(images), dtype=bool)
            if shared:
                known = from_main(known)
            faults: dict[int, str] = {}
            groups = split_numbers(np.flatnonzero(~known).tolist(), size)
            held: list[Block] = []
            encode = self._encoded_by_all if shared else self._encoded
            for block in encode(images, groups, names, what):
                self._check(block.faults)
                faults |= block.faults
                if writes and not (stored and stored.add(block.numbers, block.features)):
                    held.append(_on_cpu(block))
            readable = [number for number in range(len(images)) if number not in faults]
            rows = _rows(stored, held, readable, names) if writes else {}
            if shared and world_size() > 1:
                rows = self._handed_round(rows, images, readable, names, size)
        return readable, rows, dict(sorted(faults.items()))

    def keep(self, images, names: Sequence[str], size: int, what: str) -> None:
        """Have the store filled with a list: each process of torchrun encodes some of it.

        Nothing is done without a store, or where it cannot be written.
        """
        stored = self._open(images, names) if is_main() else None
        with closing(stored) if stored else nullcontext():
            known = from_main(stored.known if stored else None)
            if known is None:
                return
            groups = split_numbers(np.flatnonzero(~known).tolist(), min(gather_objects(size)))
            for block in self._encoded_by_all(images, groups, names, what):
                self._check(block.faults)
                kept = stored.add(block.numbers, block.features) if stored else None
                if block.numbers and not from_main(kept):
                    return

    def _open(self, images, names: Sequence[str]) -> StoredList | None:
        """The list in the store of its modality, where there is a store."""
        if self.store is None or not len(images):
            return None
        key = self.key(str(images.modality[0]))
        return open_stored_list(self.store, images, names, key, self.types)

    def _read(self, stored: StoredList, numbers: Sequence[int]) -> Block:
        """A block of images that the store knows."""
        features = stored.read(numbers)
        return Block(list(numbers), {n: t.to(self.device) for n, t in features.items()}, {})

    def _encoded(
        self, images, groups: Sequence[Sequence[int]], names: Sequence[str] | None, what: str
    ) -> Iterator[Block]:
        """Groups of images, by their numbers, encoded. names: of the features; None: all."""
        loader = Loader(
            _Levels(images, self.preprocessing),
            self.workers,
            images.name,
            sampler=groups,
            batch_size=None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # leaves the global random numbers to training
        )
        for numbers, levels, faults in progress(loader, len(groups), what):
            features = self._features(levels, str(images.modality[0])) if numbers else {}
            yield Block(numbers, {n: features[n] for n in names or features if features}, faults)

    def _encoded_by_all(
        self, images, groups: Sequence[Sequence[int]], names: Sequence[str], what: str
    ) -> Iterator[Block]:
        """As _encoded(), each process encoding every n-th group; all of them get every block."""
        mine = self._encoded(images, groups[rank() :: world_size()], names, what)
        for _ in range(0, len(groups), world_size()):
            block, about = next(mine, None), None
            if block:
                kinds = {n: (tensor.shape, tensor.dtype) for n, tensor in block.features.items()}
                about = block.numbers, kinds, block.faults
            for source, content in enumerate(gather_objects(about)):
                if content is None:
                    continue
                numbers, kinds, faults = content
                features = {}
                for name, (shape, dtype) in kinds.items():
                    if source == rank():
                        features[name] = block.features[name].contiguous()
                    else:
                        features[name] = torch.empty(shape, dtype=dtype, device=self.device)
                    broadcast(features[name], source)
                yield Block(numbers, features, faults)

    def _handed_round(
        self, rows: Rows, images, readable: list[int], names: Sequence[str], size: int
    ) -> Rows:
        """The rows of the first process, in all: from the store where a process can read it."""
        kinds = {n: (r.shape, r[:1].dtype, isinstance(r, StoredRows)) for n, r in rows.items()}
        kinds = from_main(kinds)
        if any(is_stored for _, _, is_stored in kinds.values()):
            if not is_main():
                stored = self._open(images, names)
                found = stored is not None and bool(stored.known.all())
                rows = _rows(stored, [], readable, names) if found else {}
            if all(gather_objects(bool(rows))):
                return rows
        made = {}
        for name, (shape, dtype, _) in kinds.items():
            made[name] = rows[name] if is_main() else torch.empty(shape, dtype=dtype)
            for first in range(0, len(readable), size):
                block = slice(first, first + size)
                on_device = made[name][block].to(self.device, copy=True)
                broadcast(on_device, 0)
                if not is_main():
                    made[name][block] = on_device.cpu()
        return made

    @torch.no_grad()
    def _features(self, levels: Tensor, modality: str) -> Features:
        """Features of images (B, 3, S, S) uint8 of one modality; retrieval vectors in fp32.

        Raises InputError where these are not finite.
        """
        batch = self.preprocessing.normalise(levels.to(self.device, non_blocking=True))
        with half_where_safe(self.device, self.dtype):
            features = encode_views(self.method, batch, modality, self.views)
        vectors = features["retrieval"].float()
        if not vectors.isfinite().all():
            raise InputError(
                f"the network makes nan or inf of some {modality}s, in {self.dtype}. Take --amp "
                "off; if that was off, the checkpoint is damaged."
            )
        return features | {"retrieval": vectors}

    def _check(self, faults: dict[int, str]) -> None:
        if faults and not self.skip_bad:
            first = next(iter(faults.values()))
            raise InputError(f"{first} Mend the file, or go on without such with --skip_bad.")


class _Levels(Dataset):
    """Groups of a list's images, by their numbers, as a data worker reads them.

    Numbers of the readable ones; their levels as one tensor (B, 3, S, S) uint8; faults of others.
    """

    def __init__(self, images, preprocessing: Preprocessing):
        self.images, self.preprocessing = images, preprocessing

    def __getitem__(self, numbers: Sequence[int]) -> tuple[list[int], Tensor, dict[int, str]]:
        levels, faults = {}, {}
        for number in numbers:
            note(number)
            try:
                levels[number] = self.images.read(number, self.preprocessing.levels)
            except InputError as error:
                faults[number] = str(error)
        note(NOTHING)
        stacked = torch.stack(list(levels.values())) if levels else torch.empty(0)
        return list(levels), stacked, faults


def _on_cpu(block: Block) -> Block:
    return block._replace(features={name: t.cpu() for name, t in block.features.items()})


def _rows(
    stored: StoredList | None, held: list[Block], readable: list[int], names: Sequence[str]
) -> Rows:
    """Features of the readable images: from the store, or where some are held, all in memory."""
    if not readable:
        return {}
    if not held:
        rows = {name: stored.rows(name, readable) for name in names}
        return {n: r[:].float() if n == "retrieval" else r for n, r in rows.items()}
    if len(held) == 1 and not stored:
        return dict(held[0].features)
    there = set().union(*(block.numbers for block in held))
    rest = [number for number in readable if number not in there]
    if rest:
        held = [*held, Block(rest, stored.read(rest), {})]
    places = {number: place for place, number in enumerate(readable)}
    rows: Features = {}
    while held:
        block = held.pop(0)
        at = torch.tensor([places[number] for number in block.numbers])
        for name, part in block.features.items():
            if name not in rows:
                rows[name] = part.new_empty((len(readable), *part.shape[1:]))
            rows[name][at] = part
    return rows
