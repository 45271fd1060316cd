"""The same on a GPU as on the CPU; skipped where there is none."""

import json

import pytest
import torch
from sample_data import write_benchmark

import test
import train
from model import build_model
from model.zse.settings import ZSESettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here"),
]


def test_pair_scores_and_similarities_equal_the_cpu_s():
    torch.manual_seed(0)
    method = build_model(ZSESettings(vit="test_vit")).eval()
    images = torch.randn(3, 3, 160, 160)
    scores = []
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for device in ("cpu", "cuda"):
            method.to(device)
            features = method.encode(images.to(device), "sketch")
            pairs = method.pair_similarity(features, features)
            scores.append((pairs.cpu(), method.similarity(features, features).cpu()))
    for on_cpu, on_gpu in zip(*scores, strict=True):
        assert torch.allclose(on_cpu, on_gpu, atol=1e-4)


def test_a_run_trains_resumes_and_is_scored_on_the_gpu(tmp_path):
    write_benchmark(tmp_path)
    data = [
        "--data_path",
        str(tmp_path),
        "-c",
        "0",
        "--num_workers",
        "1",
        "-s",
        str(tmp_path / "run"),
    ]
    small = ["--vit", "test_vit", "--no-pretrained", "--batch", "3", "--datasetLen", "9"]
    assert train.main([*data, *small, "--epoch", "1"]) == 0
    assert train.main([*data, *small, "--epoch", "2", "--resume"]) == 0
    assert test.main([*data, "--testall"]) == 0
    result = next((tmp_path / "run").glob("*.all.json"))
    assert json.loads(result.read_text())["environment"]["device"] == "cuda:0"
