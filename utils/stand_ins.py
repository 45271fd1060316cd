"""What stands in for harmless objects that checkpoints of others hold beside their tensors.

torch.load(weights_only=True) refuses them. It is told to make these instead, none of which runs
anything: numpy's own classes trust what a file says about memory.
"""

import argparse
import re
import types
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np

_TYPE = re.compile(r"\??|[biufcSU]\d{1,4}")
_PATHS = {
    "PosixPath": PurePosixPath,
    "WindowsPath": PureWindowsPath,
    "PurePosixPath": PurePosixPath,
    "PureWindowsPath": PureWindowsPath,
    "Path": PurePosixPath,
}


class _Type:
    """numpy.dtype: of numbers and texts alone."""

    def __init__(self, code: str, *_):
        if not _TYPE.fullmatch(code):
            raise ValueError
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if self.numpy.itemsize > 1 and state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """numpy.ndarray: what _reconstruct() makes, to be filled."""

    numpy = np.zeros(0)

    def __init__(self, *_):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, of, by_columns, content = state
        flat = np.frombuffer(content, of.numpy)
        self.numpy = flat.reshape(shape, order="F" if by_columns else "C").copy()


def _scalar(of: _Type, content: bytes) -> object:
    return np.frombuffer(content, of.numpy, count=1)[0].item()


class _Class:
    """A class that is only mentioned, as the one in defaultdict(list)."""


def _dict(*_) -> dict:
    return {}


def _no_bytes() -> bytes:
    return b""  # as empty arrays have them; bytes(n) would take n bytes of memory


def plain(value: object) -> object:
    """A value that was read, as users of numpy know it."""
    return value.numpy if isinstance(value, _Array | _Type) else value


def safe_globals() -> list[tuple[object, str]]:
    """What torch.serialization.safe_globals() is to allow: a stand-in, and the name it goes by."""
    allowed = {
        "argparse.Namespace": argparse.Namespace,
        "types.SimpleNamespace": types.SimpleNamespace,
        "builtins.bytes": _no_bytes,
        "collections.defaultdict": _dict,
        "numpy.dtype": _Type,
        "numpy.ndarray": _Array,
    }
    for core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
        allowed[f"{core}.multiarray.scalar"] = _scalar
        allowed[f"{core}.multiarray._reconstruct"] = _Array
    for module in ("pathlib", "pathlib._local"):
        allowed |= {f"{module}.{name}": path for name, path in _PATHS.items()}
    allowed |= {f"builtins.{name}": _Class for name in ("list", "dict", "int", "float", "str")}
    return [(stand_in, name) for name, stand_in in allowed.items()]
