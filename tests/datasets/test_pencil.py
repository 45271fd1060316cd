"""Sketches as people have them, and those that must stay as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from sample_data import shared_file

from datasets.images import Preprocessing, open_image
from datasets.pencil import (
    _without_colours,
    cleaned,
    looks_photographed,
    ready_sketch,
    without_shading,
)
from datasets.synthetic.benchmark import draw_sketch_of
from datasets.synthetic.drawn import CATEGORIES
from utils.errors import InputError

pytestmark = pytest.mark.slow

SIDE = 400
SEE = Preprocessing(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, crop=True)


def drawing(side: int = SIDE) -> np.ndarray:
    """Where a pencil has been: a house, 0 to 1, (h, w)."""
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    a, b, middle, top = (round(share * side) for share in (0.25, 0.75, 0.5, 0.15))
    width = side // 80
    pen.rectangle((a, middle, b, b), outline=255, width=width)
    pen.line([(a, middle), (middle, top), (b, middle)], fill=255, width=width)
    pen.rectangle((round(0.45 * side), round(0.6 * side), round(0.55 * side), b), outline=255)
    return np.array(image, dtype=np.float32) / 255


def on_paper(ink, dark=0.5, darkest_corner=0.4, noise=3.0, tint=(240, 230, 210)):
    """A photo of it: tinted paper, light that falls off, a soft shadow, noise of the sensor."""
    random = np.random.default_rng(0)
    h, w = ink.shape
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    light = darkest_corner + (1 - darkest_corner) * (1 - (x + y) / 2)
    light *= 1 - 0.3 / (1 + np.exp(20 * (np.hypot(x - 0.1, y - 0.9) - 0.3)))
    paper = np.array(tint) * light[..., None]
    photo = paper * (1 - dark * ink[..., None]) + random.normal(0, noise, (h, w, 1))
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


def agreement(found: np.ndarray, ink: np.ndarray) -> float:
    """Overlap of the dark pixels with the drawn ones, both grown a little: 1 is the same."""

    def grown(mask):
        image = Image.fromarray((255 * mask).astype(np.uint8))
        return np.array(image.filter(ImageFilter.MaxFilter(5))) > 0

    a, b = grown(found.mean(axis=2) < 128), grown(ink > 0.5)
    return (a & b).sum() / (a | b).sum()


# ---- photos of drawings


@pytest.mark.parametrize("dark", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("darkest_corner", [0.3, 0.7])
@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_a_drawing_on_shaded_paper_becomes_dark_strokes_on_white(dark, darkest_corner, noise):
    ink = drawing()
    found, note = cleaned(on_paper(ink, dark, darkest_corner, noise))
    assert "photo" in note
    assert np.median(found) == 255
    assert (found[:20] == 255).all() and (found[-20:] == 255).all()  # no shade at the edge
    assert agreement(found, ink) > 0.75
    assert (found[ink == 1].sum(axis=1) <= 300).mean() > 0.75  # dark enough for the crop


def test_chalk_on_a_board_and_pencil_in_the_dark_both_become_dark_strokes():
    ink = drawing()
    board = on_paper(ink, dark=-4, tint=(45, 45, 45))
    dim = on_paper(ink, dark=0.6, tint=(120, 115, 105))
    for photo in (board, dim):
        assert np.median(np.array(photo)) < 128
        assert agreement(cleaned(photo)[0], ink) > 0.7


def test_coloured_pencils_on_shaded_paper_are_dark_whatever_their_colour():
    ink = drawing()
    paper = np.array(on_paper(0 * ink), dtype=np.float32)
    colours = np.zeros((SIDE, SIDE, 3))
    for number, dark in enumerate([(0.1, 0.7, 0.7), (0.7, 0.2, 0.7), (0.6, 0.5, 0.1)]):
        colours[:, number * SIDE // 3 : (number + 1) * SIDE // 3 + 1] = dark
    photo = Image.fromarray((paper * (1 - colours * ink[..., None])).clip(0, 255).astype(np.uint8))
    assert agreement(cleaned(photo)[0], ink) > 0.7


def test_a_large_photo_is_made_smaller_and_an_empty_paper_is_not_a_drawing():
    ink = drawing(1000)
    found, _ = cleaned(on_paper(ink))
    assert found.shape == (768, 768, 3)
    assert without_shading(np.array(on_paper(0 * drawing()))) is None
    assert cleaned(on_paper(0 * drawing())) == (None, "")


def test_the_network_sees_the_same_as_of_a_clean_drawing(tmp_path):
    ink = drawing(768)
    Image.fromarray((255 * (1 - ink)).astype(np.uint8)).save(tmp_path / "clean.png")
    on_paper(ink).save(tmp_path / "photo.jpg", quality=85)
    seen = {}
    for name in ("clean.png", "photo.jpg"):
        ready, _ = ready_sketch(tmp_path / name)
        seen[name] = SEE.levels(ready, "sketch").permute(1, 2, 0).numpy()
    assert agreement(seen["photo.jpg"], 1 - seen["clean.png"].mean(axis=2) / 255) > 0.7


# ---- what stays as it is


def same(one: Image.Image, other: Image.Image) -> bool:
    """To the bit, transparent parts too."""
    return (one.mode, one.size, one.tobytes(), one.info.get("transparency")) == (
        *(other.mode, other.size, other.tobytes(), other.info.get("transparency")),
    )


def untouched(file: Path) -> bool:
    image, note = ready_sketch(file)
    return same(image, open_image(file)) and note == ""


def test_clean_sketches_stay_as_they_are(tmp_path):
    for number, category in enumerate(CATEGORIES):
        picture, _ = draw_sketch_of(category, 0, 96, number)
        picture.convert("RGB").save(tmp_path / f"{category}.png")
        picture.convert("RGB").save(tmp_path / f"{category}.jpg", quality=70)
        assert untouched(tmp_path / f"{category}.png")
        assert untouched(tmp_path / f"{category}.jpg")


def test_filled_grey_and_dense_drawings_by_programs_are_clean(tmp_path):
    for name, ground, fill in (("grey", 200, 40), ("filled", 255, 128), ("dense", 255, 0)):
        image = Image.new("L", (200, 200), ground)
        pen = ImageDraw.Draw(image)
        pen.ellipse((30, 30, 170, 170), fill=fill, outline=0, width=3)
        image.save(tmp_path / f"{name}.png")
        assert untouched(tmp_path / f"{name}.png"), name


def test_sketches_of_the_benchmarks_stay_as_they_are():
    folder = shared_file("data/sketchy_mini/Sketchy/256x256/sketch/tx_000000000000_ready")
    files = sorted(folder.glob("*/*.png"))[::20]
    assert len(files) > 150
    assert all(untouched(file) for file in files)


# ---- other kinds, and the notes on them


def test_what_was_done_is_noted_and_the_strokes_end_up_dark(tmp_path):
    ink = drawing(200)
    white = (255 * (1 - ink)).astype(np.uint8)
    alpha = Image.new("RGBA", (200, 200), (10, 10, 10, 0))
    alpha.putalpha(Image.fromarray((255 * ink).astype(np.uint8)))
    kinds = {
        "inverted": (Image.fromarray(255 - white), "light on dark"),
        "transparent": (alpha, "transparent"),
        "faint": (Image.fromarray((245 - 40 * ink).astype(np.uint8)), "faint"),
        "empty": (Image.new("RGB", (50, 50), "white"), "empty"),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / f"{name}.png")
        ready, note = ready_sketch(tmp_path / f"{name}.png")
        assert same(ready, open_image(tmp_path / f"{name}.png")) and expected in note
        if name == "empty":
            continue
        assert SEE.levels(ready, "sketch").min() < 100


def test_coloured_lines_are_made_dark_and_seen_whole(tmp_path):
    ink = drawing(200)[..., None]
    colours = np.full((200, 200, 3), (250, 200, 40))
    colours[:, :100] = 0  # the right half alone is light, and would be cut off
    image = Image.fromarray((255 * (1 - ink) + colours * ink).astype(np.uint8))
    image.save(tmp_path / "two.png")
    ready, note = ready_sketch(tmp_path / "two.png")
    assert note == "coloured lines made dark" and not same(ready, image)
    assert agreement(np.array(ready), ink[..., 0]) > 0.9
    assert same(ready_sketch(tmp_path / "two.png", "never")[0], image)


def test_cleaning_can_be_required_and_forbidden(tmp_path):
    on_paper(drawing()).save(tmp_path / "photo.png")
    Image.fromarray((255 * (1 - drawing())).astype(np.uint8)).save(tmp_path / "clean.png")
    photo = open_image(tmp_path / "photo.png")
    assert same(ready_sketch(tmp_path / "photo.png", "never")[0], photo)
    ready, note = ready_sketch(tmp_path / "clean.png", "always")
    assert "shading" in note and agreement(np.array(ready), drawing()) > 0.9
    assert looks_photographed(np.array(open_image(tmp_path / "photo.png")))
    assert not looks_photographed(np.array(open_image(tmp_path / "clean.png").convert("RGB")))


# ---- open images


def transparent() -> Image.Image:
    image = Image.new("RGBA", (100, 100), (10, 10, 10, 0))
    image.putalpha(Image.fromarray((255 * drawing(100)).astype(np.uint8)))
    return image


SKETCHES = {  # file name -> picture
    "clean.png": Image.fromarray((255 * (1 - drawing(100))).astype(np.uint8)),
    "transparent.png": transparent(),
    "palette.gif": Image.fromarray((255 * drawing(100)).astype(np.uint8)).convert("P"),
    "photo.jpg": on_paper(drawing(100)),
}


@pytest.mark.parametrize("clean", ["auto", "always", "never"])
@pytest.mark.parametrize("name", SKETCHES)
def test_an_open_sketch_is_made_ready_as_its_file_is(tmp_path, name, clean):
    SKETCHES[name].save(tmp_path / name)
    of_file, note = ready_sketch(tmp_path / name, clean)
    with Image.open(tmp_path / name) as image:
        opened = image.copy()
    for sketch in (opened, str(tmp_path / name)):
        ready, again = ready_sketch(sketch, clean)
        assert same(ready, of_file) and again == note
        assert torch.equal(SEE.levels(ready, "sketch"), SEE.levels(of_file, "sketch"))
    assert same(opened, open_image(tmp_path / name))  # which is not changed


@pytest.mark.parametrize("name", ["clean.png", "transparent.png", "palette.gif"])
def test_the_network_sees_of_a_sketch_that_stays_as_it_is_what_it_sees_of_the_file(tmp_path, name):
    """Turned upright once, where the file has to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    SKETCHES[name].save(tmp_path / name, **({} if name.endswith("gif") else {"exif": exif}))
    ready, _ = ready_sketch(tmp_path / name)
    assert torch.equal(SEE.levels(ready, "sketch"), SEE.levels(tmp_path / name, "sketch"))


def test_a_photo_of_a_drawing_is_turned_upright_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    on_paper(drawing()).save(tmp_path / "photo.png", exif=exif)
    ready, note = ready_sketch(tmp_path / "photo.png")
    assert "photo" in note and agreement(np.array(ready), np.rot90(drawing(), -1)) > 0.75


def test_shading_is_noted_where_strokes_came_back_alone():
    faint = Image.fromarray((200 - 6 * drawing(200)).astype(np.uint8))
    ready, note = ready_sketch(faint, "always")
    assert same(ready, faint) and "shading" not in note


def test_alpha_that_is_opaque_is_not_called_transparent():
    opaque = Image.fromarray((255 * (1 - drawing(100))).astype(np.uint8)).convert("RGBA")
    assert ready_sketch(opaque)[1] == ""
    assert ready_sketch(on_paper(drawing(200)).convert("RGBA"))[1].startswith("a photo")


def slow_without_colours(pixels):
    """Shares of light in floats, pixel by pixel."""
    ground = np.median(pixels.reshape(-1, 3), axis=0).clip(min=1)
    darkest = (pixels / ground).min(axis=2)
    strokes = darkest[darkest < 0.92]
    low = min(np.quantile(strokes, 0.2) if len(strokes) else 0.0, 0.9)
    return (((darkest - low) / (1 - low)).clip(0, 1) * 255).round()


@pytest.mark.parametrize("seed", range(20))
def test_coloured_lines_become_as_dark_as_the_slow_formula_says(seed):
    random = np.random.default_rng(seed)
    ink = drawing(100)[..., None]
    picture = random.integers(190, 256, 3) * (1 - ink) + random.integers(0, 256, 3) * ink
    picture = Image.fromarray(picture.astype(np.uint8)).resize((97, 83), Image.Resampling.BICUBIC)
    found, expected = _without_colours(np.array(picture)), slow_without_colours(np.array(picture))
    assert all(np.array_equal(found[..., channel], expected) for channel in range(3))


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_sketch_that_cannot_be_read_is_named(tmp_path, content):
    if content:
        (tmp_path / "sketch.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path / 'sketch.png'}: "):
        ready_sketch(tmp_path / "sketch.png")
