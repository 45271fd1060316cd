"""Losses shared by methods: tensors in, one scalar out."""

import torch
from torch import Tensor
from torch.nn import functional as F


def classwise_contrastive(
    sketches: Tensor,
    photos: Tensor,
    sketch_targets: Tensor,
    photo_targets: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """Supervised contrastive loss between two modalities, both ways (Khosla et al., NeurIPS 2020).

    Each sketch has to find the photos of its class among all photos of the batch, and each photo
    its sketches. sketches: (S, D), photos: (P, D), not normalised; targets: (S,), (P,) class
    numbers. An image without a partner in the other modality does not count; without a pair: 0.
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


def relation_mse(logits: Tensor, matches: Tensor) -> Tensor:
    """Published: squared distance of the score to 0.99 for a match and 0.01 for another pair."""
    return F.mse_loss(logits.sigmoid(), 0.01 + 0.98 * matches)


def relation_logistic(logits: Tensor, matches: Tensor) -> Tensor:
    """Logistic loss; matching pairs together weigh as much as the others together.

    logits, matches (1 or 0): (B,), both kinds present.
    """
    losses = F.binary_cross_entropy_with_logits(logits, matches, reduction="none")
    of_matches, of_others = losses * matches, losses * (1 - matches)
    return (of_matches.sum() / matches.sum() + of_others.sum() / (1 - matches).sum()) / 2


@torch.no_grad()
def mine_pairs(
    sketches: Tensor,
    photos: Tensor,
    sketch_targets: Tensor,
    photo_targets: Tensor,
    chances: Tensor,
    hardest: int,
) -> tuple[Tensor, Tensor]:
    """Pairs of a batch: each sketch with a photo of its class, then with a photo of another class.

    The match is any photo of the class, the other any of the `hardest` photos of other classes that
    look most like the sketch (cosine). chances: (S, 2), uniform in [0, 1), choose: the same chances
    choose the same pairs, in whatever order the photos come. sketches: (S, D), photos: (P, D),
    targets (S,), (P,); each sketch has a match and the batch two classes. Numbers of sketches and
    of photos, (2 S,) each; the first S pairs match.
    """
    similarity = F.normalize(sketches, dim=-1) @ F.normalize(photos, dim=-1).T  # (S, P)
    same = sketch_targets[:, None] == photo_targets[None, :]
    matches = similarity.masked_fill(~same, -torch.inf)
    others = similarity.masked_fill(same, -torch.inf)
    nearest = others.topk(min(hardest, others.shape[1]), dim=1)  # (S, hardest)
    # Fewer where the batch has few other classes; none where tokens are not finite: losses show it.
    possible = nearest.values.isfinite().sum(dim=1)
    matching = _chosen(matches.argsort(dim=1, descending=True), same.sum(dim=1), chances[:, 0])
    other = _chosen(nearest.indices, possible, chances[:, 1])
    sketch_numbers = torch.arange(len(sketches), device=sketches.device)
    return sketch_numbers.repeat(2), torch.cat([matching, other])


def _chosen(candidates: Tensor, counts: Tensor, chances: Tensor) -> Tensor:
    """One of the first `counts` candidates of each row: (S, P), (S,), (S,) -> (S,)."""
    places = torch.minimum((chances * counts).long(), counts - 1).clamp(min=0)
    return candidates.gather(1, places[:, None]).squeeze(1)
