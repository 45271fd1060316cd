"""Names of tensors in the published ZSE-SBIR files (Lin et al., CVPR 2023), to ours and back.

`python -m model.zse.published OURS THEIRS` writes a checkpoint of ours with the published names.
"""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from model.zse.settings import ZSESettings
from utils.checkpoints import (
    load_file,
    load_strictly,
    save_atomically,
    split_prefix,
    weights_in,
    without_prefix,
)
from utils.errors import InputError, run_script
from utils.files import check_folder
from utils.logs import log
from utils.schema import ANYTHING, TEXT, check, maybe, named, number, of_type, one_of, table, whole
from utils.unreadable import listed

# Ours on the left; a digit in braces is the same number on both sides.
_TOKENIZER = {
    "tokenizer.vit.cls_token": "sa.model.cls",
    "tokenizer.vit.pos_embed": "sa.model.pos_embedding",
    "tokenizer.vit.patch_embed.proj.": "sa.model.embedding.",
    "tokenizer.vit.norm.": "sa.model.transformer.encoder_norm.",
    "tokenizer.vit.blocks.{}.norm1.": "sa.model.transformer.layers.{}.0.layer_norm_input.",
    "tokenizer.vit.blocks.{}.attn.qkv.": "sa.model.transformer.layers.{}.0.attention.to_qkv.",
    "tokenizer.vit.blocks.{}.attn.proj.": "sa.model.transformer.layers.{}.0.attention.to_out.0.",
    "tokenizer.vit.blocks.{}.norm2.": "sa.model.transformer.layers.{}.0.layer_norm_out.",
    "tokenizer.vit.blocks.{}.mlp.fc1.": "sa.model.transformer.layers.{}.0.mlp.net.0.",
    "tokenizer.vit.blocks.{}.mlp.fc2.": "sa.model.transformer.layers.{}.0.mlp.net.3.",
}
_SCALE_STEM = {
    f"tokenizer.scale_stem.convolutions.{i}.": f"sa.model.scale.seq.{2 * i}." for i in range(6)
}
_CROSS_ATTENTION = {
    f"cross_attention.{ours}_layers.{{}}.{our_part}": f"ca.encoder.{theirs}.{{}}.{their_part}"
    for ours, theirs in (("sketch", "layer1"), ("photo", "layer2"))
    for our_part, their_part in {
        "query.": "self_attn.linears.0.",
        "key.": "self_attn.linears.1.",
        "value.": "self_attn.linears.2.",
        "out.": "self_attn.linears.3.",
        "fc1.": "feed_forward.w_1.",
        "fc2.": "feed_forward.w_2.",
        "norm1.scale": "sublayer.0.norm.a",
        "norm1.shift": "sublayer.0.norm.b",
        "norm2.scale": "sublayer.1.norm.a",
        "norm2.shift": "sublayer.1.norm.b",
    }.items()
}
_RELATION = {"relation.reduce.": "conv2d."} | {
    f"relation.score.{i}.": f"rn.rn.{i}." for i in (0, 3, 6)
}
NAMES = _TOKENIZER | _SCALE_STEM | _CROSS_ATTENTION | _RELATION

TENSORS = named(of_type(Tensor, "a tensor"))
OURS = table(
    {
        "method": one_of(ZSESettings.method),
        "settings": table({"downsampling": TEXT, "keep_rate": number()}),
        "model": TENSORS,
        "epoch": maybe(whole(0)),
    }
)
"""Of a checkpoint of ours, what to_published() reads."""
METRICS = ("map_all", "precision_100")  # of the validation that chose the checkpoint
UNUSED = "ca.encoder.layers."  # in every published file, read by no computation
BACKBONE = "sa.model."  # pretrained files leave this out
CLASS_TOKEN = f"{BACKBONE}cls"
OURS_ALONE = {
    "shortcut": "the relation network's shortcut",
    "whitening": "whitened retrieval tokens",
}
NOT_OF_BACKBONE = (
    *("mlp_head.", "head.", "head_dist.", "pre_logits."),  # classifiers of published and timm files
    *("decoder", "mask_token", "masked_embed"),  # what MAE and iBOT were pretrained with
)

_VIT_BY_WIDTH_AND_DEPTH = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
}


def to_ours(name: str) -> str:
    """Our name of a published tensor; a name that is not published comes back as it is."""
    return _translate(name, {theirs: ours for ours, theirs in NAMES.items()})


def to_theirs(name: str) -> str:
    """The published name of one of our tensors."""
    return _translate(name, NAMES)


def from_published(content: Mapping, source: str, wanted: Mapping) -> dict | None:
    """A published checkpoint as one of ours (format 0), with the settings that its shapes show.

    wanted: settings that the user named. Of these, `heads` of the cross-attention follows from no
    tensor, and `vit` is needed where the shapes are those of no ViT known by name. None for what
    is no published checkpoint; InputError for a damaged one.
    """
    state = weights_in(content, source)
    if not any(str(name).endswith(CLASS_TOKEN) for name in state):
        return None
    check(state, TENSORS, source, "Download it again.")
    state = without_prefix(state, CLASS_TOKEN, source)
    settings = _settings_from_shapes(state, source, wanted.get("vit"))
    settings["heads"] = wanted.get("heads", ZSESettings.heads)
    ours = {to_ours(n): t for n, t in state.items() if not n.startswith(UNUSED)}
    found = {name: _number(content.get(name)) for name in ("epoch", *METRICS)}
    metrics = {name: found[name] for name in METRICS if found[name] is not None}
    return {
        "format": 0,
        "method": ZSESettings.method,
        "settings": settings,
        "model": ours,
        "epoch": None if found["epoch"] is None else int(found["epoch"]),
        "classes": None,
        "metrics": metrics,
        **metrics,
    }


def to_published(checkpoint: Mapping) -> dict:
    """One of our checkpoints with published names, as the published program loads it."""
    settings = checkpoint["settings"]
    if settings["downsampling"] != "published" and "relation.reduce.weight" in checkpoint["model"]:
        raise InputError(
            "this checkpoint was trained with spatial down-sampling, which the published program "
            "does not have: it would load the weights and compute something else."
        )
    for name, meaning in OURS_ALONE.items():
        if settings.get(name):
            raise InputError(
                f"this checkpoint was trained with {meaning}, which the published program does not "
                "have: it would load the weights and compute something else."
            )
    if settings["keep_rate"] != 1:
        raise InputError(
            "this checkpoint was trained with token selection, which is broken in the published "
            "program: it would load the weights and compute something else."
        )
    state = {
        to_theirs(name): tensor
        for name, tensor in checkpoint["model"].items()
        if to_theirs(name) != name
    }
    for name in [n for n in state if n.startswith("ca.encoder.layer1.")]:
        state[UNUSED + name.removeprefix("ca.encoder.layer1.")] = state[name].clone()
    metrics = {n: checkpoint[n] for n in METRICS if checkpoint.get(n) is not None}
    return {"model": state, "epoch": checkpoint["epoch"], **metrics}


def backbone_from_file(tokenizer: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Pretrained weights into a tokenizer: published names (with or without `sa.model.`) or timm's.

    They may have a prefix. Classifiers and decoders are left out. Where the scale stem is absent,
    Tokenizer.start_unharmed follows.
    """
    state, others = _backbone_in(state, source)
    if others:
        log.info("%s: left out what is not of the backbone: %s", source, listed(others))
    if "pos_embedding" in state:
        state = {BACKBONE + n: t for n, t in state.items()}
    if BACKBONE + "pos_embedding" in state:
        state = {to_ours(n): t for n, t in state.items()}
        state = {n.removeprefix("tokenizer."): t for n, t in state.items()}
    else:
        state = {f"vit.{n}": t for n, t in state.items()}
    load_strictly(tokenizer, state, source, may_miss=["scale_stem."])
    if not any(name.startswith("scale_stem.") for name in state):
        tokenizer.start_unharmed()


def _backbone_in(content: Mapping, source: str) -> tuple[dict, list[str]]:
    """The tensors of a backbone as its author named them, and the names of others."""
    state = weights_in(content, source)
    check(state, named(ANYTHING), source, "Download it again.")
    published = without_prefix(state, CLASS_TOKEN, source)
    whole = CLASS_TOKEN in published and any(not n.startswith(BACKBONE) for n in published)
    if whole or "format" in content or any("tokenizer.vit." in name for name in state):
        raise InputError(f"{source}: is a whole checkpoint; start from it with --load.")
    others: dict = {}
    for known in (f"{BACKBONE}pos_embedding", "pos_embedding", "pos_embed"):
        if not others:
            state, others = split_prefix(state, known, source)
    if any(name.endswith("dist_token") for name in state):
        raise InputError(
            f"{source}: is a distilled DeiT, whose network has one token more (dist_token). Take "
            "the file of DeiT without distillation."
        )
    left_out = [name for name in state if name.startswith(NOT_OF_BACKBONE)]
    return {n: t for n, t in state.items() if n not in left_out}, [*others, *left_out]


def _translate(name: str, names: Mapping[str, str]) -> str:
    for beginning, other in names.items():
        pattern = re.escape(beginning).replace(r"\{\}", r"(\d+)")
        match = re.match(pattern, name)
        if match:
            return other.format(*match.groups()) + name[match.end() :]
    return name


def _settings_from_shapes(state: Mapping[str, Tensor], source: str, vit: str | None) -> dict:
    """The settings that follow from the number and the shapes of published tensors.

    vit: the name that the user gave, for a ViT whose width and depth are those of no known one.
    """
    try:
        width = state["sa.model.cls"].shape[-1]
        hidden = state["ca.encoder.layer1.0.feed_forward.w_1.weight"].shape[0]
        anchors = math.isqrt(state["rn.rn.0.weight"].shape[1])
    except KeyError as error:
        raise InputError(
            f"{source}: looks like a published checkpoint, but has no tensor {error}. Download it "
            "again."
        ) from error
    except IndexError as error:
        raise InputError(
            f"{source}: looks like a published checkpoint, but its tensors have other shapes. "
            "Download it again."
        ) from error
    depth = _count(state, "sa.model.transformer.layers.")
    layers = _count(state, "ca.encoder.layer1.")
    vit = _VIT_BY_WIDTH_AND_DEPTH.get((width, depth), vit)
    if vit is None:
        raise InputError(
            f"{source}: holds a ViT of width {width} and depth {depth}, which has no name here. "
            "Name it with --vit."
        )
    return {
        "vit": vit,
        "width": width,
        "layers": layers,
        "hidden": hidden,
        "anchors": anchors,
        "downsampling": "published",
        "keep_rate": 0.9 if anchors in (36, 144) else 1.0,
    }


def _number(value: object) -> float | None:
    """What a foreign file says of its training, as a finite number; None for what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: of odd tensors
        return None
    return number if math.isfinite(number) else None


def _count(state: Mapping[str, Tensor], beginning: str) -> int:
    """How many layers there are, whose names begin so."""
    found = [name for name in state if name.startswith(beginning)]
    return len({name.removeprefix(beginning).split(".")[0] for name in found})


def _main() -> None:
    """Write a checkpoint of ours with the published names."""
    if len(sys.argv) != 3:
        raise InputError("usage: python -m model.zse.published OURS THEIRS")
    ours, theirs = Path(sys.argv[1]), Path(sys.argv[2])
    checkpoint = load_file(ours)
    check(checkpoint, OURS, ours, "The file is not a ZSE-SBIR checkpoint of ours.")
    check_folder(theirs, "THEIRS")
    save_atomically(to_published(checkpoint), theirs)
    print(f"wrote {theirs}")


if __name__ == "__main__":
    run_script(_main)
