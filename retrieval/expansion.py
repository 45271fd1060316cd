"""Average with the nearest photos: what a gallery tells of itself makes every vector steadier.

Database-side augmentation and average query expansion, as in Arandjelović and Zisserman, "Three
things everyone should know to improve object retrieval", CVPR 2012. No label is used, and no query
but the one that is answered.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1024  # vectors compared with the whole gallery at a time


def expand_gallery(photos: Tensor, count: int) -> Tensor:
    """Directions (G, D): each photo's mean with the `count` nearest others. photos: (G, D)."""
    photos = F.normalize(photos, dim=-1)
    return F.normalize(_sum_of_nearest(photos, photos, count + 1), dim=-1)  # nearest is itself


def expand_queries(queries: Tensor, photos: Tensor, count: int) -> Tensor:
    """Directions (Q, D): each query's mean with its `count` nearest photos.

    queries: (Q, D); photos: (G, D), of length 1.
    """
    queries = F.normalize(queries, dim=-1)
    return F.normalize(queries + _sum_of_nearest(queries, photos, count), dim=-1)


def _sum_of_nearest(vectors: Tensor, photos: Tensor, count: int) -> Tensor:
    """The sum (B, D) of the `count` photos (at most all) nearest to each vector."""
    count = min(count, len(photos))
    sums = []
    for block in vectors.split(BLOCK):
        nearest = (block @ photos.T).topk(count, dim=1).indices  # (b, count)
        sums.append(F.embedding_bag(nearest, photos, mode="sum"))
    return torch.cat(sums)
