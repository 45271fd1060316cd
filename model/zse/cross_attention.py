"""Cross-attention between the tokens of a sketch and of a photo (ZSE-SBIR, Lin et al., CVPR 2023).

Each side attends to the other side, but keeps its own content: queries and values come from the
side itself, keys from the other one.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Pairs = tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Layers that update sketch and photo tokens side by side, each reading the other's.

    checkpointing (attribute): layers keep no activations for the way back, but compute them again.
    """

    def __init__(self, *, width: int, heads: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        arguments = {"width": width, "heads": heads, "hidden": hidden, "dropout": dropout}
        self.sketch_layers = nn.ModuleList(CrossAttentionLayer(**arguments) for _ in range(layers))
        self.photo_layers = nn.ModuleList(CrossAttentionLayer(**arguments) for _ in range(layers))
        self.checkpointing = False

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Make every layer return its own tokens, normalised, until it has learned something."""
        for layer in (*self.sketch_layers, *self.photo_layers):
            for last in (layer.out, layer.fc2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(
        self, sketch: Tensor, photo: Tensor, pairs: Pairs | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens of sketches (S, N, D) and photos (P, N, D) -> both of B pairs, cross-attended.

        pairs: numbers of the sketch and of the photo of each pair, (B,) each, so that an image in
        several pairs is projected once; None: sketch i with photo i. Returns two of (B, N, D).
        """
        for sketch_layer, photo_layer in zip(self.sketch_layers, self.photo_layers, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                sketch_layer = partial(checkpoint, sketch_layer, use_reentrant=False)
                photo_layer = partial(checkpoint, photo_layer, use_reentrant=False)
            sketch, photo = (
                sketch_layer(sketch, photo, pairs),
                photo_layer(photo, sketch, pairs and pairs[::-1]),
            )
            pairs = None
        return sketch, photo


class CrossAttentionLayer(nn.Module):
    """Attention with the other side as keys, then a two-layer network; both normalised after."""

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = UnbiasedLayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.norm2 = UnbiasedLayerNorm(width)

    def forward(self, own: Tensor, other: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Own tokens, updated: (B, N, D). Values are `own`, hence one N for both.

        pairs: numbers of the own and of the other image of each pair; None: i with i.
        """
        query, key, value = self.query(own), self.key(other), self.value(own)
        if pairs:
            own, query, value = (tokens.index_select(0, pairs[0]) for tokens in (own, query, value))
            key = key.index_select(0, pairs[1])
        attended = F.scaled_dot_product_attention(
            split_heads(query, self.heads),
            split_heads(key, self.heads),
            split_heads(value, self.heads),
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, N, D/H)
        attended = self.out(attended.transpose(1, 2).flatten(2))  # (B, N, D)
        tokens = self.norm1(own + self._drop(attended))
        hidden = self._drop(F.relu(self.fc1(tokens), inplace=True))
        return self.norm2(tokens + self._drop(self.fc2(hidden)))

    def _drop(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)


class UnbiasedLayerNorm(nn.Module):
    """scale * (x - mean) / (std + eps) + shift with the unbiased standard deviation.

    Not torch's LayerNorm: that divides by sqrt(biased variance + eps). Released weights need this.
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension: (..., D) -> (..., D)."""
        centred = x - x.mean(dim=-1, keepdim=True)
        # Not x.std(): on CPUs that alone takes four times as long as all of this.
        deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        deviation = deviation / math.sqrt(x.shape[-1] - 1)
        return torch.addcmul(self.shift, centred / (deviation + self.eps), self.scale)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, D/H)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
