"""How fast an evaluation is: encoding, scores of pairs, metrics, and all of it.

"Plain" is a network used as the published program does: blocks of 20 sketches and 20 photos, every
projection for every pair.
"""

import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benches.figures import megabytes, peaks_of
from benches.noise import Vectors, draw_noise
from benches.plain import BLOCK, figures_of_plain, plain_pair
from datasets import DATASETS
from model import build_model
from model.method import Method
from model.zse.settings import ZSESettings
from options import SHORTLIST
from retrieval.blocks import ON_CPU, ON_GPU, block_sizes
from retrieval.encoder import Encoder
from retrieval.evaluate import CHECKED, Meter
from retrieval.evaluate import evaluate as score
from retrieval.metrics import METRICS
from retrieval.scoring import ByPairs, ByVectors, Photos
from utils.precision import dtype_of, half_where_safe
from utils.speed import median_seconds, operations_of, seconds_of

PAIRS = (16, 64)  # sketches, photos
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
        **figures_of_plain(plain, peaks),
        "times plain": plain["seconds"] / seconds,
    }


def metrics(args: Namespace, device: torch.device) -> dict:
    """All metrics of vectors with classes, beside the matrix product alone."""
    centres = torch.randn(args.classes, args.width)

    def around_centres(count: int) -> tuple[torch.Tensor, np.ndarray]:
        targets = torch.arange(count) * args.classes // count
        return F.normalize(centres[targets] + 3 * torch.randn(count, args.width)), targets.numpy()

    queries, query_targets = around_centres(args.queries)
    photos, photo_targets = around_centres(args.photos)
    block, _ = (ON_GPU if device.type == "cuda" else ON_CPU)["vectors"]
    before, precision = megabytes(device), []
    names = [str(number) for number in range(args.photos)]

    def measure() -> None:
        gallery = Photos({"retrieval": photos}, names, device=device, block=block)
        meter = Meter(ByVectors(Vectors(), gallery), photo_targets)
        for first in range(0, args.queries, block):
            some = slice(first, first + block)
            found = meter.scores({"retrieval": queries[some].to(device)}, query_targets[some])
            precision.append(found["values"])

    whole = seconds_of(measure, device)
    memory, there = megabytes(device) - before, photos.to(device)

    def product() -> None:
        for some in queries.split(block):
            some.to(device) @ there.T

    alone = median_seconds(product, device, 1)
    plain_ap = list(METRICS).index("average_precision")
    return {
        "queries": args.queries,
        "photos": args.photos,
        "queries at a time": block,
        "seconds, all metrics": whole,
        "seconds, matrix product alone": alone,
        "times the matrix product": whole / alone,
        "peak memory MB, beyond the vectors": memory,
        "plain AP": float(np.concatenate(precision)[:, plain_ap].mean()),
    }


def evaluate(args: Namespace, device: torch.device) -> dict:
    """A whole evaluation of image files, by vectors and by all pairs."""
    method, encoded = _build(args, device), []
    method.tokenizer.register_forward_hook(lambda module, given, made: encoded.append(len(made)))
    dtype = dtype_of(args.amp, device)
    peaks = peaks_of(device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        queries = draw_noise(Path(folder), "sketch", args.images, SEED)
        gallery = draw_noise(Path(folder), "photo", args.images, SEED)

        def run(ranker, some, photos=gallery):
            encoder = Encoder(method, device, dtype=dtype)
            return score(encoder, some, photos, ranker, compiled=args.compile)

        run(ByVectors, queries.every(args.images), gallery.every(args.images))  # warms up
        encoded.clear()
        vectors = seconds_of(lambda: run(ByVectors, queries), device)
        counted = sum(encoded)
        sample = queries.every(max(1, args.images // args.sample))
        stages = run(ByPairs, sample).seconds
        of_pairs = stages["encode_queries"] + stages["score_queries"]
        pairs = stages["encode_gallery"] + of_pairs * args.images / len(sample)
    return {
        **peaks,
        "computed in": str(dtype),
        "images in all": 2 * args.images,
        "images encoded": counted,
        "seconds, -r sa": vectors,
        "seconds, -r rn (extrapolated)": pairs,
        "pairs measured": len(sample) * args.images,
        "peak memory MB": megabytes(device),
        **_costs(vectors / counted, stages["score_queries"] / (len(sample) * args.images)),
    }


def _costs(of_image: float, of_pair: float) -> dict:
    """Hours for the unseen classes of each split, by seconds for an image and for a pair."""
    hours = {}
    for split in (split for row in DATASETS.values() for split in row.splits.values()):
        sketches, photos = split.sketches, split.photos
        pairs = {
            "-r sa": 0,
            f"-r rerank --shortlist {SHORTLIST}": sketches * SHORTLIST + CHECKED * photos,
            "-r rn": sketches * photos,
        }
        for mode, count in pairs.items():
            seconds = (sketches + photos) * of_image + min(count, sketches * photos) * of_pair
            hours[f"{split.title}, {mode}: hours (extrapolated)"] = seconds / 3600
    return hours


def _build(args: Namespace, device: torch.device) -> Method:
    """ZSE-SBIR on this ViT with random weights."""
    settings = ZSESettings(vit=args.vit, downsampling=args.downsampling)
    return build_model(settings).eval().to(device)
