"""Similarities -> rankings, with ties broken the same way in every run.

Nobody needs the whole order of a large gallery: metrics need the ranks of the relevant photos,
people the best photos. Both come from one sort of keys, in which no two photos are equal.

Products of matrices round by their shapes. So a score may differ in its last bits with the size
of the blocks, the number of threads and the machine, and photos whose scores lie within 1e-6 may
change places. Photos with identical features never do: they have one score, and stand in the order
of their paths.
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from utils.checksums import row_sums

LOW = 0xFFFFFFFF  # the lower half of a key
WORTH_THREADS = 100_000  # keys


@dataclass(frozen=True)
class Ranking:
    """Photos for each of Q queries, closest first: (Q, K) numbers in the gallery.

    scores: (Q, K) in float32, larger is closer; nan: not scored. Raises ValueError where a photo
    stands twice in a row.
    """

    photos: Tensor
    scores: Tensor

    def __post_init__(self):
        ascending = self.photos.sort(dim=1).values
        if (ascending[:, 1:] == ascending[:, :-1]).any():
            raise ValueError("a ranking lists a photo twice")

    def first(self, count: int) -> "Ranking":
        """Its first `count` photos."""
        return Ranking(self.photos[:, :count], self.scores[:, :count])


class Ties:
    """How photos with equal scores are ordered, and which photos are identical.

    paths: of the photos. identities: arrays (G,) or (G, ...); photos that are equal in all of them
    are identical. device: of the scores.

    places (attribute): of each photo within a tie, (G,): by the crc32 of its path, then by the
    path. That order knows no classes; lists, in contrast, are grouped by class. originals: of each
    photo the first identical one, which is mostly itself, (G,).
    """

    def __init__(
        self, paths: Sequence[str], identities: Sequence[np.ndarray], device: torch.device
    ):
        places = _tie_order(paths)
        self.places = torch.from_numpy(places).to(device)
        self.originals = torch.from_numpy(_first_identical(places, identities)).to(device)

    @cached_property
    def copies(self) -> Tensor:
        """Numbers of the photos that are identical to an earlier one."""
        numbers = torch.arange(len(self.originals), device=self.originals.device)
        return (self.originals != numbers).nonzero()[:, 0]

    def level(self, rows: Tensor) -> Tensor:
        """Give identical photos one row (G, ...), in place. On CPUs numpy is many times faster."""
        originals = self.originals[self.copies]
        if rows.device.type == "cpu":
            array = rows.numpy()
            array[self.copies.numpy()] = array[originals.numpy()]
        else:
            rows[self.copies] = rows[originals]
        return rows


class Order:
    """The order of the gallery for a block of queries.

    similarity: (Q, G) in float32, larger is closer; what is not a number comes last. Holds 20 bytes
    a score.
    """

    def __init__(self, similarity: Tensor, ties: Ties):
        self.similarity = similarity
        ties.level(similarity.T)
        self.ties = ties
        self.keys = _keys(similarity, ties.places)
        self.ascending = _sorted(self.keys)

    def best(self, count: int) -> Ranking:
        """The `count` closest photos, or all where there are fewer."""
        places = self.ties.places
        photo_at = torch.empty_like(places)
        photo_at[places] = torch.arange(len(places), device=places.device)
        last = self.ascending[:, max(0, len(places) - count) :]
        photos = photo_at[LOW - (last.flip(1) & LOW)]
        return Ranking(photos, self.similarity.gather(1, photos))

    def ranks(self, queries: Tensor, photos: Tensor) -> Tensor:
        """Ranks from 1 of some photos for some queries, ascending: (q, R)."""
        wanted = _sorted(self.keys[queries[:, None], photos])  # (q, R)
        ascending = self.ascending[queries]
        farther = torch.searchsorted(ascending, wanted)
        return (ascending.shape[1] - farther).flip(1)


class Reordered:
    """An order whose first K photos were put into a new one; the others stay where they are.

    shortlist: (Q, K), the photos of first.best(K); scores: theirs, larger is closer.
    """

    def __init__(self, first: Order, shortlist: Tensor, scores: Tensor):
        self.first = first
        self.head = ranked(shortlist, scores, first.ties)
        order = _closest_first(scores, first.ties.places[shortlist])
        self.new_place = order.argsort(dim=1)  # (Q, K), of each photo of the shortlist

    def best(self, count: int) -> Ranking:
        """As Order.best(); scores behind the shortlist are nan: they compare with none of its."""
        return behind(self.head, self.first.best(count), count)

    def ranks(self, queries: Tensor, photos: Tensor) -> Tensor:
        """As Order.ranks()."""
        ranks = self.first.ranks(queries, photos)
        K = self.head.photos.shape[1]
        moved = self.new_place[queries].gather(1, ranks.clamp(max=K) - 1) + 1
        return torch.where(ranks <= K, moved, ranks).sort(dim=1).values


def behind(head: Ranking, other: Ranking, count: int) -> Ranking:
    """The first `count` photos: those of a head, then those of another ranking that it lacks.

    The other one, of min(count, G) photos or more, is where the head's photos come from. Scores of
    the latter are nan.
    """
    missing = min(count, other.photos.shape[1]) - head.photos.shape[1]
    if missing <= 0:
        return head.first(count)
    G = 1 + int(torch.maximum(other.photos.max(), head.photos.max()))
    listed = torch.zeros(len(head.photos), G, dtype=torch.bool, device=head.photos.device)
    in_head = listed.scatter_(1, head.photos, True).gather(1, other.photos)  # (Q, K)
    rest = in_head.int().argsort(dim=1, stable=True)[:, :missing]
    photos = torch.cat([head.photos, other.photos.gather(1, rest)], dim=1)
    unscored = head.scores.new_full(rest.shape, torch.nan)
    return Ranking(photos, torch.cat([head.scores, unscored], dim=1))


def ranked(photos: Tensor, scores: Tensor, ties: Ties) -> Ranking:
    """Photos (Q, K) in the order of their scores (Q, K)."""
    order = _closest_first(scores, ties.places[photos])
    return Ranking(photos.gather(1, order), scores.gather(1, order))


def _closest_first(scores: Tensor, places: Tensor) -> Tensor:
    """Columns of scores (Q, K) in the order that ranks them; places: those of each (Q, K)."""
    return _keys(scores, places).argsort(dim=1, descending=True)


def _tie_order(paths: Sequence[str]) -> np.ndarray:
    """Place of each photo within a tie, from 0: by the crc32 of its path, then by the path."""
    names = [str(path).encode(errors="surrogateescape") for path in paths]
    keys = [(zlib.crc32(name), name) for name in names]
    places = np.empty(len(keys), dtype=np.int64)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return places


def _first_identical(places: np.ndarray, identities: Sequence[np.ndarray]) -> np.ndarray:
    """Of each photo the number of the identical one with the lowest place: (G,)."""
    first = np.arange(len(places))
    columns = [np.ascontiguousarray(i).reshape(len(places), -1) for i in identities]
    if not columns or not len(places):
        return first
    sums = sum(row_sums(column) for column in columns)
    _, group, size = np.unique(sums, return_inverse=True, return_counts=True)
    seen: dict[bytes, int] = {}
    candidates = np.flatnonzero(size[group] > 1)
    for number in candidates[places[candidates].argsort()].tolist():
        content = b"".join(column[number].tobytes() for column in columns)
        first[number] = seen.setdefault(content, number)
    return first


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
