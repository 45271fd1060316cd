"""Rankings: closest first, and ties in an order that knows only the photos' paths."""

import math
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import ranking as ranking_module
from retrieval.ranking import WORTH_THREADS, Order, Ranking, Reordered, Ties, behind

PATHS = np.array([f"class_{i // 4}/photo {i}.jpg" for i in range(12)], dtype=object)


def ties_of(paths, *identities):
    return Ties(paths, identities, torch.device("cpu"))


def ranking_of(similarity, paths):
    return Order(similarity, ties_of(paths))


def ranked(similarity, paths):
    """The numbers of all photos, closest first."""
    return ranking_of(similarity, paths).best(len(paths)).photos.numpy()


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
    best = ranking_of(similarity, PATHS).best(count)
    np.testing.assert_array_equal(best.photos.numpy(), ranked(similarity, PATHS)[:, :count])
    assert torch.equal(best.scores, similarity.gather(1, best.photos))


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
    chosen = first.best(shortlist).photos
    both = Reordered(first, chosen, fine.gather(1, chosen))
    photos, scores = both.best(12).photos, both.best(12).scores
    ranks = both.ranks(torch.arange(2), torch.arange(12))
    places = ties_of(PATHS).places.tolist()
    for query in range(2):
        order = chosen[query].tolist()
        wanted = sorted(order, key=lambda photo: (-fine[query, photo].item(), places[photo]))
        wanted += ranked(similarity, PATHS)[query, shortlist:].tolist()
        assert photos[query].tolist() == wanted
        assert scores[query, :shortlist].tolist() == fine[query, wanted[:shortlist]].tolist()
        assert both.ranks(torch.tensor([query]), torch.tensor(wanted[2:4]))[0].tolist() == [3, 4]
    assert ranks.tolist() == [list(range(1, 13))] * 2
    for count in (0, 3, 12):
        assert torch.equal(both.best(count).photos, photos[:, :count])


# ---- a ranking as a value


def test_a_ranking_refuses_a_photo_twice():
    scores = torch.zeros(2, 3)
    Ranking(torch.tensor([[0, 1, 2], [2, 0, 1]]), scores)
    with pytest.raises(ValueError, match="lists a photo twice"):
        Ranking(torch.tensor([[0, 1, 2], [2, 0, 2]]), scores)


@settings(deadline=None)
@given(data=st.data(), head=st.integers(1, 6), count=st.integers(0, 12))
def test_behind_a_head_come_the_others_in_their_order(data, head, count):
    """Also where the other ranking lacks some of the head, as an approximate search may."""
    first = torch.tensor([data.draw(st.permutations(range(12)))[:head] for _ in range(2)])
    rest = torch.tensor([data.draw(st.permutations(range(12)))[:count] for _ in range(2)])
    rest = rest.view(2, count)
    scores = torch.arange(2.0 * head).view(2, head)
    both = behind(Ranking(first, scores), Ranking(rest, torch.zeros(rest.shape)), count)
    for query in range(2):
        listed = first[query].tolist()
        wanted = listed + [photo for photo in rest[query].tolist() if photo not in listed]
        assert both.photos[query].tolist() == wanted[:count]
        assert both.scores[query, :head].tolist() == scores[query, :count].tolist()
        assert both.scores[query, head:].isnan().all()


# ---- identical photos


def vectors_with_twins(seed, count=40, different=25):
    """Vectors (count, 8) of which some are identical, and others nearly."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((different, 8), dtype=np.float32)
    vectors = vectors[random.integers(different, size=count)]
    nearly = random.random(count) < 0.3
    vectors[nearly, 0] = np.nextafter(vectors[nearly, 0], np.float32(9))
    return vectors


def test_identical_photos_have_the_first_of_them_as_original():
    vectors = np.array([[1, 2], [3, 4], [1, 2], [4, 3], [1, 2], [2, 1]], dtype=np.float32)
    ties = ties_of(PATHS[:6], vectors)
    first = min((0, 2, 4), key=lambda photo: crc32(PATHS[photo]))
    assert ties.originals.tolist() == [first, 1, first, 3, first, 5]
    assert sorted(ties.copies.tolist()) == sorted({0, 2, 4} - {first})


def test_photos_that_differ_in_one_array_are_not_identical():
    vectors, sums = np.zeros((4, 3), np.float32), np.array([7, 8, 7, 9], np.uint64)
    ties = ties_of(PATHS[:4], vectors, sums)
    assert sorted(map(sorted, _groups(ties.originals.tolist()))) == [[0, 2], [1], [3]]


def _groups(originals):
    groups = {}
    for photo, original in enumerate(originals):
        groups.setdefault(original, []).append(photo)
    return groups.values()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_rankings_do_not_depend_on_blocks_beyond_near_ties(seed):
    """Scores by products of different shapes: identical photos are in path order all the same."""
    vectors = vectors_with_twins(seed)
    paths = np.array([f"photo {i}.jpg" for i in range(len(vectors))], dtype=object)
    ties, photos = ties_of(paths, vectors), torch.from_numpy(vectors)
    random = torch.Generator().manual_seed(seed)
    queries = torch.randn(7, 8, generator=random)
    exact = queries.double() @ photos.double().T
    for size in (1, 2, 3, 7):
        for number, block in zip(range(0, 7, size), queries.split(size), strict=True):
            order = Order(block @ photos.T, ties).best(len(paths)).photos
            for query, row in enumerate(order.tolist()):
                scores = exact[number + query]
                for one, other in pairwise(row):
                    assert scores[one] > scores[other] - 1e-6
                    if (vectors[one] == vectors[other]).all():
                        assert crc32(paths[one]) < crc32(paths[other])
                for members in _groups(ties.originals.tolist()):
                    wanted = sorted(members, key=lambda photo: crc32(paths[photo]))
                    assert [photo for photo in row if photo in members] == wanted


def test_a_product_that_rounds_copies_differently_leaves_them_in_path_order():
    """As an AMD EPYC has done: -0.345032781 for one copy, -0.345032752 for the other."""
    vectors = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    paths = np.array(["b.jpg", "c.jpg", "a.jpg"], dtype=object)
    first = [0, 2] if crc32("b.jpg") < crc32("a.jpg") else [2, 0]
    for scores in ([-0.345032781, 0.0, -0.345032752], [-0.345032752, 0.0, -0.345032781]):
        order = Order(torch.tensor([scores]), ties_of(paths, vectors)).best(3)
        assert order.photos[0].tolist() == [1, *first]
        assert order.scores[0, 1] == order.scores[0, 2]


# ---- sorting by several threads


@pytest.fixture
def pools(monkeypatch):
    """How many threads each sort has taken, where torch has four."""
    made = []
    pool = ranking_module.ThreadPoolExecutor

    def counted(threads):
        made.append(threads)
        return pool(threads)

    monkeypatch.setattr(ranking_module, "ThreadPoolExecutor", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    return made


@pytest.mark.parametrize("rows", [1, 3, 4, 6, 11])  # fewer than threads, and not a multiple
def test_several_threads_sort_as_one_does(pools, rows):
    random = torch.Generator().manual_seed(rows)
    columns = WORTH_THREADS // rows + 1
    keys = torch.randint(-(2**62), 2**62, (rows, columns), generator=random)
    given = keys.clone()
    assert torch.equal(ranking_module._sorted(keys), keys.sort(dim=1).values)
    assert torch.equal(keys, given) and pools == [4]


def test_few_keys_are_not_worth_threads(pools):
    keys = torch.arange(WORTH_THREADS).flip(0).view(10, -1)
    assert torch.equal(ranking_module._sorted(keys), keys.flip(1))
    assert pools == [1]
    more = torch.arange(WORTH_THREADS + 10).flip(0).view(10, -1)
    assert torch.equal(ranking_module._sorted(more), more.flip(1))
    assert pools == [1, 4]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("worth", [WORTH_THREADS, -1])
def test_nothing_is_sorted_to_nothing(pools, monkeypatch, shape, worth):
    monkeypatch.setattr(ranking_module, "WORTH_THREADS", worth)
    assert ranking_module._sorted(torch.empty(shape, dtype=torch.long)).shape == shape
    assert pools == [4 if worth < 0 else 1]


def test_a_large_gallery_is_ranked_by_threads_as_row_by_row(pools):
    paths = np.array([f"photo {i}.jpg" for i in range(20_001)], dtype=object)
    random = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 50, (6, len(paths)), generator=random).float()  # many ties
    photos = torch.arange(0, len(paths), 997)
    together = ranking_of(similarity, paths)
    assert pools == [4]
    for query in range(6):
        alone = ranking_of(similarity[query : query + 1], paths)
        assert pools[-1] == 1
        for part in ("photos", "scores"):
            one, other = (getattr(order.best(300), part) for order in (together, alone))
            assert torch.equal(one[query], other[0])
        ranks = together.ranks(torch.tensor([query]), photos)
        assert torch.equal(ranks, alone.ranks(torch.tensor([0]), photos))


def test_threads_reach_keys_whose_rows_do_not_lie_together(pools):
    keys = torch.randint(0, 2**40, (WORTH_THREADS // 5, 7), generator=torch.Generator()).T
    assert not keys.is_contiguous()
    assert torch.equal(ranking_module._sorted(keys), keys.sort(dim=1).values)
    assert pools == [4]
