"""Score a checkpoint on a benchmark's unseen classes."""

if __name__ == "__main__":
    from utils.hold import hold_signals

    hold_signals()  # until run_script()

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from os.path import isfile
from pathlib import Path

from datasets import load_benchmark
from model import load_model
from options import (
    block_settings,
    encoder_settings,
    plain_options,
    ranker_settings,
    result_name,
    scored_part,
    test_options,
)
from utils.errors import InputError, run_script
from utils.files import check_folder, reason
from utils.logs import environment, log, start_logging, write_json
from utils.run_folder import BEST
from utils.world import is_main

PUBLISHED = ("map_all", "map_200", "precision_100", "precision_200")


def main(arguments: list[str] | None = None) -> int:
    """Score as the command line says; the exit status."""
    args = test_options(arguments)
    rankings = Path(args.save_rankings) if args.save_rankings else None
    if rankings:
        check_folder(rankings, "--save_rankings")
    start_logging(quiet=not is_main())
    path = _checkpoint_path(args)
    log.info("loading PyTorch")
    from retrieval.stored import features_of
    from utils.distributed import running_on

    with running_on(args.choose_cuda) as device:
        method, checkpoint = load_model(path, args.given)
        settings = " ".join(f"{n}={value}" for n, value in method.settings.of_model().items())
        log.info("%s: %s %s", path, method.name, settings)
        data, queries, gallery = _load_data(args)
        _check_unseen(path, checkpoint, queries, args.allow_seen)
        log.info("%d sketches against %d photos, -r %s", len(queries), len(gallery), args.retrieval)
        store = None if args.no_cache else features_of(path)
        encoder = _encoder(method.to(device), device, args, store)
        evaluation = _evaluate(encoder, queries, gallery, args)
        if is_main():
            about = {
                "checkpoint": str(path),
                "checkpoint_epoch": checkpoint["epoch"],
                "dataset": args.dataset,
                "test_class": args.test_class,
                "retrieval": args.retrieval,
            }
            _report(path, method, data, evaluation, args, about, str(device), rankings)
    return 0


def _checkpoint_path(args: Namespace) -> Path:
    if args.load:
        return Path(args.load)
    path = Path(args.save) / BEST
    if not isfile(path):
        raise InputError(
            f"{path}: no such checkpoint. Name one with -l FILE, or a run's folder with --save."
        )
    log.info("no -l given: scoring %s", path)
    return path


def _load_data(args: Namespace):
    """The benchmark, and the sketches and photos of its unseen classes that are scored."""
    data = load_benchmark(
        args.dataset, args.test_class, args.data_path, seen=False, skip_bad=args.skip_bad
    )
    every = scored_part(args, data.every)
    if max(every.values()) > 1:
        shown = [f"one {name} in {n}" if n > 1 else f"each {name}" for name, n in every.items()]
        log.info("scoring %s; all with --testall", " and ".join(shown))
    return data, data.queries.every(every["sketch"]), data.gallery.every(every["photo"])


def _check_unseen(path: Path, checkpoint: dict, queries, allow_seen: bool) -> None:
    """Refuse to call a result zero-shot that has classes which the checkpoint has seen."""
    from datasets.benchmark import plain_name

    if checkpoint["classes"] is None:
        log.warning(
            "%s does not say which classes it was trained on: it is a published checkpoint, or its "
            "training started from one (the public one: Sketchy, 25 unseen). On another split the "
            "result may not be zero-shot.",
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


def _encoder(method, device, args: Namespace, store: Path | None):
    from retrieval.encoder import Encoder
    from utils.precision import dtype_of

    return Encoder(
        method,
        device,
        dtype=dtype_of(args.amp, device),
        store=store,
        precision=args.cache_precision,
        **encoder_settings(args),
    )


def _evaluate(encoder, queries, gallery, args: Namespace):
    """Score; InputError where the GPU's memory does not suffice."""
    import torch

    from retrieval.evaluate import evaluate
    from retrieval.scoring import RANKERS

    try:
        return evaluate(
            encoder,
            queries,
            gallery,
            RANKERS[args.retrieval],
            ranker_settings(args),
            compiled=args.compile,
            shared=True,
            **block_settings(args),
        )
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{encoder.device}: its memory does not suffice. Take fewer images at a time "
            "(--test_sk 16 --test_im 16), or --amp auto."
        ) from error


def _report(
    path: Path, method, data, evaluation, args, about: dict, device: str, rankings: Path | None
) -> None:
    """Write and print the results."""
    from report import results
    from retrieval.stored import fingerprint

    skipped = [*data.skipped, *evaluation.skipped]
    content = {
        **about,
        **results.as_json(evaluation, skipped),
        "fingerprint": fingerprint(method, evaluation.queries, evaluation.gallery),
        "notes": data.notes,
        "options": plain_options(args),
        "environment": environment(device),
    }
    title = f"{args.dataset}, {args.test_class}, -r {args.retrieval}"
    writers = {"results": ("json", lambda file: write_json(file, content))}
    if args.save_pictures:
        draw = partial(results.draw_rankings, evaluation, args.save_pictures, title)
        writers["pictures"] = ("rankings.png", draw)
    written = {}
    for what, (ending, write) in writers.items():
        beside = path.with_name(result_name(args, path.name, ending))
        written[what] = _written(write, beside, Path(beside.name))
    if rankings:
        written["rankings"] = _written(partial(results.write_rankings, evaluation), rankings)
    print(results.table(evaluation))
    if evaluation.shortlist:
        print(results.shortlist_line(evaluation, args.shortlist))
    print(" ".join(f"{name}:{evaluation.metrics[name]:.4f}" for name in PUBLISHED))
    if skipped:
        log.warning("%d images were missing or unreadable and are left out.", len(skipped))
    print(", ".join(f"{what}: {file}" for what, file in written.items() if file))
    lost = [what for what, file in written.items() if file is None]
    if lost:
        raise InputError(f"not written: {', '.join(lost)}; the reason stands above.")


def _written(write: Callable[[Path], None], *places: Path) -> Path | None:
    """Write to the first of some places that takes it; which one, None: none does."""
    for file in places:
        try:
            write(file)
            return file
        except OSError as error:
            log.warning("%s: cannot be written (%s).", file, reason(error))
        except InputError as error:  # of what is written
            log.warning("%s", error)
            break
    return None


if __name__ == "__main__":
    run_script(main)
