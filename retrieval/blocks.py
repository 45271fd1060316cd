"""How many images are encoded and scored at a time, by the memory there is."""

import torch

from utils.precision import half_where_safe

ON_CPU = {"vectors": (128, 32), "pairs": (16, 32)}  # sketches, photos: beyond these nothing is won
ON_GPU = {"vectors": (512, 512), "pairs": (256, 256)}
SHARE = 0.2  # of the free memory for the images of a block, and for the scores of one
BYTES_OF_SCORE = 32  # while a sketch's photos are ordered: the score, its key, both sorted
TRIED = 4  # images


def block_sizes(
    method, device: torch.device, dtype: torch.dtype, photos: int, pairs: bool
) -> tuple[int, int]:
    """How many sketches and how many photos at a time: (sketches, photos).

    On a GPU as many as its free memory allows, up to where more gain nothing: what an image takes
    is measured by encoding a few. On CPUs sizes that suit the caches. photos: in the gallery;
    pairs: whether pairs are scored. The method is in evaluation mode, on the device.
    """
    kind = "pairs" if pairs else "vectors"
    if device.type != "cuda":
        return ON_CPU[kind]
    free, _ = torch.cuda.mem_get_info(device)
    images = max(1, int(SHARE * free / _bytes_of_image(method, device, dtype, pairs)))
    rows = max(1, int(SHARE * free / (BYTES_OF_SCORE * max(1, photos))))
    sketches, at_a_time = ON_GPU[kind]
    return min(sketches, images, rows), min(at_a_time, images)


def _bytes_of_image(method, device: torch.device, dtype: torch.dtype, pairs: bool) -> float:
    """What encoding one image, and preparing it for pairs, takes at its peak."""
    size = method.inputs["size"]
    images = torch.zeros(TRIED, 3, size, size, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with half_where_safe(device, dtype):
        features = method.encode(images, "photo")
    if pairs:
        method.pair_scorer(dtype).prepare(features, "photo")
    return max(1, torch.cuda.max_memory_allocated(device) - before) / TRIED
