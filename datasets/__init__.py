"""Table of benchmarks (imports no torch), and how to load one."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.logs import log

if TYPE_CHECKING:
    from datasets.benchmark import Benchmark


class Split(NamedTuple):
    """A split of a benchmark: its title, and how many images of unseen classes it has."""

    title: str
    sketches: int
    photos: int


@dataclass(frozen=True)
class Dataset:
    """What is known of a benchmark without its files.

    loader: "module:name" of a Layout, or of a function with the same arguments. save: the folder
    below ./checkpoints where its runs go. splits: by name (--test_class), the default first.
    """

    loader: str
    save: str
    splits: dict[str, Split]


DATASETS = {
    "sketchy_extend": Dataset(
        "datasets.zeroshot:SKETCHY",
        "sketchy_ext",
        {
            "test_class_sketchy25": Split("Sketchy, 25 unseen", 15_229, 17_101),
            "test_class_sketchy21": Split("Sketchy, 21 unseen", 12_694, 12_553),
        },
    ),
    "tu_berlin": Dataset(
        "datasets.zeroshot:TU_BERLIN",
        "tuberlin_ext",
        {"test_class_tuberlin30": Split("TU-Berlin", 2_400, 27_989)},
    ),
    "Quickdraw": Dataset(
        "datasets.zeroshot:QUICKDRAW",
        "quickdraw_ext",
        {"Quickdraw": Split("QuickDraw", 92_291, 54_151)},
    ),
    "synthetic": Dataset(
        "datasets.synthetic.benchmark:load_synthetic",
        "synthetic",
        {"test_class_synthetic10": Split("built-in benchmark", 400, 400)},
    ),
}
"""Benchmarks by name (--dataset). One row holds all facts about one."""


def load_benchmark(name: str, split: str, root: str | Path, **settings) -> "Benchmark":
    """The lists of images of a benchmark.

    name: in DATASETS. split: one of its splits. root: the folder that holds the benchmark's own
    (--data_path). settings: which parts are wanted, as in datasets.layout.load_layout(). Logs what
    one should know about the data. Raises InputError where the data are absent or do not agree.
    """
    module, loader = DATASETS[name].loader.split(":")
    benchmark = getattr(importlib.import_module(module), loader)(split, Path(root), **settings)
    for note in benchmark.notes:
        log.warning("%s", note)
    if benchmark.skipped:
        log.warning("%d missing files are left out.", len(benchmark.skipped))
    return benchmark
