"""Names, ids, times and payloads of any kind become operations that can be encoded."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from support.examples import examples
from support.harness import AGENT, recording

from prefactor_core import SpanContextStack
from prefactor_core.exceptions.checks import to_time
from prefactor_core.models.clock import Clock, to_datetime
from prefactor_core.operations.identifiers import generate_related
from prefactor_core.payloads.capture import Capture
from prefactor_core.testing import open_recording


class Text(str):
    """A subclass of str with other methods."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    def isascii(self) -> bool:
        return True


class Moment(datetime):
    """A subclass of datetime, as in freezegun, pendulum and pandas."""

    def astimezone(self, tz: Any = None) -> Any:
        raise RuntimeError


texts = st.text(min_size=1, max_size=20) | st.sampled_from(["\ud800", "a\udfffb", "ä", "\x00"])
names = texts | texts.map(Text)
zones = st.sampled_from([UTC, timezone(timedelta(hours=2)), timezone(timedelta(hours=-11))])
times = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=zones) | st.datetimes(
    datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=zones
).map(lambda t: Moment(t.year, t.month, t.day, t.hour, t.minute, t.second, t.microsecond, t.tzinfo))
qualities = st.sampled_from(["kind", Text("kind"), "\ud800"])
broken = st.sampled_from(
    [b"", b"{", b"nope", b'"\xff"', b'"\xed\xa0\x80"', b"1}", b"NaN", b'{"a":}', b"[1,]", b'"\\q"']
)
raws = (st.binary(max_size=10) | broken | st.just(b'{"fine": [1]}')).map(Raw)
values = st.recursive(
    st.none() | st.integers() | st.floats() | names | raws | times,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
payloads = st.dictionaries(names, values, max_size=3) | raws


@given(values | payloads, st.booleans())
def test_every_captured_payload_is_json(payload: object, redacts: bool) -> None:
    captured = Capture(redact=(lambda fields: fields) if redacts else None)(payload)
    assert isinstance(msgspec.json.decode(captured), dict)


@given(times)
def test_a_time_is_plain_and_the_same_moment(time: datetime) -> None:
    plain = to_datetime(to_time("timestamp", time))
    assert type(plain) is datetime
    assert (plain, plain.tzinfo) == (time, UTC)


def test_each_operation_can_be_written_and_arrives() -> None:
    @settings(max_examples=examples(60))
    @given(names, qualities, payloads, values, times, st.booleans(), st.booleans())
    def record(
        name: str,
        quality: str,
        payload: Any,
        result: object,
        time: datetime,
        pushes: bool,
        subclass: bool,
    ) -> None:
        kind = Text if subclass else str
        if pushes:
            SpanContextStack.push(name)
        span_id = kind(generate_related(run.id))
        with client.span(kind(run.id), name, None, span_id, payload) as span:
            span.set_result({"result": result})
            with client.span(run.id, name, kind(span.id)) as child:
                child.start_nowait({name: payload}, started_at=time)
        if pushes:
            SpanContextStack.pop()
        client.record_quality(kind(run.id), quality, {name: result})

    with open_recording() as recorded, recorded.open_sync() as client:
        schemas = [{"name": name, "schema": {"type": "object"}} for name in ("kind", "?")]
        version = {"external_identifier": "1", "quality_schemas": schemas}
        with client.agent_instance(**AGENT, agent_schema_version=version) as run:  # type: ignore[arg-type]
            record()
            assert client.flush(20)
    assert client.statistics().lost == 0, client.statistics()
    assert client.statistics().retries == 0


@contextmanager
def frozen_time(at: datetime) -> Generator[None]:
    """As freezegun does: a subclass replaces ``datetime`` in every module."""
    places = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("prefactor_core") and vars(module).get("datetime") is datetime
    ]

    class FakeDatetime(datetime):
        pass

    for module in places:
        vars(module)["datetime"] = FakeDatetime
    try:
        yield
    finally:
        for module in places:
            vars(module)["datetime"] = datetime


async def test_operations_under_a_frozen_time_arrive() -> None:
    with frozen_time(datetime(2020, 1, 1, tzinfo=UTC)):
        assert type(to_datetime(Clock().now())) is datetime
        async with recording() as r:
            async with r.instance.span("agent:llm") as span:
                await span.start(started_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert r.run.named("agent:llm").started_at == "2020-01-01T00:00:00.000000Z"


async def test_an_operation_that_cannot_be_written_is_the_only_one_lost() -> None:
    async with recording() as r:
        for payload in ({"a": Raw(b"{broken"), "b": 1}, {"a": "fine"}):
            with r.instance.span("agent:llm", payload=payload):
                pass
        with r.instance.span("agent:\ud800"):
            pass
    llm = [span.payload for span in r.run.spans.values() if span.name == "agent:llm"]
    assert [payload.get("b") for payload in llm] == [1, None]
    assert llm[1] == {"a": "fine"}
    assert r.run.named("agent:?").status == "complete"


async def test_a_pushed_text_that_is_no_pfid_is_no_parent() -> None:
    async with recording() as r:
        SpanContextStack.push("\ud800 my request")
        with r.instance.span("agent:llm"):
            pass
        assert SpanContextStack.pop() == "\ud800 my request"
    assert r.run.named("agent:llm").parent_id is None
