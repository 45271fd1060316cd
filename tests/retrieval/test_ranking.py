"""Rankings: closest first, and ties in an order that knows only the photos' paths."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.ranking import Order, Reordered, tie_order

PATHS = np.array([f"class_{i // 4}/photo {i}.jpg" for i in range(12)], dtype=object)


def ranking_of(similarity, paths):
    return Order(similarity, torch.from_numpy(tie_order(paths)))


def ranked(similarity, paths):
    """The numbers of all photos, closest first."""
    return ranking_of(similarity, paths).best(len(paths))[0].numpy()


def ranked_paths(similarity, paths):
    return paths[ranked(similarity, paths)]


def crc32(path):
    return zlib.crc32(str(path).encode())


def test_larger_similarity_comes_first():
    similarity = torch.tensor([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]])
    assert ranked(similarity, PATHS[:3]).tolist() == [[1, 2, 0], [0, 2, 1]]


def test_ties_fall_by_crc32_of_the_path():
    ranking = ranked_paths(torch.zeros(1, 12), PATHS)[0]
    assert ranking.tolist() == sorted(PATHS, key=crc32)


def test_paths_of_one_crc32_fall_by_the_path():
    collision = np.array(["plumless", "buckeroo"], dtype=object)
    assert crc32("plumless") == crc32("buckeroo")
    for paths in (collision, collision[::-1]):
        assert ranked_paths(torch.zeros(1, 2), paths)[0].tolist() == ["buckeroo", "plumless"]


def test_ties_are_blind_to_class():
    ranking = ranked_paths(torch.zeros(1, 12), PATHS)[0]
    classes = [path.split("/")[0] for path in ranking]
    assert classes != sorted(classes) and classes != sorted(classes, reverse=True)


@settings(deadline=None)
@given(
    order=st.permutations(range(12)),
    levels=st.lists(st.integers(0, 3), min_size=24, max_size=24),
)
def test_order_of_the_list_changes_nothing(order, levels):
    similarity = torch.tensor(levels, dtype=torch.float32).view(2, 12)  # many ties
    permuted = ranked_paths(similarity[:, order], PATHS[list(order)])
    assert (permuted == ranked_paths(similarity, PATHS)).all()


def test_scores_that_are_not_numbers_come_last():
    similarity = torch.tensor([[math.nan, -1.0, math.inf, -math.inf, 2.0, math.nan]])
    ranking = ranked(similarity, PATHS[:6])[0].tolist()
    assert ranking[:4] == [2, 4, 1, 3]
    assert ranking[4:] == sorted([0, 5], key=lambda i: crc32(PATHS[i]))


def test_an_infinite_score_comes_before_the_largest_finite_one():
    largest = torch.finfo(torch.float32).max
    similarity = torch.tensor([[math.inf, largest], [largest, math.inf]])
    assert ranked(similarity, PATHS[:2]).tolist() == [[0, 1], [1, 0]]


def test_scores_are_left_as_they_are():
    similarity = torch.tensor([[math.nan, 1.0]])
    ranked(similarity, PATHS[:2])
    assert similarity.isnan().tolist() == [[True, False]]


SCORES = st.one_of(
    st.integers(-2, 2).map(float),  # many ties
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]),
)


@settings(deadline=None)
@given(
    scores=st.lists(SCORES, min_size=1, max_size=40),
    names=st.lists(st.text(max_size=8), min_size=40, max_size=40, unique=True),
)
def test_ranking_equals_sorted(scores, names):
    paths = np.array(names[: len(scores)], dtype=object)

    def key(i):
        worst_last = (1, 0) if math.isnan(scores[i]) else (0, -scores[i])
        return (*worst_last, zlib.crc32(paths[i].encode()), paths[i])

    ranking = ranked(torch.tensor([scores], dtype=torch.float32), paths)[0]
    assert ranking.tolist() == sorted(range(len(scores)), key=key)


def test_every_photo_stands_once_in_every_ranking():
    similarity = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).round()
    assert np.sort(ranked(similarity, PATHS), axis=1).tolist() == [list(range(12))] * 5


@pytest.mark.parametrize("gallery", [0, 1])
def test_smallest_galleries(gallery):
    assert ranked(torch.zeros(3, gallery), PATHS[:gallery]).shape == (3, gallery)


@settings(deadline=None)
@given(
    scores=st.lists(SCORES, min_size=1, max_size=40),
    names=st.lists(st.text(max_size=8), min_size=40, max_size=40, unique=True),
    data=st.data(),
)
def test_ranks_are_places_in_the_ranking(scores, names, data):
    paths = np.array(names[: len(scores)], dtype=object)
    similarity = torch.tensor([scores, scores[::-1], scores], dtype=torch.float32)
    photos = data.draw(st.sets(st.integers(0, len(scores) - 1)))
    ranking = ranking_of(similarity, paths)
    found = ranking.ranks(torch.tensor([2, 1]), torch.tensor(sorted(photos), dtype=torch.long))
    for query, got in zip([2, 1], found.tolist(), strict=True):
        whole = ranked(similarity, paths)[query]
        assert got == [place + 1 for place, photo in enumerate(whole) if photo in photos]


@pytest.mark.parametrize("count", [0, 1, 5, 12, 100])
def test_the_best_are_the_beginning_of_the_ranking(count):
    similarity = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).round()
    best, scores = ranking_of(similarity, PATHS).best(count)
    np.testing.assert_array_equal(best.numpy(), ranked(similarity, PATHS)[:, :count])
    assert torch.equal(scores, similarity.gather(1, best))


@settings(deadline=None)
@given(
    levels=st.lists(st.integers(0, 3), min_size=24, max_size=24),
    again=st.lists(st.integers(0, 2), min_size=24, max_size=24),
    shortlist=st.integers(1, 12),
)
def test_reordering_puts_the_first_anew_and_leaves_the_rest(levels, again, shortlist):
    similarity = torch.tensor(levels, dtype=torch.float32).view(2, 12)
    fine = torch.tensor(again, dtype=torch.float32).view(2, 12)
    first = ranking_of(similarity, PATHS)
    chosen, _ = first.best(shortlist)
    both = Reordered(first, chosen, fine.gather(1, chosen))
    photos, scores = both.best(12)
    ranks = both.ranks(torch.arange(2), torch.arange(12))
    places = tie_order(PATHS)
    for query in range(2):
        order = chosen[query].tolist()
        wanted = sorted(order, key=lambda photo: (-fine[query, photo].item(), places[photo]))
        wanted += ranked(similarity, PATHS)[query, shortlist:].tolist()
        assert photos[query].tolist() == wanted
        assert scores[query, :shortlist].tolist() == fine[query, wanted[:shortlist]].tolist()
        assert both.ranks(torch.tensor([query]), torch.tensor(wanted[2:4]))[0].tolist() == [3, 4]
    assert ranks.tolist() == [list(range(1, 13))] * 2
    for count in (0, 3, 12):
        assert torch.equal(both.best(count)[0], photos[:, :count])
