"""ZSE-SBIR as the paper states it, pair by pair and with nothing saved.

The "plain" network that bench.py times, and that tests hold the fast paths of model/ against. It
shares weights with a method, not code. Lin et al., CVPR 2023.
"""

import math
from functools import partial

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


def make_plain(method) -> None:
    """Have every module of a method compute what it does in the plain way, in training too."""
    plain = {
        "CrossAttentionLayer": _layer,
        "UnbiasedLayerNorm": _norm,
        "Downsampling": _reduced,
        "ScaleStem": _stem,
    }
    for module in method.modules():
        kind = type(module).__name__
        if kind in plain:
            module.forward = partial(plain[kind], module)
        if hasattr(module, "fused_attn"):  # timm's attention: the matrix is made, then used
            module.fused_attn = False


def _layer(layer, own: Tensor, other: Tensor, pairs: tuple | None = None) -> Tensor:
    """One cross-attention layer for pairs, its projections among them: (B, N, D) -> (B, N, D)."""
    if pairs:
        own, other = own[pairs[0]], other[pairs[1]]

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, layer.dropout, layer.training)

    def heads(tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], layer.heads, -1).transpose(1, 2)  # (B, H, N, D/H)

    query, key, value = heads(layer.query(own)), heads(layer.key(other)), heads(layer.value(own))
    attention = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    attended = layer.out((drop(attention) @ value).transpose(1, 2).flatten(2))
    tokens = _norm(layer.norm1, own + drop(attended))
    return _norm(layer.norm2, tokens + drop(layer.fc2(drop(F.relu(layer.fc1(tokens))))))


def _norm(norm, x: Tensor) -> Tensor:
    deviation = x.std(dim=-1, keepdim=True)
    return norm.scale * (x - x.mean(dim=-1, keepdim=True)) / (deviation + norm.eps) + norm.shift


def _anchors(relation, tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, A, C)."""
    return tokens if relation.reduce is None else _reduced(relation.reduce, tokens)


def _reduced(reduce, tokens: Tensor) -> Tensor:
    """Down-sampling by the convolution itself: (B, N, D) -> (B, A, C)."""
    B, N, D = tokens.shape
    side = math.isqrt(N)
    if reduce.reading == "spatial":
        grid = tokens.transpose(1, 2).reshape(B, D, side, side)
    else:
        grid = tokens.reshape(B, D, side, side)
    return F.conv2d(grid, reduce.weight, reduce.bias, stride=2).flatten(2).mT


def _stem(stem, x: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, D, S / P, S / P), in torch's own layout."""
    for number, convolution in enumerate(stem.convolutions):
        x = convolution(F.relu(x) if number else x)
    return x


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _cosines(method, sketch: Tensor, photo: Tensor) -> Tensor:
    """Of retrieval tokens, as `-r sa` compares them: (B,)."""
    if method.whitening is not None:
        sketch, photo = method.whitening(sketch, 0), method.whitening(photo, 1)
    return (_unit(sketch) * _unit(photo)).sum(dim=1)
