"""Evaluation: every image encoded once, blocks that change nothing, and what is left out."""

import contextlib

import numpy as np
import pytest
import torch
from fakes import encoder_and_settings, image_list, picture

from retrieval import evaluate as evaluate_module
from retrieval.evaluate import CHECKED, evaluate
from retrieval.expansion import expand_gallery, expand_queries
from retrieval.metrics import METRICS, interpolated_average_precision
from retrieval.scores import KEPT
from retrieval.scoring import RANKERS
from utils.errors import InputError

CPU = torch.device("cpu")
MODES = tuple(RANKERS)
QUERY_TARGETS = [0, 1, 2, 0, 1, 2, 2]
GALLERY_TARGETS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def score(method, queries, gallery, mode="sa", query_block=4, gallery_block=5, **settings):
    names = {"sa": ["expand"], "rn": ["fuse", "expand"], "rerank": ["fuse", "expand", "shortlist"]}
    own = {"shortlist": 1000} if mode == "rerank" else {}
    own |= {name: settings.pop(name) for name in names[mode] if name in settings}
    settings.pop("shortlist", None)
    blocks = {"query_block": query_block, "gallery_block": gallery_block}
    encoder, settings = encoder_and_settings(method, settings | blocks)
    return evaluate(encoder, queries, gallery, RANKERS[mode], own, **settings)


@pytest.fixture
def queries():
    return image_list("sketch", QUERY_TARGETS)


@pytest.fixture
def gallery():
    return image_list("photo", GALLERY_TARGETS)


@pytest.mark.parametrize("mode", MODES)
def test_every_image_is_encoded_once(method, queries, gallery, mode):
    score(method, queries, gallery, mode, query_block=2, gallery_block=3)
    assert method.encoded == {"sketch": list(range(7)), "photo": list(range(13))}
    assert method.pairs == (0 if mode == "sa" else 7 * 13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("query_block", "gallery_block"), [(1, 1), (3, 3), (1, 1000), (3, 1)])
def test_blocks_of_any_size_give_what_one_block_gives(
    method, queries, gallery, mode, query_block, gallery_block
):
    full = score(method, queries, gallery, mode, 1000, 1000)
    blocked = score(method, queries, gallery, mode, query_block, gallery_block)
    assert blocked.metrics == full.metrics and blocked.by_class == full.by_class
    np.testing.assert_array_equal(blocked.rankings, full.rankings)
    np.testing.assert_array_equal(blocked.similarities, full.similarities)


@pytest.mark.parametrize("mode", MODES)
def test_rankings_metrics_and_scores_are_those_of_the_whole_matrix(method, queries, gallery, mode):
    evaluation = score(method, queries, gallery, mode)
    sketches, photos = (
        method.encode(
            torch.stack([picture(images.file(i), "") for i in range(len(images))]), modality
        )
        for images, modality in ((queries, "sketch"), (gallery, "photo"))
    )
    compare = method.similarity if mode == "sa" else method.pair_similarity
    with torch.no_grad():
        matrix = compare(sketches, photos).numpy()
    found = np.take_along_axis(matrix, evaluation.rankings, axis=1)
    np.testing.assert_array_equal(found, evaluation.similarities)
    assert (np.diff(found, axis=1) <= 0).all()
    relevant = gallery.target[evaluation.rankings] == queries.target[:, None]
    expected = [interpolated_average_precision(np.flatnonzero(row)[None] + 1) for row in relevant]
    assert evaluation.metrics["map_all"] == pytest.approx(np.mean(expected))


def test_modes_rank_differently(method, queries, gallery):
    by_pair, by_token, both = (
        score(method, queries, gallery, mode, shortlist=5).metrics["map_all"]
        for mode in ("rn", "sa", "rerank")
    )
    assert len({by_pair, by_token, both}) == 3


def test_order_of_the_gallery_list_changes_nothing(method, queries, gallery):
    one = score(method, queries, gallery, "rn")
    shuffled = gallery.select(np.random.default_rng(0).permutation(len(gallery)))
    other = score(method, queries, shuffled, "rn")
    assert one.metrics == other.metrics
    np.testing.assert_array_equal(gallery.path[one.rankings], shuffled.path[other.rankings])


def test_all_metrics_are_there(method, queries, gallery):
    metrics = score(method, queries, gallery).metrics
    assert set(metrics) == {*METRICS, "accuracy@1"}
    assert metrics["accuracy@1"] == metrics["precision@1"]
    assert all(0 <= value <= 1 for value in metrics.values())


def test_a_method_that_knows_the_class_scores_one(method, queries, gallery):
    def similarity(queries, gallery):
        wanted, there = torch.tensor(QUERY_TARGETS), torch.tensor(GALLERY_TARGETS)
        return (wanted[:, None] == there).float()

    method.similarity = similarity
    evaluation = score(method, queries, gallery, query_block=7)
    for name in ("map_all", "map_200", "precision_100", "average_precision", "accuracy@1"):
        assert evaluation.metrics[name] == 1


def test_chance_is_there_for_the_metrics_that_have_an_expectation(method, queries, gallery):
    evaluation = score(method, queries, gallery)
    assert set(evaluation.metrics) - set(evaluation.chance) == {"map_all", "map_200"}
    assert set(evaluation.chance) < set(evaluation.metrics)
    # two sketches with 4 photos each, two with 3, three with 4, of 13 photos
    relevant = np.array([4, 4, 3, 3, 4, 4, 4])
    assert evaluation.chance["accuracy@1"] == pytest.approx(relevant.mean() / 13)
    assert evaluation.chance["precision_100"] == pytest.approx(relevant.mean() / 13)
    assert evaluation.chance["precision_200"] == pytest.approx(relevant.mean() / 13)
    assert evaluation.chance["precision@25"] == pytest.approx(relevant.mean() / 25)


def test_a_method_without_a_clue_scores_what_chance_gives(method, gallery):
    random = torch.Generator().manual_seed(0)
    method.similarity = lambda sketches, photos: torch.rand(
        len(sketches["retrieval"]), len(photos["retrieval"]), generator=random
    )
    evaluation = score(method, image_list("sketch", QUERY_TARGETS * 300), gallery, query_block=300)
    for name, expected in evaluation.chance.items():
        assert evaluation.metrics[name] == pytest.approx(expected, abs=0.02), name


def test_only_the_first_photos_of_a_ranking_are_kept(method):
    gallery = image_list("photo", [0] * (KEPT + 3))
    evaluation = score(method, image_list("sketch", [0, 0]), gallery)
    assert evaluation.rankings.shape == evaluation.similarities.shape == (2, KEPT)
    assert evaluation.metrics["map_all"] == 1  # but all of them are measured


# ---- what cannot be scored


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_unreadable_image_is_named_with_list_and_line(method, modality):
    queries = image_list("sketch", [0, 1], broken=[1] if modality == "sketch" else ())
    gallery = image_list("photo", [0, 1], broken=[1] if modality == "photo" else ())
    with pytest.raises(InputError, match="--skip_bad") as error:
        score(method, queries, gallery)
    assert f"data/{modality}/1-broken.png" in str(error.value)
    assert f"named in {modality}s.txt, line 2" in str(error.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [1, 2, 100])
def test_skip_bad_scores_what_is_left(method, mode, block):
    queries = image_list("sketch", QUERY_TARGETS, broken=[0, 4])
    gallery = image_list("photo", GALLERY_TARGETS, broken=[2, 3, 12])
    some = score(method, queries, gallery, mode, block, block, skip_bad=True)
    assert len(some.skipped) == 5 and (len(some.queries), len(some.gallery)) == (5, 10)
    assert not any("broken" in path for path in [*some.queries.path, *some.gallery.path])
    alone = score(method, some.queries, some.gallery, mode)
    assert some.metrics == alone.metrics and some.by_class == alone.by_class
    assert some.chance == alone.chance
    np.testing.assert_array_equal(some.rankings, alone.rankings)


def test_nothing_is_skipped_where_all_is_readable(method, queries, gallery):
    assert score(method, queries, gallery, skip_bad=True).skipped == []


@pytest.mark.parametrize("broken", [(), (0, 1)])
def test_gallery_without_a_readable_photo_is_an_error(method, queries, broken):
    gallery = image_list("photo", [0] * len(broken), broken=broken)
    with pytest.raises(InputError, match="no readable photo"):
        score(method, queries, gallery, skip_bad=True)


@pytest.mark.parametrize("broken", [(), (0, 1)])
def test_no_readable_sketch_is_an_error(method, gallery, broken):
    queries = image_list("sketch", [0] * len(broken), broken=broken)
    with pytest.raises(InputError, match="no readable sketch"):
        score(method, queries, gallery, skip_bad=True)


def test_sketch_without_a_relevant_photo_is_left_out_of_the_means(method):
    gallery = image_list("photo", [0, 0, 1, 1])
    targets = [0, 1, 0, 9]
    some = score(method, image_list("sketch", targets), gallery)
    without = score(method, image_list("sketch", targets[:-1]), gallery)
    assert some.metrics == without.metrics and some.by_class == without.by_class
    assert some.chance == without.chance
    assert len(some.queries) == len(some.rankings) == 4  # it is still ranked


def test_no_sketch_with_a_relevant_photo_is_an_error(method):
    with pytest.raises(InputError, match="no sketch has a photo of its class"):
        score(method, image_list("sketch", [8, 9]), image_list("photo", [0, 1]))


def test_pair_scores_of_a_method_that_has_none_are_an_error(method, queries, gallery):
    method.pair_scorer = None
    with pytest.raises(InputError, match="fake has no pair scores"):
        score(method, queries, gallery, "rn")


def test_a_class_of_one_photo_and_one_sketch(method):
    evaluation = score(method, image_list("sketch", [4]), image_list("photo", [4]))
    assert evaluation.metrics["map_all"] == 1
    assert evaluation.metrics["precision@5"] == pytest.approx(1 / 5)


# ---- by class


def test_means_by_class_weighted_with_their_queries_give_the_overall_means(
    method, queries, gallery
):
    evaluation = score(method, queries, gallery)
    assert {name: row["queries"] for name, row in evaluation.by_class.items()} == {
        "class 0": 2,
        "class 1": 2,
        "class 2": 3,
    }
    for name, overall in evaluation.metrics.items():
        weighted = sum(row["queries"] * row[name] for row in evaluation.by_class.values()) / 7
        assert weighted == pytest.approx(overall)


def test_a_class_alone_scores_as_it_does_among_others(method, queries, gallery):
    among = score(method, queries, gallery).by_class["class 2"]
    alone = score(method, queries.select(queries.target == 2), gallery)
    assert among == {"queries": 3, **alone.metrics}


# ---- several processes


@pytest.mark.parametrize("targets", [QUERY_TARGETS, [0]])  # the second process has none of [0]
@pytest.mark.parametrize("mode", MODES)
def test_queries_shared_by_two_processes_give_what_one_gives(method, gallery, mode, targets):
    queries = image_list("sketch", [*targets, 0], broken=[len(targets)])
    settings = {"query_block": 2, "skip_bad": True}
    alone = score(method, queries, gallery, mode, **settings)
    brought = {}

    def one_process(number):
        def gather(content):
            brought[number] = content
            return [brought[other] for other in sorted(brought)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate_module, "rank", lambda: number)
            patch.setattr(evaluate_module, "world_size", lambda: 2)
            patch.setattr(evaluate_module, "gather_objects", gather)
            return score(method, queries, gallery, mode, shared=True, **settings)

    with contextlib.suppress(InputError):  # it may have no sketch, and sees only its own
        one_process(1)
    together = one_process(0)
    assert together.metrics == alone.metrics and together.by_class == alone.by_class
    assert together.chance == alone.chance
    assert together.queries.path.tolist() == alone.queries.path.tolist()
    assert together.skipped == alone.skipped
    np.testing.assert_array_equal(together.rankings, alone.rankings)
    np.testing.assert_array_equal(together.similarities, alone.similarities)


def test_sharing_is_nothing_for_one_process(method, queries, gallery):
    alone, shared = (score(method, queries, gallery, shared=flag) for flag in (False, True))
    assert shared.metrics == alone.metrics
    np.testing.assert_array_equal(shared.rankings, alone.rankings)


# ---- side effects


@pytest.mark.parametrize("training", [True, False])
def test_the_method_is_evaluated_and_left_in_its_mode(method, queries, gallery, training):
    method.train(training)
    one, other = (score(method, queries, gallery) for _ in range(2))
    np.testing.assert_array_equal(one.similarities, other.similarities)  # no dropout
    assert method.training == method.dropout.training == training


def test_the_mode_is_restored_after_an_error(method):
    method.train()
    with pytest.raises(InputError):
        score(method, image_list("sketch", [0]), image_list("photo", []))
    assert method.training


def test_random_numbers_of_training_are_left_alone(method, queries, gallery):
    before = torch.get_rng_state()
    score(method, queries, gallery)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_gradient_is_kept(method, queries, gallery):
    score(method, queries, gallery)
    assert method.weight.grad is None and torch.is_grad_enabled()


def test_seconds_are_there_by_stage(method, queries, gallery):
    seconds = score(method, queries, gallery).seconds
    assert set(seconds) == {"encode_gallery", "encode_queries", "score_queries"}
    assert all(value >= 0 for value in seconds.values())


def test_fusing_adds_the_similarity_of_retrieval_vectors_to_the_scores_of_pairs(
    method, queries, gallery
):
    pairs = score(method, queries, gallery, "rn")
    alone = score(method, queries, gallery, "sa")
    fused = score(method, queries, gallery, "rn", fuse=0.25)
    for query in range(len(queries)):
        by_photo = [
            dict(zip(e.rankings[query], e.similarities[query], strict=True)) for e in (pairs, alone)
        ]
        for photo, similarity in zip(fused.rankings[query], fused.similarities[query], strict=True):
            assert similarity == by_photo[0][photo] + 0.25 * by_photo[1][photo]
    assert not np.array_equal(fused.rankings, pairs.rankings)


def test_views_reach_queries_and_gallery(method, queries, gallery):
    score(method, queries, gallery, views="mirror")
    assert len(method.encoded["sketch"]) == 2 * len(queries)
    assert len(method.encoded["photo"]) == 2 * len(gallery)


def test_expanding_averages_what_is_compared(method, queries, gallery):
    plain = score(method, queries, gallery)
    expanded = score(method, queries, gallery, expand=2)
    sketches, photos = (
        torch.stack([images.read(i, picture)[1:].flatten()[:6] for i in range(len(images))])
        for images in (queries, gallery)
    )
    photos = expand_gallery(photos, 2)
    similarity = expand_queries(sketches, photos, 2) @ photos.T
    wanted = similarity.gather(1, torch.from_numpy(expanded.rankings).long())
    np.testing.assert_allclose(expanded.similarities, wanted.numpy(), atol=1e-6)
    assert not np.array_equal(expanded.rankings, plain.rankings)


def test_expanding_reaches_what_is_added_to_the_scores_of_pairs(method, queries, gallery):
    fused = score(method, queries, gallery, "rn", fuse=0.25)
    expanded = score(method, queries, gallery, "rn", fuse=0.25, expand=2)
    assert not np.array_equal(fused.similarities, expanded.similarities)


# ---- a shortlist, re-ranked


def test_the_shortlist_is_in_the_order_of_the_pairs_and_the_rest_as_it_was(
    method, queries, gallery
):
    by_pair, by_token, both = (
        score(method, queries, gallery, mode, shortlist=5) for mode in ("rn", "sa", "rerank")
    )
    for query in range(len(queries)):
        shortlist = set(by_token.rankings[query, :5])
        wanted = [photo for photo in by_pair.rankings[query] if photo in shortlist]
        wanted += list(by_token.rankings[query, 5:])
        assert both.rankings[query].tolist() == wanted
    assert np.isnan(both.similarities[:, 5:]).all() and not np.isnan(both.similarities[:, :5]).any()


def test_metrics_are_those_of_the_reranked_order(method, queries, gallery):
    both = score(method, queries, gallery, "rerank", shortlist=5)
    relevant = gallery.target[both.rankings] == queries.target[:, None]
    expected = [interpolated_average_precision(np.flatnonzero(row)[None] + 1) for row in relevant]
    assert both.metrics["map_all"] == pytest.approx(np.mean(expected))


def test_only_pairs_of_the_shortlist_are_scored(method, queries, gallery):
    score(method, queries, gallery, "rerank", shortlist=5)
    checked = min(CHECKED, len(queries))
    assert method.pairs == 7 * 5 + checked * 13


def test_a_shortlist_of_all_photos_is_all_pairs_and_needs_no_check(method, queries, gallery):
    pairs = score(method, queries, gallery, "rn", fuse=0.5)
    both = score(method, queries, gallery, "rerank", fuse=0.5, shortlist=13)
    np.testing.assert_array_equal(pairs.rankings, both.rankings)
    np.testing.assert_array_equal(pairs.similarities, both.similarities)
    assert pairs.metrics == both.metrics
    assert pairs.shortlist == both.shortlist == {}


def test_what_the_shortlist_keeps_is_measured_on_sketches_from_all_over_the_list(method, gallery):
    queries = image_list("sketch", [i % 3 for i in range(50)])
    both = score(method, queries, gallery, "rerank", shortlist=5)
    some = queries.select(np.linspace(0, 49, CHECKED).astype(int))
    for name, mode in (("reranked", "rerank"), ("all_pairs", "rn")):
        alone = score(method, some, gallery, mode, shortlist=5).metrics
        assert both.shortlist[name] == pytest.approx(alone)
    assert both.shortlist["queries"] == CHECKED


def test_checked_sketches_without_a_relevant_photo_do_not_count(method):
    gallery = image_list("photo", [0] * 6)
    both = score(method, image_list("sketch", [0, 9]), gallery, "rerank", shortlist=2)
    assert both.shortlist["queries"] == 1


@pytest.mark.parametrize("expand", [0, 2])
def test_what_is_compared_first_may_be_averaged_or_seen_from_several_views(
    method, queries, gallery, expand
):
    settings = {"expand": expand, "views": "mirror"}
    by_token = score(method, queries, gallery, "sa", **settings)
    both = score(method, queries, gallery, "rerank", shortlist=4, **settings)
    assert np.array_equal(np.sort(both.rankings[:, :4]), np.sort(by_token.rankings[:, :4]))
