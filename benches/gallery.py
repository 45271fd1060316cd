"""How fast nearest vectors are found among many, exactly and approximately."""

import statistics
import time
from argparse import Namespace
from functools import partial

import torch

from benches.figures import megabytes
from benches.noise import Vectors
from retrieval.neighbours import KINDS, Index, measured_recall
from retrieval.scoring import ByVectors, Photos
from utils.speed import median_seconds

CLASS, CLUSTER = 1000, 50  # vectors
SPREAD, DECAY = 0.7, 16  # of clusters in a class, beside that of classes; directions


def gallery(args: Namespace, device: torch.device) -> dict:
    """Nearest vectors among many, exact and by IVF: build, size, time, recall."""
    vectors, queries = _clusters(args)
    rows, names = {"retrieval": vectors}, [str(number) for number in range(args.count)]
    photos = Photos(rows, names, device=torch.device("cpu"), block=1)
    figures: dict = {"vectors": args.count, "numbers of a vector": args.width}
    for kind in KINDS:
        started = time.perf_counter()
        index, seconds = Index(vectors, kind, device), []
        built = time.perf_counter() - started
        ranker = ByVectors(Vectors(), photos, index=index)
        for query in ({"retrieval": q} for q in queries[: args.timed].split(1)):
            seconds.append(median_seconds(partial(ranker.rank, query, 10), device, 1))
        figures |= {
            f"{kind}: build, seconds": built,
            f"{kind}: size MB": index.size() / 1e6,
            f"{kind}: ms a query, one at a time": 1e3 * statistics.median(seconds),
            f"{kind}: recall@10 against exact": measured_recall(index, queries, vectors, 10),
        }
    return figures | {"peak memory MB": megabytes(device)}


def _clusters(args: Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors in clusters within classes, as those of photos are, and queries farther from both.

    Directions count the less the later they come, as in features of networks.
    """
    of_class = torch.randn(max(1, args.count // CLASS), args.width)
    clusters = torch.randn(max(1, args.count // CLUSTER), args.width)
    counts = (1 + torch.arange(args.width) / DECAY).rsqrt()  # (D,)

    def around(count: int, spread: float):
        made = torch.empty(count, args.width)
        for block in made.split(65_536):
            number = torch.randint(len(clusters), (len(block),))
            block.copy_(of_class[number % len(of_class)] + SPREAD * clusters[number])
            block.add_(torch.randn(block.shape), alpha=spread).mul_(counts)
        return made

    return around(args.count, SPREAD), around(args.queries, 1.0)
