"""Entries of a store: which images it has, in which state, and in which rows."""

from collections.abc import Mapping, Sequence

import numpy as np

State = list[int]
"""Size in bytes and modification time in ns of a file; empty where there is none."""


class Entries:
    """Images by name, with the states of their files and the rows of their features.

    features: names of the features that there may be.

    used (attribute): how many rows of each feature have an image, or had one.
    """

    def __init__(self, features: Sequence[str]):
        self.used = dict.fromkeys(features, 0)
        self._numbers: dict[str, int] = {}  # of images, by name
        self._states: list[State] = []
        self._rows: dict[str, list[int]] = {name: [] for name in features}
        self._sums: dict[str, list[int]] = {name: [] for name in features}

    def known(
        self, names: Sequence[str], states: Sequence[State], features: Sequence[str]
    ) -> np.ndarray:
        """Whether all these features are there of images with files in these states.

        Booleans (len(names),).
        """
        found = np.zeros(len(names), dtype=bool)
        for place, (name, state) in enumerate(zip(names, states, strict=True)):
            number = self._numbers.get(name)
            if number is not None and self._states[number] == list(state):
                rows = (self._rows[feature][number] for feature in features)
                found[place] = all(row >= 0 for row in rows)
        return found

    def sums(self, feature: str, names: Sequence[str]) -> np.ndarray:
        """The checksums of the rows of known images: (len(names),) uint64."""
        sums = [self._sums[feature][self._numbers[name]] for name in names]
        return np.array(sums, dtype=np.uint64)

    def states(self) -> dict[str, State]:
        """The states of all files, by name."""
        return {name: self._states[number] for name, number in self._numbers.items()}

    def rows(self, feature: str, names: Sequence[str]) -> np.ndarray:
        """The numbers of the rows of images; -1 where there is none: (len(names),)."""
        rows = [self._rows[feature][self._numbers[name]] for name in names]
        return np.array(rows, dtype=np.int64)

    def groups(self) -> dict[tuple[str, ...], list[str]]:
        """Names of images by the features that they have."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, number in self._numbers.items():
            has = tuple(f for f in self._rows if self._rows[f][number] >= 0)
            groups.setdefault(has, []).append(name)
        return groups

    def forget_others(self, names: Sequence[str]) -> None:
        """Forget all images but these."""
        self._numbers = {name: self._numbers[name] for name in names}

    @staticmethod
    def is_entry(line: object) -> bool:
        """Whether a line, whoever wrote it, is as note() takes it."""
        try:
            names, states, features = line["names"], line["states"], line["features"]
            return (
                isinstance(names, list)
                and all(type(name) is str for name in names)
                and len(states) == len(names) > 0
                and all(_are_counts(state) and len(state) in (0, 2) for state in states)
                and all(
                    _are_counts([about["first"], *about["sums"]])
                    and len(about["sums"]) == len(names)
                    and _are_counts(about["shape"])
                    and all(about["shape"])
                    for about in features.values()
                )
            )
        except (TypeError, KeyError, AttributeError):
            return False

    def note(self, line: Mapping) -> None:
        """Add a block of images: a line as FeatureStore writes it."""
        for place, (name, state) in enumerate(zip(line["names"], line["states"], strict=True)):
            number = self._numbers.get(name)
            if number is None or self._states[number] != state:
                number = self._numbers[name] = len(self._states)
                self._states.append(state)
                for feature in self._rows:
                    self._rows[feature].append(-1)
                    self._sums[feature].append(0)
            for feature, about in line["features"].items():
                self._rows[feature][number] = about["first"] + place
                self._sums[feature][number] = about["sums"][place]
        for feature, about in line["features"].items():
            self.used[feature] = max(self.used[feature], about["first"] + len(about["sums"]))


def _are_counts(values: object) -> bool:
    """Whether this is a list of whole numbers, none below 0."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
