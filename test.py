"""Score a checkpoint on a benchmark's unseen classes."""

from argparse import Namespace
from pathlib import Path

from datasets import load_benchmark
from model import load_model
from options import evaluation_settings, named_settings, plain_options, resolved, test_options
from utils.errors import InputError, run_script
from utils.logs import environment, log, start_logging, write_json
from utils.run_folder import BEST

PUBLISHED = ("map_all", "map_200", "precision_100", "precision_200")


def main(arguments: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    args = test_options(arguments)
    rankings = Path(args.save_rankings) if args.save_rankings else None
    if rankings and not rankings.parent.is_dir():
        raise InputError(f"--save_rankings {rankings}: there is no folder {rankings.parent}.")

    from utils.distributed import choose_device, init_processes, is_main, leave_processes

    start_logging(quiet=not is_main())
    device = choose_device(args.choose_cuda)
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
    evaluation = _evaluate(method, queries, gallery, args, device)
    if not is_main():
        return 0
    if rankings:
        _write_rankings(rankings, evaluation)
    print(_table(evaluation))
    print(" ".join(f"{name}:{evaluation.metrics[name]:.4f}" for name in PUBLISHED))
    result = _write_result(path, method, checkpoint, benchmark, evaluation, args, device)
    print(f"results: {result}" + (f", rankings: {rankings}" if rankings else ""))
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
    if args.testall:
        return benchmark, benchmark.queries, benchmark.gallery
    every = benchmark.every
    log.info(
        "scoring every %dth sketch and every %dth photo, as published; all with --testall",
        every["sketch"],
        every["photo"],
    )
    return benchmark, *benchmark.published_part(benchmark.queries, benchmark.gallery)


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


def _evaluate(method, queries, gallery, args, device):
    from datasets.images import Preprocessing
    from retrieval.evaluate import evaluate

    return evaluate(
        method,
        queries,
        gallery,
        Preprocessing(**method.inputs),
        device=device,
        shared=True,
        **evaluation_settings(args),
    )


def _table(evaluation) -> str:
    """Metrics for people: all classes, then each."""
    columns = ("map_all", "average_precision", "precision_100", "accuracy@1")
    rows = [("all classes", len(evaluation.queries), evaluation.metrics)]
    rows += [(name, values["queries"], values) for name, values in evaluation.by_class.items()]
    wide = max(len(name) for name, _, _ in rows)
    head = f"{'':{wide}}  sketches  " + "  ".join(f"{name:>17}" for name in columns)
    lines = [
        f"{name:{wide}}  {count:8}  " + "  ".join(f"{values[c]:17.4f}" for c in columns)
        for name, count, values in rows
    ]
    return "\n".join([head, *lines])


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

    part = "all" if args.testall else "part"
    name = f"{path.stem}.{args.test_class}.{args.retrieval}.{part}.json"
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
        "by_class": evaluation.by_class,
        "skipped": skipped,
        "seconds": evaluation.seconds,
        "fingerprint": fingerprint(method, evaluation.queries, evaluation.gallery),
        "notes": benchmark.notes,
        "options": plain_options(args),
        "environment": environment(str(device)),
    }
    result = path.with_name(name)
    try:
        write_json(result, content)
    except OSError as error:
        log.warning("%s cannot be written (%s): writing to the current folder.", result, error)
        result = Path(name)
        write_json(result, content)
    if skipped:
        log.warning("%d images were missing or unreadable and are left out.", len(skipped))
    return result


if __name__ == "__main__":
    run_script(main)
