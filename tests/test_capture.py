"""Whatever an agent passes as a payload becomes one JSON object, and is left alone."""

from __future__ import annotations

import json
import math
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.capture import capture, describe_error, fields_of


class RaisingRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class RaisingAttributes:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


class RaisingBool:
    """As an array of numpy and a frame of pandas are."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


class RaisingLen(dict[str, object]):
    def __len__(self) -> int:
        raise RuntimeError("no length")


class RaisingItems(UserDict[str, object]):
    def items(self) -> Any:
        raise RuntimeError("no items")

    keys = items


class SurrogateRepr:
    def __repr__(self) -> str:
        return "\ud800"


class Colour(Enum):
    RED = "red"


class Markup(str):
    __slots__ = ()


@dataclass(eq=False)
class Record:
    content: object


@dataclass(frozen=True)
class Nasty:
    """The place of a nasty object in what Hypothesis draws: it cannot print the object."""

    name: str


def circular_dict() -> dict[str, object]:
    outer: dict[str, object] = {"sibling": 1}
    outer["self"] = [outer]
    return outer


def circular_record() -> Record:
    record = Record(None)
    record.content = record
    return record


def nested(levels: int) -> dict[str, Any]:
    value: Any = "the bottom"
    for _ in range(levels):
        value = {"inner": value}
    return value


NASTY: dict[str, object] = {
    "raising repr": RaisingRepr(),
    "raising repr as key": {RaisingRepr(): 1},
    "raising attributes": RaisingAttributes(),
    "raising bool": RaisingBool(),
    "raising len": RaisingLen(a=1),
    "raising items": RaisingItems(a=1),
    "surrogate in repr": SurrogateRepr(),
    "surrogate": "\ud800",
    "surrogate as key": {"\ud800": 1},
    "surrogate in a record": Record("\ud800"),
    "circular dict": circular_dict(),
    "circular record": circular_record(),
    "deep": nested(10_000),
    "keys that meet": {1: 1, "1": 2},
    "keys that are no text": {None: 1, (1, 2): {b"k": "\udfff"}},
    "NaN": math.nan,
    "infinity": -math.inf,
    "decimal NaN": Decimal("NaN"),
    "huge number": 10**5000,
    "more than 64 bits": 2**64,
    "complex": 1j,
    "bytes": b"\xff",
    "bytearray": bytearray(b"\xff"),
    "memoryview": memoryview(b"\xff"),
    "mixed set": {1, "a"},
    "set of bytes": frozenset({b"\xff"}),
    "mapping proxy": MappingProxyType({1: 2}),
    "generator": (character for character in "a"),
    "class": object,
    "function": print,
    "enum": Colour.RED,
    "path": PurePosixPath("a"),
    "first moment": datetime.min.replace(tzinfo=timezone(timedelta(hours=23))),
    "longest time": timedelta.max,
    "uuid": UUID(int=0),
}

# Text as Python has it, not as UTF-8 has it: st.text() alone gives no lone surrogates.
texts = st.text(st.characters())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary()
nasty_names = st.sampled_from(sorted(NASTY))
anything = st.recursive(
    scalars | st.builds(Nasty, nasty_names),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.sets(scalars)
        | st.dictionaries(scalars | st.tuples(scalars), inner)
        | st.builds(Record, inner)
    ),
    max_leaves=20,
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
json_objects = st.dictionaries(st.text(), json_values)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def captured(payload: object) -> dict[str, Any]:
    """What a strict reader makes of the captured bytes."""
    value = json.loads(bytes(capture(payload)).decode(), parse_constant=no_constant)
    assert isinstance(value, dict)
    return value


def filled(plan: object) -> object:
    """What Hypothesis drew, with the nasty objects in place of their names."""
    match plan:
        case Nasty():
            return NASTY[plan.name]
        case Record():
            return Record(filled(plan.content))
        case dict():
            return {key: filled(item) for key, item in plan.items()}
        case list() | tuple():
            return type(plan)(filled(item) for item in plan)
    return plan


def contents(value: object) -> list[int]:
    """The objects in a value by identity, without asking them anything."""
    found: list[int] = []
    entered: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) not in entered:
            entered.add(id(value))
            if type(value) is dict:
                waiting += (part for item in value.items() for part in item)
            elif type(value) in (list, tuple, set, frozenset):
                waiting += value
            elif type(value) is Record:
                waiting.append(value.content)
        found.append(id(value))
    return found


@given(anything)
def test_anything_becomes_a_json_object(plan: object) -> None:
    captured(filled(plan))


@pytest.mark.parametrize("name", NASTY)
def test_nothing_is_too_nasty(name: str) -> None:
    assert captured({"kept": 1, "nasty": NASTY[name]})["kept"] == 1
    assert captured([1, NASTY[name]])["value"][0] == 1
    captured(NASTY[name])


@given(json_objects)
def test_what_json_has_is_captured_as_it_is(payload: dict[str, Any]) -> None:
    assert captured(payload) == payload


@given(json_objects, nasty_names)
def test_what_json_cannot_hold_spoils_nothing_beside_it(payload: dict[str, Any], name: str) -> None:
    assert captured({"kept": payload, "nasty": NASTY[name]})["kept"] == payload


@given(st.lists(json_values) | st.text() | st.integers() | st.none())
def test_what_is_no_mapping_is_wrapped_as_the_value_of_an_object(payload: object) -> None:
    assert captured(payload) == {"value": payload}


@pytest.mark.parametrize("mapping", [dict, UserDict, MappingProxyType])
@pytest.mark.parametrize("content", [{}, {"a": {"b": 1}}, {"a": "\ud800"}])
def test_any_mapping_is_an_object(mapping: Any, content: dict[str, Any]) -> None:
    payload: Mapping[str, Any] = mapping(content)
    assert captured(payload) == captured(content)
    assert captured({"inner": payload}) == {"inner": captured(content)}


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (math.nan, None),
        (-math.inf, None),
        ("a\ud800b", "a?b"),
        ((1, 2), [1, 2]),
        ({1}, [1]),
        (Colour.RED, "red"),
        (Record(1), {"content": 1}),
        ({1: "a", (2, 3): "b"}, {"1": "a", "(2, 3)": "b"}),
        ({Colour.RED: 1}, {"red": 1}),
        (Markup("text"), "text"),
        (1j, "1j"),
        (RaisingRepr(), "<unprintable RaisingRepr>"),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"nasty": "\ud800"}], ids=["alone", "beside nasty"])
def test_a_value_degrades_in_the_same_way_whatever_is_beside_it(
    value: object, stored: object, beside: dict[str, object]
) -> None:
    assert captured({"value": value, **beside})["value"] == stored


def test_a_value_that_holds_itself_is_cut_where_it_comes_round() -> None:
    payload: dict[str, Any] = {"name": "run", "children": [{"name": "llm"}]}
    payload["children"][0]["parent"] = payload
    assert captured(payload) == {
        "name": "run",
        "children": [{"name": "llm", "parent": "<circular>"}],
    }


def test_a_value_that_is_there_twice_is_not_taken_for_circular() -> None:
    shared = {"a": [1]}
    stored = captured({"first": shared, "second": [shared, shared], "nasty": "\ud800"})
    assert (stored["first"], stored["second"]) == (shared, [shared, shared])


def test_thirty_two_levels_are_captured() -> None:
    assert captured(nested(32)) == nested(32)
    assert captured({**nested(32), "nasty": "\ud800"}) == {**nested(32), "nasty": "?"}


@pytest.mark.parametrize("levels", [33, 100, 100_000])
def test_what_cannot_be_captured_whole_is_cut_at_thirty_two_levels(levels: int) -> None:
    value: Any = captured({**nested(levels), "nasty": "\ud800"})
    for _ in range(32):
        value = value["inner"]
    assert value == "<too deep>"


def test_a_long_repr_is_cut() -> None:
    class Chatty:
        def __repr__(self) -> str:
            return "x" * 1_000_000

    for payload in (Chatty(), {"key": Chatty()}, {Chatty(): 1}):
        assert len(bytes(capture(payload))) < 1_100
    assert captured(Chatty())["value"] == "x" * 1_000 + "… [truncated]"


@given(anything)
def test_the_callers_object_is_not_changed(plan: object) -> None:
    payload = filled(plan)
    before = contents(payload)
    capture(payload)
    assert contents(payload) == before


@pytest.mark.parametrize("beside", [{}, {"nasty": "\ud800"}], ids=["alone", "beside nasty"])
def test_later_changes_do_not_reach_what_was_captured(beside: dict[str, object]) -> None:
    payload: dict[str, Any] = {"messages": [{"role": "user"}], "tags": {"a"}, **beside}
    raw = capture(payload)
    before = bytes(raw)
    payload["messages"][0]["role"] = "assistant"
    payload["messages"].append("more")
    payload["tags"].add("b")
    payload.clear()
    assert bytes(raw) == before
    assert json.loads(before)["messages"] == [{"role": "user"}]


@pytest.mark.parametrize("name", NASTY)
def test_the_fields_of_anything_can_be_had(name: str) -> None:
    captured(fields_of(NASTY[name]))


def test_fields_are_a_mappings_own_or_one_that_is_called_value() -> None:
    fields = {"a": 1}
    assert fields_of(fields) == fields_of(UserDict(fields)) == fields
    assert fields_of(fields) is not fields
    assert fields_of([1]) == {"value": [1]}
    assert fields_of(RaisingItems(a=1)) == {"value": "{'a': 1}"}


class ToolError(Exception):
    pass


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_error_is_described_by_type_message_and_stacktrace() -> None:
    cause = raised(KeyError("city"))
    described = describe_error(raised(ValueError("no such city"), cause))
    assert (described["type"], described["message"]) == ("ValueError", "no such city")
    stacktrace = str(described["stacktrace"])
    assert stacktrace.index("KeyError: 'city'") < stacktrace.index("ValueError: no such city")
    assert "raise error from cause" in stacktrace
    assert described.keys() == {"type", "message", "stacktrace"}


def test_the_type_of_an_error_that_is_not_builtin_has_its_module() -> None:
    assert describe_error(ToolError())["type"] == f"{__name__}.ToolError"


def test_describing_an_error_leaves_it_as_it_is() -> None:
    cause = KeyError("city")
    error = raised(ToolError("x"), cause)
    traceback = error.__traceback__
    describe_error(error)
    assert (error.__cause__, error.__traceback__, error.args) == (cause, traceback, ("x",))


class RaisingTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NumberTextError(Exception):
    def __str__(self) -> str:
        return 7


class RaisingNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


@pytest.mark.parametrize(
    "error",
    [
        RaisingTextError(),
        NumberTextError(),
        RaisingNotesError("x"),
        ValueError("\ud800"),
        ExceptionGroup("many", [RaisingTextError(), ValueError()]),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_described_and_captured(error: BaseException) -> None:
    described = captured(describe_error(raised(error)))
    assert described["type"].endswith(type(error).__qualname__)
    assert all(isinstance(part, str) for part in described.values())


@pytest.mark.parametrize("error", [RaisingTextError(), NumberTextError()])
def test_an_error_without_a_text_is_unprintable(error: Exception) -> None:
    assert describe_error(error)["message"] == "<unprintable>"
