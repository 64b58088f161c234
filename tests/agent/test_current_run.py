"""``prefactor_core.span``: a span of the current run, and nothing outside of one."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import AGENT, recording

import prefactor_core
from prefactor_core import (
    PrefactorTerminatedError,
    PrefactorValueError,
    SpanContext,
    current_span,
    span,
    traced,
)
from prefactor_core.span_types import LLMCall, LLMResult, ToolCall
from prefactor_core.testing import Recording

LOGGER = "prefactor_core.agent.span"


async def test_a_span_belongs_to_the_run_and_the_span_of_its_context(prefactor: Recording) -> None:
    @traced
    def search() -> None:
        with span(LLMCall(model="small-1", prompt="Hello")) as call:
            call.set_result(LLMResult(response="Hi"))

    async with prefactor.open() as client, client.agent_instance(**AGENT) as instance:
        async with prefactor_core.span("agent:run", payload={"input": "Why?"}) as outer:
            assert current_span() is outer
            search()
            with span(ToolCall(tool="t"), parent_span_id=outer.id):
                pass
            async with client.agent_instance(**AGENT) as other:
                with span("agent:tool_call", payload={"tool": "t"}) as inner:
                    assert inner.instance is other
        assert outer.instance is instance
    outlines = [run.outline.splitlines() for run in prefactor.runs]
    assert outlines == [
        [
            "complete",
            "agent:run complete",
            "  agent:tool_call complete",
            "    agent:llm_call complete",
            "  agent:tool_call complete",
        ],
        ["complete", "agent:tool_call complete"],
    ]
    assert [run.flags for run in prefactor.runs] == [[], []]


async def _use(step: SpanContext[Any]) -> None:
    """Everything that a span can do."""
    now = datetime.now(UTC)
    await step.start({"n": 1}, started_at=now)
    step.start_nowait()
    step.set_result({"n": 1})
    await step.complete({"n": 2}, timestamp=now)
    await step.fail({"n": 2})
    await step.cancel()
    await step.finish()
    step.complete_nowait()
    step.fail_nowait()
    step.cancel_nowait()
    assert step.detached() is step
    assert not step.is_open
    assert not step.capture.enabled


async def test_outside_of_a_run_a_span_works_and_does_nothing() -> None:
    async with span("agent:run") as first:
        await _use(first)
        assert current_span() is None
    with pytest.raises(ZeroDivisionError), span(LLMCall(model="small-1")) as second:
        second.set_result(LLMResult(response="Hi"))
        raise ZeroDivisionError
    assert first.id != second.id
    assert first.id == first.id
    assert repr(first) == "<SpanContext outside of a run>"


async def test_inside_of_a_span_outside_of_a_run_a_run_is_as_anywhere() -> None:
    async with recording() as r:
        pass
    with span("agent:run"):
        async with recording() as r:
            assert current_span() is None
            with span("agent:tool") as step:
                assert current_span() is step
    assert r.run.shape == ("complete", [("agent:tool", "complete", [])])


def test_outside_of_a_run_one_line_of_the_log_says_so_for_each_type(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    for _ in range(2):
        for step in ("test:once", LLMCall(model="small-1")):
            with span(step):  # type: ignore[call-overload]
                pass
    logged = [(each.levelname, each.getMessage()) for each in caplog.records]
    # The class may have been logged by another test of this process.
    assert [level for level, message in logged if "'test:once' span" in message] == ["INFO"]
    assert all("is opened outside of a run" in message for _, message in logged)
    assert len(logged) <= 2


async def test_after_the_client_has_closed_a_span_does_nothing() -> None:
    async with recording() as r:
        run = await r.client.create_agent_instance(**AGENT)
        await run.start()
        await run.finish()
    with span("agent:tool") as step:
        await _use(step)


async def test_misuse_and_the_end_of_a_run_are_errors_as_ever() -> None:
    async with recording() as r:
        with pytest.raises(PrefactorValueError, match="schema_name must be the name"):
            span("")
        run = await r.client.create_agent_instance(**AGENT)
        await run.start()
        r.client.instance_manager.identity(run.id).terminate("enough")
        with pytest.raises(PrefactorTerminatedError, match="enough"):
            span("agent:tool")
        await run.finish()


def test_with_a_disabled_client_a_span_is_the_disabled_one() -> None:
    with prefactor_core.open_prefactor_sync(enabled=False) as client:
        with client.agent_instance(**AGENT), span("agent:tool") as step:
            assert current_span() is step


async def test_tasks_have_the_spans_of_their_own_runs() -> None:
    async def work(name: str) -> None:
        async with r.client.agent_instance(**AGENT):
            async with span("agent:tool", payload={"name": name}):
                await anyio.lowlevel.checkpoint()

    async with recording() as r:
        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(work, str(n))
    assert sorted(len(run.spans) for run in r.runs) == [0, 1, 1, 1]
