"""Retrieval metrics: ranks of the relevant photos in, numbers out.

Everywhere `ranks` is an array (Q, R) of whole numbers: for each query the ranks of its R relevant
photos, from 1 (closest) on, ascending. The published ZSE-SBIR definitions (Lin et al., CVPR 2023)
differ from the usual ones; both are here. Results are float64 arrays (Q,), nan where R is 0.

The chance_ functions give a metric's exact expectation where G photos are ranked at random, every
order equally likely: total is an array (Q,), how many photos are relevant to each query; photos
is G.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

PUBLISHED_CUT = 200
CUTS = (1, 5, 10, 25, 50, 100, 200)  # k of precision@k


def average_precision(ranks: np.ndarray) -> np.ndarray:
    """Plain AP: the mean of the precision at the ranks of the relevant photos (scikit-learn's)."""
    return _sum_over(_precision(ranks), ranks.shape[1])


def interpolated_average_precision(ranks: np.ndarray, cut: int | None = None) -> np.ndarray:
    """Published AP: precision at a rank is the best precision at that rank or any later one.

    cut: only the first so many photos count, and the divisor is min(cut, R); the published map_all
    has no cut, map_200 cuts at 200.
    """
    precision, total = _precision(ranks), ranks.shape[1]
    if cut is not None:
        precision, total = np.where(ranks <= cut, precision, 0), min(cut, total)
    # Precision only falls from one relevant photo to the next: the best later one is at one.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return _sum_over(best, total)


def published_precision_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Published precision_k: share of relevant photos among the first min(k, R)."""
    first = min(k, ranks.shape[1])
    return _sum_over(ranks <= first, first)


def precision_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Hits among the first k, over k (also where the gallery or the class is smaller)."""
    return _sum_over(ranks <= k, k if ranks.shape[1] else 0)


def chance_average_precision(total: np.ndarray, photos: int) -> np.ndarray:
    """Expected plain AP.

    A relevant photo stands at each rank g with probability 1/G; it is itself one hit among the
    first g, and each of the g - 1 before it is one with probability (R - 1) / (G - 1). The
    interpolated AP has no such sum.
    """
    harmonic = (1 / np.arange(1, photos + 1)).sum()
    others = (total - 1) / max(photos - 1, 1)
    return _or_nan((harmonic + (photos - harmonic) * others) / max(photos, 1), total)


def chance_published_precision(total: np.ndarray, photos: int) -> np.ndarray:
    """Expected published precision_k, the same for every k: the share of relevant photos."""
    return _or_nan(total / max(photos, 1), total)


def chance_precision_at(total: np.ndarray, photos: int, k: int) -> np.ndarray:
    """Expected precision_at."""
    return chance_published_precision(total, photos) * (min(k, photos) / k)


def _precision(ranks: np.ndarray) -> np.ndarray:
    """Share of relevant photos among the first so many, at each relevant photo: (Q, R)."""
    return np.arange(1, ranks.shape[1] + 1) / ranks


def _sum_over(values: np.ndarray, divisor: int) -> np.ndarray:
    """Sums (Q,) of (Q, R), divided; nan where there is nothing to divide by."""
    return values.sum(axis=1) / (divisor or np.nan)


def _or_nan(values: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, values, np.nan)


class Metric(NamedTuple):
    """A metric of each query, and its expectation for a random ranking where that is known exactly.

    of: ranks (Q, R) -> (Q,). chance: how many photos are relevant to each query, and how many there
    are -> (Q,).
    """

    of: Callable[[np.ndarray], np.ndarray]
    chance: Callable[[np.ndarray, int], np.ndarray] | None = None


METRICS: dict[str, Metric] = {
    "map_all": Metric(interpolated_average_precision),
    "map_200": Metric(partial(interpolated_average_precision, cut=PUBLISHED_CUT)),
    "precision_100": Metric(partial(published_precision_at, k=100), chance_published_precision),
    "precision_200": Metric(partial(published_precision_at, k=200), chance_published_precision),
    "average_precision": Metric(average_precision, chance_average_precision),
    **{
        f"precision@{k}": Metric(partial(precision_at, k=k), partial(chance_precision_at, k=k))
        for k in CUTS
    },
}
"""The metrics of an evaluation by name; the first four have the published definitions."""
