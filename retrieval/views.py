"""Views of an image at test time: its retrieval vector is the mean direction over all of them."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _view(mirrored: bool = False, degrees: float = 0.0, scale: float = 1.0, shear: float = 0.0):
    """The affine map of a view, 2 x 3, from places in it to places in the image (-1 to 1).

    scale: of what is shown; 0.9 leaves a margin, 1.1 crops. shear: in degrees, along x.
    """
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    lean = torch.tensor([[1.0, math.tan(math.radians(shear))], [0.0, 1.0]])
    mirror = torch.diag(torch.tensor([-1.0 if mirrored else 1.0, 1.0]))
    return F.pad(mirror @ turn @ lean / scale, (0, 1))


_PLAIN, _MIRRORED = _view(), _view(mirrored=True)
VIEWS = {
    "plain": {"sketch": [_PLAIN], "photo": [_PLAIN]},
    "mirror": {"sketch": [_PLAIN, _MIRRORED], "photo": [_PLAIN, _MIRRORED]},
    "many": {
        "sketch": [
            _PLAIN,
            _MIRRORED,
            _view(degrees=8),
            _view(degrees=-8),
            _view(scale=0.92),
            _view(scale=0.85),
            _view(shear=8),
            _view(shear=-8),
        ],
        "photo": [_PLAIN, _MIRRORED, _view(scale=1.14)],
    },
}
"""Views by name and modality; the first is the image as it is."""


def encode_views(method, images: Tensor, modality: str, views: str) -> dict[str, Tensor]:
    """method.encode(images, modality), its 'retrieval' the mean direction over the views.

    images: (B, 3, S, S); whatever else the method encodes is that of the image as it is.
    """
    others = VIEWS[views][modality][1:]
    features = method.encode(images, modality)
    if not others:
        return features
    total = F.normalize(features["retrieval"], dim=-1)
    for view in others:
        seen = method.encode(see(images, view), modality)["retrieval"]
        total = total + F.normalize(seen, dim=-1)
    return {**features, "retrieval": total}


def see(images: Tensor, view: Tensor) -> Tensor:
    """The images through a view; beyond their edge, the edge goes on."""
    maps = view.to(images).expand(len(images), -1, -1)  # (B, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
