"""Rankings as pictures: a strip a query, its sketch and what was found; grids of images."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.images import on_white
from utils.files import written_whole

TILE = 128  # px: side of the square that an image gets, frame included

RIGHT, WRONG = (0, 110, 88), (255, 114, 77)  # apart in lightness too, for the colour-blind
NEUTRAL = (205, 205, 205)
INK = (45, 45, 45)


@dataclass(frozen=True)
class Strip:
    """A query and the photos found for it, closest first; any number.

    Images may have any mode and aspect. relevant: which photos are right; None where that is
    unknown.
    """

    query: Image.Image
    query_name: str
    photos: list[Image.Image]
    photo_names: list[str]
    relevant: list[bool] | None = None


def draw_strip(strip: Strip, tile: int = TILE) -> Image.Image:
    """The query at the left, then its photos, framed by relevance, each above its name.

    RGB, `tile` px and a line of text high, without a margin. Names are cut to their tile.
    """
    frames = [NEUTRAL] * len(strip.photos)
    if strip.relevant is not None:
        frames = [RIGHT if right else WRONG for right in strip.relevant]
    query = _captioned(_framed(strip.query, NEUTRAL, tile), strip.query_name)
    photos = [
        _captioned(_framed(photo, frame, tile), name)
        for photo, frame, name in zip(strip.photos, frames, strip.photo_names, strict=True)
    ]
    return _row(query, photos, tile)


def draw_sheet(strips: Iterable[Strip], title: str, tile: int = TILE) -> Image.Image:
    """Strips one below the other under a line of text, which is never cut.

    RGB; with ten photos about 12 * tile px wide, and 1.3 * tile px high a strip. Strips are drawn
    one at a time, so that a generator keeps only one strip's images in memory.
    """
    return _sheet([draw_strip(strip, tile) for strip in strips], title, tile)


def draw_grid(
    rows: Iterable[Sequence[Image.Image]], names: Sequence[str], title: str = "", tile: int = TILE
) -> Image.Image:
    """Rows of images, each with its name at the left, below a line of text if one is given.

    RGB; a row is `tile` px high. Names take what the longest needs, at most 2 * tile px.
    """
    font = _font(_text_size(tile))
    width = min(2 * tile, max((_length(_plain(name), font) for name in names), default=0))
    drawn = [
        _row(_label(name, (width, tile)), [_framed(image, NEUTRAL, tile) for image in row], tile)
        for name, row in zip(names, rows, strict=True)
    ]
    return _sheet(drawn, title, tile)


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a PNG, whole or not at all."""
    with written_whole(file) as stream:
        picture.save(stream, format="PNG")


def _framed(image: Image.Image, frame: tuple[int, int, int], tile: int) -> Image.Image:
    """An image on a white square of `tile` px, as large as its frame lets it be, not stretched."""
    edge = 1 if frame == NEUTRAL else max(2, tile // 24)
    side = tile - 2 * edge
    image = on_white(image)
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    square = Image.new("RGB", (tile, tile), "white")
    corner = ((tile - size[0]) // 2, (tile - size[1]) // 2)
    square.paste(image.resize(size, Image.Resampling.LANCZOS), corner)
    ImageDraw.Draw(square).rectangle((0, 0, tile - 1, tile - 1), outline=frame, width=edge)
    return square


def _captioned(square: Image.Image, name: str) -> Image.Image:
    """The same with its name centred below, cut to its width."""
    tile = square.width
    font = _font(_text_size(tile))
    name = _shortened(name, tile, font)
    piece = Image.new("RGB", (tile, tile + 2 * _text_size(tile)), "white")
    piece.paste(square)
    corner = ((tile - _length(name, font)) // 2, tile + _text_size(tile) // 4)
    ImageDraw.Draw(piece).text(corner, name, fill=INK, font=font)
    return piece


def _label(name: str, size: tuple[int, int]) -> Image.Image:
    """A name at the right edge of a white field, at half its height."""
    width, height = size
    text_size = _text_size(height)
    font = _font(text_size)
    name = _shortened(name, width, font)
    label = Image.new("RGB", size, "white")
    corner = (width - _length(name, font), (height - text_size) // 2)
    ImageDraw.Draw(label).text(corner, name, fill=INK, font=font)
    return label


def _row(left: Image.Image, tiles: Sequence[Image.Image], tile: int) -> Image.Image:
    """Pieces of one height on white: one at the left, a wider gap, the others side by side."""
    first = left.width + 3 * _gap(tile)
    starts = [first + i * (tile + _gap(tile)) for i in range(len(tiles))]
    width = starts[-1] + tile if starts else left.width
    row = Image.new("RGB", (width, left.height), "white")
    for start, piece in zip([0, *starts], [left, *tiles], strict=True):
        row.paste(piece, (start, 0))
    return row


def _sheet(rows: Sequence[Image.Image], title: str, tile: int) -> Image.Image:
    """Rows one below the other, under the title where there is one, within a white margin."""
    margin, gap, title_size = 2 * _gap(tile), _gap(tile), _text_size(tile) * 5 // 4
    font, title = _font(title_size), _plain(title)
    width = max(_length(title, font), *(row.width for row in rows), 1)
    top = margin + (2 * title_size if title else 0)
    height = top + sum(row.height + gap for row in rows) - gap * bool(rows) + margin
    sheet = Image.new("RGB", (width + 2 * margin, height), "white")
    ImageDraw.Draw(sheet).text((margin, margin), title, fill=INK, font=font)
    for row in rows:
        sheet.paste(row, (margin, top))
        top += row.height + gap
    return sheet


def _gap(tile: int) -> int:
    return max(2, tile // 16)


def _text_size(tile: int) -> int:
    return max(9, tile // 9)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, `size` px; without FreeType a bitmap font of one size."""
    try:
        return ImageFont.load_default(size=size)
    except ImportError:
        return ImageFont.load_default()


def _length(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(np.ceil(font.getlength(text)))


def _plain(text: str) -> str:
    """One line of ASCII, all that Pillow's fonts hold: letters lose accents, others become ?."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode()


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text where it fits into `width` px, else its beginning and an ellipsis."""
    text = _plain(text)
    if _length(text, font) <= width:
        return text
    while text and _length(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
