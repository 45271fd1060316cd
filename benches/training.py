"""How fast training is: from image files to batches, and through whole steps.

"Plain" training is that of the network in plain_network.py, in fp32, with AdamW's default
implementation, and memory that goes back to the system.
"""

import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from benches.figures import megabytes, peaks_of
from benches.noise import draw_noise_classes
from benches.plain_network import make_plain
from datasets.images import Preprocessing
from model import build_model
from options import train_options
from training.batches import EpochSampler, build_batches
from training.loop import losses_of, on_device
from training.optimizer import build_optimizer
from utils.memory import keep_freed_memory
from utils.precision import DTYPES, tf32, trainable
from utils.speed import median_seconds, operations_of

NOISE = 64  # image files
HALF = (0.5, 0.5, 0.5)
LOADER_BATCH = 16  # sketches, and photos
LOADER_REPEAT = 3  # measurements, of which the median counts
SEED = 0


def loader(args: Namespace, device: torch.device) -> dict:
    """Images a second from files to batches: of a plain dataset, as training does, and cached."""
    preprocessing, figures = Preprocessing(args.side, HALF, HALF, crop=True, draft=True), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as data workers have
    with tempfile.TemporaryDirectory() as folder:
        images = draw_noise_classes(Path(folder), args.images, SEED, args.size)
        for workers in sorted({0, args.num_workers}):
            loaders = _loaders(args, images, preprocessing, workers)
            speeds = {}
            for name, batches in loaders.items():
                count = _count(batches)
                seconds = median_seconds(lambda b=batches: _count(b), device, LOADER_REPEAT)
                speeds[name] = count / seconds / max(1, workers)
            place = f"{workers} worker(s)" if workers else "in this process"
            figures |= {f"images/s a worker, {place}, {n}": s for n, s in speeds.items()}
            for name in ("ours", "cached"):
                figures[f"times plain, {place}, {name}"] = speeds[name] / speeds["plain"]
        kept = sum(file.stat().st_size for file in Path(folder).glob("*.pictures"))
    torch.set_num_threads(threads)
    return {**figures, "cache: bytes an image": kept / len(images)}


def _loaders(args: Namespace, images, preprocessing, workers: int) -> dict:
    """Three ways to the same pictures, in batches of as many; the cache is filled."""
    size = min(LOADER_BATCH, args.images // 2)
    settings = {"seed": SEED, "skip_bad": False, "augmentation": args.augment}

    def ours(cache: Path | None) -> DataLoader:
        sampler = EpochSampler(args.images // 2, size)
        more = {"draw_settings": settings, "workers": workers, "cache_images": cache}
        return build_batches("classes", images, preprocessing, sampler, **more)

    plain = PlainImages(images, preprocessing)
    more = {"num_workers": workers, "persistent_workers": workers > 0, "drop_last": True}
    cached = ours(images.root)
    for number in range(len(images)):
        cached.dataset.cache.read(number)
    return {"plain": DataLoader(plain, 2 * size, **more), "ours": ours(None), "cached": cached}


def _count(batches) -> int:
    """The number of pictures of an epoch; each batch is freed before the next one comes."""
    count = 0
    for batch in batches:
        parts = [batch["sketches"], batch["photos"]] if isinstance(batch, dict) else [batch]
        count += sum(map(len, parts))
    return count


def train(args: Namespace, device: torch.device) -> dict:
    """Images a second through whole steps of training, beside plain ones."""
    dtype = DTYPES[trainable(args.amp, device)]
    figures = peaks_of(device, dtype)
    with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
        training = Steps(args, device, Path(folder))
        operations = operations_of(training.gradient) / training.images
        plain = training.seconds(torch.float32)
        del training
        if device.type == "cpu":
            keep_freed_memory()
        training = Steps(args, device, Path(folder), ours=True)
        with tf32(args.tf32):
            ours = training.seconds(dtype)
    figures |= {"computed in": str(dtype), "images a step": training.images}
    figures["GFLOP an image"] = operations / 1e9
    for name, split, kind in (("", ours, dtype), ("plain: ", plain, torch.float32)):
        speed = training.images / sum(split.values())
        figures[f"{name}images/s"] = speed
        figures |= {f"{name}ms a step, {part}": 1e3 * value for part, value in split.items()}
        figures[f"{name}share of {kind} peak"] = (
            speed * operations / figures[f"peak GFLOP/s {kind}"] / 1e9
        )
    figures["peak memory MB"] = megabytes(device)
    return {**figures, "times plain": sum(plain.values()) / sum(ours.values())}


class Steps:
    """A network in training on noise, with the settings of a recipe.

    ours: with all that train.py does for speed. images: sketches and photos of a step.
    """

    def __init__(self, args: Namespace, device: torch.device, folder: Path, ours: bool = False):
        words = ["--recipe", args.recipe, "--vit", args.vit, "--batch", str(args.batch)]
        settings = train_options(words).settings
        torch.manual_seed(SEED)
        self.method = build_model(settings, classes=2).train().to(device)
        if ours and args.checkpoint_blocks:
            self.method.checkpoint_blocks()
        if ours and args.compile:
            self.method.compile()
        self.optimizer = build_optimizer(self.method)
        if not ours:
            make_plain(self.method)
            groups = self.method.parameter_groups()
            self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
        self.preprocessing = Preprocessing(**self.method.inputs)
        self.device, self.steps = device, args.steps
        self.batches = build_batches(
            self.method.batches,
            draw_noise_classes(folder, NOISE, SEED),
            replace(self.preprocessing, draft=True),
            EpochSampler((1 + args.steps) * args.batch, args.batch),
            draw_settings={
                "seed": SEED,
                "skip_bad": False,
                "augmentation": settings.augment,
                "per_class": settings.per_class,
                "own_photo": settings.own_photo,
            },
            workers=args.num_workers,
            pin_memory=device.type == "cuda",
        )
        self.images = 2 * len(next(iter(self.batches))["sketches"])

    def gradient(self) -> None:
        """That of one step, in fp32."""
        batch = self._on_device(next(iter(self.batches)))
        self._losses(batch, torch.float32)["total"].backward()

    def seconds(self, dtype: torch.dtype) -> dict[str, float]:
        """The parts of a step, each the median over the steps after the first."""
        parts, batches = defaultdict(list), iter(self.batches)
        for _ in range(1 + self.steps):
            times = [self._now()]
            batch = self._on_device(next(batches))
            times.append(self._now())
            losses = self._losses(batch, dtype)
            times.append(self._now())
            self.optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            times.append(self._now())
            self.optimizer.step()
            times.append(self._now())
            names = ("waiting for data", "forward", "backward", "optimiser")
            for name, first, last in zip(names, times, times[1:], strict=False):
                parts[name].append(last - first)
        return {name: median(values[1:]) for name, values in parts.items()}

    def _now(self) -> float:
        """The time, once the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _on_device(self, batch: dict) -> dict:
        batch.pop("unreadable")
        return on_device(batch, self.device, self.preprocessing.normalise)

    def _losses(self, batch: dict, dtype: torch.dtype) -> dict:
        return losses_of(self.method, batch, 0.0, self.device, dtype)


class PlainImages:
    """Opens, prepares and normalises an image at each access."""

    def __init__(self, images, preprocessing):
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int):
        return self.images.read(number, self.preprocessing)
