"""Run: what a training run is made of, its state to save and load, its epochs."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from datasets.benchmark import ImageList
from datasets.images import Preprocessing
from model import checkpoint_of
from model.method import Method
from model.settings import TrainingSettings
from training.batches import EpochSampler, build_batches
from training.errors import explain_error
from training.loop import Hooks, NonFiniteLossError, train_one_epoch
from training.optimizer import Average, build_optimizer
from training.state import REMEDY, load_moments
from utils.board import Board
from utils.checkpoints import load_strictly
from utils.distributed import gather_objects, running_on, wait_for_all
from utils.errors import InputError
from utils.logs import duration, log
from utils.memory import machine_memory
from utils.precision import flushed_denormals, tf32, trainable
from utils.run_folder import BEST, LAST, RunFolder
from utils.schema import check, table, whole
from utils.seeds import seed_everything, seed_step
from utils.signals import StopSignals
from utils.workers import Loader
from utils.world import rank, world_size

NOT_FINITE = "not_finite.json"

SCORES = ("map_all", "precision_100")  # which published checkpoints hold

Metrics = dict[str, float]


@contextmanager
def prepared(
    choice: str, settings: TrainingSettings, seed: int
) -> Iterator[tuple[torch.device, TrainingSettings]]:
    """The device that -c names, and settings with the precision that it trains in; until the end.

    Meanwhile this process is joined to the others and computes as the settings say. Random numbers
    are seeded, differently in each process.
    """
    with running_on(choice) as device, tf32(settings.tf32), flushed_denormals():
        seed_everything(seed, rank())
        yield device, replace(settings, amp=trainable(settings.amp, device))


class Run:
    """A training run.

    method: on the device; its settings say how to train. images: the training list. folder: open.
    facts: further content of each checkpoint (options, classes). workers: processes that read
    images. cache_images: the folder that keeps prepared pictures. save_minutes: between checkpoints
    within an epoch. tensorboard: whether to write curves for it.

    epoch (attribute): how many epochs are done. step: how many steps of the next one are done;
    draws: how many of its draws, of all processes together. losses: means over the epoch. best:
    epoch and metrics of the best checkpoint so far. unreadable: a sentence for each file that was
    left out.
    """

    def __init__(
        self,
        method: Method,
        images: ImageList,
        folder: RunFolder,
        *,
        device: torch.device,
        seed: int,
        facts: dict,
        workers: int = 0,
        skip_bad: bool = False,
        cache_images: Path | None = None,
        save_minutes: float = 10.0,
        tensorboard: bool = False,
    ):
        self.method, self.images, self.folder, self.device = method, images, folder, device
        self.settings = method.settings
        self.seed, self.facts, self.skip_bad = seed, facts, skip_bad
        self.save_minutes, self.tensorboard = save_minutes, tensorboard
        self.preprocessing = Preprocessing(**method.inputs)
        settings = self.settings
        _check_memory(settings, self.preprocessing.size)
        self.sampler = EpochSampler(
            settings.draws_an_epoch, settings.batch, rank(), world_size(), settings.accumulate
        )
        self.batches = self._build_batches(workers, cache_images)
        if settings.checkpoint_blocks:
            method.checkpoint_blocks()
        self.optimizer = build_optimizer(method)
        self.average = Average(method, settings.ema) if settings.ema else None
        self.stop = StopSignals()
        self.epoch, self.step, self.draws, self.best = 0, 0, 0, None
        self.losses: dict[str, float] = {}
        self.unreadable: set[str] = set()
        self.board: Board | None = None
        self.resumed = False
        self.seconds_before = 0.0  # in earlier parts of the run
        self.started = self.saved = time.monotonic()

    def _build_batches(self, workers: int, cache_images: Path | None) -> Loader:
        settings = self.settings
        return build_batches(
            self.method.batches,
            self.images,
            replace(self.preprocessing, draft=True),
            self.sampler,
            draw_settings={
                "seed": self.seed,
                "skip_bad": self.skip_bad,
                "augmentation": settings.augment,
                "per_class": settings.per_class,
                "own_photo": settings.own_photo,
            },
            workers=workers,
            cache_images=cache_images,
            pin_memory=self.device.type == "cuda",
        )

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.settings.epochs

    @property
    def seconds(self) -> float:
        """The time of training and validation, in all parts of the run."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def best_method(self) -> Method:
        """The method that is validated and kept: the average where there is one."""
        return self.average.module if self.average else self.method

    # ---- its state

    def state_dict(self) -> dict:
        """The state to go on from, without the weights of the method."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            **self._progress(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from the content of a last checkpoint that check_state() has let pass.

        Raises InputError where it does not fit, or --batch has changed and a step would take
        another number of draws.
        """
        then, now = state["options"]["batch"], self.settings.batch
        draws, draws_now = then * state["processes"], now * world_size()
        if then != now and draws != draws_now:
            raise InputError(
                f"{self.folder.path}: was trained with --batch {then} (now {now}). Resume with the "
                "same."
            )
        if draws != draws_now:
            log.warning(
                "%d processes x --batch %d then, %d x %d now: a step takes another number of "
                "draws. Training goes on with the next draw.",
                *(state["processes"], then, world_size(), now),
            )
        source = self.folder.path / LAST
        check(state, table({"draws": whole(0, self.settings.draws_an_epoch)}), source, REMEDY)
        load_moments(self.optimizer, state["optimizer"], source)
        if self.average:
            load_strictly(self.average, state["average"] or {}, f"{source}: average")
        self.epoch, self.step, self.draws = state["epoch"], state["step"], state["draws"]
        self.best, self.seconds_before = state["best"], state["seconds"]
        self.losses = state.get("losses", {})  # which older checkpoints lack
        self.resumed = True
        self.folder.drop_later(self.epoch, self.step)

    def _progress(self) -> dict:
        """How far the run is, as plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "draws": self.draws,
            "processes": world_size(),
            "seconds": self.seconds,
            "losses": self.losses,
            "best": self.best,
        }

    # ---- its epochs

    def fit(self, validate: Callable[[Method], Metrics | None]) -> int:
        """Train the epochs that are left; the exit status (128 + its number after a signal).

        validate: metrics of a method, among them map_all, which chooses the best checkpoint; None:
        the last epoch counts as the best.
        """
        if self.is_finished:
            log.info("%s: has finished its %d epochs already.", self.folder.path, self.epoch)
            return 0
        with self.stop.noted():
            return self._finished() if self._train(validate) else self._stopped()

    def _train(self, validate: Callable[[Method], Metrics | None]) -> bool:
        """Train to the end of all epochs or to a signal; whether the end was reached."""
        model = self._parallel()
        if self.tensorboard and self.folder.writes:
            step = self.epoch * self.sampler.steps + self.step
            self.board = Board(self.folder.path / "tensorboard", step)
        if self.resumed:
            log.info("resumes in epoch %d after step %d", self.epoch + 1, self.step)
        else:
            self.method.before_training()
            self._save(LAST)  # shows at once whether there is room, and lets --resume begin
        first_epoch, finished = self.epoch, True
        while finished and not self.is_finished:
            with self._explained():
                finished = self._train_epoch(model)
                self._save(LAST)
                finished = finished and self._close_epoch(validate, first_epoch)
        return finished

    def _parallel(self) -> torch.nn.Module:
        """The module that the loop trains: DDP where there are several processes."""
        if self.settings.compile:
            self.method.compile()
        if world_size() == 1:
            return self.method
        return DistributedDataParallel(self.method, gradient_as_bucket_view=True)

    def _train_epoch(self, model: torch.nn.Module) -> bool:
        """Train to the end of the epoch or to a signal; whether the end was reached."""
        sampler, before = self.sampler, self.draws
        sampler.epoch, sampler.first_draw = self.epoch, before
        first = sampler.first_step
        if before == 0:
            self.losses = {}

        def after_step(step: int) -> None:
            self.step, self.draws = step, before + (step - first) * sampler.draws_a_step
            if self.average:
                self.average.update_parameters(self.method)
            if time.monotonic() - self.saved >= 60 * self.save_minutes:
                self._save(LAST)

        result = train_one_epoch(
            model,
            self.batches,
            self.optimizer,
            self.settings,
            device=self.device,
            epoch=self.epoch,
            steps=sampler.steps,
            first_step=first,
            normalise=self.preprocessing.normalise,
            skip_bad=self.skip_bad,
            hooks=Hooks(self._seed, after_step, lambda: self.stop.received, self._report),
        )
        self.losses = result.losses or self.losses  # of before, where no step was left to do
        self.unreadable |= result.unreadable
        return result.finished

    def _seed(self, step: int) -> None:
        seed_step(self.seed, self.epoch, step, rank())

    def _report(self, step: int, speed: dict, losses: dict) -> None:
        steps = self.sampler.steps
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        figures = {"learning_rate": rate, **speed}
        line = {"kind": "steps", "epoch": self.epoch + 1, "step": step, "steps": steps}
        self.folder.add_metrics({**line, **losses, **figures})
        if self.board:
            shown = {**{f"loss/{name}": value for name, value in losses.items()}, **figures}
            self.board.add(self.epoch * steps + step, shown)

    def _close_epoch(self, validate: Callable, first_epoch: int) -> bool:
        """Validate and save. False after a signal: the epoch then stays open."""
        started = time.monotonic()
        try:
            with self.stop.at_once():
                metrics = validate(self.best_method)
        except KeyboardInterrupt:
            return False
        former = (self.best or {}).get("map_all")
        better = not metrics or former is None or metrics["map_all"] > former
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
        self._log_epoch(metrics, better, first_epoch)
        wait_for_all()
        return True

    def _log_epoch(self, metrics: Metrics | None, better: bool, first_epoch: int) -> None:
        scored = f"validation map_all:{metrics['map_all']:.4f}" if metrics else "not validated"
        losses = " ".join(f"{name}:{value:.4f}" for name, value in self.losses.items())
        mark = " (best so far)" if better and metrics else ""
        of_epoch = (time.monotonic() - self.started) / (self.epoch - first_epoch)
        left = duration(of_epoch * (self.settings.epochs - self.epoch))
        place = f"epoch {self.epoch} of {self.settings.epochs}"
        log.info("%s: %s, %s%s; %s left", place, losses, scored, mark, left)

    def _save(self, name: str, metrics: Metrics | None = None) -> None:
        """Write a checkpoint. Raises InputError where weights are not finite."""
        if not self.folder.writes:
            return
        resumable = name == LAST
        state = self.state_dict() if resumable else self._progress()
        scores = {score: metrics[score] if metrics else None for score in SCORES}
        checkpoint = checkpoint_of(self.method if resumable else self.best_method, resumable)
        self.folder.save(name, {**checkpoint, **state, **self.facts, "metrics": metrics, **scores})
        self.saved = time.monotonic()

    # ---- how it ends

    def _finished(self) -> int:
        """See that all is on the disk, and log where; the exit status."""
        self.folder.save_rest(give_up=lambda: self.stop.received)
        self._close_board()
        best_file, best = self.folder.path / BEST, self.best
        if self.unreadable:
            log.warning("%d unreadable files were skipped.", len(self.unreadable))
        if self.folder.writes and not best_file.is_file():
            log.warning("%s has gone since it was written.", best_file)
        scored = f", validation map_all {best['map_all']:.4f}" if "map_all" in best else ""
        log.info(
            "Finished in %s. Best checkpoint: %s (epoch %d%s)",
            *(duration(self.seconds), best_file, best["epoch"], scored),
        )
        return 0

    def _stopped(self) -> int:
        """Log how to go on after a signal; the exit status."""
        where = f"in epoch {self.epoch + 1} after step {self.step}"
        if LAST in self.folder.unsaved:
            raise InputError(f"stopped by a signal {where}, which could not be saved; see above.")
        self._close_board()
        log.info("Stopped by a signal %s; saved. Go on with the same command and --resume.", where)
        return 128 + (self.stop.number or signal.SIGTERM)  # another process has received it

    def _close_board(self) -> None:
        if self.board:
            self.board.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Within: errors that have a cause outside the code become sentences for the user."""
        try:
            yield
        except NonFiniteLossError as error:
            raise self._described(error) from error
        except (RuntimeError, MemoryError) as error:
            last = self.folder.path / LAST
            explained = explain_error(error, self.device, last)
            if explained is None:
                raise
            raise explained from error

    def _described(self, error: NonFiniteLossError) -> InputError:
        """The same error, with losses and files in a JSON file."""
        files = [str(self.images.file(number)) for number in error.numbers]
        found = gather_objects({"losses": error.losses, "files": files})
        content = {"epoch": self.epoch + 1, "step": error.step, "processes": found}
        try:
            self.folder.describe(NOT_FINITE, content)
        except InputError as refused:
            return InputError(f"{error} {refused}")
        return InputError(f"{error} Losses and files: {self.folder.path / NOT_FINITE}.")


def _check_memory(settings: TrainingSettings, size: int) -> None:
    """Raise InputError where the images of a step cannot be in memory. size: of an image, in px."""
    of_draw = 4 if settings.draws == "triplets" else 2 * settings.per_class
    images = settings.accumulate * settings.batch * of_draw
    needed = images * 3 * size**2 * (1 + 4)  # as bytes, and as numbers
    if needed > machine_memory():
        raise InputError(
            f"a step of {images:,} images takes {needed / 1e9:,.0f} GB for these alone, and this "
            f"machine has {machine_memory() / 1e9:,.0f} GB. Lower --batch, --per_class or "
            "--accumulate."
        )
