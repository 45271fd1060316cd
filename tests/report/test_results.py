"""The results of an evaluation by hand: table, JSON, rankings as arrays, a picture.

tests/test_test.py compares the picture with strips drawn from the arrays.
"""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sample_data import write_benchmark

from datasets import load_benchmark
from report import results
from retrieval.evaluate import Evaluation

METRICS = {"map_all": 0.5, "average_precision": 0.25, "precision_100": 1.0, "accuracy@1": 0.125}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Sketches and photos of three classes: 4 and 5 each."""
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root, size=24)
    benchmark = load_benchmark("sketchy_extend", "test_class_sketchy25", root, seen=False)
    return benchmark.queries, benchmark.gallery


@pytest.fixture
def evaluation(lists):
    """Every sketch finds the photos in the order of their list."""
    queries, gallery = lists
    count = len(queries)
    return Evaluation(
        metrics=METRICS,
        by_class={"cup": {**METRICS, "queries": 4}, "harp": {"map_all": 0.75, "queries": 1234567}},
        chance={"average_precision": 1 / 3, "precision_100": 0.2, "accuracy@1": 0.0},
        queries=queries,
        gallery=gallery,
        rankings=np.tile(np.arange(len(gallery), dtype=np.int32), (count, 1)),
        similarities=np.tile(-np.arange(len(gallery), dtype=np.float32), (count, 1)),
        seconds={"encode": 1.5},
        shortlist={},
        skipped=["a.jpg: unreadable."],
    )


# ---- as text


def test_the_table_by_hand(evaluation):
    assert results.table(evaluation).splitlines() == [
        "                sketches            map_all  average_precision      precision_100"
        "         accuracy@1",
        "all classes           12             0.5000             0.2500             1.0000"
        "             0.1250",
        "random ranking        12                  -             0.3333             0.2000"
        "             0.0000",
        "cup                    4             0.5000             0.2500             1.0000"
        "             0.1250",
        "harp             1234567             0.7500                  -                  -"
        "                  -",
    ]


def test_the_table_is_as_wide_as_its_longest_name(evaluation):
    name = "a class of a very long name"
    long = replace(evaluation, by_class={name: {**METRICS, "queries": 4}})
    lines = results.table(long).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].index("sketches") == len(name) + 2


def test_the_loss_of_a_shortlist_is_a_sentence(evaluation):
    better = {name: value / 2 for name, value in METRICS.items()}
    measured = {"reranked": better, "all_pairs": METRICS, "queries": 20}
    assert results.shortlist_line(replace(evaluation, shortlist=measured), 300) == (
        "shortlist of 300, on 20 sketches: average_precision 0.1250 (all pairs 0.2500), "
        "precision_100 0.5000 (all pairs 1.0000), accuracy@1 0.0625 (all pairs 0.1250)"
    )


def test_json_has_all_that_was_measured(evaluation):
    content = results.as_json(evaluation, ["b.jpg (list.txt, line 3)", *evaluation.skipped])
    assert (
        content
        == json.loads(json.dumps(content))
        == {
            "counts": {"sketches": 12, "photos": 15, "classes": 2, "skipped": 2},
            **METRICS,
            "chance": evaluation.chance,
            "shortlist": {},
            "by_class": evaluation.by_class,
            "skipped": ["b.jpg (list.txt, line 3)", "a.jpg: unreadable."],
            "seconds": {"encode": 1.5},
        }
    )


# ---- as arrays


def test_rankings_are_arrays_that_load_without_objects(evaluation, tmp_path):
    results.write_rankings(evaluation, tmp_path / "any.name")
    assert [file.name for file in tmp_path.iterdir()] == ["any.name"]
    with np.load(tmp_path / "any.name", allow_pickle=False) as kept:
        assert set(kept) == {"queries", "gallery", "ranking", "similarity"}
        assert kept["queries"].tolist() == evaluation.queries.path.tolist()
        assert kept["gallery"].tolist() == evaluation.gallery.path.tolist()
        np.testing.assert_array_equal(kept["ranking"], evaluation.rankings)
        np.testing.assert_array_equal(kept["similarity"], evaluation.similarities)


def test_rankings_that_cannot_be_written_leave_the_former_ones(evaluation, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    results.write_rankings(evaluation, tmp_path / "rankings.npz")
    before = (tmp_path / "rankings.npz").read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        results.write_rankings(evaluation, tmp_path / "rankings.npz")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"rankings.npz": before}


# ---- as a picture


@pytest.mark.parametrize("total", [1, 2, 7, 12, 625])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 100])
def test_numbers_are_spread_evenly(count, total):
    numbers = results.spread(count, total)
    assert len(numbers) == min(count, total) and set(numbers) <= set(range(total))
    steps = np.diff(numbers).tolist()
    assert min(steps, default=1) > 0 and max(steps, default=1) - min(steps, default=1) <= 1
    assert abs(numbers[0] - (total - 1 - numbers[-1])) <= 1  # as far from the start as from the end


@pytest.fixture
def sheets(monkeypatch):
    """Titles and strips of the pictures that are drawn."""
    drawn = []

    def draw_sheet(strips, title):
        drawn.append((title, list(strips)))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(results, "draw_sheet", draw_sheet)
    return drawn


def test_a_title_has_the_score_and_how_many_sketches_are_drawn(evaluation, sheets, tmp_path):
    results.draw_rankings(evaluation, 3, "sketchy, -r rn", tmp_path / "a.png")
    results.draw_rankings(evaluation, 100, "all", tmp_path / "b.png")
    legend = "spread evenly. Green: right class, red: wrong."
    assert [title for title, _ in sheets] == [
        f"sketchy, -r rn: mAP (average_precision) 0.250; 3 of 12 sketches, {legend}",
        f"all: mAP (average_precision) 0.250; 12 of 12 sketches, {legend}",
    ]
    assert [len(strips) for _, strips in sheets] == [3, 12]


def test_a_strip_has_the_first_ten_photos_and_their_classes(evaluation, sheets, tmp_path):
    results.draw_rankings(evaluation, 3, "", tmp_path / "a.png")
    ((_, strips),) = sheets
    assert [strip.query_name for strip in strips] == ["cup", "swan", "harp"]
    for strip in strips:
        assert len(strip.photos) == len(strip.photo_names) == results.DRAWN
        assert strip.photo_names == ["cup"] * 5 + ["swan"] * 5
        assert strip.relevant == [name == strip.query_name for name in strip.photo_names]


def test_relevant_is_the_target_and_not_the_name(evaluation, sheets, tmp_path):
    one_each = replace(evaluation.gallery, target=np.arange(15))
    third = replace(evaluation.queries, target=np.full(12, 3))
    rankings = np.tile([4, 3, 2, 1, 0], (12, 1))
    changed = replace(evaluation, queries=third, gallery=one_each, rankings=rankings)
    results.draw_rankings(changed, 12, "", tmp_path / "a.png")
    strip = sheets[0][1][1]
    assert strip.relevant == [False, True, False, False, False]
    assert strip.photo_names == [strip.query_name] * 5


def test_the_picture_is_a_png(evaluation, tmp_path):
    results.draw_rankings(evaluation, 1, "one", tmp_path / "a.rankings")
    with Image.open(tmp_path / "a.rankings") as picture:
        assert picture.format == "PNG" and picture.width > 10 * 128
