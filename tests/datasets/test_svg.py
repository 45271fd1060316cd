"""SVG in a child process: limits of time, memory and size; light strokes; packed files."""

import gzip
import os
import signal
import sys
import time

import numpy as np
import pytest

from datasets import svg
from datasets.pencil import ready_sketch
from utils.errors import InputError

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
CIRCLE = f'{HEAD} width="100" height="100"><circle cx="50" cy="50" r="30" fill="none" '
CIRCLE += 'stroke="black" stroke-width="4"/></svg>'
PLAYED = """
import io, os, time
from PIL import Image
def svg2png(bytestring, output_width, output_height):
    if bytestring == b"slow": time.sleep(60)
    if bytestring == b"large": bytearray(1 << 40)
    if bytestring == b"dead": os._exit(3)
    if bytestring == b"bad": raise RecursionError
    file = io.BytesIO()
    Image.new("RGBA", (output_width, output_height), (0, 0, 0, len(bytestring))).save(file, "PNG")
    print("noise")
    return file.getvalue()
"""


@pytest.fixture(autouse=True)
def own_child(monkeypatch):
    """A child for each test, with the modules that the test has put in its place."""
    monkeypatch.setattr(svg, "_children", [])
    yield
    for child in svg._children:
        child.end()


@pytest.fixture
def played(tmp_path, monkeypatch):
    """A cairosvg that draws as many levels of opacity as the SVG has bytes."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "cairosvg.py").write_text(PLAYED)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])


def opacity(content):
    return svg.draw_svg("x.svg", content).getpixel((0, 0))[3]


def refusal(file):
    with pytest.raises(InputError) as error:
        ready_sketch(file)
    return str(error.value)


# ---- the child


def test_one_child_draws_all(played):
    assert [opacity(b"x" * length) for length in (3, 200, 7)] == [3, 200, 7]
    (child,) = svg._children
    assert opacity(b"x") == 1 and svg._children == [child]


def test_what_cannot_be_drawn_is_a_sentence_and_the_child_goes_on(played):
    for content in (b"bad", b"large"):
        with pytest.raises(InputError, match=r"^x.svg: cannot be drawn \(damaged"):
            svg.draw_svg("x.svg", content)
    assert opacity(b"four") == 4


def test_a_drawing_without_end_ends_and_the_next_is_drawn(played, monkeypatch):
    start = svg.subprocess.Popen

    def hurried(command, **more):
        command[2] = command[2].replace("svg._serve()", "svg.SECONDS = 1; svg._serve()")
        return start(command, **more)

    monkeypatch.setattr(svg.subprocess, "Popen", hurried)
    began = time.monotonic()
    for content in (b"slow", b"dead"):
        with pytest.raises(InputError, match=r"^x.svg: cannot be drawn within 10 s and 1 GB"):
            svg.draw_svg("x.svg", content)
    assert opacity(b"four") == 4
    assert time.monotonic() - began < 30


def test_a_child_that_was_killed_is_replaced(played):
    assert opacity(b"four") == 4
    os.kill(svg._children[0].process.pid, signal.SIGTERM)
    svg._children[0].process.wait()
    assert opacity(b"fives") == 5


def test_an_answer_to_a_drawing_that_was_interrupted_is_not_taken_for_another(played, monkeypatch):
    assert opacity(b"four") == 4

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(svg._children[0].process.stdin, "flush", interrupted)
        with pytest.raises(KeyboardInterrupt):
            svg.draw_svg("x.svg", b"fives")
    assert opacity(b"sixsix") == 6


@pytest.mark.parametrize("content", ["raise ImportError", "raise OSError('no cairo library')"])
def test_svg_without_cairosvg_is_a_sentence(tmp_path, monkeypatch, content):
    (tmp_path / "cairosvg.py").write_text(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "x.svg").write_text(CIRCLE)
    assert f"{tmp_path / 'x.svg'}: SVG needs cairosvg (pip install" in refusal(tmp_path / "x.svg")


# ---- files


def test_a_drawn_svg_is_noted_whether_packed_or_not(tmp_path, played):
    for name, content in (("a.svg", b"x" * 255), ("b.SVGZ", gzip.compress(b"x" * 255))):
        (tmp_path / name).write_bytes(content)
        ready, note = ready_sketch(str(tmp_path / name))
        assert note.startswith("SVG, drawn at 512 px") and ready.size == (512, 512)


def test_what_is_too_large_damaged_or_no_file_is_named(tmp_path):
    file = tmp_path / "x.svgz"
    assert refusal(file) == f"{file}: no such file."
    file.write_bytes(gzip.compress(bytes(svg.MOST_BYTES + 1)))
    assert refusal(file) == f"{file}: unreadable (an SVG of more than 32 MB; save it as PNG)."
    file.write_bytes(b"\x1f\x8bdamaged")
    assert refusal(file) == f"{file}: unreadable (its packing is damaged)."
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "x.svg")
        assert "unreadable (a pipe" in refusal(tmp_path / "x.svg")


# ---- as cairosvg draws them


@pytest.fixture
def drawn(tmp_path):
    pytest.importorskip("cairosvg", exc_type=(ImportError, OSError))

    def draw(content):
        (tmp_path / "x.svg").write_text(content)
        ready, note = ready_sketch(tmp_path / "x.svg")
        return np.array(ready.convert("L")), note

    return draw


def test_black_strokes(drawn):
    pixels, note = drawn(CIRCLE)
    assert note == "SVG, drawn at 512 px"
    assert pixels.shape == (512, 512) and pixels[256, 256] == 255 and pixels[256, 102] == 0


@pytest.mark.parametrize("colour", ["#ffffff", "#fefefe", "yellow", "#dddddd"])
def test_light_strokes_on_nothing_are_found(drawn, colour):
    pixels, note = drawn(CIRCLE.replace("black", colour))
    assert note == "SVG, drawn at 512 px; light strokes made dark"
    assert pixels[256, 256] == 255 and pixels[256, 102] == 0


def test_light_strokes_on_a_dark_ground_are_inverted(drawn):
    ground = '<rect width="100" height="100" fill="#222"/><circle'
    pixels, note = drawn(CIRCLE.replace("<circle", ground).replace("black", "white"))
    assert note == "SVG, drawn at 512 px; light on dark: inverted"
    assert pixels[256, 102] == 255 and pixels[256, 256] < 40


@pytest.mark.parametrize("content", ["<svg", "", f"{HEAD}>" + "<g>" * 100_000])
def test_damaged_ones_are_a_sentence(tmp_path, drawn, content):
    with pytest.raises(InputError, match="cannot be drawn"):
        drawn(content)


@pytest.mark.slow
def test_a_billion_strokes_of_a_kilobyte_end(tmp_path, drawn):
    copies = "".join(
        f'<g id="g{n + 1}">' + f'<use xlink:href="#g{n}"/>' * 10 + "</g>" for n in range(9)
    )
    line = '<path id="g0" d="M0 0L9 9" stroke="black"/>'
    bomb = f'{HEAD} width="9" height="9"><defs>{line}{copies}</defs><use xlink:href="#g9"/></svg>'
    began = time.monotonic()
    with pytest.raises(InputError, match="cannot be drawn within 10 s"):
        drawn(bomb)
    assert time.monotonic() - began < 30
