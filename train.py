"""Train one method on one benchmark: one process, or several under torchrun."""

import time
from argparse import Namespace
from pathlib import Path

from datasets import load_benchmark
from model import FORMAT, build_model, load_model
from model.recipes import RECIPES
from options import (
    RESULT_OPTIONS,
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


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    args = train_options(arguments)

    import torch

    from utils.distributed import choose_device, init_processes, is_main, leave_processes, rank
    from utils.seeds import seed_everything

    folder = RunFolder(Path(args.save), writes=is_main())
    folder.open(args.resume)
    start_logging(folder.log, quiet=not is_main())
    device = choose_device(args.choose_cuda)
    init_processes(device)
    seed_everything(args.seed, rank())
    torch.set_flush_denormal(True)  # gradients below 1e-38 slow a CPU tenfold
    try:
        return Training(args, folder, device).run()
    finally:
        torch.set_flush_denormal(False)
        leave_processes()


class Training:
    """A run: its data, method and optimiser, where it stands, and what it writes.

    epoch: whole epochs done. step: steps done of the next one. best: epoch and metrics of the best
    checkpoint so far.
    """

    def __init__(self, args: Namespace, folder: RunFolder, device):
        from datasets.images import Preprocessing

        self.args, self.folder, self.device = args, folder, device
        self.benchmark = self._load_data()
        self.method, self.starts_from, checkpoint = self._build_method()
        self.method.to(device)
        self.average = self._build_average()
        self.preprocessing = Preprocessing(**self.method.inputs)
        self.optimizer = self._build_optimizer()
        self.stop = StopSignals()
        self.epoch, self.step, self.best = 0, 0, None
        self.losses: dict[str, float] = {}
        self.unreadable: set[str] = set()
        if args.resume:
            self._restore(checkpoint)
        else:
            self.method.before_training()

    def run(self) -> int:
        """Train the epochs that are left; the exit status (128 + its number after a signal)."""
        if self.epoch >= self.args.epoch:
            log.info("%s: has finished its %d epochs already.", self.folder.path, self.epoch)
            return 0
        self._describe()
        started = time.monotonic()
        model, sampler, batches = self._parallel()
        while self.epoch < self.args.epoch:
            finished = self._train_epoch(model, sampler, batches)
            self._save(LAST)
            if not (finished and self._close_epoch()):
                log.info(
                    "Stopped by a signal in epoch %d after step %d; saved. Go on with the same "
                    "command and --resume.",
                    self.epoch + 1,
                    self.step,
                )
                return 128 + self.stop.number
        self._say_where(time.monotonic() - started)
        return 0

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

    def _build_optimizer(self):
        import torch

        args = self.args
        rates = {n: getattr(args, n) for n in ("learning_rate", "layer_decay", "new_rate")}
        return torch.optim.AdamW(
            self.method.parameter_groups(rates),
            lr=args.learning_rate,
            weight_decay=args.weight_decay,
        )

    def _build_average(self):
        """The running average of the weights, which starts as a short one; None without --ema."""
        from torch.optim.swa_utils import AveragedModel

        if not self.args.ema:
            return None

        def follow(average, current, steps):
            """Both are one tensor of the weights; steps: taken before."""
            return current.lerp(average, min(self.args.ema, (1 + steps) / (10 + steps)))

        return AveragedModel(self.method, avg_fn=follow, use_buffers=True)

    @property
    def best_method(self):
        """What is validated and kept: the average where there is one."""
        return self.average.module if self.average else self.method

    def _restore(self, checkpoint: dict) -> None:
        """Stand where the checkpoint was written."""
        from utils.seeds import restore_random_state

        then, now = checkpoint["options"], vars(self.args)
        decisive = [*RESULT_OPTIONS, *(["epoch"] if now["schedule"] != "constant" else [])]
        then = {**RECIPES["paper"], **then}  # whose values older runs had, and did not write down
        changed = [name for name in decisive if then.get(name, now[name]) != now[name]]
        if changed:
            listed = ", ".join(f"--{name} {then[name]} (now {now[name]})" for name in changed)
            raise InputError(
                f"{self.folder.path}: was trained with {listed}. Resume with the same."
            )
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.average:
            self.average.load_state_dict(checkpoint["average"])
        restore_random_state(checkpoint["rng"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.best = checkpoint["best"]

    def _parallel(self):
        """What the loop trains (DDP where there are several processes), sampler and loader."""
        from torch.nn.parallel import DistributedDataParallel

        from datasets.batches import EpochSampler, build_batches
        from utils.distributed import rank, world_size
        from utils.signals import leave_signals_to_main

        args = self.args
        sampler = EpochSampler(args.datasetLen, args.batch, rank(), world_size())
        batches = build_batches(
            self.method.batches,
            self.benchmark.train,
            self.preprocessing,
            sampler,
            draw_settings=draw_settings(args),
            workers=args.num_workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_main,
        )
        model = DistributedDataParallel(self.method) if world_size() > 1 else self.method
        return model, sampler, batches

    # ---- an epoch

    def _train_epoch(self, model, sampler, batches) -> bool:
        """Train to the end of the epoch or to a signal; whether the end was reached."""
        from engine import train_one_epoch

        sampler.epoch, sampler.first_step = self.epoch, self.step
        result = train_one_epoch(
            model,
            batches,
            self.optimizer,
            device=self.device,
            epoch=self.epoch,
            epochs=self.args.epoch,
            steps=sampler.steps,
            first_step=self.step,
            schedule=self.args.schedule,
            amp=self.args.amp,
            after_step=self._follow,
            skip_bad=self.args.skip_bad,
            stop=lambda: self.stop.asked,
            report=self._report,
        )
        self.step, self.losses = result.steps, result.losses
        self.unreadable |= result.unreadable
        return result.finished

    def _follow(self) -> None:
        if self.average:
            self.average.update_parameters(self.method)

    def _report(self, step: int, images_per_second: float, losses: dict[str, float]) -> None:
        line = {"kind": "steps", "epoch": self.epoch + 1, "step": step, **losses}
        line["learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        self.folder.add_metrics({**line, "images_per_second": round(images_per_second, 1)})

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
        self.epoch, self.step = self.epoch + 1, 0
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
        log.info("epoch %d of %d: %s, %s%s", self.epoch, self.args.epoch, losses, scored, mark)
        wait_for_all()
        return True

    def _validate(self) -> dict[str, float] | None:
        """Metrics on the classes that choose the best checkpoint; None without such."""
        from retrieval.evaluate import evaluate
        from utils.distributed import is_main

        args, benchmark = self.args, self.benchmark
        if args.validate == "none" or not is_main():
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
            **evaluation_settings(args),
        )
        self.unreadable |= set(evaluation.skipped)
        return evaluation.metrics

    # ---- what a run writes (its first process does)

    def _save(self, name: str, metrics: dict | None = None) -> None:
        """A checkpoint; the best one leaves out what only training needs."""
        from utils.seeds import random_state

        if not self.folder.writes:
            return
        resumable = name == LAST
        method = self.method if resumable else self.best_method
        state = method.state_dict()
        if not resumable:
            state = {n: t for n, t in state.items() if not n.startswith(method.training_only)}
        checkpoint = {
            "format": FORMAT,
            "method": self.method.name,
            "settings": self.method.settings,
            "model": state,
            "average": self.average.state_dict() if resumable and self.average else None,
            "optimizer": self.optimizer.state_dict() if resumable else None,
            "schedule": None,
            "rng": random_state() if resumable else None,
            "epoch": self.epoch,
            "step": self.step,
            "metrics": metrics,
            "best": self.best,
            "options": plain_options(self.args),
            "classes": self.benchmark.train.classes() + self.benchmark.validation.classes(),
            "map_all": metrics["map_all"] if metrics else None,
            "precision_100": metrics["precision_100"] if metrics else None,
        }
        self.folder.save(name, checkpoint)

    def _describe(self) -> None:
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
        log.info("saves to: %s; runs on: %s x %d", self.folder.path, self.device, world_size())
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

    def _say_where(self, seconds: float) -> None:
        if self.unreadable:
            log.warning("%d unreadable files were skipped.", len(self.unreadable))
        scored = (
            f", validation map_all {self.best['map_all']:.4f}" if "map_all" in self.best else ""
        )
        log.info(
            "Finished in %s. Best checkpoint: %s (epoch %d%s)",
            duration(seconds),
            self.folder.path / BEST,
            self.best["epoch"],
            scored,
        )


if __name__ == "__main__":
    run_script(main)
