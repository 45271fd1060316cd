"""Pictures of rankings: what stands where, in which frame, undistorted, whatever comes in."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from PIL._util import DeferredError

from report import pictures
from report.pictures import (
    NEUTRAL,
    RIGHT,
    WRONG,
    Strip,
    draw_grid,
    draw_sheet,
    draw_strip,
    save_picture,
)

TILE = 96  # hence: gap 6, gap behind the first tile 18, frame 4, text 10 and its band 20
FIRST, STEP = 96 + 18, 96 + 6
EDGE, MIDDLE = 2, 48  # in a tile: a pixel of its frame, its centre
COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]


def plain(colour=(10, 60, 110), size=(20, 20), mode="RGB"):
    return Image.new(mode, size, colour)


def strip_of(count=2, relevant=None, name="name", query=None):
    photos = [plain(COLOURS[i % 4]) for i in range(count)]
    return Strip(query or plain(), name, photos, [name] * count, relevant)


def tile_of(image):
    """The image as it comes back in the tile of a query, as an array (tile, tile, 3)."""
    return np.array(draw_strip(strip_of(0, query=image), TILE))[:TILE]


def ink(picture):
    """Mask (h, w) of what is not white."""
    return (np.array(picture) < 200).all(axis=2)


def caption(name, tile=TILE):
    return ink(draw_strip(strip_of(0, name=name), tile))[tile:]


@pytest.fixture(params=["freetype", "bitmap"])
def font(request, monkeypatch):
    """Pillow with FreeType, and without."""
    if request.param == "bitmap":
        missing = DeferredError(ImportError("no FreeType"))
        monkeypatch.setattr(ImageFont, "core", missing)
        assert type(ImageFont.load_default()) is ImageFont.ImageFont
    return request.param


# ---- frames


def test_frames_tell_right_from_wrong():
    strip = draw_strip(strip_of(3, [True, False, True]), TILE)
    frames = [strip.getpixel((FIRST + i * STEP + EDGE, MIDDLE)) for i in range(3)]
    assert frames == [RIGHT, WRONG, RIGHT]
    for x, y in ((0, 0), (TILE - 1, 0), (0, TILE - 1), (TILE - 1, TILE - 1), (MIDDLE, 3)):
        assert strip.getpixel((FIRST + x, y)) == RIGHT  # all around
    assert strip.getpixel((FIRST + 4, MIDDLE)) == COLOURS[0]  # and no further


def test_unknown_relevance_and_the_query_have_a_thin_neutral_frame():
    strip = draw_strip(strip_of(2), TILE)
    for start in (0, FIRST, FIRST + STEP):
        assert strip.getpixel((start, MIDDLE)) == NEUTRAL
        assert strip.getpixel((start + 1, MIDDLE)) not in (NEUTRAL, RIGHT, WRONG, (255, 255, 255))
    assert draw_strip(strip_of(1, [True]), TILE).getpixel((0, MIDDLE)) == NEUTRAL


def test_frames_differ_in_lightness_as_well():
    def luminance(colour):
        levels = [(level / 255) ** 2.2 for level in colour]
        return 0.2126 * levels[0] + 0.7152 * levels[1] + 0.0722 * levels[2]

    right, wrong = luminance(RIGHT), luminance(WRONG)
    assert (max(right, wrong) + 0.05) / (min(right, wrong) + 0.05) > 2
    assert RIGHT[1] == max(RIGHT) and WRONG[0] == max(WRONG)  # still a green and a red


# ---- places and sizes


@pytest.mark.parametrize("count", [0, 1, 4, 10, 12])
def test_a_strip_is_as_long_as_its_ranking(count):
    width = TILE if count == 0 else FIRST + count * STEP - 6
    assert draw_strip(strip_of(count), TILE).size == (width, TILE + 20)


def test_photos_stand_in_their_order_behind_the_query():
    strip = draw_strip(strip_of(4), TILE)
    assert strip.getpixel((MIDDLE, MIDDLE)) == (10, 60, 110)
    assert [strip.getpixel((FIRST + i * STEP + MIDDLE, MIDDLE)) for i in range(4)] == COLOURS


def test_gaps_are_white():
    strip = np.array(draw_strip(strip_of(2, [True, False]), TILE))
    assert (strip[:, TILE:FIRST] == 255).all()
    assert (strip[:, FIRST + TILE : FIRST + STEP] == 255).all()


def test_strips_of_different_lengths_stack_unchanged():
    given = [strip_of(2, [True, False]), strip_of(4), strip_of(0)]
    sheet = draw_sheet(iter(given), "", TILE)
    strips = [draw_strip(each, TILE) for each in given]
    assert sheet.size == (12 + strips[1].width + 12, 12 + 3 * 116 + 2 * 6 + 12)
    for i, strip in enumerate(strips):
        top = 12 + i * (116 + 6)
        there = sheet.crop((12, top, 12 + strip.width, top + 116))
        assert there.tobytes() == strip.tobytes()
        assert not ink(sheet)[top : top + 116, 12 + strip.width :].any()


def test_a_sheet_draws_each_strip_before_it_gets_the_next(monkeypatch):
    order = []

    def strip(*arguments):
        order.append("drawn")
        return draw_strip(*arguments)

    def strips():
        for _ in range(2):
            order.append("given")
            yield strip_of()

    monkeypatch.setattr(pictures, "draw_strip", strip)
    draw_sheet(strips(), "", TILE)
    assert order == ["given", "drawn"] * 2


def test_the_title_stands_above_the_strips():
    bare, titled = (draw_sheet([strip_of()], title, TILE) for title in ("", "What is seen?!_"))
    band = titled.height - bare.height
    assert band > 0 and titled.width == bare.width
    assert ink(titled)[:band].any()
    below = titled.crop((0, band + 12, *titled.size))  # from the strip on
    assert below.tobytes() == bare.crop((0, 12, *bare.size)).tobytes()


def test_a_long_title_widens_the_sheet_and_is_not_cut():
    sheet = draw_sheet([strip_of(0)], "word " * 40 + "end", TILE)
    columns = np.flatnonzero(ink(sheet)[:20].any(axis=0))
    assert columns[0] >= 12 and sheet.width - 24 <= columns[-1] < sheet.width - 12


def test_nothing_to_draw_is_a_title_alone():
    assert draw_sheet([], "nothing found", TILE).height < 60


def test_a_strip_with_columns_of_different_length_is_refused():
    for wrong in (
        Strip(plain(), "", [plain()], []),
        Strip(plain(), "", [plain()], ["a"], [True, False]),
    ):
        with pytest.raises(ValueError, match="zip"):
            draw_strip(wrong)


# ---- images


@pytest.mark.parametrize("size", [(80, 20), (20, 80), (400, 100), (30, 30), (17, 50), (900, 1)])
def test_images_are_scaled_to_the_tile_and_not_stretched(size):
    inside = ink(tile_of(plain("black", size)))[1:-1, 1:-1]
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    found = len(columns), len(rows)
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert max(found) == TILE - 2
    assert found == tuple(max(1, round(side * (TILE - 2) / max(size))) for side in size)
    for first, last in ((rows[0], rows[-1]), (columns[0], columns[-1])):
        assert abs(first - (TILE - 3 - last)) <= 1  # in the middle


def palette(transparent=False):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([255, 255, 255, 10, 60, 110])
    if transparent:
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        (plain(100, mode="L"), (100, 100, 100)),
        (plain(0, mode="1"), (0, 0, 0)),
        (palette(), (10, 60, 110)),
        (palette(transparent=True), (255, 255, 255)),
        (plain((10, 60, 110, 255), mode="RGBA"), (10, 60, 110)),
        (plain((10, 60, 110, 0), mode="RGBA"), (255, 255, 255)),
        (plain((0, 0, 0, 51), mode="RGBA"), (204, 204, 204)),
        (plain((0, 0), mode="LA"), (255, 255, 255)),
        (plain((0, 255, 255, 0), mode="CMYK"), (255, 0, 0)),
        (plain((255, 128, 128), mode="YCbCr"), (255, 255, 255)),
        (plain(40000, mode="I;16"), (156, 156, 156)),
        (plain(0, mode="I"), (0, 0, 0)),
        (plain(0.5, mode="F"), (128, 128, 128)),
    ],
)
def test_images_of_any_mode_are_drawn_on_white(image, seen):
    assert tuple(tile_of(image)[MIDDLE, MIDDLE].tolist()) == pytest.approx(seen, abs=1)


def test_deep_grey_is_drawn_as_the_network_sees_it():
    levels = np.repeat(np.array([[0, 20000, 40000]], dtype=np.uint16), 3, axis=0)
    tile = tile_of(Image.fromarray(levels))
    assert tile[MIDDLE, [10, MIDDLE, 86], 0].tolist() == pytest.approx([0, 78, 156], abs=12)


def test_images_given_are_left_as_they_are():
    image = plain((10, 60, 110, 77), (5, 9), "RGBA")
    before = image.tobytes()
    draw_strip(Strip(image, "", [image], [""], [True]))
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (5, 9), before)


# ---- names


def test_names_stand_centred_below_their_tiles(font):
    named = ink(draw_strip(Strip(plain(), "ab", [plain()] * 2, ["ab", ""]), TILE))[TILE:]
    columns = np.flatnonzero(named[:, :TILE].any(axis=0))
    assert abs(columns[0] + columns[-1] - (TILE - 1)) <= 4
    np.testing.assert_array_equal(named[:, :TILE], named[:, FIRST : FIRST + TILE])
    assert not named[:, FIRST + STEP :].any()


def test_different_names_look_different(font):
    assert (caption("swan") != caption("bear")).any()


def test_names_too_long_are_cut_with_an_ellipsis_to_their_tile(font):
    long = caption("m" * 20)
    np.testing.assert_array_equal(long, caption("m" * 300))
    kept = [n for n in range(20) if (long == caption("m" * n + "...")).all()]
    assert kept[0] == {"freetype": (TILE - 6) // 9, "bitmap": (TILE - 18) // 6}[font]
    spread = ink(draw_strip(strip_of(2, name="m" * 300), TILE))[TILE:]
    assert not spread[:, TILE:FIRST].any() and not spread[:, FIRST + TILE : FIRST + STEP].any()


def test_a_name_that_fits_is_not_cut(font):
    most = TILE // {"freetype": 9, "bitmap": 6}[font]  # px of an m
    fits = [caption("m" * (most - 1) + last) for last in "nu"]
    too_long = [caption("m" * (most + 1) + last) for last in "nu"]
    assert (fits[0] != fits[1]).any() and (too_long[0] == too_long[1]).all()


def test_names_beyond_ascii_are_drawn_as_far_as_the_fonts_go(font):
    np.testing.assert_array_equal(caption("café"), caption("cafe"))
    np.testing.assert_array_equal(caption("風車"), caption("??"))
    np.testing.assert_array_equal(caption("two\nlines\t "), caption("two lines"))


@settings(deadline=None, max_examples=60)
@given(name=st.text(max_size=20))
@example(name="\udcff undecodable")
@example(name="a\x00b\x7f")
def test_no_name_and_no_title_is_too_strange(name):
    sheet = draw_sheet([strip_of(1, [True], name)], name, TILE)
    assert sheet.mode == "RGB"
    assert draw_grid([[plain()]], [name], name, TILE).mode == "RGB"


def test_no_name_is_too_strange_for_the_bitmap_font(monkeypatch):
    monkeypatch.setattr(ImageFont, "core", DeferredError(ImportError("no FreeType")))
    for name in ("", "ß …", "\udcff", "a\x00\x7f\nb", "風車", "x" * 500):
        assert draw_sheet([strip_of(1, [True], name)], name, TILE).mode == "RGB"


# ---- grids


def test_a_grid_has_its_rows_behind_their_names(font):
    rows = [[plain(COLOURS[0]), plain(COLOURS[1])], [plain(COLOURS[2])], []]
    grid = draw_grid(rows, ["one", "two", "none"], tile=TILE)
    left = grid.width - 12 - (2 * STEP - 6)  # of the tiles
    for row, column in ((0, 0), (0, 1), (1, 0)):
        place = left + column * STEP, 12 + row * STEP
        assert grid.getpixel(place) == NEUTRAL
        assert grid.getpixel((place[0] + MIDDLE, place[1] + MIDDLE)) == COLOURS[2 * row + column]
    assert grid.height == 12 + 3 * STEP - 6 + 12
    names = [ink(grid)[12 + i * STEP :, : left - 18][:TILE] for i in range(3)]
    assert all(name.any() for name in names)
    for name in names:
        rows_of_ink, columns = (np.flatnonzero(name.any(axis=axis)) for axis in (1, 0))
        assert abs(rows_of_ink.mean() - MIDDLE) < 8
        assert columns[-1] >= left - 18 - 4  # they end where the tiles begin
    assert not ink(grid)[12 + STEP : 12 + STEP + TILE, left + STEP :].any()


def test_long_names_of_rows_are_cut_at_two_tiles():
    grid = draw_grid([[plain()]], ["m" * 300], tile=TILE)
    assert grid.width == 12 + 2 * TILE + 18 + TILE + 12
    short = draw_grid([[plain()]], ["m"], tile=TILE)
    assert short.width < 12 + TILE + 18 + TILE + 12


def test_a_grid_has_a_title_where_one_is_given():
    bare, titled = (draw_grid([[plain()] * 3], ["a"], title, TILE) for title in ("", "All"))
    assert titled.height > bare.height and ink(titled)[12:24].any()


def test_rows_without_a_name_each_are_refused():
    with pytest.raises(ValueError, match="zip"):
        draw_grid([[plain()]], ["a", "b"])


# ---- files


def test_a_saved_picture_is_a_png_whatever_its_name(tmp_path):
    picture = draw_strip(strip_of(2, [True, False]), TILE)
    save_picture(picture, tmp_path / "a.b.rankings")
    with Image.open(tmp_path / "a.b.rankings") as saved:
        assert saved.format == "PNG" and saved.tobytes() == picture.tobytes()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_picture_that_cannot_be_saved_leaves_nothing_behind(tmp_path):
    place = tmp_path / "folder.png"
    place.mkdir()
    with pytest.raises(OSError):
        save_picture(plain(), place)
    assert list(tmp_path.iterdir()) == [place]
