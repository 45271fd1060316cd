"""An object as somebody sketches it: wobbly strokes with gaps, some of it left out."""

from dataclasses import replace

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from datasets.synthetic.drawn.pose import Pose
from datasets.synthetic.drawn.shapes import STEP, Part

OVERSAMPLING = 3
SMALL = 0.03  # share of the picture below which a part may be left out,
SHORT = 0.3  # unless it is longer than this, as what holds others together is
WAVES = 5  # periods of a stroke's tremor along it


def leave_out(parts: list[Part], random: Generator) -> list[Part]:
    """What a hasty hand draws of the parts: all large ones, most small ones and most detail."""
    kept = []
    for part in parts:
        width, height = np.ptp(part.outline, axis=0) / 2
        small = width * height < SMALL and max(width, height) < SHORT
        if small and random.random() < 0.12:
            continue
        lines = [stroke for stroke in part.strokes[1:] if random.random() < 0.75]
        kept.append(replace(part, strokes=[part.strokes[0], *lines]))
    return kept or parts[-1:]


def draw_sketch(parts: list[Part], pose: Pose, side: int, random: Generator) -> Image.Image:
    """Dark strokes on white, mode "L", of the parts from back to front."""
    large = side * OVERSAMPLING
    picture = Image.new("L", (large, large), 255)
    draw = ImageDraw.Draw(picture)
    hand = _Hand(random)
    for part in parts:
        if not hand.draws_through:
            draw.polygon(pose.points(part.outline, large), fill=255)
        for number, stroke in enumerate(part.strokes):
            for _ in range(hand.repeats):
                for piece in hand.pieces(hand.tremble(stroke)):
                    points = pose.points(piece, large)
                    width = hand.width * (0.75 if number else 1.0) * random.uniform(0.85, 1.15)
                    _draw_line(draw, points, max(2, round(width * large)), hand.ink)
    return picture.resize((side, side), Image.Resampling.BOX)


class _Hand:
    """The manner of one sketcher: how thick, how shaky, how careless."""

    def __init__(self, random: Generator):
        self.random = random
        self.width = random.uniform(0.013, 0.028)  # of a stroke, in sides of the picture
        self.shake = random.uniform(0.006, 0.022)  # in units of the object
        self.gaps = random.uniform(0, 1.2)  # expected number in a long stroke
        self.ink = int(random.integers(0, 60))
        self.repeats = 2 if random.random() < 0.2 else 1
        self.draws_through = random.random() < 0.08

    def tremble(self, stroke: np.ndarray) -> np.ndarray:
        """The stroke with evenly spaced points, shaken along its way and displaced as a whole."""
        points = evenly_spaced(stroke)
        along = np.linspace(0, 1, len(points))[:, None]
        wave = np.zeros_like(points)
        for period in range(1, WAVES + 1):
            phase, size = self.random.uniform(0, 2 * np.pi, 2), self.random.normal(0, 1, 2)
            wave += size / np.sqrt(period) * np.sin(2 * np.pi * period * along + phase)
        return points + self.shake * (wave + self.random.normal(0, 1.2, 2))

    def pieces(self, stroke: np.ndarray) -> list[np.ndarray]:
        """The stroke from anywhere on it if it is closed, ended early or late, with its gaps."""
        count = len(stroke)
        if count > 12 and np.linalg.norm(stroke[0] - stroke[-1]) < 0.15:
            start = int(self.random.integers(count))
            stroke = np.concatenate([stroke[start:], stroke[:start]])
            over = int(self.random.integers(-2, 4))
            stroke = np.concatenate([stroke, stroke[:over]]) if over > 0 else stroke[: count + over]
        gaps = self.random.poisson(self.gaps) if count > 16 else 0
        for at in self.random.integers(3, max(4, count - 6), size=gaps):
            stroke = np.concatenate([stroke[:at], np.full((1, 2), np.nan), stroke[at + 3 :]])
        breaks = np.flatnonzero(np.isnan(stroke[:, 0]))
        return [p[~np.isnan(p[:, 0])] for p in np.split(stroke, breaks) if len(p) > 2]


def evenly_spaced(stroke: np.ndarray, step: float = STEP) -> np.ndarray:
    """Points on the stroke at most about `step` apart, its corners among them."""
    length = np.linalg.norm(np.diff(stroke, axis=0), axis=1)
    counts = np.maximum(1, np.round(length / step)).astype(int)
    corner = np.arange(len(stroke))
    places = [i + np.arange(count) / count for i, count in enumerate(counts)]
    places = np.concatenate([*places, corner[-1:]])
    return np.stack([np.interp(places, corner, stroke[:, axis]) for axis in (0, 1)], axis=1)


def _draw_line(draw: ImageDraw.ImageDraw, points: list, width: int, ink: int) -> None:
    """A line with round joints and ends."""
    draw.line(points, fill=ink, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        r = width / 2
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
