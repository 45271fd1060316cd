"""An object as a camera sees it: filled, textured, lit, before a blurred background."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from datasets.synthetic.drawn.pose import Pose
from datasets.synthetic.drawn.shapes import Part

OVERSAMPLING = 2
SHADOW = 0.45  # darkness of what a part's shadow falls on
LINES = 110  # darkness of outlines and details, of 255


@dataclass(frozen=True)
class Material:
    """How a surface looks. Ranges of hue (in turns), saturation and value; texture and gloss.

    grain: strength of the texture; stretch: of the texture along x; gloss: strength of highlights;
    pattern: whether it may be striped or dotted.
    """

    hue: tuple[float, float] = (0.0, 1.0)
    saturation: tuple[float, float] = (0.0, 1.0)
    value: tuple[float, float] = (0.3, 1.0)
    grain: float = 0.06
    stretch: int = 1
    gloss: float = 0.1
    pattern: bool = False


MATERIALS = {
    "bark": Material((0.03, 0.1), (0.3, 0.6), (0.25, 0.5), grain=0.25),
    "brick": Material((0.98, 1.08), (0.35, 0.8), (0.4, 0.75), grain=0.18, stretch=3, gloss=0),
    "ceramic": Material((0, 1), (0.05, 0.75), (0.55, 1.0), grain=0.02, gloss=0.45, pattern=True),
    "cloth": Material((0, 1), (0.2, 0.9), (0.35, 0.95), grain=0.1, gloss=0, pattern=True),
    "dark": Material((0, 1), (0.0, 0.3), (0.05, 0.25), grain=0.05, gloss=0.2),
    "drink": Material((0.93, 1.14), (0.6, 0.95), (0.35, 0.9), grain=0.02, gloss=0.4),
    "flame": Material((0.07, 0.16), (0.5, 0.95), (0.9, 1.0), grain=0.03, gloss=0.3),
    "food": Material((0.0, 0.17), (0.15, 0.7), (0.6, 0.98), grain=0.16, gloss=0.1),
    "fruit": Material((0.95, 1.18), (0.65, 0.95), (0.55, 0.95), grain=0.08, gloss=0.35),
    "fur": Material((0.02, 0.13), (0.05, 0.65), (0.25, 0.95), grain=0.22, gloss=0),
    "glass": Material((0.3, 0.65), (0.1, 0.55), (0.4, 0.9), grain=0.02, gloss=0.6),
    "leaf": Material((0.2, 0.42), (0.4, 0.85), (0.3, 0.75), grain=0.22, gloss=0.1),
    "metal": Material((0.1, 0.65), (0.0, 0.2), (0.4, 0.85), grain=0.04, stretch=6, gloss=0.6),
    "paint": Material((0, 1), (0.5, 0.95), (0.35, 0.95), grain=0.03, gloss=0.4),
    "paper": Material((0.08, 0.17), (0.02, 0.2), (0.85, 1.0), grain=0.04, gloss=0),
    "petal": Material((0.7, 1.17), (0.4, 0.9), (0.65, 1.0), grain=0.1, gloss=0.1),
    "plaster": Material((0, 1), (0.05, 0.35), (0.65, 0.98), grain=0.1, gloss=0),
    "rind": Material((0.08, 0.15), (0.6, 0.9), (0.55, 0.9), grain=0.18, gloss=0.1),
    "root": Material((0.03, 0.09), (0.7, 0.95), (0.7, 1.0), grain=0.08, gloss=0.2),
    "shell": Material((0.0, 0.45), (0.3, 0.8), (0.4, 0.85), grain=0.2, gloss=0.25),
    "skin": Material((0.0, 0.6), (0.2, 0.85), (0.4, 0.95), grain=0.12, gloss=0.3),
    "snow": Material((0.5, 0.65), (0.0, 0.08), (0.88, 1.0), grain=0.05, gloss=0.05),
    "stone": Material((0.05, 0.65), (0.02, 0.18), (0.4, 0.75), grain=0.25, stretch=2, gloss=0),
    "wafer": Material((0.07, 0.12), (0.35, 0.7), (0.65, 0.95), grain=0.16, gloss=0.1),
    "wax": Material((0.05, 0.2), (0.05, 0.4), (0.75, 1.0), grain=0.04, gloss=0.25),
    "wood": Material((0.05, 0.1), (0.35, 0.75), (0.3, 0.8), grain=0.2, stretch=10, gloss=0.1),
}

SCENES = [
    (
        Material((0.52, 0.64), (0.05, 0.5), (0.6, 1.0)),
        Material((0.18, 0.38), (0.2, 0.65), (0.3, 0.7)),
    ),
    (
        Material((0.52, 0.64), (0.0, 0.25), (0.7, 1.0)),
        Material((0.06, 0.14), (0.1, 0.5), (0.4, 0.9)),
    ),
    (
        Material((0.95, 1.12), (0.05, 0.45), (0.7, 1.0)),
        Material((0.5, 0.7), (0.1, 0.5), (0.25, 0.6)),
    ),
    (
        Material((0.05, 0.2), (0.0, 0.3), (0.6, 1.0)),
        Material((0.05, 0.1), (0.25, 0.65), (0.3, 0.75)),
    ),
    (
        Material((0.0, 1.0), (0.05, 0.45), (0.35, 0.95)),
        Material((0.0, 1.0), (0.0, 0.3), (0.3, 0.8)),
    ),
    (Material((0.2, 0.4), (0.1, 0.5), (0.3, 0.8)), Material((0.15, 0.3), (0.1, 0.5), (0.3, 0.7))),
]
"""What lies far and near: meadow, beach, evening, room, a coloured wall, bushes."""
CLUTTER = Material(saturation=(0.05, 0.65), value=(0.25, 0.95))


def draw_photo(parts: list[Part], pose: Pose, side: int, random: Generator) -> Image.Image:
    """RGB; the parts from back to front."""
    large = side * OVERSAMPLING
    angle = np.radians(random.uniform(-150, -30))
    light = np.float32([np.cos(angle), np.sin(angle)])  # from where it comes
    canvas = _background(large, random)
    surfaces: dict[str, _Surface] = {}
    for part in parts:
        if part.colour not in surfaces:
            surfaces[part.colour] = _Surface(MATERIALS[part.material], large, random)
        _paint(canvas, part, pose, surfaces[part.colour], light)
    canvas *= np.float32(random.uniform(0.85, 1.1) * random.uniform(0.95, 1.05, size=3))  # camera
    canvas += random.uniform(0.0, 0.03) * random.standard_normal(canvas.shape, dtype=np.float32)
    picture = Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))
    return picture.resize((side, side), Image.Resampling.BOX)


class _Surface:
    """The look that all parts of one colour share: (large, large, 3) of colour, and its gloss."""

    def __init__(self, material: Material, large: int, random: Generator):
        colour = _colour(material, random)
        self.gloss = material.gloss
        grain = _noise(large, 5, random, material.stretch) + _noise(large, 20, random)
        self.colour = colour * (1 + np.float32(material.grain) * grain[..., None])
        if material.pattern and random.random() < 0.45:
            other = _colour(material, random)
            x, y = np.meshgrid(*[np.linspace(0, 1, large, dtype=np.float32)] * 2)
            turn, count = random.uniform(0, np.pi), random.uniform(6, 14)
            u = np.sin(2 * np.pi * count * (x * np.cos(turn) + y * np.sin(turn)))
            v = np.sin(2 * np.pi * count * (y * np.cos(turn) - x * np.sin(turn)))
            mask = (u > 0.2) if random.random() < 0.6 else (u * v > 0.35)
            self.colour = np.where(mask[..., None], self.colour * other / colour, self.colour)


def _paint(canvas: np.ndarray, part: Part, pose: Pose, surface: _Surface, light) -> None:
    """Put a part on the canvas: its shadow on what lies behind, then its lit surface."""
    large = len(canvas)
    corners = np.array(pose.points(part.outline, large))
    reach = large // 12
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - reach, 0, large - 1)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + reach, 1, large)
    window, origin = (slice(top, bottom), slice(left, right)), (left, top)
    cover = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(cover).polygon([tuple(p) for p in corners - origin], fill=255)
    detail = Image.new("L", cover.size, 0)
    for stroke in part.strokes:
        line = [tuple(p) for p in np.array(pose.points(stroke, large)) - origin]
        ImageDraw.Draw(detail).line(line, fill=LINES, width=max(1, large // 110))

    thickness = large / 30  # over which the edge of the part rounds off
    soft = _levels(cover.filter(ImageFilter.GaussianBlur(thickness)))
    slope_y, slope_x = np.gradient(soft)
    facing = -(slope_x * light[0] + slope_y * light[1]) * thickness
    brightness = np.clip(0.92 + 0.85 * facing, 0.35, 1.35) * (1 - _levels(detail))
    shine = surface.gloss * np.clip(facing * 2 - 0.25, 0, 1) * (soft > 0.6)
    lit = (surface.colour[window] * brightness[..., None] + shine[..., None]).clip(0, 1)
    shift = np.round(-light * large / 45).astype(int)
    shadow = np.roll(soft, (shift[1], shift[0]), axis=(0, 1))[..., None]
    alpha = _levels(cover)[..., None]
    canvas[window] = canvas[window] * (1 - SHADOW * shadow) * (1 - alpha) + lit * alpha


def _background(large: int, random: Generator) -> np.ndarray:
    """One of the scenes, with blurred things standing about: (large, large, 3)."""
    far, near = (_colour(side, random) for side in SCENES[random.integers(len(SCENES))])
    clutter = [(far + near) / 2 * random.uniform(0.6, 1.2), _colour(CLUTTER, random)]
    horizon = random.uniform(0.4, 0.9) if random.random() < 0.6 else 2.0
    height = np.linspace(0, 1, large, dtype=np.float32)[:, None, None]
    ground = (1 + np.tanh((height - horizon) / random.uniform(0.01, 0.2))) / 2
    shade = 1 + random.uniform(-0.25, 0.25) * (height - 0.5)
    canvas = np.repeat((far * (1 - ground) + near * ground) * shade, large, axis=1)
    picture = Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(1, 8)):
        x, y = random.uniform(-0.1, 1.1, size=2) * large
        w, h = random.uniform(0.04, 0.3, size=2) * large
        mixed = clutter[0] + random.uniform(0, 0.8) * (clutter[1] - clutter[0])
        fill = tuple((mixed.clip(0, 1) * 255).astype(int).tolist())
        kind = random.integers(3)
        if kind == 0:
            draw.ellipse((x - w, y - h, x + w, y + h), fill=fill)
        elif kind == 1:
            draw.rectangle((x - w, y - h, x + w, y + h), fill=fill)
        else:
            draw.polygon(
                [(x - w, y + h), (x + w * random.uniform(-1, 1), y - h), (x + w, y)], fill=fill
            )
    picture = picture.filter(ImageFilter.GaussianBlur(large * random.uniform(0.015, 0.05)))
    mottled = 1 + np.float32(random.uniform(0.01, 0.06)) * _noise(
        large, random.integers(4, 30), random
    )
    return _levels(picture) * mottled[..., None]


def _colour(material: Material, random: Generator) -> np.ndarray:
    """An RGB colour of the material, each in [0, 1]."""
    hue, saturation = random.uniform(*material.hue), random.uniform(*material.saturation)
    value = random.uniform(*material.value)
    wheel = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return np.float32(value * (1 - saturation * (1 - wheel.clip(0, 1))))


def _noise(large: int, cells: int, random: Generator, stretch: int = 1) -> np.ndarray:
    """Smooth noise in about [-1, 1]: `cells` bumps across the picture, `stretch` as many down."""
    coarse = random.uniform(-1, 1, size=(cells * stretch, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((large, large), Image.Resampling.BICUBIC))


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255
