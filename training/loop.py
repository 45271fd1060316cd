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
WARM_UP = 0.1  # share of the training in which a factor of the cosine schedule rises

PICTURES = ("sketches", "photos")

Losses = dict[str, Tensor]


@dataclass
class EpochResult:
    """What an epoch (or what was left of it) did.

    steps: optimiser steps since the start of the epoch, those of earlier runs too; of: how many it
    has. losses: means over the steps of this run. unreadable: a sentence for each such file.
    """

    steps: int
    of: int
    losses: dict[str, float] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        """Whether the epoch is at its end."""
        return self.steps == self.of


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


@dataclass(frozen=True)
class Hooks:
    """What train_one_epoch() calls.

    before_step: with the number of steps of the epoch that are done; after_step: with one more.
    stop: once in each step; True ends the epoch after it. report: with the number of steps done;
    with images_per_second, data_wait (share of the time) and gradient_norm (of the last step); and
    with the mean losses since the last report.
    """

    before_step: Callable[[int], None]
    after_step: Callable[[int], None]
    stop: Callable[[], bool]
    report: Callable[[int, dict[str, float], dict[str, float]], None]


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[dict],
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    *,
    device: torch.device,
    epoch: int,
    steps: int,
    first_step: int,
    normalise: Callable[[Tensor], Tensor],
    skip_bad: bool,
    hooks: Hooks,
) -> EpochResult:
    """Optimise a method (or DDP around one) over the batches of one epoch.

    settings: epochs, schedule, amp (in utils.precision.DTYPES), accumulate, clip. epoch: from 0.
    steps: in a whole epoch; first_step: where `batches` begins. normalise: levels of pictures, on
    the device -> input of the network. Raises InputError for an unreadable file (unless skip_bad)
    and NonFiniteLossError.
    """
    method = model.module if hasattr(model, "module") else model
    model.train()
    result = EpochResult(steps=first_step, of=steps)
    of_epoch, of_report, clock = _Means(), _Means(), _Clock()
    for parts in clock.waits(_by_steps(batches, settings, epoch, steps - first_step)):
        hooks.before_step(result.steps)
        parts, numbers = _opened(parts, device, normalise, skip_bad, result.unreadable)
        start, middle = ((epoch + (result.steps + i) / steps) / settings.epochs for i in (0, 0.5))
        set_rates(optimizer, settings, middle)
        optimizer.zero_grad(set_to_none=True)
        losses, finite = _find_gradient(model, parts, start, device, DTYPES[settings.amp])
        stopping, bad = any_process(hooks.stop(), not finite)
        if bad:
            raise NonFiniteLossError(epoch, result.steps + 1, losses, numbers)
        reported = result.steps + 1 == steps or (result.steps + 1) % STEPS_BETWEEN_REPORTS == 0
        norm = _gradient_norm(method, settings.clip) if settings.clip or reported else None
        optimizer.step()
        result.steps += 1
        method.after_step(epoch * steps + result.steps)
        hooks.after_step(result.steps)
        of_epoch.add(losses)
        of_report.add(losses)
        if reported:
            means = of_report.pop()  # waits for the device
            hooks.report(result.steps, {**clock.pop(), "gradient_norm": norm.item()}, means)
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
    """Set the learning rate of each group. done: share of the training, at the middle of a step."""
    share = rate_at(settings.schedule, done)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * share


def rate_at(schedule: str, done: float) -> float:
    """The share of the full learning rate after the share `done` of the training, both in [0, 1].

    constant: 1 throughout. cosine: half a cosine that falls from 1 to 0 over the whole training,
    times a factor that rises in a line from 0 to 1 over the share WARM_UP of it.
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

    def add(self, losses: list[Losses]) -> None:
        """Count those of each batch of a step."""
        for part in losses:
            for name, value in part.items():
                self.sums[name] = self.sums[name] + value.detach()
        self.count += len(losses)

    def pop(self) -> dict[str, float]:
        """The means over batches and processes since the last call."""
        means = {n: mean_over_processes(s / self.count).item() for n, s in self.sums.items()}
        self.__init__()
        return means


class _Clock:
    """Images a second in all processes, and the share of the time in which no batch was there."""

    def __init__(self):
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()

    def waits(self, steps: Iterable[list[dict]]) -> Iterator[list[dict]]:
        """The batches of each step; counts the time until they come, and their images."""
        before = time.monotonic()
        for parts in steps:
            self.waited += time.monotonic() - before
            self.images += sum(len(part.get(kind, ())) for part in parts for kind in PICTURES)
            yield parts
            before = time.monotonic()

    def pop(self) -> dict[str, float]:
        """The figures since the last call."""
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


def _by_steps(
    batches: Iterable[dict], settings: TrainingSettings, epoch: int, steps: int
) -> Iterator[list[dict]]:
    """The batches of each of so many steps; the first process shows how far it is."""
    batches = iter(batches)
    grouped = iter(lambda: list(islice(batches, settings.accumulate)), [])
    if not is_main():
        return grouped
    return progress(grouped, steps, f"epoch {epoch + 1} of {settings.epochs}")


def _find_gradient(
    model: nn.Module, parts: list[dict], progress: float, device: torch.device, dtype: torch.dtype
) -> tuple[list[Losses], bool]:
    """Add to the gradient of the parameters that of the mean loss of some batches.

    Returns the losses of each batch, and whether all their totals are finite.
    """
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


def _opened(
    parts: list[dict], device: torch.device, normalise: Callable, skip_bad: bool, known: set[str]
) -> tuple[list[dict[str, Tensor]], list[int]]:
    """The batches of a step as input of the network, and the numbers of all their images.

    known: sentences about unreadable files, to which theirs are added.
    """
    for part in parts:
        _note_unreadable(part, skip_bad, known)
    numbers = [number for part in parts for number in _pop_numbers(part)]
    return [on_device(part, device, normalise) for part in parts], numbers


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
