"""Gallery: photos encoded once, kept on disk, and asked with sketches (built in building.py)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrieval.blocks import block_sizes
from retrieval.features import Encoder, Features
from retrieval.index import Index, Nearest, compares_cosines, has_gpu, load_faiss
from retrieval.rows import check_weights, open_rows, read_gallery, read_vectors
from retrieval.scoring import Scorer, check_mode
from utils.errors import InputError
from utils.precision import tf32

ON_DEMAND = 256  # sketches at a time where photos are encoded for them


@dataclass(frozen=True)
class Answer:
    """What was found for a sketch.

    sketch: its number in the list. photos: paths below the gallery's folder of photos, closest
    first. scores: larger is closer; nan behind a shortlist. milliseconds: its share of its block's
    "encode" and "compare".
    """

    sketch: int
    photos: list[str]
    scores: list[float]
    milliseconds: dict[str, float]


class Gallery:
    """A gallery on disk, ready to be asked.

    encoder: its method must have the weights that the gallery was built with, and is put into
    evaluation mode. Raises InputError where it has others, or where files of the gallery are absent
    or damaged. images: from paths below a root and a modality to an image list.
    """

    def __init__(self, folder: Path, encoder: Encoder, image_list: Callable):
        self.folder = folder
        self.content = read_gallery(folder)
        check_weights(folder, self.content, encoder.weights)
        self.encoder = encoder
        self.root = Path(self.content["root"])
        self.paths = np.array(self.content["photos"]["path"], dtype=object)
        self.images = image_list(self.root, list(self.paths), "photo")
        self.rows = np.array(self.content["photos"]["row"], dtype=np.int64)
        self.vectors = read_vectors(folder, self.content)
        self.tokens = open_rows(folder, self.content, "tokens") if self.content["tokens"] else None
        self.kind = self.content["index"]["kind"]
        self.index = self._opened_index()
        self.scorers: dict[tuple, Scorer] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @torch.inference_mode()
    def search(
        self, sketches, k: int, mode: str = "sa", shortlist: int = 200, at_a_time: int | None = None
    ) -> tuple[list[Answer], list[str]]:
        """The k closest photos of each readable sketch; what was wrong with the other ones.

        mode, shortlist: see scoring.py. at_a_time: sketches; None: what suits the memory.
        """
        check_mode(self.encoder.method, mode)
        self.encoder.method.eval()
        size = at_a_time or self._sketches_at_a_time(mode)
        keep = ("retrieval",) if mode == "sa" else ("retrieval", "tokens")
        encoder = replace(self.encoder, skip_bad=True, cache=None, keep=keep)
        scorer = self._scorer(mode, shortlist)
        answers, bad = [], []
        with tf32(allowed=False):
            began = time.perf_counter()
            for numbers, features, faults in encoder.blocks(sketches, size, "sketches"):
                encoded = time.perf_counter()
                bad += faults
                if numbers:
                    photos, scores = scorer.order(features).best(k)
                    found = photos.cpu().numpy(), scores.cpu().tolist()
                    done = time.perf_counter()
                    shares = (encoded - began) / len(numbers), (done - encoded) / len(numbers)
                    answers += self._answers(numbers, *found, shares)
                began = time.perf_counter()
        return answers, bad

    def _answers(
        self,
        numbers: list[int],
        photos: np.ndarray,
        scores: list[list[float]],
        seconds: tuple[float, float],
    ) -> Iterator[Answer]:
        taken = dict(zip(("encode", "compare"), (round(1e3 * s, 3) for s in seconds), strict=True))
        for sketch, found, values in zip(numbers, photos, scores, strict=True):
            yield Answer(sketch, self.paths[found].tolist(), values, taken)

    def _scorer(self, mode: str, shortlist: int) -> Scorer:
        if (mode, shortlist) not in self.scorers:
            device, dtype = self.encoder.device, self.encoder.dtype
            method = self.encoder.method
            pairs = mode != "sa"
            _, block = block_sizes(method, device, dtype, photos=len(self), pairs=pairs)
            scorer = Scorer(
                method,
                {"retrieval": self.vectors},
                self.paths,
                mode=mode,
                fuse=0.0,
                expand=0,
                shortlist=shortlist,
                block=block,
                dtype=dtype,
                compiled=False,
                device=device,
                tokens=self._tokens if pairs else None,
                nearest=lambda sketches: Nearest(
                    self.index, method.similarity, sketches, scorer.vectors, scorer.places
                ),
            )
            self.scorers[mode, shortlist] = scorer
        return self.scorers[mode, shortlist]

    def _sketches_at_a_time(self, mode: str) -> int:
        device, dtype, pairs = self.encoder.device, self.encoder.dtype, mode != "sa"
        method = self.encoder.method
        size, _ = block_sizes(method, device, dtype, photos=len(self), pairs=pairs)
        return max(size, ON_DEMAND) if pairs and self.tokens is None else size

    def _tokens(self, numbers: Tensor) -> Features:
        """Tokens of photos by their numbers: kept, or encoded now."""
        if self.tokens is not None:
            return {"tokens": torch.from_numpy(self.tokens[self.rows[numbers.numpy()]])}
        photos = self.images.select(numbers.numpy())
        encoder = replace(self.encoder, skip_bad=True, cache=None, keep=("retrieval", "tokens"))
        ((_, features, faults),) = encoder.blocks(photos, len(photos), "photos of the shortlist")
        if faults:
            raise InputError(f"{faults[0]} Bring the gallery up to date: retrieve.py index.")
        return {"tokens": features["tokens"]}

    def _opened_index(self) -> Index | None:
        """None where all photos are compared: by wish of the method, or on a GPU, which is fast."""
        faiss = load_faiss() if compares_cosines(self.encoder.method) else None
        on_gpu = self.encoder.device.type == "cuda"
        if faiss is None or (self.kind == "exact" and on_gpu and not has_gpu(faiss)):
            return None
        file = self.content["index"]["file"]
        return Index(self.vectors, self.kind, self.encoder.device, file and self.folder / file)
