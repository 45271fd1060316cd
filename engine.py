"""train_one_epoch(): the only training loop."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils.distributed import any_process, is_main, mean_over_processes, world_size
from utils.errors import InputError
from utils.logs import log, progress

STEPS_BETWEEN_REPORTS = 50
WARM_UP = 0.1  # share of the training over which the cosine schedule rises


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


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[dict],
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    epoch: int,
    epochs: int,
    steps: int,
    first_step: int = 0,
    schedule: str = "constant",
    amp: str = "off",
    after_step: Callable[[], None] = lambda: None,
    skip_bad: bool = False,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[int, float, dict[str, float]], None] = lambda step, speed, losses: None,
) -> EpochResult:
    """Optimise a method (or DDP around one) over the batches of one epoch.

    epoch: from 0, of `epochs`; steps: in a whole epoch; first_step: where `batches` begins.
    schedule: of the learning rate, see rate_at. amp: "off", or "bf16" for autocast to bfloat16.
    after_step: called after each optimiser step.
    stop: asked after each step; True ends the epoch there. report: called with the step, and with
    the images per second and mean losses since the last report. Raises InputError for an
    unreadable file (unless skip_bad) and for a loss that is not finite.
    """
    method = model.module if hasattr(model, "module") else model
    model.train()
    result = EpochResult(steps=first_step, finished=first_step == steps)
    of_epoch, of_report = _Means(), _Means()
    images, since = 0, time.monotonic()
    shown = progress(batches, steps - first_step, f"epoch {epoch + 1} of {epochs}")
    for batch in shown if is_main() else batches:
        _note_unreadable(batch, skip_bad, result.unreadable)
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        images += world_size() * sum(len(t) for t in batch.values() if t.dim() == 4)
        middle = (epoch + (result.steps + 0.5) / steps) / epochs  # of the step: never 0, never 1
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate_at(schedule, middle)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            losses = model(batch, (epoch + result.steps / steps) / epochs)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        optimizer.step()
        result.steps += 1
        method.after_step(epoch * steps + result.steps)
        after_step()
        of_epoch.add(losses)
        of_report.add(losses)
        result.finished = result.steps == steps
        if result.finished or result.steps % STEPS_BETWEEN_REPORTS == 0:
            means = _finite(of_report.take(), epoch, result.steps)  # waits for the device
            report(result.steps, images / (time.monotonic() - since), means)
            images, since = 0, time.monotonic()
        if any_process(stop(), device):
            break
    result.losses = _finite(of_epoch.take(), epoch, result.steps)
    return result


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
        self.sums: dict[str, Tensor] = defaultdict(float)
        self.count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value.detach()
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes; starts again from nothing."""
        means = {n: mean_over_processes(s / self.count).item() for n, s in self.sums.items()}
        self.__init__()
        return means


def _note_unreadable(batch: dict, skip_bad: bool, known: set[str]) -> None:
    """Take the sentences about unreadable files out of a batch and tell them, each once."""
    sentences = batch.pop("unreadable")
    if sentences and not skip_bad:
        raise InputError(f"{sentences[0]} Mend the file, or go on without such with --skip_bad.")
    for sentence in sentences:
        if sentence not in known:
            log.warning("skipped: %s", sentence)
    known.update(sentences)
    if not batch:
        raise InputError(f"no draw without an unreadable file was found; the last: {sentences[-1]}")


def _finite(losses: dict[str, float], epoch: int, step: int) -> dict[str, float]:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"epoch {epoch + 1}, step {step}: the loss {', '.join(bad)} is no longer finite. Lower "
            "--learning_rate; the checkpoint of the last whole epoch is untouched."
        )
    return losses
