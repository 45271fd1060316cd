"""How a block of sketches is compared with the gallery: by vectors, by pairs, or by both."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from retrieval.expansion import expand_gallery, expand_queries
from retrieval.features import Features
from retrieval.ranking import Order, Reordered, tie_order
from utils.errors import InputError

MODES = ("rn", "sa", "rerank")


class Scorer:
    """Ranks a gallery for sketches, in fp32.

    photos: features of the whole gallery, (G, ...), on the CPU; paths: their names, which break
    ties. mode: "sa" compares with method.similarity, "rn" scores every pair with
    method.pair_similarity, "rerank" only the `shortlist` photos of each sketch that "sa" puts
    first. fuse: how many times method.similarity is added to a pair's score. expand: with how many
    photos vectors are averaged, see expansion.py. block: photos scored at a time.
    """

    def __init__(
        self,
        method,
        photos: Features,
        paths: np.ndarray,
        *,
        mode: str,
        fuse: float,
        expand: int,
        shortlist: int,
        block: int,
        device: torch.device,
    ):
        vectors = photos["retrieval"].to(device)
        if expand:
            vectors = expand_gallery(vectors, expand)
        self.method = method
        self.vectors = vectors  # (G, D), small: on the device as a whole
        self.photos = {**photos, "retrieval": vectors}
        self.places = torch.from_numpy(tie_order(paths)).to(device)
        self.mode = mode
        self.fuse = fuse
        self.expand = expand
        self.shortlist = shortlist
        self.block = block
        self.device = device

    def order(self, sketches: Features) -> Order | Reordered:
        """The gallery's order for Q sketches, by what encode() gives of them."""
        if self.mode == "rn":
            return self.order_by_pairs(sketches)
        sketches = self._expanded(sketches)
        coarse = Order(self._similarity(sketches, self.vectors), self.places)
        if self.mode == "sa":
            return coarse
        shortlist, _ = coarse.best(self.shortlist)  # (Q, K)
        scores = [
            self._score_pairs(_only(sketches, query), photos.split(self.block))
            for query, photos in enumerate(shortlist.cpu())
        ]
        return Reordered(coarse, shortlist, torch.cat(scores))

    def order_by_pairs(self, sketches: Features) -> Order:
        """The order by the scores of all pairs."""
        firsts = range(0, len(self.vectors), self.block)
        blocks = [slice(first, first + self.block) for first in firsts]
        return Order(self._score_pairs(self._expanded(sketches), blocks), self.places)

    def _score_pairs(self, sketches: Features, blocks: Iterable[slice | Tensor]) -> Tensor:
        """Scores (Q, R) of the pairs of Q sketches with R photos, whose numbers come in blocks."""
        columns = []
        for numbers in blocks:
            photos = {
                name: tensor[numbers].to(self.device, non_blocking=True).float()
                for name, tensor in self.photos.items()
            }
            scores = self.method.pair_similarity(sketches, photos).float()
            if self.fuse:
                scores = scores + self.fuse * self._similarity(sketches, photos["retrieval"])
            columns.append(scores)
        return torch.cat(columns, dim=1)

    def _similarity(self, sketches: Features, vectors: Tensor) -> Tensor:
        return self.method.similarity(sketches, {"retrieval": vectors}).float()

    def _expanded(self, sketches: Features) -> Features:
        if not self.expand:
            return sketches
        vectors = expand_queries(sketches["retrieval"], self.vectors, self.expand)
        return {**sketches, "retrieval": vectors}


def check_mode(method, mode: str) -> None:
    """InputError where the method cannot compare that way."""
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: choose from {MODES}.")
    if mode != "sa" and method.pair_similarity is None:
        raise InputError(f"{method.name} has no pair scores (-r {mode}); use -r sa.")


def _only(features: Features, number: int) -> Features:
    """The features of one image, as a block of one."""
    return {name: tensor[number : number + 1] for name, tensor in features.items()}
