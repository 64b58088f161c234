"""The JSON form of values of usual types, and no needless call of their code."""

from __future__ import annotations

import argparse
import array
import gc
import importlib
import json
import threading
import time
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock_time
from enum import IntEnum
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.cases import for_each
from support.examples import examples

from prefactor_core import redact_keys, traced
from prefactor_core.payloads.capture import Capture
from prefactor_core.span_types import LLMCall, LLMResult, standard_types
from prefactor_core.testing import open_recording

np: Any = importlib.import_module("numpy")
pd: Any = importlib.import_module("pandas")
sa: Any = importlib.import_module("sqlalchemy")
orm: Any = importlib.import_module("sqlalchemy.orm")
wrapt: Any = importlib.import_module("wrapt")

REDACTED = "[redacted]"


class Text(str):
    """As the text of a message in some frameworks."""

    __slots__ = ()


class Level(IntEnum):
    HIGH = 3


Pair = namedtuple("Pair", "left right")


@dataclass
class Login:
    name: object
    phrase: str = field(default="canary", repr=False)


@attrs.define
class AttrsLogin:
    name: str
    phrase: str = attrs.field(default="canary", repr=False)
    _cache: int = 0


class Model(pydantic.BaseModel):
    name: str = "Ada"
    phrase: str = pydantic.Field(default="canary", repr=False)
    key: pydantic.SecretStr = pydantic.SecretStr("canary")
    inner: Any = None


class Half(pydantic.BaseModel):
    """A model of which one field cannot be read."""

    name: str = "Ada"
    model_config: ClassVar[pydantic.ConfigDict] = {}

    @pydantic.computed_field
    @property
    def broken(self) -> int:
        raise ValueError("no number")

    @pydantic.computed_field
    @property
    def whole(self) -> int:
        return 3


class Sparse(msgspec.Struct, omit_defaults=True, tag="sparse", rename="camel"):
    first_part: object = None
    some_list: list[object] = []
    second_part: object = 3


class Row(msgspec.Struct, array_like=True):
    a: object
    b: object = 2


def captured(payload: object, **options: Any) -> Any:
    return json.loads(bytes(Capture(**options)(payload)))


@for_each(
    ("value", "stored"),
    [
        (np.bool_(True), True),
        (np.int64(3), 3),
        (np.float32(1.5), 1.5),
        (np.longdouble(1.5), 1.5),
        (np.str_("a"), "a"),
        (np.datetime64("2026-01-02T03:04"), "2026-01-02T03:04"),
        (np.datetime64("NaT"), None),
        (np.timedelta64(5, "s"), "PT5S"),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([[True, False]]), [[True, False]]),
        (np.array([1.5, np.nan]), [1.5, None]),
        (np.array(["a", "\ud800"]), ["a", "?"]),
        (np.array([{1}, None], dtype=object), [[1], None]),
        (np.array([["2026-01-01"], ["NaT"]], dtype="M8[D]"), [["2026-01-01"], [None]]),
        (np.array(3), 3),
        (np.zeros((1000, 2000)), "<numpy.ndarray float64 (1000, 2000)>"),
        ([np.float32(0.5)] * 200, [0.5] * 200),
        ([np.float64(0.5)] * 200, [0.5] * 200),
        (pd.NaT, None),
        (pd.NA, None),
        (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        (pd.Timedelta("1 days 2s"), "P1DT2S"),
        (pd.DataFrame({"a": [1]}), "<pandas.DataFrame (1, 1)>"),
        (pd.Series([1]), "<pandas.Series int64 (1,)>"),
        (wrapt.ObjectProxy({"a": {1}}), {"a": [1]}),
        (wrapt.ObjectProxy("text"), "text"),
        (timedelta(days=1, seconds=2), "P1DT2S"),
        (deque([1, {2}]), [1, [2]]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": {1}}.values(), [[1]]),
        (OrderedDict(a=1).items(), [["a", 1]]),
        (array.array("d", [1.5]), [1.5]),
        (Pair(1, Pair(2, {3})), {"left": 1, "right": {"left": 2, "right": [3]}}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        (UserDict(a=1), {"a": 1}),
        (UserList([1]), [1]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (SimpleNamespace(a={1}), {"a": [1]}),
        (Sparse(first_part=Text("x")), {"type": "sparse", "firstPart": "x"}),
        (Sparse(some_list=[Text("x")]), {"type": "sparse", "someList": ["x"]}),
        (Row(Text("x")), {"a": "x", "b": 2}),
        (Login({1}), {"name": [1], "phrase": REDACTED}),
        (AttrsLogin("Ada"), {"name": "Ada", "phrase": REDACTED}),
        (
            Model(inner=[Model(), {"k": Login(1)}]),
            {
                "name": "Ada",
                "phrase": REDACTED,
                "key": "**********",
                "inner": [
                    {"name": "Ada", "phrase": REDACTED, "key": "**********", "inner": None},
                    {"k": {"name": 1, "phrase": REDACTED}},
                ],
            },
        ),
        (Half(), {"name": "Ada", "broken": "<unprintable Half>", "whole": 3}),
    ],
    ids=lambda value: type(value).__name__,
)
@for_each("beside", [{}, {"nasty": "\ud800"}], ids=["alone", "beside nasty"])
@for_each("redact", [None, redact_keys()], ids=["whole", "redacted"])
def test_a_value_becomes_what_its_type_says(
    value: object, stored: object, beside: dict[str, object], redact: Any
) -> None:
    assert captured({"value": value, **beside}, redact=redact)["value"] == stored


@pytest.mark.filterwarnings("ignore:Core Pydantic V1 functionality")
def test_a_model_of_pydantic_1_is_its_fields() -> None:
    v1: Any = importlib.import_module("pydantic.v1")

    class Old(v1.BaseModel):  # type: ignore[misc, name-defined, unused-ignore]
        at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
        phrase: str = v1.Field("canary", repr=False)

    assert captured(Old()) == {"at": "2026-01-01T00:00:00Z", "phrase": REDACTED}


def test_one_foreign_value_leaves_the_rest_of_a_result_as_it_ever_was() -> None:
    usual = captured(LLMResult(response="x"))
    assert captured(LLMResult(response=Text("x"))) == usual
    # Also where the fields of a result are taken from it first.
    capture = Capture()
    fields: dict[str, object] = {}
    capture.merge(fields, LLMResult(response=Text("x")))
    assert fields == usual


# --- keys


@for_each(
    ("key", "name"),
    [
        (1, "1"),
        (1.5, "1.5"),
        (None, "None"),
        (True, "True"),
        (b"a", "a"),
        (b"\xff", "/w=="),
        (np.int64(3), "3"),
        (np.float64(0.5), "0.5"),
        (Level.HIGH, "3"),
        (Text("x"), "x"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(seconds=3), "PT3S"),
        ((1, "a"), "(1, 'a')"),
    ],
    ids=repr,
)
def test_a_key_is_a_text(key: object, name: str) -> None:
    assert captured({key: 1}) == {name: 1}


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        ({1: "a", "1": "b"}, {"1 (int)": "a", "1": "b"}),
        ({b"a": 1, "a": 2, Text("b"): 3}, {"a (bytes)": 1, "a": 2, "b": 3}),
        ({"é": 1, "\ud800": 2, "?": 3}, {"é": 1, "? (str)": 2, "?": 3}),
        ({1: "a", b"1": "b", "1 (int)": "c"}, {"1 (int) 2": "a", "1 (bytes)": "b", "1 (int)": "c"}),
    ],
)
def test_keys_that_are_one_as_text_are_both_kept(payload: Any, stored: Any) -> None:
    assert captured(payload) == stored
    assert captured(dict(reversed(payload.items()))) == stored


@given(
    st.dictionaries(st.sampled_from([1, "1", b"1", "1 (int)", 1.0, "é", None, "None"]), st.none())
)
def test_no_key_is_lost(payload: dict[object, None]) -> None:
    assert len(captured({"inner": payload})["inner"]) == len(payload)


# --- the place of a value


def test_what_is_too_deep_in_one_place_is_whole_in_another() -> None:
    shared = {"a": {"b": ["\ud800"]}}
    deep: object = shared
    for _ in range(30):
        deep = [deep]
    for payload in ({"deep": deep, "flat": shared}, {"flat": shared, "deep": deep}):
        stored = captured(payload)
        assert stored["flat"] == {"a": {"b": ["?"]}}
        assert "<too deep>" in json.dumps(stored["deep"])


# --- what would ask a database


class QueriedError(Exception):
    """Code ran that might have asked a database."""


class Lazy:
    """As an attribute of a class that is mapped to a table."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise QueriedError

    def __set__(self, instance: Any, value: object) -> None:
        instance.__dict__[self.name] = value


class Mapped:
    posts = Lazy()

    def __repr__(self) -> str:
        raise QueriedError


class QuerySet:
    """As what has the rows of a query once it is looked at."""

    def __iter__(self) -> Iterator[object]:
        raise QueriedError

    def __repr__(self) -> str:
        raise QueriedError


@pytest.mark.parametrize("cls", [Mapped, QuerySet])
def test_what_would_ask_a_database_is_its_type(cls: type) -> None:
    degraded: dict[str, int] = {}
    stored = captured({"rows": cls(), "beside": {1}}, degraded=degraded)
    assert stored == {"rows": f"<{__name__}.{cls.__name__}>", "beside": [1]}
    assert degraded == {}


def test_an_object_of_a_table_is_what_is_loaded_and_nothing_is_queried() -> None:
    class Base(orm.MappedAsDataclass, orm.DeclarativeBase):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    class User(Base):
        __tablename__ = "users"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column()
        posts: orm.Mapped[list[Post]] = orm.relationship(default_factory=list)

    class Post(Base):
        __tablename__ = "posts"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("users.id"))

    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    queries: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    with orm.Session(engine) as session:
        session.add(User(1, "Ada"))
        session.commit()
        user = session.get(User, 1)
        queries.clear()
        for redact in (None, redact_keys()):
            stored = captured({"user": user, "all": session.query(User)}, redact=redact)
            assert stored["user"] == {"id": 1, "name": "Ada", "posts": "<not loaded>"}
            assert "Query" in stored["all"]
        session.expire(user)
        assert set(captured(user).values()) == {"<not loaded>"}
    engine.dispose()
    assert queries == []


# --- whose time it is


class Document(pydantic.BaseModel):
    number: int
    text: str = "hello"


def test_many_models_of_one_payload_are_all_recorded() -> None:
    degraded: dict[str, int] = {}
    stored = captured({"documents": [Document(number=n) for n in range(10_000)]}, degraded=degraded)
    assert stored["documents"][9_999] == {"number": 9_999, "text": "hello"}
    assert len(stored["documents"]) == 10_000
    assert degraded == {}


class Working:
    """Computes for a while of its own, and lets others compute in between."""

    def __repr__(self) -> str:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return "done"


def test_the_time_of_others_is_not_that_of_a_value() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1_000))

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        stored = [captured({"value": Working()})["value"] for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert stored == ["done"] * 5


class Collecting:
    """Meets a collection of garbage that takes its time."""

    def __repr__(self) -> str:
        gc.collect()
        return "done"


def test_a_collection_of_garbage_is_not_the_fault_of_a_value() -> None:
    heap = [[n] for n in range(100_000)]
    assert captured({"value": Collecting()})["value"] == "done"
    assert len(heap) == 100_000


class Waiting:
    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate

    def __repr__(self) -> str:
        if not self.gate.wait(30):
            raise AssertionError("nobody opened the gate")
        return "late"


@settings(max_examples=examples(30))
@given(st.permutations(["slow", "quick", "text", "other", "number"]))
def test_what_waits_takes_nothing_from_what_does_not_in_any_order(order: list[str]) -> None:
    gate = threading.Event()
    values: dict[str, object] = {
        "slow": Waiting(gate),
        "quick": Working(),
        "text": Text("x"),
        "other": Document(number=1),
        "number": 1,
    }
    degraded: dict[str, int] = {}
    try:
        stored = captured({name: values[name] for name in order}, degraded=degraded)
    finally:
        gate.set()
    assert stored == {
        "slow": "<slow Waiting>",
        "quick": "done",
        "text": "x",
        "other": {"number": 1, "text": "hello"},
        "number": 1,
    }
    assert degraded == {"slow": 1}


class SlowField(pydantic.BaseModel):
    gate: Any = pydantic.Field(exclude=True)
    name: str = "Ada"

    @pydantic.computed_field
    @property
    def slow(self) -> str:
        return repr(Waiting(self.gate))


def test_a_field_that_waits_is_lost_alone() -> None:
    gate = threading.Event()
    try:
        stored = captured({"model": SlowField(gate=gate), "beside": Document(number=1)})
    finally:
        gate.set()
    assert stored == {
        "model": {"name": "Ada", "slow": "<slow SlowField>"},
        "beside": {"number": 1, "text": "hello"},
    }


# --- what is lost is counted


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"a": "x" * 2_000}, "truncated"),
        ({"a": [1] * 2_000}, "truncated"),
        ({"a": b"x" * 2_000}, "truncated"),
        ({"a": np.zeros(5_000)}, "truncated"),
        ({"a": Half()}, "unreadable"),
        ({"a": 10**5_000}, "unreadable"),
    ],
    ids=["text", "list", "bytes", "array", "field", "number"],
)
def test_a_payload_that_is_not_recorded_whole_is_counted_and_said(
    payload: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    degraded: dict[str, int] = {}
    capture = Capture(max_payload_bytes=1_024, degraded=degraded)
    for _ in range(5):
        capture(payload)
    assert degraded == {reason: 5}
    # As often as 1, 2, 4 and so on.
    assert len(caplog.records) == 3


def test_a_payload_that_is_whole_counts_as_nothing() -> None:
    degraded: dict[str, int] = {}
    capture = Capture(degraded=degraded)
    for payload in ({"a": 1}, {"a": {1}, "b": Model(), "c": object(), "d": pd.Series([1])}):
        capture(payload)
    assert degraded == {}


@dataclass
class Header:
    name: object
    value: object


class HeaderStruct(msgspec.Struct):
    name: object
    value: object


class Account(msgspec.Struct, array_like=True):
    user: str
    password: str


class Bytes(bytes):
    pass


RECORDS = np.array([("Ada", "canary")], dtype=[("user", "U9"), ("password", "U9")])
NESTED = np.zeros(1, dtype=[("a", [("password", "U9", (2,))], (2,))])
NESTED["a"]["password"] = "canary"
NAMES = [b"password", bytearray(b"api-key"), memoryview(b"X-Api-Key"), Bytes(b"db.password")]


@for_each(
    "value",
    [
        RECORDS,
        RECORDS[0],
        RECORDS.view(np.recarray),
        NESTED,
        np.array([["Authorization", "canary"]]),
        np.array([["Authorization", "canary"]], dtype=object),
        Account("Ada", "canary"),
        [Account("Ada", "canary"), {1}],
        argparse.Namespace(password="canary"),
        {np.bytes_(b"auth"): "canary"},
        {memoryview(b"auth"): "canary"},
        *([(name, "canary")] for name in NAMES),
        *(deque([name, "canary"]) for name in NAMES),
        *({"name": name, "value": "canary"} for name in NAMES),
        *({"Key": name, "Value": "canary"} for name in NAMES),
        *(Header(name, "canary") for name in NAMES),
        *(HeaderStruct(name, "canary") for name in NAMES),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_secret_is_known_by_its_name_in_whatever_has_names(value: object) -> None:
    stored = bytes(Capture(redact=redact_keys())({"a": value}))
    assert b"canary" not in stored
    assert b"[redacted]" in stored


def test_the_columns_of_a_table_are_not_shown_for_what_it_is() -> None:
    assert captured({"a": pd.DataFrame({"dtype": ["canary"]})}) == {
        "a": "<pandas.DataFrame (1, 1)>"
    }


def test_the_url_of_a_database_is_as_it_shows_itself() -> None:
    assert captured({"a": sa.make_url("postgresql://u:canary@host/d")}) == {
        "a": "postgresql://u:***@host/d"
    }


class Napping:
    def __repr__(self) -> str:
        time.sleep(0.001)
        return "rested"


def test_many_short_waits_have_no_more_time_than_a_few_long_ones() -> None:
    degraded: dict[str, int] = {}
    stored = captured({"a": [Napping() for _ in range(1_000)]}, degraded=degraded)["a"]
    # Each alone would have been in time.
    assert 1 <= stored.count("rested") < 500
    assert set(stored) == {"rested", "<slow Napping>"}
    assert degraded == {"slow": 1}


def test_a_key_that_cannot_be_read_is_counted() -> None:
    degraded: dict[str, int] = {}
    assert captured({1 << 200_000: 1}, degraded=degraded) == {"<unprintable int>": 1}
    assert degraded == {"unreadable": 1}


class Unreadable:
    def __repr__(self) -> str:
        raise ValueError


def test_what_is_lost_of_typed_parameters_and_of_what_a_function_returns_is_counted() -> None:
    with (
        open_recording() as recording,
        recording.open_sync(schema_registry=standard_types()) as client,
        client.agent_instance("kinds", {"name": "Kinds"}) as run,
    ):
        with run.span(LLMCall(model="small-1", prompt=Unreadable())):  # type: ignore[arg-type]
            pass
        assert client.statistics().degraded == {"unreadable": 1}

        @traced("agent:tool_call")
        def login() -> Login:
            return Login(Unreadable())

        @traced("agent:tool_call", reduce=lambda items: items[0])
        def logins() -> Iterator[Login]:
            yield Login(Unreadable())

        login()
        assert client.statistics().degraded == {"unreadable": 2}
        assert len(list(logins())) == 1
        assert client.statistics().degraded == {"unreadable": 3}


class Streaming(pydantic.BaseModel):
    name: str = "Ada"
    stream: Any


class Numbers(pydantic.BaseModel):
    numbers: Iterable[int]


@dataclass
class Held:
    held: object


@pytest.mark.parametrize(
    "around",
    [
        lambda stream: Streaming(stream=stream),
        lambda stream: Streaming(stream=[{"a": (stream,)}]),
        lambda stream: Streaming.model_construct(stream=Held(stream)),
        lambda stream: Streaming(stream=Streaming.model_construct(stream=deque([stream]))),
        lambda stream: pydantic.RootModel[Any](stream),
    ],
)
def test_what_a_model_would_use_up_is_left_to_the_agent(around: Any) -> None:
    stream = (number for number in range(3))
    assert "<generator>" in str(captured({"model": around(stream), "beside": 1}))
    assert list(stream) == [0, 1, 2]


def test_numbers_that_a_model_checks_as_they_come_are_left_to_the_agent() -> None:
    model = Numbers(numbers=iter([1, 2]))
    captured({"model": model})
    assert list(model.numbers) == [1, 2]


THREADS: set[int] = set()


class Asked:
    def __repr__(self) -> str:
        THREADS.add(threading.get_ident())
        return "asked"


class LazyDict(UserDict[str, object]):
    def __init__(self) -> None:
        pass

    @property
    def data(self) -> Any:
        THREADS.add(threading.get_ident())
        return {"a": 1}


class LazyError(Exception):
    @property
    def args(self) -> Any:
        THREADS.add(threading.get_ident())
        return ()


@pytest.mark.parametrize("make", [lambda: OSError(2, "no", Asked()), LazyDict, LazyError])
@pytest.mark.parametrize("redact", [None, redact_keys()], ids=["whole", "redacted"])
def test_no_code_of_a_value_runs_in_the_thread_of_the_agent(make: Any, redact: Any) -> None:
    payload = {"value": make(), "beside": Asked()}
    THREADS.clear()
    captured(payload, redact=redact)
    assert THREADS
    assert threading.get_ident() not in THREADS


class Unequal:
    """As a key it raises when it is compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ValueError


@pytest.mark.parametrize("size", [1, 25_000])
def test_a_result_that_cannot_be_merged_is_a_value_of_its_own(size: int) -> None:
    fields: dict[Any, object] = {Unequal(): 1}
    result = {Unequal(): 1, **{f"{n:400}": {n} for n in range(size)}}
    Capture().merge(fields, result)
    # Copied, unless it is too large for that.
    assert (fields["value"] is result) == (size > 1)


class Tagged(msgspec.Struct, tag=5, tag_field="kind", kw_only=True, omit_defaults=True):
    first: Any = None
    second: Any
    third: Any = msgspec.field(name="theThird", default_factory=list)


ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30))])
SCALARS = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(),
    st.datetimes(timezones=ZONES) | st.times(timezones=ZONES) | st.dates() | st.timedeltas(),
    st.uuids() | st.decimals() | st.sampled_from([*Level]),
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(st.integers() | st.text(max_size=2) | st.uuids(), max_size=2),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Tagged, first=inner, second=inner),
        st.builds(Tagged, second=inner, third=st.lists(inner, max_size=1)),
        st.builds(Sparse, first_part=inner, some_list=st.lists(inner, max_size=1)),
        st.builds(Row, inner, inner),
    ),
    max_leaves=8,
)


@given(PLAIN)
@example(clock_time(3, 4, tzinfo=UTC))
@example(datetime(2026, 1, 2, tzinfo=UTC))
@example(Row(1, Row(2, 3)))
def test_a_plain_value_is_the_same_alone_and_beside_what_is_not(value: object) -> None:
    for redact in (None, redact_keys()):
        alone = json.dumps(captured({"value": value}, redact=redact)["value"])
        for payload in ({"value": value, "other": Asked()}, {"value": value, "other": {1}}):
            assert json.dumps(captured(payload, redact=redact)["value"]) == alone
