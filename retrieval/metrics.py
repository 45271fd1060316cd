"""Retrieval metrics: relevance of ranked photos in, numbers out.

Everywhere `relevant` is a bool array (Q, G): photo at rank g (closest first) is relevant to query
q. The published ZSE-SBIR definitions (Lin et al., CVPR 2023) differ from the usual ones; both are
here. Results are float64 arrays (Q,), nan for a query without a relevant photo.

The chance_ functions give a metric's exact expectation where G photos are ranked at random, every
order equally likely: total is an array (Q,), how many photos are relevant to each query; photos
is G.
"""

import numpy as np

PUBLISHED_CUT = 200


def average_precision(relevant: np.ndarray) -> np.ndarray:
    """Plain AP: the mean of the precision at the ranks of the relevant photos (scikit-learn's)."""
    return _mean_at_relevant(relevant, _precision_at_ranks(relevant), relevant.sum(axis=1))


def interpolated_average_precision(relevant: np.ndarray, cut: int | None = None) -> np.ndarray:
    """Published AP: precision at a rank is the best precision at that rank or any later one.

    cut: only the first so many photos count, and the divisor is min(cut, number of relevant ones);
    the published map_all has no cut, map_200 cuts at 200.
    """
    total = relevant.sum(axis=1)
    if cut is not None:
        relevant, total = relevant[:, :cut], np.minimum(total, cut)
    precision = _precision_at_ranks(relevant)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return _mean_at_relevant(relevant, envelope, total)


def published_precision_at(relevant: np.ndarray, k: int) -> np.ndarray:
    """Published precision_k: share of relevant photos among the first min(k, number relevant)."""
    total = relevant.sum(axis=1)
    first = np.minimum(k, total)
    hits = np.pad(relevant.cumsum(axis=1), ((0, 0), (1, 0)))  # among the first 0, 1, 2, ...
    found = hits[np.arange(len(hits)), first]
    return _or_nan(found / np.maximum(first, 1), total)


def precision_at(relevant: np.ndarray, k: int) -> np.ndarray:
    """Hits among the first k, over k (also where the gallery or the class is smaller)."""
    return _or_nan(relevant[:, :k].sum(axis=1) / k, relevant.sum(axis=1))


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


def _precision_at_ranks(relevant: np.ndarray) -> np.ndarray:
    """Share of relevant photos among the first 1, 2, ... photos: (Q, G)."""
    return relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)


def _mean_at_relevant(relevant: np.ndarray, values: np.ndarray, total: np.ndarray) -> np.ndarray:
    return _or_nan((values * relevant).sum(axis=1) / np.maximum(total, 1), total)


def _or_nan(values: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, values, np.nan)
