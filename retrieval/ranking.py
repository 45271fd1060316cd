"""Similarities -> rankings, with ties broken the same way in every run."""

import zlib

import numpy as np
import torch
from torch import Tensor


def tie_order(paths: np.ndarray) -> np.ndarray:
    """Indices of the photos by the crc32 of their path, then by path: the order within a tie.

    It knows nothing of classes; lists, in contrast, are grouped by class.
    """
    names = [str(path).encode(errors="surrogateescape") for path in paths]
    keys = [(zlib.crc32(name), name) for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def rank_photos(similarity: Tensor, order: np.ndarray) -> np.ndarray:
    """Photo numbers (Q, G), closest first. similarity: (Q, G), larger is closer; order: tie_order.

    A score that is not a number comes last.
    """
    order_there = torch.from_numpy(order).to(similarity.device)
    similarity = similarity[:, order_there].nan_to_num(nan=-torch.inf, posinf=torch.inf)
    positions = similarity.argsort(dim=1, descending=True, stable=True)
    return order[positions.cpu().numpy()]
