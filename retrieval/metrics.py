"""Retrieval metrics: relevance of ranked photos in, numbers out.

Everywhere `relevant` is a bool array (Q, G): photo at rank g (closest first) is relevant to query
q. The published ZSE-SBIR definitions (Lin et al., CVPR 2023) differ from the usual ones; both are
here. Results are float64 arrays (Q,), nan for a query without a relevant photo.
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


def _precision_at_ranks(relevant: np.ndarray) -> np.ndarray:
    """Share of relevant photos among the first 1, 2, ... photos: (Q, G)."""
    return relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)


def _mean_at_relevant(relevant: np.ndarray, values: np.ndarray, total: np.ndarray) -> np.ndarray:
    return _or_nan((values * relevant).sum(axis=1) / np.maximum(total, 1), total)


def _or_nan(values: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, values, np.nan)
