"""The space of payloads: values of all kinds, inside each other, in any order, beside hostile ones.

What is wished for: no exception; of a value that cannot be recorded only that value is lost; the
same result whatever the order of the keys.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import threading
from base64 import b64encode
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from support.cases import for_each
from support.examples import examples
from support.harness import AGENT

from prefactor_core import HttpClientConfig, PrefactorCoreConfig
from prefactor_core.payloads.capture import Capture
from prefactor_core.testing import open_recording


def installed(name: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError:
        return None


attrs: Any = installed("attrs")
numpy: Any = installed("numpy")
pandas: Any = installed("pandas")
pydantic: Any = installed("pydantic")
pydantic_v1: Any = installed("pydantic.v1") if pydantic else None
wrapt: Any = installed("wrapt")

LOST = object()
"""In what is expected: whatever JSON has may stand here."""


# Leaves: how each is made, and what it becomes


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Moment(datetime):
    pass


class Duration(timedelta):
    pass


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: int


Old = namedtuple("Old", "left right")

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
UUID_TEXT = "00000000-0000-0000-0000-00000000002a"

Make = Callable[[], object]

KNOWN: dict[str, tuple[Make, object]] = {
    "null": (lambda: None, None),
    "bool": (lambda: True, True),
    "int": (lambda: 7, 7),
    "large int": (lambda: 2**63, 2**63),
    "float": (lambda: 0.5, 0.5),
    "NaN": (lambda: float("nan"), None),
    "infinity": (lambda: float("inf"), None),
    "text": (lambda: "plain text", "plain text"),
    "text outside of ASCII": (lambda: "größer", "größer"),
    "lone surrogate": (lambda: "a\ud800", "a?"),
    "subclass of str": (lambda: Text("text"), "text"),
    "subclass of int": (lambda: Number(7), 7),
    "subclass of float": (lambda: Real(0.5), 0.5),
    "enum": (lambda: Colour.RED, "red"),
    "int enum": (lambda: Level.HIGH, 3),
    "str enum": (lambda: Word.YES, "yes"),
    "bytes": (lambda: b"\xff\x00", b64encode(b"\xff\x00").decode()),
    "bytearray": (lambda: bytearray(b"\xffb"), b64encode(b"\xffb").decode()),
    "memoryview": (lambda: memoryview(b"\xffb"), b64encode(b"\xffb").decode()),
    "datetime": (lambda: MOMENT, "2026-01-02T03:04:05.000006Z"),
    "date": (lambda: date(2026, 1, 2), "2026-01-02"),
    "time": (lambda: time(3, 4), "03:04:00"),
    "timedelta": (lambda: timedelta(days=1, seconds=1.5), "P1DT1.5S"),
    "negative timedelta": (lambda: timedelta(seconds=-90), "-PT90S"),
    "subclass of timedelta": (lambda: Duration(seconds=90), "PT90S"),
    "uuid": (lambda: UUID(int=42), UUID_TEXT),
    "decimal": (lambda: Decimal("1.10"), "1.10"),
    "path": (lambda: PurePosixPath("a/b"), "a/b"),
    "tuple": (lambda: (1, 2), [1, 2]),
    "set": (lambda: {1}, [1]),
    "frozenset": (lambda: frozenset({Text("a")}), ["a"]),
    "deque": (lambda: deque([1, 2], maxlen=2), [1, 2]),
    "keys": (lambda: {"a": 1, "b": 2}.keys(), ["a", "b"]),
    "values": (lambda: {"a": 1, "b": 2}.values(), [1, 2]),
    "items": (lambda: {"a": 1}.items(), [["a", 1]]),
    "keys in order": (lambda: OrderedDict(a=1).keys(), ["a"]),
    "named tuple": (lambda: Point(1, 2), {"x": 1, "y": 2}),
    "old named tuple": (lambda: Old(1, [2]), {"left": 1, "right": [2]}),
    "int keys": (lambda: {1: "a", 2: "b"}, {"1": "a", "2": "b"}),
    "enum keys": (lambda: {Colour.RED: 1}, {"red": 1}),
    "keys of a subclass": (lambda: {Text("a"): 1}, {"a": 1}),
    "exception": (lambda: ValueError("no"), {"type": "ValueError", "message": "no"}),
    "raw": (lambda: msgspec.Raw(b'{"a":[1]}'), {"a": [1]}),
    "namespace": (lambda: SimpleNamespace(a=1), {"a": 1}),
}

if numpy:
    KNOWN |= {
        "numpy bool": (lambda: numpy.bool_(True), True),
        "numpy int": (lambda: numpy.int64(7), 7),
        "numpy unsigned": (lambda: numpy.uint8(7), 7),
        "numpy float": (lambda: numpy.float64(0.5), 0.5),
        "numpy small float": (lambda: numpy.float32(0.5), 0.5),
        "numpy text": (lambda: numpy.str_("a"), "a"),
        "numpy array": (lambda: numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        "numpy array of floats": (lambda: numpy.array([0.5, float("nan")]), [0.5, None]),
        "numpy array of bools": (lambda: numpy.array([True]), [True]),
        "numpy array without axes": (lambda: numpy.array(7), 7),
        "list of numpy floats": (lambda: [numpy.float32(0.5)] * 1_000, [0.5] * 1_000),
    }
if pandas:
    KNOWN |= {
        "pandas NaT": (lambda: pandas.NaT, None),
        "pandas NA": (lambda: pandas.NA, None),
        "pandas timestamp": (
            lambda: pandas.Timestamp("2026-01-02T03:04:05"),
            "2026-01-02T03:04:05",
        ),
        "pandas timedelta": (lambda: pandas.Timedelta(seconds=90), "PT90S"),
    }


# Containers: how each is made of children, and what it becomes


@dataclasses.dataclass
class Record:
    first: object
    second: object


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    first: object
    second: object


class Struct(msgspec.Struct):
    first: object
    second: object


class Omitting(msgspec.Struct, omit_defaults=True, rename="camel"):
    the_first: object
    the_second: object = None
    not_given: int | None = None


class Tagged(msgspec.Struct, tag="tagged"):
    first: object
    second: object


class Pair(NamedTuple):
    first: object
    second: object


class List(list[object]):
    pass


class Dict(dict[object, object]):
    pass


class Chatty(list[object]):
    """Tells another thing than what it holds."""

    def __iter__(self) -> Iterator[object]:
        return iter(["something else"])

    def __len__(self) -> int:
        return 1


class View(Mapping[str, object]):
    def __init__(self, first: object, second: object) -> None:
        self.fields = {"first": first, "second": second}

    def __getitem__(self, key: str) -> object:
        return self.fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


Two = Callable[[Any, Any], Any]


def fields(first: object, second: object) -> dict[str, object]:
    return {"first": first, "second": second}


def items(first: object, second: object) -> list[object]:
    return [first, second]


CONTAINERS: dict[str, tuple[Two, Two]] = {
    "list": (items, items),
    "tuple": (lambda first, second: (first, second), items),
    "subclass of list": (lambda first, second: List([first, second]), items),
    "subclass of list that lies": (lambda first, second: Chatty([first, second]), items),
    "deque": (lambda first, second: deque([first, second]), items),
    "values": (lambda first, second: fields(first, second).values(), items),
    "items": (
        lambda first, second: fields(first, second).items(),
        lambda first, second: [["first", first], ["second", second]],
    ),
    "dict": (fields, fields),
    "dict with int keys": (
        lambda first, second: {1: first, 2: second},
        lambda first, second: {"1": first, "2": second},
    ),
    "subclass of dict": (lambda first, second: Dict(first=first, second=second), fields),
    "ordered dict": (lambda first, second: OrderedDict(first=first, second=second), fields),
    "user dict": (lambda first, second: UserDict(fields(first, second)), fields),
    "mapping proxy": (lambda first, second: MappingProxyType(fields(first, second)), fields),
    "mapping": (View, fields),
    "named tuple": (Pair, fields),
    "dataclass": (Record, fields),
    "frozen dataclass": (Frozen, fields),
    "struct": (Struct, fields),
    "struct with a tag": (
        Tagged,
        lambda first, second: {"type": "tagged", "first": first, "second": second},
    ),
    "namespace": (lambda first, second: SimpleNamespace(first=first, second=second), fields),
}

if attrs:

    @attrs.define
    class Attrs:
        first: Any
        second: Any

    @attrs.frozen(slots=False)
    class FrozenAttrs:
        first: Any
        second: Any

    CONTAINERS |= {"attrs": (Attrs, fields), "frozen attrs": (FrozenAttrs, fields)}

if pydantic:

    class Model(pydantic.BaseModel):
        first: Any
        second: Any

    class Permissive(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="allow")
        first: Any

    class Failing(pydantic.BaseModel):
        first: Any
        second: Any

        @pydantic.computed_field
        def wrong(self) -> int:
            raise RuntimeError("computed")

    CONTAINERS |= {
        "model": (lambda first, second: Model(first=first, second=second), fields),
        "model with more": (lambda first, second: Permissive(first=first, second=second), fields),
        "model with a computed field that raises": (
            lambda first, second: Failing(first=first, second=second),
            lambda first, second: {"first": first, "second": second, "wrong": LOST},
        ),
    }
if pydantic_v1:

    class ModelOfVersion1(pydantic_v1.BaseModel):
        first: Any
        second: Any

    CONTAINERS["model of version 1"] = (
        lambda first, second: ModelOfVersion1(first=first, second=second),
        fields,
    )
if wrapt:
    CONTAINERS["proxy"] = (
        lambda first, second: wrapt.ObjectProxy(fields(first, second)),
        fields,
    )


MODELS = {name for name in CONTAINERS if name.startswith("model") and "version 1" not in name}
AS_A_MODEL_SAYS = {
    *("bytes", "bytearray", "memoryview", "named tuple", "old named tuple"),
    *("negative timedelta", "subclass of timedelta", "pandas timedelta"),
}
"""What a model of pydantic makes of these inside of it is its own affair."""


# Hostile ones: what becomes of them is theirs, and of nobody beside them


class Raises(Exception):  # noqa: N818
    pass


def no(*args: object, **options: object) -> Any:
    raise Raises("a hostile value")


class RaisingText:
    __repr__ = __str__ = no


class RaisingIteration:
    __iter__ = __len__ = no

    def __repr__(self) -> str:
        return "<iteration>"


class RaisingAll:
    __iter__ = __len__ = __repr__ = __str__ = __bool__ = __eq__ = __hash__ = __getattr__ = no  # type: ignore[assignment]


class RaisingAttributes:
    __getattribute__ = no


class RaisingModel:
    model_dump = no


class RaisingItems(UserDict[str, object]):
    items = keys = __iter__ = __getitem__ = no


class RaisingDict(dict[object, object]):
    items = keys = __iter__ = __getitem__ = __len__ = no


class RaisingList(list[object]):
    __iter__ = __getitem__ = __len__ = no


class RaisingStr(str):
    __slots__ = ()
    __str__ = __repr__ = encode = __len__ = __getitem__ = no


class RaisingInt(int):
    __int__ = __repr__ = __index__ = __str__ = no


class RaisingFloat(float):
    __float__ = __repr__ = __str__ = no


class RaisingError(Exception):
    __str__ = __repr__ = no


class RaisingMeta(type):
    __getattribute__ = __hash__ = __instancecheck__ = __repr__ = no


def of_raising_meta() -> object:
    class OfRaisingMeta(metaclass=RaisingMeta):
        pass

    return OfRaisingMeta()  # its class would be asked by who looks through this module


class LyingClass:
    @property
    def __class__(self) -> Any:
        return dict

    def __repr__(self) -> str:
        return "<lies>"


class RaisingClass:
    __class__ = property(no)  # type: ignore[assignment]


class BaseRaising:
    def __repr__(self) -> str:
        raise RecursionError("of its own")


class Endless(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield str(number)

    def __len__(self) -> int:
        return 1


class EndlessRepr:
    def __repr__(self) -> str:
        return repr(self)


class SurrogateRepr:
    def __repr__(self) -> str:
        return "\ud800"


class NumberRepr:
    def __repr__(self) -> Any:
        return 7


ASKED: list[str] = []
"""What ran that would have asked a database."""


class Rows:
    """As the rows of a query: to iterate over it is to ask."""

    def __iter__(self) -> Iterator[object]:
        ASKED.append("rows")
        return iter([1, 2])

    def __len__(self) -> int:
        ASKED.append("rows")
        return 2

    def __repr__(self) -> str:
        ASKED.append("rows")
        return "<rows>"


class Relation:
    """As a relation that is loaded when it is looked at."""

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        ASKED.append("relation")
        return [1, 2]

    def __set__(self, instance: object, value: object) -> None:
        pass


@dataclasses.dataclass
class Lazy:
    related: object = dataclasses.field(init=False)


Lazy.related = Relation()  # type: ignore[assignment]


def circular_dict() -> object:
    value: dict[str, object] = {}
    value["self"] = [value]
    return value


def circular_record() -> object:
    record = Record(1, None)
    record.second = {"record": record}
    return record


def circular_list() -> object:
    value: list[object] = []
    value.append(value)
    return value


def deep() -> object:
    value: object = "bottom"
    for _ in range(2_000):
        value = {"inner": [value]}
    return value


HOSTILE: dict[str, Make] = {
    "raising text": RaisingText,
    "raising text as a key": lambda: {RaisingText(): 1},
    "raising iteration": RaisingIteration,
    "raising all": RaisingAll,
    "raising attributes": RaisingAttributes,
    "raising model": RaisingModel,
    "raising items": lambda: RaisingItems(a=1),
    "raising dict": lambda: RaisingDict(a=1),
    "raising list": lambda: RaisingList([1]),
    "raising str": lambda: RaisingStr("a"),
    "raising int": lambda: RaisingInt(1),
    "raising float": lambda: RaisingFloat(1),
    "raising error": RaisingError,
    "raising metaclass": of_raising_meta,
    "lying class": LyingClass,
    "raising class": RaisingClass,
    "raising recursion": BaseRaising,
    "endless repr": EndlessRepr,
    "surrogate in repr": SurrogateRepr,
    "repr that is no text": NumberRepr,
    "rows": Rows,
    "lazy relation": Lazy,
    "circular dict": circular_dict,
    "circular list": circular_list,
    "circular record": circular_record,
    "deep": deep,
    "huge number": lambda: 10**5_000,
    "huge text": lambda: "x" * 300_000,
    "huge bytes": lambda: b"x" * 300_000,
    "generator": lambda: (character for character in "ab"),
    "iterator": lambda: iter([1]),
    "object": object,
    "class": lambda: Record,
    "function": lambda: no,
    "lock": threading.Lock,
    "complex": lambda: 1j,
    "keys that meet": lambda: {1: "a", "1": "b"},
    "bytes as a key": lambda: {b"\xff": 1},
    "tuple as a key": lambda: {(1, "a"): 1},
    "raw that is no JSON": lambda: msgspec.Raw(b"{"),
}

if pydantic:

    class Unserialisable(pydantic.BaseModel):
        first: Any = 1

        @pydantic.model_serializer
        def no(self) -> dict[str, object]:
            raise Raises("a hostile value")

    HOSTILE |= {"model with a serialiser that raises": Unserialisable}
if numpy:
    HOSTILE |= {
        "large array": lambda: numpy.zeros((300, 1_000)),
        "array of objects": lambda: numpy.array([RaisingText()], dtype=object),
    }
if pandas:
    HOSTILE |= {"data frame": lambda: pandas.DataFrame({"a": [1, 2]})}
if wrapt:
    HOSTILE |= {"proxy of a hostile value": lambda: wrapt.ObjectProxy(RaisingText())}


OVERSIZED: dict[str, Make] = {
    "endless mapping": Endless,
    "huge list": lambda: [*range(1_000_000)],
    "huge dict": lambda: {str(number): number for number in range(100_000)},
    "huge struct": lambda: Struct([0] * 1_000_000, None),
    "shared parts": lambda: shared_parts(60),
}


def shared_parts(depth: int) -> object:
    """Small in memory, and endless as a tree."""
    value: object = "x"
    for _ in range(depth):
        value = [value, value]
    return value


class Gate:
    """What slow values wait at, but not for ever: those that do not return keep others waiting."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting = 0
        self._opened = False

    def wait(self) -> None:
        with self._condition:
            self._waiting += 1
            self._condition.wait_for(lambda: self._opened, 5)
            self._waiting -= 1
            self._condition.notify_all()

    @contextmanager
    def closed(self) -> Generator[None]:
        """Inside, slow values are slow; none is left when this is left."""
        self._opened = False
        try:
            yield
        finally:
            with self._condition:
                self._opened = True
                self._condition.notify_all()
                assert self._condition.wait_for(lambda: self._waiting == 0, 10)


GATE = Gate()


class Slow:
    def __repr__(self) -> str:
        GATE.wait()
        return "<slow>"


class SlowModel:
    def model_dump(self, **options: object) -> dict[str, object]:
        GATE.wait()
        return {}


class SlowError(Exception):
    def __str__(self) -> str:
        GATE.wait()
        return "slow"


SLOW: dict[str, Make] = {
    "slow": Slow,
    "slow model": SlowModel,
    "slow error": SlowError,
    "slow as a key": lambda: {Slow(): 1},
}


# What Hypothesis draws: names only, which it can print


@dataclasses.dataclass(frozen=True)
class Leaf:
    name: str


@dataclasses.dataclass(frozen=True)
class Bad:
    name: str


@dataclasses.dataclass(frozen=True)
class Waiting:
    name: str


@dataclasses.dataclass(frozen=True)
class Branch:
    name: str
    first: Plan
    second: Plan


Plan = Leaf | Bad | Waiting | Branch


def built(plan: Plan) -> object:
    match plan:
        case Leaf(name):
            return KNOWN[name][0]()
        case Bad(name):
            return HOSTILE[name]()
        case Waiting(name):
            return SLOW[name]()
        case Branch(name, first, second):
            return CONTAINERS[name][0](built(first), built(second))


def expected(plan: Plan, in_model: bool = False) -> object:
    match plan:
        case Leaf(name):
            return LOST if in_model and name in AS_A_MODEL_SAYS else KNOWN[name][1]
        case Branch(name, first, second):
            if in_model and name in AS_A_MODEL_SAYS:
                return LOST
            inside = in_model or name in MODELS
            return CONTAINERS[name][1](expected(first, inside), expected(second, inside))
    return LOST


def holds(plan: Plan, names: set[str]) -> bool:
    """Whether a hostile value of such a name is in it."""
    match plan:
        case Bad(name):
            return name in names
        case Branch(_, first, second):
            return holds(first, names) or holds(second, names)
    return False


def holds_in_model(plan: Plan, names: set[str]) -> bool:
    """Whether one is inside of a model."""
    if not isinstance(plan, Branch):
        return False
    parts = plan.first, plan.second
    within = holds if plan.name in MODELS else holds_in_model
    return any(within(part, names) for part in parts)


def differences(wished: object, found: object, path: str = "") -> list[str]:
    """Where what was recorded is not what was wished for."""
    if wished is LOST:
        return []
    if isinstance(wished, dict) and isinstance(found, dict) and wished.keys() == found.keys():
        pairs = [(wished[key], found[key], f"{path}.{key}") for key in wished]
    elif isinstance(wished, list) and isinstance(found, list) and len(wished) == len(found):
        pairs = [(*pair, f"{path}[{n}]") for n, pair in enumerate(zip(wished, found, strict=True))]
    elif type(wished) is type(found) and wished == found:
        return []
    else:
        return [f"{path}: {str(found)[:200]} is not {str(wished)[:200]}"]
    return [text for pair in pairs for text in differences(*pair)]


# Without the one that explains a failure by tracing: that takes minutes here.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)

leaves = st.builds(Leaf, st.sampled_from([*KNOWN]))
bad = st.builds(Bad, st.sampled_from([*HOSTILE]))
plans: st.SearchStrategy[Plan] = st.recursive(
    leaves | bad,
    lambda inner: st.builds(Branch, st.sampled_from([*CONTAINERS]), inner, inner),
    max_leaves=8,
)
payloads = st.dictionaries(st.sampled_from("abcdefgh"), plans, min_size=1, max_size=6)
waiting = st.builds(Waiting, st.sampled_from([*SLOW]))


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def read(recorded: bytes | msgspec.Raw) -> dict[str, Any]:
    """What a strict reader makes of it, without the addresses that some a ``repr`` has."""
    text = re.sub("0x[0-9a-f]+", "0x", bytes(recorded).decode())
    value = json.loads(text, parse_constant=no_constant)
    assert isinstance(value, dict)
    return value


DEFAULT = PrefactorCoreConfig(http_config=HttpClientConfig(api_url="local:memory.db"))

CAPTURES = {
    "without redaction": Capture(max_payload_bytes=100_000),
    "with the default": Capture(max_payload_bytes=100_000, redact=DEFAULT.redact),
    "with a redaction of anything": Capture(
        max_payload_bytes=100_000, redact=lambda payload: payload
    ),
}


@for_each("capture", CAPTURES.values())
@for_each("name", KNOWN)
def test_each_kind_of_value_is_recorded_as_what_it_is(name: str, capture: Capture) -> None:
    found = read(capture({"before": 1, "value": built(Leaf(name)), "after": [2]}))
    assert differences({"before": 1, "value": KNOWN[name][1], "after": [2]}, found) == []


@for_each("name", CONTAINERS)
def test_each_container_keeps_what_is_beside_any_value(name: str) -> None:
    lost: dict[str, list[str]] = {}
    for other in (*map(Leaf, KNOWN), *map(Bad, HOSTILE)):
        for plan in (Branch(name, Leaf("text"), other), Branch(name, other, Leaf("int"))):
            found = read(CAPTURES["without redaction"]({"value": built(plan), "after": 1}))
            if missing := differences({"value": expected(plan), "after": 1}, found):
                lost[other.name] = missing
    assert lost == {}


@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES)
@settings(max_examples=examples(60), phases=PHASES)
@given(payloads)
@example({"a": Branch("struct", Leaf("subclass of str"), Leaf("null")), "b": Bad("raising all")})
@example({"a": Branch("model", Leaf("int"), Bad("raising text")), "b": Leaf("timedelta")})
@example({"a": Bad("huge text"), "b": Leaf("text"), "c": Leaf("deque")})
@example(
    {
        "a": Branch(
            "model with more",
            Branch("model with a computed field that raises", Leaf("int"), Leaf("text")),
            Leaf("text"),
        )
    }
)
def test_of_a_payload_no_more_is_lost_than_a_hostile_value(
    capture: Capture, payload: dict[str, Plan]
) -> None:
    ASKED.clear()
    found = read(capture({name: built(plan) for name, plan in payload.items()}))
    wished = {name: expected(plan) for name, plan in payload.items()}
    assert differences(wished, found) == []
    # A model that makes something of itself may look at what is in it.
    if not any(holds_in_model(plan, {"rows", "lazy relation"}) for plan in payload.values()):
        assert ASKED == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OVERSIZED)
def test_a_value_that_is_too_large_costs_no_other(name: str, first: bool) -> None:
    large, others = {"large": OVERSIZED[name]()}, {"text": "kept", "list": [1, {"a": None}]}
    payload: dict[str, object] = {**large, **others} if first else {**others, **large}
    found = read(CAPTURES["without redaction"](payload))
    assert differences({"large": LOST, **others}, found) == []


@settings(max_examples=examples(60), phases=PHASES)
@given(payloads, st.randoms(use_true_random=False))
def test_the_order_of_the_keys_changes_nothing(payload: dict[str, Plan], random: Any) -> None:
    capture = CAPTURES["without redaction"]
    names = [*payload]
    random.shuffle(names)
    found = read(capture({name: built(plan) for name, plan in payload.items()}))
    shuffled = read(capture({name: built(payload[name]) for name in names}))
    assert found == shuffled


@settings(max_examples=examples(60), phases=PHASES)
@given(payloads)
def test_a_value_is_recorded_beside_others_as_it_is_alone(payload: dict[str, Plan]) -> None:
    capture = CAPTURES["without redaction"]
    found = read(capture({name: built(plan) for name, plan in payload.items()}))
    for name, plan in payload.items():
        if holds(plan, {"huge text", "huge bytes"}):
            continue  # it has the room that others leave
        assert found[name] == read(capture({name: built(plan)}))[name]


@settings(max_examples=examples(25), phases=PHASES)
@given(payloads, st.lists(waiting, min_size=1, max_size=2), st.booleans())
def test_a_value_that_waits_costs_no_other(
    payload: dict[str, Plan], slow: list[Waiting], first: bool
) -> None:
    late: dict[str, Plan] = {f"slow {number}": plan for number, plan in enumerate(slow)}
    payload = late | payload if first else payload | late
    with GATE.closed():
        found = read(
            CAPTURES["without redaction"]({name: built(plan) for name, plan in payload.items()})
        )
    assert differences({name: expected(plan) for name, plan in payload.items()}, found) == []


@settings(max_examples=examples(60), phases=PHASES)
@given(plans, st.integers(20, 60), st.booleans())
def test_an_object_is_recorded_whole_where_it_is_shallow_though_it_is_deep_elsewhere(
    plan: Plan, depth: int, shallow_first: bool
) -> None:
    capture = CAPTURES["without redaction"]
    shared = built(Branch("dict", plan, Leaf("text")))
    deep: object = shared
    for _ in range(depth):
        deep = {"inner": deep}
    payload = (
        {"shallow": shared, "deep": deep} if shallow_first else {"deep": deep, "shallow": shared}
    )
    found = read(capture(payload))
    assert differences({"first": expected(plan), "second": "plain text"}, found["shallow"]) == []


@settings(max_examples=examples(60), phases=PHASES)
@given(plans)
def test_keys_that_become_equal_as_text_are_both_kept(plan: Plan) -> None:
    wished = expected(plan)
    for keys in ((1, "1"), (None, "null"), (True, "true"), (b"a", "YQ=="), (Colour.RED, "red")):
        found = read(
            CAPTURES["without redaction"]({"value": {keys[0]: built(plan), keys[1]: "other"}})
        )["value"]
        assert len(found) == 2
        assert "other" in found.values()
        assert any(differences(wished, value) == [] for value in found.values())


@settings(max_examples=examples(40), phases=PHASES)
@given(payloads)
def test_what_was_captured_is_of_the_moment_and_leaves_the_values_alone(
    payload: dict[str, Plan],
) -> None:
    values: dict[str, Any] = {name: built(plan) for name, plan in payload.items()}
    live: dict[str, object] = {**values, "list": [1], "dict": {"a": 1}}
    recorded = CAPTURES["without redaction"](live)
    before = bytes(recorded)
    live["list"].append(2)  # type: ignore[attr-defined]
    assert bytes(recorded) == before
    assert live.keys() == {*payload, "list", "dict"}


# Secrets: what stands under the name of one is hidden by default, whatever holds it

CANARY = "canary-7f3a"

NAMES = ["password", "api_key", "api-key", "API_KEY", "apiKey", "X-Api-Key", "Authorization"]


@dataclasses.dataclass
class Login:
    user: str
    password: object


class LoginStruct(msgspec.Struct):
    user: str
    password: object


HOLDERS: dict[str, Callable[[str, object], object]] = {
    "dict": lambda name, secret: {"user": "me", name: secret},
    "bytes key": lambda name, secret: {"user": "me", name.encode(): secret},
    "bytes": lambda name, secret: {"user": "me", name.encode(): str(secret).encode()},
    "subclass as key": lambda name, secret: {"user": "me", Text(name): secret},
    "pair": lambda name, secret: [("user", "me"), (name, secret)],
    "pair of bytes": lambda name, secret: [(name.encode(), str(secret).encode())],
    "pair as a list": lambda name, secret: [["user", "me"], [name, secret]],
    "items": lambda name, secret: {"user": "me", name: secret}.items(),
    "mapping proxy": lambda name, secret: MappingProxyType({name: secret}),
    "namespace": lambda name, secret: SimpleNamespace(**{name.replace("-", "_"): secret}),
    "dataclass": lambda name, secret: Login("me", secret),
    "struct": lambda name, secret: LoginStruct("me", secret),
    "nested": lambda name, secret: {name: {"value": [secret]}},
}
if pydantic:

    class LoginModel(pydantic.BaseModel):
        user: str
        password: Any

    class Masked(pydantic.BaseModel):
        value: pydantic.SecretStr

    HOLDERS |= {
        "model": lambda name, secret: LoginModel(user="me", password=secret),
        "secret str": lambda name, secret: Masked(value=pydantic.SecretStr(str(secret))),
    }
if attrs:

    @attrs.define
    class LoginAttrs:
        user: Any
        password: Any

    HOLDERS |= {"attrs": lambda name, secret: LoginAttrs("me", secret)}


def shown(recorded: bytes) -> bool:
    forms = (CANARY.encode(), b64encode(CANARY.encode())[:-2], CANARY.encode().hex().encode())
    return any(form in recorded for form in forms)


@pytest.mark.parametrize("holder", HOLDERS)
@settings(max_examples=examples(15), phases=PHASES)
@given(st.sampled_from(NAMES), plans, plans, st.sampled_from([*CONTAINERS]))
def test_what_stands_under_the_name_of_a_secret_is_not_recorded(
    holder: str, name: str, before: Plan, after: Plan, container: str
) -> None:
    def payload(secret: str) -> dict[str, object]:
        held = HOLDERS[holder](name, secret)
        return {
            "before": built(before),
            "held": CONTAINERS[container][0](held, "beside"),
            "after": built(after),
        }

    recorded = bytes(CAPTURES["with the default"](payload(CANARY)))
    assert not shown(recorded)
    found = read(recorded)
    wished = {
        "before": expected(before),
        "held": CONTAINERS[container][1](LOST, "beside"),
        "after": expected(after),
    }
    assert differences(wished, found) == []


# All the way


def test_a_span_arrives_with_what_can_be_recorded_of_its_payload_and_result() -> None:
    with open_recording() as recorded:
        with recorded.open_sync() as client, client.agent_instance(**AGENT) as run:  # type: ignore[arg-type]

            @settings(max_examples=examples(25), phases=PHASES)
            @given(payloads, payloads)
            def records(payload: dict[str, Plan], result: dict[str, Plan]) -> None:
                values = {name: built(plan) for name, plan in payload.items()}
                with run.span("agent:tool", payload=values) as span:
                    span.set_result({name: built(plan) for name, plan in result.items()})
                wished.append(
                    tuple(
                        {name: expected(plan) for name, plan in part.items()}
                        for part in (payload, result)
                    )
                )

            wished: list[tuple[dict[str, object], ...]] = []
            records()
            assert client.flush(30)
        spans = recorded.run.spans
    assert client.statistics().lost == 0
    assert len(spans) == len(wished)
    for span, (payload, result) in zip(spans, wished, strict=True):
        assert differences(payload, dict(span.payload)) == []
        assert differences(result, dict(span.result or {})) == []
