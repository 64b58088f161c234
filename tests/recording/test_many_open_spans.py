"""Many open spans: the cost of another one, in calls; and the turns of other tasks at their end."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from support.harness import AGENT, make_config, open_faulty_api, recording, stored_run, stored_runs

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    SpanContextStack,
    open_prefactor,
)
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.recording.run_end import SLICE

MANY = 700


@contextmanager
def counted() -> Generator[list[int]]:
    """The number of calls, in Python and in C."""
    count = [0]

    def note(frame: FrameType, event: str, argument: object) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(None)


def calls(function: Callable[[], object]) -> int:
    with counted() as count:
        function()
    return count[0]


def open_many(run: AgentInstanceHandle, count: int = MANY) -> list[str]:
    return [run.create_span_nowait("agent:llm") for _ in range(count)]


# The cost of another span


@pytest.mark.parametrize("way", ["below", "by_id", "ended_parent", "another_run", "finish"])
async def test_a_span_costs_the_same_however_many_are_open(way: str) -> None:
    async with recording() as r:
        run = r.instance
        other = await r.client.create_agent_instance(**AGENT)
        ended = run.create_span_nowait("agent:run")
        run.finish_span_nowait(ended)

        def step() -> None:
            match way:
                case "below":
                    run.finish_span_nowait(run.create_span_nowait("agent:tool"))
                case "by_id":
                    run.finish_span_nowait(run.create_span_nowait("agent:tool", first))
                case "ended_parent":
                    run.finish_span_nowait(run.create_span_nowait("agent:tool", ended))
                case "another_run":
                    other.finish_span_nowait(other.create_span_nowait("agent:tool"))
                case _:
                    run.finish_span_nowait(opened.pop(len(opened) // 2))

        def agent() -> None:
            nonlocal first
            first = open_many(run, 1)[0]
            opened.extend(open_many(run, 9))
            step()
            few = calls(step)
            opened.extend(open_many(run))
            # Now and then the stack unlinks ended spans: few calls on average.
            many = sum(calls(step) for _ in range(20)) / 20
            assert many < few + 10

        first, opened = "", list[str]()
        copy_context().run(agent)
        other.finish_nowait()


@dataclass(eq=False)
class OpenSpan:
    """The attributes of a span that the stack reads."""

    recorded_id: str
    instance_id: str = "run"
    status: SpanStatus = SpanStatus.PENDING


def a_span(number: int) -> OpenSpan:
    return OpenSpan(str(number))


def test_a_stack_costs_the_same_however_many_spans_came_and_went() -> None:
    def slide() -> None:
        """A span begins before an older one ends: the stack is never empty."""
        window.append(a_span(0))
        SpanContextStack.enter(window[-1])
        oldest = window.pop(0)
        oldest.status = SpanStatus.COMPLETE
        SpanContextStack.remove(oldest)
        ended.append(weakref.ref(oldest))

    def agent() -> None:
        window.extend(map(a_span, range(100)))
        for span in window:
            SpanContextStack.enter(span)
        total = sum(calls(slide) for _ in range(MANY))
        assert total / MANY < 40
        gc.collect()
        # The stack keeps about as many ended entries as open ones.
        assert sum(reference() is not None for reference in ended) <= 2 * len(window)

    window, ended = list[OpenSpan](), list[Any]()
    Context().run(agent)


def test_a_task_that_inherits_a_long_stack_costs_little() -> None:
    def child() -> None:
        SpanContextStack.enter(a_span(-1))
        assert SpanContextStack.innermost("run") is not None

    def agent() -> None:
        for number in range(MANY):
            SpanContextStack.enter(a_span(number))
        total = sum(calls(lambda: copy_context().run(child)) for _ in range(200))
        assert total / 200 < 60
        assert SpanContextStack.peek() == str(MANY - 1)

    Context().run(agent)


# The end of many spans


@pytest.mark.parametrize("way", ["run", "finish", "client"])
async def test_leaving_with_many_open_spans_gives_other_tasks_their_turns(way: str) -> None:
    most = 0

    async def watch(client: PrefactorCoreClient) -> None:
        """The number of operations between two turns of another task."""
        nonlocal most
        while True:
            before = client.statistics().accepted
            await anyio.lowlevel.checkpoint()
            most = max(most, client.statistics().accepted - before)

    async def agent(client: PrefactorCoreClient, tasks: TaskGroup) -> None:
        if way == "run":
            async with client.agent_instance(**AGENT) as run:
                copy_context().run(open_many, run)
                tasks.start_soon(watch, client)
                await anyio.lowlevel.checkpoint()
        else:
            run = await client.create_agent_instance(**AGENT)
            copy_context().run(open_many, run)
            tasks.start_soon(watch, client)
            await anyio.lowlevel.checkpoint()
            if way == "finish":
                await run.finish()

    async with open_faulty_api() as api:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                async with open_prefactor(make_config(), asgi_app=api) as client:
                    await agent(client, tasks)
                tasks.cancel_scope.cancel()
        # Trio runs the tasks of one turn in any order.
        assert SLICE <= most <= 2 * SLICE + 2
        assert client.statistics().lost == 0
        assert not api.app.refusals  # type: ignore[attr-defined]
        stored = await stored_run(api)
        assert {span.status for span in stored.spans.values()} == {"cancelled"}


async def test_a_span_that_begins_while_its_run_ends_is_dropped_and_counted() -> None:
    async def open_late() -> None:
        accepted = before
        while accepted == before:
            await anyio.lowlevel.checkpoint()
            accepted = client.statistics().accepted
        late.append(run.create_span_nowait("agent:tool"))

    late: list[str] = []
    async with open_faulty_api() as api, anyio.create_task_group() as tasks:
        with anyio.fail_after(20):
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as run:
                    copy_context().run(open_many, run)
                    before = client.statistics().accepted
                    tasks.start_soon(open_late)
        assert len(late) == 1
        assert client.statistics().dropped == {"run_ended": 1}
        assert not api.app.refusals  # type: ignore[attr-defined]
        (stored,) = await stored_runs(api)
        assert late[0] not in stored.spans
        assert len(stored.spans) == MANY


async def test_a_cancellation_while_many_spans_end_is_raised_after_the_run_has_ended() -> None:
    async with open_faulty_api() as api:
        with anyio.fail_after(20):
            async with open_prefactor(make_config(), asgi_app=api) as client:
                with anyio.CancelScope() as scope:
                    async with client.agent_instance(**AGENT) as run:
                        copy_context().run(open_many, run)
                        scope.cancel()
                assert run.ended
                assert scope.cancelled_caught
        assert client.statistics().lost == 0
        (stored,) = await stored_runs(api)
        assert stored.status == "complete"
        assert {span.status for span in stored.spans.values()} == {"cancelled"}


def test_a_native_cancellation_does_not_replace_the_agents_own_error() -> None:
    async def agent() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                with pytest.raises(ZeroDivisionError):
                    async with client.agent_instance(**AGENT) as run:
                        copy_context().run(open_many, run)
                        task.cancel()
                        raise ZeroDivisionError
                assert run.ended
                assert task.cancelling() == 1
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.sleep(0)
                task.uncancel()
            assert client.statistics().lost == 0

    asyncio.run(agent())
