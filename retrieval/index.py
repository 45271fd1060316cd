"""The nearest vectors among many, by FAISS: exact, or approximately by HNSW or IVF.

What FAISS finds is scored again by the method's own similarity and ordered as everywhere, so that
an exact search gives what comparing with every photo gives.
"""

import importlib
import math
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.method import Method
from retrieval.features import Features
from retrieval.ranking import Order, closest_first
from utils.errors import InputError
from utils.files import written_whole
from utils.logs import log

KINDS = ("exact", "hnsw", "ivf")
NEIGHBOURS, BUILD_EFFORT, SEARCH_EFFORT = 32, 80, 256  # of HNSW: links, candidates
CELLS, PROBED, PER_CELL = 4, 32, 39  # of IVF: times the square root of G; 1 in so many; to learn by
ADDED = 65_536  # vectors at a time
WORTH_IT = 4  # where less than a 1 in so many is asked for
MOST_ON_GPU = 2048  # vectors that FAISS finds at a time there
NO_LENGTH = 1e-12  # of vectors, as in torch's normalize
NEARLY = 1e-5  # FAISS and the method may round cosines differently by so much
ASKED, RECALLED = 200, 10  # to measure recall: photos asked with, others to find


class Index:
    """Unit vectors in FAISS.

    vectors: (G, D) of any length, on the CPU. kind: in KINDS. file: of a former index of the same
    vectors; without it the index is built. The GPU build of FAISS, where it is installed, searches
    exact and IVF indexes on `device` where that is a GPU. Raises InputError without FAISS, and
    for a file that is not of these vectors.
    """

    def __init__(self, vectors: Tensor, kind: str, device: torch.device, file: Path | None = None):
        self.faiss = load_faiss()
        if self.faiss is None:
            raise InputError("FAISS is not installed: pip install faiss-cpu.")
        self.kind = kind
        self.most = len(vectors)  # that can be found at a time
        self.index = self._read(file, vectors) if file else self._built(vectors)
        if device.type == "cuda" and has_gpu(self.faiss) and kind != "hnsw":
            self.resources = self.faiss.StandardGpuResources()
            self.index = self.faiss.index_cpu_to_gpu(self.resources, device.index or 0, self.index)
            self.most = MOST_ON_GPU

    def search(self, queries: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and numbers of about the nearest vectors, nearest first: (Q, count) each.

        Numbers are -1 where fewer were found.
        """
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = max(SEARCH_EFFORT, 2 * count)
        return self.index.search(_unit(queries), count)

    def write(self, file: Path) -> None:
        """Keep it, whole or not at all; InputError where that cannot be."""
        try:
            with written_whole(file) as stream:
                self.faiss.write_index(self.index, self.faiss.PyCallbackIOWriter(stream.write))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{file}: cannot be written ({_first_line(error)}).") from error

    def size(self) -> int:
        """Bytes that it takes on disk."""
        return len(self.faiss.serialize_index(self.index))

    def _built(self, vectors: Tensor):
        faiss, (G, D) = self.faiss, vectors.shape
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(D, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = BUILD_EFFORT
        elif self.kind == "ivf":
            cells = max(1, min(round(CELLS * math.sqrt(G)), G // PER_CELL))
            metric = faiss.METRIC_INNER_PRODUCT
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(D), D, cells, metric)
            index.nprobe = max(8, cells // PROBED)
            learnt = torch.linspace(0, G - 1, min(G, cells * PER_CELL)).long()
            index.train(_unit(vectors[learnt]))
        else:
            index = faiss.IndexFlatIP(D)
        for first in range(0, G, ADDED):
            index.add(_unit(vectors[first : first + ADDED]))
        return index

    def _read(self, file: Path, vectors: Tensor):
        try:
            index = self.faiss.read_index(str(file))
            if (index.ntotal, index.d) != tuple(vectors.shape):
                raise RuntimeError(f"it holds {index.ntotal} vectors of {index.d}")
        except RuntimeError as error:
            raise InputError(
                f"{file}: cannot be used ({_first_line(error)}). Run retrieve.py index again: "
                "that builds it anew."
            ) from error
        return index


class Nearest:
    """A gallery's order for a block of sketches, of which only the beginning is asked for.

    index: of the gallery's vectors; None: every photo is compared. similarity: the method's, which
    decides. sketches: what it encoded, (Q, ...). vectors: (G, D); places: tie_order of the gallery;
    both on the sketches' device.
    """

    def __init__(
        self,
        index: Index | None,
        similarity: Callable[[Features, Features], Tensor],
        sketches: Features,
        vectors: Tensor,
        places: Tensor,
    ):
        self.index = index
        self.similarity = similarity
        self.sketches = sketches
        self.vectors = vectors
        self.places = places

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """Numbers of the closest photos, closest first, and their scores: (Q, min(count, G))."""
        asked = count + max(32, count // 4)
        while self.index and asked <= min(self.index.most, len(self.vectors) // WORTH_IT):
            found = self._found(count, asked)
            if found is not None:
                return found
            asked *= 4
        return self._whole.best(count)

    def _found(self, count: int, asked: int) -> tuple[Tensor, Tensor] | None:
        """best() of the photos that the index finds; None where these may not be all."""
        cosines, numbers = self.index.search(self.sketches["retrieval"], asked)
        if (numbers < 0).any():
            return None
        photos = torch.from_numpy(numbers).to(self.places.device)  # (Q, asked)
        scores = torch.cat(
            [
                self.similarity(self._sketch(query), {"retrieval": self.vectors[some]}).float()
                for query, some in enumerate(photos)
            ]
        )
        order = closest_first(scores, self.places[photos])[:, :count]
        photos, scores = photos.gather(1, order), scores.gather(1, order)
        last = torch.from_numpy(cosines[:, -1]).to(scores.device)
        if self.index.kind == "exact" and (last >= scores[:, -1] - NEARLY).any():
            return None  # others behind may be as close
        return photos, scores

    @cached_property
    def _whole(self) -> Order:
        scores = self.similarity(self.sketches, {"retrieval": self.vectors}).float()
        return Order(scores, self.places)

    def _sketch(self, query: int) -> Features:
        return {"retrieval": self.sketches["retrieval"][query : query + 1]}


def measured_recall(index: Index, queries: Tensor, vectors: Tensor, count: int) -> float:
    """Share of the `count` nearest vectors that the index finds, mean over queries (Q, D).

    A vector that is as near as the last of them counts as found.
    """
    cosines, _ = index.search(queries, count)
    lengths = torch.linalg.vector_norm(vectors, dim=-1).clamp(min=NO_LENGTH)
    shares = []
    for number in range(0, len(queries), 16):
        block = slice(number, number + 16)
        exact = F.normalize(queries[block], dim=-1) @ vectors.T / lengths
        last = exact.topk(min(count, len(vectors))).values[:, -1:]
        found = torch.from_numpy(cosines[block]) >= last - NEARLY
        shares.append(found.sum(dim=1) / min(count, len(vectors)))
    return float(torch.cat(shares).mean())


def recall_of_photos(index: Index, vectors: Tensor) -> float:
    """measured_recall() of the photos' own vectors, some of which are asked with."""
    some = torch.linspace(0, len(vectors) - 1, min(ASKED, len(vectors))).long()
    return measured_recall(index, vectors[some], vectors, min(RECALLED, len(vectors)))


def compares_cosines(method) -> bool:
    """Whether the method's similarity is the cosine, as FAISS has it."""
    return type(method).similarity is Method.similarity


def load_faiss():
    """The module, told how many threads there are; None where it is not installed.

    PyTorch and FAISS bring an OpenMP runtime each. On Linux these live side by side; those of
    macOS are known to crash unless FAISS keeps to one thread.
    """
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        log.warning("FAISS cannot be loaded (%s): every photo is compared.", error)
        return None
    faiss.omp_set_num_threads(1 if sys.platform == "darwin" else torch.get_num_threads())
    return faiss


def faiss_version() -> str | None:
    """The version of FAISS; None where it is not installed."""
    return getattr(load_faiss(), "__version__", None)


def has_gpu(faiss) -> bool:
    """Whether this is FAISS's GPU build, and it sees a GPU."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _unit(vectors: Tensor) -> np.ndarray:
    """Unit vectors as FAISS takes them; zero stays zero."""
    return np.ascontiguousarray(F.normalize(vectors.float(), dim=-1).cpu().numpy())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
