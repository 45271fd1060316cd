"""How a block of sketches is compared with the gallery: by vectors, by pairs, or by both."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from retrieval.expansion import expand_gallery, expand_queries
from retrieval.features import Features
from retrieval.ranking import Order, Reordered, tie_order
from utils.errors import InputError

MODES = ("rn", "sa", "rerank")
SHARE_OF_GPU = 0.5  # of its free memory, for the gallery's features


class Scorer:
    """Ranks a gallery for sketches. Whatever the network runs in, it ranks numbers in fp32.

    photos: features of the whole gallery, (G, ...), on the CPU; tokens: from numbers of photos to
    those of their features that are not in `photos`; paths: their names, which break ties. mode:
    "sa" compares with method.similarity, "rn" scores every pair with method.pair_scorer, "rerank"
    only the `shortlist` photos of each sketch that "sa" puts first. nearest: from sketches to their
    order in "sa", where not every photo is to be compared.
    fuse: how many times method.similarity is added to a pair's score. expand: with how many photos
    vectors are averaged, see expansion.py. block: photos scored at a time. dtype: of the pairs'
    network; compiled: by torch.compile.
    """

    def __init__(
        self,
        method,
        photos: Features,
        paths: np.ndarray,
        *,
        mode: str,
        fuse: float,
        expand: int,
        shortlist: int,
        block: int,
        dtype: torch.dtype,
        compiled: bool,
        device: torch.device,
        tokens: Callable[[Tensor], Features] | None = None,
        nearest: Callable[[Features], Order] | None = None,
    ):
        vectors = photos["retrieval"].to(device)
        if expand:
            vectors = expand_gallery(vectors, expand)
        self.method = method
        self.vectors = vectors  # (G, D), small: on the device as a whole
        self.photos = {**photos, "retrieval": vectors}
        self.places = torch.from_numpy(tie_order(paths)).to(device)
        self.mode = mode
        self.fuse = fuse
        self.expand = expand
        self.shortlist = shortlist
        self.block = block
        self.device = device
        self.tokens = tokens
        self.nearest = nearest or self._order_by_vectors
        self.score_pairs = None
        if mode != "sa":
            self.score_pairs = method.pair_scorer(dtype, compiled)
            self.photos = _on_gpu_if_they_fit(self.photos, dtype, device)

    def order(self, sketches: Features) -> Order | Reordered:
        """The gallery's order for Q sketches, by what encode() gives of them."""
        if self.mode == "rn":
            return self.order_by_pairs(sketches)
        sketches = self._expanded(sketches)
        coarse = self.nearest(sketches)
        if self.mode == "sa":
            return coarse
        shortlist, _ = coarse.best(self.shortlist)  # (Q, K)
        return Reordered(coarse, shortlist, self._scores(sketches, shortlist))

    def order_by_pairs(self, sketches: Features) -> Order:
        """The order by the scores of all pairs."""
        return Order(self._scores(self._expanded(sketches)), self.places)

    def _order_by_vectors(self, sketches: Features) -> Order:
        return Order(self._similarity(sketches, self.vectors), self.places)

    def _scores(self, sketches: Features, shortlist: Tensor | None = None) -> Tensor:
        """Scores of the pairs of Q sketches with all photos (Q, G), or with those listed (Q, K).

        Blocks of photos take turns, in both cases: what depends on a photo alone is then computed
        once for all the sketches.
        """
        numbers, wanted, Q = torch.arange(len(self.vectors)), None, len(sketches["retrieval"])
        if shortlist is not None:
            numbers, column = shortlist.cpu().unique(return_inverse=True)  # (U,), (Q, K)
            wanted = torch.zeros(Q, len(numbers), dtype=torch.bool).scatter_(1, column, True)
        scores = torch.empty(Q, len(numbers), device=self.device)
        sketches = self.score_pairs.prepare(sketches, "sketch")
        first = 0
        for photos in self._photos(numbers):
            block = slice(first, first + len(photos["retrieval"]))
            some = None if wanted is None else wanted[:, block]
            scores[:, block] = self._scores_of_block(sketches, photos, some)
            first = block.stop
        if shortlist is None:
            return scores
        return scores.gather(1, column.to(self.device))

    def _scores_of_block(
        self, sketches: Features, photos: Features, wanted: Tensor | None
    ) -> Tensor:
        """Scores (Q, b) of the pairs with a block of photos; nan where they are not wanted."""
        prepared = self.score_pairs.prepare(photos, "photo")
        if wanted is None:
            scores = self.score_pairs(sketches, prepared)
        else:
            scores = torch.full(wanted.shape, torch.nan, device=self.device)
            for query, row in enumerate(wanted):
                some = row.nonzero()[:, 0].to(self.device)
                if len(some):
                    sketch = {n: tensor[query : query + 1] for n, tensor in sketches.items()}
                    listed = {name: tensor[some] for name, tensor in prepared.items()}
                    scores[query, some] = self.score_pairs(sketch, listed)[0]
        if self.fuse:
            scores = scores + self.fuse * self._similarity(sketches, photos["retrieval"])
        return scores

    def _photos(self, numbers: Tensor) -> Iterator[Features]:
        """Features of these photos (U,), by blocks, on the device."""
        whole = len(numbers) == len(self.vectors)
        firsts = range(0, len(numbers), self.block)
        blocks = [
            slice(f, f + self.block) if whole else numbers[f : f + self.block] for f in firsts
        ]
        return _copied_ahead(map(self._rows, blocks), self.device)

    def _rows(self, block: slice | Tensor) -> Features:
        """Features of a block of photos, where they are kept."""
        rows = {name: tensor[_at(tensor, block)] for name, tensor in self.photos.items()}
        if self.tokens:
            rows |= self.tokens(torch.arange(len(self.vectors))[block])
        return rows

    def _similarity(self, sketches: Features, vectors: Tensor) -> Tensor:
        return self.method.similarity(sketches, {"retrieval": vectors}).float()

    def _expanded(self, sketches: Features) -> Features:
        if not self.expand:
            return sketches
        vectors = expand_queries(sketches["retrieval"], self.vectors, self.expand)
        return {**sketches, "retrieval": vectors}


def check_mode(method, mode: str) -> None:
    """InputError where the method cannot compare that way."""
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: choose from {MODES}.")
    if mode != "sa" and method.pair_scorer is None:
        raise InputError(f"{method.name} has no pair scores (-r {mode}); use -r sa.")


def _on_gpu_if_they_fit(photos: Features, dtype: torch.dtype, device: torch.device) -> Features:
    """The gallery's features on the device, its tokens in dtype; on a GPU too small as they are."""
    if device.type != "cuda":
        return photos
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(tensor.numel() for tensor in photos.values()) * dtype.itemsize
    if size > SHARE_OF_GPU * free:
        return photos
    return {
        name: tensor if name == "retrieval" else tensor.to(device, dtype)
        for name, tensor in photos.items()
    }


def _copied_ahead(blocks: Iterable[Features], device: torch.device) -> Iterator[Features]:
    """The blocks on the device; to a GPU each is copied while the one before is worked on."""
    if device.type != "cuda":
        yield from blocks
        return
    copies, now = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for block in blocks:
        with torch.cuda.stream(copies):
            copied = {name: _to_gpu(tensor, device) for name, tensor in block.items()}
        now.wait_stream(copies)
        for tensor in copied.values():
            tensor.record_stream(now)
        yield copied


def _to_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """Copied from pinned memory, so that the program need not wait for it."""
    if tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _at(tensor: Tensor, numbers: slice | Tensor) -> slice | Tensor:
    """Numbers of rows as the tensor's device takes them."""
    return numbers if isinstance(numbers, slice) else numbers.to(tensor.device)
