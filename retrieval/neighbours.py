"""The nearest vectors among many, by FAISS: exact, or approximately by IVF.

FAISS proposes photos, and the method's own similarity scores them: an exact search gives the same
ranking as comparing with every photo.
"""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.method import Method
from retrieval.ranking import Ranking
from utils.errors import InputError
from utils.files import written_whole
from utils.logs import log

KINDS = ("exact", "ivf")
CELLS, PROBED, PER_CELL = 4, 32, 39  # of IVF: times the square root of G; 1 in so many; to learn by
ADDED = 65_536  # vectors at a time
WORTH_IT = 4  # where less than 1 in so many is to be found
MOST_ON_GPU = 2048  # vectors that FAISS finds at a time there
NO_LENGTH = 1e-12  # of vectors, as in torch's normalize
NEARLY = 1e-5  # FAISS and the method may round cosines differently by so much
SAMPLED, RECALLED = 200, 10  # to measure recall: photos as queries, neighbours of each


class Index:
    """Unit vectors in FAISS.

    vectors: (G, D) of any length, on the CPU. kind: in KINDS. file: of a former index of the same
    vectors; without it the index is built. The GPU build of FAISS, where it is installed, searches
    on `device` where that is a GPU. Raises InputError without FAISS, and for a file that is not of
    these vectors.
    """

    def __init__(self, vectors: Tensor, kind: str, device: torch.device, file: Path | None = None):
        self.faiss = load_faiss()
        if self.faiss is None:
            raise InputError("FAISS is not installed: pip install faiss-cpu.")
        self.kind, self.count = kind, len(vectors)
        self.most = len(vectors)  # that can be found at a time
        self.index = self._read(file, vectors) if file else self._built(vectors)
        if device.type == "cuda" and has_gpu(self.faiss):
            self.resources = self.faiss.StandardGpuResources()
            self.index = self.faiss.index_cpu_to_gpu(self.resources, device.index or 0, self.index)
            self.most = MOST_ON_GPU

    def search(self, queries: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and numbers of about the nearest vectors, nearest first: (Q, count) each.

        Numbers are -1 where fewer were found.
        """
        return self.index.search(_unit(queries), count)

    def closest(self, queries: Tensor, k: int, rank: Callable[[Tensor], Ranking]) -> Ranking | None:
        """The k closest photos of each query (Q, D); None where all have to be compared.

        rank: from photos that were found, (Q, K), to their ranking by the method. Searches for more
        than k, since the method may order those at the end otherwise.
        """
        count = k + max(32, k // 4)
        while count <= min(self.most, self.count // WORTH_IT):
            cosines, numbers = self.search(queries, count)
            if (numbers >= 0).all():
                ranking = rank(torch.from_numpy(numbers)).first(k)
                last = torch.from_numpy(cosines[:, -1]).to(ranking.scores.device)
                if (last < ranking.scores[:, -1] - NEARLY).all():
                    return ranking  # no photo that may be found later can be as close
            count *= 4
        return None

    def write(self, file: Path) -> None:
        """Keep it, whole or not at all; InputError where that cannot be."""
        try:
            with written_whole(file) as stream:
                self.faiss.write_index(self.index, self.faiss.PyCallbackIOWriter(stream.write))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{file}: cannot be written ({_first_line(error)}).") from error

    def size(self) -> int:
        """Its bytes on disk."""
        return len(self.faiss.serialize_index(self.index))

    def _built(self, vectors: Tensor):
        faiss, (G, D) = self.faiss, vectors.shape
        index = faiss.IndexFlatIP(D)
        if self.kind == "ivf":
            cells = max(1, min(round(CELLS * math.sqrt(G)), G // PER_CELL))
            index = faiss.IndexIVFFlat(index, D, cells, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = max(8, cells // PROBED)
            learnt = torch.linspace(0, G - 1, min(G, cells * PER_CELL)).long()
            index.train(_unit(vectors[learnt]))
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
    """measured_recall() with some photos as queries; that each finds itself does not count."""
    count = min(RECALLED + 1, len(vectors))
    if count < 2:
        return 1.0
    some = torch.linspace(0, len(vectors) - 1, min(SAMPLED, len(vectors))).long()
    found = measured_recall(index, vectors[some], vectors, count)
    return (count * found - 1) / (count - 1)


def compares_cosines(method) -> bool:
    """Whether the method's similarity is the cosine, as FAISS has it."""
    return type(method).similarity is Method.similarity


def load_faiss():
    """The module, with as many threads as torch; None where it is not installed.

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
