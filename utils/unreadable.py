"""Why a file cannot be read as a checkpoint, by what it is and how it begins."""

import os
import stat
import zipfile
from pathlib import Path

from utils.errors import InputError
from utils.files import reason

ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save begin: since version 1.6, and before."""
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".npz")
AGAIN = "Is the download complete? Get the file again"
MOST_UNPACKED = 20  # times the size of a packed file: far more than weights can be packed

_BEGINNINGS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch it with "
    "`git lfs pull`",
    b"<": "is a web page, or XML: the link answered with a page; open it in a browser and "
    "download the file there",
    b"\x1f\x8b": "is packed with gzip; unpack it first",
    b"BZh": "is packed with bzip2; unpack it first",
    b"\xfd7zXZ": "is packed with xz; unpack it first",
    b"7z\xbc\xaf": "is packed with 7-Zip; unpack it first",
    b"Rar!": "is packed with RAR; unpack it first",
    b"\x89HDF": "is an HDF5 file, as Keras writes it; PyTorch's weights are needed",
    b"\x93NUMPY": "is one array of numpy; PyTorch's weights are needed",
    b"\x80": "is a pickle that torch.save did not write, or it is damaged; write its weights with "
    "torch.save({'model': state_dict}, FILE)",
}


def check_name(path: Path) -> os.stat_result | None:
    """What the system knows of a file; None: it is absent. InputError where it cannot be there."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{_short(path)}: cannot be opened ({reason(error)}).") from error


def check_is_file(path: Path) -> None:
    """Raise InputError for what is no regular file: nothing waits for a pipe or a device."""
    found = check_name(path)
    if found is None:
        raise InputError(f"{path}: no such file.")
    mode = found.st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder. {_in_folder(path)}")
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{path}: is no regular file but a pipe, a socket or a device. Save the checkpoint to "
            "a file first."
        )


def why_unreadable(beginning: bytes) -> str:
    """What is wrong with a file that begins so, from the verb on, with what to do."""
    if not beginning.strip(b"\0"):
        return f"is {'full of zeros' if beginning else 'empty'}. {AGAIN}"
    for known, sentence in _BEGINNINGS.items():
        if beginning.lstrip().startswith(known):
            return sentence
    try:
        beginning[:-4].decode("utf-8")  # the last letter may be cut
    except UnicodeDecodeError:
        return f"is damaged, or no checkpoint. {AGAIN}"
    return "is a text file, not a checkpoint"


def fault_of_zip(path: Path) -> str | None:
    """What is wrong with a zip file, from the verb on: one cut short, or with a byte changed.

    torch checks no checksums. Reading the file for them takes a seventh of the time of loading it.
    """
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
            size = sum(record.file_size for record in records)
            if size > MOST_UNPACKED * path.stat().st_size:
                return f"unpacks to {size / 1e9:,.1f} GB, far more than weights would"
            summed = any(record.CRC for record in records)  # torch.save can be told to leave it out
            damaged = file.testzip() if summed else None
    except Exception as error:  # zipfile raises errors of many kinds at damaged bytes
        if isinstance(error, OSError):
            raise
        return f"is cut short or damaged. {AGAIN}"
    return damaged and f"is damaged: the checksum of {damaged} is wrong. {AGAIN}"


def listed(names: list[str], most: int = 3) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def _in_folder(path: Path) -> str:
    try:
        inside = sorted(file.name for file in path.iterdir() if file.suffix in CHECKPOINTS)
    except OSError:
        inside = []
    inside.sort(key=lambda name: not name.startswith("best"))
    if not inside:
        return "Name a checkpoint, which is a file; this folder holds none."
    return f"Name the file: {path / inside[0]}" + (
        f" (also there: {listed(inside[1:])})." if inside[1:] else "."
    )


def _short(path: Path) -> str:
    """A path in a message: one too long to be opened is too long to be read."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:60]}...{text[-60:]} ({len(text):,} letters)"
