"""Any payload of an agent becomes one JSON object, and the payload itself is not changed."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Real
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from support.cases import for_each

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.payloads.capture import EMPTY, Capture, fields_of
from prefactor_core.payloads.error_description import describe_error
from prefactor_core.payloads.redaction import redact_keys

capture = Capture()


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


class RaisingMapping(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise RuntimeError("no items")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no keys")

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return "raising"


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


class Model:
    """As a model of pydantic: an object that knows its fields."""

    def __init__(self, **fields: object) -> None:
        self.fields = fields

    def model_dump(self) -> dict[str, object]:
        return self.fields


class SilentModel(Model):
    def model_dump(self, *, warnings: bool = True) -> dict[str, object]:
        if warnings:
            raise AssertionError("a model that would warn the agent's author")
        return self.fields


class RaisingModel(Model):
    def model_dump(self) -> dict[str, object]:
        raise RuntimeError("no dump")


class ListModel(Model):
    def model_dump(self) -> Any:
        return [1, 2]


class LyingClass:
    """As a proxy: it says of itself that it is something else."""

    @property
    def __class__(self) -> Any:
        return dict

    def __repr__(self) -> str:
        return "<proxy>"


class RaisingClass:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class RaisingMeta(type):
    def __hash__(cls) -> int:
        raise RuntimeError("no hash")

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("no attributes of the type")


class OfRaisingMeta(metaclass=RaisingMeta):
    pass


class RaisingHash:
    def __hash__(self) -> int:
        raise RuntimeError("no hash")


class EndlessMapping(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        count = 0
        while True:
            count += 1
            yield str(count)

    def __len__(self) -> int:
        return 1


class Moment(datetime):
    """As those of pandas and pendulum."""


class Fields(msgspec.Struct, rename="camel"):
    first_part: object = 1
    unset: object = msgspec.UNSET


Pair = namedtuple("Pair", "left right")


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


def nested(levels: int, bottom: object = "the bottom") -> dict[str, Any]:
    value: Any = bottom
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
    "raising mapping": RaisingMapping(),
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
    "raising model": RaisingModel(),
    "lying class": LyingClass(),
    "raising class": RaisingClass(),
    "raising metaclass": OfRaisingMeta(),
    "raising metaclass as key": {OfRaisingMeta(): 1},
    "endless mapping": EndlessMapping(),
    "iterator": iter([1]),
    "raw that is no JSON, in a record": Record([Raw(b"{"), "\ud800"]),
    "exception": ValueError("\ud800"),
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


def captured(payload: object, by: Callable[[object], Raw] = capture) -> dict[str, Any]:
    """What a strict reader makes of the captured bytes."""
    value = json.loads(bytes(by(payload)).decode(), parse_constant=no_constant)
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


@for_each("name", NASTY)
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


@for_each("mapping", [dict, UserDict, MappingProxyType])
@for_each("content", [{}, {"a": {"b": 1}}, {"a": "\ud800"}])
def test_any_mapping_is_an_object(mapping: Any, content: dict[str, Any]) -> None:
    payload: Mapping[str, Any] = mapping(content)
    assert captured(payload) == captured(content)
    assert captured({"inner": payload}) == {"inner": captured(content)}


@for_each(
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
        (True, True),
        (2**63, 2**63),
        (2**64 + 1, 2**64 + 1),
        (10**5000, "<unprintable int>"),
        (Fraction(1, 2), 0.5),
        (Decimal("1.50"), "1.50"),
        (b"\xff", "/w=="),
        (bytearray(b"\xff"), "/w=="),
        (memoryview(b"\xff"), "/w=="),
        (memoryview(b"abcd")[::2], "YWM="),
        (frozenset({b"\xff"}), ["/w=="]),
        (Pair(1, {2}), {"left": 1, "right": [2]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (PurePosixPath("/tmp/a"), "/tmp/a"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (Moment(2026, 1, 2), "2026-01-02T00:00:00"),
        (timedelta(seconds=1.5), "PT1.5S"),
        (UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (ValueError("no such city"), {"type": "ValueError", "message": "no such city"}),
        (KeyError(Record(1)), {"type": "KeyError", "message": "Record(content=1)"}),
        (Model(a={1}, b=Model(c=b"\xff")), {"a": [1], "b": {"c": "/w=="}}),
        (SilentModel(a=1), {"a": 1}),
        (ListModel(), [1, 2]),
        (Record(Model(a=Record(math.nan))), {"content": {"a": {"content": None}}}),
        (Fields(), {"firstPart": 1}),
        (Raw(b'{"a": [1]}'), {"a": [1]}),
        (LyingClass(), "<proxy>"),
        (Model, repr(Model)),
        (RaisingRepr(), "<unprintable RaisingRepr>"),
    ],
    ids=lambda value: type(value).__name__,
)
@for_each("beside", [{}, {"nasty": "\ud800"}], ids=["alone", "beside nasty"])
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
    value: Any = captured(nested(levels, "\ud800"))
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


@for_each("name", NASTY)
def test_the_fields_of_anything_can_be_had(name: str) -> None:
    captured(fields_of(NASTY[name]))


def test_fields_are_a_mappings_own_or_one_that_is_called_value() -> None:
    fields = {"a": 1}
    assert fields_of(fields) == fields_of(UserDict(fields)) == fields
    assert fields_of(fields) is not fields
    assert fields_of([1]) == {"value": [1]}
    assert fields_of(RaisingMapping()) == {"value": "raising"}


class ToolError(Exception):
    pass


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_what_could_be_taken_only_once_is_not_taken() -> None:
    async def answer() -> None:
        pass

    letters = (letter for letter in "ab")
    waiting = answer()
    stored = captured({"letters": letters, "waiting": waiting, "numbers": iter([1, 2])})
    assert list(letters) == ["a", "b"]
    waiting.close()
    assert "generator" in stored["letters"]
    assert "coroutine" in stored["waiting"]
    assert "list_iterator" in stored["numbers"]


def test_an_attribute_of_a_record_that_is_gone_spoils_nothing_beside_it() -> None:
    record = Fields(Record(1), {"\ud800": 1})
    del record.first_part
    assert captured(record) == {"firstPart": "<unprintable>", "unset": {"?": 1}}


def wrapped(leaf: object, container: Callable[..., object]) -> object:
    """The leaf inside of 15 containers."""
    for _ in range(15):
        leaf = container(leaf)
    return leaf


class Shown:
    def __repr__(self) -> str:
        return "shown"


@pytest.mark.parametrize(
    "leaf",
    [1, object(), "\ud800", Shown(), {Shown()}, UserDict(a=1), Raw(b"[[],[]]")],
    ids=["plain", "object", "surrogate", "repr", "set", "mapping", "raw"],
)
@pytest.mark.parametrize(
    "container",
    [
        lambda inner: [inner, inner],
        lambda inner: {"a": inner, "b": inner},
        lambda inner: (Record(inner), Record(inner)),
        lambda inner: UserDict(a=inner, b=inner),
    ],
    ids=["lists", "dicts", "records", "mappings"],
)
def test_values_that_share_parts_do_not_explode(
    leaf: object, container: Callable[..., object]
) -> None:
    payload = {"value": wrapped(wrapped(leaf, container), container)}  # 2**30 times the leaf
    stored = bytes(Capture(max_payload_bytes=100_000)(payload))  # pytest would show the payload
    assert b'{"$truncated":' in stored
    assert len(stored) <= 100_000


def test_an_array_that_holds_itself_twice_does_not_explode() -> None:
    np: Any = pytest.importorskip("numpy")
    array = np.empty(2, object)
    array[:] = [array, array]
    assert captured({"a": array}) == {"a": ["<circular>", "<circular>"]}


@pytest.mark.parametrize("redact", [None, redact_keys()], ids=["whole", "redacted"])
def test_a_payload_is_captured_also_where_the_stack_is_almost_full(redact: Any) -> None:
    capture = Capture(redact=redact)
    payload = {"password": "canary", "nested": [{"set": {1}, "object": object()}] * 2}
    raws: list[Raw] = []

    def descend() -> None:
        nonlocal free
        with suppress(RecursionError):
            descend()
        free += 1
        if 3 <= free <= 100:  # with less there is no room for the call itself
            raws.append(capture(payload))

    free = 0
    descend()
    stored = [json.loads(bytes(raw)) for raw in raws]
    assert {"$unreadable": {}} in stored
    assert stored[-1].keys() == payload.keys()
    assert redact is None or "canary" not in str(stored)


def test_ctrl_c_is_not_swallowed() -> None:
    class Interrupted:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture({"a": Interrupted()})


# What takes too long


class Gate:
    """What slow code waits at, so a test that waits for it would not end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._threads: list[threading.Thread] = []

    def wait(self) -> None:
        self._threads.append(threading.current_thread())
        if not self._event.wait(30):
            raise AssertionError("nobody opened the gate")

    def open(self) -> None:
        """Let all go on, and their threads end: too many that hang stop the next ones."""
        self._event.set()
        for thread in self._threads:
            thread.join(10)


class Slow:
    """Answers on demand."""

    gate: Gate
    asked: int

    def __init_subclass__(cls) -> None:
        cls.gate = Gate()
        cls.asked = 0

    def wait(self) -> None:
        type(self).asked += 1
        self.gate.wait()


def test_a_repr_that_does_not_answer_becomes_a_marker_and_each_is_judged_by_itself() -> None:
    class SometimesSlow(Slow):
        def __init__(self, slow: bool = True) -> None:
            self.slow = slow

        def __repr__(self) -> str:
            if self.slow:
                self.wait()
            return "quick"

    slow, quick = SometimesSlow(), SometimesSlow(slow=False)
    try:
        stored = captured({"before": 1, "slow": [slow, quick, slow, Chatty()], "after": quick})
        again = captured({"slow": slow, "quick": quick})
    finally:
        SometimesSlow.gate.open()
    marker = f"<slow {SometimesSlow.__qualname__}>"
    assert stored == {"before": 1, "slow": [marker, "quick", marker, "chatty"], "after": "quick"}
    assert again == {"slow": marker, "quick": "quick"}


class Chatty:
    def __repr__(self) -> str:
        return "chatty"


def test_many_slow_types_take_no_longer_than_one_capture_may() -> None:
    def slow_type() -> type[Slow]:
        class SlowRepr(Slow):
            def __repr__(self) -> str:
                self.wait()
                return "late"

        return SlowRepr

    types = [slow_type() for _ in range(50)]
    try:
        stored = captured([cls() for cls in types])
    finally:
        for cls in types:
            cls.gate.open()
    assert all(str(item).startswith("<slow ") for item in stored["value"])
    # Eight that do not answer, and none any more.
    assert 1 <= sum(cls.asked for cls in types) <= 8


def test_while_eight_calls_do_not_return_no_more_are_made() -> None:
    gate = Gate()
    asked: list[object] = []

    def wait(self: object) -> str:
        asked.append(self)
        gate.wait()
        return "late"

    try:
        for _ in range(12):
            captured(type("SlowRepr", (), {"__repr__": wait})())
        assert captured(Numbered(1)) == {"value": "<slow Numbered>"}
        assert len(asked) <= 8
    finally:
        gate.open()


@pytest.mark.parametrize("method", ["model_dump", "items", "__float__"])
def test_other_code_of_a_value_has_no_more_time(method: str) -> None:
    gate = Gate()

    def wait(self: object, *args: object) -> Any:
        gate.wait()

    def nothing(self: object, *args: object) -> Any:
        return iter(())

    namespace: dict[str, Any] = {"__repr__": lambda self: "quick"}
    bases: tuple[type, ...] = ()
    if method == "items":
        bases = (Mapping,)
        namespace |= dict.fromkeys(("__len__", "__iter__", "__getitem__"), nothing)
    slow: Any = type("SlowCode", bases, namespace | {method: wait})
    if method == "__float__":
        Real.register(slow)
    try:
        stored = captured({"slow": slow(), "beside": {1}})
    finally:
        gate.open()
    # The type is slow now: not even its repr, which is quick, is asked.
    assert stored == {"slow": "<slow SlowCode>", "beside": [1]}


def test_code_of_values_sees_the_context_variables_of_the_caller() -> None:
    variable: ContextVar[str] = ContextVar("variable")

    class Proxy:
        def __repr__(self) -> str:
            return variable.get()

    variable.set("seen")
    assert captured(Proxy()) == {"value": "seen"}


class Numbered:
    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"number {self.number}"


def test_threads_that_capture_at_once_get_each_its_own() -> None:
    stored: dict[int, list[str]] = {}

    def work(number: int) -> None:
        stored[number] = [captured(Numbered(number))["value"] for _ in range(50)]

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        # Eight threads may keep the one that asks waiting for as long as it may take.
        assert set(stored[number]) <= {f"number {number}", "<slow Numbered>"}


SCRIPT = """
import os, time
from prefactor_core.payloads.capture import Capture

import logging
logging.disable()

class Slow:
    def __repr__(self):
        time.sleep(1_000_000)

class Quick:
    def __repr__(self):
        return "quick"

capture = Capture()
assert b"quick" in bytes(capture({"a": Quick()}))
if hasattr(os, "fork"):
    child = os.fork()
    assert b"quick" in bytes(capture({"a": Quick()}))
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert b"<slow Slow>" in bytes(capture({"a": Slow()}))
"""


def test_a_process_ends_in_silence_beside_a_repr_that_never_does() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT],
        capture_output=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


WITHOUT_THREADS = """
import logging, threading
from prefactor_core.payloads.capture import Capture
logging.disable()

class Text:
    def __repr__(self):
        return "text"

threading.stack_size(1 << 46)  # more than there is
degraded = {}
stored = bytes(Capture(degraded=degraded)({"a": Text(), "b": [1, {"c": {2}}], Text(): 3}))
assert stored == b'{"a":"<unprintable Text>","b":[1,{"c":[2]}],"<unprintable Text>":3}', stored
assert degraded == {"unreadable": 1}, degraded
"""


def test_where_no_thread_can_be_started_only_what_needs_one_is_lost() -> None:
    ended = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_the_thread_that_asks_ends_when_nobody_asks_any_more() -> None:
    captured(Chatty())
    deadline = time.monotonic() + 30
    while any(thread.name == "prefactor_core timebox" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The configuration


@pytest.mark.parametrize("limit", [0, 1_023, -1, 1e6, None, "1000000"])
def test_a_bound_that_cannot_be_is_refused(limit: Any) -> None:
    with pytest.raises(PrefactorValueError, match="max_payload_bytes must be a whole number >= 1"):
        Capture(max_payload_bytes=limit)


def test_a_redact_that_is_no_function_is_refused() -> None:
    redact: Any = "password"
    with pytest.raises(PrefactorValueError, match="redact must be a function"):
        Capture(redact=redact)


bounds = st.sampled_from([1_024, 5_000, 70_000])
padding = st.sampled_from(["", "x" * 3_000, '\x01é\ud800"\\' * 400, "y" * 100_000])


@given(anything, padding, bounds, st.booleans())
def test_nothing_captured_is_larger_than_the_bound(
    plan: object, text: str, bound: int, redacting: bool
) -> None:
    capture = Capture(max_payload_bytes=bound, redact=redact_keys() if redacting else None)
    payload = {"plan": filled(plan), "text": [text] * 3}
    captured(payload, capture)
    assert len(bytes(capture(payload))) <= bound


@given(st.lists(st.text(), unique=True), st.booleans(), st.booleans())
def test_keys_stay_in_their_order(keys: list[str], cut: bool, redacting: bool) -> None:
    capture = Capture(max_payload_bytes=100_000, redact=redact_keys("zz") if redacting else None)
    payload = {**dict.fromkeys(keys, 1), "last": "x" * 200_000 if cut else 1}
    assert list(captured(payload, capture)) == list(payload)


def test_without_payloads_nothing_of_them_is_kept() -> None:
    capture = Capture(enabled=False)
    assert capture({"prompt": "secret"}) is EMPTY
    assert capture.result({"response": "secret", "error": {"type": "secret"}}) is EMPTY


def test_without_payloads_a_failed_span_keeps_the_type_of_its_error() -> None:
    result: dict[str, object] = {"response": "secret"}
    capture.merge(result, {"error": describe_error(raised(ToolError("secret")))})
    stored = captured(result, Capture(enabled=False).result)
    assert stored == {"error": {"type": f"{__name__}.ToolError"}}


def test_with_payloads_a_result_is_captured_as_any_other() -> None:
    result = {"error": describe_error(ValueError("x")), "set": {1}}
    assert bytes(Capture().result(result)) == bytes(capture(result))


# Redaction

CANARY = "canary-7f3a"


def with_canaries(plan: object) -> object:
    """The plan, inside of what else can hold a secret under a key."""
    secret: dict[str, object] = {"password": CANARY, "rest": filled(plan)}
    hidden: list[object] = [
        secret,
        Record([secret]),
        Model(inner=secret, api_key=CANARY),
        UserDict(secret),
        {"Set-Cookie": [CANARY], 1: {"token": Record(CANARY)}},
        ValueError("harmless"),
    ]
    return {"a": hidden, "b": wrapped(hidden, lambda inner: Record([inner]))}


@given(anything, padding, bounds)
def test_what_is_redacted_is_nowhere_in_what_is_captured(
    plan: object, text: str, bound: int
) -> None:
    capture = Capture(max_payload_bytes=bound, redact=redact_keys())
    payload = {"hidden": with_canaries(plan), "text": text, "tail": CANARY[:3]}
    before = contents(payload)
    assert CANARY.encode() not in bytes(capture(payload))
    assert contents(payload) == before


def test_redact_is_given_a_copy_as_it_is_in_json() -> None:
    given: list[object] = []

    def redact(payload: dict[str, object]) -> dict[str, object]:
        given.append(json.loads(json.dumps(payload)))
        payload["record"]["content"].append("changed")  # type: ignore[index]
        return payload

    content = [{1}, Colour.RED, math.nan, b"\xff"]
    payload = {"record": Record(content), "size": 1}
    stored = captured(payload, Capture(redact=redact))
    assert given == [{"record": {"content": [[1], "red", None, "/w=="]}, "size": 1}]
    assert stored["record"]["content"][-1] == "changed"
    assert len(content) == 4


def test_redact_is_given_a_copy_of_what_no_encoder_takes_as_it_is() -> None:
    shared = ["\ud800"]

    def redact(payload: dict[str, Any]) -> dict[str, object]:
        payload["first"].append("changed")
        return payload

    stored = captured({"first": shared, "second": shared}, Capture(redact=redact))
    assert stored == {"first": ["?", "changed"], "second": ["?"]}


def test_redact_sees_all_of_what_is_cut_afterwards() -> None:
    def redact(payload: dict[str, Any]) -> dict[str, object]:
        return {"text": payload["text"].replace(CANARY, "[redacted]")}

    capture = Capture(max_payload_bytes=1_024, redact=redact)
    for place in range(900, 1_024):
        text = "x" * place + CANARY + "y" * 10_000
        assert CANARY[:4].encode() not in bytes(capture({"text": text}))


def test_what_redact_gives_is_captured_as_any_payload() -> None:
    class OnlyMapping(UserDict[str, object]):
        pass

    given = OnlyMapping(set={1}, text="x" * 10_000, nan=math.nan)
    capture = Capture(max_payload_bytes=1_024, redact=lambda payload: given)
    stored = captured({}, capture)
    assert (stored["set"], stored["nan"]) == ([1], None)
    assert stored["text"].endswith(" characters truncated]")


def raises(payload: object) -> Any:
    raise ValueError(f"cannot redact {payload}")


@pytest.mark.parametrize(
    ("redact", "problem"),
    [
        (raises, "redact raised ValueError"),
        (lambda payload: None, "redact gave a NoneType, which is no mapping"),
        (lambda payload: [payload], "redact gave a list, which is no mapping"),
        (lambda payload: RaisingItems(payload), "redact raised RuntimeError"),
    ],
    ids=["raises", "nothing", "list", "mapping that raises"],
)
def test_a_payload_that_redact_fails_on_is_withheld_with_a_warning(
    redact: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    capture = Capture(redact=redact)
    for _ in range(3):
        assert captured({"text": CANARY}, capture) == {"$withheld": problem}
    first, second = caplog.records  # as often as 1, 2, 4 and so on
    assert (first.name, first.levelno) == ("prefactor_core.payloads.capture", logging.WARNING)
    assert problem in first.getMessage()
    assert second.getMessage().endswith("(payload no. 2)")
    assert CANARY not in caplog.text


def test_ctrl_c_in_redact_is_not_swallowed() -> None:
    def redact(payload: object) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Capture(redact=redact)({})
