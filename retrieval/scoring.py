"""How sketches are compared with a gallery: by vectors, by pairs, or by pairs of a shortlist.

Three rankers with the same methods: order(sketches), of the whole gallery, and rank(sketches, k).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from model.method import Features, Method
from retrieval.encoder import Rows
from retrieval.expansion import expand_gallery, expand_queries
from retrieval.neighbours import Index
from retrieval.ranking import Order, Ranking, Reordered, Ties, behind, ranked
from utils.checksums import row_sums
from utils.errors import InputError

SHARE_OF_GPU = 0.5  # of its free memory, for the gallery's features


class Photos:
    """The features of a gallery, ready to be compared.

    rows: by name, as Encoder.whole() returns them. paths: of the photos, in the same order. block:
    how many are scored at a time.

    vectors (attribute): the retrieval vectors (G, D), on the device. others: the other features.
    ties_of_vectors: with photos of equal vectors as identical; ties: of all features.
    """

    def __init__(self, rows: Rows, paths: Sequence[str], *, device: torch.device, block: int):
        self.vectors = rows["retrieval"].to(device)
        self.others = {name: others for name, others in rows.items() if name != "retrieval"}
        self.device, self.block = device, block
        vectors = rows["retrieval"].cpu().numpy()
        self.ties_of_vectors = self.ties = Ties(paths, [vectors], device)
        if self.others and len(self.ties.copies):
            self.ties = Ties(paths, [vectors, *map(_sums_of, self.others.values())], device)

    def __len__(self) -> int:
        return len(self.vectors)

    def move_to_gpu(self, dtype: torch.dtype) -> None:
        """Move the other features there in dtype, if the device is a GPU and has room for them."""
        if self.device.type != "cuda" or not all(hasattr(r, "shape") for r in self.others.values()):
            return
        free, _ = torch.cuda.mem_get_info(self.device)
        size = sum(int(np.prod(rows.shape)) for rows in self.others.values()) * dtype.itemsize
        if size <= SHARE_OF_GPU * free:
            self.others = {
                name: _on_device(rows, dtype, self.device, self.block)
                for name, rows in self.others.items()
            }

    def blocks(self, numbers: Tensor) -> Iterator[tuple[slice, Features]]:
        """Blocks of these photos (U,): places in `numbers`; the other features, on the device."""
        places = [slice(i, i + self.block) for i in range(0, len(numbers), self.block)]
        numbers = numbers.cpu()
        parts = ({n: _at(r, numbers[some]) for n, r in self.others.items()} for some in places)
        return zip(places, _copied_ahead(parts, self.device), strict=True)


class ByVectors:
    """Compares retrieval vectors by method.similarity.

    expand: with how many photos vectors are averaged, see expansion.py. index: of the vectors, to
    find the closest without comparing all.
    """

    reads_pairs = False

    def __init__(
        self, method: Method, photos: Photos, *, expand: int = 0, index: Index | None = None
    ):
        self.method, self.expand = method, expand
        self.index = None if expand else index  # averaged vectors are others than the index holds
        self.device, self.ties = photos.device, photos.ties_of_vectors
        self.vectors = photos.vectors  # (G, D)
        if expand:
            self.vectors = self.ties.level(expand_gallery(self.vectors, expand))

    def expanded(self, sketches: Features) -> Features:
        """Sketches, averaged with their nearest photos where that is set."""
        if not self.expand:
            return sketches
        vectors = expand_queries(sketches["retrieval"], self.vectors, self.expand)
        return {**sketches, "retrieval": vectors}

    def similarity(self, sketches: Features, numbers: Tensor | slice = slice(None)) -> Tensor:
        """Of expanded sketches with these photos, (Q, U) in fp32."""
        return self.method.similarity(sketches, {"retrieval": self.vectors[numbers]}).float()

    def order(self, sketches: Features) -> Order:
        """The order of the gallery for Q sketches: features as encode() returns them."""
        return self.order_expanded(self.expanded(sketches))

    def order_expanded(self, sketches: Features) -> Order:
        """The same of expanded sketches."""
        return Order(self.similarity(sketches), self.ties)

    def rank(self, sketches: Features, k: int) -> Ranking:
        """The k closest photos of each sketch."""
        return self.rank_expanded(self.expanded(sketches), k)

    def rank_expanded(self, sketches: Features, k: int) -> Ranking:
        """The same of expanded sketches."""
        found = None
        if self.index:
            found = self.index.closest(
                sketches["retrieval"], k, lambda photos: self._ranked(sketches, photos)
            )
        return found or self.order_expanded(sketches).best(k)

    def _ranked(self, sketches: Features, found: Tensor) -> Ranking:
        """The ranking of photos (Q, K) that were found for expanded sketches."""
        found = found.to(self.device)
        scores = torch.empty(found.shape, device=self.device)
        for query, photos in enumerate(found):
            sketch = {"retrieval": sketches["retrieval"][query : query + 1]}
            numbers, place = self.ties.originals[photos].unique(return_inverse=True)
            scores[query] = self.similarity(sketch, numbers)[0, place]
        return ranked(found, scores, self.ties)


class ByPairs:
    """Scores every pair by method.pair_scorer. What it ranks is fp32 whatever the network runs in.

    fuse: how many times method.similarity is added to a pair's score. expand: see ByVectors. dtype:
    of the pairs' network; compiled: by torch.compile. Raises InputError for a method without pair
    scores.
    """

    reads_pairs = True

    def __init__(
        self,
        method: Method,
        photos: Photos,
        *,
        fuse: float = 0.0,
        expand: int = 0,
        index: Index | None = None,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ):
        check_pairs(method)
        self.by_vectors = ByVectors(method, photos, expand=expand, index=index)
        self.photos, self.fuse, self.dtype = photos, fuse, dtype
        self.score_pairs = method.pair_scorer(dtype, compiled)
        photos.move_to_gpu(dtype)

    def order(self, sketches: Features) -> Order:
        """As ByVectors.order()."""
        return Order(self.scores(self.by_vectors.expanded(sketches)), self.photos.ties)

    def rank(self, sketches: Features, k: int) -> Ranking:
        """As ByVectors.rank()."""
        return self.order(sketches).best(k)

    def scores(self, sketches: Features, shortlist: Tensor | None = None) -> Tensor:
        """Scores of Q expanded sketches with all photos (Q, G), or with those listed (Q, K).

        Blocks of photos take turns, in both cases: what depends on a photo alone is then computed
        once for all the sketches. Of identical photos only the first is scored. Raises InputError
        where a score is nan.
        """
        originals, Q = self.photos.ties.originals, len(sketches["retrieval"])
        listed = originals if shortlist is None else originals[shortlist]
        numbers, column = listed.unique(return_inverse=True)  # (U,), (G,) or (Q, K)
        wanted = None
        if shortlist is not None:
            wanted = torch.zeros(Q, len(numbers), dtype=torch.bool, device=column.device)
            wanted = wanted.scatter_(1, column, True).cpu()
        scores = torch.empty(Q, len(numbers), device=self.photos.device)
        sketches = self.score_pairs.prepare(sketches, "sketch")
        for block, others in self.photos.blocks(numbers):
            photos = others | {"retrieval": self.by_vectors.vectors[numbers[block]]}
            some = None if wanted is None else wanted[:, block]
            scores[:, block] = self._scores_of_block(sketches, photos, some)
        if shortlist is None:
            scores = scores if len(numbers) == len(originals) else scores[:, column]
        else:
            scores = scores.gather(1, column)
        if scores.isnan().any():
            raise InputError(
                f"the network gives some pairs the score nan, in {self.dtype}. Take --amp off; if "
                "that was off, the checkpoint is damaged."
            )
        return scores

    def _scores_of_block(
        self, sketches: Features, photos: Features, wanted: Tensor | None
    ) -> Tensor:
        """Scores (Q, b) of the pairs with a block of photos; nan where they are not wanted."""
        prepared = self.score_pairs.prepare(photos, "photo")
        if wanted is None:
            scores = self.score_pairs(sketches, prepared)
        else:
            scores = torch.full(wanted.shape, torch.nan, device=self.photos.device)
            for query, row in enumerate(wanted):
                some = row.nonzero()[:, 0].to(self.photos.device)
                if len(some):
                    sketch = {n: tensor[query : query + 1] for n, tensor in sketches.items()}
                    listed = {name: tensor[some] for name, tensor in prepared.items()}
                    scores[query, some] = self.score_pairs(sketch, listed)[0]
        if self.fuse:
            scores = (
                scores + self.fuse * self.by_vectors.method.similarity(sketches, photos).float()
            )
        return scores


class Reranked:
    """Puts the `shortlist` photos that ByVectors ranks first into the order of ByPairs.

    The others stay in the order of the vectors. more: see ByPairs.
    """

    reads_pairs = True

    def __init__(self, method: Method, photos: Photos, *, shortlist: int, **more):
        self.by_pairs = ByPairs(method, photos, **more)
        self.by_vectors, self.shortlist = self.by_pairs.by_vectors, shortlist

    def order(self, sketches: Features) -> Reordered:
        """As ByVectors.order()."""
        sketches = self.by_vectors.expanded(sketches)
        first = self.by_vectors.order_expanded(sketches)
        shortlist = first.best(self.shortlist).photos  # (Q, K)
        return Reordered(first, shortlist, self.by_pairs.scores(sketches, shortlist))

    def rank(self, sketches: Features, k: int) -> Ranking:
        """As ByVectors.rank(); scores behind the shortlist are nan."""
        sketches = self.by_vectors.expanded(sketches)
        shortlist = self.by_vectors.rank_expanded(sketches, self.shortlist).photos
        scores = self.by_pairs.scores(sketches, shortlist)
        head = ranked(shortlist, scores, self.by_vectors.ties)
        if k <= shortlist.shape[1]:
            return head.first(k)
        return behind(head, self.by_vectors.rank_expanded(sketches, k), k)


RANKERS = {"sa": ByVectors, "rn": ByPairs, "rerank": Reranked}
"""Rankers by the names that the option -r gives them."""

Ranker = ByVectors | ByPairs | Reranked


def check_pairs(method: Method) -> None:
    """InputError where a method has no pair scores."""
    if method.pair_scorer is None:
        raise InputError(f"{method.name} has no pair scores (-r rn, -r rerank); use -r sa.")


def names_read(method: Method, ranker: type[Ranker]) -> tuple[str, ...]:
    """Names of the features that a ranker reads. InputError where the method lacks them."""
    if not ranker.reads_pairs:
        return ("retrieval",)
    check_pairs(method)
    return ("retrieval", *method.pair_features)


def _sums_of(rows) -> np.ndarray:
    """Checksums of rows: StoredRows know theirs."""
    return rows.sums(slice(None)) if hasattr(rows, "sums") else row_sums(rows.cpu().numpy())


def _on_device(rows, dtype: torch.dtype, device: torch.device, block: int) -> Tensor:
    """All rows there, moved by blocks."""
    moved = torch.empty(rows.shape, dtype=dtype, device=device)
    for first in range(0, len(rows), block):
        moved[first : first + block] = rows[first : first + block].to(device)
    return moved


def _at(rows, numbers: Tensor) -> Tensor:
    """Rows by their numbers, where they lie."""
    return rows[numbers.to(rows.device) if isinstance(rows, Tensor) else numbers]


def _copied_ahead(blocks: Iterable[Features], device: torch.device) -> Iterator[Features]:
    """The blocks on the device; to a GPU each is copied while the one before is used."""
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
