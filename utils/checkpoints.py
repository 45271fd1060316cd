"""Checkpoints on disk: written whole or not at all, loaded without running foreign code."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from utils.errors import InputError
from utils.files import reason, written_whole


def save_atomically(content: object, path: Path) -> None:
    """torch.save, whole or not at all (utils.files.written_whole).

    Raises InputError where it cannot be written: what stood there before is untouched.
    """
    try:
        with written_whole(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise InputError(
            f"{path}: cannot be written ({reason(error)}). What stood there before is untouched; "
            "is there space left, and may you write there?"
        ) from error


def load_file(path: Path) -> dict:
    """The dict in a .pth or .safetensors file, on the CPU.

    Only tensors, plain containers and numpy scalars are accepted (weights_only=True): a file cannot
    run code. Raises InputError where the file is absent, damaged or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        with torch.serialization.safe_globals(_numpy_scalar_types()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise errors of many kinds in an unpickler
        first_line = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {first_line}). "
            "Is the download complete, and is it a file that torch.save wrote?"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dict of tensors.")
    return dict(content)


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str, may_miss: Iterable[str] = ()
) -> None:
    """Copy `state` into `module`; every tensor must be there, be expected, and have its shape.

    `may_miss`: beginnings of names that `state` may lack. Raises InputError listing every fault.
    """
    expected = module.state_dict()
    may_miss = tuple(may_miss)
    missing = [n for n in expected if n not in state and not n.startswith(may_miss)]
    unexpected = [n for n in state if n not in expected]
    misshapen = [
        f"{n} is {tuple(state[n].shape)} and should be {tuple(expected[n].shape)}"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise InputError(f"{source}: does not fit this model. {listed}.")
    module.load_state_dict({n: t.to(expected[n].dtype) for n, t in state.items()}, strict=False)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number among them is nan or infinite."""
    found = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not found or bool(torch.stack(found).all())


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the `module.` prefix that DataParallel puts before every name."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _numpy_scalar_types() -> list:
    """All that a pickled numpy scalar refers to: its builder by new and old path, dtype classes."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *dtypes]
