"""train_one_epoch(): the only training loop."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from model.settings import TrainingSettings
from utils.distributed import any_process, mean_over_processes
from utils.errors import InputError
from utils.logs import log, progress
from utils.precision import DTYPES, half_where_safe
from utils.world import is_main, world_size

STEPS_BETWEEN_REPORTS = 50
WARM_UP = 0.1  # share of the training over which the cosine schedule rises

Losses = dict[str, Tensor]


@dataclass
class EpochResult:
    """What an epoch (or what was left of it) did.

    steps: optimiser steps since the start of the epoch, earlier runs' included. finished: whether
    the epoch was completed. losses: means over this run's steps. unreadable: a sentence a file.
    """

    steps: int
    finished: bool
    losses: dict[str, float] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)


class NonFiniteLossError(InputError):
    """A loss was nan or infinite; its optimiser step was not done.

    step: its number in the epoch, from 1. losses: of each batch of the step, in this process.
    numbers: of the images of those batches in the training list.
    """

    def __init__(self, epoch: int, step: int, losses: list[Losses], numbers: list[int]):
        losses = [{name: value.item() for name, value in part.items()} for part in losses]
        bad = {name for part in losses for name, value in part.items() if not math.isfinite(value)}
        named = ", ".join(name for name in losses[0] if name in bad) or "of another process"
        super().__init__(
            f"epoch {epoch + 1}, step {step}: the loss {named} is no longer finite; that step was "
            "not done. Lower --learning_rate, limit the gradient with --clip 1, or use --amp off; "
            "the checkpoints are from before."
        )
        self.step, self.losses, self.numbers = step, losses, numbers


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[dict],
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    *,
    device: torch.device,
    epoch: int,
    steps: int,
    first_step: int = 0,
    normalise: Callable[[Tensor], Tensor] = lambda levels: levels,
    skip_bad: bool = False,
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[int, dict[str, float], dict[str, float]], None] = lambda *_: None,
) -> EpochResult:
    """Optimise a method (or DDP around one) over the batches of one epoch.

    settings: epochs, schedule, amp (in utils.precision.DTYPES), accumulate, clip. epoch: from 0.
    steps: in a whole epoch; first_step: where `batches` begins. normalise: levels of pictures, on
    the device -> input of the network. before_step: called with the steps of the epoch done so far,
    after_step with one more. stop: called in each step; True ends the epoch after it. report:
    called with the step; with images_per_second, data_wait (share of the time) and gradient_norm
    (of the last step); and with mean losses since the last report. Raises InputError for an
    unreadable file (unless skip_bad) and NonFiniteLossError.
    """
    method = model.module if hasattr(model, "module") else model
    model.train()
    result = EpochResult(steps=first_step, finished=first_step == steps)
    of_epoch, of_report = _Means(), _Means()
    clock = _Clock()
    grouped = _grouped(batches, settings.accumulate)
    shown = progress(grouped, steps - first_step, f"epoch {epoch + 1} of {settings.epochs}")
    for parts in clock.waits(shown if is_main() else grouped):
        before_step(result.steps)
        for part in parts:
            _note_unreadable(part, skip_bad, result.unreadable)
        numbers = [number for part in parts for number in _pop_numbers(part)]
        parts = [on_device(part, device, normalise) for part in parts]
        clock.images += sum(len(t) for part in parts for t in part.values() if t.dim() == 4)
        set_rates(optimizer, settings, (epoch + (result.steps + 0.5) / steps) / settings.epochs)
        optimizer.zero_grad(set_to_none=True)
        done = (epoch + result.steps / steps) / settings.epochs
        losses, finite = _find_gradient(model, parts, done, device, DTYPES[settings.amp])
        stopping, bad = any_process(stop(), not finite)
        if bad:
            raise NonFiniteLossError(epoch, result.steps + 1, losses, numbers)
        result.finished = result.steps + 1 == steps
        reported = result.finished or (result.steps + 1) % STEPS_BETWEEN_REPORTS == 0
        norm = _gradient_norm(method, settings.clip) if settings.clip or reported else None
        optimizer.step()
        result.steps += 1
        method.after_step(epoch * steps + result.steps)
        after_step(result.steps)
        for part in losses:
            of_epoch.add(part)
            of_report.add(part)
        if reported:
            means = of_report.pop()  # waits for the device
            report(result.steps, {**clock.pop(), "gradient_norm": norm.item()}, means)
        if stopping:
            break
    result.losses = of_epoch.pop()
    return result


def on_device(batch: dict, device: torch.device, normalise: Callable) -> dict[str, Tensor]:
    """A batch as input of the network: on the device, with pictures normalised."""
    there = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: normalise(t) if t.dim() == 4 else t for name, t in there.items()}


def losses_of(
    model: nn.Module, batch: dict, progress: float, device: torch.device, dtype: torch.dtype
) -> Losses:
    """The losses of a batch on the device; the network runs in dtype where that is safe."""
    with half_where_safe(device, dtype):
        return model(batch, progress)


def set_rates(optimizer: torch.optim.Optimizer, settings: TrainingSettings, done: float) -> None:
    """Set each group's learning rate. done: share of the training before the middle of a step."""
    share = rate_at(settings.schedule, done)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * share


def rate_at(schedule: str, done: float) -> float:
    """The share of the full learning rate after the share `done` of the training, both in [0, 1].

    constant: always 1. cosine: rises in a line over the first tenth, and falls along a half cosine.
    """
    if schedule == "constant":
        return 1.0
    rise = min(1.0, done / WARM_UP)
    return rise * (1 + math.cos(math.pi * done)) / 2


class _Means:
    """Running means of losses, left on the device until they are read."""

    def __init__(self):
        self.sums: Losses = defaultdict(float)
        self.count = 0

    def add(self, losses: Losses) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value.detach()
        self.count += 1

    def pop(self) -> dict[str, float]:
        """The means over steps and processes; starts again from nothing."""
        means = {n: mean_over_processes(s / self.count).item() for n, s in self.sums.items()}
        self.__init__()
        return means


class _Clock:
    """Images a second in all processes, and the share of the time in which no batch was there."""

    def __init__(self):
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()

    def waits(self, items: Iterable) -> Iterator:
        """The items; the time until each one comes is added up."""
        items, before = iter(items), time.monotonic()
        for item in items:
            self.waited += time.monotonic() - before
            yield item
            before = time.monotonic()

    def pop(self) -> dict[str, float]:
        """The figures; starts again from nothing."""
        passed = time.monotonic() - self.since
        speed = world_size() * self.images / passed
        figures = {"images_per_second": speed, "data_wait": self.waited / passed}
        self.__init__()
        return figures


class _Finite:
    """Whether a loss is finite, copied from a GPU while it still computes the backward pass."""

    def __init__(self, loss: Tensor):
        self.answer, self.copied = loss.detach().isfinite(), None
        if loss.device.type == "cuda":
            here = torch.empty((), dtype=torch.bool, pin_memory=True)
            self.answer = here.copy_(self.answer, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def __bool__(self) -> bool:
        if self.copied:
            self.copied.synchronize()
        return bool(self.answer)


def _grouped(batches: Iterable[dict], count: int) -> Iterator[list[dict]]:
    """The batches of a step at a time."""
    batches = iter(batches)
    while parts := list(islice(batches, count)):
        yield parts


def _find_gradient(
    model: nn.Module, parts: list[dict], progress: float, device: torch.device, dtype: torch.dtype
) -> tuple[list[Losses], bool]:
    """Add the mean gradient of some batches to the parameters'; losses, and if all are finite."""
    losses, finite = [], []
    for number, batch in enumerate(parts, start=1):
        shared = number == len(parts) or not hasattr(model, "no_sync")
        with nullcontext() if shared else model.no_sync():
            losses.append(losses_of(model, batch, progress, device, dtype))
            finite.append(_Finite(losses[-1]["total"]))
            (losses[-1]["total"] / len(parts)).backward()
    return losses, all(finite)


def _gradient_norm(method: nn.Module, clip: float) -> Tensor:
    """The norm of the whole gradient, which is then scaled down to `clip` where that is not 0."""
    parameters = [p for p in method.parameters() if p.grad is not None]
    if clip:
        return nn.utils.clip_grad_norm_(parameters, clip)
    return nn.utils.get_total_norm([p.grad for p in parameters])


def _pop_numbers(batch: dict) -> list[int]:
    """Remove the numbers of a batch's images from it, and return them."""
    kinds = ("sketch_numbers", "photo_numbers")
    return [number for kind in kinds if kind in batch for number in batch.pop(kind).tolist()]


def _note_unreadable(batch: dict, skip_bad: bool, known: set[str]) -> None:
    """Remove the sentences about unreadable files from a batch, and log each once."""
    sentences = batch.pop("unreadable")
    if sentences and not skip_bad:
        raise InputError(f"{sentences[0]} Mend the file, or go on without such with --skip_bad.")
    for sentence in sentences:
        if sentence not in known:
            log.warning("skipped: %s", sentence)
    known.update(sentences)
    if not batch:
        raise InputError(f"no draw without an unreadable file was found; the last: {sentences[-1]}")
