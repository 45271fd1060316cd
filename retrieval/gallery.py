"""Gallery: photos encoded once, kept on disk, and searched with sketches (built in building.py)."""

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.images import ImageSource
from datasets.unlabelled import LooseImages, image_list
from model.method import Features
from retrieval.blocks import Block
from retrieval.encoder import Encoder
from retrieval.entries import State
from retrieval.neighbours import KINDS, Index, compares_cosines, has_gpu, load_faiss
from retrieval.ranking import Ranking
from retrieval.scoring import ByVectors, Photos, Ranker, names_read
from retrieval.store import FeatureStore, state_of
from retrieval.stored import StoredRows
from utils.checksums import file_sum
from utils.errors import InputError
from utils.files import read_json, reason
from utils.precision import tf32
from utils.schema import TEXT, TRUTH, check, maybe, number, one_of, rows, table, whole
from utils.unreadable import check_name

GALLERY, FORMAT = "gallery.json", 3
FIXED = {
    "key": table({"weights": TEXT, "computed_in": TEXT}),
    "tokens": TRUTH,
    "snapshot": rows(whole(0), 2, 2),
    "photos": rows(TEXT, 1),
    "broken": rows(TEXT),
    "index": table({"kind": one_of(*KINDS), "file": maybe(TEXT), "recall": maybe(number())}),
}
SCHEMA = table({**FIXED, "crc32": whole(0), "checkpoint": TEXT, "root": TEXT})
AGAIN = "Remove it and run retrieve.py index again, which goes on from sound rows."
ANEW = "Run retrieve.py index again: that builds it anew."
UP_TO_DATE = "Bring the gallery up to date: retrieve.py index."
ON_DEMAND = 256  # sketches at a time where photos are encoded for them


@dataclass(frozen=True)
class Answer:
    """The photos found for a sketch.

    sketch: its number among those of the search. photos: paths below the gallery's folder of
    photos, closest first. scores: larger is closer; nan behind a shortlist. milliseconds: its share
    of its block's "encode" and "compare".
    """

    sketch: int
    photos: list[str]
    scores: list[float]
    milliseconds: dict[str, float]


class Gallery:
    """A gallery on disk, ready to be searched.

    encoder: its method must have the weights that the gallery was built with. Raises InputError
    where it has others, or where files of the gallery are absent or damaged.
    """

    def __init__(self, folder: str | Path, encoder: Encoder):
        self.folder = Path(folder)
        self.content = read_gallery(self.folder)
        check_weights(self.folder, self.content, encoder.weights)
        self.encoder = replace(encoder, skip_bad=True, store=None)
        self.encoder.method.eval()
        self.root = Path(self.content["root"])
        self.paths = np.array(self.content["photos"], dtype=object)
        store = open_photos(self.folder, self.content, encoder.types)
        states = self.states = store.states()
        vectors = torch.from_numpy(store.read("retrieval", self.paths))
        self.rows = {"retrieval": vectors}
        pair_features = encoder.method.pair_features
        if self.content["tokens"]:
            self.rows |= {name: StoredRows(store, name, self.paths) for name in pair_features}
        else:
            sizes = np.array([states[path][0] for path in self.paths], dtype=np.uint64)
            images = image_list(self.root, self.paths, "photo")
            on_demand = _OnDemand(self.encoder, images, states)
            self.rows |= {name: _EncodedRows(on_demand, name, sizes) for name in pair_features}
        self.kind = self.content["index"]["kind"]
        self.index = self._opened_index(vectors)
        self.rankers: dict[tuple, Ranker] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @torch.inference_mode()
    def search(
        self,
        sketches: Sequence[ImageSource],
        k: int,
        ranker: type[Ranker] = ByVectors,
        settings: Mapping | None = None,
        at_a_time: int | None = None,
    ) -> tuple[list[Answer], dict[int, str]]:
        """The k closest photos of each readable sketch, and a sentence about each other one.

        sketches: names of files, or open images (PIL). ranker, settings: see retrieval/scoring.py.
        at_a_time: how many sketches; None: by the memory.
        """
        names = names_read(self.encoder.method, ranker)
        size = at_a_time or self._sketches_at_a_time(ranker)
        opened = self._ranker(ranker, settings or {})
        answers, faults = [], {}
        with tf32(allowed=False):
            began = time.perf_counter()
            images = LooseImages(sketches, "sketch")
            for block in self.encoder.blocks(images, names, size, "sketches"):
                encoded = time.perf_counter()
                faults |= block.faults
                if block.numbers:
                    ranking = opened.rank(block.features, k)
                    scores = ranking.scores.cpu().tolist()  # waits for the device
                    seconds = encoded - began, time.perf_counter() - encoded
                    answers += self._answers(block, ranking, scores, seconds)
                began = time.perf_counter()
        return answers, faults

    def changed(self, paths: Iterable[str]) -> list[str]:
        """Which of these photos are not as they were when they were indexed, or have gone."""
        return [path for path in paths if state_of(self.root / path) != self.states[path]]

    def _answers(
        self, block: Block, ranking: Ranking, scores: list, seconds: tuple[float, float]
    ) -> list[Answer]:
        shares = [round(1e3 * part / len(block.numbers), 3) for part in seconds]
        milliseconds = dict(zip(("encode", "compare"), shares, strict=True))
        found = zip(block.numbers, ranking.photos.cpu().numpy(), scores, strict=True)
        return [Answer(n, self.paths[photos].tolist(), s, milliseconds) for n, photos, s in found]

    def _ranker(self, ranker: type[Ranker], settings: Mapping) -> Ranker:
        """Opened once for each kind and its settings."""
        known = (ranker, *sorted(settings.items()))
        if known not in self.rankers:
            encoder, pairs = self.encoder, ranker.reads_pairs
            _, block = encoder.block_sizes(photos=len(self), pairs=pairs)
            rows = {name: self.rows[name] for name in names_read(encoder.method, ranker)}
            photos = Photos(rows, self.paths, device=encoder.device, block=block)
            more = {"dtype": encoder.dtype} if pairs else {}
            self.rankers[known] = ranker(
                encoder.method, photos, index=self.index, **more, **settings
            )
        return self.rankers[known]

    def _sketches_at_a_time(self, ranker: type[Ranker]) -> int:
        pairs = ranker.reads_pairs
        size, _ = self.encoder.block_sizes(photos=len(self), pairs=pairs)
        return max(size, ON_DEMAND) if pairs and not self.content["tokens"] else size

    def _opened_index(self, vectors: Tensor) -> Index | None:
        """None where all photos are compared: by the method's own similarity, or fast on a GPU."""
        faiss = load_faiss() if compares_cosines(self.encoder.method) else None
        on_gpu = self.encoder.device.type == "cuda"
        if faiss is None or (self.kind == "exact" and on_gpu and not has_gpu(faiss)):
            return None
        return open_index(self.folder, self.content["index"], vectors, self.encoder.device)


def read_gallery(folder: Path) -> dict:
    """The description of a gallery. Raises InputError where there is none that can be used."""
    file = folder / GALLERY
    if not check_name(file):
        if any(folder.glob("entries.*.jsonl")):
            raise InputError(f"{folder}: is not finished. Run retrieve.py index again to go on.")
        raise InputError(f"{folder}: is no gallery. Make one with retrieve.py index.")
    content = read_json(file, AGAIN)
    check(content, table({"format": whole(1)}), file, AGAIN)
    if content["format"] != FORMAT:
        raise InputError(
            f"{file}: has format {content['format']}, and this version reads format {FORMAT}. "
            "Build the gallery again in another folder."
        )
    check(content, SCHEMA, file, AGAIN)
    if content["crc32"] != sum_of_description(content):
        raise InputError(f"{file}: is damaged, or was edited. {AGAIN}")
    return content


def sum_of_description(content: Mapping) -> int:
    """The crc32 of all but what people may edit: where the photos and the checkpoint lie."""
    fixed = {name: content[name] for name in FIXED}
    return zlib.crc32(json.dumps(fixed, sort_keys=True).encode())


def check_weights(folder: Path, content: Mapping, weights: str) -> None:
    """InputError where a gallery was built with other weights."""
    if content["key"]["weights"] != weights:
        raise InputError(
            f"{folder}: was built with another checkpoint ({content['checkpoint']}), and vectors "
            "of two checkpoints do not compare. Use that checkpoint, or build a gallery with this "
            "one elsewhere."
        )


def open_photos(folder: Path, content: Mapping, types: Mapping[str, str]) -> FeatureStore:
    """The store of a gallery, as it was when the description was written.

    Raises InputError where rows of its photos are absent or damaged.
    """
    advice = "Run retrieve.py index again: it encodes damaged rows again."
    store = FeatureStore(folder, content["key"], types, tuple(content["snapshot"]), advice)
    states, names = store.states(), ["retrieval"]
    if content["tokens"]:
        names = list(types)
    paths = [path for path in content["photos"] if path in states]
    known = store.known(paths, [states[path] for path in paths], names)
    if len(paths) < len(content["photos"]) or not known.all():
        raise InputError(
            f"{folder}: rows of some photos are absent or damaged. Run retrieve.py index again."
        )
    return store


def open_index(folder: Path, index: Mapping, vectors: Tensor, device: torch.device) -> Index:
    """The index of a gallery, by its description. Raises InputError where its file is damaged."""
    file = index["file"] and folder / index["file"]
    try:
        if file and file_sum(file) != index["crc32"]:
            raise InputError(f"{file}: is damaged. {ANEW}")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)}). {ANEW}") from error
    return Index(vectors, index["kind"], device, file)


class _OnDemand:
    """Encodes photos of a gallery when their rows are read. states: of their files, by path."""

    def __init__(self, encoder: Encoder, images, states: Mapping[str, State]):
        self.encoder, self.images, self.states = encoder, images, states
        self.last: tuple[list[int], Features] = ([], {})

    def features(self, numbers: Tensor) -> Features:
        """The features that pair scores read, of photos by their numbers."""
        if self.last[0] != numbers.tolist():
            photos, names = self.images.select(numbers.numpy()), self.encoder.method.pair_features
            (block,) = self.encoder.blocks(photos, names, len(photos), "photos of the shortlist")
            if block.faults:
                first = next(iter(block.faults.values()))
                raise InputError(f"{first} {UP_TO_DATE}")
            for number, path in enumerate(photos.path):
                if state_of(photos.file(number)) != self.states[path]:
                    raise InputError(f"{path}: has changed since it was indexed. {UP_TO_DATE}")
            self.last = numbers.tolist(), block.features
        return self.last[1]


class _EncodedRows:
    """The rows of a feature of all photos, each encoded when it is indexed.

    sizes: of the files, (G,) uint64; identical photos have files of one size.
    """

    def __init__(self, on_demand: _OnDemand, feature: str, sizes: np.ndarray):
        self.on_demand, self.feature, self.sizes = on_demand, feature, sizes

    def __getitem__(self, numbers: Tensor) -> Tensor:
        return self.on_demand.features(numbers)[self.feature]

    def sums(self, numbers: slice) -> np.ndarray:
        """In the place of checksums."""
        return self.sizes[numbers]
