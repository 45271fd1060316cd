"""A training run as a picture: the figures of metrics.jsonl over the epochs."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

from utils.errors import InputError
from utils.files import open_regular, written_whole
from utils.schema import number, one_of, table, whole

WIDTH, HEIGHT, DOTS = 9.0, 1.9, 120  # inches, inches a panel, dots an inch
TALL = {"losses": 1.6, "validation": 1.3}  # heights of the panels that hold several curves
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c6d31")
SMALL = 9  # points
INK, QUIET, GRID = "#1a1a1a", "#5f5f5f", "#e2e2e2"
SCORES = ("map_all", "average_precision", "precision_100")
NO_LOSSES = {"kind", "epoch", "step", "steps", "total"}
NO_LOSSES |= {"learning_rate", "images_per_second", "data_wait", "gradient_norm"}
MOST, HUGE = 10**9, 1e100  # epochs, or steps; anything
NUMBER, PLACE = number(-HUGE, HUGE), whole(0, MOST)
STEPS = table({"kind": one_of("steps"), "epoch": PLACE, "step": PLACE}, {"steps": PLACE})
EPOCH = table({"kind": one_of("epoch"), "epoch": PLACE})
"""The lines that are drawn."""

Line = dict
Curve = tuple[list[float], list[float]]  # epochs done, values


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw the metrics as a PNG, written whole or not at all; no data, no panel.

    metrics: a file with a JSON object a line; torn and unknown lines are skipped. Raises InputError
    where nothing in it can be drawn, OSError for files that cannot be read or written.
    """
    from matplotlib.figure import Figure

    steps, epochs = _read(metrics)
    every: dict[str, tuple[bool, Callable]] = {
        "losses": (bool(_losses(steps)), lambda axes: _draw_losses(axes, steps)),
        "validation": (bool(_scores(epochs)), lambda axes: _draw_validation(axes, epochs)),
        "learning rate": (_has(steps, "learning_rate"), lambda axes: _draw_rate(axes, steps)),
        "gradient norm": (_has(steps, "gradient_norm"), lambda axes: _draw_norm(axes, steps)),
        "speed": (_has(steps, "images_per_second"), lambda axes: _draw_speed(axes, steps)),
    }
    panels = {name: draw for name, (there, draw) in every.items() if there}
    if not panels:
        raise InputError(f"{metrics}: holds no metrics to draw.")
    heights = [TALL.get(name, 1.0) for name in panels]
    figure = Figure(figsize=(WIDTH, HEIGHT * sum(heights) + 0.6), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    below = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, draw in zip(below, panels.values(), strict=True):
        _prepare(axes)
        draw(axes)
    figure.align_ylabels(below)
    _mark_epochs(below[-1], max(line["at"] for line in [*steps, *epochs]))
    with written_whole(picture) as file:
        figure.savefig(file, format="png", dpi=DOTS)


def _read(metrics: Path) -> tuple[list[Line], list[Line]]:
    """The lines about steps and about epochs, each with `at`: the epochs done by then."""
    steps, epochs = [], []
    with open_regular(metrics) as file:
        lines = file.read().splitlines()
    for text in lines:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if STEPS(line, "") is None:
                steps.append({**line, "at": (line["epoch"] - 1, line["step"])})
            elif EPOCH(line, "") is None:
                epochs.append({**line, "at": line["epoch"]})
    longest = max((line["at"][1] for line in steps), default=1)  # for files without `steps`
    for line in steps:
        whole, step = line["at"]
        line["at"] = whole + step / max(line.get("steps") or longest, 1)
    return steps, epochs


def _curve(lines: list[Line], name: str) -> Curve:
    """The finite values of that name, and where they are."""
    points = [(line["at"], float(line[name])) for line in lines if _is_number(line.get(name))]
    return [at for at, _ in points], [value for _, value in points]


def _is_number(value: object) -> bool:
    return NUMBER(value, "") is None


def _has(lines: list[Line], name: str) -> bool:
    return bool(_curve(lines, name)[0])


def _losses(steps: list[Line]) -> list[str]:
    """Names of the losses, the total first."""
    names = dict.fromkeys(name for line in steps for name in line if name != "at")
    parts = [name for name in names if name not in NO_LOSSES and _has(steps, name)]
    return ["total", *parts] if _has(steps, "total") else parts


def _scores(epochs: list[Line]) -> list[str]:
    return [name for name in SCORES if _has(_validations(epochs), name)]


def _validations(epochs: list[Line]) -> list[Line]:
    found = [line for line in epochs if isinstance(line.get("validation"), dict)]
    return [{**line["validation"], "at": line["at"], "best": line.get("best")} for line in found]


# ---- panels


def _draw_losses(axes, steps: list[Line]) -> None:
    colours = _colours()
    for name in _losses(steps):
        total = {"color": INK, "linewidth": 2.2, "zorder": 3}
        style = total if name == "total" else {"color": next(colours)}
        _plot(axes, _curve(steps, name), label=name, **style)
    axes.set_ylabel("loss, as weighted")
    if min(value for name in _losses(steps) for value in _curve(steps, name)[1]) >= 0:
        axes.set_ylim(bottom=0)
    _explain(axes)


def _draw_validation(axes, epochs: list[Line]) -> None:
    scored = _validations(epochs)
    colours = _colours()
    for name in _scores(epochs):
        _plot(axes, _curve(scored, name), label=name, color=next(colours), marker="o")
    best = [line for line in scored if line["best"] and _is_number(line.get("map_all"))]
    if best:
        at, value = best[-1]["at"], best[-1]["map_all"]
        axes.axvline(at, color=QUIET, linewidth=1, linestyle=":", zorder=1)
        said = f"best: epoch {at:.0f}, map_all {value:.4f}"
        axes.plot([at], [value], "o", color=INK, markersize=7, zorder=4, label=said)
    axes.set_ylabel("validation score, of 1")
    _explain(axes)


def _draw_rate(axes, steps: list[Line]) -> None:
    _plot(axes, _curve(steps, "learning_rate"), color=COLOURS[0])
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    axes.yaxis.get_offset_text().set(color=QUIET, fontsize=SMALL)


def _draw_norm(axes, steps: list[Line]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    at, values = _curve(steps, "gradient_norm")
    _plot(axes, (at, values), color=COLOURS[0])
    axes.set_ylabel("gradient norm")
    if min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def _draw_speed(axes, steps: list[Line]) -> None:
    _plot(axes, _curve(steps, "images_per_second"), color=COLOURS[0])
    axes.set_ylabel("images/s", color=COLOURS[0])
    axes.set_ylim(bottom=0)
    if not _has(steps, "data_wait"):
        return
    at, shares = _curve(steps, "data_wait")
    percent = [100 * share for share in shares]
    waits = axes.twinx()
    waits.fill_between(at, percent, color=COLOURS[1], alpha=0.3, linewidth=0)
    _plot(waits, (at, percent), color=COLOURS[1], linewidth=0.6)
    waits.set_ylim(0, 100)
    waits.set_ylabel("waiting for data, %", color=COLOURS[1], fontsize=SMALL)
    waits.tick_params(colors=COLOURS[1], length=0, labelsize=SMALL)
    waits.spines[:].set_visible(False)
    axes.set_zorder(waits.get_zorder() + 1)  # the speed before the waiting
    axes.patch.set_visible(False)


# ---- how they look


def _colours() -> Iterator[str]:
    """A colour for each curve; grey where no more colours differ enough."""
    return chain(COLOURS, repeat(QUIET))


def _plot(axes, curve: Curve, **style) -> None:
    """A line; few points get a mark each, one alone would not be seen."""
    few = {"marker": "o"} if len(curve[0]) <= 20 else {}
    axes.plot(*curve, **{"linewidth": 1.3, "markersize": 3.5, **few, **style})


def _prepare(axes) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=SMALL)
    axes.yaxis.label.set(color=INK, fontsize=SMALL)


def _explain(axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=SMALL)


def _mark_epochs(axes, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epochs done", color=INK, fontsize=SMALL)
    axes.set_xlim(0, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
