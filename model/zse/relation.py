"""Kernel relation network: similarities between local tokens -> one score for a pair.

ZSE-SBIR (Lin et al., CVPR 2023). A pair of images is compared anchor by anchor; a small network
reads the whole matrix of similarities and scores how well the pair matches.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARPNESS = 10.0  # of DirectMatch: cosines are small, and its few weights should learn fast


def possible_anchors(tokens: int) -> list[int]:
    """Numbers of anchors that a count of patch tokens allows: 2 x 2 down-sampled, or all as is."""
    side = math.isqrt(tokens)
    return [(side // 2) ** 2, tokens] if side * side == tokens and side >= 2 else []


class RelationNetwork(nn.Module):
    """Patch tokens of a sketch and a photo, after cross-attention -> the logit of their match.

    width: D of the tokens. tokens: patch tokens per image (a square number).
    anchors: one of possible_anchors(tokens); fewer than tokens means a shared 2 x 2 convolution.
    downsampling: how that convolution reads the tokens. "spatial": as the grid of patches, so that
    an anchor is a region of the image. "published": as released weights need it, the (N, D) block
    of memory is read as (D, side, side) without a transpose, so that anchors mix all patches.
    shortcut: beyond the paper, the logit is the network's plus that of DirectMatch.
    """

    def __init__(
        self,
        *,
        width: int,
        tokens: int,
        anchors: int,
        downsampling: str,
        shortcut: bool,
        dropout: float,
    ):
        super().__init__()
        self.reduce = None
        if anchors != tokens:
            self.reduce = Downsampling(width, width * 2 // 3, reading=downsampling)  # 768 > 512
        inner = round(anchors * math.sqrt(anchors))
        self.score = nn.Sequential(
            nn.Linear(anchors * anchors, inner),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(inner, anchors),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(anchors, 1),
        )
        self.shortcut = DirectMatch() if shortcut else None

    def forward(self, sketch: Tensor, photo: Tensor, cosines: Tensor | None = None) -> Tensor:
        """Logits (B,) of B pairs; their sigmoid is the published score. Patch tokens: (B, N, D).

        cosines: (B,), of the retrieval tokens before cross-attention, for the shortcut.
        """
        return self.compare(self.anchors(sketch), self.anchors(photo), cosines)

    def anchors(self, tokens: Tensor) -> Tensor:
        """The anchors of patch tokens: (B, N, D) -> (B, A, C)."""
        return tokens if self.reduce is None else self.reduce(tokens)

    def compare(self, sketch: Tensor, photo: Tensor, cosines: Tensor | None = None) -> Tensor:
        """Logits (B,) of B pairs, by their anchors: (B, A, C) each. In fp32 under autocast, too."""
        with torch.autocast(sketch.device.type, enabled=False):
            similarities = anchor_similarities(sketch.float(), photo.float())  # (B, A, A)
            logits = self.score(similarities.flatten(1)).squeeze(1)
            if self.shortcut is None:
                return logits
            return logits + self.shortcut(cosines, similarities)


class Downsampling(nn.Conv2d):
    """A 2 x 2 convolution of stride 2 over patch tokens. reading: see RelationNetwork.

    As a matrix product over the windows, which do not overlap: faster than as a convolution.
    """

    def __init__(self, width: int, channels: int, *, reading: str):
        super().__init__(width, channels, kernel_size=2, stride=2)
        self.to(memory_format=torch.channels_last)  # in which forward() reads the weights
        self.reading = reading

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, A, channels)."""
        return self.of_windows(self.windows(tokens))

    def windows(self, tokens: Tensor) -> Tensor:
        """Tokens by windows: (B, N, D) -> (B, A, 4 D), without an odd last row and column."""
        B, N, D = tokens.shape
        side = math.isqrt(N)
        even = side // 2 * 2
        if self.reading == "spatial":
            grid = tokens.reshape(B, side, side, D)
        else:
            grid = tokens.reshape(B, D, side, side).movedim(1, -1)  # (B, side, side, D)
        windows = grid[:, :even, :even].unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return windows.transpose(2, 3).reshape(B, even * even // 4, 4 * D)

    def of_windows(self, windows: Tensor) -> Tensor:
        """(B, A, 4 D) -> (B, A, channels)."""
        return F.linear(windows, self.weight.movedim(1, -1).flatten(1), self.bias)


class DirectMatch(nn.Module):
    """A weighed sum of three cosines of a pair: a score that is useful before training.

    The cosine of the two retrieval tokens before cross-attention, by which the score starts; the
    mean cosine of a sketch anchor with its best photo anchor; and that of a photo anchor with its
    best sketch anchor.
    """

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))
        self.bias = nn.Parameter(torch.tensor(-0.8))

    def forward(self, cosines: Tensor, similarities: Tensor) -> Tensor:
        """Logits (B,). Cosines of retrieval tokens: (B,), of anchors: (B, A, A)."""
        read = [
            cosines,
            similarities.amax(dim=2).mean(dim=1),
            similarities.amax(dim=1).mean(dim=1),
        ]
        weighed = torch.stack(read, dim=1) * self.weights  # no matmul: that may be in TF32
        return SHARPNESS * (weighed.sum(dim=1) + self.bias)


def anchor_similarities(sketch: Tensor, photo: Tensor) -> Tensor:
    """Cosines (B, A, A), row = sketch anchor; 0 where a vector is zero. Anchors: (B, A, C) each."""
    return torch.bmm(F.normalize(sketch, dim=-1), F.normalize(photo, dim=-1).transpose(1, 2))
