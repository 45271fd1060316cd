"""Figures that several stages tell."""

import torch

from utils.speed import peak_memory, peak_speed


def peaks_of(device: torch.device, dtype: torch.dtype) -> dict:
    """The speed of products of square matrices in fp32, and in dtype."""
    kinds = dict.fromkeys((torch.float32, dtype))
    return {f"peak GFLOP/s {kind}": peak_speed(device, kind) / 1e9 for kind in kinds}


def megabytes(device: torch.device) -> float:
    """The most memory so far."""
    return peak_memory(device) / 1e6
