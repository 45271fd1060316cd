"""Drawn objects: every category, the shapes they are made of, and how they come into a picture."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.images import INK, dark_on_white, fit_sketch
from datasets.synthetic.benchmark import (
    PHOTO_POSE,
    SKETCH_POSE,
    draw_pair,
    draw_photo_of,
    draw_sketch_of,
    part_names,
)
from datasets.synthetic.drawn import CATEGORIES
from datasets.synthetic.drawn.photo import (
    CLUTTER,
    MATERIALS,
    SCENES,
    Material,
    _colour,
    _noise,
    draw_photo,
)
from datasets.synthetic.drawn.pose import Pose, draw_pose, part_labels
from datasets.synthetic.drawn.shapes import (
    MISJUDGED,
    Measures,
    blob,
    box,
    closed,
    curve,
    ellipse,
    line,
    mirrored,
    ring,
    rod,
    solid,
    tube,
    turned,
)
from datasets.synthetic.drawn.sketch import (
    SHORT,
    SMALL,
    _Hand,
    draw_sketch,
    evenly_spaced,
    leave_out,
)

pytestmark = pytest.mark.slow

STRAIGHT = Pose(np.eye(2) / 2, np.array([0.5, 0.5]))  # the unit square fills the picture
SIZE = 48


def generator(*key):
    return np.random.default_rng(key)


def instances(category, count=6):
    return [CATEGORIES[category](Measures(generator(1, number))) for number in range(count)]


def frame(picture):
    """The outermost rows and columns."""
    pixels = np.asarray(picture)
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def area(outline):
    x, y = outline.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def inside(mask, number):
    """The mean place, (x, y), of a part in a mask; None where it is not seen."""
    rows, columns = np.nonzero(np.asarray(mask) == number)
    return np.array([columns.mean(), rows.mean()]) if len(rows) else None


# ---- every category


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_has_named_parts_of_known_materials_with_sound_lines(category):
    assert category == category.lower() and category.isalpha()
    for parts in instances(category):
        assert len({part.name for part in parts}) >= 2
        for part in parts:
            assert part.name.isalpha() and part.name == part.name.lower()
            assert part.material in MATERIALS and part.colour
            assert part.outline.ndim == 2 and part.outline.shape[1] == 2
            assert len(part.outline) >= 3 and np.ptp(part.outline, axis=0).min() > 0.01
            assert part.strokes
            for points in (part.outline, *part.strokes):
                assert points.shape[1] == 2 and len(points) >= 2
                assert np.isfinite(points).all()
                assert np.abs(points).max() < 1.4


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_about_fill_the_square_from_minus_one_to_one(category):
    for parts in instances(category):
        points = np.concatenate([part.outline for part in parts])
        assert 1.2 < np.ptp(points, axis=0).max() < 2.3


@pytest.mark.parametrize("category", sorted(set(CATEGORIES) - {"guitar"}))  # but for its strings
def test_details_lie_on_their_part(category):
    """An outline's box holds the lines that are drawn on it."""
    for parts in instances(category):
        for part in parts:
            low, high = part.outline.min(axis=0) - 0.11, part.outline.max(axis=0) + 0.11
            for stroke in part.strokes:
                assert (stroke >= low).all() and (stroke <= high).all(), part.name


def test_every_part_of_an_object_hangs_together_with_the_others():
    """No part floats: grown by a fiftieth of the picture, all parts are one patch."""
    for category in CATEGORIES:
        for parts in instances(category, 4):
            covered = np.zeros((SIZE, SIZE), bool)
            outlines = [part.outline for part in parts]
            scale = 0.9 / np.abs(np.concatenate(outlines)).max()
            pose = Pose(np.eye(2) / 2 * scale, np.array([0.5, 0.5]))
            mask = np.asarray(part_labels(parts, pose, SIZE, part_names(category))) > 0
            mask[1:] |= mask[:-1].copy()
            mask[:, 1:] |= mask[:, :-1].copy()
            waiting = [tuple(np.argwhere(mask)[0])]
            while waiting:
                row, column = waiting.pop()
                if not (0 <= row < SIZE and 0 <= column < SIZE):
                    continue
                if mask[row, column] and not covered[row, column]:
                    covered[row, column] = True
                    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
                    waiting += [(row + dy, column + dx) for dy, dx in steps]
            assert covered.sum() == mask.sum(), category


def test_instances_of_a_category_differ():
    for category in CATEGORIES:
        one, other = instances(category, 2)
        same = [
            a.outline.shape == b.outline.shape and np.allclose(a.outline, b.outline)
            for a, b in zip(one, other, strict=False)
        ]
        assert not all(same), category


def test_every_material_is_used():
    used = {part.material for name in CATEGORIES for p in instances(name, 12) for part in p}
    assert used == set(MATERIALS)


@pytest.mark.parametrize("category", CATEGORIES)
def test_photo_and_sketch_show_the_whole_object(category):
    for number in range(2):
        pair = draw_pair(category, number, 96, 2)
        assert (pair.photo.mode, pair.sketch.mode) == ("RGB", "L")
        for picture in vars(pair).values():
            assert picture.size == (96, 96)
        for mask in (pair.photo_parts, pair.sketch_parts):
            assert not frame(mask).any()
            assert 0.03 < np.mean(np.asarray(mask) > 0) < 0.9
        strokes = np.repeat(np.asarray(pair.sketch)[..., None], 3, axis=2)
        found, ink = dark_on_white(pair.sketch)
        assert 0.01 < ink.mean() < 0.5
        assert np.array_equal(found, strokes)
        assert (fit_sketch(strokes, 96, ink).sum(dim=0) <= INK).any()


def test_hardly_any_sketch_is_cut_at_the_edge():
    sketches = [draw_sketch_of(name, i, SIZE, 3)[0] for name in CATEGORIES for i in range(4)]
    cut = sum(bool((frame(sketch) < 128).any()) for sketch in sketches)
    assert cut <= 3  # of 200


def test_photo_and_sketch_have_mostly_the_same_parts():
    shares = {}
    for category in CATEGORIES:
        for number in range(3):
            in_photo, in_sketch = (
                set(np.unique(np.asarray(draw(category, number, SIZE, 0)[1]))) - {0}
                for draw in (draw_photo_of, draw_sketch_of)
            )
            share = len(in_photo & in_sketch) / len(in_photo | in_sketch)
            shares.setdefault(category, []).append(share)
    assert min(np.mean(share) for share in shares.values()) >= 0.55
    assert np.mean(list(shares.values())) > 0.9


@pytest.mark.parametrize(
    ("category", "one", "other"), [("cup", "handle", "body"), ("fish", "eye", "tail")]
)
def test_photo_and_sketch_face_the_same_way(category, one, other):
    names = part_names(category)
    ways = Counter()
    for number in range(10):
        found = []
        for draw in (draw_photo_of, draw_sketch_of):
            _, mask = draw(category, number, SIZE, 0)
            places = [inside(mask, names.index(name) + 1) for name in (one, other)]
            if all(place is not None for place in places):
                found.append(bool(places[0][0] > places[1][0]))
        assert len(set(found)) == 1
        ways[found[0]] += 1
    assert len(ways) == 2  # some to the left, some to the right


@pytest.mark.parametrize(("category", "part"), [("clock", "bell"), ("snowman", "hat")])
def test_photo_and_sketch_are_of_the_same_instance(category, part):
    """What only some instances have, both show or neither does."""
    which = part_names(category).index(part) + 1
    shown = [
        [
            bool((np.asarray(draw(category, number, SIZE, 4)[1]) == which).any())
            for number in range(14)
        ]
        for draw in (draw_photo_of, draw_sketch_of)
    ]
    assert sum(a == b for a, b in zip(*shown, strict=True)) >= 13  # a sketcher may leave it out
    assert 3 < sum(shown[0]) < 14


# ---- the measures of an instance


LENGTHS = st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=8)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 99))
def test_measures_are_in_range_and_the_same_whenever_the_generator_is(ranges, seed):
    first, again = Measures(generator(seed)), Measures(generator(seed))
    mistaken = Measures(generator(seed), misjudged=generator(seed, 1))
    for low, width in ranges:
        length = first(low, low + width)
        assert low <= length <= low + width
        assert again(low, low + width) == length
        assert low <= mistaken(low, low + width) <= low + width
    assert first.count(2, 9) == again.count(2, 9) == mistaken.count(2, 9)
    assert first.maybe() == again.maybe() == mistaken.maybe()


def test_a_sketcher_mistakes_lengths_by_a_fifth_of_their_range_but_counts_right():
    true, drawn = Measures(generator(0)), Measures(generator(0), misjudged=generator(1))
    lengths = np.array([(true(0, 10), drawn(0, 10)) for _ in range(2000)])
    middle = np.abs(lengths[:, 0] - 5) < 1  # where the ends of the range hardly matter
    error = (lengths[:, 1] - lengths[:, 0])[middle]
    assert abs(error.mean()) < 0.4 and 10 * MISJUDGED * 0.8 < error.std() < 10 * MISJUDGED * 1.1
    counted = [(true.count(1, 3), drawn.count(1, 3)) for _ in range(200)]
    seen = [(true.maybe(0.3), drawn.maybe(0.3)) for _ in range(200)]
    assert all(a == b for a, b in counted + seen)
    assert {a for a, _ in counted} == {1, 2, 3} and 30 < sum(a for a, _ in seen) < 90


# ---- shapes


def test_an_ellipse_goes_clockwise_from_the_right():
    points = ellipse(1, 2, 3, 0.5)
    assert np.allclose(((points - [1, 2]) / [3, 0.5]) ** 2 @ [1, 1], 1)
    assert np.allclose(points[0], (4, 2))
    assert points[1][1] > 2  # downwards
    assert not np.allclose(points[-1], points[0])  # closed by itself
    assert area(ellipse(0, 0, 1)) == pytest.approx(np.pi, rel=0.01)
    assert np.allclose(ellipse(0, 0, 2), ellipse(0, 0, 2, 2))


def test_an_arc_has_both_its_ends():
    upper = ellipse(0, 0, 1, 0.5, 180, 360)
    assert np.allclose(upper[[0, -1]], [(-1, 0), (1, 0)]) and (upper[:, 1] <= 1e-9).all()
    lower = ellipse(0, 0, 1, 1, 0, 180)
    assert lower[len(lower) // 2][1] > 0.9


def test_a_small_ellipse_is_still_round():
    assert len(ellipse(0, 0, 0.01)) == 6


def test_a_box_has_four_corners_and_a_rounded_one_none():
    assert box(0, 1, 2, 4).tolist() == [[0, 1], [2, 1], [2, 4], [0, 4]]
    rounded = box(0, 1, 2, 4, rounded=0.5)
    assert np.allclose(rounded.min(axis=0), (0, 1)) and np.allclose(rounded.max(axis=0), (2, 4))
    distances = np.linalg.norm(rounded[:, None] - box(0, 1, 2, 4), axis=2)
    assert distances.min() > 0.5 * (np.sqrt(2) - 1) - 0.01
    assert area(rounded) == pytest.approx(6 - 0.25 * (4 - np.pi), rel=0.02)


def test_a_tube_is_a_band_from_edge_to_edge():
    straight = tube(line((0, 0), (1, 0), (3, 0)), 0.4)
    assert np.allclose(straight[:3], [(0, 0.2), (1, 0.2), (3, 0.2)])
    assert np.allclose(straight[3:], [(3, -0.2), (1, -0.2), (0, -0.2)])
    tapered = tube(line((0, 0), (0, 1), (0, 2)), 1, 0)
    assert np.allclose(np.ptp(tapered[:, 0][[0, 5]]), 1)
    assert np.allclose(tapered[2], tapered[3])
    assert area(tapered) == pytest.approx(1)


def test_a_tube_of_points_that_coincide_is_finite():
    assert np.isfinite(tube(line((0, 0), (0, 0), (0, 0)), 1)).all()


def test_a_ring_ends_where_it_began():
    points = ring(1, 0, 0.5)
    assert np.array_equal(points[0], points[-1])
    assert np.array_equal(points[:-1], ellipse(1, 0, 0.5))
    assert np.array_equal(
        closed(box(0, 0, 1, 1)), np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    )


KNOTS = [(0.0, 0.0), (0.5, 0.3), (1.0, -0.4), (1.2, 0.5)]


def passes_through(points, knots):
    gaps = np.linalg.norm(points[:, None] - np.array(knots), axis=2).min(axis=0)
    return bool((gaps < 1e-9).all())


def test_a_curve_goes_smoothly_through_its_points():
    points = curve(*KNOTS)
    assert passes_through(points, KNOTS)
    assert np.allclose(points[[0, -1]], [KNOTS[0], KNOTS[-1]])
    ways = np.diff(points, axis=0)
    assert np.linalg.norm(ways, axis=1).max() < 0.15
    turns = np.unwrap(np.arctan2(ways[:, 1], ways[:, 0]))
    assert np.abs(np.diff(turns)).max() < 0.6  # no corner; straight lines would turn by 1.5
    straight = curve((0, 0), (1, 0), (2, 0))
    assert np.allclose(straight[:, 1], 0) and (np.diff(straight[:, 0]) > 0).all()


def test_a_blob_is_a_closed_curve():
    points = blob(*KNOTS)
    assert passes_through(points, KNOTS)
    assert np.allclose(points[0], KNOTS[0]) and not np.allclose(points[-1], KNOTS[0])
    assert np.linalg.norm(points[-1] - points[0]) < 0.15
    again = blob(*KNOTS[1:], KNOTS[0])  # begun elsewhere
    assert len(again) == len(points) and passes_through(again, points)


def test_a_mirrored_outline_has_two_equal_sides():
    points = mirrored((0, -1), (0.5, -0.5), (0.3, 0.4), (0, 1))
    assert passes_through(points, [(0, -1), (0.5, -0.5), (-0.5, -0.5), (-0.3, 0.4), (0, 1)])
    left = points * [-1, 1]
    gaps = np.linalg.norm(points[:, None] - left, axis=2).min(axis=1)
    assert gaps.max() < 0.03
    assert np.sum(np.abs(points[:, 0]) < 1e-9) == 2  # points on the axis are there once


def test_turning_is_clockwise_about_the_given_point():
    points = line((1, 0), (0, 1))
    assert np.allclose(turned(points, 90), [(0, 1), (-1, 0)])  # right to down, down to left
    assert np.allclose(turned(points, 90, 1, 0), [(1, 0), (0, -1)])
    assert np.allclose(turned(turned(points, 33, 2, 1), -33, 2, 1), points)


def test_solids_are_drawn_by_their_outline_rods_by_their_line():
    side, mark = box(0, 0, 1, 1), line((0, 0), (1, 1))
    part = solid("side", "wood", side, mark)
    assert (part.name, part.colour, part.material) == ("side", "side", "wood")
    assert np.array_equal(part.strokes[0], closed(side)) and part.strokes[1] is mark
    assert solid("side", "wood", side, colour="case").colour == "case"
    part = rod("arm", "metal", mark, 0.1)
    assert part.strokes == [mark] and part.colour == "arm"
    assert area(part.outline) == pytest.approx(0.1 * np.sqrt(2))


# ---- where an object stands


UNIT = st.floats(-1, 1).map(lambda value: round(value, 3))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(UNIT, UNIT), min_size=3, max_size=9, unique=True),
    st.integers(0, 999),
    st.booleans(),
    st.sampled_from([PHOTO_POSE, SKETCH_POSE]),
)
def test_a_pose_brings_all_of_the_object_into_the_picture(points, seed, flip, settings):
    outline = np.array([*points, (-1, -0.5), (1, 0.5)])
    pose = draw_pose([solid("a", "wood", outline)], generator(seed), flip=flip, **settings)
    placed = np.array(pose.points(outline, 100)) / 100
    margin, (smallest, largest) = settings["margin"], settings["size"]
    assert placed.min() > margin - 1e-9 and placed.max() < 1 - margin + 1e-9
    assert smallest - 1e-9 < np.ptp(placed, axis=0).max() < largest + 1e-9
    assert (np.linalg.det(pose.matrix) < 0) == flip


def test_poses_reach_all_of_the_room():
    part = solid("a", "wood", box(-1, -0.1, 1, 0.1))
    settings = {"size": (0.5, 0.5), "turn": 0, "shear": 0, "margin": 0.1, "flip": False}
    shifts = np.array([draw_pose([part], generator(i), **settings).shift for i in range(200)])
    low, high = shifts.min(axis=0), shifts.max(axis=0)
    assert np.allclose(low, (0.35, 0.125), atol=0.02) and np.allclose(
        high, (0.65, 0.875), atol=0.02
    )


def test_an_object_without_room_for_margins_stands_in_the_middle():
    part = solid("a", "wood", box(-1, -1, 1, 1))
    settings = {"size": (0.9, 0.9), "turn": 0, "shear": 0, "margin": 0.2, "flip": False}
    assert np.allclose(draw_pose([part], generator(0), **settings).shift, 0.5)


def test_points_come_into_the_picture_by_matrix_and_shift():
    pose = Pose(np.array([[0.25, 0], [0, 0.5]]), np.array([0.5, 0.25]))
    assert pose.points(line((0, 0), (1, 1), (-2, 0.5)), 8) == [(4, 2), (6, 6), (0, 4)]


def test_a_mask_has_the_number_of_the_part_in_front():
    back, front = solid("b", "wood", box(-1, -1, 0.5, 1)), solid("a", "wood", box(0, -1, 1, 0))
    labels = np.asarray(part_labels([back, front], STRAIGHT, 16, ["a", "b"]))
    assert labels[3, 3] == labels[12, 10] == 2
    assert labels[3, 9] == labels[3, 14] == 1
    assert labels[14, 14] == 0
    turned_round = np.asarray(part_labels([front, back], STRAIGHT, 16, ["a", "b"]))
    assert turned_round[3, 9] == 2


def test_a_ring_has_a_hole():
    part = solid("bow", "metal", tube(ring(0, 0, 0.7), 0.3))
    labels = np.asarray(part_labels([part], STRAIGHT, 40, ["bow"]))
    assert labels[20, 20] == 0 and labels[20, 34] == labels[6, 20] == 1


# ---- sketches


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(UNIT, UNIT), min_size=2, max_size=12, unique=True))
def test_evenly_spaced_points_keep_corners_ends_and_way(corners):
    stroke = np.array(corners)
    points = evenly_spaced(stroke)
    assert passes_through(points, stroke)
    assert np.allclose(points[[0, -1]], stroke[[0, -1]])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() <= 0.061  # one and a half steps, where rounding is at its worst
    length = np.linalg.norm(np.diff(stroke, axis=0), axis=1).sum()
    assert steps.sum() == pytest.approx(length)


def test_a_straight_line_is_cut_into_equal_steps():
    points = evenly_spaced(line((0, 0), (1, 0)), step=0.25)
    assert np.allclose(points, [(0, 0), (0.25, 0), (0.5, 0), (0.75, 0), (1, 0)])


def test_a_hasty_hand_leaves_out_small_parts_and_details_only():
    mark = line((0, 0), (0.1, 0.1))
    large = solid("large", "wood", box(-1, -1, 1, 1), mark)
    small = solid("small", "wood", box(0, 0, 0.1, 0.1))
    thin = solid("thin", "wood", box(0, -1, 0.05, 1))
    width, height = np.ptp(thin.outline, axis=0) / 2
    assert width * height < SMALL and height > SHORT
    kept, marks = Counter(), 0
    for seed in range(400):
        parts = leave_out([large, small, thin], generator(seed))
        kept.update(part.name for part in parts)
        assert all(len(part.strokes) >= 1 for part in parts)
        marks += len(parts[0].strokes) - 1
    assert kept["large"] == kept["thin"] == 400
    assert 330 < kept["small"] < 375
    assert 260 < marks < 340


class Careless:
    """A generator that always leaves out."""

    def random(self):
        return 0.0


def test_something_is_always_drawn():
    parts = [solid("a", "wood", box(0, 0, 0.1, 0.1)), solid("b", "wood", box(0, 0, 0.1, 0.1))]
    (last,) = leave_out(parts, Careless())
    assert last.name == "b"


def test_a_hand_trembles_a_little_and_ends_strokes_early_or_late():
    stroke = closed(ellipse(0, 0, 0.8))
    counts = set()
    for seed in range(30):
        hand = _Hand(generator(seed))
        shaken = hand.tremble(stroke)
        assert shaken.shape == evenly_spaced(stroke).shape
        off = np.abs(shaken - evenly_spaced(stroke)).max()
        assert 0 < off < hand.shake * 15
        pieces = hand.pieces(shaken)
        counts.add(len(pieces))
        assert pieces and all(np.isfinite(piece).all() and len(piece) >= 2 for piece in pieces)
        assert abs(sum(map(len, pieces)) - len(shaken)) < 6 + 5 * len(pieces)
    assert len(counts) > 1  # with gaps, and without


def opaque_hand(draws_through):
    """The seed of a hand that draws hidden lines, or of one that does not."""
    return next(i for i in range(500) if _Hand(generator(i)).draws_through == draws_through)


@pytest.mark.parametrize("draws_through", [False, True])
def test_what_stands_in_front_hides_the_lines_behind(draws_through):
    back = solid("back", "wood", box(-0.9, -0.1, 0.9, 0.1))
    front = solid("front", "wood", box(-0.5, -0.8, 0.5, 0.8))
    seed = opaque_hand(draws_through)
    sketch = draw_sketch([back, front], STRAIGHT, 64, generator(seed))
    middle = np.asarray(sketch)[16:48, 26:38]
    assert bool((middle < 128).any()) == draws_through
    assert (np.asarray(sketch) < 128).any()


def test_strokes_are_dark_on_white():
    for seed in range(20):
        part = solid("a", "wood", box(-0.7, -0.7, 0.7, 0.7))
        sketch = np.asarray(draw_sketch([part], STRAIGHT, 64, generator(seed)))
        assert sketch.max() == 255 and sketch.min() < 100
        assert np.median(sketch) == 255


# ---- photos


def test_colours_are_those_of_the_wheel():
    for hue, colour in ((0, (1, 0, 0)), (1 / 3, (0, 1, 0)), (2 / 3, (0, 0, 1)), (1, (1, 0, 0))):
        pure = Material((hue, hue), (1, 1), (1, 1))
        assert np.allclose(_colour(pure, generator(0)), colour, atol=1e-6)
    grey = Material((0.3, 0.3), (0, 0), (0.4, 0.4))
    assert np.allclose(_colour(grey, generator(0)), 0.4)


@pytest.mark.parametrize("material", [*MATERIALS.values(), CLUTTER, *sum(SCENES, ())])
def test_ranges_of_materials_are_ranges(material):
    assert material.hue[0] <= material.hue[1] <= material.hue[0] + 1
    for low, high in (material.saturation, material.value):
        assert 0 <= low <= high <= 1
    assert 0 <= material.grain < 0.5 and material.stretch >= 1 and 0 <= material.gloss <= 1


def test_noise_is_smooth_and_about_between_minus_one_and_one():
    noise = _noise(64, 4, generator(0), stretch=3)
    assert noise.shape == (64, 64) and np.abs(noise).max() < 1.5 and noise.std() > 0.2
    across, down = (np.abs(np.diff(noise, axis=axis)).mean() for axis in (1, 0))
    assert across < down  # fewer bumps along x


def test_an_object_covers_its_place_in_the_photo():
    """With other parts' colours the photo changes on the part, and not far from it."""
    outline = box(-0.4, -0.4, 0.4, 0.4)
    photos = [
        np.asarray(draw_photo([solid("a", name, outline)], STRAIGHT, 64, generator(5)), dtype=float)
        for name in ("snow", "dark")
    ]
    changed = np.abs(photos[0] - photos[1]).mean(axis=2)
    labels = np.asarray(part_labels([solid("a", "snow", outline)], STRAIGHT, 64, ["a"])) > 0
    assert changed[labels].mean() > 100
    assert changed[:10].max() < 40  # the noise of the camera is the same, the background too


def test_backgrounds_tell_nothing_about_the_category():
    """They depend on the camera alone: the corners of a cup's photo are those of a fish's."""
    corners = [
        (rows, columns)
        for rows in (slice(8), slice(-8, None))
        for columns in (slice(8), slice(-8, None))
    ]
    small = Pose(np.eye(2) / 5, np.full(2, 0.5))

    def tints(category, seed):
        photo = np.asarray(draw_photo(instances(category, 1)[0], small, 64, generator(seed)))
        return np.array([photo[corner].reshape(-1, 3).mean(axis=0) for corner in corners])

    exposure = tints("cup", 8) / tints("fish", 8)  # differs, but not within a photo
    assert np.ptp(exposure, axis=0).max() < 0.05
    assert np.ptp(tints("cup", 8) / tints("fish", 9), axis=0).max() > 0.15
