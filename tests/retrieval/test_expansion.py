"""Averaging with the nearest photos: by hand, by the obvious loop, and with few photos."""

import pytest
import torch
from torch.nn import functional as F

from retrieval import expansion
from retrieval.expansion import expand_gallery, expand_queries


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn((count, 5), generator=torch.Generator().manual_seed(seed))


def nearest(vector: torch.Tensor, photos: torch.Tensor, count: int) -> list[int]:
    """Numbers of the photos with the largest cosines, one after the other."""
    cosines = [F.cosine_similarity(vector, photo, dim=0).item() for photo in photos]
    return sorted(range(len(photos)), key=lambda i: -cosines[i])[:count]


def mean_direction(members: list[torch.Tensor]) -> torch.Tensor:
    return F.normalize(sum(F.normalize(v, dim=0) for v in members), dim=0)


def test_by_hand():
    photos = torch.tensor([[2.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    expanded = expand_gallery(photos, 1)
    # The first two are each other's nearest; the third's nearest is the second.
    wanted = F.normalize(torch.tensor([[1.6, 0.8], [1.6, 0.8], [-0.4, 0.8]]), dim=1)
    torch.testing.assert_close(expanded, wanted)
    found = expand_queries(torch.tensor([[0.0, 3.0]]), photos=torch.eye(2), count=1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_as_the_obvious_loop(count, monkeypatch):
    monkeypatch.setattr(expansion, "BLOCK", 4)  # 9 vectors in three blocks
    photos, queries = vectors(9, seed=0), vectors(9, seed=1)
    expanded = expand_gallery(photos, count)
    for photo, got in zip(photos, expanded, strict=True):
        members = [photos[i] for i in nearest(photo, photos, count + 1)]
        torch.testing.assert_close(got, mean_direction(members))
    for query, got in zip(queries, expand_queries(queries, expanded, count), strict=True):
        members = [query, *(expanded[i] for i in nearest(query, expanded, count))]
        torch.testing.assert_close(got, mean_direction(members))


def test_more_neighbours_than_photos_are_all_photos():
    photos = vectors(3, seed=2)
    assert torch.equal(expand_gallery(photos, 50), expand_gallery(photos, 2))
    query = vectors(1, seed=3)
    assert torch.equal(expand_queries(query, photos, 50), expand_queries(query, photos, 3))


def test_a_query_knows_no_other_query():
    photos, queries = expand_gallery(vectors(9, seed=4), 2), vectors(6, seed=5)
    together = expand_queries(queries, photos, 2)
    alone = torch.cat([expand_queries(query[None], photos, 2) for query in queries])
    torch.testing.assert_close(together, alone)


def test_photos_of_two_separate_groups_come_closer_to_their_own():
    middles = torch.eye(5)[:2].repeat_interleave(10, dim=0)
    photos = F.normalize(middles + 0.4 * vectors(20, seed=6), dim=1)
    expanded = expand_gallery(photos, 4)
    assert (expanded * middles).sum(dim=1).mean() > (photos * middles).sum(dim=1).mean()
