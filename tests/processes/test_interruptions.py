"""Exceptions from outside in the middle of a step of recording: it is whole, or it was not.

A signal handler may raise between any two calls; where the stack ends, any call raises.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from contextvars import copy_context

import anyio
import pytest
from support.harness import AGENT, Recording, recording
from support.interruptions import in_the_middle

from prefactor_core import AgentInstanceHandle, SpanContextStack, SpanNotFoundError
from prefactor_core.local import LocalPrefactor

PAYLOAD = {"prompt": "what is it?", "tags": ["a", "b"]}
RESULT = {"answer": "it is that"}


class Alarm(BaseException):
    """What a signal handler raises."""


def sound() -> None:
    raise Alarm


# Steps: what an agent does. What it ends by hand it ends again if that is interrupted.


def end(function: Callable[[], None]) -> None:
    try:
        function()
    except BaseException:
        function()
        raise


def a_block(run: AgentInstanceHandle) -> None:
    with run.span("agent:llm", payload=PAYLOAD) as span:
        span.set_result(RESULT)


def a_block_that_starts(run: AgentInstanceHandle) -> None:
    with run.span("agent:llm") as span:
        span.start_nowait(PAYLOAD)
        span.complete_nowait(RESULT)


def a_block_in_a_block(run: AgentInstanceHandle) -> None:
    with run.span("agent:run", payload=PAYLOAD), run.span("agent:llm", payload=PAYLOAD) as span:
        span.set_result(RESULT)


def a_block_that_raises(run: AgentInstanceHandle) -> None:
    with pytest.raises(ZeroDivisionError), run.span("agent:llm"):
        raise ZeroDivisionError


def an_async_block_that_raises(run: AgentInstanceHandle) -> None:
    async def block() -> None:
        async with run.span("agent:llm"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block().send(None)  # it waits for nothing


def a_block_that_is_skipped(run: AgentInstanceHandle) -> None:
    with run.span("agent:llm", payload=PAYLOAD) as span:
        span.cancel_nowait()


def steps_by_hand(run: AgentInstanceHandle) -> None:
    span = run.span("agent:llm", payload=PAYLOAD)
    try:
        span.start_nowait()
    finally:
        end(lambda: span.complete_nowait(RESULT))


def steps_by_id(run: AgentInstanceHandle) -> None:
    span_id = run.create_span_nowait("agent:llm", payload=PAYLOAD)
    with suppress(SpanNotFoundError):  # the first call has done it, or will have
        end(lambda: run.finish_span_nowait(span_id, RESULT))


def a_traced_function(run: AgentInstanceHandle) -> None:
    @run.traced("agent:llm")
    def ask(prompt: str) -> str:
        return prompt

    ask("what is it?")


STEPS = [
    a_block,
    a_block_that_starts,
    a_block_in_a_block,
    a_block_that_raises,
    an_async_block_that_raises,
    a_block_that_is_skipped,
    a_traced_function,
    steps_by_hand,
    steps_by_id,
]


def interrupted(step: Callable[[], object], at: int) -> bool:
    """Whether the alarm came; what else may come of it is that the agent goes on."""
    try:
        with in_the_middle(at, sound):
            step()
    except Alarm:
        return True
    return False


def record_after(run: AgentInstanceHandle) -> None:
    with run.span("agent:tool"):
        pass
    assert SpanContextStack.is_empty()


def check(r: Recording, runs: int = 1) -> None:
    """Nothing of it was refused, nothing is open, and all counts balance."""
    assert isinstance(r.api.app, LocalPrefactor)
    assert r.api.app.refusals == {}
    statistics = r.client.statistics()
    assert statistics.accepted == statistics.delivered
    assert (statistics.pending, statistics.pending_bytes, statistics.open_bytes) == (0, 0, 0)
    spans = [span for run in r.runs for span in run.spans.values()]
    assert {run.status for run in r.runs} == {"complete"}
    assert {span.status for span in spans} <= {"complete", "failed", "cancelled"}
    after = [span for span in spans if span.name == "agent:tool"]
    assert {(span.status, span.parent_id) for span in after} == {("complete", None)}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_step_that_is_interrupted_anywhere_leaves_nothing_half_recorded(
    step: Callable[[AgentInstanceHandle], None],
) -> None:
    def agent() -> int:
        at = 1
        while interrupted(lambda: step(r.instance), at):
            record_after(r.instance)
            at += 1
        return at

    async with recording() as r:
        a_block(r.instance)  # it prepares what the process prepares once
        places = copy_context().run(agent)
    assert places > 50
    check(r)
    after = [span for span in r.run.spans.values() if span.name == "agent:tool"]
    assert len(after) == places - 1


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_step_that_is_reported_at_once_is_interrupted_anywhere(
    step: Callable[[AgentInstanceHandle], None],
) -> None:
    def agent() -> None:
        at = 1
        while interrupted(lambda: step(r.instance), at):
            record_after(r.instance)
            at += 1

    async with recording(queue={"report_after": 0}) as r:
        a_block(r.instance)
        copy_context().run(agent)
    check(r)


async def test_a_block_that_waits_for_its_place_keeps_none_if_it_is_interrupted_anywhere() -> None:
    def block() -> None:
        async def agent() -> None:
            async with r.instance.span("agent:llm", payload=PAYLOAD):
                pass

        with closing(agent()) as steps, suppress(StopIteration):
            steps.send(None)  # there is room

    def agent() -> int:
        at = 1
        while interrupted(block, at):
            record_after(r.instance)
            at += 1
        return at

    room = 500
    async with recording(queue={"when_full": "wait", "max_pending_operations": room}) as r:
        a_block(r.instance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were not begun
            assert copy_context().run(agent) > 50
        assert r.instance.recorder.buffer.waiters == 0
        await r.client.flush()
        for _ in range(room):
            r.instance.span("agent:tool").complete_nowait()
    check(r)


@pytest.mark.virtual_time
async def test_spans_are_reported_after_an_opening_that_was_interrupted_anywhere() -> None:
    async with recording(queue={"report_after": 0.004, "batch_window": 0}) as r:
        a_block(r.instance)
        at, goes_on = 1, True
        while goes_on:
            await anyio.sleep(0.02)  # what reports long spans sleeps now
            goes_on = copy_context().run(interrupted, lambda: a_block(r.instance), at)
            with r.instance.span("agent:tool"):
                accepted = r.client.statistics().accepted
                await anyio.sleep(0.02)
                assert r.client.statistics().accepted > accepted
            at += 1
    assert at > 50
    check(r)


async def test_a_step_interrupted_anywhere_in_a_thread_leaves_nothing_half_recorded() -> None:
    def agent() -> None:
        at = 1
        while interrupted(lambda: a_block_in_a_block(r.instance), at):
            record_after(r.instance)
            at += 1

    async with recording() as r:
        thread = threading.Thread(target=agent)
        thread.start()
        thread.join(20)
    check(r)


async def test_the_first_span_of_a_run_is_interrupted_anywhere() -> None:
    async with recording() as r:
        at, goes_on = 1, True
        while goes_on:
            run = await r.client.create_agent_instance(**AGENT)
            goes_on = copy_context().run(interrupted, lambda run=run: a_block(run), at)
            record_after(run)
            run.finish_nowait()
            at += 1
    check(r)
    assert len(r.runs) == at


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_step_with_an_exhausted_stack_leaves_nothing_half_recorded(
    step: Callable[[AgentInstanceHandle], None],
) -> None:
    def agent() -> int:
        failed = 0
        limit = sys.getrecursionlimit()
        for room in range(120):
            try:
                sys.setrecursionlimit(20 + room)
                step(r.instance)
            except RecursionError:
                failed += 1
            finally:
                sys.setrecursionlimit(limit)
            record_after(r.instance)
        return failed

    async with recording() as r:
        failed = copy_context().run(agent)
    assert failed > 3
    check(r)
