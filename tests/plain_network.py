"""ZSE-SBIR's pair scores as the paper states them, pair by pair and with nothing saved.

What the fast path in model/pairs.py is held against, and the "plain" network that bench.py times.
It shares weights with a method, not code. Lin et al., CVPR 2023.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_pair_logits(method, sketches: Tensor, photos: Tensor) -> Tensor:
    """Logits (Q, G) of every pair of sketch tokens (Q, 1 + N, D) and photo tokens (G, 1 + N, D)."""
    Q, G = len(sketches), len(photos)
    sketch, photo = sketches.repeat_interleave(G, dim=0), photos.repeat(Q, 1, 1)  # (Q G, 1 + N, D)
    cosines = _cosines(method, sketch[:, 0], photo[:, 0])
    cross = method.cross_attention
    for of_sketch, of_photo in zip(cross.sketch_layers, cross.photo_layers, strict=True):
        sketch, photo = _layer(of_sketch, sketch, photo), _layer(of_photo, photo, sketch)
    a, b = (_anchors(method.relation, tokens[:, 1:]) for tokens in (sketch, photo))
    similarities = _unit(a) @ _unit(b).transpose(1, 2)  # (Q G, A, A)
    first, _, _, second, _, _, third = method.relation.score
    hidden = F.relu(second(F.relu(first(similarities.flatten(1)))))
    logits = third(hidden)[:, 0]
    shortcut = method.relation.shortcut
    if shortcut is not None:
        best = [similarities.max(dim=2).values.mean(1), similarities.max(dim=1).values.mean(1)]
        three = torch.stack([cosines, *best], dim=1)
        logits = logits + 10 * (three @ shortcut.weights + shortcut.bias)
    return logits.view(Q, G)


def _layer(layer, own: Tensor, other: Tensor) -> Tensor:
    """One cross-attention layer for pairs, its projections among them: (B, N, D) -> (B, N, D)."""

    def heads(tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], layer.heads, -1).transpose(1, 2)  # (B, H, N, D/H)

    query, key, value = heads(layer.query(own)), heads(layer.key(other)), heads(layer.value(own))
    attention = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    attended = layer.out((attention @ value).transpose(1, 2).flatten(2))
    tokens = _norm(layer.norm1, own + attended)
    return _norm(layer.norm2, tokens + layer.fc2(F.relu(layer.fc1(tokens))))


def _norm(norm, x: Tensor) -> Tensor:
    deviation = x.std(dim=-1, keepdim=True)
    return norm.scale * (x - x.mean(dim=-1, keepdim=True)) / (deviation + norm.eps) + norm.shift


def _anchors(relation, tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, A, C), by the convolution itself."""
    if relation.reduce is None:
        return tokens
    B, N, D = tokens.shape
    side = math.isqrt(N)
    if relation.reduce.reading == "spatial":
        grid = tokens.transpose(1, 2).reshape(B, D, side, side)
    else:
        grid = tokens.reshape(B, D, side, side)
    return F.conv2d(grid, relation.reduce.weight, relation.reduce.bias, stride=2).flatten(2).mT


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _cosines(method, sketch: Tensor, photo: Tensor) -> Tensor:
    """Of retrieval tokens, as `-r sa` compares them: (B,)."""
    if method.whitening is not None:
        sketch, photo = method.whitening(sketch, 0), method.whitening(photo, 1)
    return (_unit(sketch) * _unit(photo)).sum(dim=1)
