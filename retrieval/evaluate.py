"""Method + queries + gallery -> metrics, overall and by class."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from model.method import Features, Method
from retrieval.encoder import Encoder
from retrieval.metrics import METRICS
from retrieval.ranking import Order, Reordered
from retrieval.scores import KEPT, Scores
from retrieval.scoring import Photos, Ranker, Reranked, names_read
from retrieval.store import state_of
from utils.distributed import gather_objects
from utils.errors import InputError
from utils.logs import log
from utils.precision import tf32
from utils.world import is_main, rank, world_size

CHECKED = 20  # sketches whose shortlist is compared with all pairs


@dataclass
class Evaluation:
    """The result of an evaluation.

    metrics: means over queries that have a relevant photo. by_class: the same for each class of the
    queries. chance: the expectation for a random ranking, of the metrics for which it is known.
    queries, gallery: the lists as scored (unreadable images left out). rankings, similarities:
    (Q, min(200, G)), photo numbers in `gallery`, closest first, and their scores. shortlist: of
    some sketches the metrics as "reranked" and by "all_pairs", and how many they are, "queries";
    empty where all pairs are scored anyway. seconds: of the parts. skipped: a sentence about each
    unreadable image.
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
    encoder: Encoder,
    queries,
    gallery,
    ranker: type[Ranker],
    settings: Mapping | None = None,
    *,
    compiled: bool = False,
    query_block: int | None = None,
    gallery_block: int | None = None,
    shared: bool = False,
) -> Evaluation:
    """Encode each image once, rank in blocks, and measure.

    encoder: its store also keeps the scores of pairs until all are there. queries, gallery: image
    lists; photos with a query's target are relevant to it. ranker: in retrieval.scoring.RANKERS;
    settings: its own. compiled: the pairs' network by torch.compile. query_block, gallery_block:
    images at a time; None: see blocks.py. shared: the processes of torchrun each encode and score
    some, and all return the same.

    Holds one block of queries and the gallery's retrieval vectors in main memory; without a store
    also all other features of the gallery. The method is left in the mode it was in.
    """
    settings, names = dict(settings or {}), names_read(encoder.method, ranker)
    if ranker.reads_pairs:
        settings |= {"dtype": encoder.dtype, "compiled": compiled}
    with _in_evaluation_mode(encoder.method), tf32(allowed=False):
        started = time.perf_counter()
        sizes = encoder.block_sizes(photos=len(gallery), pairs=ranker.reads_pairs)
        sizes = query_block or sizes[0], gallery_block or sizes[1]
        log.info("%d sketches and %d photos at a time, in %s", *sizes, encoder.dtype)
        kept, rows, faults = encoder.whole(gallery, names, sizes[1], "photos encoded", shared)
        if not kept:
            raise InputError("the gallery holds no readable photo: nothing can be retrieved.")
        gallery = gallery.select(np.array(kept, dtype=np.int64))
        encoded = time.perf_counter()
        if shared and world_size() > 1:  # the first process keeps those of all
            encoder.keep(queries, names, sizes[0], "sketches encoded")
        photos = Photos(rows, gallery.path, device=encoder.device, block=sizes[1])
        meter = Meter(ranker(encoder.method, photos, **settings), gallery.target)
        first, step = (rank(), world_size()) if shared else (0, 1)
        share = np.arange(first, len(queries), step)
        checked = _checked(ranker, settings, len(queries), len(gallery))
        scores = Scores(queries.select(share), len(gallery), checked[share])
        if encoder.store is not None and ranker.reads_pairs:  # vectors are compared in no time
            key = _key(encoder, ranker, settings, gallery)
            scores.keep_in(encoder.store, key, process=first)
        bad = _score(scores, meter, encoder, names, sizes[0])
        seconds = {
            "encode_gallery": encoded - started,
            "encode_queries": time.perf_counter() - encoded - meter.seconds,
            "score_queries": meter.seconds,
        }
    part = share[scores.done], scores.result(), [*faults.values(), *bad]
    parts = gather_objects(part) if shared else [part]
    if is_main() or not shared:
        scores.remove_kept()
    return _summary(parts, queries, gallery, checked, seconds)


class Meter:
    """Ranks a gallery for blocks of sketches, and measures the rankings.

    targets: of the photos. seconds (attribute): the time of this so far.
    """

    def __init__(self, ranker: Ranker, targets: np.ndarray):
        self.ranker, self.seconds = ranker, 0.0
        order = targets.argsort(kind="stable")
        different, first = np.unique(targets[order], return_index=True)
        self.photos_of = dict(zip(different.tolist(), np.split(order, first[1:]), strict=True))

    def scores(
        self, sketches: Features, targets: np.ndarray, checked: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Scores of a block, as Scores.add() takes them.

        targets: of the sketches. checked: which are also measured by all pairs.
        """
        started = time.perf_counter()
        order = self.ranker.order(sketches)
        best = order.best(KEPT)
        found = {
            "values": self._measure(order, targets),
            "rankings": best.photos.cpu().numpy(),
            "similarities": best.scores.cpu().numpy(),
        }
        if checked is not None and checked.any():
            some = {name: tensor[torch.from_numpy(checked)] for name, tensor in sketches.items()}
            by_pairs = self.ranker.by_pairs.order(some)
            found["all_pairs"] = self._measure(by_pairs, targets[checked])
        self.seconds += time.perf_counter() - started
        return found

    def _measure(self, order: Order | Reordered, targets: np.ndarray) -> np.ndarray:
        """Every metric of each query of a block, (Q, M); queries with one target go together."""
        values = np.empty((len(targets), len(METRICS)))
        for target in np.unique(targets):
            queries = np.flatnonzero(targets == target)
            photos = self.photos_of.get(target, np.empty(0, dtype=np.int64))
            ranks = order.ranks(torch.from_numpy(queries), torch.from_numpy(photos)).cpu().numpy()
            for number, metric in enumerate(METRICS.values()):
                values[queries, number] = metric.of(ranks)
        return values


def _score(
    scores: Scores, meter: Meter, encoder: Encoder, names: Sequence[str], size: int
) -> list[str]:
    """Encode and score the queries without scores, by blocks; what was wrong with the others."""
    numbers, faults = scores.missing(), []
    with closing(scores):
        missing = scores.queries.select(numbers)
        for block in encoder.blocks(missing, names, size, "sketches scored"):
            faults += block.faults.values()
            if block.numbers:
                some = numbers[block.numbers]
                targets, checked = scores.queries.target[some], scores.checked[some]
                scores.add(some, meter.scores(block.features, targets, checked))
    return faults


@contextmanager
def _in_evaluation_mode(method: Method) -> Iterator[None]:
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


def _checked(ranker: type[Ranker], settings: Mapping, queries: int, photos: int) -> np.ndarray:
    """Which queries are also scored by all pairs: some, spread over the list, of a shortlist."""
    checked = np.zeros(queries, dtype=bool)
    if ranker is Reranked and settings["shortlist"] < photos and queries:
        checked[np.linspace(0, queries - 1, CHECKED).astype(np.int64)] = True
    return checked


def _key(encoder: Encoder, ranker: type[Ranker], settings: Mapping, gallery) -> dict:
    """All that scores of pairs depend on besides the query."""
    files = [gallery.file(number) for number in range(len(gallery))]
    content = [list(map(str, gallery.path)), gallery.target.tolist(), list(map(state_of, files))]
    return {
        "weights": encoder.weights,
        "gallery": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "ranker": ranker.__name__,
        "settings": {name: str(value) for name, value in settings.items()},
        "views": encoder.views,
        "precision": encoder.precision,
        "metrics": list(METRICS),
    }


def _summary(
    parts: list[tuple], queries, gallery, checked: np.ndarray, seconds: dict
) -> Evaluation:
    """Means over the queries, of all processes.

    parts: numbers of the scored queries of a process, arrays of their scores, sentences.
    """
    numbers = np.concatenate([part[0] for part in parts])
    if not len(numbers):
        raise InputError("there is no readable sketch to search with.")
    order = numbers.argsort()
    scores = {n: np.concatenate([part[1][n] for part in parts])[order] for n in parts[0][1]}
    queries, checked = queries.select(numbers[order]), checked[numbers[order]]
    found = ~np.isnan(scores["values"][:, 0])  # queries with a relevant photo
    if not found.any():
        raise InputError("no sketch has a photo of its class in the gallery.")
    by_class = {}
    for name in dict.fromkeys(queries.classes()):
        of_class = (queries.class_name == name) & found
        if of_class.any():
            means = _means(scores["values"][of_class])
            by_class[name] = {"queries": int(of_class.sum()), **means}
    shortlist = {}
    if (checked & found).any():
        some = {"reranked": scores["values"], "all_pairs": scores["all_pairs"]}
        shortlist = {name: _means(values[checked & found]) for name, values in some.items()}
        shortlist["queries"] = int((checked & found).sum())
    return Evaluation(
        metrics=_means(scores["values"]),
        by_class=by_class,
        chance=_chance(queries, gallery),
        queries=queries,
        gallery=gallery,
        rankings=scores["rankings"],
        similarities=scores["similarities"],
        seconds={name: round(value, 3) for name, value in seconds.items()},
        shortlist=shortlist,
        skipped=list(dict.fromkeys(text for part in parts for text in part[2])),
    )


def _chance(queries, gallery) -> dict[str, float]:
    """Means of the expectations for random rankings, over queries with a relevant photo."""
    photos_of = Counter(gallery.target.tolist())
    total = np.array([photos_of[target] for target in queries.target.tolist()])
    expected = {n: m.chance(total, len(gallery)) for n, m in METRICS.items() if m.chance}
    means = {name: float(np.nanmean(values[total > 0])) for name, values in expected.items()}
    return {**means, "accuracy@1": means["precision@1"]}


def _means(values: np.ndarray) -> dict[str, float]:
    """Means over queries (Q, M), by the name of the metric; nan: no photo is relevant."""
    columns = np.ascontiguousarray(values.T)
    means = {n: float(np.nanmean(column)) for n, column in zip(METRICS, columns, strict=True)}
    return {**means, "accuracy@1": means["precision@1"]}
