"""Similarities -> who comes first, with ties broken the same way in every run.

Nobody needs the whole order of a large gallery: metrics need the ranks of the relevant photos,
people the best photos. Both come from one sort of keys, in which no two photos are equal.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

LOW = 0xFFFFFFFF  # the lower half of a key
WORTH_THREADS = 100_000  # keys


def tie_order(paths: np.ndarray) -> np.ndarray:
    """Place of each photo within a tie: by the crc32 of its path, then by the path; from 0.

    It knows nothing of classes; lists, in contrast, are grouped by class.
    """
    names = [str(path).encode(errors="surrogateescape") for path in paths]
    keys = [(zlib.crc32(name), name) for name in names]
    places = np.empty(len(keys), dtype=np.int64)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return places


class Order:
    """The order of the gallery for a block of queries.

    similarity: (Q, G) in float32, larger is closer; what is not a number comes last. places:
    tie_order of the gallery, on the same device. Holds 20 bytes a score.
    """

    def __init__(self, similarity: Tensor, places: Tensor):
        self.similarity = similarity
        self.places = places
        self.keys = _keys(similarity, places)
        self.ascending = _sorted(self.keys)

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """Numbers of the closest photos, closest first, and their scores: (Q, min(count, G))."""
        photo_at = torch.empty_like(self.places)
        photo_at[self.places] = torch.arange(len(self.places), device=self.places.device)
        last = self.ascending[:, max(0, len(self.places) - count) :]
        photos = photo_at[LOW - (last.flip(1) & LOW)]
        return photos, self.similarity.gather(1, photos)

    def ranks(self, queries: Tensor, photos: Tensor) -> Tensor:
        """Ranks from 1 of some photos for some queries, ascending: (q, R)."""
        wanted = _sorted(self.keys[queries[:, None], photos])  # (q, R)
        ascending = self.ascending[queries]
        farther = torch.searchsorted(ascending, wanted)
        return (ascending.shape[1] - farther).flip(1)


class Reordered:
    """A ranking whose first K photos were put into a new order; the others stay where they are.

    shortlist: (Q, K), the numbers that first.best(K) gives; scores: theirs, larger is closer.
    """

    def __init__(self, first: Order, shortlist: Tensor, scores: Tensor):
        self.first = first
        order = closest_first(scores, first.places[shortlist])
        self.shortlist, self.scores = shortlist.gather(1, order), scores.gather(1, order)
        self.new_place = order.argsort(dim=1)  # (Q, K), of what was there in the first ranking

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """As Order.best(); scores are nan behind the shortlist: none there compare with these."""
        photos, scores = self.first.best(count)
        K = min(count, self.shortlist.shape[1])
        photos[:, :K] = self.shortlist[:, :K]
        scores[:, :K] = self.scores[:, :K]
        scores[:, K:] = torch.nan
        return photos, scores

    def ranks(self, queries: Tensor, photos: Tensor) -> Tensor:
        """As Order.ranks()."""
        ranks = self.first.ranks(queries, photos)
        K = self.shortlist.shape[1]
        moved = self.new_place[queries].gather(1, ranks.clamp(max=K) - 1) + 1
        return torch.where(ranks <= K, moved, ranks).sort(dim=1).values


def closest_first(scores: Tensor, places: Tensor) -> Tensor:
    """Columns of scores (Q, K) in the order that ranks them; places: tie_order of each (Q, K)."""
    return _keys(scores, places).argsort(dim=1, descending=True)


def _keys(similarity: Tensor, places: Tensor) -> Tensor:
    """Whole numbers in the order of the scores, then against that of the places: (Q, G)."""
    scores = similarity.nan_to_num(nan=-torch.inf, posinf=torch.inf).add_(0.0)  # -0.0 is 0.0
    bits = scores.view(torch.int32)
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)  # negative ones turned round
    return ordered.long().bitwise_left_shift_(32).bitwise_or_(LOW - places)


def _sorted(keys: Tensor) -> Tensor:
    """The rows of (Q, G), each ascending. On CPUs numpy is several times faster than torch."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    rows = keys.numpy().copy()
    threads = torch.get_num_threads() if rows.size > WORTH_THREADS else 1
    with ThreadPoolExecutor(threads) as pool:  # numpy sorts each share without the interpreter
        list(pool.map(lambda share: share.sort(axis=1), np.array_split(rows, threads)))
    return torch.from_numpy(rows)
