"""One image file -> what a network sees: open, bring to a common form, crop a sketch, scale.

Preprocessing of published ZSE-SBIR (Lin et al., CVPR 2023). Where that fails (transparent, faint,
coloured, inverted or empty sketches, palette photos), the image is first made into dark strokes
on white, or into RGB.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from datasets.benchmark import SKETCH
from utils.errors import InputError

INK = 300  # R + G + B of a pixel that is surely part of a stroke
MARGIN = 10  # px around the strokes
DARK = 128  # a background below this is taken for black
FAINTEST = 8  # levels by which a stroke must differ from its background


@dataclass(frozen=True)
class Preprocessing:
    """Image file -> tensor, as a method asks for it.

    size: side of the square, in px. mean, std: per channel, of values in [0, 1]. crop: cut sketches
    to their strokes and keep their aspect; photos are always stretched to the square.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool

    def __call__(self, file: Path, modality: str) -> Tensor:
        """(3, size, size), float32, normalised. Raises InputError for an unreadable file."""
        return self.normalise(self.levels(file, modality))

    def levels(self, file: Path, modality: str) -> Tensor:
        """The same before normalising: (3, size, size), uint8."""
        image = open_image(file)
        if modality == SKETCH:
            strokes, empty = dark_on_white(image)
            if empty:
                warnings.warn(f"{file}: no stroke found; the sketch is empty.", stacklevel=2)
            if self.crop:
                return fit_sketch(strokes, self.size)
            image = Image.fromarray(strokes)
        photo = on_white(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1)

    def normalise(self, levels: Tensor) -> Tensor:
        """What levels() returned, or a change of it -> what the network takes, (3, S, S)."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return (levels.float() / 255 - mean) / std


def open_image(file: Path) -> Image.Image:
    """A decoded image, upright. Raises InputError where the file is absent or no image."""
    try:
        with Image.open(file) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
        raise InputError(f"{file}: {reason}.") from error


def on_white(image: Image.Image) -> Image.Image:
    """RGB of an image of any mode; transparent parts become white, 16-bit grey becomes 8-bit."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def dark_on_white(image: Image.Image) -> tuple[np.ndarray, bool]:
    """A sketch as dark strokes on white, (h, w, 3) uint8, and whether it is empty.

    Ordinary sketches (dark ink on a light, opaque ground) pass unchanged.
    """
    pixels = np.array(on_white(image))
    if _inked(pixels).any() and not _has_dark_ground(pixels):
        return pixels, False
    if _has_dark_ground(pixels):
        pixels = 255 - pixels
    elif image.has_transparency_data:  # light strokes on nothing: their shape is the opacity
        alpha = 255 - np.array(image.convert("RGBA"))[..., 3]
        if np.ptp(alpha) >= FAINTEST:
            pixels = np.repeat(alpha[..., None], 3, axis=2)
    if _inked(pixels).any():
        return pixels, False
    for side in (pixels, 255 - pixels):  # faint or light-coloured: stretch the darkest channel
        darkest = side.min(axis=2).astype(np.float32)
        low, ground = darkest.min(), np.median(darkest)
        if ground - low >= FAINTEST:
            stretched = ((darkest - low) / (ground - low)).clip(0, 1) * 255
            return np.repeat(stretched.round().astype(np.uint8)[..., None], 3, axis=2), False
    return np.full_like(pixels, 255), True


def fit_sketch(pixels: np.ndarray, size: int) -> Tensor:
    """Crop to the strokes, scale the longer side to `size`, pad to a square: (3, size, size) uint8.

    pixels: (h, w, 3) uint8. A sketch without a stroke keeps its frame.
    """
    rows, columns = np.nonzero(_inked(pixels))
    if len(rows):
        top, bottom = max(0, rows.min() - MARGIN), rows.max() + MARGIN
        left, right = max(0, columns.min() - MARGIN), columns.max() + MARGIN
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


def _inked(pixels: np.ndarray) -> np.ndarray:
    """Mask (h, w) of the pixels dark enough to be strokes."""
    return pixels.sum(axis=2, dtype=np.int32) <= INK


def _has_dark_ground(pixels: np.ndarray) -> bool:
    """Whether most of the picture, and most of its border, is dark."""
    grey = pixels.mean(axis=2)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(np.median(grey) < DARK and np.median(border) < DARK)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or more bits, or of floats, brought to 0..255."""
    values = np.array(image, dtype=np.float64)
    top = 65535 if image.mode.startswith("I") and values.max(initial=0) > 255 else 255
    if image.mode == "F" and values.max(initial=0) <= 1:
        top = 1
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
