"""Against outputs recorded from the published program (tests/golden/official_a.npz).

No weights are stored: they are drawn from the name of each tensor.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from model import build_model
from model.zse.published import from_published
from model.zse.settings import ZSESettings
from utils.checkpoints import load_strictly

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parents[2] / "golden"
NORMS = ("norm.a", "layer_norm_input.weight", "layer_norm_out.weight", "encoder_norm.weight")


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "official_a.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def computed():
    """What our network computes from the same weights and images, by the recorded names."""
    content = from_published({"model": _draw_weights()}, "drawn weights", {"heads": 8})
    with torch.device("meta"):  # no time for an initialisation that is written over
        method = build_model(ZSESettings(**content["settings"]))
    method.to_empty(device="cpu").eval()
    load_strictly(method, content["model"], "drawn weights")
    with torch.inference_mode():
        sketches = method.encode(_draw_images("sketches", 3), "sketch")
        photos = method.encode(_draw_images("photos", 4), "photo")
        crossed_sketch, crossed_photo = [], []
        for sketch in sketches["tokens"]:
            beside = sketch.expand(4, -1, -1)
            crossed = method.cross_attention(beside, photos["tokens"])
            crossed_sketch.append(crossed[0][:, 0, ::8])
            crossed_photo.append(crossed[1][:, 0, ::8])
        retrieval = [
            torch.nn.functional.normalize(side["retrieval"], dim=-1) for side in (sketches, photos)
        ]
        return {
            "sketch_tokens": sketches["tokens"][:, :3, ::16],
            "photo_tokens": photos["tokens"][:, :3, ::16],
            "sketch_cls": sketches["retrieval"],
            "photo_cls": photos["retrieval"],
            "cross_sketch_cls": torch.stack(crossed_sketch),
            "cross_photo_cls": torch.stack(crossed_photo),
            "rn": method.pair_similarity(sketches, photos).sigmoid(),
            "sa_distance": torch.cdist(*retrieval),
        }


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("sketch_tokens", 1e-5),
        ("photo_tokens", 1e-5),
        ("sketch_cls", 1e-5),
        ("photo_cls", 1e-5),
        ("cross_sketch_cls", 1e-5),
        ("cross_photo_cls", 1e-5),
        ("rn", 1e-6),
        ("sa_distance", 1e-6),
    ],
)
def test_agrees_with_the_published_program(name, tolerance, computed, recorded):
    torch.testing.assert_close(computed[name], recorded[name], rtol=0, atol=tolerance)


def test_every_recorded_array_is_compared(computed, recorded):
    assert set(computed) == set(recorded)


def _draw_weights() -> dict[str, torch.Tensor]:
    shapes = json.loads((GOLDEN / "official_a_keys.json").read_text())
    return {name: _draw_tensor(name, shape) for name, shape in shapes.items()}


def _draw_tensor(name: str, shape: list[int]) -> torch.Tensor:
    drawn = torch.randn(shape, generator=_generator(name))
    if name.endswith(NORMS):
        return 1 + 0.1 * drawn
    if len(shape) == 1:
        return 0.1 * drawn
    if name.endswith(("pos_embedding", ".cls")):
        return 0.5 * drawn
    return drawn * math.sqrt(2 / math.prod(shape[1:]))


def _draw_images(name: str, count: int) -> torch.Tensor:
    base = torch.randn((count, 3, 14, 14), generator=_generator(name))
    return torch.nn.functional.interpolate(base, size=224, mode="nearest").clamp(-2, 2)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"a:{name}".encode()))
