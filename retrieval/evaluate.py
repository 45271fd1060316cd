"""Method + queries + gallery -> metrics, overall and by class."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from retrieval.blocks import block_sizes
from retrieval.features import Encoder
from retrieval.interrupted import Interrupted, Scored
from retrieval.judge import CUTS, PER_QUERY, Judge
from retrieval.metrics import (
    chance_average_precision,
    chance_precision_at,
    chance_published_precision,
)
from retrieval.scoring import Scorer, check_mode
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import InputError
from utils.logs import log
from utils.precision import dtype_of, tf32

CHECKED = 20  # sketches whose shortlist is held against all pairs

CHANCE: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "precision_100": chance_published_precision,
    "precision_200": chance_published_precision,
    "average_precision": chance_average_precision,
    **{
        f"precision@{k}": lambda total, photos, k=k: chance_precision_at(total, photos, k)
        for k in CUTS
    },
}
"""Name of a metric -> what a random ranking is expected to reach, where that is known exactly."""


@dataclass
class Evaluation:
    """What an evaluation found.

    metrics: the means over queries that have a relevant photo. by_class: the same, for each class
    of the queries. chance: what a random ranking is expected to reach; without the interpolated
    map_all and map_200. queries, gallery: the lists as scored (unreadable images left out).
    rankings, similarities: (Q, min(200, G)), photo numbers in `gallery`, closest first, and their
    scores. shortlist: what "rerank" keeps of the result of all pairs, or empty: the metrics of some
    sketches as "reranked", the same of "all_pairs", and how many sketches these are, "queries".
    """

    metrics: dict[str, float]
    by_class: dict[str, dict[str, float]]
    chance: dict[str, float]
    queries: object
    gallery: object
    rankings: np.ndarray
    similarities: np.ndarray
    seconds: dict[str, float]
    shortlist: dict = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@torch.inference_mode()
def evaluate(
    method,
    queries,
    gallery,
    preprocessing: Callable,
    *,
    mode: str,
    fuse: float = 0.0,
    views: str = "plain",
    expand: int = 0,
    shortlist: int = 1000,
    amp: str = "off",
    compiled: bool = False,
    device: torch.device,
    query_block: int | None = None,
    gallery_block: int | None = None,
    workers: int = 0,
    skip_bad: bool = False,
    shared: bool = False,
    cache: Path | None = None,
    precision: str = "fp16",
) -> Evaluation:
    """Encode each image once, score in blocks, rank, and measure.

    mode, fuse, expand, shortlist: see scoring.py. views: see views.py. amp: see precision.py.
    compiled: the pairs' network by torch.compile. queries, gallery: image lists; photos with a
    query's target are relevant to it. The method is put into evaluation mode and left in the mode
    it was in. query_block, gallery_block: images encoded and scored at a time; None: see blocks.py.
    Holds one block of queries, and the gallery's features in main memory (for pairs, all its
    tokens) unless there is a cache: a folder that keeps features, in `precision`, see cache.py, and
    the scores of pairs until all are there, see interrupted.py. shared: the processes of torchrun
    each encode and score some, and all return the same.
    """
    check_mode(method, mode)
    dtype = dtype_of(amp, device)
    encoder = Encoder(
        method,
        preprocessing,
        device=device,
        workers=workers,
        skip_bad=skip_bad,
        keep=("retrieval",) if mode == "sa" else ("retrieval", "tokens"),
        views=views,
        dtype=dtype,
        cache=cache,
        precision=precision,
    )
    first, step = (rank(), world_size()) if shared else (0, 1)
    share = np.arange(first, len(queries), step)
    with _in_evaluation_mode(method), tf32(allowed=False):
        started = time.perf_counter()
        sizes = block_sizes(method, device, dtype, photos=len(gallery), pairs=mode != "sa")
        query_block, gallery_block = query_block or sizes[0], gallery_block or sizes[1]
        log.info("%d sketches and %d photos at a time, in %s", query_block, gallery_block, dtype)
        kept, photos, faults = encoder.whole(gallery, gallery_block, "photos encoded", shared)
        if not kept:
            raise InputError("the gallery holds no readable photo: nothing can be retrieved.")
        gallery = gallery.select(np.array(kept, dtype=np.int64))
        encoded = time.perf_counter()
        scorer = Scorer(
            method,
            photos,
            gallery.path,
            mode=mode,
            fuse=fuse,
            expand=expand,
            shortlist=shortlist,
            block=gallery_block,
            dtype=dtype,
            compiled=compiled,
            device=device,
        )
        interrupted = None
        if cache is not None and mode != "sa":  # vectors are compared in no time
            settings = [mode, fuse, views, expand, shortlist, str(dtype), precision]
            interrupted = Interrupted(cache, encoder.weights, queries, gallery, settings)
        judge = Judge(scorer, gallery, _to_check(mode, shortlist, queries, gallery), interrupted)
        faults += judge.take_all(encoder, queries.select(share), share, query_block)
        seconds = {
            "encode_gallery": encoded - started,
            "encode_queries": time.perf_counter() - encoded - judge.seconds,
            "score_queries": judge.seconds,
        }
    parts = [(judge.scored, faults)]
    if shared:
        parts = gather_objects(parts[0])
    if interrupted and is_main():
        interrupted.remove()
    skipped = dict.fromkeys(fault for _, faults in parts for fault in faults)
    blocks = [block for blocks, _ in parts for block in blocks]
    return _summary(blocks, queries, gallery, seconds, list(skipped))


@contextmanager
def _in_evaluation_mode(method) -> Iterator[None]:
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


def _to_check(mode: str, shortlist: int, queries, gallery) -> np.ndarray:
    """Numbers of the queries whose shortlist is held against all pairs, spread over the list."""
    if mode != "rerank" or shortlist >= len(gallery) or not len(queries):
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(0, len(queries) - 1, CHECKED).astype(np.int64))


def _summary(scored: list[Scored], queries, gallery, seconds: dict, skipped: list) -> Evaluation:
    """Means of what was measured, overall and by class."""
    if not scored:
        raise InputError("there is no readable sketch to ask with.")
    numbers = np.concatenate([block.numbers for block in scored])
    order = numbers.argsort()
    values = {n: np.concatenate([block.values[n] for block in scored])[order] for n in PER_QUERY}
    queries = queries.select(numbers[order])
    if np.isnan(values["map_all"]).all():
        raise InputError("no sketch has a photo of its class in the gallery.")
    by_class = {}
    for name in dict.fromkeys(queries.classes()):
        counted = (queries.class_name == name) & ~np.isnan(values["map_all"])
        if counted.any():
            by_class[name] = {"queries": int(counted.sum()), **_means(values, counted)}
    return Evaluation(
        metrics=_means(values, np.ones(len(queries), dtype=bool)),
        by_class=by_class,
        chance=_chance(queries, gallery),
        queries=queries,
        gallery=gallery,
        rankings=np.concatenate([block.rankings for block in scored])[order],
        similarities=np.concatenate([block.similarities for block in scored])[order],
        seconds={name: round(value, 3) for name, value in seconds.items()},
        shortlist=_compared_with_all_pairs(scored),
        skipped=skipped,
    )


def _compared_with_all_pairs(scored: list[Scored]) -> dict:
    """Evaluation.shortlist."""
    checked = [block for block in scored if block.checked.any()]
    if not checked:
        return {}
    order = np.concatenate([block.numbers[block.checked] for block in checked]).argsort()
    parts = {
        "reranked": {n: [block.values[n][block.checked] for block in checked] for n in PER_QUERY},
        "all_pairs": {n: [block.by_pairs[n] for block in checked] for n in PER_QUERY},
    }
    values = {
        kind: {n: np.concatenate(part)[order] for n, part in columns.items()}
        for kind, columns in parts.items()
    }
    counted = ~np.isnan(values["all_pairs"]["map_all"])
    if not counted.any():
        return {}
    means = {name: _means(columns, counted) for name, columns in values.items()}
    return {"queries": int(counted.sum()), **means}


def _chance(queries, gallery) -> dict[str, float]:
    """Means of what random rankings are expected to reach, over queries with a relevant photo."""
    photos_of = Counter(gallery.target.tolist())
    total = np.array([photos_of[target] for target in queries.target.tolist()])
    values = {name: expected(total, len(gallery)) for name, expected in CHANCE.items()}
    return _means(values, total > 0)


def _means(values: dict[str, np.ndarray], which: np.ndarray) -> dict[str, float]:
    means = {name: float(np.nanmean(column[which])) for name, column in values.items()}
    return {**means, "accuracy@1": means["precision@1"]}
