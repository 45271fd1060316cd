"""How fast an evaluation is: encoding, scores of pairs, metrics, and all of it.

"Plain" is used as the published program does: blocks of 20 sketches and 20 photos, every projection
for every pair, the gallery encoded again for every 20 sketches.
"""

import tempfile
import time
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benches.figures import megabytes, peaks_of
from benches.plain import BLOCK, plain_image, plain_pair, told_of_plain
from datasets.benchmark import ImageList
from datasets.images import Preprocessing
from datasets.noise import draw_noise, noise_list
from model import build_model
from model.method import Method
from options import SHORTLIST
from retrieval.blocks import block_sizes
from retrieval.evaluate import CHECKED
from retrieval.evaluate import evaluate as score
from utils.precision import dtype_of, half_where_safe
from utils.speed import median_seconds, operations_of, seconds_of

PAIRS = (16, 64)  # sketches, photos
BENCHMARKS = {
    "Sketchy, 25 unseen": (15_229, 17_101),
    "Sketchy, 21 unseen": (12_694, 12_553),
    "TU-Berlin": (2_400, 27_989),
    "QuickDraw": (92_291, 54_151),
}
"""Sketches and photos of the unseen classes."""
SEED = 0


def encode(args: Namespace, device: torch.device) -> dict:
    """Images per second through the tokenizer, beside blocks of 20 in fp32."""
    method, dtype = _build(args, device), dtype_of(args.amp, device)
    _, count = block_sizes(method, device, dtype, photos=0, pairs=False)
    images = torch.randn(count, 3, method.inputs["size"], method.inputs["size"], device=device)

    def run(images, dtype):
        with half_where_safe(device, dtype):
            method.encode(images, "photo")

    operations = operations_of(lambda: run(images[:1], torch.float32))
    peaks = peaks_of(device, dtype)
    seconds = median_seconds(lambda: run(images, dtype), device, args.repeat) / count
    memory = megabytes(device)
    plain = images[:BLOCK]
    plain_seconds = median_seconds(lambda: run(plain, torch.float32), device, args.repeat)
    plain_seconds /= len(plain)
    return {
        **peaks,
        "images at a time": count,
        "images/s": 1 / seconds,
        "GFLOP an image": operations / 1e9,
        "GFLOP/s": operations / seconds / 1e9,
        "share of peak": operations / seconds / peaks[f"peak GFLOP/s {dtype}"] / 1e9,
        "peak memory MB": memory,
        "plain: images/s": 1 / plain_seconds,
        "times plain": plain_seconds / seconds,
    }


def pairs(args: Namespace, device: torch.device) -> dict:
    """Pairs per second, beside the plain network."""
    method, dtype = _build(args, device), dtype_of(args.amp, device)
    tokens = (method.tokenizer.tokens + 1, method.tokenizer.width)
    sketches, photos = (
        {"retrieval": drawn[:, 0], "tokens": drawn}
        for drawn in (torch.randn(count, *tokens, device=device) for count in PAIRS)
    )
    score = method.pair_scorer(dtype, args.compile)

    def run():
        return score(score.prepare(sketches, "sketch"), score.prepare(photos, "photo"))

    peaks = peaks_of(device, dtype)
    count = PAIRS[0] * PAIRS[1]
    seconds = median_seconds(run, device, args.repeat) / count
    memory = megabytes(device)
    executed = score.operations(sketches["tokens"])
    published = score.operations(sketches["tokens"], every=True)
    peak = peaks[f"peak GFLOP/s {dtype}"] * 1e9
    plain = plain_pair(method, device, args.repeat)
    return {
        **peaks,
        "pairs/s": 1 / seconds,
        "ms a pair": 1e3 * seconds,
        "GFLOP a pair, executed": executed / 1e9,
        "GFLOP a pair, all tokens updated": published / 1e9,
        "GFLOP/s, executed": executed / seconds / 1e9,
        "GFLOP/s, all tokens updated": published / seconds / 1e9,
        "share of peak, executed": executed / seconds / peak,
        "share of peak, all tokens updated": published / seconds / peak,
        "peak memory MB": memory,
        **told_of_plain(plain, peaks),
        "times plain": plain["seconds"] / seconds,
    }


def metrics(args: Namespace, device: torch.device) -> dict:
    """All metrics of vectors with classes, beside the matrix product alone."""
    vectors = _class_vectors(args)
    block, _ = block_sizes(vectors, device, torch.float32, photos=args.photos, pairs=False)
    before, started = megabytes(device), time.perf_counter()
    evaluation = score(
        vectors,
        vectors.images("sketch"),
        vectors.images("photo"),
        vectors.look_up,
        mode="sa",
        device=device,
    )
    with_lists = time.perf_counter() - started
    whole = evaluation.seconds["score_queries"]
    memory = megabytes(device) - before
    gallery = vectors.of["photo"].to(device)

    def product():
        for queries in vectors.of["sketch"].split(block):
            queries.to(device) @ gallery.T

    alone = median_seconds(product, device, 1)
    return {
        "queries": args.queries,
        "photos": args.photos,
        "queries at a time": block,
        "seconds, all metrics": whole,
        "seconds, matrix product alone": alone,
        "times the matrix product": whole / alone,
        "seconds, with handing on images one by one": with_lists,
        "peak memory MB, beyond the vectors": memory,
        "plain AP": evaluation.metrics["average_precision"],
    }


def evaluate(args: Namespace, device: torch.device) -> dict:
    """A whole evaluation of image files, by vectors and by all pairs, beside plain ones."""
    method, encoded = _build(args, device), []
    method.tokenizer.register_forward_hook(lambda module, given, made: encoded.append(len(made)))
    preprocessing = Preprocessing(**method.inputs)
    dtype = dtype_of(args.amp, device)
    peaks = peaks_of(device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        queries = draw_noise(Path(folder), "sketch", args.images, SEED)
        gallery = draw_noise(Path(folder), "photo", args.images, SEED)

        def run(mode, some, gallery=gallery):
            settings = {"amp": args.amp, "compiled": args.compile, "device": device}
            return score(method, some, gallery, preprocessing, mode=mode, **settings)

        run("sa", queries.every(args.images), gallery.every(args.images))  # warms up
        encoded.clear()
        vectors = seconds_of(lambda: run("sa", queries), device)
        counted = sum(encoded)
        sample = queries.every(max(1, args.images // args.sample))
        stages = run("rn", sample).seconds
        of_pairs = stages["encode_queries"] + stages["score_queries"]
        pairs = stages["encode_gallery"] + of_pairs * args.images / len(sample)
        image = plain_image(method, queries, gallery, preprocessing, device)
    plain = plain_pair(method, device, 1)
    rounds = -(-args.images // BLOCK)
    plain_vectors = (rounds * args.images + args.images) * image
    plain_pairs = plain_vectors + args.images**2 * plain["seconds"]
    return {
        **peaks,
        "computed in": str(dtype),
        "images in all": 2 * args.images,
        "images encoded": counted,
        "seconds, -r sa": vectors,
        "seconds, -r rn (extrapolated)": pairs,
        "pairs measured": len(sample) * args.images,
        "peak memory MB": megabytes(device),
        **told_of_plain(plain, peaks),
        "plain: ms an image": 1e3 * image,
        "plain: images encoded": rounds * args.images + args.images,
        "plain: seconds, -r sa (extrapolated)": plain_vectors,
        "plain: seconds, -r rn (extrapolated)": plain_pairs,
        "times plain, -r sa": plain_vectors / vectors,
        "times plain, -r rn": plain_pairs / pairs,
        **_costs(vectors / counted, stages["score_queries"] / (len(sample) * args.images)),
    }


def _costs(of_image: float, of_pair: float) -> dict:
    """Hours for the unseen classes of the published splits, by seconds for an image and a pair."""
    hours = {}
    for name, (sketches, photos) in BENCHMARKS.items():
        pairs = {
            "-r sa": 0,
            f"-r rerank --shortlist {SHORTLIST}": sketches * SHORTLIST + CHECKED * photos,
            "-r rn": sketches * photos,
        }
        for mode, count in pairs.items():
            seconds = (sketches + photos) * of_image + count * of_pair
            hours[f"{name}, {mode}: hours (extrapolated)"] = seconds / 3600
    return hours


def _build(args: Namespace, device: torch.device):
    """ZSE-SBIR on this ViT with random weights."""
    settings = {"vit": args.vit, "downsampling": args.downsampling}
    return build_model("zse_sbir", **settings).eval().to(device)


def _class_vectors(args: Namespace):
    """A method whose features are drawn: unit vectors around the centres of their classes."""

    class ClassVectors(nn.Module):
        similarity = Method.similarity

        def __init__(self):
            super().__init__()
            centres = torch.randn(args.classes, args.width)
            counts = {"sketch": args.queries, "photo": args.photos}
            self.targets = {m: torch.arange(n) * args.classes // n for m, n in counts.items()}
            self.of = {
                modality: F.normalize(centres[targets] + 3 * torch.randn(len(targets), args.width))
                for modality, targets in self.targets.items()
            }

        def images(self, modality: str) -> ImageList:
            targets = self.targets[modality].numpy()
            return noise_list(Path(), list(map(str, range(len(targets)))), targets, modality)

        def look_up(self, file: Path, modality: str):
            return self.of[modality][int(file.name)]

        def encode(self, images, modality):
            return {"retrieval": images}

    return ClassVectors().eval()
