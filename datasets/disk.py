"""Which files a data folder holds, found although mirrors spell their names differently."""

from pathlib import Path

from datasets.benchmark import plain_name


class Disk:
    """The files below a root, each folder read once, when it is first asked for."""

    def __init__(self, root: Path):
        self.root = root
        self._names: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, str | None]] = {}

    def names(self, folder: str) -> set[str]:
        """Names in a folder below the root; none where there is no such folder."""
        if folder not in self._names:
            path = self.root / folder
            self._names[folder] = {p.name for p in path.iterdir()} if path.is_dir() else set()
        return self._names[folder]

    def locate(self, path: str) -> str | None:
        """The path as it is on disk, whatever its case, blanks, hyphens or .jpeg; None: absent."""
        folder, _, name = path.rpartition("/")
        if name in self.names(folder):
            return path
        found = ""
        for part in path.split("/"):
            if part not in self.names(found):
                part = self._spelling(found).get(plain_name(part))
                if part is None:
                    return None
            found = f"{found}/{part}" if found else part
        return found

    def _spelling(self, folder: str) -> dict[str, str | None]:
        """Plain spelling -> the one name in the folder so spelt (None where there are several)."""
        if folder not in self._spellings:
            spellings: dict[str, str | None] = {}
            for name in self.names(folder):
                plain = plain_name(name)
                spellings[plain] = None if plain in spellings else name
            self._spellings[folder] = spellings
        return self._spellings[folder]
