"""Method: what every retrieval method offers to training, to evaluation and to search."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.settings import TrainingSettings
from utils.errors import InputError

MODALITIES = ("sketch", "photo")
NO_LENGTH = 1e-12  # of vectors, as in torch's normalize
Features = dict[str, Tensor]
"""Features of B images by name, each tensor with B as its first dimension: (B, ...)."""


class Method(nn.Module, ABC):
    """Model and loss in one module, so that one loop trains every method and DDP wraps one thing.

    The constructor takes settings and how many seen classes there are (None: not to be trained).
    What each method sets, on its class or its instances:
      name           its key in METHODS
      settings       its settings; those that rebuild the model with the values that it has
      inputs         keyword arguments of datasets.images.Preprocessing: size in px, mean, std, crop
      batches        the kind of training batch, a key of training.batches.BATCHES
      training_only  beginnings of the names of tensors that only the losses use
      pair_features  names of the features that pair scores read, besides 'retrieval'
    """

    name: ClassVar[str]
    training_only: ClassVar[tuple[str, ...]] = ()
    pair_features: ClassVar[tuple[str, ...]] = ()
    settings: TrainingSettings
    inputs: dict
    batches: str

    @abstractmethod
    def losses(self, batch: dict, progress: float) -> dict[str, Tensor]:
        """Named scalar losses of a batch, already weighted; progress through training in [0, 1]."""

    @final
    def forward(self, batch: dict, progress: float) -> dict[str, Tensor]:
        """The losses and, as 'total', their sum."""
        losses = self.losses(batch, progress)
        return {**losses, "total": sum(losses.values())}

    @abstractmethod
    def encode(self, images: Tensor, modality: str) -> Features:
        """Features of each image, which can be kept. images: (B, 3, S, S); sketch or photo.

        'retrieval' (B, D) is what similarity() compares; pair_features and others may be added.
        """

    @abstractmethod
    def load_pretrained(self, path: Path | None) -> str:
        """Start from pretrained weights, of a file or (None) the usual ones; returns their name."""

    @classmethod
    def from_published(cls, content: Mapping, source: str, wanted: Mapping) -> dict | None:
        """A published checkpoint of this method in our form, with format 0; None for other files.

        source: name of the file, for messages. wanted: settings that the user named, of which some
        may not follow from the file. Raises InputError for a damaged file.
        """
        return None

    def similarity(self, queries: Features, gallery: Features) -> Tensor:
        """Cosine of the retrieval vectors: (Q, G), larger is closer; 0 where a vector is zero."""
        queries, gallery = F.normalize(queries["retrieval"], dim=-1), gallery["retrieval"]
        products = queries @ gallery.T  # divided afterwards: no copy of a large gallery
        return products / torch.linalg.vector_norm(gallery, dim=-1).clamp(min=NO_LENGTH)

    # A method that can score a pair from the features of both images defines pair_features and
    # pair_scorer(dtype, compiled) -> an object with two methods that take what encode() gives:
    #   prepare(features, modality) -> Features: all that depends on one image alone, in dtype
    #   __call__(queries, gallery) -> (Q, G) of prepared ones: float32, larger is closer
    # compiled: by torch.compile.
    pair_scorer = None

    @final
    def pair_similarity(self, queries: Features, gallery: Features) -> Tensor:
        """Scores (Q, G) of every pair in fp32; larger is closer."""
        score = self.pair_scorer(torch.float32)
        return score(score.prepare(queries, "sketch"), score.prepare(gallery, "photo"))

    @final
    def without_training(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict without the tensors that only the losses use."""
        return {n: t for n, t in state.items() if not n.startswith(self.training_only)}

    def parameter_groups(self) -> list[dict]:
        """Parameters for the optimiser, with a learning rate or decay of their own where needed."""
        return [{"params": list(self.parameters())}]

    def checkpoint_blocks(self) -> None:
        """Keep no activations inside blocks for the way back, but compute them again there.

        Raises InputError where a method has no such blocks.
        """
        raise InputError(f"--checkpoint_blocks: {self.name} has no blocks to compute again.")

    def before_training(self) -> None:
        """Called once before the first step of a run; not when a run is resumed."""

    def after_step(self, step: int) -> None:
        """Called after each optimiser step, counted from 1 (running averages and the like)."""
