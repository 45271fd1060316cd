"""Blocks of images: how many are encoded and scored at a time, and their features."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from model.method import Features
from utils.precision import half_where_safe

ON_CPU = {"vectors": (128, 32), "pairs": (16, 32)}  # sketches, photos: beyond these nothing is won
ON_GPU = {"vectors": (512, 512), "pairs": (256, 256)}
SHARE = 0.2  # of the free memory for the images of a block, and for the scores of one
BYTES_OF_SCORE = 32  # while a sketch's photos are ordered: the score, its key, both sorted
TRIED = 4  # images


class Block(NamedTuple):
    """Some images of a list.

    numbers: of the readable ones. features: theirs, on the device. faults: a sentence about each of
    the others, by number.
    """

    numbers: list[int]
    features: Features
    faults: dict[int, str]


def block_sizes(
    method, device: torch.device, dtype: torch.dtype, photos: int, pairs: bool
) -> tuple[int, int]:
    """How many sketches and how many photos at a time: (sketches, photos).

    On a GPU as many as its free memory allows, up to where more gain nothing: what an image takes
    is measured by encoding a few. On CPUs sizes that suit the caches. photos: in the gallery;
    pairs: whether pairs are scored. The method is in evaluation mode, on the device.
    """
    kind = "pairs" if pairs else "vectors"
    if device.type != "cuda":
        return ON_CPU[kind]
    free, _ = torch.cuda.mem_get_info(device)
    images = max(1, int(SHARE * free / _bytes_of_image(method, device, dtype, pairs)))
    rows = max(1, int(SHARE * free / (BYTES_OF_SCORE * max(1, photos))))
    sketches, at_a_time = ON_GPU[kind]
    return min(sketches, images, rows), min(at_a_time, images)


def split_numbers(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Groups of up to `size` numbers."""
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def merge_blocks(one: Block, other: Block) -> Block:
    """Two blocks of one group, in the order of the numbers."""
    numbers = np.array([*one.numbers, *other.numbers])
    order = numbers.argsort()
    features = {}
    for name in {**one.features, **other.features}:
        parts = [block.features[name] for block in (one, other) if name in block.features]
        features[name] = torch.cat(parts)[torch.from_numpy(order).to(parts[0].device)]
    return Block(numbers[order].tolist(), features, one.faults | other.faults)


def _bytes_of_image(method, device: torch.device, dtype: torch.dtype, pairs: bool) -> float:
    """What encoding one image, and preparing it for pairs, takes at its peak."""
    size = method.inputs["size"]
    images = torch.zeros(TRIED, 3, size, size, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with half_where_safe(device, dtype):
        features = method.encode(images, "photo")
    if pairs:
        method.pair_scorer(dtype).prepare(features, "photo")
    return max(1, torch.cuda.max_memory_allocated(device) - before) / TRIED
