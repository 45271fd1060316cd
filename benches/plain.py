"""The plain network as a measure, in fp32."""

import torch

from benches.plain_network import plain_pair_logits
from utils.speed import median_seconds, operations_of

BLOCK = 20  # sketches, and photos
SHARE = 0.4  # of the fp32 peak, which the plain network has to reach to be a fair measure


def plain_pair(method, device, repeat: int) -> dict:
    """Seconds and operations of a pair, in a block of 20 x 20."""
    shape = (BLOCK, method.tokenizer.tokens + 1, method.tokenizer.width)
    sketches, photos = (torch.randn(shape, device=device) for _ in range(2))

    def run():
        plain_pair_logits(method, sketches, photos)

    operations = operations_of(run) / BLOCK**2
    seconds = median_seconds(run, device, min(repeat, 3)) / BLOCK**2
    return {"seconds": seconds, "operations": operations}


def figures_of_plain(plain: dict, peaks: dict) -> dict:
    """Figures of plain_pair(), and whether it is fast enough to compare with."""
    speed = plain["operations"] / plain["seconds"] / 1e9
    share = speed / peaks["peak GFLOP/s torch.float32"]
    verdict = "a fair measure" if share >= SHARE else f"below {SHARE:.0%}: no measure"
    return {
        "plain: ms a pair": 1e3 * plain["seconds"],
        "plain: GFLOP a pair": plain["operations"] / 1e9,
        "plain: GFLOP/s": speed,
        "plain: share of fp32 peak": share,
        "plain: verdict": verdict,
    }
