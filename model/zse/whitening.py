"""Whitening of retrieval tokens: remove what all sketches, or all photos, have in common.

Each modality's mean is subtracted, and the covariance within the modalities is evened out, as in
linear discriminant analysis. Both are measured on the training images, never on the gallery.
"""

import torch
from torch import Tensor, nn

from utils.distributed import mean_over_processes

MOMENTUM = 0.03  # with which means and covariance follow the batches
SHRINKAGE = 5.0  # mean variances added to the diagonal: small directions are mostly noise


class Whitening(nn.Module):
    """Means of the modalities and their common covariance, updated while training.

    width: D of the tokens; modalities: how many. Until the first batch, tokens are only scaled.
    """

    def __init__(self, *, width: int, modalities: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(modalities, width))
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("batches", torch.zeros(()))  # seen so far

    @torch.no_grad()
    def follow(self, *tokens: Tensor) -> None:
        """Move towards the batch: (B, D) of each modality. Running averages, exact at first."""
        self.batches += 1
        momentum = (1 / self.batches).clamp(min=MOMENTUM)
        with torch.autocast(self.means.device.type, enabled=False):
            of_batch = torch.stack([side.float().mean(dim=0) for side in tokens])
            self.means.lerp_(mean_over_processes(of_batch), momentum)
            centred = [side.float() - mean for side, mean in zip(tokens, self.means, strict=True)]
            of_batch = sum(side.T @ side / len(side) for side in centred) / len(centred)
            self.covariance.lerp_(mean_over_processes(of_batch), momentum)

    def forward(self, tokens: Tensor, modality: int) -> Tensor:
        """Tokens (B, D) of a modality, by its number, whitened: (B, D) in float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            variance = self.covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
            even = torch.eye(len(self.covariance), device=tokens.device)
            shrunk = self.covariance / variance + SHRINKAGE * even
            factor = torch.linalg.cholesky_ex(shrunk).L
            centred = tokens.float() - self.means[modality]
            return torch.linalg.solve_triangular(factor, centred.T, upper=False).T
