"""Pretrained backbones: a file the user has, or the one timm knows by name."""

import logging
import socket
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import timm
from torch import Tensor

from utils.checkpoints import load_file
from utils.errors import InputError
from utils.logs import log

PUBLISHED_FILE = "sam_ViT-B_16.pth"
PUBLISHED_VIT = "vit_base_patch16_224"
PUBLISHED_TAG = "sam_in1k"  # timm's name for the same weights
FOLDERS = (Path("."), Path("model"))


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
        return load_file(found), str(found)
    if vit.split(".")[0] == PUBLISHED_VIT and "." not in vit:
        found = _look_for(Path(PUBLISHED_FILE))
        if found is not None:
            return load_file(found), str(found)
        vit = f"{PUBLISHED_VIT}.{PUBLISHED_TAG}"
    if not timm.is_model(vit.split(".")[0]):
        raise InputError(f"{vit}: there are no pretrained weights; start with --no-pretrained.")
    return _from_timm(vit), f"timm, {vit}"


def _look_for(path: Path) -> Path | None:
    places: Iterable[Path] = [path] if path.is_absolute() else [f / path for f in FOLDERS]
    return next((place for place in places if place.is_file()), None)


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
