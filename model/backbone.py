"""Vision Transformers of timm as tokenizers, and their pretrained weights.

The weights come from a file that the user has, or from timm by name.
"""

import logging
import math
import socket
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import numpy as np
import timm
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from utils.checkpoints import load_file, unreadable
from utils.errors import InputError
from utils.logs import log
from utils.schema import shown
from utils.unreadable import AGAIN, check_is_file, check_name, fault_of_zip

PUBLISHED_FILE = "sam_ViT-B_16.pth"
PUBLISHED_VIT = "vit_base_patch16_224"
PUBLISHED_TAG = "sam_in1k"  # timm's name for the same weights
FOLDERS = (Path("."), Path("model"))
LAYER_NORM_EPS = 1e-5
LONGEST_NAME = 100  # letters
SMALL_VITS = {
    "vit_mini_patch8_48": {
        "img_size": 48,
        "patch_size": 8,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
    }
}
"""Networks of our own, small enough for a CPU: what differs from timm's vit_tiny_patch16_224."""


def build_vit(name: str, dropout: float) -> VisionTransformer:
    """timm's Vision Transformer of this name, or one of SMALL_VITS, without its classifier.

    dropout: on the embeddings, twice in each MLP and on each attention output. Raises InputError
    for a name that is not a plain ViT.
    """
    if len(name) > LONGEST_NAME:
        raise InputError(f"{shown(name)}: no Vision Transformer has so long a name.")
    if "/" in name or ":" in name:
        raise InputError(
            f"{name}: give timm's bare name of a ViT; weights go to --pretrained_path."
        )
    try:
        vit = timm.create_model(
            "vit_tiny_patch16_224" if name in SMALL_VITS else name,
            num_classes=0,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
            norm_layer=lambda *args, **kwargs: nn.LayerNorm(
                *args, **{**kwargs, "eps": LAYER_NORM_EPS}
            ),
            **SMALL_VITS.get(name, {}),
        )
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise InputError(
            f"{name}: timm {timm.__version__} cannot build a Vision Transformer of this name "
            f"({first_line}). List the names with "
            "python -c \"import timm; print(timm.list_models('vit_*'))\"."
        ) from error
    fault = _why_not_plain(vit)
    if fault:
        raise InputError(
            f"{name}: {fault}. Take a plain ViT such as vit_base_patch16_224, "
            "vit_small_patch16_224 or vit_tiny_patch16_224."
        )
    return vit


def load_pretrained(vit: str, path: Path | None) -> tuple[dict[str, Tensor], str]:
    """Weights for the ViT called `vit`, and where they came from.

    path: a file, also looked for in ./ and ./model/; None: the published file if it lies there and
    is of this ViT, else timm's weights of that name (from its cache or the network). Raises
    InputError where nothing can be had.
    """
    if path is not None:
        found = _look_for(path)
        if found is None:
            places = ", ".join(str(folder / path) for folder in FOLDERS)
            raise InputError(f"--pretrained_path {path}: no such file (looked for {places}).")
        return (_from_npz(vit, found) if found.suffix == ".npz" else load_file(found)), str(found)
    if vit == PUBLISHED_VIT:
        found = _look_for(Path(PUBLISHED_FILE))
        if found is not None:
            return load_file(found), str(found)
        vit = f"{PUBLISHED_VIT}.{PUBLISHED_TAG}"
    if not timm.is_model(vit.split(".")[0]):
        raise InputError(f"{vit}: there are no pretrained weights; start with --no-pretrained.")
    return _from_timm(vit), f"timm, {vit}"


def _look_for(path: Path) -> Path | None:
    places: Iterable[Path] = [path] if path.is_absolute() else [f / path for f in FOLDERS]
    return next((place for place in places if check_name(place)), None)


def _from_npz(vit: str, path: Path) -> dict[str, Tensor]:
    """Google's own file of a ViT, read by timm, which resizes position embeddings."""
    check_is_file(path)
    network = build_vit(vit, dropout=0.0)
    try:
        fault = fault_of_zip(path)
        if fault:
            raise unreadable(path, fault)
        with np.load(path) as file:
            kernel = next(file[name] for name in file if name.endswith("embedding/kernel"))
            scales = [file[name] for name in file if name.endswith("LayerNorm_0/scale")]
        depth = sum(math.prod(scale.shape[:-1]) for scale in scales)  # they may lie in one array
        found = (depth, kernel.shape[-1], kernel.shape[0])
        network_has = (len(network.blocks), network.embed_dim, network.patch_embed.patch_size[0])
        if found != network_has:
            raise InputError(
                f"{path}: holds a ViT of {depth} blocks, width {found[1]} and patches of "
                f"{found[2]} px; {vit} has {', '.join(map(str, network_has))}. Choose the ViT that "
                "it belongs to."
            )
        network.load_pretrained(str(path))
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and timm raise errors of many kinds
        raise unreadable(
            path, f"is damaged, or none of Google's files of a ViT. {AGAIN}"
        ) from error
    return network.state_dict()


def _from_timm(vit: str) -> dict[str, Tensor]:
    log.info("fetching %s from the Hugging Face hub or its cache", vit)
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.CRITICAL)  # one message of ours instead of one a retry
    try:
        _check_reachable(vit)
        return timm.create_model(vit, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub client raises errors of many libraries
        first_line = str(error).strip().split("\n")[0][:200]
        reason = f"{type(error).__name__}: {first_line}"
        raise InputError(
            f"the pretrained weights {vit} could not be fetched ({reason}). Three ways out: "
            f"(1) name a file with --pretrained_path, or put {PUBLISHED_FILE} into ./model/ (link "
            "in the README); (2) run once where the Hugging Face hub can be reached, or copy its "
            "cache folder (HF_HOME) from such a machine; (3) start untrained with --no-pretrained."
        ) from error
    finally:
        hub_log.setLevel(level)


def _check_reachable(vit: str) -> None:
    """Raise OSError at once where the hub client would retry for a minute without a network."""
    repository = timm.get_pretrained_cfg(vit).hf_hub_id
    cached = repository and huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if not cached and not urllib.request.getproxies():
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)


def _why_not_plain(vit: nn.Module) -> str | None:
    """Why the tokenizer cannot use a model, to follow its name; None for a plain ViT."""
    if not isinstance(vit, VisionTransformer):
        return "is not a Vision Transformer"
    if not isinstance(vit.patch_embed, PatchEmbed) or vit.patch_embed.proj.in_channels != 3:
        return "has another patch embedding than one convolution"
    if not all(isinstance(block, Block) for block in vit.blocks):
        return "has other blocks than attention followed by an MLP"
    patches = vit.patch_embed.num_patches
    side, patch = math.isqrt(patches), vit.patch_embed.patch_size[0]
    if vit.num_prefix_tokens != 1 or not vit.has_class_token:
        return "needs exactly one class token and no register tokens"
    if vit.pos_embed is None or vit.pos_embed.shape[1] != patches + 1:
        return "needs a learned position embedding of class token and patches"
    if not isinstance(vit.norm_pre, nn.Identity) or not isinstance(vit.norm, nn.LayerNorm):
        return "needs a final LayerNorm and none before the blocks"
    if not isinstance(getattr(vit.blocks[0].attn, "q_norm", None), nn.Identity):
        return "normalises queries or has another kind of attention"
    if side * side != patches or patch & (patch - 1) or patch < 4:
        return f"needs square images and a patch size of 4, 8, 16 or 32 px, not {patch}"
    return None
