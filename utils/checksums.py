"""Checksums of arrays."""

import numpy as np


def row_sums(rows: np.ndarray) -> np.ndarray:
    """A checksum of each row of (n, ...), (n,) uint64: the sum of its words, at memory's speed."""
    if not len(rows):
        return np.zeros(0, dtype=np.uint64)
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    word = next(size for size in (8, 4, 2, 1) if flat.shape[1] % size == 0)
    return flat.view(f"u{word}").sum(axis=1, dtype=np.uint64)
