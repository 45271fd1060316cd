"""How many processes there are and which one this is, as torchrun says. Imports no torch."""

import os


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0
