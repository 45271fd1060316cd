"""bench.py measures what it says, at a size that takes seconds."""

import json

import pytest
import torch

import bench
from utils.errors import InputError
from utils.speed import SIDES, median_seconds, operations_of, peak_memory

SMALL = ["-c", "cpu", "--vit", "test_vit"]
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
    assert figures["plain: images encoded"] == 2 * 22 + 22  # the gallery twice, for 20 and for 2
    assert figures["pairs measured"] == 2 * 22
    for mode in ("-r sa", "-r rn"):
        ours = next(v for n, v in figures.items() if n.startswith(f"seconds, {mode}"))
        plain = figures[f"plain: seconds, {mode} (extrapolated)"]
        assert figures[f"times plain, {mode}"] == pytest.approx(plain / ours)


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
    told = iter([7.0, 1.0, 2.0])
    monkeypatch.setattr("utils.speed.seconds_of", lambda run, device: next(told))
    calls = []
    assert median_seconds(lambda: calls.append(1), CPU, 3) == 2.0
    assert len(calls) == 1  # the others went to seconds_of


def test_peak_memory_is_in_bytes_and_not_less_than_what_is_held():
    held = torch.ones(2**26)
    assert held.numel() * held.itemsize <= peak_memory(CPU) < 2**40
