"""ZSE-SBIR: tokenizer, cross-attention and kernel relation network.

Lin et al., Zero-Shot Everything Sketch-Based Image Retrieval, and in Explainable Style, CVPR 2023.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.cross_attention import CrossAttention
from model.losses import classwise_contrastive
from model.method import Features, Method
from model.pretrained import load_pretrained
from model.published import backbone_from_file
from model.relation import DOWNSAMPLING, RelationNetwork, possible_anchors
from model.tokenizer import Tokenizer
from utils.errors import InputError

TRIPLET_MARGIN = 1.0
RELATION_TARGETS = (0.99, 0.01)  # of a matching pair, of another pair
TEMPERATURE = 0.07
LABEL_SMOOTHING = 0.1


class ZSE(Method):
    """Two ways to compare a sketch with a photo, from one tokenizer.

    similarity: cosine of the retrieval tokens before cross-attention (published: `-r sa`).
    pair_similarity: logit of the relation network after cross-attention (published: `-r rn`).

    vit: timm name. width: the ViT's (checked; None: taken from it). heads, layers, hidden: of the
    cross-attention; hidden None is 4/3 of the width. anchors: local tokens compared per image;
    None: the patch tokens down-sampled 2 x 2. downsampling: "published" or "spatial", see
    relation.py. keep_rate: see tokenizer.py.

    Weights of the losses, the defaults being published: triplet_weight (retrieval tokens after
    cross-attention), relation_weight (the pair's score), contrastive_weight (classes, between the
    retrieval tokens of sketches and photos), classification_weight (the seen classes, told from the
    same tokens; classes: how many). Raises InputError for values that do not go together.
    """

    name = "zse_sbir"
    batches = "triplets"
    training_only = ("classifier.",)

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
        keep_rate: float = 1.0,
        triplet_weight: float = 2.0,
        relation_weight: float = 4.0,
        contrastive_weight: float = 0.0,
        classification_weight: float = 0.0,
        classes: int | None = None,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.tokenizer = Tokenizer(vit=vit, keep_rate=keep_rate, dropout=dropout)
        width = _checked_width(self.tokenizer.width, width, vit, heads)
        anchors = _checked_anchors(self.tokenizer.tokens, anchors)
        hidden = hidden or width * 4 // 3
        if downsampling not in DOWNSAMPLING:
            raise InputError(f"downsampling {downsampling!r}: choose from {DOWNSAMPLING}.")
        self.cross_attention = CrossAttention(
            width=width, heads=heads, hidden=hidden, layers=layers, dropout=dropout
        )
        self.relation = RelationNetwork(
            width=width,
            tokens=self.tokenizer.tokens,
            anchors=anchors,
            downsampling=downsampling,
            dropout=dropout,
        )
        self.triplet_weight = triplet_weight
        self.relation_weight = relation_weight
        self.contrastive_weight = contrastive_weight
        self.classification_weight = classification_weight
        self.classifier = nn.Linear(width, classes) if classification_weight else None
        self.settings = {
            "vit": vit,
            "width": width,
            "heads": heads,
            "layers": layers,
            "hidden": hidden,
            "anchors": anchors,
            "downsampling": downsampling,
            "keep_rate": keep_rate,
            "triplet_weight": triplet_weight,
            "relation_weight": relation_weight,
            "contrastive_weight": contrastive_weight,
            "classification_weight": classification_weight,
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
        """The losses of B triplets; a batch is described in datasets/batches.py.

        Pair i is sketch i with photo i: the first B match, the other B do not. Triplet and relation
        loss are the published ones.
        """
        sketch, photo = self.tokenizer(batch["sketches"]), self.tokenizer(batch["photos"])
        crossed_sketch, crossed_photo = self.cross_attention(sketch, photo)  # (2B, 1 + N, D)
        half = len(sketch) // 2
        triplet = F.triplet_margin_loss(
            anchor=crossed_sketch[:half, 0],
            positive=crossed_photo[:half, 0],
            negative=crossed_photo[half:, 0],
            margin=TRIPLET_MARGIN,
        )
        logits = self.relation(crossed_sketch[:, 1:], crossed_photo[:, 1:])  # (2B,)
        wanted = logits.new_tensor(RELATION_TARGETS).repeat_interleave(half)
        # Both stay in the sum at weight 0: DDP wants a gradient for every parameter.
        losses = {
            "triplet": self.triplet_weight * triplet,
            "relation": self.relation_weight * F.mse_loss(logits.sigmoid(), wanted),
        }
        if self.contrastive_weight:
            losses["contrastive"] = self.contrastive_weight * classwise_contrastive(
                sketch[:, 0],
                photo[:, 0],
                batch["sketch_targets"],
                batch["photo_targets"],
                TEMPERATURE,
            )
        if self.classification_weight:
            losses["classification"] = self.classification_weight * F.cross_entropy(
                self.classifier(torch.cat([sketch[:, 0], photo[:, 0]])),
                torch.cat([batch["sketch_targets"], batch["photo_targets"]]),
                label_smoothing=LABEL_SMOOTHING,
            )
        return losses

    def encode(self, images: Tensor, modality: str) -> Features:
        """'retrieval' (B, D) and 'tokens' (B, 1 + N, D); both modalities share the tokenizer."""
        tokens = self.tokenizer(images)
        return {"retrieval": tokens[:, 0], "tokens": tokens}

    def pair_similarity(self, queries: Features, gallery: Features) -> Tensor:
        """Relation logits (Q, G) of every sketch with every photo; needs both sides' 'tokens'."""
        sketch, photo = queries["tokens"], gallery["tokens"]
        Q, G = len(sketch), len(photo)
        sketch = sketch.repeat_interleave(G, dim=0)  # (Q * G, 1 + N, D)
        photo = photo.repeat(Q, 1, 1)
        sketch, photo = self.cross_attention(sketch, photo)
        return self.relation(sketch[:, 1:], photo[:, 1:]).view(Q, G)

    def load_pretrained(self, path: Path | None) -> str:
        """Start the tokenizer from pretrained weights (see model/pretrained.py); says whose."""
        state, source = load_pretrained(self.settings["vit"], path)
        backbone_from_file(self.tokenizer, state, source)
        return source


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
