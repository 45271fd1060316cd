"""Shapes and parts: outlines as arrays of points, and the measures of one instance.

Points are (N, 2) arrays of x (to the right) and y (downwards); an object about fills the square
from -1 to 1. An outline is closed: its last point joins its first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

STEP = 0.04  # distance between the points of a curve
MISJUDGED = 0.2  # by how much of its range a sketcher mistakes a measure (standard deviation)


@dataclass
class Part:
    """A named part of an object.

    outline: what it covers. strokes: the lines by which one draws it, closed ones ending where they
    began; the first is the part's shape, the others are its detail. material: a key of MATERIALS in
    photo.py. colour: parts of one object with the same word look alike.
    """

    name: str
    material: str
    outline: np.ndarray
    strokes: list[np.ndarray]
    colour: str


class Measures:
    """Draws the proportions of one instance, the same ones whenever its generator is the same.

    misjudged: for the sketch of an instance, the generator of the sketcher's mistakes.
    """

    def __init__(self, instance: Generator, misjudged: Generator | None = None):
        self.instance = instance
        self.misjudged = misjudged

    def __call__(self, low: float, high: float) -> float:
        """A length or angle between low and high."""
        share = self.instance.random()
        if self.misjudged is not None:
            share = np.clip(share + self.misjudged.normal(0, MISJUDGED), 0, 1)
        return float(low + share * (high - low))

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high; sketchers count right."""
        return int(self.instance.integers(low, high + 1))

    def maybe(self, chance: float = 0.5) -> bool:
        """True with this probability; sketchers see whether something is there."""
        return bool(self.instance.random() < chance)


def solid(name: str, material: str, outline: np.ndarray, *lines: np.ndarray, colour="") -> Part:
    """A part that one draws by its outline and the lines upon it."""
    return Part(name, material, outline, [closed(outline), *lines], colour or name)


def rod(name: str, material: str, points: np.ndarray, width: float, colour: str = "") -> Part:
    """A thin part that one draws as a single line. width: of the part, from edge to edge."""
    return Part(name, material, tube(points, width), [points], colour or name)


def closed(outline: np.ndarray) -> np.ndarray:
    """The outline as a line that ends where it began."""
    return np.concatenate([outline, outline[:1]])


def line(*points: tuple[float, float]) -> np.ndarray:
    """A straight line through the points."""
    return np.array(points, dtype=float)


polygon = line


def box(left: float, top: float, right: float, bottom: float, rounded: float = 0.0) -> np.ndarray:
    """A rectangle; rounded: radius of its corners."""
    if not rounded:
        return polygon((left, top), (right, top), (right, bottom), (left, bottom))
    corners = (
        (right - rounded, top + rounded, -90),
        (right - rounded, bottom - rounded, 0),
        (left + rounded, bottom - rounded, 90),
        (left + rounded, top + rounded, 180),
    )
    return np.concatenate(
        [ellipse(x, y, rounded, rounded, start, start + 90) for x, y, start in corners]
    )


def ellipse(x, y, rx, ry=None, start: float = 0, stop: float = 360) -> np.ndarray:
    """An ellipse about (x, y), or its arc between two angles in degrees (0 right, 90 down)."""
    ry = rx if ry is None else ry
    count = max(6, round(np.radians(abs(stop - start)) * max(rx, ry) / STEP))
    angles = np.radians(np.linspace(start, stop, count, endpoint=abs(stop - start) < 360))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def ring(x: float, y: float, rx: float, ry: float | None = None) -> np.ndarray:
    """The line around an ellipse, ending where it began: a ring once it is a tube."""
    return closed(ellipse(x, y, rx, ry))


def curve(*points: tuple[float, float]) -> np.ndarray:
    """A smooth line through the points (a Catmull-Rom spline)."""
    knots = np.array(points, dtype=float)
    return _spline(
        np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    )


def blob(*points: tuple[float, float]) -> np.ndarray:
    """A smooth outline through the points."""
    knots = np.array(points, dtype=float)
    return _spline(np.concatenate([knots[-1:], knots, knots[:2]]))[:-1]


def mirrored(*points: tuple[float, float]) -> np.ndarray:
    """A smooth outline, symmetric about x = 0, from its right side's points, top to bottom."""
    return blob(*points, *[(-x, y) for x, y in reversed(points) if x])


def tube(points: np.ndarray, width: float, end_width: float | None = None) -> np.ndarray:
    """The outline of a band along a line, from edge to edge `width`, changing to `end_width`."""
    widths = np.linspace(width, width if end_width is None else end_width, len(points))[:, None]
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * widths / 2
    return np.concatenate([points + across, (points - across)[::-1]])


def turned(points: np.ndarray, degrees: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """The points turned clockwise about (x, y)."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - [x, y]) @ turn + [x, y]


def _spline(knots: np.ndarray) -> np.ndarray:
    """Points of the Catmull-Rom spline from the second to the last but one of the knots."""
    pieces = []
    for a, b, c, d in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        count = max(3, round(np.linalg.norm(c - b) / STEP))
        t = np.linspace(0, 1, count, endpoint=False)[:, None]
        pieces.append(
            b
            + t * (c - a) / 2
            + t**2 * (2 * a - 5 * b + 4 * c - d) / 2
            + t**3 * (3 * b - a - 3 * c + d) / 2
        )
    return np.concatenate([*pieces, knots[-2:-1]])
