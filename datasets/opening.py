"""An image file -> a decoded image: upright, of a size that memory holds; else a sentence.

Only regular files are opened, and whatever a decoder raises becomes an InputError.
"""

import errno
import functools
import importlib
import logging
import math
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from utils.errors import InputError
from utils.files import open_regular

ImageSource = str | Path | Image.Image
"""The name of an image file, or an open image."""

HEIF = {".heic", ".heif", ".hif"}
ENDINGS = {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"}
ENDINGS |= {".jpg", ".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga"}
ENDINGS |= {".tif", ".tiff", ".webp"} | HEIF
"""Endings of image files, in lower case; those that cannot be read here are named as unreadable."""

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
REFUSED = {"EPS": "PostScript is a program", "FITS": "FITS holds measurements"}
MOST_PIXELS = 178_956_970  # of a picture that is decoded, as many as Pillow allows
LONGEST = 1_000_000  # px of a side; decoders fail beyond
LARGEST = 36_000_000  # px; what has more is made smaller by a whole factor
BAND = 256  # rows that are converted at a time
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts a picture upright, by its EXIF orientation."""
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)

_NOWHERE = logging.NullHandler()


def open_image(source: ImageSource, least: int | None = None) -> Image.Image:
    """A decoded image, upright, of LARGEST pixels at most; one that is given is not changed.

    least: px that each side keeps where the decoder can shrink the image; None: it does not.
    Raises InputError where the file is absent, no regular file, no image, damaged or too large.
    """
    try:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders' warnings do not name the file
            logging.getLogger("PIL").addHandler(_NOWHERE)  # nor does what they log
            in_memory = isinstance(source, Image.Image)
            image = source
            if not in_memory:
                image = _identified(source, stack.enter_context(open_regular(source)))
            if image.width * image.height > MOST_PIXELS or max(image.size) > LONGEST:
                raise Image.DecompressionBombError
            if not in_memory:
                _shrink_while_decoding(image, least)
            image.load()
            turn, image = _turn(image), _shrunk(image)
            if turn is not None:
                image = _turned(image, turn)
            if image is source or (image.mode == "P" and image.palette is None):  # as of .icns
                image = image.copy()
            if image.mode not in ("L", "RGB"):
                on_white(image.crop((0, 0, 1, 1)))  # whether it can be converted at all
            image.filename = getattr(source, "filename", "") if in_memory else str(source)
            return image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged files make decoders raise errors of every kind
        if isinstance(error, OSError) and error.errno in TOO_MANY_OPEN:  # no fault of this one
            raise
        raise unreadable(source, error) from error


def unreadable(source: ImageSource, error: Exception) -> InputError:
    """The sentence for an image that could not be opened or decoded."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{name_of(source)}: no such file.")
    why = "damaged, cut short, or of a kind that is not known here; save it as PNG or JPEG"
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    elif isinstance(error, Image.DecompressionBombError):
        most, longest = MOST_PIXELS // 10**6, LONGEST // 10**6
        why = f"more than {most} million pixels, or {longest} million on a side; make it smaller"
    elif isinstance(error, UnidentifiedImageError):
        why = "no image, or of a kind that is not known here; save it as PNG or JPEG"
    return InputError(f"{name_of(source)}: unreadable ({why}).")


def name_of(source: ImageSource) -> str:
    """The name of an image in messages."""
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "an image in memory"
    return str(source)


def is_transparent(image: Image.Image) -> bool:
    """Whether a part of the image is, a little at least: many an image has alpha and is opaque."""
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def on_white(image: Image.Image) -> Image.Image:
    """RGB of an image of any mode; transparent parts become white, 16-bit grey becomes 8-bit."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or more bits, or of floats, brought to 0..255."""
    values = np.array(image)
    if image.mode == "F":
        values = np.nan_to_num(values)
    top = 65535 if image.mode != "F" and values.max(initial=0) > 255 else 255
    if image.mode == "F" and values.max(initial=0) <= 1:
        top = 1
    levels = np.empty(values.shape, dtype=np.uint8)
    for first in range(0, len(values), BAND):
        band = values[first : first + BAND].astype(np.float64).clip(0, top)
        levels[first : first + BAND] = (band / top * 255).round()
    return Image.fromarray(levels)


def _identified(source: str | Path, file: BinaryIO) -> Image.Image:
    """An image whose header is read. Raises InputError for kinds that are not decoded here."""
    needs_heif = Path(source).suffix.lower() in HEIF
    try:
        if needs_heif and not _reads_heif():
            raise UnidentifiedImageError
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(12)
        needs_heif |= head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS
        if not needs_heif:
            raise
        if not _reads_heif():
            raise InputError(
                f"{source}: unreadable (HEIC needs pillow-heif: pip install -r "
                "requirements-heic.txt; or save it as JPEG)."
            ) from None
        image = Image.open(file)
    if image.format in REFUSED:
        raise InputError(
            f"{source}: unreadable ({REFUSED[image.format]}, no picture; save it as PNG)."
        )
    return image


@functools.cache
def _reads_heif() -> bool:
    """Whether Pillow reads HEIC: made so where pillow-heif is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except (ImportError, OSError):
        return False
    return True


def _shrink_while_decoding(image: Image.Image, least: int | None) -> None:
    """Have a JPEG decoded smaller, where that is wanted or it is larger than LARGEST."""
    factor = _factor(image)
    sides = (image.width // factor, image.height // factor) if factor > 1 else None
    wanted = sides if least is None else (least, least)
    if wanted:
        image.draft(None, wanted)


def _shrunk(image: Image.Image) -> Image.Image:
    """The image, made smaller where it is larger than LARGEST: squares of pixels become their mean.

    It is converted in bands: a whole copy takes 4 bytes a pixel.
    """
    factor = _factor(image)
    if factor == 1:
        return image
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    width, height = (math.ceil(side / factor) for side in image.size)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    small = Image.new(mode, (width, height))
    for top in range(0, height, BAND):
        rows = (0, factor * top, image.width, min(image.height, factor * (top + BAND)))
        band = image.crop(rows)
        band = band.convert(mode) if mode == "RGBA" else on_white(band)
        small.paste(band.reduce(factor), (0, top))
    return small


def _factor(image: Image.Image) -> int:
    """By which both sides are divided to leave LARGEST pixels at most."""
    return max(1, math.ceil(math.sqrt(image.width * image.height / LARGEST)))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts a decoded image upright, as its EXIF says."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged block: as it lies
        return None


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    """The image upright, without the metadata by which it would be turned again."""
    turned = image.transpose(turn)
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned
