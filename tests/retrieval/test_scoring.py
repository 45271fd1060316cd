"""Rankers: by vectors, by pairs, and by the pairs of a shortlist; a GPU's memory."""

import numpy as np
import pytest
import torch
from fakes import FakeMethod
from torch._subclasses.fake_tensor import FakeTensorMode

from retrieval.expansion import expand_gallery, expand_queries
from retrieval.ranking import Ties
from retrieval.scoring import (
    RANKERS,
    SHARE_OF_GPU,
    ByPairs,
    ByVectors,
    Photos,
    Reranked,
    names_read,
)
from utils.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
Q, G, K = 6, 23, 4
PATHS = np.array([f"photo/{number}.jpg" for number in range(G)], dtype=object)
PLACES = Ties(PATHS, [], CPU).places.tolist()


def features(count, seed, values=(-2, 3)):
    """Whole numbers, so that sums are exact, and many of them tie."""
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randint(*values, (count, 6), generator=random).float()
    tokens = torch.randint(*values, (count, 2, 3), generator=random).float()
    return {"retrieval": vectors, "tokens": tokens}


@pytest.fixture
def sketches():
    return features(Q, 1)


@pytest.fixture
def photos():
    return features(G, 2)


def photos_of(rows, block=5, device=CPU):
    return Photos(rows, PATHS[: len(rows["retrieval"])], device=device, block=block)


def reranked(method, rows, block=5, shortlist=K, **settings):
    return Reranked(method, photos_of(rows, block), shortlist=shortlist, **settings)


@torch.no_grad()
def slowly(sketches, photos, shortlist, fuse=0.0, expand=0):
    """The ranking and the scores of each sketch, pair by pair; nan behind the shortlist."""
    method, places = FakeMethod(), PLACES
    vectors, compared = sketches["retrieval"], photos["retrieval"]
    if expand:
        compared = expand_gallery(compared, expand)
        vectors = expand_queries(vectors, compared, expand)
    similarity = vectors @ compared.T
    rankings, scores = [], []
    for query, row in enumerate(similarity.tolist()):
        order = sorted(range(len(row)), key=lambda photo: (-row[photo], places[photo]))
        first, rest = order[:shortlist], order[shortlist:]
        score = {}
        for photo in first:
            pair = (
                {"tokens": sketches["tokens"][query, None]},
                {"tokens": photos["tokens"][photo, None]},
            )
            score[photo] = method.pair_similarity(*pair).item() + fuse * row[photo]
        first.sort(key=lambda photo: (-score[photo], places[photo]))
        rankings.append(first + rest)
        scores.append([score.get(photo, np.nan) for photo in rankings[-1]])
    return rankings, scores


def assert_ranked(order, rankings, scores, exact=True):
    """Whole rankings, scores as given, and the ranks of some photos."""
    best = order.best(1000)
    photos, found = best.photos, best.scores
    assert photos.tolist() == rankings
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), scores, rtol=0, atol=0 if exact else 1e-6)
    some = torch.tensor([0, 7, 11])
    expected = [sorted(row.index(photo) + 1 for photo in some) for row in rankings]
    assert order.ranks(torch.arange(len(rankings)), some).tolist() == expected


# ---- a shortlist


@pytest.mark.parametrize("block", [1, 2, 5, 1000])
@pytest.mark.parametrize("shortlist", [1, 4, 22, 23, 1000])
@pytest.mark.parametrize("fuse", [0.0, 0.25])
def test_a_shortlist_is_reordered_as_pair_by_pair(method, sketches, photos, shortlist, block, fuse):
    scorer = reranked(method, photos, block, shortlist, fuse=fuse)
    with torch.no_grad():
        order = scorer.order(sketches)
    assert_ranked(order, *slowly(sketches, photos, shortlist, fuse))
    assert method.pairs == Q * min(shortlist, G)


@pytest.mark.parametrize("expand", [1, 3])
def test_vectors_are_averaged_once_before_all_else(method, sketches, photos, expand):
    scorer = reranked(method, photos, expand=expand, fuse=0.25)
    with torch.no_grad():
        order = scorer.order(sketches)
    assert_ranked(order, *slowly(sketches, photos, K, 0.25, expand), exact=False)


def listed(sketches, photos, shortlist):
    """Numbers of the photos on any shortlist."""
    rankings, _ = slowly(sketches, photos, shortlist)
    return {photo for row in rankings for photo in row[:shortlist]}


@pytest.mark.parametrize("block", [1, 5, 1000])
@pytest.mark.parametrize("shortlist", [1, 2, 4])
def test_a_photo_is_prepared_once_however_many_sketches_list_it(
    method, sketches, photos, shortlist, block
):
    union = listed(sketches, photos, shortlist)
    assert len(union) < min(G, Q * shortlist)  # some are on several lists, some on none
    scorer = reranked(method, photos, block, shortlist)
    seen, prepare = [], scorer.by_pairs.score_pairs.prepare

    def recorded(features, modality):
        if modality == "photo":
            assert 0 < len(features["retrieval"]) <= block
            seen.extend(features["retrieval"].tolist())
        return prepare(features, modality)

    scorer.by_pairs.score_pairs.prepare = recorded
    with torch.no_grad():
        for block_of_sketches in (1, 2):  # once for each
            scorer.order(sketches)
            assert method.prepared == {
                "sketch": block_of_sketches * Q,
                "photo": block_of_sketches * len(union),
            }
    assert seen == 2 * photos["retrieval"][sorted(union)].tolist()


def test_lists_that_hold_all_photos_together_take_turns_too(method, photos):
    sketches = {name: tensor.clone() for name, tensor in photos.items()}
    assert len(listed(sketches, photos, 12)) == G
    with torch.no_grad():
        order = reranked(method, photos, shortlist=12).order(sketches)
    rankings, scores = slowly(sketches, photos, 12)
    assert_ranked(order, rankings, scores)
    assert method.pairs == G * 12 and method.prepared == {"sketch": G, "photo": G}


@pytest.mark.parametrize("shortlist", [1, 4, 1000])
@pytest.mark.parametrize("gallery", [1, 2])
def test_the_smallest_galleries(method, sketches, photos, gallery, shortlist):
    few = {name: tensor[:gallery] for name, tensor in photos.items()}
    with torch.no_grad():
        best = reranked(method, few, shortlist=shortlist).order(sketches).best(1000)
    rankings, expected = slowly(sketches, few, shortlist)
    assert best.photos.tolist() == rankings
    np.testing.assert_array_equal(best.scores.numpy(), expected)


@pytest.mark.parametrize("k", [1, K, K + 1, G, 1000])
@pytest.mark.parametrize("name", list(RANKERS))
def test_rank_is_the_beginning_of_the_order(method, sketches, photos, name, k):
    settings = {"shortlist": K} if name == "rerank" else {}
    ranker = RANKERS[name](method, photos_of(photos), **settings)
    with torch.no_grad():
        ranking, best = ranker.rank(sketches, k), ranker.order(sketches).best(k)
    assert ranking.photos.tolist() == best.photos.tolist()
    np.testing.assert_array_equal(ranking.scores.numpy(), best.scores.numpy())


def test_features_kept_in_halves_are_used_as_they_are(method, sketches, photos):
    halves = {**photos, "tokens": photos["tokens"].half()}
    for ranker, settings in ((ByPairs, {}), (Reranked, {"shortlist": K})):
        with torch.no_grad():
            one, other = (
                ranker(method, photos_of(rows), **settings).rank(sketches, G)
                for rows in (photos, halves)
            )
        np.testing.assert_array_equal(one.photos.numpy(), other.photos.numpy())
        np.testing.assert_array_equal(one.scores.numpy(), other.scores.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_are_scored_in_the_format_and_ranked_in_fp32(method, sketches, photos, dtype):
    finer = {**photos, "tokens": photos["tokens"] * (1 + 2.0**-10)}  # the same in bfloat16
    with torch.no_grad():
        scores = ByPairs(method, photos_of(finer), dtype=dtype).rank(sketches, G).scores
        whole = ByPairs(method, photos_of(photos)).rank(sketches, G).scores
    assert method.scored_in == torch.float32 and scores.dtype == torch.float32
    assert torch.equal(scores, whole) == (dtype == torch.bfloat16)


# ---- all pairs, and vectors


@pytest.mark.parametrize("of_shortlist", [False, True])
@pytest.mark.parametrize("expand", [0, 2])
def test_by_pairs_all_photos_are_scored_whatever_the_shortlist(
    method, sketches, photos, of_shortlist, expand
):
    settings = {"fuse": 0.25, "expand": expand}
    if of_shortlist:
        ranker = reranked(method, photos, **settings).by_pairs
    else:
        ranker = ByPairs(method, photos_of(photos), **settings)
    with torch.no_grad():
        order = ranker.order(sketches)
    assert_ranked(order, *slowly(sketches, photos, G, 0.25, expand), exact=not expand)
    assert method.pairs == Q * G and method.prepared == {"sketch": Q, "photo": G}


def test_vectors_alone_need_no_pairs(method, sketches, photos):
    method.pair_scorer = None
    ranker = ByVectors(method, photos_of({"retrieval": photos["retrieval"]}))
    with torch.no_grad():
        best = ranker.rank({"retrieval": sketches["retrieval"]}, G)
    rankings, _ = slowly(sketches, photos, 0)
    assert best.photos.tolist() == rankings
    similarity = sketches["retrieval"] @ photos["retrieval"].T
    assert torch.equal(best.scores, similarity.gather(1, best.photos))


def test_the_method_learns_whether_to_compile(method, photos):
    given = []
    method.pair_scorer = lambda *arguments: given.append(arguments)
    for compiled in (False, True):
        ByPairs(method, photos_of(photos), dtype=torch.bfloat16, compiled=compiled)
    assert given == [(torch.bfloat16, False), (torch.bfloat16, True)]


# ---- identical photos


@pytest.fixture
def with_copies(photos):
    """Photos 3, 9 and 20 are identical, and 5 and 6; 7 has only the vector of 3."""
    rows = {name: tensor.clone() for name, tensor in photos.items()}
    for name in rows:
        rows[name][9] = rows[name][20] = rows[name][3]
        rows[name][6] = rows[name][5]
    rows["retrieval"][7] = rows["retrieval"][3]
    return rows


@pytest.mark.parametrize("block", [1, 2, 5, 1000])
@pytest.mark.parametrize("fuse", [0.0, 0.25])
@pytest.mark.parametrize("shortlist", [4, 12, G])
def test_identical_photos_are_ranked_as_pair_by_pair(
    method, sketches, with_copies, block, fuse, shortlist
):
    ranker = reranked(method, with_copies, block, shortlist, fuse=fuse)
    with torch.no_grad():
        assert_ranked(ranker.order(sketches), *slowly(sketches, with_copies, shortlist, fuse))
        pairs = method.pairs
        by_pairs = ranker.by_pairs.order(sketches)
    assert_ranked(by_pairs, *slowly(sketches, with_copies, G, fuse))
    assert method.pairs - pairs == Q * (G - 3)  # of identical photos the first alone


class Noisy(FakeMethod):
    """Scores that differ in the last bits wherever a photo stands, as products round."""

    def similarity(self, queries, gallery):
        exact = super().similarity(queries, gallery)
        return exact * (1 + 1e-7 * torch.rand(exact.shape))

    def pair_similarity(self, queries, gallery):
        exact = super().pair_similarity(queries, gallery)
        return exact * (1 + 1e-7 * torch.rand(exact.shape))


@pytest.mark.parametrize("name", list(RANKERS))
@pytest.mark.parametrize("expand", [0, 2])
def test_rounding_never_parts_identical_photos(sketches, with_copies, name, expand):
    settings = {"expand": expand} | ({"shortlist": 12} if name == "rerank" else {})
    with torch.no_grad():
        for block in (1, 3, 1000):
            ranker = RANKERS[name](Noisy().eval(), photos_of(with_copies, block), **settings)
            ranking = ranker.rank(sketches, G)
            for row, scores in zip(ranking.photos.tolist(), ranking.scores, strict=True):
                for copies in ((3, 9, 20), (5, 6)) if name != "sa" else ((3, 7, 9, 20), (5, 6)):
                    places = [row.index(photo) for photo in sorted(copies, key=PLACES.__getitem__)]
                    assert places == sorted(places)
                    scored = scores[places][~scores[places].isnan()]  # nan behind the shortlist
                    assert len(scored.unique()) <= 1


# ---- what cannot be


@pytest.mark.parametrize("name", list(RANKERS))
def test_pairs_need_a_method_that_scores_them(method, photos, name):
    ranker = RANKERS[name]
    wanted = ("retrieval",) if name == "sa" else ("retrieval", "tokens")
    assert names_read(method, ranker) == wanted
    method.pair_scorer = None
    if name == "sa":
        assert names_read(method, ranker) == wanted
        return
    settings = {"shortlist": K} if name == "rerank" else {}
    with pytest.raises(InputError, match="fake has no pair scores"):
        names_read(method, ranker)
    with pytest.raises(InputError, match="fake has no pair scores"):
        ranker(method, photos_of(photos), **settings)


# ---- a GPU


@pytest.fixture
def on_gpu(monkeypatch):
    """Photos on a GPU of so many bytes free, whose tensors have no content, once they are moved."""

    def kept(rows, dtype, free):
        def mem_get_info(device):
            assert device == GPU
            return free, 10 * free

        monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
        photos = photos_of(rows)
        photos.device = GPU
        with FakeTensorMode(allow_non_fake_inputs=True):
            photos.move_to_gpu(dtype)
        return photos

    return kept


NUMBERS = G * 6  # of the tokens


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_gallery_goes_to_a_gpu_that_has_twice_the_room(on_gpu, photos, dtype, size, stored):
    assert SHARE_OF_GPU == 0.5
    rows = {**photos, "tokens": photos["tokens"].to(stored)}
    found = on_gpu(rows, dtype, 2 * NUMBERS * size).others
    assert found.keys() == {"tokens"}
    assert (found["tokens"].device, found["tokens"].dtype) == (GPU, dtype)
    assert found["tokens"].shape == photos["tokens"].shape


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_without_that_room_it_stays_where_it_is(on_gpu, photos, dtype, size):
    found = on_gpu(photos, dtype, 2 * NUMBERS * size - 1).others
    assert found["tokens"] is photos["tokens"]


def test_on_a_cpu_nothing_is_copied(photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("there is no GPU"))
    found = photos_of(photos)
    found.move_to_gpu(torch.bfloat16)
    assert found.others["tokens"] is photos["tokens"]
    assert found.vectors is photos["retrieval"]


@pytest.mark.parametrize("name", list(RANKERS))
def test_only_pairs_bring_the_tokens_to_the_gpu(method, photos, monkeypatch, name):
    moved = []
    monkeypatch.setattr(Photos, "move_to_gpu", lambda photos, dtype: moved.append(dtype))
    settings = {} if name == "sa" else {"dtype": torch.bfloat16}
    settings |= {"shortlist": K} if name == "rerank" else {}
    RANKERS[name](method, photos_of(photos), **settings)
    assert moved == ([] if name == "sa" else [torch.bfloat16])
