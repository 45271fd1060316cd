"""bench.py measures what it says, at a size that takes seconds."""

import json

import least_vit  # noqa: F401
import pytest
import torch

import bench
from benches.plain_network import make_plain
from benches.training import LOADER_REPEAT
from datasets import DATASETS
from datasets.images import Preprocessing
from model import build_model
from model.zse.settings import ZSESettings
from training.picture_cache import PictureCache
from utils.errors import InputError
from utils.speed import SIDES, median_seconds, operations_of, peak_memory

SMALL = ["-c", "cpu", "--vit", "vit_least_patch8_32"]  # of least_vit
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch):
    monkeypatch.setitem(SIDES, "cpu", (256,))


def measured(tmp_path, *words) -> dict:
    file = tmp_path / "figures.json"
    assert bench.main([*map(str, words), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["environment"]["device"] == "cpu"
    return content["figures"]


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_pairs(tmp_path, capsys, amp):
    figures = measured(tmp_path, "pairs", *SMALL, "--repeat", 1, "--amp", amp)
    assert figures["ms a pair"] == pytest.approx(1e3 / figures["pairs/s"])
    assert figures["GFLOP a pair, executed"] < figures["GFLOP a pair, all tokens updated"]
    assert figures["GFLOP a pair, all tokens updated"] < figures["plain: GFLOP a pair"]
    ratio = figures["plain: ms a pair"] / figures["ms a pair"]
    assert figures["times plain"] == pytest.approx(ratio)
    dtype = "torch.float32" if amp == "off" else "torch.bfloat16"
    share = figures["GFLOP/s, executed"] / figures[f"peak GFLOP/s {dtype}"]
    assert figures["share of peak, executed"] == pytest.approx(share)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"figures: {tmp_path / 'figures.json'}"
    assert any(line.startswith("plain: verdict") for line in printed)


def test_encode(tmp_path):
    figures = measured(tmp_path, "encode", *SMALL, "--repeat", 1)
    speed = figures["images/s"] * figures["GFLOP an image"]
    assert figures["GFLOP/s"] == pytest.approx(speed)
    assert figures["peak memory MB"] > 50


def test_metrics(tmp_path):
    few = ["--queries", 60, "--photos", 90, "--width", 64, "--classes", 3]
    figures = measured(tmp_path, "metrics", "-c", "cpu", *few)
    ratio = figures["seconds, all metrics"] / figures["seconds, matrix product alone"]
    assert figures["times the matrix product"] == pytest.approx(ratio)
    assert 0.5 < figures["plain AP"] < 1  # of three classes, found by their centres


def test_evaluate_encodes_each_image_once(tmp_path):
    figures = measured(tmp_path, "evaluate", *SMALL, "--images", 22, "--sample", 2)
    assert figures["images encoded"] == figures["images in all"] == 44
    assert figures["pairs measured"] == 2 * 22
    assert figures["seconds, -r rn (extrapolated)"] > 0
    of_image = figures["seconds, -r sa"] / 44
    for split in (split for row in DATASETS.values() for split in row.splits.values()):
        modes = ("-r sa", "-r rerank --shortlist 1000", "-r rn")
        sa, rerank, rn = (figures[f"{split.title}, {m}: hours (extrapolated)"] for m in modes)
        assert sa == pytest.approx((split.sketches + split.photos) * of_image / 3600)
        assert sa < rerank <= rn


@pytest.mark.parametrize("workers", [0, 1])
def test_loader(tmp_path, workers):
    few = ["--images", 8, "--size", 64, "--side", 32, "--augment", "light"]
    figures = measured(tmp_path, "loader", "-c", "cpu", *few, "--num_workers", workers)
    places = ["in this process", "1 worker(s)"][: workers + 1]
    kinds = ("plain", "ours", "cached")
    speeds = {(p, k): figures.pop(f"images/s a worker, {p}, {k}") for p in places for k in kinds}
    for place in places:
        for kind in kinds[1:]:
            ratio = speeds[place, kind] / speeds[place, "plain"]
            assert figures.pop(f"times plain, {place}, {kind}") == pytest.approx(ratio)
    file = 2 * 4096 + 8 * 3 * 32 * 32  # a line, the stamps of 8 images, and their pictures
    assert figures == {"cache: bytes an image": file / 8}


def test_loader_reads_every_image_of_every_kind_as_often(tmp_path, monkeypatch):
    counts = {"levels": 0, "kept": 0}
    levels, read = Preprocessing.levels, PictureCache.read

    def count(name, call):
        def counted(*given):
            counts[name] += 1
            return call(*given)

        return counted

    monkeypatch.setattr(Preprocessing, "levels", count("levels", levels))
    monkeypatch.setattr(PictureCache, "read", count("kept", read))
    few = ["--images", 8, "--size", 64, "--side", 32]
    measured(tmp_path, "loader", "-c", "cpu", *few, "--num_workers", 0)
    rounds = 1 + 1 + LOADER_REPEAT  # counts, warms up, measures
    assert counts == {"levels": 8 * (2 * rounds + 1), "kept": 8 * (rounds + 1)}


@pytest.mark.parametrize(("amp", "recipe"), [("off", "strong"), ("bf16", "paper")])
def test_train(tmp_path, amp, recipe):
    few = ["--batch", 3, "--steps", 2, "--num_workers", 0, "--amp", amp, "--recipe", recipe]
    figures = measured(tmp_path, "train", *SMALL, *few)
    assert figures["images a step"] == {"strong": 6, "paper": 12}[recipe]
    dtype = {"off": "torch.float32", "bf16": "torch.bfloat16"}[amp]
    assert figures["computed in"] == dtype
    seconds = {}
    for name, kind in (("", dtype), ("plain: ", "torch.float32")):
        parts = [v for n, v in figures.items() if n.startswith(f"{name}ms a step")]
        assert len(parts) == 4 and min(parts) > 0
        seconds[name] = sum(parts) / 1e3
        assert figures[f"{name}images/s"] == pytest.approx(figures["images a step"] / seconds[name])
        share = figures[f"{name}images/s"] * figures["GFLOP an image"]
        share /= figures[f"peak GFLOP/s {kind}"]
        assert figures[f"{name}share of {kind} peak"] == pytest.approx(share)
    assert figures["times plain"] == pytest.approx(seconds["plain: "] / seconds[""])


def test_the_plain_network_has_the_same_losses_and_gradients():
    for settings in ({}, {"draws": "classes", "downsampling": "spatial", "shortcut": True}):
        torch.manual_seed(0)
        method = build_model(
            ZSESettings(vit="vit_least_patch8_32", dropout=0.0, **settings)
        ).train()
        side = method.inputs["size"]
        targets = torch.arange(6) % 3
        batch = {"sketches": torch.randn(6, 3, side, side), "sketch_targets": targets}
        batch |= {"photos": torch.randn(6, 3, side, side), "photo_targets": targets}
        batch["chances"] = torch.rand(6, 2)
        found = []
        for _ in range(2):
            method.zero_grad()
            losses = method(batch, 0.0)
            losses["total"].backward()
            gradients = {n: p.grad.clone() for n, p in method.named_parameters()}
            found.append((losses, gradients))
            make_plain(method)
        for ours, plain in zip(*found, strict=True):
            for name, tensor in plain.items():
                largest = max(1e-3, float(tensor.detach().abs().max()))
                assert torch.allclose(ours[name], tensor, rtol=0, atol=1e-3 * largest), name


def test_gallery(tmp_path):
    few = ["--count", 3000, "--width", 16, "--queries", 40, "--timed", 3]
    figures = measured(tmp_path, "gallery", "-c", "cpu", *few)
    assert figures["exact: recall@10 against exact"] == 1
    assert figures["exact: size MB"] == pytest.approx(3000 * 16 * 4 / 1e6, rel=0.01)
    assert 0.5 < figures["ivf: recall@10 against exact"] <= 1
    assert figures["ivf: size MB"] > figures["exact: size MB"]
    for kind in ("exact", "ivf"):
        assert figures[f"{kind}: ms a query, one at a time"] > 0


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        bench.main(["encode", *SMALL, "--json", str(tmp_path / "absent" / "file.json")])


def test_operations_are_two_a_multiplication_with_an_addition():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert operations_of(lambda: a @ b) == 2 * 3 * 5 * 7
    query = torch.randn(2, 3, 11, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        assert operations_of(lambda: attention(query, query, query)) == 2 * 3 * 11 * 11 * 8 * 4


def test_the_median_leaves_out_the_warm_up(monkeypatch):
    seconds = iter([7.0, 1.0, 2.0])
    monkeypatch.setattr("utils.speed.seconds_of", lambda run, device: next(seconds))
    calls = []
    assert median_seconds(lambda: calls.append(1), CPU, 3) == 2.0
    assert len(calls) == 1  # the others went to seconds_of


def test_peak_memory_is_in_bytes_and_not_less_than_what_is_held():
    held = torch.ones(2**26)
    assert held.numel() * held.itemsize <= peak_memory(CPU) < 2**40
