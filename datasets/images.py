"""One image -> the input of a network: bring to a common form, crop a sketch, scale.

Preprocessing of published ZSE-SBIR (Lin et al., CVPR 2023). Where that fails (transparent, faint,
coloured, inverted or empty sketches, palette photos), the image is first made into dark strokes
on white, or into RGB.
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datasets.benchmark import PHOTO, SKETCH
from datasets.opening import ImageSource, name_of, on_white, open_image
from utils.console import visible

WHITE = 255
INK = 300  # R + G + B of a pixel that is surely part of a stroke
MARGIN = 10  # px around the strokes
DARK = 128  # a background below this counts as black
FAINTEST = 8  # levels by which a stroke must differ from its background


@dataclass(frozen=True)
class Preprocessing:
    """Image -> tensor, as a method needs it.

    size: side of the square, in px. mean, std: per channel, of values in [0, 1]. crop: cut sketches
    to their strokes and keep their aspect; photos are always stretched to the square. draft: let
    the decoder shrink large JPEG photos on its way, never below `size`. That is faster, and changes
    levels a little: for training, not for evaluation.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool
    draft: bool = False

    def __call__(self, source: ImageSource, modality: str) -> Tensor:
        """(3, size, size), float32, normalised. Raises InputError for an unreadable file."""
        return self.normalise(self.levels(source, modality))

    def levels(self, source: ImageSource, modality: str) -> Tensor:
        """The same before normalising: (3, size, size), uint8."""
        image = open_image(source, self.size if self.draft and modality == PHOTO else None)
        if modality == SKETCH:
            pixels, ink = dark_on_white(image)
            if not ink.any():
                name = visible(name_of(source))
                warnings.warn(f"{name}: no stroke found; the sketch is empty.", stacklevel=2)
            if self.crop:
                return fit_sketch(pixels, self.size, ink)
            image = Image.fromarray(pixels)
        photo = on_white(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1)

    def normalise(self, levels: Tensor) -> Tensor:
        """What levels() returned, or a change of it -> what the network takes, on any device.

        (..., 3, S, S) uint8 -> the same shape in float32.
        """
        white, mean, std = (
            _channels(tuple(values), levels.device) for values in ((WHITE,), self.mean, self.std)
        )
        return (levels.float() / white - mean) / std


def dark_on_white(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """A sketch as dark strokes on white, (h, w, 3) uint8, and the mask (h, w) of its strokes.

    Ordinary sketches (dark ink on a light, opaque ground) pass unchanged. An empty one is white.
    """
    pixels = np.array(on_white(image))
    sums = sums_of(pixels)
    ink, dark_ground = sums <= INK, _has_dark_ground(sums)
    if ink.any() and not dark_ground:
        return pixels, ink
    if dark_ground:
        pixels = 255 - pixels
    elif image.has_transparency_data:  # light strokes on nothing: their shape is the opacity
        alpha = 255 - np.array(image.convert("RGBA"))[..., 3]
        if np.ptp(alpha) >= FAINTEST:
            pixels = np.repeat(alpha[..., None], 3, axis=2)
    ink = sums_of(pixels) <= INK
    if ink.any():
        return pixels, ink
    for side in (pixels, 255 - pixels):  # faint or light-coloured: stretch the darkest channel
        darkest = side.min(axis=2)
        low, ground = np.float32(darkest.min()), np.float32(np.median(darkest))
        if ground - low >= FAINTEST:
            stretched = ((np.arange(256, dtype=np.float32) - low) / (ground - low)).clip(0, 1) * 255
            grey = stretched.round().astype(np.uint8)[darkest]
            pixels = np.repeat(grey[..., None], 3, axis=2)
            return pixels, sums_of(pixels) <= INK
    return np.full_like(pixels, 255), ink


def fit_sketch(pixels: np.ndarray, size: int, ink: np.ndarray) -> Tensor:
    """Crop to the strokes, scale the longer side to `size`, pad to a square: (3, size, size) uint8.

    pixels: (h, w, 3) uint8. ink: mask (h, w) of the strokes. A sketch without a stroke keeps its
    frame.
    """
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        top, bottom = max(0, rows[0] - MARGIN), rows[-1] + MARGIN
        left, right = max(0, columns[0] - MARGIN), columns[-1] + MARGIN
        pixels = pixels[top:bottom, left:right]
    height, width = pixels.shape[:2]
    ratio = height / width
    if height > width:
        new_height, new_width = size, max(1, int(size / ratio))
    else:
        new_height, new_width = max(1, int(size * ratio)), size
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, (new_height, new_width), mode="bilinear", align_corners=False)
    image = image[0].round().to(torch.uint8)  # (3, new_height, new_width)
    above, before = (size - new_height) // 2, (size - new_width) // 2
    margins = (before, size - new_width - before, above, size - new_height - above)
    return F.pad(image, margins, value=int(image.max()))


def sums_of(pixels: np.ndarray) -> np.ndarray:
    """R + G + B of (h, w, 3) uint8: (h, w) uint16."""
    sums = np.add(pixels[..., 0], pixels[..., 1], dtype=np.uint16)
    sums += pixels[..., 2]
    return sums


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1) on the device, made once: at every call the device would be waited for.

    A tensor even of one number: GPUs multiply by the inverse of a plain one, which rounds twice.
    """
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _has_dark_ground(sums: np.ndarray) -> bool:
    """Whether most of the picture, and most of its border, is dark. sums: R + G + B, (h, w)."""
    if 2 * np.count_nonzero(sums >= 3 * DARK) > sums.size:  # as in most: no median is needed
        return False
    border = np.concatenate([sums[0], sums[-1], sums[:, 0], sums[:, -1]])
    return bool(np.median(sums) < 3 * DARK and np.median(border) < 3 * DARK)
