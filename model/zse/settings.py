"""Settings and recipes of ZSE-SBIR (Lin et al., CVPR 2023). Imports no torch.

docs/recipe.md tells how the strong recipe was found, and what did not help.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from model.settings import TrainingSettings, setting


@dataclass(frozen=True)
class ZSESettings(TrainingSettings):
    """The settings of ZSE-SBIR; their defaults are the published values."""

    method: ClassVar[str] = "zse_sbir"
    former: ClassVar[tuple[str, ...]] = ("classes", "distillation_weight")
    newer: ClassVar[tuple[str, ...]] = ("shortcut", "whitening")

    vit: str = setting(
        "vit_base_patch16_224",
        "timm name of the tokenizer's Vision Transformer, or vit_mini_patch8_48, a small one for "
        "the built-in benchmark",
        rebuilds=True,
        metavar="NAME",
    )
    width: int | None = setting(
        None,
        "width of the tokens; must be the ViT's (default: the ViT's; 768 for ViT-B)",
        kind=int,
        least=1,
        most=65536,
        flag="d_model",
        published=True,
        rebuilds=True,
        metavar="D",
    )
    hidden: int | None = setting(
        None,
        "hidden width of the cross-attention's network (default: 4/3 of d_model; 1024 for ViT-B)",
        kind=int,
        least=1,
        most=65536,
        flag="d_ff",
        published=True,
        rebuilds=True,
        metavar="D",
    )
    heads: int = setting(
        8,
        "heads of the cross-attention",
        least=1,
        most=65536,
        flag="head",
        published=True,
        rebuilds=True,
        metavar="H",
    )
    layers: int = setting(
        1,
        "layers of the cross-attention",
        least=1,
        most=100,
        flag="number",
        published=True,
        rebuilds=True,
        metavar="N",
    )
    anchors: int | None = setting(
        None,
        "local tokens compared per image: a quarter of the patch tokens (down-sampled), or all "
        "(default: a quarter, 49 of 196)",
        kind=int,
        least=1,
        most=65536,
        flag="anchor_number",
        short="a",
        published=True,
        rebuilds=True,
        metavar="A",
    )
    downsampling: str = setting(
        "published",
        "how patch tokens become anchors: as released weights need it, each anchor mixing all "
        "patches (published), or as regions of the image (spatial)",
        choices=("published", "spatial"),
        rebuilds=True,
    )
    keep_rate: float = setting(
        1.0,
        "share of the patch tokens that each of three blocks keeps, above 0 to 1; 0.9 is the "
        "paper's: 196 > 177 > 160 > 144",
        least=0,
        most=1,
        excluded=0,
        rebuilds=True,
        metavar="RATE",
    )
    shortcut: bool = setting(
        False,
        "let the relation network also weigh three cosines: of the retrieval tokens, and of each "
        "side's anchors with their best partners; cross-attention then starts as the identity",
        rebuilds=True,
    )
    whitening: bool = setting(
        False,
        "before -r sa compares retrieval tokens, subtract the mean of each modality and even out "
        "their covariance, both over the training images",
        rebuilds=True,
    )
    triplet_weight: float = setting(
        2.0,
        "weight of the triplet loss of the retrieval tokens after cross-attention",
        least=0,
        most=10**6,
        metavar="W",
    )
    relation_weight: float = setting(
        4.0,
        "weight of the loss of the relation network, which -r rn compares by",
        least=0,
        most=10**6,
        metavar="W",
    )
    relation_loss: str = setting(
        "mse",
        "loss of the relation network: squared distance of the score from 0.99 and 0.01 (mse), or "
        "logistic loss of the logit (logistic)",
        choices=("mse", "logistic"),
    )
    contrastive_weight: float = setting(
        0.0,
        "weight of the class-wise contrastive loss between the retrieval tokens before "
        "cross-attention, which -r sa compares",
        least=0,
        most=10**6,
        metavar="W",
    )
    temperature: float = setting(
        0.07,
        "the contrastive loss divides cosines by it, 0.01 to below 1",
        least=0.01,
        most=1,
        excluded=1,
        metavar="T",
    )
    learn_temperature: bool = setting(False, "let training change the temperature, down to 0.01")
    classification_weight: float = setting(
        0.0,
        "weight of the cross-entropy of the seen classes, predicted from those same tokens",
        least=0,
        most=10**6,
        metavar="W",
    )
    dropout: float = setting(
        0.1,
        "probability of dropping an activation, 0 to below 1; 0 suits small ViTs, which were "
        "pretrained without",
        least=0,
        most=1,
        excluded=1,
        metavar="P",
    )

    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, by its name."""
        names = [entry.name for entry in fields(self) if entry.name.endswith("_weight")]
        return {name.removesuffix("_weight"): getattr(self, name) for name in names}

    @classmethod
    def recipes(cls, pretrained: bool = True) -> dict[str, TrainingSettings]:
        """What was measured to work best, and the published values."""
        return {"strong": STRONG if pretrained else FROM_SCRATCH, "paper": PAPER}


PAPER = ZSESettings()

STRONG = ZSESettings(
    draws="classes",
    own_photo=0.5,
    batch=24,
    epochs=15,
    augment="strong",
    downsampling="spatial",
    shortcut=True,
    whitening=True,
    dropout=0.0,
    learning_rate=6e-5,
    new_rate=10.0,
    weight_decay=5e-2,
    schedule="cosine",
    triplet_weight=0.0,
    relation_weight=1.0,
    relation_loss="logistic",
    contrastive_weight=1.0,
    learn_temperature=True,
    classification_weight=0.5,
)

# For training without pretrained weights. With the full weight of the relation loss, and with a
# score that starts as the cosine of the retrieval tokens (the shortcut), an untrained tokenizer
# would go on giving all images the same tokens.
FROM_SCRATCH = replace(
    STRONG,
    own_photo=0.0,
    augment="flip",
    shortcut=False,
    learning_rate=1e-3,
    new_rate=1.0,
    relation_weight=0.1,
    classification_weight=1.0,
)
