"""The lists of a benchmark: names of classes with ids, paths of images with labels, their files.

A list that does not agree with itself is refused: file, line, and what is expected there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from datasets.benchmark import plain_name
from utils.errors import InputError
from utils.files import open_regular, reason

SHOWN = 80  # letters of a line in messages
NAMED = 5  # names in a folder that messages have
PREPARED = "ready"  # ends names of folders whose pictures the papers' authors have prepared


def read_lines(file: Path) -> list[str]:
    """Lines of a text file, with or without the byte order mark that Windows writes.

    Raises InputError where it cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(file) as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)}).") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: is not UTF-8 text (byte {error.start + 1}). Save it as UTF-8."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def read_names(file: Path) -> list[str]:
    """Class names by id, from lines 'class name id' in any order; ids are 0, 1, 2, ...

    Raises InputError for an empty file, and where an id is absent, too large or no number, or an id
    or a class stands there twice. Spellings that plain_name() makes equal are one class.
    """
    lines = [(n, line.strip()) for n, line in enumerate(read_lines(file), 1) if line.strip()]
    if not lines:
        raise InputError(
            f"{file}: names no class. Complete it, or remove it to have the published order used."
        )
    names, known = {}, {}
    for number, line in lines:
        name, label = _split(line, len(lines))
        if label is None:
            raise InputError(
                f"{file}, line {number}: expected 'class name id' with an id from 0 to "
                f"{len(lines) - 1}, found {shown(line)}."
            )
        for what, key in (("id", label), ("class", plain_name(name))):
            first = known.setdefault((what, key), number)
            if first != number:
                raise InputError(
                    f"{file}, line {number}: the {what} of {shown(line)} is that of line {first} "
                    f"too. Give each class one line, with an id from 0 to {len(lines) - 1}."
                )
        names[label] = name
    return [names[label] for label in range(len(names))]


def read_rows(file: Path, classes: int) -> Iterator[tuple[int, str, int]]:
    """Rows 'relative/path label' of a list: line number, path with / between folders, and label.

    classes: labels are below it. Raises InputError for another line, an image with two labels, and
    a list without a row.
    """
    known: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(read_lines(file), start=1):
        line = line.strip()
        if not line:
            continue
        path, label = _split(line, classes)
        if label is None:
            raise InputError(
                f"{file}, line {number}: expected 'relative/path label' with a label from 0 to "
                f"{classes - 1}, found {shown(line)}."
            )
        path = path.replace("\\", "/")  # as Windows writes it
        other, first = known.setdefault(path, (label, number))
        if other != label:
            raise InputError(
                f"{file}, line {number}: {shown(path)} has label {label}, and in line {first} "
                f"label {other}. Correct one of the lines."
            )
        yield number, path, label
    if not known:
        raise InputError(f"{file}: lists no image. Complete the list.")


def shown(text: str) -> str:
    """A text from a file in messages: in quotes, its middle left out where it is long."""
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 4 :]}")


class Disk:
    """The files below a root, found although mirrors spell names differently.

    Each folder is read once.
    """

    def __init__(self, root: Path):
        self.root = root
        self._names: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, str | None]] = {}

    def names(self, folder: str) -> set[str]:
        """Names in a folder below the root; none where there is no such folder."""
        if folder not in self._names:
            self._names[folder] = set()
            try:
                if os.path.isdir(self.root / folder):
                    self._names[folder] = set(os.listdir(self.root / folder))
            except OSError as error:
                raise InputError(
                    f"{self.root / folder}: cannot be read ({error.strerror})."
                ) from error
        return self._names[folder]

    def locate(self, path: str) -> str | None:
        """The path as it is on disk, whatever its case, blanks, hyphens or .jpeg; None: absent.

        A folder is also found with or without "_ready" at its end.
        """
        folder, _, name = path.rpartition("/")
        if name in self.names(folder):
            return path
        found = ""
        parts = path.split("/")
        for number, part in enumerate(parts, start=1):
            there = self._part(found, part, is_folder=number < len(parts))
            if there is None:
                return None
            found = f"{found}/{there}" if found else there
        return found

    def explain_absence(self, path: str) -> str:
        """A sentence on the folder of a missing file, where that is absent; else ""."""
        found = ""
        for part in path.split("/")[:-1]:
            there = self._part(found, part, is_folder=True)
            if there is None:
                names = ", ".join(shown(name) for name in sorted(self.names(found))[:NAMED])
                return (
                    f"The lists say {shown(f'{found}/{part}'.lstrip('/'))}, and "
                    f"{self.root / found} has {names or 'nothing'}. "
                )
            found = f"{found}/{there}" if found else there
        return ""

    def _part(self, folder: str, part: str, is_folder: bool) -> str | None:
        """The name in a folder that a part of a path means; None: there is none, or several."""
        if part in self.names(folder):
            return part
        spellings, plain = self._spelling(folder), plain_name(part)
        there = spellings.get(plain)
        if there is None and is_folder:
            there = spellings.get(unprepared(part)) or spellings.get(plain + PREPARED)
        return there

    def _spelling(self, folder: str) -> dict[str, str | None]:
        """Plain spelling -> the one name in the folder so spelt (None where there are several)."""
        if folder not in self._spellings:
            spellings: dict[str, str | None] = {}
            for name in self.names(folder):
                plain = plain_name(name)
                spellings[plain] = None if plain in spellings else name
            self._spellings[folder] = spellings
        return self._spellings[folder]


def unprepared(name: str) -> str:
    """The plain name of a folder, without "ready"."""
    return plain_name(name).removesuffix(PREPARED)


def difference(said: str, there: str) -> tuple[str, str] | None:
    """Where a path in a list and the file's place differ, in more than spelling; None: nowhere."""
    one, other = said.split("/")[:-1], there.split("/")[:-1]
    if list(map(plain_name, one)) == list(map(plain_name, other)):
        return None
    while min(len(one), len(other)) > 1 and plain_name(one[-1]) == plain_name(other[-1]):
        one, other = one[:-1], other[:-1]
    return "/".join(one), "/".join(other)


def _split(line: str, count: int) -> tuple[str, int | None]:
    """What stands before the last word, and that word as a number below `count` (None: no such)."""
    before, _, word = line.replace("\t", " ").rpartition(" ")
    digits = word.lstrip("0") or word[:1]
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(count))
    if not before or not is_number or int(digits) >= count:
        return line, None
    return before.strip(), int(digits)
