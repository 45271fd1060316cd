"""Sketches as people have them: photos of drawings on shaded paper, coloured lines, SVG.

Only for searching with one's own sketch. Benchmarks are read by images.py alone; a sketch that is
clean already is not changed.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datasets import svg
from datasets.images import INK, dark_on_white, sums_of
from datasets.opening import ImageSource, is_transparent, on_white, open_image, unreadable
from utils.files import open_regular

SVG_ENDINGS = {".svg", ".svgz"}
SIDE = 768  # px: longer side of a cleaned sketch
GROUND_SIDE = 192  # px: longer side where the paper is measured
STROKE, THIN = 25, 5  # px there: wider than all strokes, than most
SMOOTH, DEGREE, ROUNDS = 13, 3, 4  # of the paper's light: px there; of a polynomial
FLAT = 0.35  # share of pixels in the colour of the ground, of what a program drew
GREYEST = 235  # level of paper that a program draws
COLOUR = 64  # between the channels of a coloured pixel
FAINTEST, DEVIATIONS = 0.08, 4.0  # of a stroke: share of light that it takes; of the noise
MOST_INK = 0.4  # share of the picture, of a drawing


def ready_sketch(sketch: ImageSource, clean: str = "auto") -> tuple[Image.Image, str]:
    """An image that Preprocessing reads well, and what was done to the sketch ("": nothing).

    clean: "auto", "always" or "never"; whether shading of paper is removed and colours are made
    dark: where the picture looks like it, always, or never. Raises InputError for an unreadable
    file.
    """
    notes = []
    if not isinstance(sketch, Image.Image) and Path(sketch).suffix.lower() in SVG_ENDINGS:
        image, note = _drawn_svg(sketch)
        notes.append(note)
    else:
        image = open_image(sketch)
    pixels, note = cleaned(image) if clean != "never" else (None, "")
    if pixels is None and clean == "always":
        pixels = without_shading(np.array(on_white(image)))
        note = "shading of the paper removed" if pixels is not None else ""
    if pixels is not None:
        image = Image.fromarray(pixels)
    notes += [note] if note else _done_by_preprocessing(image)
    return image, "; ".join(notes)


def cleaned(image: Image.Image) -> tuple[np.ndarray | None, str]:
    """A sketch that needs it as dark strokes on white, (h, w, 3) uint8, and what was done.

    None where it is clean, or empty; transparent ones are clean.
    """
    if is_transparent(image):
        return None, ""
    pixels = np.array(on_white(image))
    if looks_photographed(pixels):
        found = without_shading(pixels)
        if found is not None:
            return found, "a photo of a drawing: shading of the paper removed"
    elif _has_coloured_lines(pixels):
        return _without_colours(pixels), "coloured lines made dark"
    return None, ""


def looks_photographed(pixels: np.ndarray) -> bool:
    """Whether the ground is paper and not filled by a program: of many shades, or grey and grainy.

    pixels: (h, w, 3) uint8.
    """
    grey = ((sums_of(pixels) + 1) // 3).astype(np.uint8)  # the mean, rounded
    counts = np.array(Image.fromarray(grey).histogram())
    ground = int(counts.argmax())
    near = counts[max(0, ground - 2) : ground + 3].sum()
    if near < FLAT * grey.size:
        return True
    return ground < GREYEST and counts[ground] < FLAT * grey.size


def without_shading(pixels: np.ndarray) -> np.ndarray | None:
    """Strokes on evenly white paper, (h, w, 3) uint8; None where none stand out.

    The light of each pixel is divided by that of the paper around it, measured beside the strokes.
    The ratio is stretched from the noise of the paper to the darkness of the strokes.
    """
    channels = torch.from_numpy(pixels).permute(2, 0, 1)[None].split(1, dim=1)
    light = torch.cat([_scaled(channel.float(), SIDE) for channel in channels], dim=1)
    if _light_on_dark(light):
        light = 255 - light
    ratio = _smooth(light / _ground(light).clamp(min=1), 3)  # (1, 3, h, w)
    darkest = ratio.min(dim=1, keepdim=True).values  # coloured strokes are dark in some channel
    for _ in range(2):  # the paper's grain shows more where it is dark: even out what is no stroke
        paper = darkest > darkest.median() - FAINTEST
        darkest = darkest / _mean_of(darkest, paper).clamp(min=1e-3)
    depth = 1 - darkest[0, 0]  # (h, w)
    noise = 1.4826 * depth.abs().median()
    faintest = max(FAINTEST, float(DEVIATIONS * noise))
    ink = _without_specks(depth > faintest)
    if not 0 < ink.float().mean() < MOST_INK:
        return None
    full, none = depth[ink].quantile(0.6), faintest / 2
    near_ink = _spread(ink[None, None].float(), 5)[0, 0] > 0
    depth = ((depth - none) / (full - none)).clamp(0, 1) * near_ink
    grey = (255 * (1 - depth)).round().to(torch.uint8).numpy()
    return np.repeat(grey[..., None], 3, axis=2)


def _ground(light: Tensor) -> Tensor:
    """The light of the paper at each pixel, (1, C, h, w), as it is beside the strokes."""
    small = _smooth(_scaled(light, GROUND_SIDE), 3).clamp(min=1)
    surface = _surface(small)
    closed = -_spread(-_spread(small / surface, STROKE), STROKE)
    ground = surface * _smooth(_smooth(closed, SMOOTH), SMOOTH)
    return F.interpolate(ground, light.shape[2:], mode="bilinear", align_corners=False)


def _mean_of(values: Tensor, which: Tensor) -> Tensor:
    """The mean of some of the values (1, 1, h, w) around each pixel; where there are none, 1."""
    sums = [_scaled(part.float(), GROUND_SIDE) for part in (values * which, which)]
    total, count = (_smooth(_smooth(part, STROKE), STROKE) for part in sums)
    mean = torch.where(count > 0.05, total / count.clamp(min=0.05), 1)
    return F.interpolate(mean, values.shape[2:], mode="bilinear", align_corners=False)


def _surface(light: Tensor) -> Tensor:
    """A smooth surface through the lighter parts of each channel, (1, C, h, w): lamp and lens.

    A polynomial of the logarithm; without it, paper that darkens towards the edge would look drawn.
    """
    C, h, w = light.shape[1:]
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (h, w))
    powers = [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    terms = torch.stack([(y[:, None] ** i * x**j).flatten() for i, j in powers], dim=1)  # (hw, P)
    values = light.double().log().flatten(2)[0].T  # (hw, C)
    paper = torch.ones(len(values), dtype=torch.bool)
    for _ in range(ROUNDS):
        fitted = terms @ torch.linalg.lstsq(terms[paper], values[paper]).solution
        paper = (values > fitted - FAINTEST).all(dim=1)
        if paper.sum() < len(powers):
            break
    return fitted.T.exp().float().view(1, C, h, w)


def _light_on_dark(light: Tensor) -> bool:
    """Whether the strokes are chalk: the ground is dark, and thin lines on it are lighter."""
    grey = _scaled(light.mean(dim=1, keepdim=True), GROUND_SIDE)
    if grey.median() >= 128:
        return False
    closed, opened = -_spread(-_spread(grey, THIN), THIN), _spread(-_spread(-grey, THIN), THIN)
    return bool((grey - opened).mean() > (closed - grey).mean())


def _without_specks(ink: Tensor) -> Tensor:
    """The mask (h, w) without marks shorter than a stroke of about 1 % of the side."""
    window = max(3, max(ink.shape) // 50 | 1)
    around = _smooth(ink[None, None].float(), window)[0, 0] * window**2
    return ink & (around >= window)


def _has_coloured_lines(pixels: np.ndarray) -> bool:
    """Whether a good part of the drawing, on a light, flat ground, is coloured."""
    ground = _ground_colour(pixels)
    if ground.sum() <= 2 * INK:
        return False
    is_drawn = np.zeros(pixels.shape[:2], dtype=bool)
    for channel, level in enumerate(ground.tolist()):
        values = pixels[..., channel]
        is_drawn |= (values > level + COLOUR) | (values < level - COLOUR)
    drawn = pixels[is_drawn]
    coloured = np.ptp(drawn, axis=1) > COLOUR if len(drawn) else np.zeros(1)
    return bool(coloured.mean() > 0.2)


def _without_colours(pixels: np.ndarray) -> np.ndarray:
    """Every stroke as dark as its darkest channel beside the ground's."""
    shares = np.arange(256) / _ground_colour(pixels).clip(min=1)[:, None]  # (3, 256)
    values, ranks = np.unique(shares, return_inverse=True)  # ranks take less memory than shares
    ranks = ranks.reshape(shares.shape).astype(np.uint16)
    darkest = np.minimum(ranks[0][pixels[..., 0]], ranks[1][pixels[..., 1]])
    darkest = np.minimum(darkest, ranks[2][pixels[..., 2]])  # (h, w)
    strokes = values[darkest[(values < 1 - FAINTEST)[darkest]]]
    low = min(np.quantile(strokes, 0.2) if len(strokes) else 0.0, 0.9)
    grey = (((values - low) / (1 - low)).clip(0, 1) * 255).round().astype(np.uint8)[darkest]
    return np.repeat(grey[..., None], 3, axis=2)


def _ground_colour(pixels: np.ndarray) -> np.ndarray:
    """The median of each channel: (3,) float64."""
    return np.array([np.median(pixels[..., channel]) for channel in range(3)])


def _done_by_preprocessing(image: Image.Image) -> list[str]:
    """The changes that images.py makes to a sketch."""
    strokes = dark_on_white(image)[0]
    if strokes.min() == 255:
        return ["no stroke found: the sketch is empty"]
    plain = np.array(on_white(image))
    if is_transparent(image):
        return ["transparent: laid on white"]
    if np.array_equal(strokes, plain):
        return []
    inverted = np.array_equal(strokes, 255 - plain)
    return ["light on dark: inverted" if inverted else "faint: made dark"]


def _drawn_svg(file: str | Path) -> tuple[Image.Image, str]:
    """An SVG on white, and a note. Strokes too light for white show where nothing is drawn else."""
    try:
        with open_regular(file) as stream:
            content = stream.read(svg.MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error
    drawn = svg.draw_svg(str(file), content)
    paper, note = on_white(drawn), f"SVG, drawn at {svg.SIDE} px"
    if is_transparent(drawn) and not (sums_of(np.array(paper)) <= INK).any():
        strokes, ink = dark_on_white(drawn)
        if ink.any():
            return Image.fromarray(strokes), f"{note}; light strokes made dark"
    return paper, note


def _scaled(images: Tensor, side: int) -> Tensor:
    """Images (1, C, h, w) shrunk so that the longer side is at most `side`."""
    h, w = images.shape[2:]
    factor = min(1.0, side / max(h, w))
    size = [max(1, round(h * factor)), max(1, round(w * factor))]
    return F.interpolate(images, size, mode="area") if factor < 1 else images


def _spread(images: Tensor, window: int) -> Tensor:
    """The largest value within a window around each pixel."""
    rows = F.max_pool2d(images, (window, 1), stride=1, padding=(window // 2, 0))
    return F.max_pool2d(rows, (1, window), stride=1, padding=(0, window // 2))


def _smooth(images: Tensor, window: int) -> Tensor:
    """The mean over a window around each pixel."""
    pads = [window // 2] * 4
    return F.avg_pool2d(F.pad(images, pads, mode="replicate"), window, stride=1)
