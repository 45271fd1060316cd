"""Answer one's own sketches from a folder of photos: index it once, then search."""

if __name__ == "__main__":
    from utils.hold import hold_signals

    hold_signals()  # until run_script()

import shlex
import time
from argparse import Namespace
from os.path import isfile
from pathlib import Path

from options import plain_options, ranker_settings, retrieve_options
from utils.errors import InputError, run_script
from utils.logs import duration, environment, log, start_logging

SHOWN = 3  # photos of each sketch on the console
AT_A_TIME = 256  # sketches that are open


def main(arguments: list[str] | None = None) -> int:
    """Index or search as the command line says; the exit status."""
    args = retrieve_options(arguments)
    start_logging()
    log.info("loading PyTorch")
    from utils.distributed import running_on

    with running_on(args.choose_cuda) as device:
        return {"index": index, "search": search}[args.task](args, device)


def index(args: Namespace, device) -> int:
    """Make a gallery, or bring it up to date."""
    from datasets.unlabelled import folder_images
    from retrieval.building import build_gallery
    from retrieval.stored import features_of

    folder, checkpoint = Path(args.out), Path(args.load)
    built = build_gallery(
        folder,
        folder_images(args.photos, "photo", leave_out=folder),
        _encoder(checkpoint, args, device),
        checkpoint=str(checkpoint.resolve()),
        tokens=args.tokens,
        kind=args.index,
        features=features_of(checkpoint),
    )
    print(
        f"{built.photos} photos in {folder}: {built.encoded} encoded in "
        f"{duration(built.seconds['encode'])}, {built.copied} copied from evaluations, "
        f"{built.removed} gone, {len(built.broken)} broken and skipped; "
        f"{built.bytes / 1e6:,.1f} MB."
    )
    if built.recall is not None:
        print(
            f"index {built.index}: recall {built.recall:.4f} of the ten nearest photos against "
            f"exact search, with photos as queries; {duration(built.seconds['index'])}."
        )
    gallery = shlex.quote(str(folder))
    print(f"search it: python retrieve.py search --gallery {gallery} --sketch FILE --out DIR")
    return 0


def search(args: Namespace, device) -> int:
    """Find photos for sketches; write ranking.json, strips and the page."""
    from datasets.pencil import SVG_ENDINGS, ready_sketch
    from datasets.unlabelled import named_images
    from report.found import Found, prepare_folder, write_found
    from retrieval.gallery import UP_TO_DATE, Gallery, read_gallery
    from retrieval.neighbours import faiss_version
    from retrieval.scoring import RANKERS

    started = time.perf_counter()
    files, out, folder = named_images(args.sketch, SVG_ENDINGS), Path(args.out), Path(args.gallery)
    described = read_gallery(folder)
    checkpoint = Path(args.load or described["checkpoint"])
    if not (args.load or isfile(checkpoint)):
        raise InputError(
            f"{checkpoint}: the checkpoint of the gallery {folder} is no longer there. Say with -l "
            "where it lies now."
        )
    prepare_folder(out, Path(described["root"]))
    gallery = Gallery(folder, _encoder(checkpoint, args, device))
    args.k = min(args.k, len(gallery))
    loading = time.perf_counter() - started
    log.info("%d photos (%s), loaded in %s", len(gallery), gallery.kind, duration(loading))
    found, skipped = [], []
    for first in range(0, len(files), AT_A_TIME):
        ready = {}
        for file in files[first : first + AT_A_TIME]:
            try:
                ready[file] = ready_sketch(file, args.clean)
            except InputError as error:
                skipped.append(str(error))
        answers, faults = gallery.search(
            [image for image, _ in ready.values()],
            args.k,
            RANKERS[args.retrieval],
            ranker_settings(args),
            args.test_sk,
        )
        skipped += faults.values()
        names = list(ready)
        found += [Found.of(n, *ready[n], a, gallery) for a in answers for n in [names[a.sketch]]]
    for fault in skipped:
        log.warning("skipped: %s", fault)
    if not found:
        raise InputError("there is no readable sketch to search with.")
    changed = gallery.changed(dict.fromkeys(path for one in found for path in one.answer.photos))
    if changed:
        log.warning(
            "%d of the photos found, as %s, have changed or gone since they were indexed. %s",
            *(len(changed), changed[0], UP_TO_DATE),
        )
    content = {
        "checkpoint": str(checkpoint),
        "retrieval": args.retrieval,
        "skipped": skipped,
        "changed": changed,
        "milliseconds": {"loading": round(1e3 * loading, 3)},
        "options": plain_options(args),
        "environment": environment(str(device)) | {"faiss": faiss_version()},
    }
    try:
        written = write_found(out, gallery, found, content, _mode(args))
    finally:
        _print_best(found, args)
    for what, file in written.items():
        print(f"{what}: {file}")
    return 0


def _encoder(checkpoint: Path, args: Namespace, device):
    """The encoder of a checkpoint, as the command line says."""
    from model import load_model
    from retrieval.encoder import Encoder
    from utils.precision import dtype_of

    method, _ = load_model(checkpoint)
    dtype = dtype_of(args.amp, device)
    return Encoder(method.to(device), device, workers=args.num_workers, dtype=dtype)


def _print_best(found: list, args: Namespace) -> None:
    """The best photos of each sketch, a line each."""
    for one in found:
        best = ", ".join(f"{path} ({score})" for path, score in one.best(SHOWN))
        print(f"{one.file}: {best}" + (f" [{one.note}]" if one.note else ""))
    mean = sum(one.milliseconds for one in found) / len(found)
    print(f"{len(found)} sketches, -r {args.retrieval}: {mean:.1f} ms a sketch")


def _mode(args: Namespace) -> str:
    return {
        "sa": "retrieval tokens (-r sa)",
        "rn": "relation network, every pair (-r rn)",
        "rerank": f"relation network, the first {args.shortlist} of -r sa (-r rerank)",
    }[args.retrieval]


if __name__ == "__main__":
    run_script(main)
