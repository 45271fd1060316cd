"""Opening images: only regular files; any damage in any format is a sentence; large ones shrink."""

import errno
import functools
import os
import random
import socket
import struct
import sys
import warnings
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from datasets import opening
from datasets.images import Preprocessing
from datasets.opening import LARGEST, is_transparent, open_image
from utils.errors import InputError

READ = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop=True)
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F")
DAMAGES = 8  # of each file
Image.init()


@pytest.fixture(autouse=True)
def forget_heif():
    opening._reads_heif.cache_clear()
    yield
    opening._reads_heif.cache_clear()


def refusal(source, **settings):
    """The sentence with which a source is refused."""
    with pytest.raises(InputError) as error:
        open_image(source, **settings)
    return str(error.value)


# ---- what is no file


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.skipif(os.name != "posix", reason="kinds of files that POSIX has")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_pipe, "a pipe, socket or device, no file"),
        (make_socket, "a pipe, socket or device, no file"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe, socket or device, no file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["pipe", "socket", "device", "folder", "loop"],
)
def test_what_is_no_regular_file_is_named_at_once(tmp_path, monkeypatch, make, reason):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(tmp_path / "x.png" if make is not make_socket else "x.png")
    assert refusal(tmp_path / "x.png") == f"{tmp_path / 'x.png'}: unreadable ({reason})."


def test_absent_files_and_impossible_names_are_named(tmp_path):
    assert refusal(tmp_path / "absent.png") == f"{tmp_path / 'absent.png'}: no such file."
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert refusal(tmp_path / "link.png").endswith("link.png: no such file.")
    for letters in (300, 5000):
        assert "unreadable (File name too long)" in refusal(tmp_path / ("x" * letters))
    assert r"a\x00b.png: unreadable (" in refusal("a\0b.png")


def test_codes_of_terminals_and_line_breaks_in_names_are_shown(tmp_path):
    file = tmp_path / "a\x1b[31m\nb\udce9\u202e é.png"
    file.write_bytes(b"no image")
    assert r"a\x1b[31m\nb\udce9\u202e é.png: unreadable (no image" in refusal(file)
    empty = tmp_path / "white\n.png"
    Image.new("L", (9, 9), 255).save(empty)
    with pytest.warns(UserWarning, match=r"white\\n\.png: no stroke found"):
        READ.levels(empty, "sketch")


# ---- every format, whole and damaged


@functools.cache
def written(kind):
    """Files of a format, as Pillow writes them: one for each mode that it takes."""
    plain = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(plain).line([(5, 5), (30, 20)], fill="black", width=2)
    files = []
    for mode in MODES:
        file = BytesIO()
        try:
            grey = plain.convert("L")
            image = Image.new(mode, (40, 30)) if mode == "LAB" else None
            image = image or (grey if mode in ("I;16", "I", "F") else plain).convert(mode)
            image.save(file, format=kind)
        except (OSError, ValueError, KeyError):  # the format has no such mode
            continue
        files.append(file.getvalue())
    return files


def damaged(content, chances):
    """The same with some bytes changed, mostly in the header, cut, or overwritten from a place."""
    content = bytearray(content)
    for _ in range(chances.choice((1, 2, 4, 8))):
        place = chances.randrange(min(len(content), chances.choice((16, 64, 256, 1 << 20))))
        content[place] = chances.choice((0, 127, 128, 255, chances.randrange(256)))
    end = chances.randrange(len(content))
    return bytes(chances.choice((content, content[:end], content[:end] + bytes(64))))


@pytest.mark.parametrize("kind", sorted(set(Image.SAVE) | set(Image.OPEN)))
def test_of_each_format_a_damaged_file_is_a_picture_or_a_sentence(tmp_path, capfd, kind):
    chances, file = random.Random(kind), tmp_path / "x.img"
    whole = written(kind) if kind in Image.SAVE else []
    noise = [chances.randbytes(200), b""]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for content in [*noise, *(damaged(one, chances) for one in whole for _ in range(DAMAGES))]:
            file.write_bytes(content)
            for modality in ("sketch", "photo"):
                try:
                    assert READ.levels(file, modality).shape == (3, 32, 32)
                except InputError as error:
                    sentence = str(error)
                    assert sentence.startswith(f"{file}: unreadable (") and len(sentence) < 200
    assert all(str(file) in str(warning.message) for warning in caught)  # empty sketches alone
    assert capfd.readouterr() == ("", "")


READS_ALL = {"AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG"}
READS_ALL |= {"PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"}


@pytest.mark.parametrize("kind", sorted(READS_ALL & set(Image.SAVE)))
def test_of_the_common_formats_every_mode_that_is_written_is_read(tmp_path, kind):
    for content in written(kind):
        (tmp_path / "x.img").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                READ.levels(tmp_path / "x.img", "photo")
            except InputError:
                with Image.open(tmp_path / "x.img") as image:
                    assert image.mode == "LAB"  # which Pillow does not convert


@pytest.mark.parametrize(
    "error", [RuntimeError("a"), NotImplementedError(), struct.error(), TypeError(), KeyError(3)]
)
def test_whatever_a_decoder_raises_is_a_sentence_without_its_words(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    assert refusal(tmp_path / "x.png") == (
        f"{tmp_path / 'x.png'}: unreadable (damaged, cut short, or of a kind that is not known "
        "here; save it as PNG or JPEG)."
    )


def test_missing_memory_is_not_the_fault_of_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(MemoryError):
        open_image(tmp_path / "x.png")


def test_too_many_open_files_are_not_the_fault_of_one(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), file)

    monkeypatch.setattr(opening, "open_regular", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        opening.open_image(tmp_path / "photo.jpg")


def test_a_header_that_asks_for_more_than_the_file_has_takes_no_memory(tmp_path):
    head = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4sQ", 1, b"jp2h", 1 << 62)
    (tmp_path / "x.jp2").write_bytes(head + bytes(100))
    assert "unreadable" in refusal(tmp_path / "x.jp2")


def test_programs_and_measurements_are_no_pictures(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "x.eps")
    assert "PostScript is a program, no picture; save it as PNG" in refusal(tmp_path / "x.eps")


# ---- EXIF


def jpeg(*entries):
    """A JPEG whose EXIF turns it, and holds the entries (tag, kind, count, bytes)."""
    entries = [(0x112, 3, 1, struct.pack("<HH", 6, 0)), *entries]
    head, data = struct.pack("<4sIH", b"II*\0", 8, len(entries)), b""
    start = len(head) + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        head += struct.pack("<HHI", tag, kind, count)
        head += value.ljust(4, b"\0") if len(value) < 5 else struct.pack("<I", start + len(data))
        data += value if len(value) > 4 else b""
    exif = b"Exif\0\0" + head + bytes(4) + data
    file = BytesIO()
    Image.new("RGB", (40, 30), (90, 20, 200)).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    "entry",
    [
        (0x11A, 10, 1, struct.pack("<ii", -1, 0)),
        (0x11A, 5, 1, struct.pack("<II", 1, 0)),
        (0x11B, 1, 2, b"HH"),
        (0x11A, 2, 9, b"seventy\0\0"),
        (0x8769, 4, 1, struct.pack("<I", 1 << 31)),
    ],
)
def test_a_turned_photo_with_other_damage_in_its_exif_is_put_upright_once(tmp_path, entry):
    (tmp_path / "x.jpg").write_bytes(jpeg(entry))
    upright = open_image(tmp_path / "x.jpg")
    assert upright.size == (30, 40)
    assert open_image(upright).size == (30, 40)


# ---- large pictures


def test_what_no_memory_should_hold_is_refused_by_its_header(tmp_path):
    Image.new("1", (8, 8)).save(tmp_path / "x.png")
    content = bytearray((tmp_path / "x.png").read_bytes())
    for sides in ((14_000, 13_000), (60_000, 60_000), (2**31 - 1, 1), (1, 2_000_000)):
        content[16:24] = struct.pack(">II", *sides)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / "x.png").write_bytes(content)
        sentence = refusal(tmp_path / "x.png")
        assert "unreadable (more than 178 million pixels, or 1 million on a side; make" in sentence


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_large_picture_is_made_smaller_whatever_its_mode(tmp_path, monkeypatch, mode):
    small = Image.new("L", (60, 40), 255)
    ImageDraw.Draw(small).rectangle((6, 4, 20, 30), fill=0)
    large = small.resize((600, 400), Image.Resampling.NEAREST).convert(mode)
    large.save(tmp_path / "large.png")
    whole = open_image(tmp_path / "large.png")
    assert whole.size == (600, 400)
    monkeypatch.setattr(opening, "LARGEST", 10_000)
    shrunk = open_image(tmp_path / "large.png")
    assert shrunk.size == (120, 80)
    np.testing.assert_array_equal(shrunk.convert("L"), small.resize((120, 80), 0))
    assert open_image(whole).size == (120, 80) and whole.size == (600, 400)


def test_a_large_jpeg_is_decoded_smaller_and_stands_upright(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (640, 480), "red").save(tmp_path / "x.jpg", exif=exif)
    monkeypatch.setattr(opening, "LARGEST", 640 * 480 // 4)
    assert open_image(tmp_path / "x.jpg").size == (240, 320)
    assert open_image(tmp_path / "x.jpg", 100).size == (120, 160)


def test_ordinary_pictures_are_not_made_smaller():
    assert LARGEST == 36_000_000
    assert open_image(Image.new("1", (6000, 6000))).size == (6000, 6000)


# ---- HEIC, and transparency


def test_heic_by_ending_or_content_tells_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.HEIC").write_bytes(b"x")
    (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    for name in ("x.HEIC", "x.jpg"):
        assert refusal(tmp_path / name) == (
            f"{tmp_path / name}: unreadable (HEIC needs pillow-heif: pip install -r "
            "requirements-heic.txt; or save it as JPEG)."
        )


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    registered = []
    played = SimpleNamespace(register_heif_opener=lambda: registered.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", played)
    for name in ("x.HEIC", "y.heif"):
        Image.new("RGB", (4, 3)).save(tmp_path / name, format="PNG")
        assert open_image(tmp_path / name).size == (4, 3)
    assert registered == [1]
    (tmp_path / "x.HEIC").write_bytes(b"x")
    assert "unreadable (no image" in refusal(tmp_path / "x.HEIC")


def test_heic_as_pillow_heif_writes_it(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(tmp_path / "x.heic")
    assert open_image(tmp_path / "x.heic").size == (64, 48)


def test_alpha_that_is_opaque_all_over_is_not_transparent(tmp_path):
    Image.new("RGBA", (20, 20), "white").save(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png").has_transparency_data
    assert not is_transparent(open_image(tmp_path / "x.png"))
    assert is_transparent(Image.new("RGBA", (9, 9), (0, 0, 0, 254)))
    assert not is_transparent(Image.new("RGB", (9, 9)))
