"""Scores of pairs on disk while an evaluation runs: a stopped one goes on where it was."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from retrieval.cache import state_of
from utils.logs import log

ENDING = ".scores"
ARRAYS = ("numbers", "rankings", "similarities", "checked")  # of Scored
TABLES = ("values", "by_pairs")  # of Scored: arrays by name


@dataclass
class Scored:
    """A block of scored queries: their numbers in the list, metrics, best photos.

    checked: which of them were scored by all pairs, too; by_pairs: the metrics of those.
    """

    numbers: np.ndarray
    values: dict[str, np.ndarray]
    rankings: np.ndarray
    similarities: np.ndarray
    checked: np.ndarray
    by_pairs: dict[str, np.ndarray]


class Interrupted:
    """The scored blocks of one evaluation, in a folder that is removed when all are there.

    cache: the folder of the caches; weights: fingerprint of the method; queries, gallery: the lists
    as scored; settings: what else scores depend on, plain values. Blocks of other weights, files,
    lists or settings lie in other folders.
    """

    def __init__(self, cache: Path, weights: str, queries, gallery, settings: list):
        lists = [
            [[str(path) for path in images.path], images.target.tolist()]
            + [state_of(images.file(number)) for number in range(len(images))]
            for images in (queries, gallery)
        ]
        content = hashlib.sha256(json.dumps([lists, settings]).encode()).hexdigest()[:16]
        self.folder = cache / f"{weights}-{content}{ENDING}"
        self.refused = False  # by the disk
        if self.folder.exists():
            log.info("scoring goes on from %s.", self.folder)

    def read(self, numbers: np.ndarray) -> Scored | None:
        """The block of the queries of these numbers; None where it is not there, or damaged."""
        try:
            with np.load(self._file(numbers)) as arrays:
                columns = {name: arrays[name] for name in ARRAYS}
                for table in TABLES:
                    names = [name for name in arrays if name.startswith(f"{table}/")]
                    columns[table] = {name.split("/")[1]: arrays[name] for name in names}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            log.warning("%s cannot be used (%s): scoring again.", self._file(numbers), error)
            return None
        return Scored(**columns) if np.array_equal(columns["numbers"], numbers) else None

    def write(self, scored: Scored) -> None:
        """Keep a block. A disk that refuses is a warning."""
        if self.refused:
            return
        arrays = {name: getattr(scored, name) for name in ARRAYS}
        for table in TABLES:
            arrays |= {f"{table}/{name}": a for name, a in getattr(scored, table).items()}
        file = self._file(scored.numbers)
        aside = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as stream:
                np.savez(stream, **arrays)
            os.replace(aside, file)
        except OSError as error:
            log.warning("%s: scores are not kept while this runs (%s).", self.folder, error)
            self.refused = True

    def remove(self) -> None:
        """All blocks are scored: nothing has to be kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, numbers: np.ndarray) -> Path:
        return self.folder / f"{numbers[0]}-{numbers[-1]}.npz"
