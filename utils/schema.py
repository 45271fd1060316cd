"""What plain values read from a file must be, and one sentence where they are not.

For JSON and the plain part of checkpoints, whoever wrote them:

    PHOTO = table({"path": TEXT, "row": whole(0)}, optional={"size": maybe(whole(1))})
    check(content, table({"format": whole(1, 2), "photos": rows(PHOTO)}), file, "Build it anew.")

A schema is a function: takes a value and its place, returns what is wrong first, or None.
"""

import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from itertools import chain

from utils.errors import InputError

Schema = Callable[[object, str], str | None]
LARGEST = 2**63 - 1  # that numpy and torch take


def check(value: object, schema: Schema, source: object, remedy: str) -> None:
    """Raise InputError where `value`, which was read from `source`, is not as the schema says.

    remedy: a sentence that says what to do.
    """
    fault = schema(value, "")
    if fault:
        raise InputError(f"{source}: {fault}. {remedy}")


def kind(allowed: str, accepts: Callable[[object], bool]) -> Schema:
    """A single value. allowed: in words, after "it should be"."""

    def fault(value: object, place: str) -> str | None:
        if accepts(value):
            return None
        return f"{place} is {shown(value)}, and should be {allowed}".lstrip()

    return fault


def whole(least: int = -LARGEST, most: int = LARGEST) -> Schema:
    """A whole number; neither True nor 1.0 is one."""
    return kind(
        f"a whole number{_bounds(least, most)}",
        lambda value: _is_number(value, int) and least <= value <= most,
    )


def number(least: float = -math.inf, most: float = math.inf) -> Schema:
    """A finite number, whole or not."""
    return kind(
        f"a finite number{_bounds(least, most)}",
        lambda value: (
            _is_number(value, int | float)
            and least <= value <= most
            and abs(value) <= sys.float_info.max  # math.isfinite fails for an int beyond
        ),
    )


def of_type(types: type | tuple[type, ...], allowed: str) -> Schema:
    """An object of a Python type. allowed: that in words."""
    return kind(allowed, lambda value: isinstance(value, types))


TEXT, TRUTH = of_type(str, "text"), of_type(bool, "true or false")
ANYTHING = of_type(object, "anything")
PLAIN = of_type((bool, int, float, str, list, tuple, dict, type(None)), "a plain value")
_LIST, _TABLE = of_type(list | tuple, "a list"), of_type(Mapping, "a table of names and values")


def one_of(*values: str) -> Schema:
    """One of some texts."""
    allowed = "one of " + ", ".join(values)
    return kind(allowed, lambda value: isinstance(value, str) and value in values)


def maybe(schema: Schema) -> Schema:
    """What the schema says, or None."""
    return lambda value, place: None if value is None else schema(value, place)


def rows(of: Schema, least: int = 0, most: int = LARGEST) -> Schema:
    """A list, or tuple, of `least` to `most` values."""

    def fault(value: object, place: str) -> str | None:
        if not isinstance(value, list | tuple):
            return _LIST(value, place)
        if not least <= len(value) <= most:
            return f"{place} has {len(value):,} values, not{_bounds(least, most)}".lstrip()
        return _first(of(one, f"{place}[{i}]") for i, one in enumerate(value))

    return fault


def named(of: Schema) -> Schema:
    """A table from any names to values of one kind."""

    def fault(value: object, place: str) -> str | None:
        if not isinstance(value, Mapping):
            return _TABLE(value, place)
        return _first(
            of(one, _inside(place, key)) if isinstance(key, str) else _bad_key(key, place)
            for key, one in value.items()
        )

    return fault


def table(required: Mapping, optional: Mapping | None = None) -> Schema:
    """A table with these keys, each with a schema. Other keys may be there too."""

    def fault(value: object, place: str) -> str | None:
        if not isinstance(value, Mapping):
            return _TABLE(value, place)
        absent = [key for key in required if key not in value]
        if absent:
            return f"{place} has no {', '.join(map(str, absent))}".lstrip()
        known = chain(required.items(), (optional or {}).items())
        return _first(of(value[k], _inside(place, k)) for k, of in known if k in value)

    return fault


def shown(value: object) -> str:
    """A value in a message: short, and its type alone where that says more."""
    if value is None or isinstance(value, bool | int | float | str):
        try:
            return _SHORT.repr(value)
        except ValueError:  # Python prints no int of thousands of digits
            return "a number of thousands of digits"
    return f"a {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = 60


def _is_number(value: object, types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _bounds(least: float, most: float) -> str:
    """In words, after a noun."""
    if abs(least) in (LARGEST, math.inf) and most in (LARGEST, math.inf):
        return ""
    return f" from {least:,} " + ("on" if most in (LARGEST, math.inf) else f"to {most:,}")


def _inside(place: str, key: object) -> str:
    return f"{place}.{key}" if place else key


def _bad_key(key: object, place: str) -> str:
    return f"{place} has the name {shown(key)}, and names should be text".lstrip()


def _first(faults) -> str | None:
    return next(filter(None, faults), None)
