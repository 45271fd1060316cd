"""A method without a network, image lists and processes for the tests of retrieval/."""

import pickle
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets.benchmark import ImageList
from model.method import Method
from model.settings import TrainingSettings, setting
from retrieval import encoder, evaluate
from retrieval.encoder import Encoder
from utils.errors import InputError
from utils.precision import dtype_of


@dataclass(frozen=True)
class FakeSettings(TrainingSettings):
    method = "fake"

    width: int = setting(6, "numbers of a vector", rebuilds=True)


class FakeMethod(nn.Module):
    """Features are a picture's whole numbers times a weight, so that sums are exact and tie often.

    encoded: the number of each image that was encoded, by modality; prepared: how many times one
    was made ready for pairs; pairs: how many were scored.
    """

    name = "fake"
    training_only = ("teacher.",)
    pair_features = ("tokens",)
    without_training = Method.without_training

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.dropout = nn.Dropout(0.5)
        self.settings = FakeSettings()
        self.inputs = {"size": 2, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": True}
        self.encoded = {"sketch": [], "photo": []}
        self.prepared = {"sketch": 0, "photo": 0}
        self.pairs = 0

    def encode(self, images, modality):
        """'retrieval' (B, 6) and 'tokens' (B, 2, 3)."""
        self.encoded[modality] += images[:, 0, 0, 0].long().tolist()
        vectors = self.dropout(images[:, 1:].flatten(1)[:, :6] * self.weight)
        return {"retrieval": vectors, "tokens": vectors.unflatten(1, (2, 3)), "unwanted": images}

    def similarity(self, queries, gallery):
        return queries["retrieval"] @ gallery["retrieval"].T

    def pair_similarity(self, queries, gallery):
        """Minus the largest distance between tokens of the two; not a function of dot products."""
        self.pairs += len(queries["tokens"]) * len(gallery["tokens"])
        distance = queries["tokens"][:, None, :, None] - gallery["tokens"][None, :, None]
        return -distance.abs().sum(dim=-1).amax(dim=(2, 3))

    def pair_scorer(self, dtype, compiled=False):
        self.scored_in = dtype
        return FakePairScorer(self, dtype)


class FakePairScorer:
    """The scores of pairs, which refuses what it has not prepared."""

    def __init__(self, method, dtype):
        self.method = method
        self.dtype = dtype

    def prepare(self, features, modality):
        self.method.prepared[modality] += len(features["tokens"])
        tokens = features["tokens"].to(self.dtype)
        return {"retrieval": features["retrieval"], f"{modality} tokens": tokens}

    def __call__(self, queries, gallery):
        sketches, photos = queries["sketch tokens"].float(), gallery["photo tokens"].float()
        return self.method.pair_similarity({"tokens": sketches}, {"tokens": photos})


def picture(file, modality):
    """The levels of an image: its number, then whole numbers drawn from its name."""
    if "broken" in file.name:
        raise InputError(f"{file}: unreadable (broken).")
    random = np.random.default_rng(zlib.crc32(file.name.encode()))
    numbers = torch.tensor(random.integers(-2, 3, size=(3, 2, 2)), dtype=torch.float32)
    numbers[0] = int(file.stem.split("-")[0])
    return numbers


class FakePreprocessing:
    """Images as `levels` makes them, without a file."""

    def __init__(self, levels=picture):
        self.levels = levels

    def normalise(self, levels):
        return levels


CPU = torch.device("cpu")


@dataclass
class FakeEncoder(Encoder):
    """An encoder, on the CPU, of pictures as `levels` makes them."""

    device: torch.device = CPU
    levels: Callable = picture

    @property
    def preprocessing(self):
        return FakePreprocessing(self.levels)


def encoder_and_settings(method, settings):
    """An encoder with its part of the settings of an evaluation, and the others."""
    settings = dict(settings)
    of_encoder = {"dtype": dtype_of(settings.pop("amp", "off"), torch.device("cpu"))}
    names = ("workers", "skip_bad", "views", "store", "precision", "levels")
    of_encoder |= {name: settings.pop(name) for name in names if name in settings}
    return FakeEncoder(method, **of_encoder), settings


def image_list(modality, targets, broken=()):
    """Images number 0, 1, ... of one modality with these targets; the broken ones unreadable."""
    names = [f"{i}-{'broken' if i in broken else modality}.png" for i in range(len(targets))]
    return ImageList(
        root=Path("data"),
        path=np.array([f"{modality}/{name}" for name in names], dtype=object),
        class_name=np.array([f"class {target}" for target in targets], dtype=object),
        target=np.array(targets, dtype=np.int64),
        modality=np.array([modality] * len(targets), dtype=object),
        origin=np.array([f"{modality}s.txt, line {i + 1}" for i in range(len(targets))], object),
        location=np.array([""] * len(targets), dtype=object),
    )


def on_disk(images, root):
    """The same list, whose files lie below `root`, each of other bytes."""
    images = replace(images, root=root)
    for number in range(len(images)):
        images.file(number).parent.mkdir(parents=True, exist_ok=True)
        images.file(number).write_bytes(b"picture %d" % number)
    return images


class World:
    """The processes of torchrun, played by threads that meet as utils/distributed.py has it."""

    SECONDS = 10  # without the others; real processes would wait for ever

    def __init__(self, size):
        self.size = size
        self.here = threading.local()
        self.meeting = threading.Barrier(size, timeout=self.SECONDS)
        self.brought = {}

    def run(self, monkeypatch, work):
        """The results of work(rank) in all processes, an exception where it ends with one."""
        played = {
            "rank": lambda: self.here.rank,
            "world_size": lambda: self.size,
            "is_main": lambda: self.here.rank == 0,
            "gather_objects": self._gather,
            "from_main": lambda content: self._gather(content)[0],
            "broadcast": lambda tensor, source: tensor.copy_(self._gather(tensor)[source]),
            "tf32": lambda allowed: nullcontext(),  # a setting of the process, which threads share
        }
        with monkeypatch.context() as patch, ThreadPoolExecutor(self.size) as pool:
            for module in (encoder, evaluate):
                for name in vars(module).keys() & played.keys():
                    patch.setattr(module, name, played[name])
            ends = [pool.submit(self._start, number, work) for number in range(self.size)]
            return [end.exception() or end.result() for end in ends]

    def _start(self, number, work):
        self.here.rank = number
        return work(number)

    def _gather(self, content):
        self.meeting.wait()  # the former round is over
        self.brought[self.here.rank] = pickle.dumps(content)
        self.meeting.wait()
        return [pickle.loads(self.brought[number]) for number in range(self.size)]
