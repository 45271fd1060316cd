"""The precision of a network: fp32, TF32, or half precision where that is fast."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(amp: str, device: torch.device) -> torch.dtype:
    """The number format that --amp names.

    "auto" is bfloat16 where the device multiplies matrices in it, else float16 on GPUs and float32
    on CPUs.
    """
    if amp != "auto":
        return DTYPES[amp]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def trainable(amp: str, device: torch.device) -> str:
    """In what training computes, as a name in DTYPES: bf16, or off.

    Where dtype_of() is float16, training is in fp32: float16 would need scaled losses.
    """
    return "bf16" if dtype_of(amp, device) == torch.bfloat16 else "off"


def half_where_safe(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to dtype; nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether NVIDIA GPUs may multiply and convolve float32 in TF32, with its 10 bits."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Count numbers below 1e-38 as 0: as gradients they slow a CPU tenfold."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
