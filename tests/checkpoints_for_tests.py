"""Checkpoints of small networks with random weights."""

from pathlib import Path

import torch

from model import build_model, checkpoint_of
from model.zse.settings import ZSESettings
from utils.checkpoints import save_atomically


def write_checkpoint(path: Path, classes: list[str], vit: str = "test_vit", **settings) -> None:
    """Write what training keeps as the best checkpoint. settings: of ZSESettings."""
    torch.manual_seed(0)
    method = build_model(ZSESettings(vit=vit, **settings))
    content = {
        **checkpoint_of(method, training=False),
        "epoch": 3,
        "classes": classes,
        "map_all": 0.5,
        "precision_100": 0.25,
    }
    save_atomically(content, path)
