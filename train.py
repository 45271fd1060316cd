"""Train one method on one benchmark: one process, or several under torchrun."""

import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from datasets import load_benchmark
from model import build_model, checkpoint_of, load_model
from options import (
    cache_folder,
    changed_options,
    draw_settings,
    evaluation_settings,
    loss_settings,
    named_settings,
    plain_options,
    resolved,
    scored_part,
    settings_of,
    train_options,
)
from utils.errors import InputError, run_script
from utils.logs import duration, environment, log, start_logging
from utils.run_folder import BEST, LAST, RUN, RunFolder
from utils.signals import StopSignals

METHOD = "zse_sbir"
NOT_FINITE = "not_finite.json"


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    args = train_options(arguments)

    import torch

    from utils.distributed import choose_device, init_processes, is_main, leave_processes, rank
    from utils.memory import keep_freed_memory
    from utils.precision import tf32, trainable
    from utils.seeds import seed_everything

    folder = RunFolder(Path(args.save), writes=is_main())
    folder.open(args.resume)
    try:
        start_logging(folder.log, quiet=not is_main())
        device = choose_device(args.choose_cuda)
        args.amp = trainable(args.amp, device)
        if device.type == "cpu":
            keep_freed_memory()
        init_processes(device)
        seed_everything(args.seed, rank())
        torch.set_flush_denormal(True)  # gradients below 1e-38 slow a CPU tenfold
        with tf32(args.tf32):
            return Training(args, folder, device).run()
    finally:
        torch.set_flush_denormal(False)
        leave_processes()
        folder.close()


class Training:
    """A run: its data, method and optimiser, where it stands, and what it writes.

    epoch: whole epochs done. step, draws: done of the next one, in all processes. best: epoch and
    metrics of the best checkpoint so far. owed: checkpoints that the disk has refused, by name.
    """

    def __init__(self, args: Namespace, folder: RunFolder, device):
        from datasets.images import Preprocessing
        from engine import build_average, build_optimizer

        self.args, self.folder, self.device = args, folder, device
        self.board = None
        self.benchmark = self._load_data()
        self.method, self.starts_from, checkpoint = self._build_method()
        self.method.to(device)
        if args.checkpoint_blocks:
            self.method.checkpoint_blocks()
        self.average = build_average(self.method, args.ema) if args.ema else None
        self.preprocessing = Preprocessing(**self.method.inputs)
        self.optimizer = build_optimizer(
            self.method,
            {name: getattr(args, name) for name in ("learning_rate", "layer_decay", "new_rate")},
            args.weight_decay,
        )
        self.stop = StopSignals()
        self.epoch, self.step, self.draws, self.best, self.before = 0, 0, 0, None, 0.0
        self.losses: dict[str, float] = {}
        self.unreadable: set[str] = set()
        self.owed: dict[str, dict] = {}
        if args.resume:
            self._restore(checkpoint)
        else:
            self.method.before_training()
        self.started = self.saved = time.monotonic()

    def run(self) -> int:
        """Train the epochs that are left; the exit status (128 + its number after a signal)."""
        if self.epoch >= self.args.epoch:
            log.info("%s: has finished its %d epochs already.", self.folder.path, self.epoch)
            return 0
        model, sampler, batches = self._parallel()
        self._describe(sampler)
        self.board = self._build_board(sampler)
        if not self.args.resume:
            self._save(LAST)  # tells at once whether there is room; and any later end leaves one
        self.first_epoch, finished = self.epoch, True
        while self.epoch < self.args.epoch and finished:
            try:
                finished = self._train_epoch(model, sampler, batches)
                self._save(LAST)
                finished = finished and self._close_epoch()
            except (RuntimeError, MemoryError) as error:
                explained = self._explained(error, batches)
                if explained is None:
                    raise
                raise explained from error
        return self._finished() if finished else self._stopped()

    # ---- what a run is made of

    def _load_data(self):
        args = self.args
        benchmark = load_benchmark(
            args.dataset,
            args.test_class,
            Path(args.data_path),
            unseen=args.validate == "test",
            validation=args.validate == "seen",
            validation_classes=args.validation_classes,
            seed=args.seed,
            classes=args.cls_number,
            skip_bad=args.skip_bad,
        )
        for note in benchmark.notes:
            log.warning("%s", note)
        if benchmark.skipped:
            log.warning("%d missing files are left out.", len(benchmark.skipped))
        return benchmark

    def _build_method(self):
        """The method, a word on where its weights come from, and the checkpoint if from one."""
        args = self.args
        training = loss_settings(args)
        if args.classification_weight:
            training["classes"] = int(self.benchmark.train.target.max()) + 1
        if args.resume:
            source = self.folder.path / LAST
            method, checkpoint = load_model(source, named_settings(args), resumed=True)
            return method, str(source), checkpoint
        if args.load:
            method, checkpoint = load_model(Path(args.load), named_settings(args), training)
            return method, args.load, checkpoint
        method = build_model(METHOD, **settings_of(args), **training)
        if not args.pretrained:
            return method, "nothing (untrained)", None
        path = Path(args.pretrained_path) if args.pretrained_path else None
        return method, method.load_pretrained(path), None

    def _build_board(self, sampler):
        """Where curves for TensorBoard go; None where nobody asked for them."""
        from utils.board import Board

        if not (self.args.tensorboard and self.folder.writes):
            return None
        first_step = self.epoch * sampler.steps + self.step
        return Board(self.folder.path / "tensorboard", first_step)

    @property
    def seconds(self) -> float:
        """That training and validation have taken, in all parts of the run."""
        return self.before + time.monotonic() - self.started

    @property
    def best_method(self):
        """What is validated and kept: the average where there is one."""
        return self.average.module if self.average else self.method

    def _restore(self, checkpoint: dict) -> None:
        """Stand where the checkpoint was written. Raises InputError for other decisive options."""
        from utils.distributed import world_size

        then, now = checkpoint["options"]["batch"], self.args.batch
        processes = checkpoint.get("processes", 1)
        changed = changed_options(self.args, checkpoint["options"])
        if then != now and then * processes != now * world_size():
            changed.append(f"--batch {then} (now {now})")
        if changed:
            raise InputError(
                f"{self.folder.path}: was trained with {', '.join(changed)}. Resume with the same."
            )
        if then * processes != now * world_size():
            log.warning(
                "%d processes x --batch %d then, %d x %d now: a step takes another number of "
                "draws; they go on where they stopped.",
                *(processes, then, world_size(), now),
            )
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.average:
            self.average.load_state_dict(checkpoint["average"])
        self.epoch, self.step, self.best = (checkpoint[n] for n in ("epoch", "step", "best"))
        self.draws = checkpoint.get("draws", self.step * then)
        self.before = checkpoint.get("seconds", 0.0)
        self.folder.drop_later(self.epoch, self.step)

    def _parallel(self):
        """What the loop trains (DDP where there are several processes), sampler and loader."""
        from torch.nn.parallel import DistributedDataParallel

        from datasets.batches import EpochSampler, build_batches
        from utils.distributed import rank, world_size
        from utils.signals import leave_signals_to_main

        args = self.args
        sampler = EpochSampler(args.datasetLen, args.batch, rank(), world_size(), args.accumulate)
        batches = build_batches(
            self.method.batches,
            self.benchmark.train,
            replace(self.preprocessing, draft=True),
            sampler,
            draw_settings=draw_settings(args),
            workers=args.num_workers,
            cache_images=cache_folder(args, self.benchmark.train.root),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_main,
        )
        if args.compile:
            self.method.compile()
        model = self.method
        if world_size() > 1:
            model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        return model, sampler, batches

    # ---- an epoch

    def _train_epoch(self, model, sampler, batches) -> bool:
        """Train to the end of the epoch or to a signal; whether the end was reached."""
        from engine import NonFiniteLossError, train_one_epoch
        from utils.precision import DTYPES

        args, before = self.args, self.draws
        sampler.epoch, sampler.first_draw = self.epoch, before
        first = sampler.first_step

        def after_step(step: int) -> None:
            self.step, self.draws = step, before + (step - first) * sampler.draws_a_step
            if self.average:
                self.average.update_parameters(self.method)
            if time.monotonic() - self.saved >= 60 * args.save_minutes:
                self._save(LAST)

        try:
            result = train_one_epoch(
                model,
                batches,
                self.optimizer,
                device=self.device,
                epoch=self.epoch,
                epochs=args.epoch,
                steps=sampler.steps,
                first_step=first,
                schedule=args.schedule,
                dtype=DTYPES[args.amp],
                accumulate=args.accumulate,
                clip=args.clip,
                normalise=self.preprocessing.normalise,
                skip_bad=args.skip_bad,
                before_step=self._seed,
                after_step=after_step,
                stop=lambda: self.stop.asked,
                report=lambda *report: self._report(sampler.steps, *report),
            )
        except NonFiniteLossError as error:
            raise self._written_down(error) from error
        self.losses = result.losses
        self.unreadable |= result.unreadable
        return result.finished

    def _seed(self, step: int) -> None:
        from utils.distributed import rank
        from utils.seeds import seed_step

        seed_step(self.args.seed, self.epoch, step, rank())

    def _report(self, steps: int, step: int, speed: dict, losses: dict) -> None:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        figures = {"learning_rate": rate, **speed}
        line = {"kind": "steps", "epoch": self.epoch + 1, "step": step, "steps": steps}
        self.folder.add_metrics({**line, **losses, **figures})
        if self.board:
            shown = {**{f"loss/{name}": value for name, value in losses.items()}, **figures}
            self.board.add(self.epoch * steps + step, shown)

    def _close_epoch(self) -> bool:
        """Validate and save. False where a signal broke in: then the epoch stays open."""
        from utils.distributed import wait_for_all

        started = time.monotonic()
        try:
            with self.stop.at_once():
                metrics = self._validate()
        except KeyboardInterrupt:
            return False
        better = not (metrics and self.best) or metrics["map_all"] > self.best["map_all"]
        if self.board and metrics:
            shown = {f"validation/{name}": value for name, value in metrics.items()}
            self.board.add((self.epoch + 1) * self.step, shown)
        self.epoch, self.step, self.draws = self.epoch + 1, 0, 0
        if better:
            self.best = {"epoch": self.epoch, **(metrics or {})}
            self._save(BEST, metrics)
        self._save(LAST, metrics)
        line = {"kind": "epoch", "epoch": self.epoch, "losses": self.losses, "validation": metrics}
        seconds = round(time.monotonic() - started, 1)
        self.folder.add_metrics({**line, "best": better, "validation_seconds": seconds})
        scored = f"validation map_all:{metrics['map_all']:.4f}" if metrics else "not validated"
        losses = " ".join(f"{name}:{value:.4f}" for name, value in self.losses.items())
        mark = " (best so far)" if better and metrics else ""
        of_epoch = (time.monotonic() - self.started) / (self.epoch - self.first_epoch)
        left = duration(of_epoch * (self.args.epoch - self.epoch))
        place = f"epoch {self.epoch} of {self.args.epoch}"
        log.info("%s: %s, %s%s; %s left", place, losses, scored, mark, left)
        wait_for_all()
        return True

    def _validate(self) -> dict[str, float] | None:
        """Metrics on the classes that choose the best checkpoint; None without such."""
        from retrieval.evaluate import evaluate

        args, benchmark = self.args, self.benchmark
        if args.validate == "none":
            return None
        queries, gallery = benchmark.queries, benchmark.gallery
        if args.validate == "seen":
            queries, gallery = benchmark.validation.of("sketch"), benchmark.validation.of("photo")
        every = scored_part(args, benchmark.every)
        evaluation = evaluate(
            self.best_method,
            queries.every(every["sketch"]),
            gallery.every(every["photo"]),
            self.preprocessing,
            device=self.device,
            amp=args.amp,
            shared=True,
            **evaluation_settings(args),
        )
        self.unreadable |= set(evaluation.skipped)
        return evaluation.metrics

    # ---- what a run writes (its first process does)

    def _save(self, name: str, metrics: dict | None = None) -> None:
        """Write a checkpoint; one that the disk refuses is owed."""
        if not self.folder.writes:
            return
        checkpoint = self._checkpoint(name, metrics)
        if self.folder.save(name, checkpoint):
            self.owed.pop(name, None)
            if BEST in self.owed and self.folder.save(BEST, self.owed[BEST]):
                del self.owed[BEST]
        else:
            if name == BEST:  # training goes on with these very tensors
                copied = {n: tensor.cpu().clone() for n, tensor in checkpoint["model"].items()}
                checkpoint = {**checkpoint, "model": copied}
            self.owed[name] = checkpoint
        self.saved = time.monotonic()

    def _checkpoint(self, name: str, metrics: dict | None) -> dict:
        """What is saved under this name. Raises InputError where weights are not finite."""
        from utils.distributed import world_size

        resumable = name == LAST
        method = self.method if resumable else self.best_method
        return {
            **checkpoint_of(method, resumable),
            "average": self.average.state_dict() if resumable and self.average else None,
            "optimizer": self.optimizer.state_dict() if resumable else None,
            "schedule": None,
            "epoch": self.epoch,
            "step": self.step,
            "draws": self.draws,
            "processes": world_size(),
            "seconds": self.seconds,
            "metrics": metrics,
            "best": self.best,
            "options": plain_options(self.args),
            "classes": self.benchmark.train.classes() + self.benchmark.validation.classes(),
            "map_all": metrics["map_all"] if metrics else None,
            "precision_100": metrics["precision_100"] if metrics else None,
        }

    def _describe(self, sampler) -> None:
        """Say, and write down beside the results, what is about to be trained."""
        from utils.distributed import world_size

        args, benchmark, method = self.args, self.benchmark, self.method
        seen = benchmark.train.classes()
        counts = {"sketches": len(benchmark.train.of("sketch"))}
        counts["photos"] = len(benchmark.train.of("photo"))
        validation = {
            "seen": {"classes": benchmark.validation.classes()},
            "test": {"note": "the unseen test classes choose the checkpoint, as in the paper"},
            "none": {"note": "on no class: the last epoch counts as the best"},
        }[args.validate]
        settings = " ".join(f"{name}={value}" for name, value in method.settings.items())
        classes = len(seen) + len(benchmark.validation.classes())
        log.info("recipe: %s", args.recipe)
        log.info("%s: %s", method.name, settings)
        log.info("resolved: %s", resolved(args, method.settings, classes))
        log.info("trains on %d seen classes: %s", len(seen), counts)
        log.info("starts from: %s", self.starts_from)
        log.info("validates: %s", *validation.values())
        log.info("an epoch: %d steps of %d draws", sampler.steps, sampler.draws_a_step)
        where = f"{self.device} x {world_size()}, {'fp32' if args.amp == 'off' else args.amp}"
        log.info("saves to: %s; runs on: %s", self.folder.path, where)
        if args.resume:
            log.info("resumes in epoch %d after step %d", self.epoch + 1, self.step)
        name = f"resumed_in_epoch_{self.epoch + 1}_step_{self.step}.json" if args.resume else RUN
        content = {
            "options": plain_options(args),
            "method": method.name,
            "settings": method.settings,
            "starts_from": self.starts_from,
            "seen_classes": seen,
            "train_images": counts,
            "missing_files": benchmark.skipped,
            "validation": {"kind": args.validate, **validation},
            "processes": world_size(),
            "environment": environment(str(self.device)),
        }
        self.folder.describe(name, content)

    # ---- how a run ends

    def _finished(self) -> int:
        """See that all is on the disk, and say where; the exit status."""
        for name, checkpoint in self.owed.items():
            if not self.folder.save_at_last(name, checkpoint, lambda: self.stop.asked):
                raise InputError(
                    f"{self.folder.path / name}: the end of the training is not in it."
                )
        self._close_files()
        if self.unreadable:
            log.warning("%d unreadable files were skipped.", len(self.unreadable))
        if self.folder.writes and not (self.folder.path / BEST).is_file():
            log.warning("%s has gone since it was written.", self.folder.path / BEST)
        best = self.best
        scored = f", validation map_all {best['map_all']:.4f}" if "map_all" in best else ""
        log.info(
            "Finished in %s. Best checkpoint: %s (epoch %d%s)",
            duration(self.seconds),
            self.folder.path / BEST,
            best["epoch"],
            scored,
        )
        return 0

    def _stopped(self) -> int:
        """Say how to go on after a signal; the exit status."""
        where = f"in epoch {self.epoch + 1} after step {self.step}"
        if LAST in self.owed:
            raise InputError(f"stopped by a signal {where}, which could not be saved; see above.")
        self._close_files()
        log.info("Stopped by a signal %s; saved. Go on with the same command and --resume.", where)
        return 128 + self.stop.number

    def _close_files(self) -> None:
        if self.board:
            self.board.close()
        self.folder.finish()

    def _explained(self, error: Exception, batches) -> InputError | None:
        """What an error of torch means for the user; None: what it says itself."""
        import torch

        from datasets.reading import told_of_dead_worker
        from utils.distributed import is_lost_process

        reason = str(error).split("\n")[0] or type(error).__name__
        if is_lost_process(error):
            return InputError(
                f"another process of this run has gone ({reason}). Go on from "
                f"{self.folder.path / LAST} with --resume."
            )
        no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if no_memory or "can't allocate memory" in reason:
            return InputError(
                f"{self.device}: its memory does not suffice ({reason}). Lower --batch (with "
                "--accumulate a step has as many draws all the same), take --checkpoint_blocks, or "
                "--amp bf16."
            )
        return told_of_dead_worker(batches, error)

    def _written_down(self, error) -> InputError:
        """The same error, with what is known of it in a file."""
        from utils.distributed import gather_objects

        images = self.benchmark.train
        found = {"losses": error.losses, "files": [str(images.file(n)) for n in error.numbers]}
        content = {"epoch": self.epoch + 1, "step": error.step, "processes": gather_objects(found)}
        try:
            self.folder.describe(NOT_FINITE, content)
        except InputError as refused:
            return InputError(f"{error} {refused}")
        return InputError(f"{error} Losses and files: {self.folder.path / NOT_FINITE}.")


if __name__ == "__main__":
    run_script(main)
