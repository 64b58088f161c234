"""The times of a run: one clock, even if the clock of the machine is set."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.harness import AGENT, StoredRun, make_config, open_faulty_api, stored_run
from support.virtual_time import virtual_time

from prefactor_core import AgentInstanceHandle, open_prefactor
from prefactor_core.models.clock import Clock, to_datetime

pytestmark = pytest.mark.virtual_time

START = datetime(2100, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


class Machine:
    """The two clocks of a machine, and the events that change them."""

    def __init__(self) -> None:
        self.wall = START
        self.monotonic = timedelta()

    def time_ns(self) -> int:
        return (self.wall - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND * 1_000

    def monotonic_ns(self) -> int:
        return self.monotonic // MICROSECOND * 1_000

    def goes_on(self, time: timedelta) -> None:
        self.wall += time
        self.monotonic += time

    def sleeps(self, time: timedelta) -> None:
        self.wall += time

    def is_set(self, by: timedelta) -> None:
        self.wall += by


Happening = tuple[Literal["goes_on", "sleeps", "is_set"], timedelta]

passing = st.one_of(
    st.timedeltas(timedelta(), SECOND),
    st.timedeltas(timedelta(), timedelta(days=2)),
)
happenings = st.one_of(
    st.tuples(st.just("goes_on"), passing),
    st.tuples(st.just("sleeps"), passing),
    st.tuples(st.just("is_set"), st.one_of(passing, passing.map(lambda time: -time))),
)


def happens(machine: Machine, happening: Happening) -> None:
    what, time = happening
    getattr(machine, what)(time)


# The clock alone


def test_the_clock_gives_wall_clock_time_in_utc() -> None:
    now = Clock().now()
    assert abs(time.time_ns() - now) < 10**9
    assert to_datetime(now).tzinfo is UTC
    assert abs(datetime.now(UTC) - to_datetime(now)) < timedelta(seconds=10)


def test_a_clock_goes_on_and_never_back() -> None:
    clock = Clock()
    times = [clock.now() for _ in range(10_000)]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times[0] < times[-1]


@given(st.lists(st.lists(happenings, max_size=3)))
@example([[("is_set", -HOUR)], [("goes_on", SECOND)], [("sleeps", 2 * HOUR)]])
@example([[("is_set", -HOUR)], [("is_set", HOUR)], [("goes_on", SECOND)]])
def test_a_clock_follows_the_wall_clock_but_never_back(between: list[list[Happening]]) -> None:
    machine = Machine()
    clock = Clock(machine)
    last = to_datetime(clock.now())
    assert last == START
    at_last_wall = True
    for happened in between:
        monotonic = machine.monotonic
        for happening in happened:
            happens(machine, happening)
        carried = last if at_last_wall else last + (machine.monotonic - monotonic)
        now = to_datetime(clock.now())
        assert now >= last
        # Sleeps and steps forward are followed; after a step back the monotonic clock is, until
        # the wall clock has caught up.
        assert now == max(machine.wall, carried)
        if all(what == "goes_on" for what, _ in happened):
            assert now - last == machine.monotonic - monotonic
        assert clock.is_ahead is (now > machine.wall)
        last, at_last_wall = now, now == machine.wall


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**10))))
def test_a_clock_never_goes_back_even_if_the_monotonic_one_does(
    readings: list[tuple[int, int]],
) -> None:
    class Frozen:
        """Set both clocks, as libraries that freeze time do."""

        def __init__(self) -> None:
            self.now = 0, 0

        def time_ns(self) -> int:
            return self.now[0]

        def monotonic_ns(self) -> int:
            return self.now[1]

    source = Frozen()
    clock = Clock(source)
    times = []
    for source.now in readings:
        times.append(clock.now())
    assert times == sorted(times)


# Runs


Work = Callable[[AgentInstanceHandle, Machine], Awaitable[None]]


async def record(work: Work) -> StoredRun:
    """The stored run in which ``work`` ran, on a machine whose clocks it can set."""
    with anyio.fail_after(1_000):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                run = await client.create_agent_instance(**AGENT)
                machine = Machine()
                client.instance_manager.identity(run.id).clock = Clock(machine)
                await work(run, machine)
            assert client.statistics().lost == 0
            return await stored_run(api)


def at(stored: str | None) -> datetime:
    assert stored is not None
    return datetime.fromisoformat(stored)


def times(stored: Any) -> tuple[datetime, datetime]:
    return at(stored.started_at), at(stored.finished_at)


def assert_inside(outer: Any) -> None:
    """Each span lies within its parent, and all within the run, in order."""
    start, end = times(outer)
    assert start <= end
    last = start
    for inner in sorted(outer.roots if isinstance(outer, StoredRun) else outer.children, key=times):
        inner_start, inner_end = times(inner)
        assert last <= inner_start <= inner_end <= end
        last = inner_end
        assert_inside(inner)


steps = st.one_of(happenings, st.sampled_from(["open", "open", "close", "start"]))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=examples(40))
@given(st.lists(steps, max_size=20))
@example(["open", "open", "close", ("sleeps", HOUR), "open", "close", "close", "open", "close"])
@example(["open", ("goes_on", SECOND), "close", ("is_set", -HOUR), "open", "close"])
@example(["open", "start", ("is_set", -HOUR), "open", "close", "close", ("is_set", -HOUR), "open"])
def test_no_span_lies_outside_of_what_is_around_it(backend: str, program: list[Any]) -> None:
    async def work(run: AgentInstanceHandle, machine: Machine) -> None:
        run.start_nowait()
        stack = [ExitStack()]
        spans: list[Any] = []
        for step in program:
            if step == "open":
                stack.append(ExitStack())
                spans.append(stack[-1].enter_context(run.span("agent:tool")))
            elif step in ("close", "start"):
                if spans and step == "close":
                    stack.pop().close()
                    spans.pop()
                elif spans:
                    spans[-1].start_nowait()
            else:
                happens(machine, step)
        for block in reversed(stack):
            block.close()
        run.finish_nowait()

    options = virtual_time(backend)
    assert_inside(anyio.run(record, work, backend=backend, backend_options=options))


async def test_after_a_sleep_of_the_machine_all_times_are_those_of_the_wall_clock() -> None:
    async def work(run: AgentInstanceHandle, machine: Machine) -> None:
        with run.span("agent:run"):
            machine.goes_on(SECOND)
            machine.sleeps(HOUR)
            with run.span("agent:llm"):
                machine.goes_on(SECOND)
        with run.span("agent:tool"):
            machine.goes_on(SECOND)

    run = await record(work)
    woken = START + SECOND + HOUR
    assert times(run.named("agent:run")) == (START, woken + SECOND)
    assert times(run.named("agent:llm")) == (woken, woken + SECOND)
    assert times(run.named("agent:tool")) == (woken + SECOND, woken + 2 * SECOND)
    assert times(run) == (START, woken + 2 * SECOND)


async def test_after_the_wall_clock_is_set_back_spans_keep_their_durations() -> None:
    async def work(run: AgentInstanceHandle, machine: Machine) -> None:
        with run.span("agent:run"):
            machine.goes_on(SECOND)
            with run.span("agent:llm"):
                pass
            machine.is_set(-HOUR)
        for _ in range(2):
            with run.span("agent:tool"):
                machine.goes_on(SECOND)

    run = await record(work)
    began = START + SECOND
    assert times(run.named("agent:run")) == (START, began)
    assert [times(root) for root in run.roots[1:]] == [
        (began, began + SECOND),
        (began + SECOND, began + 2 * SECOND),
    ]
    assert times(run) == (START, began + 2 * SECOND)


async def test_a_given_end_may_lie_before_the_start_after_the_wall_clock_was_set_back() -> None:
    async def work(run: AgentInstanceHandle, machine: Machine) -> None:
        await run.start()
        for end in ("complete", "fail", "cancel"):
            with run.span("agent:llm") as span:
                await span.start()
                machine.is_set(-HOUR)
                await getattr(span, end)(timestamp=machine.wall)
        span_id = await run.create_span("agent:tool")
        await run.finish_span(span_id, timestamp=machine.wall)
        await run.finish(timestamp=machine.wall)

    run = await record(work)
    assert [times(span) for span in (run, *run.roots)] == [(START, START)] * 5


@pytest.mark.parametrize("by_id", [True, False])
async def test_a_run_of_another_client_has_one_clock_too(by_id: bool) -> None:
    async with open_faulty_api() as api:
        async with (
            open_prefactor(make_config(), asgi_app=api) as owner,
            owner.agent_instance(**AGENT) as run,
            open_prefactor(make_config(), asgi_app=api) as client,
        ):

            async def step() -> None:
                if by_id:
                    await client.finish_span(await client.create_span(run.id, "agent:llm"))
                else:
                    with client.span(run.id, "agent:llm"):
                        pass

            await step()
            machine = Machine()
            client.span_manager.run_of(run.id).clock = Clock(machine)
            await step()
            machine.is_set(-HOUR)
            await step()
        roots = (await stored_run(api)).roots
        assert [times(root) for root in roots[1:]] == [(START, START)] * 2
