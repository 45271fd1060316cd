"""A run as a picture: what is drawn where, and what is left out."""

import io
import json
import os

import pytest
from matplotlib.figure import Figure
from PIL import Image

from report.curves import COLOURS, INK, draw_curves
from utils.errors import InputError

STEP = {"kind": "steps", "epoch": 1, "step": 50, "steps": 100, "triplet": 0.5, "total": 2.0}
STEP |= {"learning_rate": 1e-4, "images_per_second": 400.0, "data_wait": 0.02, "gradient_norm": 3}
EPOCH = {"kind": "epoch", "epoch": 1, "losses": {"total": 2.0}, "best": True}
SCORES = {"map_all": 0.5, "average_precision": 0.4, "precision_100": 0.6, "map_200": 0.9}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws lines of metrics; the figure."""
    figures, save = [], Figure.savefig

    def keep(figure, *arguments, **settings):
        figures.append(figure)
        save(figure, *arguments, **settings)

    def draw(*lines: dict | str, title: str = "run") -> Figure:
        text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", title)
        names = sorted(file.name for file in tmp_path.iterdir())
        assert names == ["curves.png", "metrics.jsonl"]
        return figures[-1]

    monkeypatch.setattr(Figure, "savefig", keep)
    return draw


def panels(figure: Figure) -> dict:
    """Axes by the first word of what they show."""
    return {axes.get_ylabel().split()[0].strip(","): axes for axes in figure.axes}


def curves(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def curve(axes) -> list[tuple[float, float]]:
    """The only one."""
    (points,) = curves(axes).values()
    return points


def test_everything_has_its_panel(draw, tmp_path):
    last = {**STEP, "step": 100, "triplet": 0.25, "total": 1.0, "gradient_norm": 0.5}
    figure = draw(STEP, last, {**EPOCH, "validation": SCORES}, title="my run")
    shown = panels(figure)
    assert list(shown) == ["loss", "validation", "learning", "gradient", "images/s", "waiting"]
    assert figure.get_suptitle() == "my run"
    assert curves(shown["loss"]) == {
        "total": [(0.5, 2), (1, 1)],
        "triplet": [(0.5, 0.5), (1, 0.25)],
    }
    scores = curves(shown["validation"])
    assert scores["map_all"] == [(1, 0.5)] and scores["precision_100"] == [(1, 0.6)]
    assert scores["average_precision"] == [(1, 0.4)] and "map_200" not in scores
    assert scores["best: epoch 1, map_all 0.5000"] == [(1, 0.5)]
    assert curve(shown["learning"]) == [(0.5, 1e-4), (1, 1e-4)]
    assert curve(shown["gradient"]) == [(0.5, 3), (1, 0.5)]
    assert shown["gradient"].get_yscale() == "log"
    assert curve(shown["images/s"]) == [(0.5, 400), (1, 400)]
    assert curve(shown["waiting"]) == [(0.5, 2), (1, 2)] and shown["waiting"].get_ylim() == (0, 100)
    assert shown["images/s"].get_xlabel() == "epochs done"
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 800


def test_the_total_is_the_thick_one_and_the_parts_differ_in_colour(draw):
    axes = panels(draw({**STEP, "relation": 0.25}))["loss"]
    total, *parts = axes.lines
    assert total.get_label() == "total" and total.get_color() == INK
    assert total.get_linewidth() > 1.5 * max(line.get_linewidth() for line in parts)
    assert [line.get_color() for line in parts] == list(COLOURS[:2])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "total",
        "triplet",
        "relation",
    ]


def test_more_losses_than_colours_are_all_drawn(draw):
    many = {f"loss {number}": number for number in range(30)}
    assert len(curves(panels(draw({**STEP, **many}))["loss"])) == 32


def test_epochs_go_on_from_each_other(draw):
    lines = [{**STEP, "epoch": e, "step": s, "total": 0} for e in (1, 2, 3) for s in (50, 100)]
    points = curves(panels(draw(*lines))["loss"])["total"]
    assert [at for at, _ in points] == [0.5, 1, 1.5, 2, 2.5, 3]


def test_files_that_do_not_say_how_long_an_epoch_is_are_drawn_too(draw):
    """The longest seen counts as a whole one: also of an epoch that is not over."""
    old = {n: STEP[n] for n in ("kind", "triplet", "total", "learning_rate", "images_per_second")}
    places = [(1, 50), (1, 80), (2, 50), (2, 80), (3, 40)]
    figure = draw(*({**old, "epoch": epoch, "step": step} for epoch, step in places))
    assert list(panels(figure)) == ["loss", "learning", "images/s"]
    points = curves(panels(figure)["loss"])["total"]
    assert [at for at, _ in points] == [0.625, 1, 1.625, 2, 2.5]


def test_without_validation_there_is_no_panel_of_it(draw):
    lines = [{**EPOCH, "validation": None}, EPOCH, {**EPOCH, "validation": {"other": 0.5}}]
    assert "validation" not in panels(draw(STEP, *lines))


def test_the_last_best_epoch_is_the_best(draw):
    best = [True, True, False]
    scores = [{"map_all": 0.4}, {"map_all": 0.6}, {"map_all": 0.5}]
    lines = [{**EPOCH, "epoch": i + 1, "best": best[i], "validation": scores[i]} for i in range(3)]
    figure = draw(*lines)
    assert list(panels(figure)) == ["validation"]
    shown = curves(panels(figure)["validation"])
    assert shown["map_all"] == [(1, 0.4), (2, 0.6), (3, 0.5)]
    assert shown["best: epoch 2, map_all 0.6000"] == [(2, 0.6)]


def test_values_that_are_no_numbers_leave_a_gap(draw):
    values = [1.0, float("nan"), float("inf"), None, "text", True, 2.0]
    places = range(1, len(values) + 1)
    lines = [
        {**STEP, "steps": 10, "step": s, "gradient_norm": v}
        for s, v in zip(places, values, strict=True)
    ]
    assert curve(panels(draw(*lines))["gradient"]) == [(0.1, 1.0), (0.7, 2.0)]


def test_a_gradient_of_0_is_drawn_on_a_plain_scale(draw):
    axes = panels(draw({**STEP, "gradient_norm": 0.0}))["gradient"]
    assert curve(axes) == [(0.5, 0)] and axes.get_yscale() == "linear"


def test_negative_losses_are_in_sight(draw):
    bottom, top = panels(draw({**STEP, "total": -1.0}))["loss"].get_ylim()
    assert bottom < -1 and top > 0.5
    assert panels(draw(STEP))["loss"].get_ylim()[0] == 0


def test_one_point_has_a_mark_and_many_have_none(draw):
    assert panels(draw(STEP))["learning"].lines[0].get_marker() == "o"
    many = draw(*({**STEP, "step": step} for step in range(1, 101)))
    assert panels(many)["learning"].lines[0].get_marker() == "None"


def test_torn_and_strange_lines_are_passed_over(draw):
    strange = ["", "[]", '"text"', '{"kind": "steps"}', '{"kind": "other", "total": 9}', '{"kin']
    strange += ['{"kind": "epoch", "epoch": "x"}', "\x00\xff"]
    assert curves(panels(draw(*strange, STEP, '{"kind": "steps", "epo'))["loss"])["total"] == [
        (0.5, 2.0)
    ]


ODD = [None, True, "1", [], {}, -1, 0.5, 10**18, 10**400, float("nan"), float("inf"), "[" * 10**5]


def test_other_kinds_of_values_are_passed_over_too(draw):
    """Wherever they stand, in a line or in its place."""
    lines = [STEP, {**EPOCH, "validation": SCORES}]
    changed = [{**line, key: odd} for line in lines for key in line for odd in ODD]
    changed += [{**EPOCH, "validation": {**SCORES, "map_all": odd}} for odd in ODD]
    plain, strange = draw(*lines), draw(*lines, *ODD, *changed)
    assert len(strange.axes) == len(plain.axes)


def test_a_name_of_a_folder_is_no_formula(draw):
    assert draw(STEP, title=r"$\frac{$ and _^").get_suptitle() == r"$\frac{$ and _^"


@pytest.mark.parametrize("text", ["", "torn", '{"kind": "steps", "epoch": 1, "step": 3}\n'])
def test_where_there_is_nothing_to_draw_a_sentence_says_so(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.jsonl: holds no metrics to draw"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "run")
    assert not (tmp_path / "curves.png").exists()


def test_a_picture_that_cannot_be_written_leaves_the_former_one(tmp_path, draw, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    draw(STEP)
    before = (tmp_path / "curves.png").read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        draw({**STEP, "total": 5.0})
    assert (tmp_path / "curves.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_metrics_give_the_same_picture(tmp_path, draw):
    pictures = []
    for _ in range(2):
        draw(STEP, {**EPOCH, "validation": SCORES})
        with Image.open(io.BytesIO((tmp_path / "curves.png").read_bytes())) as picture:
            pictures.append(picture.convert("RGB").tobytes())
    assert pictures[0] == pictures[1]
