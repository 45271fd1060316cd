"""ZSE-SBIR: tokenizer, cross-attention and kernel relation network.

Lin et al., Zero-Shot Everything Sketch-Based Image Retrieval, and in Explainable Style, CVPR 2023.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import load_pretrained
from model.losses import (
    classwise_contrastive,
    mine_pairs,
    relation_logistic,
    relation_mse,
)
from model.method import MODALITIES, Features, Method
from model.zse.cross_attention import CrossAttention
from model.zse.pairs import PairScorer
from model.zse.published import backbone_from_file, from_published
from model.zse.relation import RelationNetwork, possible_anchors
from model.zse.settings import ZSESettings
from model.zse.tokenizer import Tokenizer
from model.zse.whitening import Whitening
from utils.distributed import gather_rows
from utils.errors import InputError

TRIPLET_MARGIN = 1.0
RELATION_LOSSES = {"mse": relation_mse, "logistic": relation_logistic}
HARDEST = 8  # photos of other classes among which a batch's pairs find theirs
HIGHEST_SCALE = 100.0  # of the contrastive logits: one over the temperature
LABEL_SMOOTHING = 0.1


class ZSE(Method):
    """Two ways to compare a sketch with a photo, from one tokenizer.

    similarity: cosine of the retrieval tokens before cross-attention (published: `-r sa`).
    pair_similarity: logit of the relation network after cross-attention (published: `-r rn`).
    Raises InputError for settings that do not go together.
    """

    name = "zse_sbir"
    training_only = ("classifier.", "contrastive_scale", "teacher.")  # the last: of former runs
    pair_features = ("tokens",)

    def __init__(self, settings: ZSESettings, classes: int | None = None):
        super().__init__()
        dropout = settings.dropout
        self.tokenizer = Tokenizer(vit=settings.vit, keep_rate=settings.keep_rate, dropout=dropout)
        width, tokens = self.tokenizer.width, self.tokenizer.tokens
        _check_width(settings, width)
        settings = replace(
            settings,
            width=width,
            hidden=settings.hidden or width * 4 // 3,
            anchors=_checked_anchors(settings, tokens),
        )
        self.settings, self.batches = settings, settings.draws
        self.cross_attention = CrossAttention(
            width=width,
            heads=settings.heads,
            hidden=settings.hidden,
            layers=settings.layers,
            dropout=dropout,
        )
        self.relation = RelationNetwork(
            width=width,
            tokens=tokens,
            anchors=settings.anchors,
            downsampling=settings.downsampling,
            shortcut=settings.shortcut,
            dropout=dropout,
        )
        if settings.shortcut:
            self.cross_attention.start_as_identity()
        self.whitening = None
        if settings.whitening:
            self.whitening = Whitening(width=width, modalities=len(MODALITIES))
        if settings.contrastive_weight:
            scale = torch.tensor(1 / settings.temperature).log()
            learns = settings.learn_temperature
            self.contrastive_scale = nn.Parameter(scale, requires_grad=learns)
        self.classifier = None
        if settings.classification_weight and classes is not None:
            self.classifier = nn.Linear(width, classes)
        image = self.tokenizer.vit.pretrained_cfg
        self.inputs = {
            "size": self.tokenizer.vit.patch_embed.img_size[0],
            "mean": tuple(image["mean"]),
            "std": tuple(image["std"]),
            "crop": True,
        }

    def losses(self, batch: dict, progress: float) -> dict[str, Tensor]:
        """The losses of a batch, which training/batches.py describes.

        Half of the pairs match, and come first. Of triplets, pair i is sketch i with photo i (the
        published pairs); of classes, pairs are mined, see losses.py. Contrast and mining see the
        photos of all processes: together they compute the losses of one with all their images.
        """
        images = batch["sketches"], batch["photos"]
        sketch, photo = self.tokenizer(torch.cat(images)).split([len(side) for side in images])
        retrieval = sketch[:, 0].float(), photo[:, 0].float()
        if self.training and self.whitening is not None:
            self.whitening.follow(*retrieval)
        compared = [self._compared(t, m) for t, m in zip(retrieval, MODALITIES, strict=True)]
        pairs = None
        if self.batches == "classes":
            pairs, compared, photo = self._mined(batch, compared, photo)
        cosines = F.cosine_similarity(*compared)  # (B,)
        crossed_sketch, crossed_photo = self.cross_attention(sketch, photo, pairs)
        logits = self.relation(crossed_sketch[:, 1:], crossed_photo[:, 1:], cosines)  # (B,)
        with torch.autocast(logits.device.type, enabled=False):
            crossed = crossed_sketch[:, 0].float(), crossed_photo[:, 0].float()
            losses = {"triplet": _triplet(*crossed), "relation": self._relation(logits)}
            losses |= self._retrieval_losses(*retrieval, batch)
        return self._weighted(losses)

    def encode(self, images: Tensor, modality: str) -> Features:
        """'retrieval' (B, D) and 'tokens' (B, 1 + N, D); both modalities share the tokenizer."""
        tokens = self.tokenizer(images)
        return {"retrieval": self._compared(tokens[:, 0], modality), "tokens": tokens}

    def pair_scorer(self, dtype: torch.dtype, compiled: bool = False) -> PairScorer:
        """Relation logits of every sketch with every photo, see pairs.py."""
        return PairScorer(
            self.cross_attention, self.relation, self.similarity, dtype=dtype, compiled=compiled
        )

    def load_pretrained(self, path: Path | None) -> str:
        """Start the tokenizer from pretrained weights, see model/backbone.py."""
        state, source = load_pretrained(self.settings.vit, path)
        backbone_from_file(self.tokenizer, state, source)
        return source

    @classmethod
    def from_published(cls, content: Mapping, source: str, wanted: Mapping) -> dict | None:
        """See published.py."""
        return from_published(content, source, wanted)

    def parameter_groups(self) -> list[dict]:
        """The tokenizer by depth, each layer at layer_decay of the next one's rate; then the rest.

        The rest, which no pretraining has seen, learns at new_rate times the learning rate.
        """
        settings, groups = self.settings, defaultdict(list)
        for name, parameter in self.named_parameters():
            if name.startswith("tokenizer."):
                above = self.tokenizer.layers_above(name.removeprefix("tokenizer."))
                groups[settings.learning_rate * settings.layer_decay**above].append(parameter)
            elif parameter.requires_grad:
                groups[settings.learning_rate * settings.new_rate].append(parameter)
        return [{"params": members, "lr": lr} for lr, members in groups.items()]

    def checkpoint_blocks(self) -> None:
        """Compute activations inside blocks again on the way back."""
        self.tokenizer.checkpointing = self.cross_attention.checkpointing = True

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keep a temperature that is learned from falling below 1 / HIGHEST_SCALE."""
        if self.settings.contrastive_weight and self.settings.learn_temperature:
            self.contrastive_scale.clamp_(max=math.log(HIGHEST_SCALE))

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses times their weights. One of weight 0 is not named.

        It stays in the sum all the same: DDP wants a gradient for every parameter.
        """
        weights = self.settings.loss_weights()
        weighted = {name: weights[name] * loss for name, loss in losses.items()}
        named = {name: loss for name, loss in weighted.items() if weights[name]} or weighted
        unnamed = sum(loss for name, loss in weighted.items() if name not in named)
        first = next(iter(named))
        return {**named, first: named[first] + unnamed}

    def _compared(self, retrieval: Tensor, modality: str) -> Tensor:
        """Retrieval tokens (B, D) as -r sa compares them: whitened where that is set."""
        if self.whitening is None:
            return retrieval
        return self.whitening(retrieval, MODALITIES.index(modality))

    def _mined(self, batch: dict, compared: list[Tensor], photo: Tensor):
        """Pairs of this process's sketches with photos of all processes.

        compared: vectors that -r sa compares, (S, D) and (P, D); photo: tokens (P, 1 + N, D).
        Returns numbers of sketch and photo of B pairs, the vectors of both sides (B, D), and the
        tokens of the photos with these numbers.
        """
        photos = gather_rows(compared[1])
        targets = batch["sketch_targets"], gather_rows(batch["photo_targets"])
        pairs = mine_pairs(compared[0], photos, *targets, batch["chances"], hardest=HARDEST)
        compared = [s.index_select(0, n) for s, n in zip((compared[0], photos), pairs, strict=True)]
        if len(photos) > len(photo):  # several processes: only chosen photos of others are needed
            photo = gather_rows(photo).index_select(0, pairs[1])
            pairs = pairs[0], torch.arange(len(photo), device=photo.device)
        return pairs, compared, photo

    def _relation(self, logits: Tensor) -> Tensor:
        half = len(logits) // 2
        matches = logits.new_tensor([1.0, 0.0]).repeat_interleave(half)
        return RELATION_LOSSES[self.settings.relation_loss](logits, matches)

    def _retrieval_losses(self, sketches: Tensor, photos: Tensor, batch: dict) -> dict[str, Tensor]:
        """Those losses of the retrieval tokens before cross-attention that have a weight."""
        losses = {}
        targets = batch["sketch_targets"], batch["photo_targets"]
        if self.settings.contrastive_weight:
            temperature = 1 / self.contrastive_scale.exp()
            of_all = [gather_rows(rows) for rows in (sketches, photos, *targets)]
            losses["contrastive"] = classwise_contrastive(*of_all, temperature)
        if self.classifier is not None:
            losses["classification"] = F.cross_entropy(
                self.classifier(torch.cat([sketches, photos])),
                torch.cat(targets),
                label_smoothing=LABEL_SMOOTHING,
            )
        return losses


def _triplet(sketches: Tensor, photos: Tensor) -> Tensor:
    """Published: sketch, its photo and another one, euclidean; pairs as in ZSE.losses."""
    half = len(sketches) // 2
    return F.triplet_margin_loss(
        anchor=sketches[:half],
        positive=photos[:half],
        negative=photos[half:],
        margin=TRIPLET_MARGIN,
    )


def _check_width(settings: ZSESettings, width: int) -> None:
    if settings.width not in (None, width):
        raise InputError(
            f"--d_model {settings.width}: the tokens of {settings.vit} have width {width}. Leave "
            "--d_model out, or choose another --vit."
        )
    if width % settings.heads:
        possible = [n for n in range(1, 65) if width % n == 0]
        raise InputError(
            f"--head {settings.heads}: does not divide the tokens' width {width}. Choose one of "
            f"{', '.join(map(str, possible))}."
        )


def _checked_anchors(settings: ZSESettings, tokens: int) -> int:
    """How many anchors an image has, of so many patch tokens."""
    wanted, possible = settings.anchors, possible_anchors(tokens)
    if not possible:
        raise InputError(
            f"--keep_rate {settings.keep_rate:g}: leaves {tokens} patch tokens, and the relation "
            "network needs a square number of them, 4 or more. Choose 1, which keeps all, or "
            "another rate: 0.9 leaves 144 of 196."
        )
    if wanted is not None and wanted not in possible:
        raise InputError(
            f"--anchor_number {wanted}: is impossible with {tokens} patch tokens. Choose "
            f"{possible[0]} (down-sampled 2 x 2) or {possible[1]} (all tokens)."
        )
    return wanted or possible[0]
