"""Losses shared by methods: tensors in, one scalar out."""

import torch
from torch import Tensor
from torch.nn import functional as F


def classwise_contrastive(
    sketches: Tensor,
    photos: Tensor,
    sketch_targets: Tensor,
    photo_targets: Tensor,
    temperature: float,
) -> Tensor:
    """Supervised contrastive loss between two modalities, both ways (Khosla et al., NeurIPS 2020).

    Each sketch is to find the photos of its class among all photos of the batch, and each photo its
    sketches. sketches: (S, D), photos: (P, D), not normalised; targets: (S,), (P,) class numbers.
    An image without a partner in the other modality does not count; with no pair at all: 0.
    """
    sketches, photos = F.normalize(sketches, dim=-1), F.normalize(photos, dim=-1)
    logits = sketches @ photos.T / temperature  # (S, P)
    same = sketch_targets[:, None] == photo_targets[None, :]  # (S, P)
    return (_find_partners(logits, same) + _find_partners(logits.T, same.T)) / 2


def _find_partners(logits: Tensor, same: Tensor) -> Tensor:
    """Mean over the rows that have partners of -log softmax, averaged over the partners."""
    log_probability = logits.log_softmax(dim=1)
    partners = same.sum(dim=1)
    of_row = -torch.where(same, log_probability, 0).sum(dim=1) / partners.clamp(min=1)
    return of_row.sum() / (partners > 0).sum().clamp(min=1)
