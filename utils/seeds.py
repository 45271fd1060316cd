"""One seed for python, numpy and torch, and one for each step."""

import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the global generators, each rank differently (dropout must differ between ranks)."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def seed_step(*numbers: int) -> None:
    """Seed torch, from which dropout draws. numbers: name one step; no two steps have the same.

    The random numbers of a step then depend on nothing before it: neither on other steps nor on
    validation nor on interruptions.
    """
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(seed >> np.uint64(1)))
