"""Preprocessing of well-formed pictures: the published outputs, and cases worked by hand."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_data import shared_file

from datasets.images import INK, MARGIN, Preprocessing, dark_on_white, fit_sketch, open_image

HALF = (0.5, 0.5, 0.5)
PUBLISHED = Preprocessing(size=224, mean=HALF, std=HALF, crop=True)


def paper(height, width, level=255):
    return np.full((height, width, 3), level, dtype=np.uint8)


def fitted_sketch(pixels, size):
    """The sketch fitted to its dark pixels."""
    return fit_sketch(pixels, size, pixels.sum(axis=2, dtype=int) <= INK)


def golden_pictures(modality):
    recorded = np.load(shared_file("golden/preprocessing.npz"))
    root = shared_file("data/sketchy_mini/Sketchy")
    pictures = [
        (PUBLISHED.levels(root / str(name), modality).numpy(), recorded[f"image_{i}"])
        for i, name in enumerate(recorded["names"])
        if f"/{modality}/" in str(name)
    ]
    assert len(pictures) == 4
    return pictures


def test_photos_equal_the_published_preprocessing():
    for ours, published in golden_pictures("photo"):
        np.testing.assert_array_equal(ours, published)


def test_sketches_equal_the_published_preprocessing_but_for_rounding():
    for ours, published in golden_pictures("sketch"):
        difference = np.abs(ours.astype(int) - published.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.01


def test_crop_box_is_the_strokes_grown_by_ten_with_upper_bounds_exclusive():
    sketch = paper(60, 50)
    sketch[20:31, 15:20] = 0  # strokes in rows 20..30 and columns 15..19: box [10:40, 5:29]
    sketch[10, 5] = sketch[39, 28] = 101  # R + G + B = 303, no ink: the box's extreme corners
    sketch[9, 5] = sketch[40, 28] = sketch[10, 4] = sketch[39, 29] = 102  # just outside
    fitted = fitted_sketch(sketch, 30)  # 30 is the box's height: nothing is resampled
    np.testing.assert_array_equal(fitted[:, :, 3:27].permute(1, 2, 0), sketch[10:40, 5:29])


def test_crop_box_stops_at_the_frame():
    sketch = paper(30, 30)
    sketch[4, 6] = sketch[25, 24] = 0  # box would be [-6:35, -4:34]
    np.testing.assert_array_equal(fitted_sketch(sketch, 30).permute(1, 2, 0), sketch)


@pytest.mark.parametrize(("level", "inked"), [(100, True), (101, False)])
def test_ink_is_where_red_green_and_blue_sum_up_to_300_at_most(level, inked):
    sketch = paper(50, 50)
    sketch[25, 25] = level
    expected = sketch[15:35, 15:35] if inked else sketch  # box [15:35] in both directions
    fitted = fitted_sketch(sketch, len(expected))
    np.testing.assert_array_equal(fitted.permute(1, 2, 0), expected)


def black_frame_with_bright_centre(height, width):
    """All ink, so nothing is cropped; the centre makes the padding brighter than the picture."""
    pixels = paper(height, width, 0)
    pixels[height // 3 : height - height // 3, width // 3 : width - width // 3] = 255
    return pixels


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [
        (61, 31, 113),  # int(224 / (61 / 31)) = int(113.8)
        (31, 61, 113),
        (49, 7, 32),  # 224 / (49 / 7) = 32 exactly
        (55, 22, 89),  # 224 * 22 / 55 = 89.6
        (22, 55, 89),
        (50, 50, 224),
        (28, 25, 199),  # 224 * 25 / 28 = 200, but 224 / (28 / 25) is a little less in floats
        (56, 51, 203),  # likewise 204
        (61, 112, 121),  # 224 * 61 / 112 = 122, but 224 * (61 / 112) is a little less
        (115, 224, 114),  # likewise 115
    ],
)
def test_shorter_side_is_truncated_in_the_published_order_of_operations(height, width, scaled):
    fitted = fitted_sketch(black_frame_with_bright_centre(height, width), 224)[0]
    edge = fitted[0] if height > width else fitted[:, 0]
    assert int((edge == 0).sum()) == scaled


@pytest.mark.parametrize(("height", "width"), [(20, 15), (15, 20)])
def test_smaller_half_of_the_padding_comes_first(height, width):
    fitted = fitted_sketch(black_frame_with_bright_centre(height, width), 20)[0]  # pads 5: 2 and 3
    edge = fitted[0] if height > width else fitted[:, 0]
    assert edge.tolist() == [255] * 2 + [0] * 15 + [255] * 3


def test_padding_is_the_maximum_of_the_cropped_picture_not_of_the_whole():
    sketch = paper(100, 50, 200)
    sketch[50, 20:30] = 0
    sketch[0, 0] = 255  # outside the box [40:60, 10:39]
    fitted = fitted_sketch(sketch, 29)
    assert fitted.max() == 200
    assert (fitted[:, :4] == 200).all() and (fitted[:, -5:] == 200).all()


def test_padding_is_the_maximum_after_resizing():
    sketch = paper(40, 20, 0)
    sketch[21, 11] = 100  # halving averages it with three black pixels: 25
    fitted = fitted_sketch(sketch, 20)
    assert fitted.max() == 25
    assert (fitted[:, :, :5] == 25).all() and (fitted[:, :, -5:] == 25).all()


def slow_fit_sketch(pixels, size):
    """The published preprocessing pixel by pixel, in exact arithmetic: unrounded levels."""
    height, width = pixels.shape[:2]
    ink = [(y, x) for y in range(height) for x in range(width) if pixels[y, x].sum() <= 300]
    if ink:
        rows, columns = [y for y, _ in ink], [x for _, x in ink]
        pixels = pixels[
            max(0, min(rows) - 10) : min(height, max(rows) + 10),
            max(0, min(columns) - 10) : min(width, max(columns) + 10),
        ]
    height, width = pixels.shape[:2]
    ratio = height / width
    high, wide = (size, int(size / ratio)) if height > width else (int(size * ratio), size)
    high, wide = max(1, high), max(1, wide)
    resized = np.zeros((high, wide, 3))
    for y in range(high):
        for x in range(wide):
            from_y = max(0.0, (y + 0.5) * height / high - 0.5)
            from_x = max(0.0, (x + 0.5) * width / wide - 0.5)
            top, left = math.floor(from_y), math.floor(from_x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = from_y - top, from_x - left
            resized[y, x] = (
                (1 - dy) * (1 - dx) * pixels[top, left]
                + (1 - dy) * dx * pixels[top, right]
                + dy * (1 - dx) * pixels[bottom, left]
                + dy * dx * pixels[bottom, right]
            )
    square = np.full((size, size, 3), resized.max())
    above, before = (size - high) // 2, (size - wide) // 2
    square[above : above + high, before : before + wide] = resized
    return square


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(8, 24),
    strokes=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_fit_sketch_equals_the_slow_loop(height, width, size, strokes, seed):
    random = np.random.default_rng(seed)
    pixels = random.integers(101, 256, size=(height, width, 3), dtype=np.uint8)
    for _ in range(strokes):
        pixels[random.integers(height), random.integers(width)] = random.integers(0, 80)
    fast = fitted_sketch(pixels, size).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(fast, slow_fit_sketch(pixels, size), rtol=0, atol=0.5 + 1e-3)


def test_margin_is_the_published_ten_pixels():
    assert MARGIN == 10


def test_photo_is_stretched_to_the_square_with_bicubic_resampling(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(37, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    levels = Preprocessing(64, HALF, HALF, crop=True).levels(tmp_path / "photo.png", "photo")
    np.testing.assert_array_equal(levels.permute(1, 2, 0), np.array(expected))


def test_values_are_scaled_and_normalised_per_channel(tmp_path):
    Image.new("RGB", (9, 9), (0, 255, 51)).save(tmp_path / "photo.png")
    tensor = Preprocessing(4, (0.5, 0.25, 0.0), (0.5, 0.25, 0.1), crop=True)(
        tmp_path / "photo.png", "photo"
    )
    assert tensor.dtype == torch.float32
    for channel, value in zip(tensor, (-1.0, 3.0, 2.0), strict=True):
        torch.testing.assert_close(channel, torch.full((4, 4), value))


def test_normalising_equals_doing_it_number_by_number_whatever_comes_before_the_channels():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocessing = Preprocessing(16, mean, std, crop=True)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    one = preprocessing.normalise(levels)
    for channel in range(3):
        for level in range(256):
            share = np.float32(level) / np.float32(255)
            value = (share - np.float32(mean[channel])) / np.float32(std[channel])
            assert one[channel].flatten()[level].item() == value
    for before in ((), (2,), (2, 3)):
        many = preprocessing.normalise(levels.expand(*before, 3, 16, 16))
        assert many.dtype == torch.float32 and torch.equal(many, one.expand(*before, 3, 16, 16))


def test_what_was_normalised_in_inference_mode_changes_nothing_for_training():
    preprocessing = Preprocessing(4, (0.125, 0.25, 0.5), (0.75, 0.5, 0.25), crop=True)
    levels = torch.full((3, 4, 4), 51, dtype=torch.uint8)
    with torch.inference_mode():
        inferred = preprocessing.normalise(levels).tolist()
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (preprocessing.normalise(levels) * weight).sum().backward()
    assert preprocessing.normalise(levels).tolist() == inferred
    assert weight.grad.isfinite().all()


def slow_dark_on_white(pixels):
    """Whether an opaque sketch has a dark ground: by floats, of means of the three channels."""
    grey = np.array([[sum(map(int, pixel)) / 3 for pixel in row] for row in pixels])
    border = [*grey[0], *grey[-1], *grey[:, 0], *grey[:, -1]]
    return np.median(grey) < 128 and np.median(border) < 128


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    levels=st.lists(st.sampled_from([0, 100, 127, 128, 129, 255]), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_a_ground_is_dark_where_the_medians_of_picture_and_border_are(height, width, levels, seed):
    random = np.random.default_rng(seed)
    pixels = random.choice(np.array(levels, dtype=np.uint8), (height, width, 3))
    pixels[0, 0] = 0  # ink, for or against a dark ground
    shown, ink = dark_on_white(Image.fromarray(pixels))
    dark = slow_dark_on_white(pixels)
    if not dark:
        np.testing.assert_array_equal(shown, pixels)
    elif ((255 - pixels).sum(axis=2, dtype=int) <= 300).any():
        np.testing.assert_array_equal(shown, 255 - pixels)
    np.testing.assert_array_equal(ink, shown.sum(axis=2, dtype=int) <= 300)


# ---- shrunk while it is decoded


@pytest.fixture
def large_photo(tmp_path):
    """A smooth photo of 800 x 600 px."""
    patches = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = tmp_path / "photo.jpg"
    Image.fromarray(patches).resize((800, 600), Image.Resampling.BICUBIC).save(file, quality=95)
    return file


@pytest.mark.parametrize(
    ("size", "decoded"), [(64, (100, 75)), (76, (200, 150)), (300, (400, 300)), (301, (800, 600))]
)
def test_a_draft_is_the_smallest_that_is_not_below_the_size(large_photo, size, decoded):
    assert open_image(large_photo, size).size == decoded
    assert open_image(large_photo).size == (800, 600)


def test_a_draft_shows_the_photo_and_differs_from_it_a_little(large_photo):
    whole = Preprocessing(64, HALF, HALF, crop=True).levels(large_photo, "photo").int()
    draft = Preprocessing(64, HALF, HALF, True, draft=True).levels(large_photo, "photo").int()
    assert 0 < (draft - whole).abs().max() <= 12


def test_a_draft_of_a_photo_stands_upright(large_photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(large_photo) as image:
        image.save(large_photo.with_name("turned.jpg"), exif=exif, quality=95)
    preprocessing = Preprocessing(64, HALF, HALF, crop=True, draft=True)
    upright = preprocessing.levels(large_photo, "photo").rot90(-1, (1, 2)).int()
    turned = preprocessing.levels(large_photo.with_name("turned.jpg"), "photo").int()
    assert open_image(large_photo.with_name("turned.jpg"), 64).size == (75, 100)
    assert (turned - upright).abs().max() <= 12


def test_only_photos_and_only_jpegs_are_drafts(large_photo, tmp_path):
    with Image.open(large_photo) as image:
        image.save(tmp_path / "photo.png")
    plain = Preprocessing(64, HALF, HALF, crop=True)
    draft = Preprocessing(64, HALF, HALF, crop=True, draft=True)
    for file, modality in ((large_photo, "sketch"), (tmp_path / "photo.png", "photo")):
        assert torch.equal(draft.levels(file, modality), plain.levels(file, modality))


def test_without_crop_a_sketch_is_stretched_like_a_photo(tmp_path):
    sketch = paper(40, 80)
    sketch[18:22, 30:50] = 0
    Image.fromarray(sketch).save(tmp_path / "sketch.png")
    preprocessing = Preprocessing(32, HALF, HALF, crop=False)
    as_photo = preprocessing.levels(tmp_path / "sketch.png", "photo")
    assert torch.equal(preprocessing.levels(tmp_path / "sketch.png", "sketch"), as_photo)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    lowest=st.integers(0, 255),
    seed=st.integers(0, 1000),
    modality=st.sampled_from(["sketch", "photo"]),
    crop=st.booleans(),
)
def test_any_picture_becomes_a_square_of_levels(
    tmp_path_factory, height, width, lowest, seed, modality, crop
):
    file = tmp_path_factory.getbasetemp() / "any.png"
    pixels = np.random.default_rng(seed).integers(lowest, 256, size=(height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a picture of one level is an empty sketch
        levels = Preprocessing(32, HALF, HALF, crop).levels(file, modality)
    assert levels.shape == (3, 32, 32) and levels.dtype == torch.uint8
