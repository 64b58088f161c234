"""Times that the caller gives: started_at= and timestamp=, of spans and of runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import AGENT, StoredRun, make_config, open_faulty_api, recording, stored_run

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorValueError,
    open_prefactor,
)
from prefactor_core.exceptions.checks import check_end, to_time
from prefactor_core.models.clock import to_datetime, to_nanoseconds
from prefactor_core.testing import open_recording

pytestmark = pytest.mark.virtual_time

PAST = datetime(2020, 1, 1, 12, tzinfo=UTC)
FUTURE = datetime(2200, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
BERLIN = timezone(timedelta(hours=2))


def at(stored: str | None) -> datetime:
    assert stored is not None
    return datetime.fromisoformat(stored)


class Moment(datetime):
    """A datetime with other methods, as those of pandas and pendulum."""

    def __repr__(self) -> str:
        return "a moment"


# Times


@given(st.datetimes(timezones=st.timezones()))
def test_an_aware_time_is_the_same_moment_in_utc(moment: datetime) -> None:
    try:
        expected = moment.astimezone(UTC)
    except OverflowError:
        with pytest.raises(PrefactorValueError, match="cannot be converted to UTC"):
            to_time("timestamp", moment)
        return
    time = to_datetime(to_time("timestamp", moment))
    assert (time, time.tzinfo) == (expected, UTC)


def test_a_time_of_a_subclass_becomes_a_plain_one() -> None:
    time = to_datetime(to_time("timestamp", Moment(2020, 1, 1, 14, tzinfo=BERLIN)))
    assert (type(time), time) == (datetime, PAST)


def test_a_time_is_not_before_what_it_ends() -> None:
    past = to_nanoseconds(PAST)
    check_end("timestamp", past, "it", past)
    check_end("timestamp", past, "it", None)
    with pytest.raises(PrefactorValueError) as caught:
        check_end("timestamp", past - 1_000_000_000, "the run", past)
    assert str(caught.value) == (
        "timestamp 2020-01-01T11:59:59+00:00 is before the start of the run, "
        "2020-01-01T12:00:00+00:00: give a later one, or none for now"
    )


WRONG: list[tuple[object, str]] = [
    (datetime(2020, 1, 1), r"must be aware, got datetime.datetime\(2020.*datetime.now\(UTC\), or"),
    (1577880000.5, r"must be a datetime, got 1577880000.5: datetime.now\(UTC\)"),
    ("2020-01-01T12:00:00Z", "must be a datetime, got '2020-01-01T12:00:00Z'"),
    (date(2020, 1, 1), "must be a datetime, got date"),
    ({"prompt": "secret"}, "must be a datetime, got dict:"),
]

SPAN_CALLS = ["start", "complete", "fail", "cancel", "finish"]


def span_call(span: Any, name: str, time: object) -> Any:
    argument = "started_at" if name.startswith("start") else "timestamp"
    return getattr(span, name)(**{argument: time})


@pytest.mark.parametrize(("time", "message"), WRONG)
@pytest.mark.parametrize("name", SPAN_CALLS)
async def test_an_invalid_time_is_an_error_and_the_span_ends_with_its_block(
    name: str, time: object, message: str
) -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            argument = "started_at" if name == "start" else "timestamp"
            with pytest.raises(PrefactorValueError, match=f"{argument} {message}") as caught:
                await span_call(span, name, time)
            assert "secret" not in str(caught.value)
            await recorded.client.flush()
            assert not [c for c in recorded.api.operations if c.name == "agent_spans"]
            span.set_result({"ended": "with its block"})
    llm = recorded.run.named("agent:llm")
    assert (llm.status, llm.result) == ("complete", {"ended": "with its block"})


@pytest.mark.parametrize("name", ["start", "complete", "fail", "cancel"])
async def test_an_invalid_time_does_not_even_open_a_span(name: str) -> None:
    async with recording() as recorded:
        span = recorded.instance.span("agent:llm")
        with pytest.raises(PrefactorValueError, match="must be aware"):
            span_call(span, f"{name}_nowait", datetime(2020, 1, 1))
        with pytest.raises(PrefactorValueError, match="started_at must be aware"):
            await recorded.instance.create_span("agent:llm", started_at=datetime(2020, 1, 1))
    assert recorded.run.shape == ("complete", [])


# Spans.


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", ["complete", "fail", "cancel", "finish"])
async def test_a_span_has_the_times_that_it_was_given(name: str, merged: bool) -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            await span.start({"n": 1}, started_at=PAST.astimezone(BERLIN))
            if not merged:
                await recorded.client.flush()
            await span_call(span, name, PAST + SECOND)
            # The first end counts.
            await span.complete(timestamp=FUTURE)
            await span.start(started_at=FUTURE)
    llm = recorded.run.named("agent:llm")
    assert (at(llm.started_at), at(llm.finished_at)) == (PAST, PAST + SECOND)
    ends = {"complete": "complete", "fail": "failed", "cancel": "cancelled", "finish": "complete"}
    assert (llm.status, llm.payload) == (ends[name], {"n": 1})


async def test_the_first_start_counts() -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            await span.start(started_at=PAST)
            await span.start(started_at=PAST + SECOND)
    assert at(recorded.run.named("agent:llm").started_at) == PAST


@pytest.mark.parametrize("name", ["complete", "fail", "cancel", "finish"])
async def test_an_end_before_the_start_is_an_error_and_the_span_goes_on(name: str) -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            await span.start(started_at=PAST)
            with pytest.raises(PrefactorValueError) as caught:
                await span_call(span, name, PAST - SECOND)
            assert "timestamp 2020-01-01T11:59:59+00:00" in str(caught.value)
            assert "the 'agent:llm' span, 2020-01-01T12:00:00+00:00" in str(caught.value)
            span.set_result({"a": 1})
    llm = recorded.run.named("agent:llm")
    assert (llm.status, llm.result, at(llm.started_at)) == ("complete", {"a": 1}, PAST)


@pytest.mark.parametrize("name", ["complete", "fail", "finish"])
async def test_a_span_that_was_not_started_has_begun_with_its_entering(name: str) -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            with pytest.raises(PrefactorValueError, match="before the start"):
                await span_call(span, name, PAST)
            await span_call(span, name, FUTURE)
    llm = recorded.run.named("agent:llm")
    assert at(llm.finished_at) == FUTURE
    assert PAST < at(llm.started_at) < FUTURE


async def test_a_skipped_span_has_its_end_and_never_started() -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            await span.cancel(timestamp=PAST)
    llm = recorded.run.named("agent:llm")
    assert (llm.status, llm.started_at, at(llm.finished_at)) == ("cancelled", None, PAST)


@pytest.mark.parametrize("way", ["block", "complete", "cancel", "raise", "run"])
async def test_no_span_ends_before_a_start_in_the_future(way: str) -> None:
    async with recording() as recorded:
        if way == "run":
            recorded.instance.create_span_nowait("agent:llm", started_at=FUTURE)
        else:
            with pytest.raises(ZeroDivisionError):
                async with recorded.instance.span("agent:llm") as span:
                    await span.start(started_at=FUTURE)
                    await recorded.client.flush()
                    if way in ("complete", "cancel"):
                        await getattr(span, way)()
                    if way == "raise":
                        _ = 1 / 0
                raise ZeroDivisionError
    llm = recorded.run.named("agent:llm")
    assert at(llm.started_at) == at(llm.finished_at) == FUTURE


async def test_ancestors_are_started_as_of_their_entering_whatever_their_child_is_given() -> None:
    async with recording() as recorded:
        before = datetime.now(UTC) - SECOND
        async with recorded.instance.span("agent:run") as outer:
            async with recorded.instance.span("agent:llm") as span:
                await span.start(started_at=PAST)
            await outer.complete()
    outer_span, inner = recorded.run.named("agent:run"), recorded.run.named("agent:llm")
    assert inner.parent_id == outer_span.id
    assert at(inner.started_at) == PAST
    assert at(outer_span.started_at) > before


@pytest.mark.parametrize("owner", ["client", "handle"])
@pytest.mark.parametrize("nowait", [True, False])
async def test_a_span_by_its_id_has_the_times_that_it_was_given(owner: str, nowait: bool) -> None:
    async with recording() as recorded:
        who: Any = recorded.client if owner == "client" else recorded.instance
        run = (recorded.instance.id,) if owner == "client" else ()
        if nowait:
            span_id = who.create_span_nowait(*run, "agent:llm", started_at=PAST)
            with pytest.raises(PrefactorValueError, match="before the start"):
                who.finish_span_nowait(span_id, timestamp=PAST - SECOND)
            who.finish_span_nowait(span_id, {"n": 1}, timestamp=PAST + SECOND)
        else:
            span_id = await who.create_span(*run, "agent:llm", started_at=PAST)
            with pytest.raises(PrefactorValueError, match="must be aware"):
                await who.finish_span(span_id, timestamp=datetime(2020, 1, 1))
            await who.finish_span(span_id, {"n": 1}, timestamp=PAST + SECOND)
    llm = recorded.run.named("agent:llm")
    assert (at(llm.started_at), at(llm.finished_at), llm.result) == (PAST, PAST + SECOND, {"n": 1})


# Runs.


async def record(
    how: Callable[[PrefactorCoreClient, AgentInstanceHandle], Awaitable[None]],
) -> StoredRun:
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            await how(client, await client.create_agent_instance(**AGENT))
        assert client.statistics().lost == 0
        return await stored_run(api)


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
@pytest.mark.parametrize("nowait", [True, False])
async def test_a_run_has_the_times_that_it_was_given(status: Any, nowait: bool) -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        if nowait:
            run.start_nowait(timestamp=PAST)
            run.start_nowait(timestamp=FUTURE)
            run.finish_nowait(status, timestamp=PAST + SECOND)
        else:
            await run.start(timestamp=PAST)
            await run.start(timestamp=FUTURE)
            await run.finish(status, timestamp=PAST + SECOND)
            await run.finish(status, timestamp=FUTURE)

    run = await record(work)
    assert (run.status, at(run.started_at), at(run.finished_at)) == (status, PAST, PAST + SECOND)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (datetime(2020, 1, 1), "timestamp must be aware"),
        (PAST - SECOND, "before the start of agent instance"),
    ],
)
async def test_a_run_goes_on_when_it_is_given_a_wrong_end(time: datetime, message: str) -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        await run.start(timestamp=PAST)
        async with run.span("agent:llm") as span:
            with pytest.raises(PrefactorValueError, match=message):
                await run.finish(timestamp=time)
            await span.complete()
        await run.finish("failed")

    run = await record(work)
    assert run.shape == ("failed", [("agent:llm", "complete", [])])


async def test_a_run_does_not_start_at_an_invalid_time() -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        for _ in range(2):
            with pytest.raises(PrefactorValueError, match="timestamp must be aware"):
                await run.start(timestamp=datetime(2020, 1, 1))
            await run.start(timestamp=PAST)

    assert at((await record(work)).started_at) == PAST


async def test_a_wrong_status_ends_nothing_of_the_run() -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        async with run.span("agent:llm"):
            with pytest.raises(PrefactorValueError, match="status must be one of"):
                await run.finish("finished")  # type: ignore[arg-type]

    assert (await record(work)).shape == ("complete", [("agent:llm", "complete", [])])


async def test_a_run_does_not_end_before_a_start_in_the_future() -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        await run.start(timestamp=FUTURE)

    run = await record(work)
    assert at(run.started_at) == at(run.finished_at) == FUTURE


async def test_a_run_that_was_not_started_starts_and_ends_at_its_end() -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        await run.finish(timestamp=PAST)

    run = await record(work)
    assert at(run.started_at) == at(run.finished_at) == PAST


@pytest.mark.parametrize("started_at", [PAST, FUTURE])
async def test_a_run_begins_with_its_first_span_whenever_that_was(started_at: datetime) -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        async with run.span("agent:llm") as span:
            await span.start(started_at=started_at)

    run = await record(work)
    assert at(run.started_at) == at(run.named("agent:llm").started_at) == started_at
    assert at(run.finished_at) >= started_at


async def test_open_spans_end_when_their_run_does_but_not_before_they_began() -> None:
    async def work(client: PrefactorCoreClient, run: AgentInstanceHandle) -> None:
        await run.start(timestamp=PAST)
        await run.create_span("agent:run", started_at=PAST)
        await run.create_span("agent:llm", started_at=PAST + 3 * SECOND)
        await run.finish(timestamp=PAST + SECOND)

    run = await record(work)
    assert at(run.finished_at) == at(run.named("agent:run").finished_at) == PAST + SECOND
    assert at(run.named("agent:llm").finished_at) == PAST + 3 * SECOND


# Other clients


@pytest.mark.parametrize("enabled", [True, False])
def test_synchronous_code_gives_times_the_same_way(enabled: bool) -> None:
    with open_recording() as recorded:
        with (
            recorded.open_sync(enabled=enabled) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            span_id = client.create_span(instance.id, "agent:llm", started_at=PAST)
            client.finish_span(span_id, timestamp=PAST + SECOND)
            with instance.span("agent:llm") as span:
                span.start_nowait(started_at=PAST)
                span.complete_nowait(timestamp=PAST + SECOND)
                span.fail_nowait(timestamp=PAST + SECOND)
                span.cancel_nowait(timestamp=PAST + SECOND)
            instance.start_nowait(timestamp=PAST)
            instance.finish_nowait(timestamp=FUTURE)
        spans = [span for run in recorded.runs for span in run.spans]
    times = [(span.started_at, span.finished_at) for span in spans]
    assert times == ([(PAST, PAST + SECOND)] * 2 if enabled else [])


async def test_a_disabled_client_accepts_times_too() -> None:
    async with open_prefactor(make_config(enabled=False)) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start(timestamp=PAST)
        async with instance.span("agent:llm") as span:
            await span.start({"n": 1}, started_at=PAST)
            for name in ("complete", "fail", "cancel", "finish"):
                await span_call(span, name, PAST)
        await instance.finish_span(
            await instance.create_span("agent:llm", started_at=PAST), timestamp=PAST
        )
        await instance.finish(timestamp=PAST)
