"""Table of benchmarks and their splits (imports no torch), and how to load one."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets.benchmark import Benchmark

DATASETS = {
    "sketchy_extend": "datasets.zeroshot:load_sketchy",
    "tu_berlin": "datasets.zeroshot:load_tu_berlin",
    "Quickdraw": "datasets.zeroshot:load_quickdraw",
    "synthetic": "datasets.synthetic:load_synthetic",
}
SPLITS = {
    "sketchy_extend": ("test_class_sketchy25", "test_class_sketchy21"),
    "tu_berlin": ("test_class_tuberlin30",),
    "Quickdraw": ("Quickdraw",),
    "synthetic": ("test_class_synthetic10",),
}
"""The splits of each benchmark; the first is its default."""


def load_benchmark(name: str, split: str, root: Path, **settings) -> "Benchmark":
    """The benchmark's lists of images; `settings` as in datasets.layout.load_layout."""
    module, function = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), function)(split, root, **settings)
