"""Where an object stands in its picture, and which part covers which pixel."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from datasets.synthetic.drawn.shapes import Part


@dataclass(frozen=True)
class Pose:
    """How points of the unit square come into a picture: matrix @ point + shift, in its sides."""

    matrix: np.ndarray
    shift: np.ndarray

    def points(self, points: np.ndarray, side: int) -> list[tuple[float, float]]:
        """Pixel positions in a picture of `side` pixels, as PIL takes them."""
        return [tuple(p) for p in ((points @ self.matrix.T + self.shift) * side).tolist()]


def draw_pose(
    parts: list[Part],
    random: Generator,
    *,
    size: tuple[float, float],
    turn: float,
    shear: float,
    margin: float,
    flip: bool,
) -> Pose:
    """A pose in which all of the object is in the picture.

    size: shortest and longest extent, in sides of the picture. turn: standard deviation in degrees;
    shear: of x by y, and of the aspect; margin: free at every edge, in sides of the picture; flip:
    whether left and right are exchanged.
    """
    angle = np.radians(random.normal(0, turn))
    stretch = np.exp(random.normal(0, shear))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = matrix @ np.array([[stretch, random.normal(0, shear)], [0, 1 / stretch]])
    matrix = matrix @ np.diag([-1.0 if flip else 1.0, 1.0])
    points = np.concatenate([part.outline for part in parts]) @ matrix.T
    low, high = points.min(axis=0), points.max(axis=0)
    scale = random.uniform(*size) / (high - low).max()
    room = np.maximum((1 - (high - low) * scale) / 2 - margin, 0)
    where = 0.5 + random.uniform(-1, 1, size=2) * room
    return Pose(matrix * scale, where - (low + high) / 2 * scale)


def part_labels(parts: list[Part], pose: Pose, side: int, names: list[str]) -> Image.Image:
    """Which part one sees at each pixel: number in `names`, from 1; 0: none. Mode "L"."""
    labels = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(labels)
    for part in parts:
        draw.polygon(pose.points(part.outline, side), fill=names.index(part.name) + 1)
    return labels
