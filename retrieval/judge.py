"""Sketches, block by block -> the metrics of each, and its best photos."""

import time
from collections.abc import Callable

import numpy as np
import torch

from retrieval.features import Encoder, Features
from retrieval.interrupted import Interrupted, Scored
from retrieval.metrics import (
    PUBLISHED_CUT,
    average_precision,
    interpolated_average_precision,
    precision_at,
    published_precision_at,
)
from retrieval.ranking import Order, Reordered
from retrieval.scoring import Scorer

CUTS = (1, 5, 10, 25, 50, 100, 200)  # k of precision@k
KEPT = 200  # photos kept of each ranking

PER_QUERY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "map_all": interpolated_average_precision,
    "map_200": lambda ranks: interpolated_average_precision(ranks, PUBLISHED_CUT),
    "precision_100": lambda ranks: published_precision_at(ranks, 100),
    "precision_200": lambda ranks: published_precision_at(ranks, 200),
    "average_precision": average_precision,
    **{f"precision@{k}": lambda ranks, k=k: precision_at(ranks, k) for k in CUTS},
}
"""Name of a metric -> its value for each query. The first four are the published definitions."""


class Judge:
    """Takes sketches block by block, has the gallery ranked for them and keeps what it measures."""

    def __init__(
        self,
        scorer: Scorer,
        gallery,
        to_check: np.ndarray,
        interrupted: Interrupted | None = None,
    ):
        self.scorer = scorer
        self.interrupted = interrupted
        self.photos_of = _by_target(gallery.target)
        self.to_check = to_check
        self.scored: list[Scored] = []
        self.settled: dict[str, np.ndarray] = {}
        self.seconds = 0.0  # that scoring took, encoding left aside

    def take_all(self, encoder: Encoder, queries, numbers: np.ndarray, size: int) -> list[str]:
        """Encode and score queries by blocks of `size`; what could not be read.

        numbers: theirs in the whole list, of which they may be a share.
        """
        bad = []
        for read, features, faults in encoder.blocks(queries, size, "sketches scored"):
            bad += faults
            if not read:
                continue
            started = time.perf_counter()
            scored = self.interrupted and self.interrupted.read(numbers[read])
            if not scored:
                scored = self._scored(features, queries.target[read], numbers[read])
                if self.interrupted:
                    self.interrupted.write(scored)
            self.scored.append(self._settled(scored, len(queries)))
            self.seconds += time.perf_counter() - started
        return bad

    def _settled(self, scored: Scored, queries: int) -> Scored:
        """The block with its rankings moved to arrays of all queries.

        Left where they were made they would tear holes between the large tensors of the blocks,
        and memory would grow with every block.
        """
        first = sum(len(block.numbers) for block in self.scored)
        for name in ("rankings", "similarities"):
            rows = getattr(scored, name)
            if name not in self.settled:
                self.settled[name] = np.empty((queries, rows.shape[1]), dtype=rows.dtype)
            place = self.settled[name][first : first + len(rows)]
            place[:] = rows
            setattr(scored, name, place)
        return scored

    def _scored(self, sketches: Features, targets: np.ndarray, numbers: np.ndarray) -> Scored:
        """Measure a block of sketches, and some of it by all pairs."""
        order = self.scorer.order(sketches)
        photos, scores = order.best(KEPT)
        values = self._measure(order, targets)
        checked = np.isin(numbers, self.to_check)
        by_pairs = {}
        if checked.any():
            some = {name: tensor[torch.from_numpy(checked)] for name, tensor in sketches.items()}
            by_pairs = self._measure(self.scorer.order_by_pairs(some), targets[checked])
        best = photos.int().cpu().numpy(), scores.cpu().numpy()
        return Scored(numbers, values, *best, checked, by_pairs)

    def _measure(self, order: Order | Reordered, targets: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of each query of a block; queries with one target are measured together."""
        values = {name: np.empty(len(targets)) for name in PER_QUERY}
        for target in np.unique(targets):
            asking = np.flatnonzero(targets == target)
            photos = self.photos_of.get(target, np.empty(0, dtype=np.int64))
            ranks = order.ranks(torch.from_numpy(asking), torch.from_numpy(photos)).cpu().numpy()
            for name, measure in PER_QUERY.items():
                values[name][asking] = measure(ranks)
        return values


def _by_target(targets: np.ndarray) -> dict[int, np.ndarray]:
    """The numbers of the images with each target."""
    order = targets.argsort(kind="stable")
    different, first = np.unique(targets[order], return_index=True)
    return dict(zip(different.tolist(), np.split(order, first[1:]), strict=True))
