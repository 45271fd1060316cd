"""Method + queries + gallery -> metrics, overall and by class."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from retrieval.expansion import expand_gallery, expand_queries
from retrieval.features import Features, encode_blocks
from retrieval.metrics import (
    PUBLISHED_CUT,
    average_precision,
    chance_average_precision,
    chance_precision_at,
    chance_published_precision,
    interpolated_average_precision,
    precision_at,
    published_precision_at,
)
from retrieval.ranking import Ranking, tie_order
from utils.distributed import gather_objects, rank, world_size
from utils.errors import InputError

MODES = ("rn", "sa")
CUTS = (1, 5, 10, 25, 50, 100, 200)  # k of precision@k
KEPT = 200  # photos kept of each ranking

PER_QUERY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "map_all": interpolated_average_precision,
    "map_200": lambda ranks: interpolated_average_precision(ranks, PUBLISHED_CUT),
    "precision_100": lambda ranks: published_precision_at(ranks, 100),
    "precision_200": lambda ranks: published_precision_at(ranks, 200),
    "average_precision": average_precision,
    **{f"precision@{k}": lambda ranks, k=k: precision_at(ranks, k) for k in CUTS},
}
"""Name of a metric -> its value for each query. The first four are the published definitions."""

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
    scores.
    """

    metrics: dict[str, float]
    by_class: dict[str, dict[str, float]]
    chance: dict[str, float]
    queries: object
    gallery: object
    rankings: np.ndarray
    similarities: np.ndarray
    seconds: dict[str, float]
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
    device: torch.device,
    query_block: int,
    gallery_block: int,
    workers: int = 0,
    skip_bad: bool = False,
    shared: bool = False,
) -> Evaluation:
    """Encode each image once, score in blocks, rank, and measure.

    mode: "sa" compares with method.similarity, "rn" scores every pair with method.pair_similarity;
    fuse: to which it adds so many times method.similarity. views: see views.py. expand: with how
    many photos vectors are averaged, see expansion.py.
    queries, gallery: image lists; photos with a query's target are relevant to it. The method is
    put into evaluation mode and left in the mode it was in. Holds the gallery's features in main
    memory (for pairs, all its tokens) and one block of queries. shared: the processes of torchrun
    take every n-th query each, and all return the same.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: choose from {MODES}.")
    pairs = mode == "rn"
    if pairs and method.pair_similarity is None:
        raise InputError(f"{method.name} has no pair scores (-r rn); use -r sa.")
    keep = ("retrieval", "tokens") if pairs else ("retrieval",)
    settings = {"device": device, "workers": workers, "skip_bad": skip_bad, "keep": keep}
    settings["views"] = views
    was_training = method.training
    method.eval()
    try:
        started = time.perf_counter()
        photos, gallery, bad_photos = _encode_gallery(
            method, gallery, preprocessing, size=gallery_block, **settings
        )
        encoded = time.perf_counter()
        scorer = _Scorer(method, gallery, photos, pairs, fuse, expand, device)
        first, step = (rank(), world_size()) if shared else (0, 1)
        share = np.arange(first, len(queries), step)
        bad_sketches = scorer.score_all(queries, share, preprocessing, size=query_block, **settings)
        scored = time.perf_counter()
    finally:
        method.train(was_training)
    parts = [(scorer.scored, bad_photos + bad_sketches)]
    if shared:
        parts = gather_objects(parts[0])
    seconds = {"encode_gallery": encoded - started, "encode_and_score_queries": scored - encoded}
    skipped = dict.fromkeys(fault for _, faults in parts for fault in faults)
    blocks = [block for blocks, _ in parts for block in blocks]
    return _summary(blocks, queries, gallery, seconds, list(skipped))


def _encode_gallery(method, gallery, preprocessing, **settings):
    """Features of all photos by blocks in main memory, the readable photos, what failed."""
    blocks, kept, bad = [], [], []
    for numbers, features, faults in encode_blocks(
        method, gallery, preprocessing, what="photos encoded", **settings
    ):
        bad += faults
        kept += numbers
        if numbers:
            blocks.append({name: tensor.cpu() for name, tensor in features.items()})
    if not blocks:
        raise InputError("the gallery holds no readable photo: nothing can be retrieved.")
    return blocks, gallery.select(np.array(kept, dtype=np.int64)), bad


@dataclass
class _Scored:
    """A block of scored queries: their numbers in the list, metrics, best photos."""

    numbers: np.ndarray
    values: dict[str, np.ndarray]
    rankings: np.ndarray
    similarities: np.ndarray


class _Scorer:
    """Takes sketches block by block, ranks the gallery for them and keeps what was measured."""

    def __init__(self, method, gallery, photos: list[Features], pairs: bool, fuse, expand, device):
        self.method = method
        self.gallery = gallery
        self.device = device
        self.pairs = pairs
        self.fuse = fuse
        self.expand = expand
        if expand:
            self.vectors = torch.cat([block["retrieval"] for block in photos]).to(device)
            self.vectors = expand_gallery(self.vectors, expand)
            parts = self.vectors.cpu().split([len(block["retrieval"]) for block in photos])
            photos = [{**b, "retrieval": part} for b, part in zip(photos, parts, strict=True)]
        if not pairs:  # small: lies on the device as a whole
            names = photos[0].keys()
            photos = [{n: torch.cat([block[n] for block in photos]).to(device) for n in names}]
        self.photos = photos
        self.places = torch.from_numpy(tie_order(gallery.path)).to(device)
        self.photos_of = _by_target(gallery.target)
        self.scored: list[_Scored] = []

    def score_all(self, queries, share: np.ndarray, preprocessing, **settings) -> list[str]:
        """Encode and score the queries whose numbers are in `share`; what could not be read."""
        bad = []
        own = queries.select(share)
        for numbers, features, faults in encode_blocks(
            self.method, own, preprocessing, what="sketches scored", **settings
        ):
            bad += faults
            if numbers:
                self.score(features, own.target[numbers], share[numbers])
        return bad

    def score(self, sketches: Features, targets: np.ndarray, numbers: np.ndarray) -> None:
        """Rank the gallery for a block of sketches, in fp32."""
        if self.expand:
            expanded = expand_queries(sketches["retrieval"], self.vectors, self.expand)
            sketches = {**sketches, "retrieval": expanded}
        columns = []
        for block in self.photos:
            block = {n: tensor.to(self.device, non_blocking=True) for n, tensor in block.items()}
            columns.append(self._compare(sketches, block))
        similarity = torch.cat(columns, dim=1)  # (Q, G)
        ranking = Ranking(similarity, self.places)
        best = ranking.best(KEPT)
        scores = similarity.gather(1, best).cpu().numpy()
        values = self._measure(ranking, targets)
        self.scored.append(_Scored(numbers, values, best.int().cpu().numpy(), scores))

    def _measure(self, ranking: Ranking, targets: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of each query of a block; queries with one target are measured together."""
        values = {name: np.empty(len(targets)) for name in PER_QUERY}
        for target in np.unique(targets):
            asking = np.flatnonzero(targets == target)
            photos = self.photos_of.get(target, np.empty(0, dtype=np.int64))
            ranks = ranking.ranks(torch.from_numpy(asking), torch.from_numpy(photos)).cpu().numpy()
            for name, measure in PER_QUERY.items():
                values[name][asking] = measure(ranks)
        return values

    def _compare(self, sketches: Features, photos: Features) -> Tensor:
        if not self.pairs:
            return self.method.similarity(sketches, photos).float()
        scores = self.method.pair_similarity(sketches, photos).float()
        if self.fuse:
            scores = scores + self.fuse * self.method.similarity(sketches, photos).float()
        return scores


def _by_target(targets: np.ndarray) -> dict[int, np.ndarray]:
    """The numbers of the images with each target."""
    order = targets.argsort(kind="stable")
    different, first = np.unique(targets[order], return_index=True)
    return dict(zip(different.tolist(), np.split(order, first[1:]), strict=True))


def _summary(scored: list[_Scored], queries, gallery, seconds: dict, skipped: list) -> Evaluation:
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
        skipped=skipped,
    )


def _chance(queries, gallery) -> dict[str, float]:
    """Means of what random rankings are expected to reach, over queries with a relevant photo."""
    photos_of = Counter(gallery.target.tolist())
    total = np.array([photos_of[target] for target in queries.target.tolist()])
    values = {name: expected(total, len(gallery)) for name, expected in CHANCE.items()}
    return _means(values, total > 0)


def _means(values: dict[str, np.ndarray], which: np.ndarray) -> dict[str, float]:
    means = {name: float(np.nanmean(column[which])) for name, column in values.items()}
    return {**means, "accuracy@1": means["precision@1"]}
