"""PrefactorSpanProcessor: trees, runs, times, outcomes, and all that must not happen."""

from __future__ import annotations

import logging
import math
from datetime import datetime
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from support.harness import AGENT, make_config, open_faulty_api, stored_runs, terminate
from support.tracing import make_provider, tracing

from prefactor_core import (
    PrefactorTerminatedError,
    SchemaRegistry,
    current_instance,
    open_prefactor,
)
from prefactor_core.otel import PrefactorSpanProcessor
from prefactor_core.span_types import standard_types
from prefactor_core.testing import open_recording

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small-1"}
TOKENS = {"gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 3}
TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "height"}
AGENT_SPAN = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Climber"}


async def test_a_trace_becomes_a_run_with_the_same_tree() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("invoke_agent", attributes=AGENT_SPAN):
            with t.tracer.start_as_current_span("chat", attributes=CHAT) as chat:
                chat.set_attributes(TOKENS)
            with t.tracer.start_as_current_span("execute_tool", attributes=TOOL):
                with t.tracer.start_as_current_span("GET", attributes={"http.route": "/"}):
                    pass
    assert t.run.shape == (
        "complete",
        [
            (
                "agent:run",
                "complete",
                [
                    ("agent:llm_call", "complete", []),
                    ("agent:tool_call", "complete", [("otel:span", "complete", [])]),
                ],
            )
        ],
    )
    chat = t.run.named("agent:llm_call")
    assert chat.payload["model"] == "small-1"
    assert chat.payload["inputs"] == {"model": "small-1"}
    assert chat.payload["token_usage"]["total_tokens"] == 15


async def test_a_root_inside_of_a_run_is_a_step_of_it_below_the_current_span() -> None:
    async with tracing() as t:
        async with t.client.agent_instance(**AGENT) as instance:
            with (
                instance.span("agent:run"),
                t.tracer.start_as_current_span("chat", attributes=CHAT),
            ):
                pass
            with t.tracer.start_as_current_span("chat", attributes=CHAT):
                pass
    assert t.run.shape == (
        "complete",
        [
            ("agent:run", "complete", [("agent:llm_call", "complete", [])]),
            ("agent:llm_call", "complete", []),
        ],
    )


async def test_roots_one_after_the_other_are_a_run_each() -> None:
    async with tracing() as t:
        for _ in range(3):
            with t.tracer.start_as_current_span("chat", attributes=CHAT):
                assert current_instance() is not None
            assert current_instance() is None
    assert [run.shape for run in t.runs] == 3 * [("complete", [("agent:llm_call", "complete", [])])]


async def test_a_run_takes_its_version_from_the_service() -> None:
    with open_recording() as recording:
        async with recording.open() as client:
            provider = make_provider()
            provider.add_span_processor(PrefactorSpanProcessor(client, "tested-agent"))
            provider.get_tracer("tests").start_span("chat", attributes=CHAT).end()
        assert recording.run.agent_version["name"] == "Tested service"
        assert recording.run.agent_version["external_identifier"] == "7"
        assert recording.run.flags == []


async def test_spans_keep_the_times_of_opentelemetry() -> None:
    start, second = 1_700_000_000_000_000_000, 1_000_000_000
    async with tracing() as t:
        root = t.tracer.start_span("work", start_time=start)
        with trace.use_span(root):
            child = t.tracer.start_span("chat", attributes=CHAT, start_time=start + second)
            child.end(start + 2 * second)
        root.end(start + 3 * second)
    (stored,) = t.run.roots
    times = [stored.started_at, stored.finished_at]
    times += [stored.children[0].started_at, stored.children[0].finished_at]
    seconds = [datetime.fromisoformat(str(time)).timestamp() - start / 1e9 for time in times]
    assert seconds == [0, 3, 1, 2]


async def test_an_end_before_the_start_is_the_start() -> None:
    async with tracing() as t:
        t.tracer.start_span("chat", attributes=CHAT).end(1)
    (stored,) = t.run.roots
    assert stored.started_at == stored.finished_at


async def test_a_span_that_outlives_its_root_is_recorded_whole() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("work"):
            stream = t.tracer.start_span("chat", attributes=CHAT)
        stream.set_attributes(TOKENS)
        stream.end()
    assert t.run.shape == (
        "complete",
        [("otel:span", "complete", [("agent:llm_call", "complete", [])])],
    )
    assert t.run.named("agent:llm_call").payload["token_usage"]["prompt_tokens"] == 12


async def test_a_span_that_starts_after_its_parent_has_ended_keeps_its_place() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("work"):
            first = t.tracer.start_span("tool", attributes=TOOL)
            first.end()
            with trace.use_span(first):
                t.tracer.start_span("chat", attributes=CHAT).end()
    (root,) = t.run.roots
    assert root.children[0].children[0].name == "agent:llm_call"


async def test_a_span_whose_run_is_over_begins_another_run() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("work") as work:
            pass
        with trace.use_span(work):
            t.tracer.start_span("chat", attributes=CHAT).end()
    assert len(t.runs) == 2


async def test_an_error_is_the_result_of_a_failed_span_and_its_run_has_failed() -> None:
    async with tracing() as t:
        with pytest.raises(ValueError, match="too high"):
            with t.tracer.start_as_current_span("work"):
                with t.tracer.start_as_current_span("tool", attributes=TOOL):
                    raise ValueError("too high")
    assert t.run.status == "failed"
    error = t.run.named("agent:tool_call").result["error"]
    assert (error["type"], error["message"]) == ("ValueError", "too high")
    assert "test_processor" in error["stacktrace"]


async def test_a_status_without_an_exception_is_an_error_too() -> None:
    async with tracing() as t:
        span = t.tracer.start_span("chat", attributes={**CHAT, "error.type": "timeout"})
        span.set_status(Status(StatusCode.ERROR, "no answer"))
        span.end()
    result = t.run.named("agent:llm_call").result
    assert result["error"] == {"type": "timeout", "message": "no answer"}


async def test_a_cancelled_span_is_cancelled_and_its_run_too() -> None:
    async with tracing() as t:
        with anyio.CancelScope() as scope:
            with t.tracer.start_as_current_span("work"):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
    assert t.run.shape == ("cancelled", [("otel:span", "cancelled", [])])


async def test_a_span_in_the_handling_of_a_cancellation_is_complete() -> None:
    async with tracing() as t:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.lowlevel.checkpoint()
            finally:
                t.tracer.start_span("chat", attributes=CHAT).end()
    assert t.run.status == "complete"


async def test_an_exception_that_was_handled_is_an_event() -> None:
    async with tracing() as t:
        span = t.tracer.start_span("work")
        span.record_exception(ValueError("first try"))
        span.end()
    (stored,) = t.run.roots
    assert stored.status == "complete"
    (event,) = stored.result["events"]
    assert event["attributes"]["exception.message"] == "first try"


async def test_events_links_and_other_attributes_are_kept() -> None:
    linked = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
    async with tracing() as t:
        span = t.tracer.start_span(
            "work", attributes={"mine": 1}, links=[Link(linked, {"why": "x"})]
        )
        span.add_event("cache_miss", {"key": "k"})
        span.end()
    (stored,) = t.run.roots
    assert stored.payload["name"] == "work"
    assert stored.payload["attributes"] == {"mine": 1}
    context = span.get_span_context()
    assert stored.payload["otel"] == {
        "name": "work",
        "scope": "tests",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "links": [{"trace_id": f"{1:032x}", "span_id": f"{2:016x}", "attributes": {"why": "x"}}],
    }
    assert stored.result["events"][0]["name"] == "cache_miss"


async def test_what_a_span_says_after_its_create_is_in_its_result() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN | {"early": 1}) as agent:
            with t.tracer.start_as_current_span("tool", attributes=TOOL):
                pass
            agent.set_attributes({"gen_ai.input.messages": '[{"role":"user","content":"Hi"}]'})
            agent.set_attributes({"late": 2, **TOKENS})
    stored = t.run.named("agent:run")
    assert stored.payload["attributes"] == {"early": 1}
    assert stored.result["input"] == [{"role": "user", "content": "Hi"}]
    # An agent's tokens are those of its calls.
    assert stored.result["attributes"] == {"late": 2, **TOKENS}
    assert "token_usage" not in stored.result


async def test_a_parent_is_read_again_when_its_first_child_ends() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("agent") as agent:
            agent.set_attributes(AGENT_SPAN)
            with t.tracer.start_as_current_span("tool", attributes=TOOL):
                pass
    (root,) = t.run.roots
    assert root.name == "agent:run"
    assert root.payload["agent"] == "Climber"


@pytest.mark.parametrize(
    ("name", "attributes", "span_type", "field"),
    [
        ("execute_tool height", TOOL, "agent:tool_call", "tool"),
        ("invoke_agent height", {"gen_ai.agent.name": "height"}, "agent:run", "agent"),
    ],
)
async def test_a_span_that_says_what_it_is_after_its_first_child_is_read_by_its_name(
    name: str, attributes: dict[str, str], span_type: str, field: str
) -> None:
    async with tracing() as t:
        with t.scoped("gcp.vertex.agent").start_as_current_span(name) as step:
            t.tracer.start_span("inside").end()
            step.set_attributes(attributes)
    (root,) = t.run.roots
    assert root.name == span_type
    assert root.payload[field] == "height"
    assert field not in (root.result or {})


@pytest.mark.virtual_time
async def test_an_open_span_is_reported_with_what_it_says_by_then() -> None:
    async with tracing(queue={"report_after": 1.0}) as t:
        with t.tracer.start_as_current_span("agent") as agent:
            agent.set_attributes(AGENT_SPAN)
            await anyio.sleep(5)
            (run,) = await stored_runs(t.api)
            (root,) = run.roots
            assert (root.name, root.status) == ("agent:run", "active")
            assert root.payload["agent"] == "Climber"


@pytest.mark.virtual_time
async def test_a_call_of_a_model_is_recorded_with_its_tokens_however_long_it_takes() -> None:
    async with tracing(queue={"report_after": 1.0}) as t:
        with t.tracer.start_as_current_span("work"):
            with t.tracer.start_as_current_span("chat") as chat:
                chat.set_attributes(CHAT)
                await anyio.sleep(5)
                chat.set_attributes(TOKENS)
    assert t.run.named("agent:llm_call").payload["token_usage"]["completion_tokens"] == 3


async def test_the_tokens_of_a_call_inside_of_a_call_count_once() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("ChatModel", attributes={**CHAT, **TOKENS}):
            with t.tracer.start_as_current_span("chat", attributes={**CHAT, **TOKENS}):
                pass
    (outer,) = t.run.roots
    assert "token_usage" not in outer.payload
    assert outer.payload["attributes"] == TOKENS
    assert outer.children[0].payload["token_usage"]["total_tokens"] == 15


async def test_a_tree_of_an_instrumentation_that_says_all_at_the_end_is_recorded_then() -> None:
    async with tracing() as t:
        late = t.scoped("openinference.instrumentation.langchain")
        with late.start_as_current_span("Agent") as agent:
            with late.start_as_current_span("tools") as chain:
                with late.start_as_current_span("height") as tool:
                    with t.tracer.start_as_current_span("inside"):
                        pass
                    tool.set_attributes({"openinference.span.kind": "TOOL", "tool.name": "height"})
                chain.set_attributes({"openinference.span.kind": "CHAIN"})
            agent.set_attributes({"openinference.span.kind": "AGENT", "input.value": "Which?"})
    assert t.run.shape == (
        "complete",
        [
            (
                "agent:run",
                "complete",
                [
                    (
                        "otel:span",
                        "complete",
                        [("agent:tool_call", "complete", [("otel:span", "complete", [])])],
                    )
                ],
            )
        ],
    )
    assert t.run.roots[0].payload["input"] == "Which?"


async def test_spans_that_wait_for_their_parent_are_bounded() -> None:
    async with tracing(loses=True, drain_timeout=0) as t:
        t.api.away = True
        late = t.scoped("openinference.instrumentation.langchain")
        with late.start_as_current_span("Agent"):
            for _ in range(1_000):
                t.tracer.start_span("tool", attributes=TOOL).end()
            assert t.client.statistics().accepted == 2  # the run and its start
            t.tracer.start_span("tool", attributes=TOOL).end()
            assert t.client.statistics().accepted > 1_000
        assert t.client.instance_manager.open_instances() == []


async def test_what_waits_for_its_parent_keeps_its_outcome_when_the_run_ends_first() -> None:
    async with tracing() as t:
        late = t.scoped("openinference.instrumentation.langchain")
        async with t.client.agent_instance(**AGENT):
            with trace.use_span(late.start_span("Agent")):
                with t.tracer.start_as_current_span("chat", attributes=CHAT) as chat:
                    chat.set_attributes(TOKENS)
    assert t.run.shape == (
        "complete",
        [("otel:span", "cancelled", [("agent:llm_call", "complete", [])])],
    )
    assert t.run.named("agent:llm_call").payload["token_usage"]["total_tokens"] == 15


async def test_plumbing_opens_no_run_and_is_recorded_inside_of_one() -> None:
    async with tracing() as t:
        with t.tracer.start_as_current_span("GET /", attributes={"http.request.method": "GET"}):
            with t.tracer.start_as_current_span("select", attributes={"db.system": "sqlite"}):
                pass
            with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
                with t.tracer.start_as_current_span("select", attributes={"db.system": "sqlite"}):
                    pass
    assert t.run.shape == (
        "complete",
        [("agent:run", "complete", [("otel:span", "complete", [])])],
    )


class OnlyRecording(Sampler):
    """Records without sampling: processors see the spans, and exporters do not."""

    def should_sample(self, *args: Any, **options: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "only recording"


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, OnlyRecording()])
async def test_spans_that_are_not_sampled_are_not_recorded(sampler: Sampler) -> None:
    async with tracing(provider=make_provider(sampler=sampler)) as t:
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
            with t.tracer.start_as_current_span("chat", attributes=CHAT):
                pass
    assert t.runs == []


async def test_a_terminated_run_stops_what_is_instrumented() -> None:
    async with tracing() as t:
        with pytest.raises(PrefactorTerminatedError, match="over budget"):
            with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
                with t.tracer.start_as_current_span("tool", attributes=TOOL):
                    pass
                await t.client.flush()
                (run,) = await stored_runs(t.api)
                await terminate(t.api, run.id)
                for _ in range(100):
                    with t.tracer.start_as_current_span("tool", attributes=TOOL):
                        await t.client.flush()
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
            pass  # another run
    first, second = t.runs
    assert first.status == "terminated"
    assert {span.status for span in first.spans.values()} <= {"complete", "cancelled"}
    assert second.status == "complete"


async def test_spans_may_start_and_end_in_any_thread() -> None:
    def work(number: int) -> None:
        with t.tracer.start_as_current_span("agent", attributes=AGENT_SPAN):
            for _ in range(number):
                with t.tracer.start_as_current_span("chat", attributes=CHAT):
                    pass

    async with tracing() as t:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(anyio.to_thread.run_sync, work, number)
    assert sorted(len(run.roots[0].children) for run in t.runs) == [0, 1, 2, 3, 4]
    assert {run.status for run in t.runs} == {"complete"}


async def test_a_span_may_end_in_another_thread_than_it_started() -> None:
    async with tracing() as t:
        span = t.tracer.start_span("chat", attributes=CHAT)
        await anyio.to_thread.run_sync(span.end)
    assert t.run.shape == ("complete", [("agent:llm_call", "complete", [])])


async def test_spans_that_never_end_are_bounded_and_counted() -> None:
    async with tracing(loses=True, drain_timeout=0) as t:
        t.api.away = True
        with t.tracer.start_as_current_span("work"):
            spans = [t.tracer.start_span("step") for _ in range(10_001)]
        assert t.processor.spans_given_up == 2
        for span in spans:
            span.end()
        assert t.client.instance_manager.open_instances() == []


async def test_what_is_open_when_the_client_closes_ends_with_it() -> None:
    async with tracing() as t:
        root = t.tracer.start_span("agent", attributes=AGENT_SPAN)
        with trace.use_span(root):
            child = t.tracer.start_span("chat", attributes=CHAT)
    child.end()
    root.end()
    assert t.run.shape[1] == [("agent:run", "cancelled", [("agent:llm_call", "cancelled", [])])]
    assert t.run.named("agent:run").payload["agent"] == "Climber"


async def test_shutdown_ends_what_is_open_and_nothing_is_recorded_after_it() -> None:
    async with tracing() as t:
        root = t.tracer.start_span("agent", attributes=AGENT_SPAN)
        with trace.use_span(root):
            child = t.tracer.start_span("chat", attributes=CHAT)
            t.provider.shutdown()
            t.tracer.start_span("chat", attributes=CHAT).end()
        child.end()
        root.end()
    assert t.run.shape == (
        "cancelled",
        [("agent:run", "cancelled", [("agent:llm_call", "cancelled", [])])],
    )
    assert t.run.named("agent:run").payload["agent"] == "Climber"
    assert t.run.named("agent:llm_call").payload["model"] == "small-1"


async def test_force_flush_waits_in_other_threads_only() -> None:
    async with tracing() as t:
        assert t.provider.force_flush()  # nothing is pending
        with t.tracer.start_as_current_span("chat", attributes=CHAT):
            pass
        assert not t.provider.force_flush()  # it cannot wait here
        assert await anyio.to_thread.run_sync(t.provider.force_flush)
        assert t.client.statistics().pending == 0
    assert t.processor.force_flush()  # the client is closed


async def test_force_flush_ends_after_its_time_when_the_api_is_away() -> None:
    async with tracing(loses=True, drain_timeout=0.1) as t:
        t.api.hanging = True
        with t.tracer.start_as_current_span("chat", attributes=CHAT):
            pass
        assert not await anyio.to_thread.run_sync(t.processor.force_flush, 50)


async def test_a_closed_client_records_nothing_and_opened_again_it_does() -> None:
    provider = make_provider()
    tracer = provider.get_tracer("tests")
    async with open_faulty_api() as api:
        client = open_prefactor(make_config(), asgi_app=api)
        provider.add_span_processor(PrefactorSpanProcessor(client, AGENT["agent_id"]))
        for _ in range(2):
            tracer.start_span("chat", attributes=CHAT).end()
            async with client:
                with tracer.start_as_current_span("chat", attributes=CHAT):
                    pass
        assert len(await stored_runs(api)) == 2


async def test_a_disabled_client_records_nothing() -> None:
    async with tracing(enabled=False) as t:
        with t.tracer.start_as_current_span("chat", attributes=CHAT):
            pass
    assert t.runs == []


def test_a_synchronous_client_records_them_as_well() -> None:
    with open_recording() as recording:
        with recording.open_sync() as client:
            provider = make_provider()
            provider.add_span_processor(PrefactorSpanProcessor(client, "tested-agent"))
            with provider.get_tracer("tests").start_as_current_span("chat", attributes=CHAT):
                pass
        assert recording.run.outline == "complete\nagent:llm_call complete"


async def test_the_span_types_are_added_and_those_of_the_program_stay() -> None:
    registry = SchemaRegistry()
    registry.register_type("agent:run", {"type": "object"}, title="Mine")
    client = open_prefactor(make_config(schema_registry=registry))
    PrefactorSpanProcessor(client)
    assert set(registry.list_schemas()) == {
        "agent:run",
        "agent:llm_call",
        "agent:tool_call",
        "agent:retrieval",
        "otel:span",
    }
    PrefactorSpanProcessor(client)  # a second one adds nothing
    assert registry.get("agent:run") == {"type": "object"}


async def test_a_client_without_a_registry_keeps_the_standard_types() -> None:
    client = open_prefactor(api_url="local::memory:")
    PrefactorSpanProcessor(client)
    assert client.config.schema_registry is not None
    types = [*standard_types().list_schemas(), "otel:span"]
    assert sorted(client.config.schema_registry.list_schemas()) == sorted(types)


async def test_a_refused_run_is_logged_and_the_agent_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with tracing(loses=True) as t:
        t.api.faults["register"] = 422
        with t.tracer.start_as_current_span("chat", attributes=CHAT):
            pass
        await t.client.flush()
    assert t.runs == []
    assert t.client.statistics().dropped["refused"] >= 1
    assert any(record.levelno >= logging.WARNING for record in caplog.records)


async def test_values_that_are_no_json_are_recorded_as_far_as_they_can_be() -> None:
    attributes = {"nan": math.nan, "bytes": b"\xff", "list": [1, 2], "deep": '{"a":' * 2000}
    async with tracing() as t:
        with t.tracer.start_as_current_span("tool", attributes={**TOOL, **attributes}):
            pass
    stored = t.run.named("agent:tool_call")
    assert stored.payload["attributes"].keys() == attributes.keys()
