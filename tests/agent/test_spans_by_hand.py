"""A span that one callback begins and another one ends; a span that is finished by its id."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from support.harness import AGENT, make_config, open_faulty_api, recording, stored_run

from prefactor_core import (
    ClientNotInitializedError,
    PrefactorCoreError,
    PrefactorValueError,
    SpanContext,
    SpanContextStack,
    SpanNotFoundError,
    current_span,
    open_prefactor,
)
from prefactor_core.span_types import LLMCall, LLMResult, TokenUsage, standard_types


async def test_a_span_begins_in_one_task_and_ends_in_another_or_in_a_thread() -> None:
    spans = dict[str, SpanContext[Any]]()

    async def begin(name: str) -> None:
        spans[name] = r.instance.span(name, payload={"name": name}).begin()

    async def end(name: str) -> None:
        spans[name].end(result={"ended": name})

    async with recording() as r:
        for step in (begin, end):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step, "agent:run")
                tasks.start_soon(step, "agent:llm")
        await anyio.to_thread.run_sync(
            lambda: spans.update(t=r.instance.span("agent:tool").begin())
        )
        with ThreadPoolExecutor(1) as pool:
            pool.submit(spans["t"].end).result(10)
    assert sorted(span.name for span in r.run.roots) == ["agent:llm", "agent:run", "agent:tool"]
    assert {span.status for span in r.run.spans.values()} == {"complete"}
    stored = r.run.named("agent:llm")
    assert (stored.payload, stored.result) == ({"name": "agent:llm"}, {"ended": "agent:llm"})
    assert stored.id == spans["agent:llm"].id


async def test_a_span_begun_by_hand_is_never_the_current_one() -> None:
    async with recording() as r:
        run = r.instance.span("agent:run").begin()
        assert run.is_open
        assert current_span() is None
        assert SpanContextStack.is_empty()
        with r.instance.span("agent:tool"):
            pass
        r.instance.span("agent:llm", run.id).begin().end()
        run.end()
        assert SpanContextStack.is_empty()
    assert r.run.shape == (
        "complete",
        [
            ("agent:run", "complete", [("agent:llm", "complete", [])]),
            ("agent:tool", "complete", []),
        ],
    )


async def test_its_parent_is_the_innermost_span_of_the_calling_context() -> None:
    async with recording() as r:
        with r.instance.span("agent:run") as run:
            llm = r.instance.span("agent:llm").begin()
            assert current_span() is run
        assert llm.is_open
        llm.end()
    assert r.run.shape == ("complete", [("agent:run", "complete", [("agent:llm", "complete", [])])])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), "failed"),
        (KeyboardInterrupt(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (ExceptionGroup("several", [ValueError("no")]), "failed"),
    ],
)
async def test_an_error_ends_it_as_it_ends_a_block(error: BaseException, status: str) -> None:
    async with recording() as r:
        r.instance.span("agent:tool").begin().end(result={"tried": 2}, error=error)
        with pytest.raises(type(error)), r.instance.span("agent:llm") as block:
            block.set_result({"tried": 2})
            raise error
    tool, llm = r.run.named("agent:tool"), r.run.named("agent:llm")
    assert tool.status == llm.status == status
    assert tool.result["tried"] == 2
    assert ("error" in tool.result) == (status == "failed")
    if status == "failed":
        for key in ("type", "message"):
            assert tool.result["error"][key] == llm.result["error"][key]


async def test_the_cancellation_of_a_task_ends_it_as_cancelled() -> None:
    async with recording() as r:
        span = r.instance.span("agent:tool").begin()
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as cancelled:
                span.end(error=cancelled)
                raise
    assert r.run.shape == ("complete", [("agent:tool", "cancelled", [])])
    assert not r.run.named("agent:tool").result


@pytest.mark.parametrize("outcome", ["complete", "failed", "cancelled"])
async def test_an_outcome_that_is_given_counts_whatever_the_error(outcome: Any) -> None:
    async with recording() as r:
        r.instance.span("agent:llm").begin().end(outcome)
        r.instance.span("agent:tool").begin().end(outcome, error=ValueError("no"))
    assert r.run.named("agent:llm").status == r.run.named("agent:tool").status == outcome
    assert not r.run.named("agent:llm").result
    assert r.run.named("agent:tool").result["error"]["message"] == "no"


async def test_only_the_first_end_counts() -> None:
    async with recording() as r:
        span = r.instance.span("agent:tool").begin()
        span.end("failed", {"n": 1})
        span.end("complete", {"n": 2})
        span.end(error=ValueError("late"))
        await span.complete({"n": 3})
        span.cancel_nowait()
    assert r.run.shape == ("complete", [("agent:tool", "failed", [])])
    assert r.run.named("agent:tool").result == {"n": 1}


async def test_of_two_threads_that_end_it_at_once_one_counts() -> None:
    async with recording() as r:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(50):
                span, both = r.instance.span("agent:tool").begin(), threading.Barrier(2)

                def end(n: int, span: Any = span, both: threading.Barrier = both) -> None:
                    both.wait(10)
                    span.end("failed" if n else "complete", {"n": n})

                ends = [pool.submit(end, n) for n in (0, 1)]
                for ended in ends:
                    await anyio.to_thread.run_sync(ended.result, 10)
    assert len(r.run.spans) == 50
    for stored in r.run.spans.values():
        assert stored.status == ("failed" if stored.result["n"] else "complete")


async def test_the_result_of_a_class_is_merged_and_fills_in_the_payload() -> None:
    async with recording(schema_registry=standard_types()) as r:
        llm = r.instance.span(LLMCall(model="small-1", prompt="Hello")).begin()
        llm.set_result(LLMResult(response="Hi", finish_reason="stop"))
        llm.end(result=LLMResult(token_usage=TokenUsage(prompt_tokens=3)))
    stored = r.run.named("agent:llm_call")
    assert stored.payload["token_usage"]["prompt_tokens"] == 3
    assert stored.result["response"] == "Hi"


async def test_start_reports_a_span_that_was_begun() -> None:
    async with recording(queue={"batch_window": 0.0}) as r:
        span = r.instance.span("agent:tool").begin()
        at = datetime.now(UTC) + timedelta(seconds=1)
        span.start_nowait({"n": 1}, started_at=at)
        await r.client.flush()
        (stored,) = (await stored_run(r.api)).roots
        assert (stored.status, stored.payload) == ("active", {"n": 1})
        with pytest.raises(PrefactorValueError, match="before the start"):
            span.end(timestamp=at - timedelta(seconds=5))
        assert span.is_open
        span.end(timestamp=at + timedelta(seconds=1))
    stored = r.run.named("agent:tool")
    assert stored.started_at is not None
    assert datetime.fromisoformat(stored.started_at) == at
    assert stored.finished_at is not None
    assert datetime.fromisoformat(stored.finished_at) == at + timedelta(seconds=1)


async def test_an_end_without_a_begin_is_a_span_of_that_moment() -> None:
    async with recording() as r:
        with r.instance.span("agent:run") as run:
            r.instance.span("agent:llm").end(result={"n": 1})
            r.instance.span("agent:tool").end(error=ValueError("no"))
            assert current_span() is run
    names = [(span.name, span.status) for span in r.run.roots[0].children]
    assert sorted(names) == [("agent:llm", "complete"), ("agent:tool", "failed")]


async def test_a_span_is_opened_once_by_a_block_or_by_hand() -> None:
    async with recording() as r:
        span = r.instance.span("agent:tool").begin()
        enterings: list[Callable[[], object]] = [span.begin, span.__enter__]
        for again in enterings:
            with pytest.raises(PrefactorCoreError, match="entered before"):
                again()
        assert span.is_open
        span.end()
        with r.instance.span("agent:llm") as block:
            with pytest.raises(PrefactorCoreError, match="entered before"):
                block.begin()
            block.end(result={"early": True})
    assert [span.status for span in r.run.roots] == ["complete", "complete"]
    assert r.run.named("agent:llm").result == {"early": True}


ENDS: dict[str, Callable[[SpanContext], object]] = {
    "end": lambda span: span.end(),
    "end as failed": lambda span: span.end("failed"),
    "end by an error": lambda span: span.end(error=ValueError("no")),
    "complete": lambda span: span.complete_nowait(),
    "fail": lambda span: span.fail_nowait(),
    "cancel": lambda span: span.cancel_nowait(),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_span_that_has_ended_is_not_begun(end: str) -> None:
    async with recording() as r:
        span = r.instance.span("agent:tool")
        ENDS[end](span)
        for _ in range(2):
            with pytest.raises(PrefactorCoreError, match="has ended before it was begun"):
                span.begin()
        # A block only runs: the run, which other code may finish, may have ended the span.
        with span:
            assert current_span() is None
    assert len(r.run.roots) == 1


async def test_misuse_of_an_end_is_a_clear_error_and_ends_nothing() -> None:
    async with recording() as r:
        span = r.instance.span("agent:tool").begin()
        with pytest.raises(PrefactorValueError, match="outcome must be one of cancelled, complete"):
            span.end(cast("Any", "error"))
        with pytest.raises(PrefactorValueError, match="error must be an exception, got str") as no:
            span.end(error=cast("Any", "secret"))
        assert "secret" not in str(no.value)
        assert span.is_open
        span.end()
    assert r.run.shape == ("complete", [("agent:tool", "complete", [])])


async def test_a_span_that_nobody_ends_ends_with_its_run_and_a_late_end_does_nothing() -> None:
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    span = instance.span("agent:tool").begin()
                    late = instance.span("agent:llm")
                span.end()
            span.end(error=ValueError("too late"))
            with pytest.raises(ClientNotInitializedError):
                late.begin()
            assert (await stored_run(api)).shape == ("complete", [("agent:tool", "cancelled", [])])
    assert client.statistics().lost == 0


async def test_a_disabled_client_takes_spans_by_hand_and_records_nothing() -> None:
    async with open_prefactor(make_config(enabled=False)) as client:
        async with client.agent_instance(**AGENT) as instance:
            span = instance.span("agent:tool").begin()
            assert span is span.begin()
            span.end("failed", {"n": 1}, error=ValueError("no"))
            instance.finish_span_nowait(instance.create_span_nowait("agent:tool"), status="failed")
    assert client.statistics().accepted == 0


# --- by the id


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
async def test_a_span_is_finished_by_its_id_with_any_outcome_and_a_typed_result(
    status: Any,
) -> None:
    result = LLMResult(response="Hi", token_usage=TokenUsage(prompt_tokens=3))
    async with recording(schema_registry=standard_types()) as r:
        for finish in (r.instance.finish_span, r.client.finish_span):
            id = await r.instance.create_span(LLMCall(model="small-1"))
            await finish(id, result, status=status)
        for finish_nowait in (r.instance.finish_span_nowait, r.client.finish_span_nowait):
            id = r.instance.create_span_nowait(LLMCall(model="small-1"))
            finish_nowait(id, result, status=status)
    assert len(r.run.roots) == 4
    for stored in r.run.roots:
        assert (stored.status, stored.result["response"]) == (status, "Hi")


async def test_another_outcome_is_refused_and_the_span_stays_open() -> None:
    async with recording() as r:
        id = await r.instance.create_span("agent:tool")
        with pytest.raises(PrefactorValueError, match="status must be one of cancelled, complete"):
            await r.instance.finish_span(id, status=cast("Any", "error"))
        await r.instance.finish_span(id, {"n": 1}, status="failed")
        with pytest.raises(SpanNotFoundError):
            await r.client.finish_span(id, status="complete")
    assert r.run.shape == ("complete", [("agent:tool", "failed", [])])
