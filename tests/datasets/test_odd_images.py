"""Every kind of image file that people have: a usable tensor, or an InputError naming the file."""

import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from datasets.images import Preprocessing, fit_sketch, open_image
from utils.errors import InputError

HALF = (0.5, 0.5, 0.5)
READ = Preprocessing(size=64, mean=HALF, std=HALF, crop=True)
ORIENTATION = 0x0112  # EXIF tag


def drawn(ground="white", ink="black", mode="RGB", size=(80, 50)):
    """A picture that is neither symmetric nor square."""
    image = Image.new(mode, size, ground)
    pen = ImageDraw.Draw(image)
    pen.line([(15, 12), (60, 14), (40, 38), (15, 12)], fill=ink, width=2)
    pen.rectangle([20, 20, 24, 24], fill=ink)
    return image


def palette(transparency=None):
    image = drawn().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    if transparency:
        image.info["transparency"] = image.getpixel((0, 0))
    return image


def transparent(ink, below):
    """Opaque ink on a transparent ground of the colour `below`."""
    image = Image.new("RGBA", (80, 50), (*below, 0))
    strokes = np.array(drawn().convert("L")) < 128
    pixels = np.array(image)
    pixels[strokes] = (*ink, 255)
    return Image.fromarray(pixels)


def grey_16_bit():
    levels = np.array(drawn().convert("L")).astype(np.uint16) * 257
    return Image.fromarray(levels)


ODD = {  # name of a file -> picture; each shows what drawn() shows
    "grey.png": drawn().convert("L"),
    "one_bit.png": drawn().convert("1"),
    "palette.png": palette(),
    "palette_transparent.png": palette(transparency=True),
    "animated.gif": palette(),
    "transparent.gif": palette(transparency=True),
    "black_below.png": transparent((0, 0, 0), below=(0, 0, 0)),
    "grey_and_alpha.png": transparent((0, 0, 0), below=(0, 0, 0)).convert("LA"),
    "grey_16_bit.png": grey_16_bit(),
    "float.tiff": Image.fromarray(np.array(drawn().convert("L")).astype(np.float32) / 255),
    "lossless.webp": drawn(),
    "windows.bmp": drawn(),
}


def saved(folder, name, image, **settings):
    image.save(folder / name, **settings)
    return folder / name


def turned_exif(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("modality", ["sketch", "photo"])
@pytest.mark.parametrize("name", ODD)
def test_every_lossless_kind_shows_what_the_rgb_file_shows(tmp_path, name, modality):
    lossless = {"lossless": True} if name.endswith("webp") else {}
    odd = READ(saved(tmp_path, name, ODD[name], **lossless), modality)
    assert odd.shape == (3, 64, 64) and odd.dtype == torch.float32
    plain = READ(saved(tmp_path, "plain.png", drawn()), modality)
    torch.testing.assert_close(odd, plain, rtol=0, atol=0)


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_cmyk_jpeg_shows_what_the_rgb_jpeg_shows(tmp_path, modality):
    cmyk = saved(tmp_path, "cmyk.jpg", drawn().convert("CMYK"), quality=100)
    plain = saved(tmp_path, "plain.jpg", drawn(), quality=100, subsampling=0)
    assert Image.open(cmyk).mode == "CMYK"
    difference = READ.levels(cmyk, modality).int() - READ.levels(plain, modality).int()
    assert difference.abs().max() <= 12  # JPEG differs, the picture does not


@pytest.mark.parametrize("modality", ["sketch", "photo"])
@pytest.mark.parametrize(
    ("orientation", "stored_as"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_exif_rotated_picture_stands_upright(tmp_path, orientation, stored_as, modality):
    exif = turned_exif(orientation)
    turned = saved(tmp_path, "turned.png", drawn().transpose(stored_as), exif=exif)
    upright = saved(tmp_path, "upright.png", drawn())
    assert torch.equal(READ(turned, modality), READ(upright, modality))


@pytest.mark.parametrize("block", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01"])
def test_photo_with_a_damaged_exif_block_is_read_as_it_lies(tmp_path, block):
    damaged = saved(tmp_path, "damaged.jpg", drawn(), exif=block, quality=100)
    plain = saved(tmp_path, "plain.jpg", drawn(), quality=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow may say that the block is corrupt
        assert torch.equal(READ(damaged, "photo"), READ(plain, "photo"))


@pytest.mark.parametrize("ink", [0, 255, 40])
@pytest.mark.parametrize("modality", ["sketch", "photo"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3000), (3000, 2)])
def test_smallest_and_thinnest_pictures_are_read(tmp_path, size, modality, ink):
    file = saved(tmp_path, "thin.png", Image.new("L", size, ink))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a picture of one level is an empty sketch
        tensor = READ(file, modality)
    assert tensor.shape == (3, 64, 64) and tensor.isfinite().all()


@pytest.mark.parametrize("place", [(0, 0), (79, 49), (79, 0), (0, 49), (40, 0), (40, 49)])
def test_stroke_at_the_very_border_stays_in_the_picture(tmp_path, place):
    image = Image.new("RGB", (80, 50), "white")
    image.putpixel(place, (0, 0, 0))
    levels = READ.levels(saved(tmp_path, "border.png", image), "sketch")
    assert levels.min() < 64 and levels.max() == 255


DARK_ON_WHITE_INSTEAD = {  # picture -> the ordinary sketch it stands for
    "inverted": drawn("black", "white"),
    "inverted and faint": drawn("black", (40, 40, 40)),
    "faint": drawn("white", (235, 235, 235)),
    "faint on grey paper": drawn((220, 220, 220), (205, 205, 205)),
    "yellow": drawn("white", (255, 255, 0)),
    "pink": drawn("white", (255, 180, 200)),
    "white on transparent": transparent((255, 255, 255), below=(0, 0, 0)),
    "white on transparent white": transparent((255, 255, 255), below=(255, 255, 255)),
    "yellow on transparent": transparent((255, 255, 0), below=(0, 0, 0)),
    "black on transparent": transparent((0, 0, 0), below=(0, 0, 0)),
    "black on dark paper": drawn((110, 110, 110), "black"),
    "white on grey paper": drawn((160, 160, 160), "white"),
}


@pytest.mark.parametrize("name", DARK_ON_WHITE_INSTEAD)
def test_unusual_sketch_becomes_the_same_in_black_on_white(tmp_path, name):
    unusual = saved(tmp_path, "unusual.png", DARK_ON_WHITE_INSTEAD[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing here is an empty sketch
        levels = READ.levels(unusual, "sketch")
    assert torch.equal(levels, READ.levels(saved(tmp_path, "plain.png", drawn()), "sketch"))


def test_inverted_sketch_with_grey_tones_equals_its_positive(tmp_path):
    positive = np.array(drawn().resize((120, 90)))  # smooth edges
    files = {
        "positive.png": Image.fromarray(positive),
        "inverted.png": Image.fromarray(255 - positive),
    }
    one, other = (READ(saved(tmp_path, name, image), "sketch") for name, image in files.items())
    assert torch.equal(one, other)


@pytest.mark.parametrize("box", [(3, 3, 76, 46), (0, 0, 79, 49)], ids=["filled", "framed"])
def test_much_ink_on_white_is_no_inverted_sketch(tmp_path, box):
    image = Image.new("RGB", (80, 50), "white")
    fill = "black" if box[0] else None  # a solid figure, or a frame along the border
    ImageDraw.Draw(image).rectangle(box, outline="black", width=4, fill=fill)
    levels = READ.levels(saved(tmp_path, "heavy.png", image), "sketch")
    pixels = np.array(image)
    expected = fit_sketch(pixels, 64, pixels[..., 0] == 0)
    assert torch.equal(levels, expected)


def test_coloured_ink_that_is_dark_enough_keeps_its_colour(tmp_path):
    levels = READ.levels(saved(tmp_path, "red.png", drawn("white", (255, 0, 0))), "sketch")
    assert levels[0].min() == 255 and levels[1].min() == 0


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (40, 30), "white"),
        Image.new("RGB", (40, 30), "black"),
        Image.new("RGB", (40, 30), (130, 130, 130)),
        Image.new("RGBA", (40, 30), (0, 0, 0, 0)),
        Image.new("1", (40, 30), 1),
    ],
    ids=["white", "black", "grey", "transparent", "one bit"],
)
@pytest.mark.parametrize("crop", [True, False])
def test_empty_sketch_is_white_and_warns_once(tmp_path, image, crop):
    file = saved(tmp_path, "empty.png", image)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        levels = Preprocessing(32, HALF, HALF, crop).levels(file, "sketch")
    assert (levels == 255).all()
    assert len(caught) == 1 and str(file) in str(caught[0].message)


def test_transparent_photo_stands_on_white(tmp_path):
    file = saved(tmp_path, "photo.png", Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
    assert (READ.levels(file, "photo") == 255).all()


def test_half_transparent_photo_is_mixed_with_white(tmp_path):
    file = saved(tmp_path, "photo.png", Image.new("RGBA", (9, 9), (255, 0, 0, 128)))
    assert READ.levels(file, "photo")[:, 0, 0].tolist() == [255, 127, 127]


def encoded(tmp_path_factory, kind):
    file = tmp_path_factory.getbasetemp() / f"whole.{kind}"
    drawn().save(file)
    return file.read_bytes()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        READ(tmp_path / "absent.jpg", "photo")
    assert str(tmp_path / "absent.jpg") in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"not an image\n" * 50, b"\x89PNG\r\n\x1a\n", b"\xff\xd8"]
)
@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_file_that_is_no_image_is_named(tmp_path, content, modality):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(InputError, match="unreadable") as error:
        READ(tmp_path / "broken.png", modality)
    assert str(tmp_path / "broken.png") in str(error.value)


def test_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(InputError) as error:
        READ(tmp_path, "photo")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_truncated_file_is_named(tmp_path, tmp_path_factory, kind):
    whole = encoded(tmp_path_factory, kind)
    file = tmp_path / f"half.{kind}"
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(InputError, match="unreadable") as error:
        READ(file, "photo")
    assert str(file) in str(error.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["jpg", "png", "gif", "bmp", "tiff", "webp"]),
    keep=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    modality=st.sampled_from(["sketch", "photo"]),
)
def test_damaged_file_gives_a_picture_or_an_input_error(
    tmp_path_factory, kind, keep, damage, modality
):
    content = bytearray(encoded(tmp_path_factory, kind))
    for place, value in damage:
        content[int(place * (len(content) - 1))] = value
    file = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    file.write_bytes(content[: round(keep * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert READ(file, modality).shape == (3, 64, 64)
        except InputError as error:
            assert str(file) in str(error)


# ---- open images


def in_file(folder, name):
    """A file of such a name: of ODD, or a JPEG with what JPEGs may have."""
    if name in ODD:
        return saved(folder, name, ODD[name], **({"lossless": True} if "webp" in name else {}))
    image = drawn().convert("CMYK") if name == "cmyk.jpg" else drawn()
    more = {"exif": turned_exif(6)} if "turned" in name else {}
    return saved(folder, name, image, **more)


KINDS = [*ODD, "plain.jpg", "cmyk.jpg", "turned.jpg", "turned.png"]


@pytest.mark.parametrize("modality", ["sketch", "photo"])
@pytest.mark.parametrize("name", KINDS)
def test_an_open_image_is_read_as_its_file_and_left_as_it_is(tmp_path, name, modality):
    file = in_file(tmp_path, name)
    with Image.open(file) as image:
        read = READ.levels(image, modality)  # not decoded before
        again = READ.levels(image, modality)
        decoded = image.copy()
    before = decoded.mode, decoded.size, decoded.tobytes()
    of_file = READ.levels(file, modality)
    for levels in (read, again, READ.levels(decoded, modality), READ.levels(str(file), modality)):
        assert torch.equal(levels, of_file)
    assert torch.equal(READ(decoded, modality), READ(file, modality))
    assert (decoded.mode, decoded.size, decoded.tobytes()) == before


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_what_open_image_returns_is_turned_once(tmp_path, modality):
    file = in_file(tmp_path, "turned.jpg")
    assert torch.equal(READ.levels(open_image(file), modality), READ.levels(file, modality))


def test_an_open_image_that_cannot_be_decoded_is_named_where_it_has_a_name(
    tmp_path, tmp_path_factory
):
    whole = encoded(tmp_path_factory, "png")
    file = tmp_path / "half.png"
    file.write_bytes(whole[: len(whole) * 2 // 3])
    for source, name in ((file, str(file)), (BytesIO(file.read_bytes()), "an image in memory")):
        with Image.open(source) as image, pytest.raises(InputError) as error:
            READ(image, "photo")
        assert str(error.value).startswith(f"{name}: unreadable (")


def test_an_empty_sketch_in_memory_warns_without_a_file():
    with pytest.warns(UserWarning, match="an image in memory: no stroke found"):
        assert (READ.levels(Image.new("RGB", (40, 30), "white"), "sketch") == 255).all()


def test_open_images_are_never_shrunk_while_they_are_decoded(tmp_path):
    """A draft changes levels; it is for the files of a training alone."""
    file = saved(tmp_path, "large.jpg", drawn().resize((800, 500)))
    draft = Preprocessing(size=64, mean=HALF, std=HALF, crop=True, draft=True)
    with Image.open(file) as image:
        assert torch.equal(draft.levels(image, "photo"), READ.levels(file, "photo"))
