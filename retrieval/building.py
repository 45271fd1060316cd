"""Building a gallery: what is new or changed among photos is encoded, what is gone drops out."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from retrieval.blocks import block_sizes
from retrieval.cache import state_of
from retrieval.features import Encoder
from retrieval.index import Index, compares_cosines, recall_of_photos
from retrieval.rows import (
    GALLERY,
    JOURNAL,
    LOCK,
    Entry,
    RowWriter,
    check_weights,
    read_gallery,
    read_vectors,
)
from utils.errors import InputError
from utils.logs import log
from utils.precision import tf32

POOR_RECALL = 0.9
NAMED = 20  # broken files


@dataclass(frozen=True)
class Built:
    """What a build did.

    photos, encoded, removed: how many. broken: a sentence each. index: a key of KINDS; recall: None
    where it is exact.
    """

    photos: int
    encoded: int
    removed: int
    broken: list[str]
    bytes: int
    index: str
    recall: float | None
    seconds: dict[str, float]


@torch.inference_mode()
def build_gallery(
    folder: Path, images, encoder: Encoder, *, checkpoint: str, kind: str | None = None
) -> Built:
    """Bring a gallery up to date with a list of photos: encode new and changed ones, drop others.

    images: with paths relative to their `root`. encoder: its method is put into evaluation mode;
    with "tokens" in its keep, tokens are kept in fp16. checkpoint: where the weights lie. kind: in
    retrieval.index.KINDS; None: as it was, exact at first. A build that was stopped goes on. Raises
    InputError where the folder holds something else, a gallery of other weights or settings, or is
    being written to.
    """
    header = {
        "weights": encoder.weights,
        "computed_in": str(encoder.dtype),
        "tokens": "tokens" in encoder.keep,
    }
    if kind in ("hnsw", "ivf") and not compares_cosines(encoder.method):
        raise InputError(f"{encoder.method.name} compares in its own way: only exact is possible.")
    _check_place(folder)
    writer = RowWriter(folder, header)
    try:
        former = read_gallery(folder) if (folder / GALLERY).exists() else None
        if former:
            _check_same(folder, former, header, images.root)
        writer.take_up(former)
        kind = kind or (former["index"]["kind"] if former else "exact")
        return _brought_up_to_date(writer, former, images, encoder, checkpoint, kind)
    finally:
        writer.close()


def _brought_up_to_date(
    writer: RowWriter, former: dict | None, images, encoder: Encoder, checkpoint: str, kind: str
) -> Built:
    started = time.perf_counter()
    states = [state_of(images.file(number)) for number in range(len(images))]
    paths = [str(path) for path in images.path]
    known = writer.entries
    new = [n for n, path in enumerate(paths) if path not in known or known[path].state != states[n]]
    removed = len(known.keys() - set(paths))
    log.info(
        "%d images: %d to encode, %d unchanged; %d are gone.",
        *(len(images), len(new), len(images) - len(new), removed),
    )
    _encode(writer, images, new, states, encoder)
    encoded = time.perf_counter()
    broken = [writer.entries[path].fault for path in paths if writer.entries[path].fault]
    for fault in broken[:NAMED]:
        log.warning("skipped: %s", fault)
    if len(broken) > NAMED:
        log.warning("skipped: %d more, see %s.", len(broken) - NAMED, writer.folder / GALLERY)
    content = writer.content(paths)
    if not content["photos"]["path"]:
        raise InputError(f"{images.root}: none of its {len(images)} images can be read.")
    content |= {"checkpoint": checkpoint, "root": str(images.root.resolve())}
    content["index"] = _kept_index(writer.folder, former, content, kind)
    writer.finish(content)
    _remove_other_indexes(writer.folder, content["index"]["file"])
    index_seconds = time.perf_counter() - encoded
    return Built(
        photos=len(content["photos"]["path"]),
        encoded=len(new),
        removed=removed,
        broken=broken,
        bytes=sum(file.stat().st_size for file in writer.folder.iterdir()),
        index=kind,
        recall=content["index"]["recall"],
        seconds={"encode": encoded - started, "index": index_seconds},
    )


def _encode(writer: RowWriter, images, new: list[int], states: list, encoder: Encoder) -> None:
    """Encode these photos, block by block, each kept at once."""
    if not new:
        return
    method, device = encoder.method.eval(), encoder.device
    _, size = block_sizes(method, device, encoder.dtype, photos=0, pairs=False)
    encoder = replace(encoder, skip_bad=True, cache=None)
    first, announced = 0, False
    with tf32(allowed=False):
        blocks = encoder.blocks(images.select(np.array(new)), size, "photos encoded")
        for readable, features, faults in blocks:
            block = range(first, min(first + size, len(new)))
            first = block.stop
            rows = {name: tensor.float().cpu().numpy() for name, tensor in features.items()}
            entries = {
                str(images.path[new[number]]): Entry(states[new[number]], row)
                for row, number in enumerate(readable)
            }
            unreadable = [number for number in block if number not in set(readable)]
            for number, fault in zip(unreadable, faults, strict=True):
                entries[str(images.path[new[number]])] = Entry(states[new[number]], None, fault)
            if rows and not announced:
                _announce(writer, rows, len(new) - block.start)
                announced = True
            writer.add(rows, entries)


def _announce(writer: RowWriter, rows: dict[str, np.ndarray], photos: int) -> None:
    """Tell what the photos that are left will take; InputError where the disk has no room."""
    writer.shapes = writer.shapes or {name: list(r.shape[1:]) for name, r in rows.items()}
    a_photo = sum(writer.bytes_of_row(name) for name in rows)
    needed, free = photos * a_photo, writer.free_bytes()
    log.info("%s: %.1f MB for these, %.1f kB a photo.", writer.folder, needed / 1e6, a_photo / 1e3)
    if needed > free:
        raise InputError(
            f"{writer.folder}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are "
            "free. Make room, or leave --tokens out."
        )


def _kept_index(folder: Path, former: dict | None, content: dict, kind: str) -> dict:
    """What gallery.json says of the index: as it was where nothing has changed, else built."""
    if kind == "exact":
        return {"kind": kind, "file": None, "recall": None}
    vectors = read_vectors(folder, content)
    number = 0
    if former:
        index, number = former["index"], former["index"].get("number", 0) + 1
        same = index["kind"] == kind and former["photos"] == content["photos"]
        if same and former["generation"] == content["generation"]:
            try:
                Index(vectors, kind, torch.device("cpu"), folder / index["file"])
                return index
            except InputError as error:
                log.warning("%s", error)
    log.info("building the index (%s) of %d vectors.", kind, len(vectors))
    index = Index(vectors, kind, torch.device("cpu"))
    file = f"index.{number}.{kind}"
    index.write(folder / file)
    recall = recall_of_photos(index, vectors)
    if recall < POOR_RECALL:
        log.warning("recall is %.3f: exact search may serve you better.", recall)
    return {"kind": kind, "file": file, "recall": recall, "number": number}


def _check_place(folder: Path) -> None:
    """InputError where a folder is not ours to write to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file. Choose a folder for the gallery.")
    if folder.is_dir() and any(folder.iterdir()):
        ours = (GALLERY, JOURNAL, LOCK)
        if not any((folder / name).exists() for name in ours):
            raise InputError(
                f"{folder}: holds other files and is no gallery. Choose another folder."
            )


def _check_same(folder: Path, former: dict, header: dict, root: Path) -> None:
    """InputError where a gallery cannot be brought up to date with these settings."""
    check_weights(folder, former, header["weights"])
    for name, option in (("computed_in", "--amp"), ("tokens", "--tokens")):
        if former[name] != header[name]:
            raise InputError(
                f"{folder}: was built with {name} = {former[name]}, and {header[name]} is asked "
                f"for ({option}). Use the same options, or build another gallery elsewhere."
            )
    if Path(former["root"]) != root.resolve() and Path(former["root"]).is_dir():
        raise InputError(
            f"{folder}: is the gallery of {former['root']}, and {root.resolve()} is asked for. A "
            "gallery has one folder of photos: put both into one, or choose another --out."
        )


def _remove_other_indexes(folder: Path, kept: str | None) -> None:
    for file in folder.glob("index.*"):
        if file.name != kept:
            file.unlink(missing_ok=True)
