"""ZSE-SBIR: tokenizer, cross-attention and kernel relation network.

Lin et al., Zero-Shot Everything Sketch-Based Image Retrieval, and in Explainable Style, CVPR 2023.
"""

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cross_attention import CrossAttention
from model.losses import (
    classwise_contrastive,
    forgetting,
    mine_pairs,
    relation_logistic,
    relation_mse,
)
from model.method import MODALITIES, Features, Method
from model.pairs import PairScorer
from model.pretrained import load_pretrained
from model.published import backbone_from_file
from model.relation import DOWNSAMPLING, RelationNetwork, possible_anchors
from model.tokenizer import Tokenizer
from model.whitening import Whitening
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

    Architecture. vit: timm name. width: the ViT's (checked; None: taken from it). heads, layers,
    hidden: of the cross-attention; hidden None is 4/3 of the width. anchors: local tokens compared
    per image; None: the patch tokens down-sampled 2 x 2. downsampling: "published" or "spatial",
    and shortcut, see relation.py. keep_rate: see tokenizer.py. whitening: of the retrieval tokens
    before they are compared, see whitening.py.

    Training, the defaults being published. draws: kind of batch, see datasets/batches.py.
    triplet_weight (retrieval tokens after cross-attention), relation_weight (the pair's score, by
    relation_loss "mse" or "logistic"), contrastive_weight (classes, between the retrieval tokens of
    sketches and photos, at a temperature that learn_temperature sets free), classification_weight
    (the seen classes, told from the same tokens; classes: how many), distillation_weight (how far
    the photos' tokens turn from what the tokenizer said at the start). Raises InputError for values
    that do not go together.
    """

    name = "zse_sbir"
    training_only = ("classifier.", "teacher.", "contrastive_scale")

    def __init__(
        self,
        *,
        vit: str,
        width: int | None = None,
        heads: int = 8,
        layers: int = 1,
        hidden: int | None = None,
        anchors: int | None = None,
        downsampling: str = "published",
        shortcut: bool = False,
        keep_rate: float = 1.0,
        whitening: bool = False,
        draws: str = "triplets",
        triplet_weight: float = 2.0,
        relation_weight: float = 4.0,
        relation_loss: str = "mse",
        contrastive_weight: float = 0.0,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        classification_weight: float = 0.0,
        classes: int | None = None,
        distillation_weight: float = 0.0,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.tokenizer = Tokenizer(vit=vit, keep_rate=keep_rate, dropout=dropout)
        width = _checked_width(self.tokenizer.width, width, vit, heads)
        anchors = _checked_anchors(self.tokenizer.tokens, anchors)
        hidden = hidden or width * 4 // 3
        for what, value, allowed in (
            ("downsampling", downsampling, DOWNSAMPLING),
            ("relation_loss", relation_loss, tuple(RELATION_LOSSES)),
            ("draws", draws, ("triplets", "classes")),
        ):
            if value not in allowed:
                raise InputError(f"{what} {value!r}: choose from {allowed}.")
        self.cross_attention = CrossAttention(
            width=width, heads=heads, hidden=hidden, layers=layers, dropout=dropout
        )
        self.relation = RelationNetwork(
            width=width,
            tokens=self.tokenizer.tokens,
            anchors=anchors,
            downsampling=downsampling,
            shortcut=shortcut,
            dropout=dropout,
        )
        if shortcut:
            self.cross_attention.start_as_identity()
        self.batches = draws
        self.whitening = Whitening(width=width, modalities=len(MODALITIES)) if whitening else None
        self.relation_loss = RELATION_LOSSES[relation_loss]
        self.weights = {
            "triplet": triplet_weight,
            "relation": relation_weight,
            "contrastive": contrastive_weight,
            "classification": classification_weight,
            "distillation": distillation_weight,
        }
        if contrastive_weight:
            scale = torch.tensor(1 / temperature).log()
            self.contrastive_scale = nn.Parameter(scale, requires_grad=learn_temperature)
        self.classifier = nn.Linear(width, classes) if classification_weight else None
        self.teacher = None
        if distillation_weight:
            self.teacher = Tokenizer(vit=vit, keep_rate=keep_rate, dropout=0).requires_grad_(False)
        self.settings = {
            "vit": vit,
            "width": width,
            "heads": heads,
            "layers": layers,
            "hidden": hidden,
            "anchors": anchors,
            "downsampling": downsampling,
            "shortcut": shortcut,
            "keep_rate": keep_rate,
            "whitening": whitening,
            "draws": draws,
            **{f"{name}_weight": weight for name, weight in self.weights.items()},
            "relation_loss": relation_loss,
            "temperature": temperature,
            "learn_temperature": learn_temperature,
            "classes": classes,
            "dropout": dropout,
        }
        image = self.tokenizer.vit.pretrained_cfg
        self.inputs = {
            "size": self.tokenizer.vit.patch_embed.img_size[0],
            "mean": tuple(image["mean"]),
            "std": tuple(image["std"]),
            "crop": True,
        }

    def losses(self, batch: dict, progress: float) -> dict[str, Tensor]:
        """The losses of a batch, which datasets/batches.py describes.

        Half of the pairs match, and come first. Of triplets, pair i is sketch i with photo i (the
        published pairs); of classes, pairs are mined, see losses.py. Photos to be told apart from
        are those of all processes: together they compute what one would with all their images.
        """
        images = batch["sketches"], batch["photos"]
        sketch, photo = self.tokenizer(torch.cat(images)).split([len(side) for side in images])
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(batch["photos"])[:, 0].float()  # (P, D)
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
            # Both stay in the sum at weight 0: DDP wants a gradient for every parameter.
            losses = {"triplet": _triplet(*crossed), "relation": self._relation(logits)}
            losses |= self._retrieval_losses(*retrieval, batch, taught)
        return {name: self.weights[name] * loss for name, loss in losses.items()}

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
        """Start the tokenizer from pretrained weights (see model/pretrained.py); says whose."""
        state, source = load_pretrained(self.settings["vit"], path)
        backbone_from_file(self.tokenizer, state, source)
        return source

    def parameter_groups(self, recipe: dict) -> list[dict]:
        """The tokenizer by depth, each layer at layer_decay of the next one's rate; then the rest.

        recipe: learning_rate; layer_decay; new_rate, the rate of what no pretraining has seen, as
        a multiple.
        """
        rate, groups = recipe["learning_rate"], defaultdict(list)
        for name, parameter in self.named_parameters():
            if name.startswith("tokenizer."):
                above = self.tokenizer.layers_above(name.removeprefix("tokenizer."))
                groups[rate * recipe["layer_decay"] ** above].append(parameter)
            elif parameter.requires_grad:
                groups[rate * recipe["new_rate"]].append(parameter)
        return [{"params": members, "lr": lr} for lr, members in groups.items()]

    def checkpoint_blocks(self) -> None:
        """Of the teacher's blocks nothing is kept anyway."""
        self.tokenizer.checkpointing = self.cross_attention.checkpointing = True

    def before_training(self) -> None:
        """Keep what the tokenizer says now, for distillation."""
        if self.teacher is not None:
            self.teacher.load_state_dict(self.tokenizer.state_dict())

    def train(self, mode: bool = True) -> "ZSE":
        """As usual, but the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _compared(self, retrieval: Tensor, modality: str) -> Tensor:
        """What -r sa compares of retrieval tokens (B, D): whitened where that is set."""
        if self.whitening is None:
            return retrieval
        return self.whitening(retrieval, MODALITIES.index(modality))

    def _mined(self, batch: dict, compared: list[Tensor], photo: Tensor):
        """Pairs of this process's sketches with photos of all processes.

        compared: what -r sa compares, (S, D) and (P, D); photo: tokens (P, 1 + N, D). Numbers of
        sketch and photo of B pairs, the vectors of both sides (B, D), tokens of numbered photos.
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
        return self.relation_loss(logits, matches)

    def _retrieval_losses(
        self,
        sketches: Tensor,
        photos: Tensor,
        batch: dict,
        taught: Tensor | None,
    ) -> dict[str, Tensor]:
        """Those losses of the retrieval tokens before cross-attention that have a weight."""
        losses = {}
        targets = batch["sketch_targets"], batch["photo_targets"]
        if self.weights["contrastive"]:
            temperature = 1 / self.contrastive_scale.exp().clamp(max=HIGHEST_SCALE)
            of_all = [gather_rows(rows) for rows in (sketches, photos, *targets)]
            losses["contrastive"] = classwise_contrastive(*of_all, temperature)
        if self.weights["classification"]:
            losses["classification"] = F.cross_entropy(
                self.classifier(torch.cat([sketches, photos])),
                torch.cat(targets),
                label_smoothing=LABEL_SMOOTHING,
            )
        if taught is not None:
            losses["distillation"] = forgetting(photos, taught)
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


def _checked_width(width: int, wanted: int | None, vit: str, heads: int) -> int:
    if wanted is not None and wanted != width:
        raise InputError(f"d_model {wanted} does not go with {vit}, whose width is {width}.")
    if width % heads:
        possible = [n for n in range(1, 65) if width % n == 0]
        raise InputError(f"{heads} heads do not divide the width {width}; possible: {possible}.")
    return width


def _checked_anchors(tokens: int, wanted: int | None) -> int:
    possible = possible_anchors(tokens)
    if not possible:
        raise InputError(
            f"{tokens} patch tokens are left by this keep rate, which is not a square number: the "
            "relation network needs one. With 196 tokens take 1 (196 stay) or 0.9 (144 stay)."
        )
    if wanted is not None and wanted not in possible:
        raise InputError(
            f"{wanted} anchors are impossible with {tokens} patch tokens: choose {possible[0]} "
            f"(down-sampled 2 x 2) or {possible[1]} (all tokens)."
        )
    return wanted or possible[0]
