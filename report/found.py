"""The results of a search: ranking.json, a strip for each sketch, and the page."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from datasets.images import on_white, open_image
from datasets.pencil import SVG_ENDINGS
from report.page import Photo, Section, write_page
from report.pictures import Strip, draw_sheet, save_picture
from retrieval.gallery import Answer, Gallery
from utils.errors import InputError
from utils.files import reason
from utils.logs import log, write_json

RANKING, PAGE, STRIPS = "ranking.json", "index.html", "strips"
SHOWN, IN_PAGE = 50, 2000  # photos in the page: of a sketch, of all sketches
THUMBNAIL, QUALITY = 192, 80  # px, of JPEG
IN_A_LINE = 10  # photos of a strip
LONGEST = 60  # letters of a sketch's name in that of its strip


@dataclass(frozen=True)
class Found:
    """The answer to a sketch.

    file: its name. note: a sentence about what was done to it, or "". given, seen: JPEGs of it, as
    its file is and as the network sees it.
    """

    file: Path
    note: str
    given: bytes
    seen: bytes
    answer: Answer

    @classmethod
    def of(cls, file: Path, image: Image.Image, note: str, answer: Answer, gallery: Gallery):
        """image: the sketch as it was encoded."""
        levels = gallery.encoder.preprocessing.levels(image, "sketch")  # (3, S, S)
        seen = Image.fromarray(levels.permute(1, 2, 0).numpy())
        given = image if file.suffix.lower() in SVG_ENDINGS else open_image(file)
        return cls(file, note, _jpeg(on_white(given)), _jpeg(seen), answer)

    @property
    def milliseconds(self) -> float:
        """Its share of the time to encode and to compare."""
        return sum(self.answer.milliseconds.values())

    def best(self, count: int) -> list[tuple[str, str]]:
        """Paths and scores, as text, of the closest photos."""
        pairs = zip(self.answer.photos[:count], self.answer.scores, strict=False)
        return [(path, _shown(score)) for path, score in pairs]


def prepare_folder(out: Path, photos: Path) -> None:
    """Make the folder of results; that of a former search will do.

    photos: the gallery's. Raises InputError where that cannot be, for a folder of other files, and
    for one among the photos: its pictures would be indexed.
    """
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(photos)):
        raise InputError(f"{out}: lies in the folder of photos. Choose an --out elsewhere.")
    try:
        if out.is_dir() and any(out.iterdir()) and not _holds_a_search(out):
            raise InputError(
                f"{out}: holds other files, and no search. Choose an empty folder, or a new one."
            )
        (out / STRIPS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({reason(error)}).") from error


def _holds_a_search(out: Path) -> bool:
    """Whether a search wrote this folder, or began to."""
    if {file.name for file in out.iterdir()} <= {STRIPS}:
        return not any((out / STRIPS).iterdir())
    try:
        return "rankings" in json.loads((out / RANKING).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_found(
    out: Path, gallery: Gallery, found: Sequence[Found], content: Mapping, compared_by: str
) -> dict[str, Path]:
    """Write all results of a search into a folder; the files by what they are.

    content: more of ranking.json. compared_by: how, in words. Raises InputError where the disk
    refuses.
    """
    try:
        write_json(out / RANKING, _ranking(gallery, found, content))
        for former in [out / PAGE, *(out / STRIPS).glob("*.png")]:
            former.unlink(missing_ok=True)
        most = min(SHOWN, max(1, IN_PAGE // len(found)))
        if most < len(found[0].answer.photos):
            log.info("the page shows the first %d photos of each sketch.", most)
        mean = sum(one.milliseconds for one in found) / len(found)
        facts = {
            "gallery": f"{gallery.folder.name}, {len(gallery):,} photos",
            "compared by": f"{compared_by}; index: {gallery.kind}",
            "time a sketch": f"{mean:,.1f} ms",
            "fingerprint of the weights": gallery.encoder.weights,
        }
        title = f"{len(found)} sketches" if len(found) > 1 else f"Sketch {found[0].file.name}"
        sections = _sections(out / STRIPS, gallery, found, most)
        write_page(out / PAGE, f"{title}: photos found", facts, sections, len(found))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)}).") from error
    return {"ranking": out / RANKING, "pictures": out / STRIPS, "page": out / PAGE}


def _ranking(gallery: Gallery, found: Sequence[Found], content: Mapping) -> dict:
    """What a program may want to know of a search."""
    counts = {"photos": len(gallery), "sketches": len(found), "skipped": len(content["skipped"])}
    return {
        "gallery": str(gallery.folder),
        "photos": str(gallery.root),
        "fingerprint": gallery.encoder.weights,
        "index": gallery.content["index"],
        "counts": counts,
        **content,
        "rankings": [
            {
                "sketch": str(one.file),
                "done": one.note,
                "milliseconds": one.answer.milliseconds,
                "paths": one.answer.photos,
                "scores": [None if math.isnan(score) else score for score in one.answer.scores],
            }
            for one in found
        ],
    }


def _sections(
    strips: Path, gallery: Gallery, found: Sequence[Found], most: int
) -> Iterator[Section]:
    """Sections of the page, one at a time; each sketch's strip is written on the way."""

    @lru_cache(maxsize=2 * IN_PAGE)
    def thumbnail(path: str) -> bytes | None:
        try:
            return _jpeg(on_white(open_image(gallery.root / path)))
        except InputError:  # it has gone since the gallery was built
            return None

    digits = len(str(len(found)))
    for number, one in enumerate(found, 1):
        photos = [Photo(path, score, thumbnail(path)) for path, score in one.best(most)]
        drawn = [photo for photo in photos if photo.jpeg][:IN_A_LINE]
        strip = Strip(
            query=Image.open(BytesIO(one.seen)),
            query_name=one.file.stem,
            photos=[Image.open(BytesIO(photo.jpeg)) for photo in drawn],
            photo_names=[Path(photo.path).name for photo in drawn],
        )
        title = f"{one.file.name}: the first {len(drawn)} of {len(gallery):,}"
        name = f"{number:0{digits}}_{one.file.stem[:LONGEST]}.png"
        save_picture(draw_sheet([strip], title), strips / name)
        yield Section(str(one.file), one.note, one.given, one.seen, photos)


def _shown(score: float) -> str:
    return "not scored" if math.isnan(score) else f"{score:.3f}"


def _jpeg(image: Image.Image) -> bytes:
    """A small JPEG of an RGB image."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
