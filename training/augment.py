"""Augmentation of training sketches and photos.

Every number is in the tables below. All chance comes from the numpy generator that the caller
gives, so an augmented picture is a pure function of the picture and the generator's seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from datasets.benchmark import SKETCH


@dataclass(frozen=True)
class SketchRanges:
    """Ranges of the changes of a sketch, drawn uniformly. One number a: from -a to a."""

    rotation: float  # degrees
    shift: float  # in each direction, in sides of the square
    scale: tuple[float, float]
    shear: float  # degrees
    thicker: float  # probability; never together with thinner
    thinner: float  # probability
    erased: float  # probability that a white square hides a part
    square: tuple[float, float]  # its side, in sides of the picture


@dataclass(frozen=True)
class PhotoRanges:
    """Ranges of the changes of a photo, drawn uniformly but for the aspect."""

    area: tuple[float, float]  # of the crop, in areas of the picture
    aspect: float  # width / height of the crop: log-uniform from this to its inverse
    factor: tuple[float, float]  # each of brightness, contrast and saturation
    hue: float  # turns of the colour wheel, from -hue to hue
    grey: float  # probability
    edges: float  # probability that the photo's edge map takes its place


@dataclass(frozen=True)
class Ranges:
    """An augmentation. flip: probability of mirroring left to right. None: nothing more is done."""

    flip: float
    sketch: SketchRanges | None = None
    photo: PhotoRanges | None = None


RANGES = {
    "none": Ranges(flip=0),
    "flip": Ranges(flip=0.5),
    "light": Ranges(
        flip=0.5,
        sketch=SketchRanges(
            rotation=8,
            shift=0.04,
            scale=(0.85, 1.05),
            shear=4,
            thicker=0,
            thinner=0,
            erased=0,
            square=(0, 0),
        ),
        photo=PhotoRanges(area=(0.7, 1), aspect=0.85, factor=(0.8, 1.2), hue=0.02, grey=0, edges=0),
    ),
    "strong": Ranges(
        flip=0.5,
        sketch=SketchRanges(
            rotation=15,
            shift=0.08,
            scale=(0.8, 1.1),
            shear=8,
            thicker=0.25,
            thinner=0.15,
            erased=0.5,
            square=(0.15, 0.4),
        ),
        photo=PhotoRanges(
            area=(0.5, 1), aspect=0.75, factor=(0.7, 1.3), hue=0.05, grey=0.2, edges=0.15
        ),
    ),
}
"""Augmentations by name (--augment)."""
THICKER, THINNER = 3, 2  # px: sides of the windows that widen and narrow strokes
SMOOTHING = 1.0  # px: standard deviation of the blur before edges are found
BLACK_EDGES = 0.97  # quantile of the steepness from which on an edge is black
STEEPEST = 2.0  # levels per px: a photo that has nothing steeper stays light


def augment(levels: Tensor, modality: str, kind: str, random: np.random.Generator) -> Tensor:
    """A changed copy of a picture, (3, S, S) uint8, as `Preprocessing.levels` returns it.

    kind: a key of RANGES; 'none' returns the picture itself. Sketches are dark strokes on white and
    remain so.
    """
    ranges = RANGES[kind]
    if random.random() < ranges.flip:
        levels = levels.flip(-1)
    if modality == SKETCH:
        return levels if ranges.sketch is None else _change_sketch(levels, ranges.sketch, random)
    return levels if ranges.photo is None else _change_photo(levels, ranges.photo, random)


def edge_map(levels: Tensor) -> Tensor:
    """A photo as a drawing of its edges, dark on white: (3, S, S) uint8 of (3, S, S) uint8."""
    grey = v2.functional.rgb_to_grayscale(levels.float())
    smooth = v2.functional.gaussian_blur(grey, [5, 5], [SMOOTHING, SMOOTHING])
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None]  # (2, 1, 3, 3), levels per px
    padded = F.pad(smooth[None], (1, 1, 1, 1), mode="replicate")
    steepness = F.conv2d(padded, kernels)[0].square().sum(dim=0).sqrt()  # (S, S)
    black = max(float(np.quantile(steepness.numpy(), BLACK_EDGES)), STEEPEST)
    drawing = 255 * (1 - (steepness / black).clamp(max=1))
    return drawing.round().to(torch.uint8).repeat(3, 1, 1)


def turn_hue(colours: Tensor, turns: float) -> Tensor:
    """Colours (3, h, w) in [0, 1] turned around the axis of greys: by 1/3, red becomes green.

    Keeps the mean of a colour, where torchvision's `adjust_hue` keeps the largest: its way through
    HSV takes twice as long as all else that is done to a photo.
    """
    angle = 2 * math.pi * turns
    same, cross = math.cos(angle), math.sin(angle) / math.sqrt(3)
    both = (1 - same) / 3
    one, next_one, last_one = same + both, both - cross, both + cross
    matrix = torch.tensor(
        [[one, next_one, last_one], [last_one, one, next_one], [next_one, last_one, one]]
    )
    return (matrix @ colours.flatten(1)).view_as(colours).clamp(0, 1)


def _change_sketch(levels: Tensor, ranges: SketchRanges, random: np.random.Generator) -> Tensor:
    side = levels.shape[-1]
    # Ink is moved, not paper: what comes in from outside is then 0, no ink. torchvision's own
    # filling with white would leave a grey line where the picture ended.
    ink = v2.functional.affine(
        255 - levels,
        angle=random.uniform(-ranges.rotation, ranges.rotation),
        translate=list(random.uniform(-ranges.shift, ranges.shift, size=2) * side),
        scale=random.uniform(*ranges.scale),
        shear=[random.uniform(-ranges.shear, ranges.shear), 0.0],
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    levels = 255 - ink
    width = random.random()
    if width < ranges.thicker:
        levels = _over_windows(levels, THICKER, torch.minimum)
    elif width > 1 - ranges.thinner:
        levels = _over_windows(levels, THINNER, torch.maximum)
    if random.random() < ranges.erased:
        square = round(random.uniform(*ranges.square) * side)
        top, left = random.integers(side - square + 1, size=2)
        levels[:, top : top + square, left : left + square] = 255
    return levels


def _over_windows(levels: Tensor, window: int, choose: Callable) -> Tensor:
    """Each pixel becomes the chosen one of a square window around it; white lies outside."""
    side, before = levels.shape[-1], (window - 1) // 2
    after = window - 1 - before
    levels = F.pad(levels, (before, after, before, after), value=255)
    levels = reduce(choose, [levels[:, i : i + side] for i in range(window)])
    return reduce(choose, [levels[:, :, i : i + side] for i in range(window)])  # (3, S, S)


def _change_photo(levels: Tensor, ranges: PhotoRanges, random: np.random.Generator) -> Tensor:
    levels = _crop(levels, ranges, random)
    if random.random() < ranges.edges:
        return edge_map(levels)
    brightness, contrast, saturation = random.uniform(*ranges.factor, size=3)
    colours = levels.float() / 255  # rounded once, at the end
    colours = v2.functional.adjust_brightness(colours, brightness)
    colours = v2.functional.adjust_contrast(colours, contrast)
    colours = v2.functional.adjust_saturation(colours, saturation)
    colours = turn_hue(colours, random.uniform(-ranges.hue, ranges.hue))
    if random.random() < ranges.grey:
        colours = v2.functional.rgb_to_grayscale(colours, num_output_channels=3)
    return (colours * 255).round().to(torch.uint8)


def _crop(levels: Tensor, ranges: PhotoRanges, random: np.random.Generator) -> Tensor:
    """A random part, stretched to the square again."""
    side = levels.shape[-1]
    area = random.uniform(*ranges.area)
    widest = min(math.log(1 / ranges.aspect), math.log(1 / area))  # a wider crop would not fit
    aspect = math.exp(random.uniform(-widest, widest))
    width = round(side * math.sqrt(area * aspect))
    height = round(side * math.sqrt(area / aspect))
    top = int(random.integers(side - height + 1))
    left = int(random.integers(side - width + 1))
    return v2.functional.resized_crop(levels, top, left, height, width, [side, side])
