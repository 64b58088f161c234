"""The dialects: recorded spans of real instrumentations, and attributes by the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from support.cases import for_each
from support.tracing import Tracing, tracing

from prefactor_core.local.summaries import Template
from prefactor_core.otel.reading import _DIALECTS, read
from prefactor_core.otel.steps import add_span_types, fields_of, to_step
from prefactor_core.schema_registry import SchemaRegistry

RECORDED = Path(__file__).parent / "recorded"
NAMES = sorted(path.stem for path in RECORDED.glob("*.json"))


def replay(t: Tracing, recorded: list[dict[str, Any]], id: int | None = None) -> None:
    """Emit the recorded spans again, with their attributes when they were set."""
    spans = [entry for entry in recorded if entry["ids"][1] == id]
    for entry in spans:
        span = t.scoped(entry["scope"]).start_span(entry["name"], attributes=entry["start"])
        with trace.use_span(span):
            replay(t, recorded, entry["ids"][0])
        span.set_attributes(entry["end"])
        for name, attributes in entry["events"]:
            span.add_event(name, attributes)
        status, description = entry["status"]
        if status != "UNSET":
            span.set_status(Status(StatusCode[status], description))
        span.end()


def recorded(name: str, scenario: str) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((RECORDED / f"{name}.json").read_text())
    return found[scenario]


@pytest.mark.parametrize("name", NAMES)
async def test_a_recorded_agent_is_recorded_whole(name: str) -> None:
    async with tracing() as t:
        replay(t, recorded(name, "asked"))
    spans = [span for span in t.run.spans.values() if span.name != "otel:span"]
    assert {span.status for span in spans} == {"complete"}
    calls = [span for span in spans if span.name == "agent:llm_call"]
    assert {call.payload["model"] for call in calls} == {"small-1"}
    assert {call.payload["token_usage"]["total_tokens"] for call in calls} == {16}
    question = calls[0].payload["messages"][-1]
    assert (question["role"], question["content"]) == ("user", "How high is K2?")
    asked = calls[0].result["tool_calls"][0]
    assert (asked["name"], asked["arguments"]) == ("height", {"mountain": "K2"})
    assert calls[-1].result["response"].strip() == "8611 m"
    tool = t.run.named("agent:tool_call")
    assert tool.payload["tool"] == "height"
    if "arguments" in tool.payload:  # OpenLLMetry has no instrumentation of tools
        assert list(tool.payload["arguments"].values()) == ["K2"]
        assert "8611" in str(tool.result["output"])
    others = [span for span in t.run.spans.values() if span.name != "agent:llm_call"]
    names = [str(span.payload.get("agent", span.payload.get("name"))) for span in others]
    assert any("climber" in name for name in names)
    assert not any("token_usage" in (span.payload | (span.result or {})) for span in others)


@pytest.mark.parametrize("name", [name for name in NAMES if recorded(name, "failing")])
async def test_a_recorded_failure_is_the_error_of_its_tool(name: str) -> None:
    async with tracing() as t:
        replay(t, recorded(name, "failing"))
    tool = t.run.named("agent:tool_call")
    assert tool.status == "failed"
    assert "unknown mountain Olymp" in tool.result["error"]["message"]


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ("ValueError('unknown mountain')", "ValueError", "unknown mountain"),
        ("OSError(2, 'no mountain')", "OSError", "2, 'no mountain'"),
        ("CancelledError()", None, None),
    ],
)
async def test_an_error_that_langsmith_tells_after_it_told_that_all_is_well_fails_its_span(
    told: str, kind: str | None, message: str | None
) -> None:
    async with tracing() as t:
        span = t.scoped("langsmith").start_span("height")
        span.set_status(StatusCode.OK)
        span.set_status(StatusCode.ERROR)  # without effect
        span.record_exception(Exception(f"{told}Traceback (most recent call last):\n  here"))
        span.end()
    recorded = t.run.named("otel:span")
    if kind is None:
        assert recorded.status == "cancelled"
    else:
        assert recorded.status == "failed"
        assert recorded.result["error"] == {
            "type": kind,
            "message": message,
            "stacktrace": "Traceback (most recent call last):\n  here",
        }


async def test_a_failed_tool_without_a_message_has_its_output_as_message() -> None:
    async with tracing() as t:
        said = {"lk.function_tool.is_error": True, "lk.function_tool.output": "unknown mountain"}
        t.scoped("livekit-agents").start_span("function_tool", attributes=said).end()
    assert t.run.named("agent:tool_call").result["error"]["message"] == "unknown mountain"


class Event:
    def __init__(self, name: str, attributes: Mapping[str, object]) -> None:
        self.name, self.attributes, self.timestamp = name, attributes, 1


MESSAGE = '[{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]'
ANSWER = '[{"role": "assistant", "parts": [{"type": "text", "content": "Yes"}]}]'

# Name and scope of a span, its attributes, its events, and what is recorded of it.
CASES: list[tuple[str, str, dict[str, Any], list[Event], dict[str, Any], dict[str, Any]]] = [
    (
        "chat small-1",  # by the current conventions
        "any",
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "small-1",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.max_tokens": 100,
            "gen_ai.system_instructions": '[{"type": "text", "content": "Be brief"}]',
            "gen_ai.input.messages": MESSAGE,
            "gen_ai.output.messages": ANSWER,
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.response.model": "small-1-0125",
            "gen_ai.response.time_to_first_chunk": 0.25,
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 2,
            "gen_ai.usage.cache_read.input_tokens": 4,
            "gen_ai.usage.cache_creation.input_tokens": 1,
            "gen_ai.usage.reasoning.output_tokens": 1,
        },
        [],
        {
            "model": "small-1",
            "provider": "openai",
            "temperature": 0.5,
            "max_tokens": 100,
            "system": "Be brief",
            "messages": [{"role": "user", "content": "Hi"}],
        },
        {
            "response": "Yes",
            "finish_reason": "stop",
            "model": "small-1-0125",
            "time_to_first_token": 0.25,
            "token_usage": {
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "total_tokens": 9,
                "cache_read_tokens": 4,
                "cache_write_tokens": 1,
                "reasoning_tokens": 1,
            },
        },
    ),
    (
        "chat",  # with messages as events, as of Strands
        "strands.telemetry.tracer",
        {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small-1"},
        [
            Event("gen_ai.system.message", {"content": "Be brief"}),
            Event("gen_ai.user.message", {"content": '[{"text": "Hi"}]'}),
            Event("gen_ai.choice", {"finish_reason": "end_turn", "message": '[{"text": "Yes"}]'}),
        ],
        {
            "messages": [
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "Hi"},
            ]
        },
        {"response": "Yes", "finish_reason": "end_turn"},
    ),
    (
        "execute_tool height",
        "strands.telemetry.tracer",
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "height"},
        [
            Event("gen_ai.tool.message", {"role": "tool", "content": '{"mountain": "K2"}'}),
            Event("gen_ai.choice", {"message": '[{"text": "8611"}]'}),
        ],
        {"tool": "height", "arguments": {"mountain": "K2"}},
        {"output": "8611"},
    ),
    (
        "openai.chat",  # with indexed attributes, as of OpenLLMetry until 2025
        "opentelemetry.instrumentation.openai.v1",
        {
            "llm.request.type": "chat",
            "gen_ai.system": "OpenAI",
            "gen_ai.request.model": "small-1",
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": "Hi",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": "Be brief",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.finish_reason": "tool_calls",
            "gen_ai.completion.0.tool_calls.0.name": "height",
            "gen_ai.completion.0.tool_calls.0.arguments": '{"mountain": "K2"}',
            "llm.request.functions.0.name": "height",
            "gen_ai.usage.prompt_tokens": 7,
            "gen_ai.usage.completion_tokens": 2,
            "llm.usage.total_tokens": 10,
        },
        [],
        {
            "model": "small-1",
            "messages": [
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "Hi"},
            ],
            "tools": [{"name": "height"}],
        },
        {
            "tool_calls": [{"name": "height", "arguments": {"mountain": "K2"}}],
            "finish_reason": "tool_calls",
            "token_usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 10},
        },
    ),
    (
        "ChatCompletion",
        "openinference.instrumentation.openai",
        {
            "openinference.span.kind": "LLM",
            "llm.model_name": "small-1",
            "llm.invocation_parameters": '{"temperature": 0.5, "max_tokens": 100}',
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.contents.0.message_content.type": "text",
            "llm.input_messages.0.message.contents.0.message_content.text": "Hi",
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "call-1",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "height",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": "{}",
            "llm.tools.0.tool.json_schema": '{"name": "height"}',
            "input.value": '{"messages": []}',
            "output.value": "{}",
            "llm.token_count.prompt": 7,
            "llm.token_count.completion": 2,
            "llm.token_count.total": 9,
            "llm.token_count.prompt_details.cache_read": 4,
        },
        [],
        {
            "model": "small-1",
            "temperature": 0.5,
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"name": "height"}],
        },
        {
            "tool_calls": [{"id": "call-1", "name": "height", "arguments": {}}],
            "token_usage": {
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "total_tokens": 9,
                "cache_read_tokens": 4,
            },
        },
    ),
    (
        "retriever",
        "openinference.instrumentation.llama_index",
        {
            "openinference.span.kind": "RETRIEVER",
            "input.value": "high mountains",
            "retrieval.documents.0.document.id": "d1",
            "retrieval.documents.0.document.content": "K2",
            "retrieval.documents.0.document.score": 0.9,
        },
        [],
        {"query": "high mountains"},
        {"documents": [{"id": "d1", "text": "K2", "score": 0.9}]},
    ),
    (
        "retrieval notes",
        "some.instrumentation",
        {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.retrieval.query.text": "high mountains",
            "gen_ai.retrieval.documents": "[]",
        },
        [],
        {"query": "high mountains"},
        {"documents": []},
    ),
    (
        "retrieval notes",  # without the capture of documents
        "some.instrumentation",
        {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.retrieval.query.text": "high mountains",
        },
        [],
        {"query": "high mountains"},
        {"documents": None},
    ),
    (
        "call_llm",
        "gcp.vertex.agent",
        {
            "gen_ai.system": "gcp.vertex.agent",
            "gen_ai.request.model": "small-1",
            "gcp.vertex.agent.llm_request": '{"model": "small-1", "contents": [{"role": "user", '
            '"parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"function_call": '
            '{"id": "1", "name": "height", "args": {"mountain": "K2"}}}]}]}',
            "gcp.vertex.agent.llm_response": '{"content": {"role": "model", "parts": '
            '[{"text": "Yes"}]}}',
            "gen_ai.usage.input_tokens": 7,
        },
        [],
        {
            "model": "small-1",
            "messages": [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"id": "1", "name": "height", "arguments": {"mountain": "K2"}}],
                },
            ],
        },
        {"response": "Yes"},
    ),
    (
        "llm_node",  # around the request to the model
        "livekit-agents",
        {
            "gen_ai.request.model": "small-1",
            "lk.chat_ctx": '{"items": [{"type": "message", "role": "user", "content": ["Hi"]}, '
            '{"type": "function_call", "call_id": "1", "name": "height", "arguments": "{}"}, '
            '{"type": "function_call_output", "call_id": "1", "output": "8611"}]}',
            "lk.response.text": "Yes",
        },
        [],
        {
            "name": "llm_node",
            "input": [
                {"type": "message", "role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"type": "function_call", "name": "height", "arguments": {}, "id": "1"}
                    ],
                },
                {
                    "type": "function_call_output",
                    "call_id": "1",
                    "role": "tool",
                    "content": "8611",
                },
            ],
        },
        {"output": "Yes"},
    ),
    (
        "asked {question}",
        "logfire",
        {"logfire.msg": "asked How high?", "question": "How high?"},
        [],
        {"name": "asked How high?"},
        {},
    ),
    (
        "execute_tool height",
        "gcp.vertex.agent",
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "height",
            "gcp.vertex.agent.tool_call_args": '{"mountain": "K2"}',
            "gcp.vertex.agent.tool_response": '{"result": "8611"}',
        },
        [],
        {"tool": "height", "arguments": {"mountain": "K2"}},
        {"output": {"result": "8611"}},
    ),
    (
        "function_tool",
        "livekit-agents",
        {
            "lk.function_tool.name": "height",
            "lk.function_tool.id": "call-1",
            "lk.pii.function_tool.arguments": '{"mountain": "K2"}',
            "lk.pii.function_tool.output": "8611",
        },
        [],
        {"tool": "height", "call_id": "call-1", "arguments": {"mountain": "K2"}},
        {"output": "8611"},
    ),
    (
        "ChatOpenAI",
        "langsmith",
        {
            "langsmith.span.kind": "llm",
            "langsmith.metadata.ls_provider": "openai",
            "gen_ai.system": "langchain",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "small-1",
            "gen_ai.prompt": '{"messages": [[{"lc": 1, "type": "constructor", "id": ["Human"], '
            '"kwargs": {"type": "human", "content": "Hi"}}]]}',
            "gen_ai.completion": '{"generations": [[{"text": "Yes", "generation_info": '
            '{"finish_reason": "stop"}, "message": {"lc": 1, "type": "constructor", '
            '"id": ["AI"], "kwargs": {"type": "ai", "content": "Yes"}}}]]}',
        },
        [],
        {"provider": "openai", "messages": [{"role": "user", "type": "human", "content": "Hi"}]},
        {"response": "Yes", "finish_reason": "stop"},
    ),
    (
        "ChatOpenAI",  # of OpenAI's client
        "langsmith",
        {
            "langsmith.span.kind": "llm",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "small-1",
            "gen_ai.prompt": '{"messages": [{"role": "user", "content": "Hi"}]}',
            "gen_ai.completion": '{"choices": [{"finish_reason": "stop", "message": '
            '{"role": "assistant", "content": "Yes"}}]}',
        },
        [],
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"response": "Yes", "finish_reason": "stop"},
    ),
    (
        "height.tool",
        "traceloop.tracer",
        {
            "traceloop.span.kind": "tool",
            "traceloop.entity.name": "height",
            "traceloop.entity.input": '{"args": ["K2"]}',
            "traceloop.entity.output": '"8611"',
        },
        [],
        {"tool": "height", "arguments": {"args": ["K2"]}},
        {"output": "8611"},
    ),
]


@for_each(
    "name, scope, attributes, events, payload, result", CASES, ids=[str(i) for i in range(99)]
)
def test_the_tables_give_payload_and_result(
    name: str,
    scope: str,
    attributes: dict[str, Any],
    events: list[Event],
    payload: dict[str, Any],
    result: dict[str, Any],
) -> None:
    params, outcome = to_step(name, read(name, scope, attributes, events))
    given, found = fields_of(params), fields_of(outcome)
    assert {key: given.get(key) for key in payload} == payload
    assert {key: found.get(key) for key in result} == result


def test_no_attribute_stands_in_two_tables() -> None:
    keys = [key for dialect in _DIALECTS for key in (*dialect.facts, *dialect.kinds)]
    assert len(keys) == len(set(keys))


def test_what_no_table_has_stays_among_the_attributes() -> None:
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.usage.input_tokens": 3, "my": 1}
    facts = read("tool", "any", attributes)
    to_step("tool", facts)
    assert facts.rest() == {"gen_ai.usage.input_tokens": 3, "my": 1}


def test_a_step_of_no_standard_type_is_summed_up_by_its_name_and_its_error() -> None:
    registry = SchemaRegistry()
    add_span_types(registry)
    types = registry.to_agent_schema_version("v1")["span_type_schemas"]
    (template,) = [Template(each["template"]) for each in types if each["name"] == "otel:span"]
    step = {"name": "GET /", "input": {"a": 1}}
    assert template.render(step, {"output": 1}) == "GET /"
    error = {"type": "ValueError", "message": "bad 1"}
    assert template.render(step, {"error": error}) == "GET / ✕ ValueError: bad 1"
    assert template.render(step, {"error": {"type": "HTTP 500"}}) == "GET / ✕ HTTP 500"
    assert len(template.render({"name": "x" * 90_000}, {}) or "") == 500
