"""Answer one's own sketches from a folder of photos: index it once, then search."""

import math
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from options import plain_options, retrieve_options
from utils.errors import InputError, run_script
from utils.logs import duration, environment, log, start_logging, write_json

RANKING, PAGE, STRIPS = "ranking.json", "index.html", "strips"
TOLD = 3  # photos of each sketch on the console
SHOWN, IN_PAGE = 50, 2000  # photos of a sketch, of all sketches, in pictures and page
THUMBNAIL, QUALITY = 192, 80  # px, of JPEG
IN_A_LINE = 10  # photos of a strip
LONGEST = 60  # letters of a sketch's name in that of its strip


def main(arguments: list[str] | None = None) -> int:
    """Index or search as the command line says; the exit status."""
    args = retrieve_options(arguments)
    start_logging()

    from utils.distributed import choose_device
    from utils.memory import keep_freed_memory

    device = choose_device(args.choose_cuda)
    if device.type == "cpu":
        keep_freed_memory()
    return {"index": index, "search": search}[args.task](args, device)


def index(args: Namespace, device) -> int:
    """Make a gallery, or bring it up to date."""
    from datasets.unlabelled import folder_images
    from retrieval.building import build_gallery

    folder = Path(args.out)
    photos = folder_images(Path(args.photos), "photo", leave_out=folder)
    keep = ("retrieval", "tokens") if args.tokens else ("retrieval",)
    encoder = _encoder(Path(args.load), args, device, keep)
    checkpoint = str(Path(args.load).resolve())
    built = build_gallery(folder, photos, encoder, checkpoint=checkpoint, kind=args.index)
    seconds = built.seconds
    print(
        f"{built.photos} photos in {folder}: {built.encoded} encoded in "
        f"{duration(seconds['encode'])}, {built.removed} gone, {len(built.broken)} broken and "
        f"skipped; {built.bytes / 1e6:,.1f} MB."
    )
    if built.recall is not None:
        print(
            f"index {built.index}: recall {built.recall:.4f} of the ten nearest photos against "
            f"exact search, asked with photos; {duration(seconds['index'])}."
        )
    print(f"search it: python retrieve.py search --gallery {folder} --sketch FILE --out DIR")
    return 0


def search(args: Namespace, device) -> int:
    """Find photos for sketches; write ranking.json, strips and the page."""
    from datasets.unlabelled import image_list, named_images
    from retrieval.gallery import Gallery
    from retrieval.rows import read_gallery

    started = time.perf_counter()
    files, out = named_images(args.sketch, [".svg"]), Path(args.out)
    folder = Path(args.gallery)
    checkpoint = Path(args.load or read_gallery(folder)["checkpoint"])
    try:
        (out / STRIPS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}).") from error
    gallery = Gallery(folder, _encoder(checkpoint, args, device, ("retrieval",)), image_list)
    args.k = min(args.k, len(gallery))
    loading = time.perf_counter() - started
    log.info("%d photos (%s), loaded in %s", len(gallery), gallery.kind, duration(loading))
    with tempfile.TemporaryDirectory() as place:
        sketches, skipped = _made_ready(files, Path(place), args.clean)
        ready = image_list(Path(), [str(path) for _, path, _ in sketches], "sketch")
        if sketches:
            answers, bad = gallery.search(
                ready, args.k, args.retrieval, args.shortlist, args.test_sk
            )
            skipped += bad
        for fault in skipped:
            log.warning("skipped: %s", fault)
        if not sketches or not answers:
            raise InputError("there is no readable sketch to ask with.")
        asked = [(*sketches[answer.sketch], answer) for answer in answers]
        _tell(asked, args)
        _write_ranking(out, gallery, checkpoint, asked, skipped, loading, args, device)
        _write_pictures(out, gallery, asked, args)
    print(f"ranking: {out / RANKING}, pictures: {out / STRIPS}")
    print(f"page: {out / PAGE}")
    return 0


def _encoder(checkpoint: Path, args: Namespace, device, keep: tuple[str, ...]):
    """What encodes with a checkpoint, as the command line says."""
    from datasets.images import Preprocessing
    from model import load_model
    from retrieval.features import Encoder
    from utils.precision import dtype_of

    method, _ = load_model(checkpoint)
    return Encoder(
        method.eval().to(device),
        Preprocessing(**method.inputs),
        device=device,
        workers=args.num_workers,
        skip_bad=True,
        keep=keep,
        dtype=dtype_of(args.amp, device),
    )


def _made_ready(files: list[Path], place: Path, clean: str) -> tuple[list, list[str]]:
    """Sketches as (file, file to read, what was done), and what was wrong with other ones."""
    from datasets.pencil import ready_sketch

    sketches, skipped = [], []
    for file in files:
        try:
            path, note = ready_sketch(file, place, clean)
        except InputError as error:
            skipped.append(str(error))
            continue
        sketches.append((file, path.resolve(), note))
    return sketches, skipped


# ---- results


def _tell(asked: list, args: Namespace) -> None:
    """The best photos of each sketch, a line each."""
    for file, _, note, answer in asked:
        best = zip(answer.photos[:TOLD], answer.scores, strict=False)
        found = ", ".join(f"{path} ({_score(score)})" for path, score in best)
        print(f"{file}: {found}" + (f" [{note}]" if note else ""))
    taken = _mean_milliseconds(asked)
    print(f"{len(asked)} sketches, -r {args.retrieval}: {taken:.1f} ms a sketch")


def _write_ranking(
    out: Path, gallery, checkpoint: Path, asked: list, skipped: list, loading: float, args, device
) -> None:
    """Everything a program may want to know."""
    from retrieval.index import faiss_version

    content = {
        "gallery": str(gallery.folder),
        "photos": str(gallery.root),
        "checkpoint": str(checkpoint),
        "fingerprint": gallery.content["weights"],
        "index": gallery.content["index"],
        "retrieval": args.retrieval,
        "counts": {"photos": len(gallery), "sketches": len(asked), "skipped": len(skipped)},
        "milliseconds": {"loading": round(1e3 * loading, 3)},
        "rankings": [
            {
                "sketch": str(file),
                "done": note,
                "milliseconds": answer.milliseconds,
                "paths": answer.photos,
                "scores": [None if math.isnan(score) else score for score in answer.scores],
            }
            for file, _, note, answer in asked
        ],
        "skipped": skipped,
        "options": plain_options(args),
        "environment": environment(str(device)) | {"faiss": faiss_version()},
    }
    try:
        write_json(out / RANKING, content)
    except OSError as error:
        raise InputError(f"{out / RANKING}: cannot be written ({error.strerror}).") from error


def _write_pictures(out: Path, gallery, asked: list, args: Namespace) -> None:
    """A strip a sketch, and the page."""
    from retrieval.page import write_page

    most = min(SHOWN, max(1, IN_PAGE // len(asked)))
    if most < len(asked[0][3].photos):
        log.info("pictures and page show the first %d photos of each sketch.", most)
    facts = {
        "gallery": f"{gallery.folder.name}, {len(gallery):,} photos",
        "compared by": f"{_mode(args)}; index: {gallery.kind}",
        "a sketch took": f"{_mean_milliseconds(asked):,.1f} ms",
        "fingerprint of the weights": gallery.content["weights"],
    }
    title = f"{len(asked)} sketches" if len(asked) > 1 else f"Sketch {asked[0][0].name}"
    sections = _drawn(out / STRIPS, gallery, asked, most)
    try:
        write_page(out / PAGE, f"{title}: photos found", facts, sections, len(asked))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from error


def _drawn(strips: Path, gallery, asked: list, most: int) -> Iterator:
    """Sections of the page, one at a time; each sketch's strip is written on the way."""
    from PIL import Image

    from datasets.images import on_white, open_image
    from retrieval.page import Photo, Section
    from retrieval.pictures import Ranking, draw_sheet, save_picture

    @lru_cache(maxsize=2 * IN_PAGE)
    def thumbnail(path: str) -> bytes | None:
        try:
            return _jpeg(on_white(open_image(gallery.root / path)))
        except InputError:  # it has gone since the gallery was built
            return None

    digits, see = len(str(len(asked))), gallery.encoder.preprocessing.levels
    for number, (file, ready, note, answer) in enumerate(asked, 1):
        best = list(zip(answer.photos[:most], answer.scores, strict=False))
        seen = Image.fromarray(see(ready, "sketch").permute(1, 2, 0).numpy())
        given = on_white(open_image(ready if file.suffix.lower() == ".svg" else file))
        jpegs = [thumbnail(path) for path, _ in best]
        there = [(Photo(p, _score(s), j), j) for (p, s), j in zip(best, jpegs, strict=True)]
        drawn = [(photo.path, jpeg) for photo, jpeg in there if jpeg][:IN_A_LINE]
        ranking = Ranking(
            query=seen,
            query_name=file.stem,
            photos=[Image.open(BytesIO(jpeg)) for _, jpeg in drawn],
            photo_names=[Path(path).name for path, _ in drawn],
        )
        strip = draw_sheet([ranking], f"{file.name}: the first {len(drawn)} of {len(gallery):,}")
        save_picture(strip, strips / f"{number:0{digits}}_{file.stem[:LONGEST]}.png")
        photos = [photo for photo, _ in there]
        yield Section(str(file), note, _jpeg(given), _jpeg(seen), photos)


def _mean_milliseconds(asked: list) -> float:
    """That a sketch took, to encode and to compare."""
    return sum(sum(answer.milliseconds.values()) for *_, answer in asked) / len(asked)


def _mode(args: Namespace) -> str:
    return {
        "sa": "retrieval tokens (-r sa)",
        "rn": "relation network, every pair (-r rn)",
        "rerank": f"relation network, the first {args.shortlist} of -r sa (-r rerank)",
    }[args.retrieval]


def _score(score: float) -> str:
    return "not scored" if math.isnan(score) else f"{score:.3f}"


def _jpeg(image) -> bytes:
    """A small JPEG of an RGB image."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    run_script(main)
