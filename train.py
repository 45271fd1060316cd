"""Train one method on one benchmark: one process, or several under torchrun."""

if __name__ == "__main__":
    from utils.hold import hold_signals

    hold_signals()  # until run_script()

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from datasets import load_benchmark
from model import build_model, read_checkpoint, rebuild_model
from options import (
    benchmark_settings,
    block_settings,
    changed_options,
    encoder_settings,
    plain_options,
    ranker_settings,
    run_settings,
    scored_part,
    train_options,
)
from utils.errors import InputError, run_script
from utils.logs import environment, log, start_logging
from utils.run_folder import LAST, RUN, RunFolder
from utils.world import is_main, world_size

LEAST_SKETCHES = 100  # for a published part to be what chooses the best checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    args = train_options(arguments)
    with RunFolder(Path(args.save), writes=is_main()).open(args.resume) as folder:
        start_logging(folder.log, quiet=not is_main())
        log.info("loading PyTorch")
        from report.curves import draw_curves
        from retrieval.encoder import Encoder
        from retrieval.evaluate import evaluate
        from retrieval.scoring import RANKERS
        from training.run import Run, prepared
        from utils.precision import dtype_of

        with prepared(args.choose_cuda, args.settings, args.seed) as (device, args.settings):
            data = load_benchmark(
                args.dataset, args.test_class, args.data_path, **benchmark_settings(args)
            )
            method, source, checkpoint = _build_method(args, data, folder)
            args.settings = method.settings
            run = Run(
                method.to(device),
                data.train,
                folder,
                device=device,
                facts={
                    "options": plain_options(args),
                    "classes": _seen_classes(data, checkpoint),
                },
                **run_settings(args, data.train.root),
            )
            if args.resume:
                run.load_state_dict(checkpoint)
            if not run.is_finished:
                _describe(args, data, run, source)

            def score(method, queries, gallery):
                dtype = dtype_of(args.settings.amp, device)
                encoder = Encoder(method, device, dtype=dtype, **encoder_settings(args))
                how = RANKERS[args.retrieval], ranker_settings(args)
                blocks = block_settings(args)
                return evaluate(encoder, queries, gallery, *how, shared=True, **blocks)

            status = run.fit(_validation(args, data, run, score))
            folder.draw(draw_curves)
        return status


def _build_method(args: Namespace, data, folder: RunFolder):
    """The method, where its weights come from, and the checkpoint if they come from one."""
    classes = int(data.train.target.max()) + 1
    if not (args.resume or args.load):
        method = build_model(args.settings, classes)
        if not args.pretrained:
            return method, "nothing (untrained)", None
        path = Path(args.pretrained_path) if args.pretrained_path else None
        return method, method.load_pretrained(path), None
    source = folder.path / LAST if args.resume else Path(args.load)
    checkpoint = read_checkpoint(source, args.given)
    if args.resume:
        from training.state import check_state

        check_state(checkpoint, source)
    changed = changed_options(args, checkpoint["options"]) if args.resume else []
    if changed:
        raise InputError(
            f"{folder.path}: was trained with {', '.join(changed)}. Resume with the same."
        )
    training = {"training": args.settings, "classes": classes, "resumed": args.resume}
    method = rebuild_model(checkpoint, source, args.given, **training)
    return method, str(source), checkpoint


def _seen_classes(data, checkpoint: dict | None) -> list[str] | None:
    """The classes that weights have seen which start from a checkpoint; None: not known."""
    seen = data.train.classes() + data.validation.classes()
    if checkpoint is None:
        return seen
    before = checkpoint["classes"]
    return None if before is None else list(dict.fromkeys([*before, *seen]))


def _validation(args: Namespace, data, run, score: Callable) -> Callable:
    """A function from a method to its metrics on the classes that choose the best checkpoint.

    score: takes a method, queries and a gallery.
    """
    if args.validate == "none":
        return lambda method: None
    queries, gallery = {
        "seen": (data.validation.of("sketch"), data.validation.of("photo")),
        "test": (data.queries, data.gallery),
    }[args.validate]
    every = scored_part(args, data.every)
    some = queries.every(every["sketch"]), gallery.every(every["photo"])
    if len(some[0]) < LEAST_SKETCHES and max(every.values()) > 1 and not args.part:
        log.info(
            "validation: the published part has %d sketches, too few to choose by: all %d are "
            "scored, against all %d photos",
            *(len(some[0]), len(queries), len(gallery)),
        )
        some = queries, gallery

    def validate(method) -> dict[str, float]:
        evaluation = score(method, *some)
        run.unreadable |= set(evaluation.skipped)
        return evaluation.metrics

    return validate


def _describe(args: Namespace, data, run, source: str) -> None:
    """Log, and write beside the results, what is about to be trained."""
    counts = {"sketches": len(data.train.of("sketch")), "photos": len(data.train.of("photo"))}
    held_out = data.validation.classes()
    note = {
        "seen": f"seen classes, not trained on, choose the checkpoint: {', '.join(held_out)}",
        "test": "the unseen test classes choose the checkpoint, as in the paper",
        "none": "none; the last epoch counts as the best",
    }[args.validate]
    seen, settings = data.train.classes(), run.settings.by_flag()
    log.info("recipe: %s", args.recipe)
    log.info("%s: %s", run.method.name, " ".join(f"{n}={value}" for n, value in settings.items()))
    log.info("trains on %d seen classes of %s: %s", len(seen), args.test_class, counts)
    log.info("starts from: %s", source)
    log.info("validation: %s", note)
    log.info("an epoch: %d steps of %d draws", run.sampler.steps, run.sampler.draws_a_step)
    precision = {"off": "fp32"}.get(run.settings.amp, run.settings.amp)
    log.info("saves to: %s; runs on: %s x %d, %s", args.save, run.device, world_size(), precision)
    name = RUN
    if args.resume:
        name = f"resumed_in_epoch_{run.epoch + 1}_step_{run.step}.json"
    content = {
        "options": plain_options(args),
        "method": run.method.name,
        "settings": run.settings.of_model(),
        "starts_from": source,
        "seen_classes": seen,
        "train_images": counts,
        "missing_files": data.skipped,
        "validation": {"kind": args.validate, "note": note, "classes": held_out},
        "processes": world_size(),
        "environment": environment(str(run.device)),
    }
    run.folder.describe(name, content)


if __name__ == "__main__":
    run_script(main)
