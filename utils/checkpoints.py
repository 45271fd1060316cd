"""Checkpoints on disk: written whole or not at all, loaded without running foreign code."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from utils.errors import InputError
from utils.files import reason, written_whole
from utils.schema import check, named, of_type
from utils.stand_ins import plain, safe_globals
from utils.unreadable import (
    AGAIN,
    LEGACY,
    ZIP,
    check_is_file,
    fault_of_zip,
    listed,
    why_unreadable,
)

WRAPPERS = ("model", "state_dict", "model_state_dict", "network", "net", "weights")
INSERTED = r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""Keys under which programs save a network, and what wrappers of modules put into its names."""


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

    Only tensors, plain values and harmless objects (utils/stand_ins.py) are accepted: a file cannot
    run code. Checksums are compared where the file has them. Raises InputError for a file that is
    absent, none to read, damaged, or holds something else.
    """
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            beginning = file.read(4096)
        if beginning.startswith(ZIP):
            fault = fault_of_zip(path)
        elif beginning[8:9] == b"{" or (beginning and LEGACY.startswith(beginning[: len(LEGACY)])):
            fault = None
        else:
            fault = why_unreadable(beginning)
        if fault:
            raise unreadable(path, fault)
        content = _safetensors(path) if beginning[8:9] == b"{" else _unpickled(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}).") from error
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, not a dict of tensors. Save the weights "
            "alone: torch.save({'model': model.state_dict()}, FILE)."
        )
    return {name: plain(value) for name, value in content.items()}


def unreadable(path: Path, fault: str) -> InputError:
    """The error for a file that is no checkpoint. fault: from the verb on."""
    return InputError(f"{path}: cannot be read as a checkpoint: it {fault}.")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path)
    except Exception as error:  # as for any damaged bytes
        raise unreadable(path, f"is damaged or cut short. {AGAIN}") from error


def _unpickled(path: Path) -> object:
    """Whatever torch.save wrote; torch's own messages, which advise to run the file, are not told.

    Raises InputError, and OSError.
    """
    try:
        with torch.serialization.safe_globals(safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged bytes
            with open(path, "rb") as file:  # of a path, torch would look at the name's ending
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise errors of many kinds in an unpickler
        foreign = re.search(r"GLOBAL (\S+)|``(\S+)`` must be imported", str(error))
        if foreign:
            name = (foreign[1] or foreign[2])[:100]
            raise InputError(
                f"{path}: holds {name}, which is neither a tensor nor a plain value, and is not "
                "read: it could run code. If you trust the author of the file, write its weights "
                "alone where it was made: torch.save({'model': model.state_dict()}, FILE)."
            ) from None
        if "TorchScript" in str(error):
            fault = "is a TorchScript program; write its state_dict() with torch.save"
        elif "Unsupported operand" in str(error):
            fault = "was pickled in another way than torch.save does by default, or is damaged"
        else:
            fault = f"is damaged or cut short. {AGAIN}"
        raise unreadable(path, fault) from None


def weights_in(content: Mapping, source: str) -> Mapping:
    """The state dict in what a training program has saved; `content` itself where it is one.

    Raises InputError where there are several networks to choose from.
    """
    inside = {
        name: value
        for name, value in content.items()
        if isinstance(value, Mapping) and any(isinstance(t, Tensor) for t in value.values())
    }
    chosen = next((inside[name] for name in WRAPPERS if name in inside), None)
    if chosen is None and len(inside) > 1 and not any(map(torch.is_tensor, content.values())):
        raise _several(source, [str(name) for name in inside])
    if chosen is None:
        chosen = next(iter(inside.values())) if len(inside) == 1 else content
    return chosen


def split_prefix(state: Mapping[str, object], known: str, source: str) -> tuple[dict, dict]:
    """The tensors beside the one called `known`, named as it is, and all others.

    What DataParallel, torch.compile, Lightning and the like put before and into names is left out.
    Where `known` is absent, all tensors are beside it. Raises InputError where it is there several
    times, as of a student and a teacher.
    """
    clean = {re.sub(INSERTED, "", name): tensor for name, tensor in state.items()}
    ends = [name for name in clean if name == known or name.endswith(f".{known}")]
    if len(ends) > 1 and known not in ends:
        raise _several(source, [end.removesuffix(known) for end in ends])
    prefix = "" if known in ends or not ends else ends[0].removesuffix(known)
    inside = {n.removeprefix(prefix): t for n, t in clean.items() if n.startswith(prefix)}
    return inside, {n: t for n, t in clean.items() if not n.startswith(prefix)}


def without_prefix(state: Mapping[str, object], known: str, source: str) -> dict:
    """All tensors, those beside `known` named as it is, see split_prefix()."""
    inside, others = split_prefix(state, known, source)
    return others | inside


def _several(source: str, names: list[str]) -> InputError:
    return InputError(
        f"{source}: holds several networks: {listed(names)}. Save the tensors of the one that you "
        "mean alone: torch.save({'model': tensors}, FILE)."
    )


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str, may_miss: Iterable[str] = ()
) -> None:
    """Copy `state` into `module`; every tensor must be there, be expected, and have its shape.

    `may_miss`: beginnings of names that `state` may lack. Raises InputError listing every fault.
    """
    check_fit(module, state, source, may_miss)
    expected = module.state_dict()
    state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    bad = not_finite(state)
    if bad is not None:
        raise InputError(
            f"{source}: the tensor {bad} holds numbers that are not finite (nan or infinite). Its "
            "training has failed, or the file is damaged: take an earlier checkpoint."
        )
    module.load_state_dict(state, strict=False)


def check_fit(
    module: nn.Module, state: Mapping[str, Tensor], source: str, may_miss: Iterable[str] = ()
) -> None:
    """Raise InputError where load_strictly() would, for names, kinds and shapes.

    The module may be on the device meta.
    """
    check(state, named(of_type(Tensor, "a tensor")), source, "Get or write the file again.")
    expected = module.state_dict()
    may_miss = tuple(may_miss)
    missing = [n for n in expected if n not in state and not n.startswith(may_miss)]
    unexpected = [n for n in state if n not in expected]
    both = [n for n in expected if n in state]
    misshapen = [
        f"{n} is {tuple(state[n].shape)} and should be {tuple(expected[n].shape)}"
        for n in both
        if state[n].shape != expected[n].shape
    ]
    odd = [n for n in both if not _is_plain(state[n], expected[n])]
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": misshapen,
        "without plain real numbers": odd,
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
        raise InputError(f"{source}: does not fit this model. {told}.")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with nan or infinite numbers; a tenth of isfinite()'s time."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(tensor.detach().aminmax())
            if not ends.isfinite().all():
                return name
    return None


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Whether a tensor has numbers in memory that can become those of `expected`."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_complex()
        and (expected.is_floating_point() or not tensor.is_floating_point())
    )
