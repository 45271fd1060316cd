"""Augmentation: what may change in a picture, by how much and how often."""

import colorsys
import random as python_random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from training.augment import RANGES, augment, edge_map, turn_hue

MODALITIES = ("sketch", "photo")
CHANGING = ("light", "strong")
STILL = {"rotation": 0, "shift": 0, "scale": (1, 1), "shear": 0}
WHOLE = {"thicker": 0, "thinner": 0, "erased": 0}
FRAMED = {"area": (1, 1)}
UNCOLOURED = {"factor": (1, 1), "hue": 0, "grey": 0, "edges": 0}


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(modality, side=48):
    """A drawing in the middle of white paper, or a photo of soft colours."""
    if modality == "photo":
        patches = rng(5).integers(20, 236, size=(3, 4, 4), dtype=np.uint8)
        return v2.functional.resize(torch.from_numpy(patches), [side, side])
    y, x = np.indices((side, side)) + 0.5 - side / 2
    ring = np.abs(np.hypot(x, y) - side / 4) < 0.06 * side
    beam = (np.abs(y) < 0.06 * side) & (x > 0) & (x < side / 4)
    return paper(side).masked_fill(torch.from_numpy(ring | beam), 0)


def paper(side, level=255):
    return torch.full((3, side, side), level, dtype=torch.uint8)


def colour(side, *levels):
    return torch.tensor(levels, dtype=torch.uint8).view(3, 1, 1).repeat(1, side, side)


def ink(levels):
    return float((255 - levels.float()).sum())


def draws(levels, modality, kind, count):
    return [augment(levels, modality, kind, rng(seed)) for seed in range(count)]


def leave_out(monkeypatch, kind, modality, **changes):
    """Let all but what a test measures stay as it is; the mirroring goes with the geometry."""
    ranges = replace(
        RANGES[kind], **{modality: replace(getattr(RANGES[kind], modality), **changes)}
    )
    if changes.keys() & {"rotation", "area"}:
        ranges = replace(ranges, flip=0)
    monkeypatch.setitem(RANGES, kind, ranges)


def assert_uniform(values, low, high, tolerance):
    """No value beyond the bounds, both bounds nearly reached, and the mean halfway."""
    values, width = np.asarray(values), high - low
    assert low - tolerance <= values.min() <= low + 0.03 * width + tolerance
    assert high + tolerance >= values.max() >= high - 0.03 * width - tolerance
    assert abs(values.mean() - (low + high) / 2) < 0.06 * width + tolerance


def assert_unrelated(*columns):
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.2


def test_names():
    assert tuple(RANGES) == ("none", "flip", "light", "strong")


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_generator_alone_decides(modality, kind):
    levels = picture(modality)
    for seed in range(12):
        results = []
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)
            python_random.seed(global_seed)
            states = torch.get_rng_state(), np.random.get_state()[1:3], python_random.getstate()
            results.append(augment(levels, modality, kind, rng(seed)))
            assert torch.equal(torch.get_rng_state(), states[0])
            np.testing.assert_array_equal(np.random.get_state()[1], states[1][0])
            assert np.random.get_state()[2] == states[1][1]
            assert python_random.getstate() == states[2]
        assert torch.equal(*results)


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("modality", MODALITIES)
def test_another_seed_gives_another_picture(modality, kind):
    results = draws(picture(modality), modality, kind, 40)
    assert len({result.numpy().tobytes() for result in results}) == 40


@pytest.mark.parametrize("side", [16, 48, 224])
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_result_is_a_picture_like_the_input_which_stays(modality, kind, side):
    levels = picture(modality, side)
    before = levels.clone()
    for result in draws(levels, modality, kind, 12):
        assert result.shape == (3, side, side) and result.dtype == torch.uint8
        assert result.is_contiguous()
        assert torch.equal(levels, before)


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(8, 40),
    modality=st.sampled_from(MODALITIES),
    kind=st.sampled_from(CHANGING),
    lowest=st.integers(0, 255),
    seed=st.integers(0, 10**6),
)
def test_any_picture_can_be_augmented(side, modality, kind, lowest, seed):
    pixels = rng(seed).integers(lowest, 256, size=(3, side, side), dtype=np.uint8)
    result = augment(torch.from_numpy(pixels), modality, kind, rng(seed))
    assert result.shape == (3, side, side) and result.dtype == torch.uint8


@pytest.mark.parametrize("modality", MODALITIES)
def test_none_is_the_picture_itself(modality):
    levels = picture(modality)
    assert all(torch.equal(result, levels) for result in draws(levels, modality, "none", 20))


@pytest.mark.parametrize("modality", MODALITIES)
def test_flip_is_the_picture_or_its_mirror_image_each_half_of_the_time(modality):
    levels = picture(modality)
    results = draws(levels, modality, "flip", 300)
    mirrored = [torch.equal(result, levels.flip(2)) for result in results]
    assert 110 < sum(mirrored) < 190
    for result, turned in zip(results, mirrored, strict=True):
        assert turned or torch.equal(result, levels)


@pytest.mark.parametrize("kind", RANGES)
def test_white_paper_stays_white(kind):
    for result in draws(paper(33), "sketch", kind, 60):
        assert (result == 255).all()


@pytest.mark.parametrize(("kind", "least", "most"), [("light", 0.65, 1.15), ("strong", 0.2, 2.1)])
def test_a_drawing_stays_on_white_and_keeps_its_ink(kind, least, most):
    levels = picture("sketch", 64)
    results = draws(levels, "sketch", kind, 200)
    for result in results:
        border = torch.cat([result[:, 0], result[:, -1], result[:, :, 0], result[:, :, -1]], dim=1)
        assert (border == 255).float().mean() > 0.9
        assert (result[:, :: result.shape[1] - 1, :: result.shape[2] - 1] == 255).all()
    ratios = np.array([ink(result) for result in results]) / ink(levels)
    assert least < ratios.min() and ratios.max() < most
    assert 0.7 < ratios.mean() < 1.1


def three_dots(side, distance):
    """Channel by channel a dot in the middle, one to the right of it and one below it."""
    levels, middle = paper(side), side // 2
    for channel, (x, y) in enumerate([(0, 0), (distance, 0), (0, distance)]):
        levels[channel, middle + y - 2 : middle + y + 2, middle + x - 2 : middle + x + 2] = 0
    return levels


def centre_of_ink(channel):
    """(x, y), in px from the middle of the picture."""
    weights = 255 - channel.double()
    places = torch.arange(len(channel), dtype=torch.double) + 0.5 - len(channel) / 2
    return np.array([weights.sum(0) @ places, weights.sum(1) @ places]) / float(weights.sum())


@pytest.mark.parametrize(
    ("kind", "rotation", "shift", "scale", "shear"),
    [("light", 8, 0.04, (0.85, 1.05), 4), ("strong", 15, 0.08, (0.8, 1.1), 8)],
)
def test_a_sketch_is_turned_moved_scaled_and_sheared(
    monkeypatch, kind, rotation, shift, scale, shear
):
    leave_out(monkeypatch, kind, "sketch", **WHOLE)
    side, distance = 80, 24
    measured, mirrored = [], 0
    for result in draws(three_dots(side, distance), "sketch", kind, 400):
        middle, right, below = (centre_of_ink(channel) for channel in result)
        along, down = (right - middle) / distance, (below - middle) / distance
        if along[0] < 0:  # mirrored, before all else
            along, mirrored = -along, mirrored + 1
        length = np.hypot(*along)
        cosine, sine = along / length
        measured.append(
            [
                np.degrees(np.arctan2(sine, cosine)),
                *middle / side,
                length,
                np.degrees(np.arctan2(-(cosine * down[0] + sine * down[1]), length)),
                (cosine * down[1] - sine * down[0]) / length,  # down is stretched as along is
            ]
        )
    turned, moved_along, moved_down, scaled, sheared, even = np.transpose(measured)
    assert 150 < mirrored < 250
    assert_uniform(turned, -rotation, rotation, 0.3)
    assert_uniform(moved_along, -shift, shift, 0.002)
    assert_uniform(moved_down, -shift, shift, 0.002)
    assert_uniform(scaled, *scale, 0.005)
    assert_uniform(sheared, -shear, shear, 0.4)
    np.testing.assert_allclose(even, 1, atol=0.015)
    assert_unrelated(turned, moved_along, moved_down, scaled, sheared)


def test_a_light_sketch_is_neither_widened_nor_hidden(monkeypatch):
    leave_out(monkeypatch, "light", "sketch", **STILL)
    levels = picture("sketch", 24)
    assert all(torch.equal(result, levels) for result in draws(levels, "sketch", "light", 200))


@pytest.mark.parametrize("upright", [True, False])
def test_strokes_become_thicker_and_thinner(monkeypatch, upright):
    leave_out(monkeypatch, "strong", "sketch", **STILL, erased=0)
    levels = paper(24)
    levels[:, 4:20, 10:15] = 0  # 16 long, 5 wide
    levels = levels if upright else levels.transpose(1, 2)
    found = []
    for result in draws(levels, "sketch", "strong", 600):
        dark = result[0] == 0
        assert (dark == (result == 0)).all() and (dark | (result[0] == 255)).all()
        extent = [int(dark.any(axis).sum()) for axis in (1, 0)]  # rows, columns
        assert int(dark.sum()) == extent[0] * extent[1]  # still a bar
        found.append(tuple(extent if upright else reversed(extent)))
    assert set(found) == {(16, 5), (18, 7), (15, 4)}
    assert 110 < found.count((18, 7)) < 190  # 1/4 of 600
    assert 56 < found.count((15, 4)) < 124  # 0.15 of 600


def test_strokes_widen_around_themselves(monkeypatch):
    leave_out(monkeypatch, "strong", "sketch", **STILL, erased=0, thicker=1, thinner=0)
    dot = paper(9)
    dot[:, 4, 4] = 0
    expected = paper(9)
    expected[:, 3:6, 3:6] = 0
    assert torch.equal(augment(dot, "sketch", "strong", rng()), expected)


def test_a_white_square_hides_a_part_of_every_second_sketch(monkeypatch):
    leave_out(monkeypatch, "strong", "sketch", **STILL, thicker=0, thinner=0)
    side, squares = 60, []
    for result in draws(paper(side, 0), "sketch", "strong", 600):
        white = result[0] == 255
        assert (white == (result == 255)).all() and (white | (result[0] == 0)).all()
        if white.any():
            top, left = white.nonzero().amin(0).tolist()
            bottom, right = (white.nonzero().amax(0) + 1).tolist()
            assert int(white.sum()) == (bottom - top) ** 2 == (right - left) ** 2
            squares.append((top, left, bottom, right))
    assert 250 < len(squares) < 350
    top, left, bottom, right = np.transpose(squares)
    assert_uniform((bottom - top) / side, 0.15, 0.4, 0.01)
    room = side - (bottom - top)
    assert_uniform(top / room, 0, 1, 0.02)
    assert_uniform(left / room, 0, 1, 0.02)
    assert_unrelated(top / room, left / room, bottom - top)


@pytest.mark.parametrize(
    ("kind", "smallest", "aspect"), [("light", 0.7, 1.18), ("strong", 0.5, 4 / 3)]
)
def test_a_photo_is_cropped(monkeypatch, kind, smallest, aspect):
    leave_out(monkeypatch, kind, "photo", **UNCOLOURED)
    side = 120
    ramp = torch.arange(side, dtype=torch.uint8) * 2 + 1  # twice the place of a pixel's centre
    levels = torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), paper(side)[0]]
    )
    crops, mirrored = [], 0
    quarter = side // 4
    for result in draws(levels, "photo", kind, 400):
        places = result.double() / 2
        along, down = places[0].mean(0), places[1].mean(1)
        width = float(along[-quarter - 1] - along[quarter]) / (side - 1 - 2 * quarter)
        height = float(down[-quarter - 1] - down[quarter]) / (side - 1 - 2 * quarter)
        middle = float(along.mean()) / side, float(down.mean()) / side
        assert (result[2] == 255).all()  # nothing from outside
        mirrored += width < 0
        crops.append((abs(width), height, *middle))
    width, height, across, down = np.transpose(crops)
    assert 150 < mirrored < 250
    assert_uniform(width * height, smallest, 1, 0.02)
    ratio = np.log(width / height)
    assert abs(ratio).max() < np.log(aspect) + 0.02
    assert ratio.max() > 0.85 * np.log(aspect) and ratio.min() < -0.85 * np.log(aspect)
    assert abs(ratio.mean()) < 0.02
    for middle, size in ((across, width), (down, height)):
        movable = size < 0.9
        place = (middle - size / 2)[movable] / (1 - size[movable])  # 0: left or top, 1: the end
        assert -0.1 < place.min() < 0.1 and 0.9 < place.max() < 1.1
        assert 0.4 < place.mean() < 0.6 and 0.24 < place.std() < 0.36  # uniform: 0.29, ends: 0.5


@pytest.mark.parametrize(("kind", "low", "high"), [("light", 0.8, 1.2), ("strong", 0.7, 1.3)])
def test_brightness_contrast_and_saturation_of_a_photo_change(monkeypatch, kind, low, high):
    leave_out(monkeypatch, kind, "photo", **FRAMED, hue=0, grey=0, edges=0)
    levels = torch.cat([colour(12, *rgb) for rgb in [(70,) * 3, (130,) * 3, (120, 90, 90)]], dim=2)
    levels = levels.repeat(1, 3, 1)  # three columns of 12 px
    luminance = 0.2989 * 120 + (0.587 + 0.114) * 90
    mean = (70 + 130 + luminance) / 3
    factors = []
    for result in draws(levels, "photo", kind, 400):
        dark, light, tinted = (result[:, 18, x].double().numpy() for x in (6, 18, 30))
        both = (light[0] - dark[0]) / 60  # brightness times contrast
        brightness = (dark[0] - both * (70 - mean)) / mean
        saturation = (tinted[0] - tinted[1]) / 30 / both
        factors.append((brightness, both / brightness, saturation))
    brightness, contrast, saturation = np.transpose(factors)
    assert_uniform(brightness, low, high, 0.015)
    assert_uniform(contrast, low, high, 0.03)
    assert_uniform(saturation, low, high, 0.06)  # of levels rounded to whole numbers
    assert_unrelated(brightness, contrast, saturation)


def test_levels_are_rounded_not_cut_off(monkeypatch):
    leave_out(monkeypatch, "light", "photo", **FRAMED, **{**UNCOLOURED, "factor": (0.9, 0.9)})
    result = augment(paper(8, 101), "photo", "light", rng())
    assert (result == 91).all()  # 0.9 * 101 = 90.9


@pytest.mark.parametrize(("kind", "most"), [("light", 0.02), ("strong", 0.05)])
def test_hue_of_a_photo_turns(monkeypatch, kind, most):
    leave_out(monkeypatch, kind, "photo", **FRAMED, factor=(1, 1), grey=0, edges=0)
    turns = []
    for result in draws(colour(8, 220, 80, 80), "photo", kind, 400):
        r, g, b = result[:, 4, 4].double().tolist()
        turns.append(np.arctan2((g - b) * np.sqrt(3) / 2, r - (g + b) / 2) / (2 * np.pi))
    assert_uniform(turns, -most, most, 0.002)


def test_a_third_of_a_turn_of_the_hue_makes_red_green_and_green_blue():
    colours = torch.tensor([0.9, 0.2, 0.4]).view(3, 1, 1)
    for turns, expected in ((1 / 3, [0.4, 0.9, 0.2]), (-1 / 3, [0.2, 0.4, 0.9])):
        turned = turn_hue(colours, turns)
        torch.testing.assert_close(turned.flatten(), torch.tensor(expected))


def test_turned_colours_stay_in_range():
    corners = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]).T[:, None]
    for turns in (-0.05, 0.05, 0.4):
        turned = turn_hue(corners, turns)
        assert turned.min() >= 0 and turned.max() <= 1


def test_turning_the_hue_adds_to_the_hue_and_keeps_the_mean_level():
    palette = rng().uniform(0.3, 0.7, size=(50, 3))  # nothing is clipped
    colours = torch.from_numpy(palette.T.copy()).float()[:, None]
    for turns in (-0.05, 0.02, 0.05):
        turned = turn_hue(colours, turns)[:, 0].T.tolist()
        for before, after in zip(palette, turned, strict=True):
            added = colorsys.rgb_to_hsv(*after)[0] - colorsys.rgb_to_hsv(*before)[0]
            assert abs((added - turns + 0.5) % 1 - 0.5) < 0.007  # HSV measures along a hexagon
            assert abs(sum(after) - sum(before)) < 1e-5


@pytest.mark.parametrize(("kind", "edges", "grey"), [("light", 0, 0), ("strong", 90, 102)])
def test_some_photos_become_grey_or_edge_maps(kind, edges, grey):
    found = {"edges": 0, "grey": 0}  # of 600: 0.15, and 0.2 of the others
    for result in draws(colour(16, 200, 40, 90), "photo", kind, 600):
        if (result == 255).all():
            found["edges"] += 1  # the edge map of a flat photo
        elif (result == result[:1]).all():
            found["grey"] += 1
    assert abs(found["edges"] - edges) < 25 if edges else found["edges"] == 0
    assert abs(found["grey"] - grey) < 25 if grey else found["grey"] == 0


def test_an_edge_map_of_a_photo_is_the_map_of_its_crop(monkeypatch):
    leave_out(monkeypatch, "strong", "photo", **FRAMED, edges=1)
    levels = picture("photo")
    for result in draws(levels, "photo", "strong", 20):
        assert torch.equal(result, edge_map(levels))


def test_edge_map_of_a_step_by_hand():
    """Blurred with 0.054 0.244 0.403 0.244 0.054; slopes are means of two neighbours of these."""
    levels = paper(20, 40)
    levels[:, :, 10:] = 200
    across = torch.tensor([255] * 6 + [255, 234, 137, 0, 0, 137, 234, 255] + [255] * 6)
    for picture_, expected in ((levels, across), (levels.transpose(1, 2), across[:, None])):
        for side in (picture_, 255 - picture_):
            edges = edge_map(side).int()
            assert (edges - expected).abs().max() <= 1  # every row, the first and last included
            assert (edges == edges[:1]).all()


def test_edge_map_of_a_flat_photo_is_white_and_of_a_faint_one_light():
    assert (edge_map(colour(16, 200, 40, 90)) == 255).all()
    faint = paper(20, 100)
    faint[:, :, 10:] = 102  # steepest: 2 * (0.403 + 0.244) / 2 = 0.65 levels per px, black is 2
    assert abs(int(edge_map(faint).min()) - 255 * (1 - 0.647 / 2)) <= 1.5


def test_the_steepest_three_percent_of_a_photo_are_black():
    noise = torch.from_numpy(rng().integers(0, 256, size=(3, 64, 64), dtype=np.uint8))
    assert 0.025 < (edge_map(noise) == 0).float().mean() < 0.036
