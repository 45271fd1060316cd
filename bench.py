"""How fast is this machine at each stage of an evaluation, as a share of what it could do?

"Plain" is the network of tests/plain_network.py in fp32, used as the published program does: blocks
of 20 sketches and 20 photos, every projection for every pair, the gallery encoded again for every
20 sketches.
"""

import importlib.util
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from options import SHORTLIST, bench_options
from utils.errors import InputError, run_script
from utils.logs import environment, start_logging, write_json

PLAIN_BLOCK = 20  # sketches, and photos
PLAIN_SHARE = 0.4  # of the fp32 peak, which the plain network has to reach to be a fair measure
PAIRS = (16, 64)  # sketches, photos
BENCHMARKS = {
    "Sketchy, 25 unseen": (15_229, 17_101),
    "Sketchy, 21 unseen": (12_694, 12_553),
    "TU-Berlin": (2_400, 27_989),
    "QuickDraw": (92_291, 54_151),
}
"""Sketches and photos of the unseen classes."""
SEED = 0


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says; the exit status."""
    args = bench_options(arguments)
    start_logging()

    import torch

    from utils.distributed import choose_device
    from utils.memory import keep_freed_memory
    from utils.precision import tf32
    from utils.speed import machine

    device = choose_device(args.choose_cuda)
    if device.type == "cpu":
        keep_freed_memory()
    if args.json and not Path(args.json).parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {Path(args.json).parent}.")
    stage = {"encode": encode, "pairs": pairs, "metrics": metrics, "evaluate": evaluate}
    torch.manual_seed(SEED)
    with torch.inference_mode(), tf32(allowed=False):
        figures = stage[args.stage](args, device)
    about = environment(str(device))
    print(f"{about['command']}; commit {about['commit']}; {machine(device)}")
    for name, value in figures.items():
        print(f"{name:58} {_shown(value)}")
    if args.json:
        write_json(Path(args.json), {"figures": figures, "environment": about})
        print(f"figures: {args.json}")
    return 0


# ---- stages


def encode(args: Namespace, device) -> dict:
    """Images per second through the tokenizer, beside blocks of 20 in fp32."""
    import torch

    from retrieval.blocks import block_sizes
    from utils.precision import dtype_of, half_where_safe
    from utils.speed import median_seconds, operations_of

    method, dtype = _build(args, device), dtype_of(args.amp, device)
    _, count = block_sizes(method, device, dtype, photos=0, pairs=False)
    images = torch.randn(count, 3, method.inputs["size"], method.inputs["size"], device=device)

    def run(images, dtype):
        with half_where_safe(device, dtype):
            method.encode(images, "photo")

    operations = operations_of(lambda: run(images[:1], torch.float32))
    peaks = _peaks(device, dtype)
    seconds = median_seconds(lambda: run(images, dtype), device, args.repeat) / count
    memory = _memory(device)
    plain = images[:PLAIN_BLOCK]
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


def pairs(args: Namespace, device) -> dict:
    """Pairs per second, beside the plain network."""
    import torch

    from utils.precision import dtype_of
    from utils.speed import median_seconds

    method, dtype = _build(args, device), dtype_of(args.amp, device)
    tokens = (method.tokenizer.tokens + 1, method.tokenizer.width)
    sketches, photos = (
        {"retrieval": drawn[:, 0], "tokens": drawn}
        for drawn in (torch.randn(count, *tokens, device=device) for count in PAIRS)
    )
    score = method.pair_scorer(dtype, args.compile)

    def run():
        return score(score.prepare(sketches, "sketch"), score.prepare(photos, "photo"))

    peaks = _peaks(device, dtype)
    count = PAIRS[0] * PAIRS[1]
    seconds = median_seconds(run, device, args.repeat) / count
    memory = _memory(device)
    executed = score.operations(sketches["tokens"])
    published = score.operations(sketches["tokens"], every=True)
    peak = peaks[f"peak GFLOP/s {dtype}"] * 1e9
    plain = _plain_pair(method, device, args.repeat)
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
        **_told_of_plain(plain, peaks),
        "times plain": plain["seconds"] / seconds,
    }


def metrics(args: Namespace, device) -> dict:
    """All metrics of vectors with classes, beside the matrix product alone."""
    import torch

    from retrieval.blocks import block_sizes
    from retrieval.evaluate import evaluate as score
    from utils.speed import median_seconds

    vectors = _class_vectors(args)
    block, _ = block_sizes(vectors, device, torch.float32, photos=args.photos, pairs=False)
    before, started = _memory(device), time.perf_counter()
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
    memory = _memory(device) - before
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


def evaluate(args: Namespace, device) -> dict:
    """A whole evaluation of image files, by vectors and by all pairs, beside plain ones."""
    from datasets.images import Preprocessing
    from datasets.noise import draw_noise
    from retrieval.evaluate import evaluate as score
    from utils.precision import dtype_of
    from utils.speed import seconds_of

    method, encoded = _build(args, device), []
    method.tokenizer.register_forward_hook(lambda module, given, made: encoded.append(len(made)))
    preprocessing = Preprocessing(**method.inputs)
    dtype = dtype_of(args.amp, device)
    peaks = _peaks(device, dtype)
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
        image = _plain_image(method, queries, gallery, preprocessing, device)
    plain = _plain_pair(method, device, 1)
    rounds = -(-args.images // PLAIN_BLOCK)
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
        "peak memory MB": _memory(device),
        **_told_of_plain(plain, peaks),
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
    from retrieval.evaluate import CHECKED

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


# ---- what is measured


def _build(args: Namespace, device):
    """ZSE-SBIR on this ViT with random weights."""
    from model import build_model

    settings = {"vit": args.vit, "downsampling": args.downsampling}
    return build_model("zse_sbir", **settings).eval().to(device)


def _class_vectors(args: Namespace):
    """A method whose features are drawn: unit vectors around the centres of their classes."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from datasets.benchmark import ImageList
    from datasets.noise import noise_list
    from model.method import Method

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


# ---- the plain network


def _plain_pair(method, device, repeat: int) -> dict:
    """Seconds and operations of a pair, in a block of 20 x 20."""
    import torch

    from utils.speed import median_seconds, operations_of

    file = Path(__file__).parent / "tests" / "plain_network.py"
    spec = importlib.util.spec_from_file_location("plain_network", file)
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    shape = (PLAIN_BLOCK, method.tokenizer.tokens + 1, method.tokenizer.width)
    sketches, photos = (torch.randn(shape, device=device) for _ in range(2))

    def run():
        network.plain_pair_logits(method, sketches, photos)

    operations = operations_of(run) / PLAIN_BLOCK**2
    seconds = median_seconds(run, device, min(repeat, 3)) / PLAIN_BLOCK**2
    return {"seconds": seconds, "operations": operations}


def _plain_image(method, queries, gallery, preprocessing, device) -> float:
    """Seconds to read and encode an image in fp32, by blocks of 20."""
    import torch

    from utils.speed import median_seconds

    def run():
        for images in (queries, gallery):
            numbers = range(min(PLAIN_BLOCK, len(images)))
            batch = torch.stack([images.read(number, preprocessing) for number in numbers])
            method.encode(batch.to(device), "photo")

    count = min(PLAIN_BLOCK, len(queries)) + min(PLAIN_BLOCK, len(gallery))
    return median_seconds(run, device, 3) / count


def _told_of_plain(plain: dict, peaks: dict) -> dict:
    speed = plain["operations"] / plain["seconds"] / 1e9
    share = speed / peaks["peak GFLOP/s torch.float32"]
    verdict = "a fair measure" if share >= PLAIN_SHARE else f"below {PLAIN_SHARE:.0%}: no measure"
    return {
        "plain: ms a pair": 1e3 * plain["seconds"],
        "plain: GFLOP a pair": plain["operations"] / 1e9,
        "plain: GFLOP/s": speed,
        "plain: share of fp32 peak": share,
        "plain: verdict": verdict,
    }


# ---- figures


def _peaks(device, dtype) -> dict:
    import torch

    from utils.speed import peak_speed

    kinds = dict.fromkeys((torch.float32, dtype))
    return {f"peak GFLOP/s {kind}": peak_speed(device, kind) / 1e9 for kind in kinds}


def _memory(device) -> float:
    from utils.speed import peak_memory

    return peak_memory(device) / 1e6


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    run_script(main)
