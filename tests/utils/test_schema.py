"""Schemas: each kind of value by hand, places and bounds in sentences, any damage of JSON."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import InputError
from utils.schema import (
    ANYTHING,
    TEXT,
    TRUTH,
    check,
    kind,
    maybe,
    named,
    number,
    of_type,
    one_of,
    rows,
    shown,
    table,
    whole,
)

GALLERY = table(
    {"format": whole(1, 2), "photos": rows(table({"path": TEXT, "row": whole(0, 9)}), most=3)},
    {"recall": maybe(number(0, 1)), "sizes": named(whole(1)), "index": one_of("exact", "ivf")},
)
GOOD = {
    "format": 2,
    "photos": [{"path": "a.jpg", "row": 0}, {"path": "b.jpg", "row": 9}],
    "recall": 0.5,
    "sizes": {"tokens": 4},
    "index": "ivf",
    "of a later version": [1],
}


def refusal(value, schema=GALLERY) -> str:
    with pytest.raises(InputError) as error:
        check(value, schema, "gallery.json", "Build it anew.")
    said = str(error.value)
    assert said.startswith("gallery.json: ") and said.endswith(". Build it anew.")
    return said.removeprefix("gallery.json: ").removesuffix(". Build it anew.")


def test_what_is_right_passes():
    check(GOOD, GALLERY, "gallery.json", "")
    check({"format": 1, "photos": ()}, GALLERY, "gallery.json", "")
    check(GOOD | {"recall": None}, GALLERY, "gallery.json", "")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 3}, "format is 3, and should be a whole number from 1 to 2"),
        ({"format": True}, "format is True, and should be a whole number from 1 to 2"),
        ({"format": 1.0}, "format is 1.0, and should be a whole number from 1 to 2"),
        ({"format": "1"}, "format is '1', and should be a whole number from 1 to 2"),
        ({"photos": {}}, "photos is a dict, and should be a list"),
        ({"photos": [0]}, "photos[0] is 0, and should be a table of names and values"),
        ({"photos": [{"row": 1}]}, "photos[0] has no path"),
        ({"photos": [{}]}, "photos[0] has no path, row"),
        (
            {"photos": [{"path": "a", "row": 1}, {"path": "b", "row": -1}]},
            "photos[1].row is -1, and should be a whole number from 0 to 9",
        ),
        ({"photos": [GOOD["photos"][0]] * 4}, "photos has 4 values, not from 0 to 3"),
        ({"recall": math.nan}, "recall is nan, and should be a finite number from 0 to 1"),
        ({"sizes": {"tokens": 0}}, "sizes.tokens is 0, and should be a whole number from 1 on"),
        ({"sizes": {3: 1}}, "sizes has the name 3, and names should be text"),
        ({"index": ["ivf"]}, "index is a list, and should be one of exact, ivf"),
    ],
)
def test_the_first_fault_is_said_with_its_place(changed, said):
    assert refusal(GOOD | changed) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "has no format, photos"),
        ([], "is a list, and should be a table of names and values"),
        (None, "is None, and should be a table of names and values"),
    ],
)
def test_of_the_whole_no_place_is_said(value, said):
    assert refusal(value) == said


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        (whole(), [0, -5, 2**63 - 1], [2**63, -(2**63), 10**5000, 0.0, False, None, "0", [0]]),
        (number(), [0, 1.5, -1e308], [math.inf, -math.inf, math.nan, 10**400, True, "1", None]),
        (number(0), [0, 0.0, 1e9], [-1e-9]),
        (TEXT, ["", "a"], [b"a", 1, None]),
        (TRUTH, [True, False], [0, 1, "true", None]),
        (maybe(TEXT), [None, "a"], [0]),
        (rows(whole(), least=1), [[1], (1, 2)], [[], "1", {1: 1}, [1, "2"], None]),
        (of_type((int, str), "short"), [1, "a"], [1.5]),
        (kind("even", lambda value: value % 2 == 0), [2], [3]),
        (ANYTHING, [None, object()], []),
    ],
)
def test_kinds_by_hand(schema, accepted, refused):
    for value in accepted:
        assert schema(value, "x") is None, value
    for value in refused:
        assert schema(value, "x").startswith("x"), value


def test_values_are_shown_short():
    for value in ("x" * 10**6, 10**600, 10**5000, ["x"] * 10**6, b"x" * 10**6):
        assert len(shown(value)) < 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_json_in_any_place_passes_or_is_one_sentence(data):
    content = json.loads(json.dumps(GOOD))
    place, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(JSON)
    try:
        check(content, GALLERY, "gallery.json", "Build it anew.")
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
