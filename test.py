"""Score a checkpoint on a benchmark's unseen classes."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import load_benchmark
from model import load_model
from options import (
    evaluation_settings,
    named_settings,
    plain_options,
    resolved,
    result_name,
    scored_part,
    test_options,
)
from utils.errors import InputError, run_script
from utils.logs import environment, log, start_logging, write_json
from utils.run_folder import BEST

PUBLISHED = ("map_all", "map_200", "precision_100", "precision_200")
DRAWN = 10  # photos of each sketch in the picture


def main(arguments: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    args = test_options(arguments)
    rankings = Path(args.save_rankings) if args.save_rankings else None
    if rankings and not rankings.parent.is_dir():
        raise InputError(f"--save_rankings {rankings}: there is no folder {rankings.parent}.")

    from utils.distributed import choose_device, init_processes, is_main, leave_processes
    from utils.memory import keep_freed_memory

    start_logging(quiet=not is_main())
    device = choose_device(args.choose_cuda)
    if device.type == "cpu":
        keep_freed_memory()
    init_processes(device)
    try:
        return _score(args, device, rankings)
    finally:
        leave_processes()


def _score(args: Namespace, device, rankings: Path | None) -> int:
    """Load, evaluate, and (the first process) print and write."""
    from utils.distributed import is_main

    path = _checkpoint_path(args)
    method, checkpoint = _load(path, args)
    method.to(device)
    benchmark, queries, gallery = _load_data(args)
    _check_unseen(path, checkpoint, queries, args.allow_seen)
    log.info("%d sketches against %d photos, -r %s", len(queries), len(gallery), args.retrieval)
    evaluation = _evaluate(path, method, queries, gallery, args, device)
    if not is_main():
        return 0
    if rankings:
        _write_rankings(rankings, evaluation)
    print(_table(evaluation))
    if evaluation.shortlist:
        print(_shortlist_line(evaluation.shortlist, args.shortlist))
    print(" ".join(f"{name}:{evaluation.metrics[name]:.4f}" for name in PUBLISHED))
    result = _write_result(path, method, checkpoint, benchmark, evaluation, args, device)
    pictures = _write_pictures(path, evaluation, args) if args.save_pictures else None
    written = {"results": result, "pictures": pictures, "rankings": rankings}
    print(", ".join(f"{what}: {file}" for what, file in written.items() if file))
    return 0


def _checkpoint_path(args: Namespace) -> Path:
    if args.load:
        return Path(args.load)
    path = Path(args.save) / BEST
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint. Name one with -l FILE, or a run's folder with --save."
        )
    log.info("no -l given: scoring %s", path)
    return path


def _load(path: Path, args: Namespace):
    """The method and its checkpoint; says what was loaded."""
    method, checkpoint = load_model(path, named_settings(args))
    settings = " ".join(f"{name}={value}" for name, value in method.settings.items())
    log.info("%s: %s %s", path, method.name, settings)
    log.info("resolved: %s", resolved(args, method.settings))
    return method, checkpoint


def _load_data(args: Namespace):
    """The benchmark, and what of its unseen classes is scored."""
    benchmark = load_benchmark(
        args.dataset,
        args.test_class,
        Path(args.data_path),
        seen=False,
        skip_bad=args.skip_bad,
    )
    for note in benchmark.notes:
        log.warning("%s", note)
    every = scored_part(args, benchmark.every)
    if max(every.values()) > 1:
        shown = [f"one {name} in {n}" if n > 1 else f"each {name}" for name, n in every.items()]
        log.info("scoring %s; all with --testall", " and ".join(shown))
    queries, gallery = benchmark.queries, benchmark.gallery
    return benchmark, queries.every(every["sketch"]), gallery.every(every["photo"])


def _check_unseen(path: Path, checkpoint: dict, queries, allow_seen: bool) -> None:
    """Refuse to call a result zero-shot whose classes the checkpoint has seen."""
    from datasets.benchmark import plain_name

    if checkpoint["classes"] is None:
        log.warning(
            "%s is a published checkpoint and does not say which classes it was trained on (the "
            "public one: Sketchy, 25 unseen). On another split the result is not zero-shot.",
            path,
        )
        return
    seen = {plain_name(name) for name in checkpoint["classes"]}
    tested = [name for name in queries.classes() if plain_name(name) in seen]
    if not tested:
        return
    if not allow_seen:
        raise InputError(
            f"{path}: was trained on {len(tested)} of the tested classes ({', '.join(tested)}), so "
            "the result would not be zero-shot. Choose the split it was trained for with "
            "--test_class, or score all the same with --allow_seen."
        )
    log.warning("not zero-shot: the checkpoint was trained on %s.", ", ".join(tested))


def _evaluate(path: Path, method, queries, gallery, args, device):
    """Score; InputError where the GPU's memory does not suffice."""
    import torch

    from datasets.images import Preprocessing
    from retrieval.evaluate import evaluate

    try:
        return evaluate(
            method,
            queries,
            gallery,
            Preprocessing(**method.inputs),
            amp=args.amp,
            compiled=args.compile,
            device=device,
            shared=True,
            cache=None if args.no_cache else path.parent / "features" / path.stem,
            precision=args.cache_precision,
            **evaluation_settings(args),
        )
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{device}: its memory does not suffice ({str(error).splitlines()[0]}). Take fewer "
            "images at a time (--test_sk 16 --test_im 16), or --amp auto."
        ) from error


def _table(evaluation) -> str:
    """Metrics for people: all classes, what chance would give, then each class."""
    columns = ("map_all", "average_precision", "precision_100", "accuracy@1")
    sketches = len(evaluation.queries)
    rows = [("all classes", sketches, evaluation.metrics)]
    rows += [("random ranking", sketches, evaluation.chance)]
    rows += [(name, values["queries"], values) for name, values in evaluation.by_class.items()]
    wide = max(len(name) for name, _, _ in rows)
    head = f"{'':{wide}}  sketches  " + "  ".join(f"{name:>17}" for name in columns)
    lines = [
        f"{name:{wide}}  {count:8}  "
        + "  ".join(f"{values[c]:17.4f}" if c in values else f"{'-':>17}" for c in columns)
        for name, count, values in rows
    ]
    return "\n".join([head, *lines])


def _shortlist_line(shortlist: dict, count: int) -> str:
    """What is lost where only a shortlist is re-ranked, in a sentence."""
    measures = ("average_precision", "precision_100", "accuracy@1")
    found = ", ".join(
        f"{name} {shortlist['reranked'][name]:.4f} (all pairs {shortlist['all_pairs'][name]:.4f})"
        for name in measures
    )
    return f"shortlist of {count}, on {shortlist['queries']} sketches: {found}"


def _write_rankings(path: Path, evaluation) -> None:
    """The best photos of every sketch as plain numpy arrays."""
    import numpy as np

    np.savez_compressed(
        path,
        queries=evaluation.queries.path.astype(str),
        gallery=evaluation.gallery.path.astype(str),
        ranking=evaluation.rankings,
        similarity=evaluation.similarities,
    )


def _write_result(path, method, checkpoint, benchmark, evaluation, args, device) -> Path:
    """Everything a program may want to know, as JSON beside the checkpoint."""
    from retrieval.features import fingerprint

    skipped = [*benchmark.skipped, *evaluation.skipped]
    content = {
        "checkpoint": str(path),
        "checkpoint_epoch": checkpoint["epoch"],
        "dataset": args.dataset,
        "test_class": args.test_class,
        "retrieval": args.retrieval,
        "counts": {
            "sketches": len(evaluation.queries),
            "photos": len(evaluation.gallery),
            "classes": len(evaluation.by_class),
            "skipped": len(skipped),
        },
        **evaluation.metrics,
        "chance": evaluation.chance,
        "shortlist": evaluation.shortlist,
        "by_class": evaluation.by_class,
        "skipped": skipped,
        "seconds": evaluation.seconds,
        "fingerprint": fingerprint(method, evaluation.queries, evaluation.gallery),
        "notes": benchmark.notes,
        "options": plain_options(args),
        "environment": environment(str(device)),
    }
    if skipped:
        log.warning("%d images were missing or unreadable and are left out.", len(skipped))
    return _write_beside(path, args, "json", lambda file: write_json(file, content))


def _write_pictures(path: Path, evaluation, args: Namespace) -> Path:
    """Some sketches with their best photos, as one picture beside the checkpoint."""
    from retrieval.pictures import draw_sheet, save_picture

    sketches = len(evaluation.queries)
    drawn = _spread(args.save_pictures, sketches)
    title = (
        f"{args.dataset}, {args.test_class}, -r {args.retrieval}: mAP (average_precision) "
        f"{evaluation.metrics['average_precision']:.3f}; {len(drawn)} of {sketches} sketches, "
        "spread evenly. Green: right class, red: wrong."
    )
    sheet = draw_sheet(_best_photos(evaluation, drawn), title)
    return _write_beside(path, args, "rankings.png", lambda file: save_picture(sheet, file))


def _spread(count: int, total: int) -> list[int]:
    """The middles of `count` equal parts of the numbers below `total`; all where count is more."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _best_photos(evaluation, numbers: list[int]) -> Iterator:
    """Each of these queries with its best photos; the images of one are open at a time."""
    from datasets.images import open_image
    from retrieval.pictures import Ranking

    queries, gallery = evaluation.queries, evaluation.gallery
    for query in numbers:
        photos = evaluation.rankings[query, :DRAWN]
        yield Ranking(
            query=open_image(queries.file(query)),
            query_name=str(queries.class_name[query]),
            photos=[open_image(gallery.file(photo)) for photo in photos],
            photo_names=[str(name) for name in gallery.class_name[photos]],
            relevant=(gallery.target[photos] == queries.target[query]).tolist(),
        )


def _write_beside(path: Path, args: Namespace, ending: str, write: Callable[[Path], None]) -> Path:
    """Where `write` wrote: beside the checkpoint, or in the current folder if that is refused."""
    file = path.with_name(result_name(args, path.name, ending))
    try:
        write(file)
    except OSError as error:
        log.warning("%s cannot be written (%s): writing to the current folder.", file, error)
        file = Path(file.name)
        write(file)
    return file


if __name__ == "__main__":
    run_script(main)
