"""Metrics and best photos of each query: in memory and, while an evaluation runs, on disk."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retrieval.metrics import METRICS
from retrieval.store import FeatureStore, state_of
from retrieval.stored import name_of_store
from utils.files import reason
from utils.logs import log

KEPT = 200  # photos kept of each ranking
FEATURES = ("values", "rankings", "similarities")
TYPES = {
    "values": "float64",
    "rankings": "int32",
    "similarities": "float32",
    "all_pairs": "float64",
}


class Scores:
    """Scores of the queries of a list.

    queries: the list. photos: how many are in the gallery. checked: which queries are also scored
    by all pairs, (len(queries),) booleans.

    values, all_pairs (attributes): the METRICS of each query, in their order, (len(queries), M).
    rankings, similarities: its best photos, closest first, and their scores, (len(queries), K).
    done: which queries have them all.
    """

    def __init__(self, queries, photos: int, checked: np.ndarray):
        Q, M, K = len(queries), len(METRICS), min(KEPT, photos)
        self.queries, self.checked = queries, checked
        self.values, self.all_pairs = np.full((Q, M), np.nan), np.full((Q, M), np.nan)
        # Arrays for all queries: small ones between the large tensors of the blocks would tear
        # holes into the memory, which then would grow with every block.
        self.rankings = np.zeros((Q, K), dtype=np.int32)
        self.similarities = np.zeros((Q, K), dtype=np.float32)
        self.done = np.zeros(Q, dtype=bool)
        self.folder: Path | None = None
        self.store: FeatureStore | None = None

    def missing(self) -> np.ndarray:
        """Numbers of the queries without scores."""
        return np.flatnonzero(~self.done)

    def keep_in(self, stores: Path, key: Mapping, process: int) -> None:
        """Read the scores that a stopped evaluation has left, and keep there what is added.

        stores: a folder of stores. key: all that scores depend on besides the query, as plain
        values. process: its number; each has a store. A disk that refuses is a warning.
        """
        folder = self.folder = stores / f"{name_of_store(key)}.scores"
        self.names = [
            f"{target} {path}"
            for path, target in zip(self.queries.path, self.queries.target, strict=True)
        ]
        self.states = [state_of(self.queries.file(n)) for n in range(len(self.queries))]
        for place in sorted(folder.glob("*")):
            self._read(FeatureStore(place, key, TYPES))
        if self.done.any():
            log.info("scoring goes on from %s: %d sketches are done.", folder, self.done.sum())
        self.store = FeatureStore(folder / str(process), key, TYPES)
        try:
            self.store.start_writing()
        except OSError as error:
            self._give_up(error)

    def add(self, numbers: np.ndarray, scores: Mapping[str, np.ndarray]) -> None:
        """Scores of some queries: by name of the attribute, (n, ...) each.

        all_pairs is of those that are checked, and absent where none is.
        """
        for name, rows in scores.items():
            at = numbers[self.checked[numbers]] if name == "all_pairs" else numbers
            getattr(self, name)[at] = rows
        self.done[numbers] = True
        checked = self.checked[numbers]
        self._write(numbers[~checked], list(FEATURES))
        self._write(numbers[checked], [*FEATURES, "all_pairs"])

    def result(self) -> dict[str, np.ndarray]:
        """Scores of the queries that have them, by name of the attribute."""
        return {name: getattr(self, name)[self.done] for name in TYPES}

    def remove_kept(self) -> None:
        """Remove the folder: all is scored."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let other programs write."""
        if self.store is not None:
            self.store.close()

    def _read(self, store: FeatureStore) -> None:
        for features, which in (
            (FEATURES, ~self.checked),
            ((*FEATURES, "all_pairs"), self.checked),
        ):
            known = which & ~self.done & store.known(self.names, self.states, features)
            numbers = np.flatnonzero(known)
            names = [self.names[number] for number in numbers]
            sound = store.sound(names, features)
            if not sound.all():
                log.warning("%s: damaged scores are scored again.", store.folder)
            numbers, names = numbers[sound], [n for n, s in zip(names, sound, strict=True) if s]
            if len(numbers):
                for feature in features:
                    getattr(self, feature)[numbers] = store.read(feature, names)
                self.done[numbers] = True

    def _write(self, numbers: np.ndarray, features: Sequence[str]) -> None:
        if self.store is None or not len(numbers):
            return
        names, states = zip(*((self.names[n], self.states[n]) for n in numbers), strict=True)
        try:
            self.store.add(names, states, {name: getattr(self, name)[numbers] for name in features})
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: scores are not kept while this runs (%s).", self.folder, reason(error))
        self.store.close()
        self.store = None
