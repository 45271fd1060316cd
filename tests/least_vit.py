"""The smallest Vision Transformer of the tests: a third of the time of vit_mini_patch8_48."""

from model.backbone import SMALL_VITS

SMALL_VITS["vit_least_patch8_32"] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 1,
    "num_heads": 3,
}
