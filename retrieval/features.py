"""Encode every image of a list once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retrieval.views import encode_views
from utils.errors import InputError
from utils.logs import progress

Features = dict[str, Tensor]


class Images(Dataset):
    """A list's images for a loader, each as (tensor or None, the sentence of what went wrong).

    images: an image list of one modality; its read(index, preprocessing) is called.
    preprocessing: (file, modality) -> (3, S, S); raises InputError for an unreadable file.
    """

    def __init__(self, images, preprocessing: Callable[[Path, str], Tensor]):
        self.images = images
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str | None]:
        try:
            return self.images.read(index, self.preprocessing), None
        except InputError as error:
            return None, str(error)


def encode_blocks(
    method,
    images,
    preprocessing: Callable[[Path, str], Tensor],
    *,
    device: torch.device,
    size: int,
    workers: int,
    skip_bad: bool,
    keep: tuple[str, ...],
    what: str,
    views: str = "plain",
) -> Iterator[tuple[list[int], Features, list[str]]]:
    """Encode a list block by block: (numbers of the images, features on `device`, what failed).

    size: images a block. keep: names of the features wanted. what: for the progress display.
    views: a name in VIEWS. Unreadable images are left out under skip_bad; else: InputError.
    """
    loader = DataLoader(
        Images(images, preprocessing),
        batch_size=size,
        num_workers=workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # leaves the global random numbers to training
    )
    first = 0
    for block in progress(loader, len(loader), what):
        faults = [fault for _, fault in block if fault]
        if faults and not skip_bad:
            raise InputError(f"{faults[0]} Mend the file, or go on without such with --skip_bad.")
        read = [i for i, (image, _) in enumerate(block) if image is not None]
        numbers = [first + i for i in read]
        first += len(block)
        features: Features = {}
        if read:
            batch = torch.stack([block[i][0] for i in read]).to(device, non_blocking=True)
            encoded = encode_views(method, batch, str(images.modality[numbers[0]]), views)
            features = {name: encoded[name] for name in keep}
        yield numbers, features, faults


def fingerprint(method, *lists) -> str:
    """Sixteen hex digits that change with the weights, the preprocessing or the images' names.

    Weights that only training uses do not count: a checkpoint need not have them.
    """
    digest = hashlib.sha256(json.dumps([method.settings, method.inputs]).encode())
    for name, tensor in sorted(method.state_dict().items()):
        if name.startswith(method.training_only):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    for images in lists:
        digest.update("\n".join([*images.path, ""]).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
