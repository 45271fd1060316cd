"""Metrics: recorded published values, cases worked by hand, slow loops, scikit-learn."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from retrieval.metrics import (
    average_precision,
    chance_average_precision,
    chance_precision_at,
    chance_published_precision,
    interpolated_average_precision,
    precision_at,
    published_precision_at,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_a.npz"
ALL = {
    "average_precision": average_precision,
    "interpolated": interpolated_average_precision,
    "interpolated, cut": lambda ranks: interpolated_average_precision(ranks, 3),
    "published_precision_at": lambda ranks: published_precision_at(ranks, 3),
    "precision_at": lambda ranks: precision_at(ranks, 3),
}


def ranks(relevant):
    """Ranks (1, R) of the relevant photos; relevant: of each photo, closest first, or "1010"."""
    return np.array([[i + 1 for i, hit in enumerate(relevant) if hit not in (False, "0")]])


def each(metric, *queries):
    """A metric's value for each query, one of which may have more relevant photos than another."""
    return np.concatenate([metric(ranks(query)) for query in queries])


@pytest.mark.parametrize("case", [0, 1, 2])
def test_published_definitions_give_the_recorded_values(case):
    recorded = np.load(GOLDEN)
    order = recorded[f"distance_{case}"].argsort(axis=1)
    relevant = recorded[f"gallery_label_{case}"][order] == recorded[f"query_label_{case}"][:, None]
    ours = {
        "map_all": interpolated_average_precision,
        "map_200": lambda ranks: interpolated_average_precision(ranks, 200),
        "precision_100": lambda ranks: published_precision_at(ranks, 100),
        "precision_200": lambda ranks: published_precision_at(ranks, 200),
    }
    for name, metric in ours.items():
        mean = np.nanmean(each(metric, *relevant))
        assert mean == pytest.approx(float(recorded[f"{name}_{case}"]), abs=1e-6)


def test_plain_average_precision_by_hand():
    values = each(average_precision, "1010", "0001", "1111", "0101", "0011")
    expected = [(1 + 2 / 3) / 2, 1 / 4, 1, (1 / 2 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2]
    np.testing.assert_allclose(values, expected)


def test_interpolated_average_precision_by_hand():
    values = each(interpolated_average_precision, "1010", "0001", "1111", "0011")
    expected = [(1 + 2 / 3) / 2, 1 / 4, 1, 2 / 4]  # in the last, 1/3 is raised to the later 2/4
    np.testing.assert_allclose(values, expected)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (None, 3 / 5),  # precisions 1/2, 2/4, 3/5 are all raised to 3/5
        (5, 3 / 5),
        (4, (2 / 4 + 2 / 4) / 3),  # the third is lost; what lies behind the cut raises nothing
        (2, (1 / 2) / 2),  # divided by min(cut, 3 relevant)
        (1, 0),
        (200, 3 / 5),
    ],
)
def test_cut_average_precision_by_hand(cut, expected):
    assert interpolated_average_precision(ranks("01011"), cut) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("k", "published", "plain"),
    [(1, 0, 0), (2, 1 / 2, 1 / 2), (3, 2 / 3, 2 / 3), (5, 2 / 3, 3 / 5), (100, 2 / 3, 3 / 100)],
)
def test_precisions_by_hand(k, published, plain):
    three = ranks("01101")  # three relevant photos: the published k is 3 at most
    assert published_precision_at(three, k) == pytest.approx(published)
    assert precision_at(three, k) == pytest.approx(plain)


@pytest.mark.parametrize("metric", ALL)
def test_query_without_a_relevant_photo_is_not_a_number(metric):
    values = each(ALL[metric], "0000", "1000")
    assert np.isnan(values[0]) and not np.isnan(values[1])


@pytest.mark.parametrize("metric", ALL)
def test_no_query_has_no_value(metric):
    assert ALL[metric](np.empty((0, 3), dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("metric", ["average_precision", "interpolated", "interpolated, cut"])
def test_a_class_of_one_photo_scores_one_over_its_rank(metric):
    np.testing.assert_allclose(each(ALL[metric], "1000", "0100", "0010"), [1, 1 / 2, 1 / 3])


def test_a_class_of_one_photo_is_found_at_once_or_not_at_all_by_published_precision():
    first_and_second = np.array([[1], [2]])
    np.testing.assert_allclose(published_precision_at(first_and_second, 100), [1, 0])
    np.testing.assert_allclose(precision_at(first_and_second, 100), [1 / 100, 1 / 100])


def test_a_perfect_ranking_scores_one():
    perfect = np.array([[1, 2, 3], [1, 2, 3]])
    for name in ("average_precision", "interpolated", "interpolated, cut", "precision_at"):
        np.testing.assert_allclose(ALL[name](perfect), 1)


def slow_interpolated(relevant, cut):
    total = sum(relevant)
    if cut is not None:
        relevant, total = relevant[:cut], min(cut, total)
    precision = [sum(relevant[: i + 1]) / (i + 1) for i in range(len(relevant))]
    return sum(max(precision[i:]) for i, hit in enumerate(relevant) if hit) / total


def slow_average_precision(relevant):
    hits = [sum(relevant[: i + 1]) / (i + 1) for i, hit in enumerate(relevant) if hit]
    return sum(hits) / len(hits)


def slow_published_precision(relevant, k):
    first = relevant[: min(k, sum(relevant))]
    return sum(first) / len(first)


@settings(deadline=None)
@given(
    relevant=st.lists(st.booleans(), min_size=1, max_size=30),
    cut=st.integers(1, 40),
    shift=st.integers(0, 5),
)
def test_fast_metrics_equal_slow_loops(relevant, cut, shift):
    rows = [relevant, relevant[shift:] + relevant[:shift]]  # two queries at once
    both = np.concatenate([ranks(row) for row in rows])
    fast = {
        "map_all": interpolated_average_precision(both),
        "map_cut": interpolated_average_precision(both, cut),
        "average": average_precision(both),
        "published": published_precision_at(both, cut),
        "plain": precision_at(both, cut),
    }
    for i, row in enumerate(rows):
        slow = dict.fromkeys(fast, math.nan)
        if any(row):
            slow = {
                "map_all": slow_interpolated(row, None),
                "map_cut": slow_interpolated(row, cut),
                "average": slow_average_precision(row),
                "published": slow_published_precision(row, cut),
                "plain": sum(row[:cut]) / cut,
            }
        for name, value in slow.items():
            assert fast[name][i] == pytest.approx(value, nan_ok=True)


@settings(deadline=None)
@given(relevant=st.lists(st.booleans(), min_size=1, max_size=30).filter(any), data=st.data())
def test_plain_average_precision_equals_scikit_learn(relevant, data):
    scores = np.array(data.draw(st.permutations(range(len(relevant)))))  # no ties
    ranking = (-scores).argsort()
    ours = average_precision(ranks(np.array(relevant)[ranking].tolist()))
    assert ours[0] == pytest.approx(average_precision_score(relevant, scores))


@settings(deadline=None)
@given(relevant=st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_interpolation_never_lowers_the_value(relevant):
    one = ranks(relevant)
    assert interpolated_average_precision(one)[0] >= average_precision(one)[0] - 1e-12


# ---- what chance would give


def chance_of(total, photos, k):
    """A metric's expectation at random beside the metric: name -> ((Q,) values, function)."""
    total = np.array(total)
    return {
        "average": (chance_average_precision(total, photos), average_precision),
        "plain": (
            chance_precision_at(total, photos, k),
            lambda ranks: precision_at(ranks, k),
        ),
        "published": (
            chance_published_precision(total, photos),
            lambda ranks: published_precision_at(ranks, k),
        ),
    }


@pytest.mark.parametrize("photos", range(1, 7))
@pytest.mark.parametrize("k", [1, 2, 5, 100])
def test_chance_is_the_mean_over_all_orders(photos, k):
    totals = range(1, photos + 1)
    for i, total in enumerate(totals):
        orders = np.array(list(itertools.combinations(range(1, photos + 1), total)))
        for name, (expected, metric) in chance_of(totals, photos, k).items():
            assert expected[i] == pytest.approx(metric(orders).mean(), rel=1e-12), name


def test_chance_is_the_mean_of_many_random_rankings():
    total, photos, random = 7, 60, np.random.default_rng(0)
    drawn = np.sort(random.random((20000, photos)).argsort(axis=1)[:, :total] + 1, axis=1)
    for name, (expected, metric) in chance_of([total], photos, 10).items():
        values = metric(drawn)
        error = values.std() / math.sqrt(len(values))
        assert expected[0] == pytest.approx(values.mean(), abs=4 * error), name
        assert error < 0.05 * expected[0]


def test_chance_by_hand():
    # the one relevant photo of two is first or second: (1 + 1/2) / 2
    assert chance_average_precision(np.array([1, 2]), 2).tolist() == [3 / 4, 1]
    assert chance_precision_at(np.array([1]), 2, 1).tolist() == [1 / 2]
    assert chance_precision_at(np.array([1]), 2, 10).tolist() == [1 / 10]  # it is always found
    assert chance_published_precision(np.array([1]), 4).tolist() == [1 / 4]


def test_chance_of_a_gallery_as_large_as_a_benchmark_s():
    value = chance_average_precision(np.array([25]), 625)[0]  # 25 classes of 25 photos
    assert value == pytest.approx(0.0493, abs=5e-5)
    assert chance_average_precision(np.array([500]), 200_000)[0] == pytest.approx(1 / 400, rel=0.03)


def test_chance_of_one_photo_is_certainty():
    for name, (expected, _) in chance_of([1], 1, 1).items():
        assert expected.tolist() == [1], name


def test_chance_where_all_are_relevant_is_one():
    for name, (expected, _) in chance_of([9], 9, 4).items():
        assert expected[0] == pytest.approx(1), name


@pytest.mark.parametrize("photos", [0, 1, 5])
def test_chance_of_a_query_without_a_relevant_photo_is_not_a_number(photos):
    for name, (expected, _) in chance_of([0, 0], photos, 3).items():
        assert expected.shape == (2,) and np.isnan(expected).all(), name
    if photos:
        assert np.isnan(chance_average_precision(np.array([1, 0]), photos)).tolist() == [
            False,
            True,
        ]
