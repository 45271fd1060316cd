"""What tests of model/ share: small models, random images, files as people have them."""

import functools

import numpy as np
import pytest
import timm
import torch
from torch import nn

from model import build_model
from model.zse.published import to_published
from model.zse.settings import ZSESettings


@pytest.fixture
def build_small():
    """A function that builds ZSE on timm's smallest ViT, in evaluation mode.

    160 px, width 64, 6 blocks, 100 patch tokens: 25 or 100 anchors. Every tensor that learns is
    random, also the biases and norms that start at 0 and 1, so that no mix-up among them goes
    unnoticed. classes: as in build_model; changed: settings.
    """

    def build(seed: int = 0, classes: int | None = None, **changed):
        torch.manual_seed(seed)
        method = build_model(ZSESettings(**{"vit": "test_vit", **changed}), classes)
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return method.eval()

    return build


@pytest.fixture
def timm_vit():
    """A function that builds timm's own small ViT, random in every tensor, with our norms' eps."""

    def build(**settings) -> nn.Module:
        torch.manual_seed(1)
        norm = functools.partial(nn.LayerNorm, eps=1e-5)
        vit = timm.create_model("test_vit", norm_layer=norm, **settings)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return vit.eval()

    return build


@pytest.fixture
def draw_images():
    """A function that draws normalised images: (count, 3, size, size)."""

    def draw(count: int, size: int = 160, seed: int = 0) -> torch.Tensor:
        return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def checkpoint_of():
    """A function that puts a method into a checkpoint of ours, as train.py does."""

    def checkpoint(method, /, **changed) -> dict:
        return {
            "format": 1,
            "method": method.name,
            "settings": method.settings.of_model(),
            "model": {name: tensor.clone() for name, tensor in method.state_dict().items()},
            "epoch": 7,
            "classes": ["cat", "dog"],
            "map_all": 0.5,
            "precision_100": 0.25,
            **changed,
        }

    return checkpoint


@pytest.fixture
def as_downloaded(checkpoint_of):
    """A function that puts a method into the published form: `module.` and numpy scalars."""

    def content(method) -> dict:
        published = to_published(checkpoint_of(method))
        return {
            "model": {f"module.{name}": tensor for name, tensor in published["model"].items()},
            "epoch": 12,
            "map_all": np.float64(0.698),
            "precision_100": np.float64(0.797),
        }

    return content
