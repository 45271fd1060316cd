"""Sketches against a gallery: a shortlist's pairs by blocks of photos, and a GPU's memory."""

import numpy as np
import pytest
import torch
from fakes import FakeMethod
from torch._subclasses.fake_tensor import FakeTensorMode

from retrieval import scoring as scoring_module
from retrieval.expansion import expand_gallery, expand_queries
from retrieval.ranking import tie_order
from retrieval.scoring import MODES, SHARE_OF_GPU, Scorer, _on_gpu_if_they_fit, check_mode
from utils.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
Q, G, K = 6, 23, 4
PATHS = np.array([f"photo/{number}.jpg" for number in range(G)], dtype=object)


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


def scorer_of(method, photos, mode="rerank", **settings):
    settings = {"fuse": 0.0, "expand": 0, "shortlist": K, "block": 5} | settings
    settings = {"dtype": torch.float32, "compiled": False} | settings
    return Scorer(
        method, photos, PATHS[: len(photos["retrieval"])], mode=mode, device=CPU, **settings
    )


@torch.no_grad()
def slowly(sketches, photos, shortlist, fuse=0.0, expand=0):
    """The ranking and the scores of each sketch, pair by pair; nan behind the shortlist."""
    method, places = FakeMethod(), tie_order(PATHS)
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
    photos, found = order.best(1000)
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
    scorer = scorer_of(method, photos, shortlist=shortlist, block=block, fuse=fuse)
    with torch.no_grad():
        order = scorer.order(sketches)
    assert_ranked(order, *slowly(sketches, photos, shortlist, fuse))
    assert method.pairs == Q * min(shortlist, G)


@pytest.mark.parametrize("expand", [1, 3])
def test_vectors_are_averaged_once_before_all_else(method, sketches, photos, expand):
    scorer = scorer_of(method, photos, expand=expand, fuse=0.25)
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
    scorer = scorer_of(method, photos, shortlist=shortlist, block=block)
    seen, prepare = [], scorer.score_pairs.prepare

    def recorded(features, modality):
        if modality == "photo":
            assert 0 < len(features["retrieval"]) <= block
            seen.extend(features["retrieval"].tolist())
        return prepare(features, modality)

    scorer.score_pairs.prepare = recorded
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
        order = scorer_of(method, photos, shortlist=12).order(sketches)
    rankings, scores = slowly(sketches, photos, 12)
    assert_ranked(order, rankings, scores)
    assert method.pairs == G * 12 and method.prepared == {"sketch": G, "photo": G}


@pytest.mark.parametrize("shortlist", [1, 4, 1000])
@pytest.mark.parametrize("gallery", [1, 2])
def test_the_smallest_galleries(method, sketches, photos, gallery, shortlist):
    few = {name: tensor[:gallery] for name, tensor in photos.items()}
    with torch.no_grad():
        order = scorer_of(method, few, shortlist=shortlist).order(sketches)
    found, scores = order.best(1000)
    rankings, expected = slowly(sketches, few, shortlist)
    assert found.tolist() == rankings
    np.testing.assert_array_equal(scores.numpy(), expected)


def test_features_kept_in_halves_are_taken_as_they_are(method, sketches, photos):
    halves = {**photos, "tokens": photos["tokens"].half()}
    for mode in ("rn", "rerank"):
        with torch.no_grad():
            one, other = (scorer_of(method, p, mode).order(sketches) for p in (photos, halves))
        for found, expected in zip(other.best(G), one.best(G), strict=True):
            np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_are_scored_in_the_format_and_ranked_in_fp32(method, sketches, photos, dtype):
    finer = {**photos, "tokens": photos["tokens"] * (1 + 2.0**-10)}  # the same in bfloat16
    with torch.no_grad():
        scores = scorer_of(method, finer, "rn", dtype=dtype).order(sketches).best(G)[1]
        whole = scorer_of(method, photos, "rn").order(sketches).best(G)[1]
    assert method.scored_in == torch.float32 and scores.dtype == torch.float32
    assert torch.equal(scores, whole) == (dtype == torch.bfloat16)


# ---- all pairs, and vectors


@pytest.mark.parametrize("mode", ["rn", "rerank"])
@pytest.mark.parametrize("expand", [0, 2])
def test_by_pairs_all_photos_are_scored_whatever_the_shortlist(
    method, sketches, photos, mode, expand
):
    scorer = scorer_of(method, photos, mode, fuse=0.25, expand=expand)
    with torch.no_grad():
        order = scorer.order_by_pairs(sketches)
    assert_ranked(order, *slowly(sketches, photos, G, 0.25, expand), exact=not expand)
    assert method.pairs == Q * G and method.prepared == {"sketch": Q, "photo": G}


def test_all_pairs_are_the_order_of_rn(method, sketches, photos):
    with torch.no_grad():
        order = scorer_of(method, photos, "rn").order(sketches)
    assert_ranked(order, *slowly(sketches, photos, G))


def test_vectors_alone_need_no_pairs(method, sketches, photos):
    method.pair_scorer = None
    scorer = scorer_of(method, {"retrieval": photos["retrieval"]}, "sa")
    with torch.no_grad():
        found, scores = scorer.order({"retrieval": sketches["retrieval"]}).best(G)
    rankings, _ = slowly(sketches, photos, 0)
    assert found.tolist() == rankings
    similarity = sketches["retrieval"] @ photos["retrieval"].T
    assert torch.equal(scores, similarity.gather(1, found))


def test_whether_to_compile_is_said_to_the_method(method, photos):
    asked = []
    method.pair_scorer = lambda *arguments: asked.append(arguments)
    for compiled in (False, True):
        scorer_of(method, photos, "rn", dtype=torch.bfloat16, compiled=compiled)
    assert asked == [(torch.bfloat16, False), (torch.bfloat16, True)]


# ---- what cannot be


@pytest.mark.parametrize("mode", ["", "RN", "both"])
def test_an_unknown_mode_is_an_error_that_names_the_others(method, mode):
    with pytest.raises(InputError, match=f"'{mode}'.*rn.*sa.*rerank"):
        check_mode(method, mode)


@pytest.mark.parametrize("mode", MODES)
def test_pairs_need_a_method_that_scores_them(method, mode):
    check_mode(method, mode)
    method.pair_scorer = None
    if mode == "sa":
        check_mode(method, mode)
        return
    with pytest.raises(InputError, match=f"fake has no pair scores .-r {mode}"):
        check_mode(method, mode)


# ---- a GPU


@pytest.fixture
def on_gpu(monkeypatch):
    """_on_gpu_if_they_fit() on a GPU of so many bytes free, whose tensors have no content."""

    def kept(photos, dtype, free):
        def mem_get_info(device):
            assert device == GPU
            return free, 10 * free

        monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
        with FakeTensorMode(allow_non_fake_inputs=True):
            photos = {**photos, "retrieval": photos["retrieval"].to(GPU)}
            return photos, _on_gpu_if_they_fit(photos, dtype, GPU)

    return kept


NUMBERS = 2 * G * 6  # of both features


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_gallery_goes_to_a_gpu_that_has_twice_the_room(on_gpu, photos, dtype, size, stored):
    assert SHARE_OF_GPU == 0.5
    photos = {**photos, "tokens": photos["tokens"].to(stored)}
    photos, found = on_gpu(photos, dtype, 2 * NUMBERS * size)
    assert found.keys() == photos.keys()
    assert (found["tokens"].device, found["tokens"].dtype) == (GPU, dtype)
    assert found["tokens"].shape == photos["tokens"].shape
    assert found["retrieval"] is photos["retrieval"] and found["retrieval"].device == GPU


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_without_that_room_it_stays_where_it_is(on_gpu, photos, dtype, size):
    photos, found = on_gpu(photos, dtype, 2 * NUMBERS * size - 1)
    assert all(found[name] is tensor for name, tensor in photos.items())
    assert found["tokens"].device == CPU


def test_on_a_cpu_nothing_is_copied(photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("there is no GPU"))
    found = _on_gpu_if_they_fit(photos, torch.bfloat16, CPU)
    assert all(found[name] is tensor for name, tensor in photos.items())


@pytest.mark.parametrize("mode", ["rn", "rerank", "sa"])
def test_only_pairs_bring_the_tokens_to_the_gpu(method, photos, monkeypatch, mode):
    asked = []

    def moved(photos, dtype, device):
        asked.append((sorted(photos), dtype, device))
        return photos

    monkeypatch.setattr(scoring_module, "_on_gpu_if_they_fit", moved)
    scorer_of(method, photos, mode, dtype=torch.bfloat16)
    expected = [] if mode == "sa" else [(["retrieval", "tokens"], torch.bfloat16, CPU)]
    assert asked == expected
