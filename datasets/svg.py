"""SVG -> picture, drawn by cairosvg in a child process with limits.

A kilobyte of SVG may ask for a billion strokes, and cairosvg has no limit of its own. One child
draws all SVGs of a process, as cairosvg takes half a second to load; after its death, another.
This file imports no torch: the child runs it too.
"""

import faulthandler
import importlib
import os
import subprocess
import sys
import threading
import zlib
from contextlib import suppress
from io import BytesIO

from PIL import Image

from utils.errors import InputError

SIDE = 512  # px of the picture
SECONDS = 10  # for one drawing
SECONDS_TO_START = 60  # on a busy machine
MOST_MEMORY = 1 << 30  # bytes of the child, where the system can limit it
MOST_BYTES = 32 << 20  # of an SVG, unpacked
NUMBER = 8  # bytes of a length
READY = b"+"


def draw_svg(name: str, content: bytes) -> Image.Image:
    """An SVG, packed (.svgz) or not, as RGBA of SIDE x SIDE px. Nothing that it refers to is read.

    Raises InputError with the name where cairosvg is absent, and for what it cannot draw.
    """
    svg = _unpacked(name, content)
    with _lock:
        png = _child(name).draw(name, svg)
    return Image.open(BytesIO(png)).convert("RGBA")


def _unpacked(name: str, content: bytes) -> bytes:
    svg = content
    if content.startswith(b"\x1f\x8b"):
        try:
            svg = zlib.decompressobj(wbits=31).decompress(content, MOST_BYTES + 1)
        except zlib.error as error:
            raise InputError(f"{name}: unreadable (its packing is damaged).") from error
    if len(svg) > MOST_BYTES:
        raise InputError(
            f"{name}: unreadable (an SVG of more than {MOST_BYTES >> 20} MB; save it as PNG)."
        )
    return svg


class _Child:
    """The process that draws."""

    def __init__(self, name: str):
        start = f"import sys; sys.path[:] = {sys.path!r}; from datasets import svg; svg._serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.owner = os.getpid()
        if self.process.stdout.read(1) != READY:
            self.end()
            raise InputError(
                f"{name}: SVG needs cairosvg (pip install cairosvg, and the cairo library); or "
                "save it as PNG."
            )

    def draw(self, name: str, svg: bytes) -> bytes:
        """The SVG as PNG."""
        try:
            self.process.stdin.write(len(svg).to_bytes(NUMBER, "big") + svg)
            self.process.stdin.flush()
            length = self.process.stdout.read(NUMBER)
            png = self.process.stdout.read(int.from_bytes(length, "big"))
        except OSError:
            length = b""
        except BaseException:  # what it answers later must not pass for another answer
            self.end()
            raise
        if not length:
            self.end()
            raise InputError(
                f"{name}: cannot be drawn within {SECONDS} s and {MOST_MEMORY >> 30} GB of memory. "
                "Save it as PNG."
            )
        if not png:
            raise InputError(
                f"{name}: cannot be drawn (damaged, or it has no size). Save it as PNG."
            )
        return png

    def is_usable(self) -> bool:
        """Whether it is this process's own (not that of one it was forked from), and alive."""
        return self.owner == os.getpid() and self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


_lock = threading.Lock()
_children: list[_Child] = []  # the present one


def _child(name: str) -> _Child:
    if not (_children and _children[0].is_usable()):
        try:
            _children[:] = [_Child(name)]
        except OSError as error:
            raise InputError(
                f"{name}: no process can be started to draw it ({error.strerror}). Save it as PNG."
            ) from error
    return _children[0]


def _serve() -> None:
    """In the child: draw what comes, until the parent has gone."""
    faulthandler.dump_traceback_later(SECONDS_TO_START, exit=True)
    with suppress(ImportError):  # not on Windows
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    cairosvg = importlib.import_module("cairosvg")
    source, target = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    target.write(READY)
    while True:
        target.flush()
        faulthandler.cancel_dump_traceback_later()
        length = source.read(NUMBER)
        if not length:
            return
        svg = source.read(int.from_bytes(length, "big"))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            png = cairosvg.svg2png(bytestring=svg, output_width=SIDE, output_height=SIDE)
        except Exception:  # damage raises errors of many kinds
            png = b""
        target.write(len(png).to_bytes(NUMBER, "big") + png)
