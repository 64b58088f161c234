"""A span of an agent, from entering to the stored record."""

from __future__ import annotations

from collections.abc import Generator
from contextvars import copy_context
from datetime import UTC, datetime, timedelta

import anyio
import anyio.lowlevel
import pytest
from support.harness import (
    AGENT,
    Call,
    Recording,
    make_config,
    open_faulty_api,
    recording,
    stored_runs,
)

from prefactor_core import (
    AgentInstanceHandle,
    InstanceNotFoundError,
    OperationError,
    PrefactorCoreError,
    PrefactorValueError,
    Span,
    SpanContextStack,
    SpanNotFoundError,
    open_prefactor,
)
from prefactor_core.operations import identifiers


def utc(text: str | None) -> datetime:
    assert text is not None
    return datetime.fromisoformat(text)


async def test_a_span_that_is_only_entered_and_left_is_complete_with_its_payload() -> None:
    async with recording() as r:
        async with r.instance.span("agent:llm", payload={"model": "m"}) as span:
            span.set_result({"a": 1, "b": 1})
            span.set_result({"b": 2})
    assert r.run.shape == ("complete", [("agent:llm", "complete", [])])
    stored = r.run.named("agent:llm")
    assert stored.payload == {"model": "m"}
    assert stored.result == {"a": 1, "b": 2}
    assert stored.id == span.id


async def test_the_three_steps_are_recorded_with_their_times() -> None:
    async with recording() as r:
        async with r.instance.span("agent:llm") as span:
            entered = datetime.now(UTC)
            await anyio.sleep(0.002)
            await span.start({"prompt": "Hello"})
            await span.complete({"response": "Hi"})
            completed = datetime.now(UTC)
            await anyio.sleep(0.002)
    stored = r.run.named("agent:llm")
    assert (stored.payload, stored.result) == ({"prompt": "Hello"}, {"response": "Hi"})
    assert entered < utc(stored.started_at) <= utc(stored.finished_at) <= completed


async def test_without_start_the_time_of_entering_counts() -> None:
    async with recording() as r:
        async with r.instance.span("agent:llm"):
            entered = datetime.now(UTC)
            await anyio.sleep(0.002)
    stored = r.run.named("agent:llm")
    assert utc(stored.started_at) <= entered < utc(stored.finished_at)


async def test_a_span_works_in_synchronous_code() -> None:
    async with recording() as r:
        with r.instance.span("agent:run"), r.instance.span("agent:tool") as tool:
            tool.set_result({"sum": 3})
    assert r.run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:tool", "complete", [])])],
    )


async def test_a_body_that_raises_fails_the_span_with_its_error() -> None:
    error = ValueError("no such city")
    async with recording() as r:
        with pytest.raises(ValueError, match="no such city") as caught:
            async with r.instance.span("agent:tool") as span:
                span.set_result({"tried": 1})
                raise error
        assert caught.value is error
    stored = r.run.named("agent:tool")
    assert stored.status == "failed"
    assert stored.result["tried"] == 1
    assert stored.result["error"]["type"] == "ValueError"
    assert stored.result["error"]["message"] == "no such city"
    assert "raise error" in stored.result["error"]["stacktrace"]


async def test_a_body_that_is_cancelled_cancels_the_span() -> None:
    async with recording() as r:
        with anyio.CancelScope() as scope:
            async with r.instance.span("agent:tool", payload={"url": "slow"}):
                scope.cancel()
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    stored = r.run.named("agent:tool")
    assert (stored.status, stored.payload, stored.result) == ("cancelled", {"url": "slow"}, None)
    assert stored.started_at is not None


@pytest.mark.parametrize("way", ["complete", "fail", "cancel", "finish"])
async def test_the_first_end_counts(way: str) -> None:
    async with recording() as r:
        with pytest.raises(ValueError, match="late"):
            async with r.instance.span("agent:llm") as span:
                await span.start()
                await getattr(span, way)()
                await span.start({"too": "late"})
                await span.complete({"too": "late"})
                await span.cancel()
                raise ValueError("late")
    expected = {"fail": "failed", "cancel": "cancelled"}.get(way, "complete")
    stored = r.run.named("agent:llm")
    assert (stored.status, stored.payload, stored.result) == (expected, {}, None)
    assert r.api.names().count("agent_spans") == 1


async def test_a_step_that_is_skipped_is_recorded_as_cancelled_and_never_started() -> None:
    async with recording() as r:
        async with r.instance.span("agent:llm", payload={"query": "q"}) as span:
            await span.cancel()
    stored = r.run.named("agent:llm")
    assert (stored.status, stored.payload) == ("cancelled", {"query": "q"})
    assert stored.started_at is None


async def test_children_find_their_parent_and_siblings_share_it() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run"):
            async with r.instance.span("agent:llm"):
                pass
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_step, r.instance, "agent:tool")
    assert r.run.shape == (
        "complete",
        [
            (
                "agent:run",
                "complete",
                [("agent:llm", "complete", []), ("agent:tool", "complete", [])],
            )
        ],
    )


async def _step(instance: AgentInstanceHandle, name: str) -> None:
    async with instance.span(name):
        await anyio.lowlevel.checkpoint()


async def test_a_child_that_starts_first_starts_its_ancestors_as_of_their_entering() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run", payload={"n": 1}) as run:
            entered = datetime.now(UTC)
            async with r.instance.span("agent:llm", payload={"n": 2}):
                async with r.instance.span("agent:tool") as tool:
                    await tool.start({"n": 3})
            await run.complete()
    assert [call.body["details"]["payload"] for call in _creates(r)] == [
        {"n": 1},
        {"n": 2},
        {"n": 3},
    ]
    assert utc(r.run.named("agent:run").started_at) <= entered


def _creates(r: Recording) -> list[Call]:
    return [call for call in r.api.operations if call.name == "agent_spans"]


async def test_a_payload_that_comes_after_a_child_started_the_span_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with recording() as r:
        for _ in range(2):
            async with r.instance.span("agent:run") as run:
                async with r.instance.span("agent:tool"):
                    pass
                await run.start({"late": True})
    warnings = [rec for rec in caplog.records if rec.name == "prefactor_core.recording"]
    assert len(warnings) == 1
    assert "span(payload=...)" in warnings[0].getMessage()


async def test_an_explicit_parent_has_precedence_over_the_innermost_span() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run") as run:
            async with r.instance.span("agent:llm"):
                async with r.instance.span("agent:tool", parent_span_id=run.id):
                    pass
    run_span = r.run.named("agent:run")
    assert {child.name for child in run_span.children} == {"agent:llm", "agent:tool"}


async def test_a_span_of_another_run_is_never_the_parent() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run") as outer:
            async with r.client.agent_instance(**AGENT) as other:
                async with other.span("agent:tool"):
                    pass
                with pytest.raises(PrefactorValueError, match="another agent instance"):
                    await other.span("agent:tool", parent_span_id=outer.id).start()
    assert [run.shape for run in r.runs] == [
        ("complete", [("agent:run", "complete", [])]),
        ("complete", [("agent:tool", "complete", [])]),
    ]


async def test_spans_of_sibling_tasks_do_not_become_each_others_parents() -> None:
    async with recording() as r:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(_nested, r.instance)
    nested = ("agent:run", "complete", [("agent:tool", "complete", [])])
    assert r.run.shape == ("complete", [nested] * 5)


async def _nested(instance: AgentInstanceHandle) -> None:
    async with instance.span("agent:run"):
        await anyio.sleep(0.001)
        await _step(instance, "agent:tool")


async def test_created_spans_are_ended_by_id_from_any_task() -> None:
    async with recording() as r:
        first = await r.instance.create_span("agent:run", payload={"n": 1})
        second = await r.instance.create_span("agent:tool")
        assert SpanContextStack.get_stack() == [first, second]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.instance.finish_span, second, {"done": True})
        assert SpanContextStack.get_stack() == [first]
        await r.client.finish_span(first)
        assert SpanContextStack.is_empty()
    assert r.run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:tool", "complete", [])])],
    )
    assert r.run.named("agent:tool").result == {"done": True}


async def test_an_id_of_ones_own_is_used_and_checked() -> None:
    async with recording() as r:
        own = identifiers.generate_related(r.instance.id)
        async with r.client.span(r.instance.id, "agent:run", span_id=own) as span:
            assert span.id == own
            with pytest.raises(PrefactorValueError, match="belongs to a span that is open"):
                await r.client.span(r.instance.id, "agent:run", span_id=own).start()
        for wrong in ("custom", "0" * 32):
            with pytest.raises(PrefactorValueError, match="span_id"):
                r.client.span(r.instance.id, "agent:run", span_id=wrong)
    assert list(r.run.spans) == [own]


async def test_misuse_is_a_clear_error_at_the_call() -> None:
    async with recording() as r:
        with pytest.raises(PrefactorValueError, match="schema_name must be .* got ''"):
            r.instance.span("")
        with pytest.raises(InstanceNotFoundError, match="'instance_123' is not the id"):
            r.client.span("instance_123", "agent:llm")
        with pytest.raises(PrefactorValueError, match="parent_span_id must be .* got 'parent'"):
            await r.instance.create_span("agent:llm", parent_span_id="parent")
        with pytest.raises(SpanNotFoundError, match="'nope'"):
            await r.client.finish_span("nope")
        with pytest.raises(PrefactorValueError, match="status must be one of .* got 'done'"):
            await r.instance.finish("done")  # type: ignore[arg-type]


async def test_the_payload_can_be_changed_until_the_start() -> None:
    async with recording() as r:
        async with r.instance.span("agent:llm", payload={"a": 1}) as span:
            r.client.span_manager.update_payload(span.id, {"b": 2})
            await span.start()
            with pytest.raises(OperationError, match="has started") as caught:
                r.client.span_manager.update_payload(span.id, {"c": 3})
        assert caught.value.operation_type is not None
        assert caught.value.operation_type.name == "UPDATE_SPAN_PAYLOAD"
    assert r.run.named("agent:llm").payload == {"a": 1, "b": 2}


async def test_a_span_can_be_entered_once() -> None:
    async with recording() as r:
        span = r.instance.span("agent:run")
        await span.start({"before": "entering"})
        async with span:
            with pytest.raises(PrefactorCoreError, match="entered before"):
                async with span:
                    pytest.fail("the body must not run")
    assert r.run.shape == ("complete", [("agent:run", "complete", [])])


class _Unequal:
    """Keys that collide and raise when they are compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparing")


async def test_no_result_raises_into_the_agent() -> None:
    async with recording() as r:
        async with r.instance.span("agent:tool") as span:
            span.set_result({_Unequal(): 1})  # type: ignore[dict-item]
            span.set_result({_Unequal(): 2})  # type: ignore[dict-item]
            span.set_result("no mapping")  # type: ignore[arg-type]
            await span.complete(["neither"])  # type: ignore[arg-type]
    assert r.run.named("agent:tool").result["value"] == ["neither"]


async def test_nothing_of_an_ended_span_is_kept() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run") as run:
            for _ in range(50):
                async with r.instance.span("agent:tool", payload={"big": "x" * 1000}) as tool:
                    pass
            assert SpanContextStack.get_stack() == [run.id]
            with pytest.raises(SpanNotFoundError):
                r.client.span_manager.get_span(tool.id)
        assert SpanContextStack.is_empty()


async def test_a_span_in_a_generator_that_is_left_early_is_cancelled_and_off_the_stack() -> None:
    async with recording() as r:

        def chunks() -> Generator[int]:
            with r.instance.span("agent:llm"):
                yield from range(10)

        generator = chunks()
        assert next(generator) == 0
        generator.close()
        assert SpanContextStack.is_empty()
    assert r.run.shape == ("complete", [("agent:llm", "cancelled", [])])


async def test_a_context_refers_to_nothing_of_a_span_that_was_left_in_it() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run"):
            pass
        values = list(copy_context().values())
    assert not any(isinstance(entry, Span) for v in values if isinstance(v, tuple) for entry in v)


async def test_no_child_lies_outside_its_parent() -> None:
    async with recording() as r:
        async with r.instance.span("agent:run"):
            for _ in range(20):
                with r.instance.span("agent:tool"):
                    pass
    (run,) = r.run.roots
    times = [utc(run.started_at)]
    for child in run.children:
        times += [utc(child.started_at), utc(child.finished_at)]
    assert times == sorted(times)
    assert utc(run.finished_at) >= times[-1]


@pytest.mark.parametrize("flushed", [False, True], ids=["as one", "in two steps"])
async def test_without_payloads_a_failed_span_records_only_the_type_of_its_error(
    flushed: bool,
) -> None:
    async with recording(capture_payloads=False) as r:
        with pytest.raises(ValueError, match="secret"):
            async with r.instance.span("agent:llm", payload={"prompt": "secret"}) as span:
                span.set_result({"answer": "secret"})
                if flushed:
                    await span.start({"prompt": "secret"})
                    await r.client.flush()
                raise ValueError("secret")
    stored = r.run.named("agent:llm")
    assert (stored.status, stored.payload) == ("failed", {})
    assert stored.result == {"error": {"type": "ValueError"}}


@pytest.mark.parametrize("flushed", [False, True], ids=["as one", "in two steps"])
async def test_payload_and_result_are_redacted_and_truncated_alike(flushed: bool) -> None:
    def redact(payload: dict[str, object]) -> dict[str, object]:
        return {name: "***" if name == "key" else value for name, value in payload.items()}

    async with recording(redact=redact, max_payload_bytes=2_000) as r:
        async with r.instance.span("agent:llm", payload={"key": "k", "text": "x" * 3_000}) as span:
            if flushed:
                await span.start()
                await r.client.flush()
            span.set_result({"key": "k", "text": "y" * 3_000})
    stored = r.run.named("agent:llm")
    for fields in (stored.payload, stored.result):
        assert fields["key"] == "***"
        assert 1_000 < len(fields["text"]) < 2_000


async def test_a_result_that_is_set_before_entering_counts() -> None:
    async with recording() as r:
        span = r.instance.span("agent:llm")
        span.set_result({"a": 1, "b": 1})
        async with span:
            span.set_result({"b": 2})
    assert r.run.named("agent:llm").result == {"a": 1, "b": 2}


async def test_leaving_a_span_that_has_ended_raises_no_cancellation() -> None:
    async with recording() as r:
        left = False
        with anyio.CancelScope() as scope:
            async with r.instance.span("agent:llm") as span:
                await span.complete()
                scope.cancel()
            left = True
    assert left
    assert r.run.named("agent:llm").status == "complete"


async def test_a_run_begins_with_its_first_span_and_its_start_is_sent_before_it() -> None:
    async with recording() as r:
        other = await r.client.create_agent_instance(**AGENT)
        async with other.span("agent:llm"):
            pass
        await other.finish()
    begun = [call.name for call in r.api.operations if other.id in f"{call.path}{call.body}"]
    assert begun == ["start", "agent_spans", "finish"]
    (run,) = (run for run in r.runs if run.id == other.id)
    assert utc(run.started_at) == utc(run.named("agent:llm").started_at)


async def test_a_span_that_begins_after_its_run_is_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                run = await client.create_agent_instance(**AGENT)
                await run.finish()
                for _ in range(2):
                    async with run.span("agent:run"):
                        with run.span("agent:tool"):
                            pass
            (stored,) = await stored_runs(api)
    assert stored.shape == ("complete", [])
    assert client.statistics().dropped == {"run_ended": 4}
    assert not api.app.refusals
    warned = [record for record in caplog.records if "(run_ended)" in record.getMessage()]
    assert len(warned) == 1


@pytest.mark.parametrize("step", ["start", "entered"])
async def test_a_detached_span_is_not_the_innermost_however_it_is_opened(step: str) -> None:
    async with recording() as r:
        span = r.instance.span("agent:run").detached()
        if step == "start":
            await span.start()
        else:
            await span.__aenter__()
        assert SpanContextStack.is_empty()
        with r.instance.span("agent:tool"):
            pass
        await span.complete()
    assert [root.name for root in r.run.roots] == ["agent:run", "agent:tool"]


async def test_an_end_that_is_refused_opens_no_span() -> None:
    """Else the span would stay open, as the parent of all that follows."""
    async with recording() as r:
        for end in ("complete", "fail"):
            span = r.instance.span("agent:llm", payload={"prompt": "x"})
            with pytest.raises(PrefactorValueError, match="before the start"):
                await getattr(span, end)(timestamp=datetime(2020, 1, 1, tzinfo=UTC))
            assert not span.is_open
        with r.instance.span("agent:tool"):
            pass
        assert r.client.statistics().open_bytes == 0
    assert r.run.shape == ("complete", [("agent:tool", "complete", [])])


async def test_each_client_counts_the_payloads_of_the_spans_that_were_opened_through_it() -> None:
    """Also where a client records the parent of its span that another one has opened."""
    async with recording() as r:
        async with open_prefactor(make_config(), asgi_app=r.api) as other:
            with r.instance.span("agent:run", payload={"prompt": "x" * 1_000}):
                with other.span(r.instance.id, "agent:llm") as span:
                    span.start_nowait()
                    assert other.statistics().open_bytes == 0
                    assert r.client.statistics().open_bytes > 1_000
                await other.flush()
        assert r.client.statistics().open_bytes == 0
    assert r.run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:llm", "complete", [])])],
    )


async def test_a_payload_of_a_span_that_starts_while_it_is_read_is_refused() -> None:
    """Not lost in silence: another thread may start the span at any moment."""

    class Starts:
        def __repr__(self) -> str:
            r.client.span_manager.start(span_id)
            return "late"

    async with recording() as r:
        span_id = r.client.span_manager.prepare(r.instance.id, "agent:llm", payload={"a": 1})
        with pytest.raises(OperationError, match="has started"):
            r.client.span_manager.update_payload(span_id, {"b": Starts()})
        r.client.finish_span_nowait(span_id)
    assert r.run.named("agent:llm").payload == {"a": 1}


@pytest.mark.parametrize(
    "way", ["exit", "exit failed", "aexit", "aexit failed", "complete", "fail", "cancel", "start"]
)
async def test_a_span_that_was_never_entered_begins_when_it_is_moved_on(way: str) -> None:
    """An adapter may leave by hand what it never entered."""
    async with recording() as r:
        before = datetime.now(UTC)
        span = r.instance.span("agent:llm", payload={"prompt": "x"})
        method, _, failed = way.partition(" ")
        error = ValueError("no") if failed else None
        if method == "exit":
            span.__exit__(None if error is None else ValueError, error, None)
        elif method == "aexit":
            await span.__aexit__(None if error is None else ValueError, error, None)
        else:
            await getattr(span, method)()
            await span.complete()
        assert SpanContextStack.is_empty()
    stored = r.run.named("agent:llm")
    assert stored.payload == {"prompt": "x"}
    assert r.client.statistics().open_bytes == 0
    if way != "cancel":  # it never began
        assert stored.started_at is not None
        assert datetime.fromisoformat(stored.started_at) >= before - timedelta(seconds=1)
    expected = {"cancel": "cancelled", "fail": "failed"}.get(
        way, "failed" if failed else "complete"
    )
    assert stored.status == expected
