"""The ready-made span types: recorded where Prefactor's open dashboard looks for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from msgspec import Struct
from support.harness import AGENT

from prefactor_core import sensitive, span_types
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    Document,
    Feedback,
    LLMCall,
    LLMResult,
    Retrieval,
    RetrievalResult,
    StepError,
    TokenUsage,
    ToolCall,
    ToolResult,
    standard_types,
)
from prefactor_core.testing import RecordedSpan, Recording

STEPS: list[tuple[Any, Any]] = [
    (
        AgentRun(input="Which mountain is higher?", agent="research", conversation_id="c1"),
        AgentRunResult(output={"answer": "Olympus Mons"}),
    ),
    (
        LLMCall(
            model="small-1",
            messages=[{"role": "user", "content": "Hello"}],
            system="Be brief.",
            tools=[{"name": "search"}],
            provider="acme",
            temperature=0.5,
            top_p=1.0,
            max_tokens=100,
        ),
        LLMResult(
            response="Hi there",
            tool_calls=[{"name": "search", "arguments": {}}],
            finish_reason="stop",
            token_usage=TokenUsage(prompt_tokens=12, completion_tokens=5, cache_read_tokens=2),
            cost=0.25,
            model="small-1-2026",
            response_id="r1",
            time_to_first_token=0.1,
        ),
    ),
    (
        ToolCall(tool="search", arguments={"query": "Olympus"}, call_id="t1"),
        ToolResult(output=["Olympus Mons"]),
    ),
    (
        Retrieval(query="Olympus", source="atlas", top_k=3),
        RetrievalResult(documents=[Document(id="d1", text="…", score=0.5, metadata={"page": 3})]),
    ),
    (Feedback(rating="up", comment="Nice"), None),
]


async def record(prefactor: Recording, *steps: tuple[Any, Any]) -> list[RecordedSpan]:
    registry = standard_types()
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        for params, result in steps:
            async with instance.span(params) as span:
                if result is not None:
                    span.set_result(result)
    return prefactor.run.spans


async def test_every_type_is_recorded_as_its_schemas_say(prefactor: Recording) -> None:
    spans = await record(prefactor, *STEPS)
    names = [span.schema_name for span in spans]
    assert names == standard_types().list_schemas()
    version = standard_types().to_agent_schema_version("v1")
    schemas = {each["name"]: each for each in version["span_type_schemas"]}
    for span in spans:
        jsonschema.validate(span.payload, schemas[span.schema_name]["params_schema"])
        jsonschema.validate(span.result or {}, schemas[span.schema_name].get("result_schema", {}))


async def test_what_is_left_out_is_not_recorded(prefactor: Recording) -> None:
    tool, call = await record(
        prefactor,
        (ToolCall(tool="search"), ToolResult()),
        (LLMCall(model="small-1"), LLMResult(response="Hi there")),
    )
    assert (tool.payload, tool.result) == ({"tool": "search"}, None)
    assert call.payload == {"model": "small-1", "inputs": {"model": "small-1"}}
    assert call.result == {"response": "Hi there"}


# As the dashboard does it: https://github.com/prefactordev/prefactor-open-dashboard
READ: dict[str, Callable[[RecordedSpan], object]] = {
    "model": lambda span: span.payload["inputs"]["model"],
    "prompt tokens": lambda span: span.payload["token_usage"]["prompt_tokens"],
    "completion tokens": lambda span: span.payload["token_usage"]["completion_tokens"],
    "total tokens": lambda span: span.payload["token_usage"]["total_tokens"],
    "finish reason": lambda span: (span.result or {})["ai"]["finishReason"],
}


async def test_the_dashboard_finds_model_tokens_finish_reason_and_rating(
    prefactor: Recording,
) -> None:
    call, feedback = await record(prefactor, STEPS[1], STEPS[4])
    assert {name: read(call) for name, read in READ.items()} == {
        "model": "small-1",
        "prompt tokens": 12,
        "completion tokens": 5,
        "total tokens": 17,
        "finish reason": "stop",
    }
    assert feedback.payload["inputs"]["rating"] == "up"


async def test_a_step_that_raises_is_recorded_with_an_error_as_its_schema_says(
    prefactor: Recording,
) -> None:
    registry = standard_types()
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        for params, _ in STEPS:
            with pytest.raises(ZeroDivisionError), instance.span(params):
                raise ZeroDivisionError("by nothing")
        with instance.span(LLMCall(model="small-1")) as span:
            span.fail_nowait(LLMResult(error=StepError(type="RateLimit")))
    version = registry.to_agent_schema_version("v1")
    schemas = {each["name"]: each.get("result_schema", {}) for each in version["span_type_schemas"]}
    for span in prefactor.run.spans:
        assert span.status == "failed"
        assert span.result is not None
        assert span.result["error"]["type"] in ("ZeroDivisionError", "RateLimit")
        jsonschema.validate(span.result, schemas[span.schema_name])


USER = {"role": "user", "content": "Which is higher?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Which "}, {"text": "is it?"}]}
SUMMARIES: list[tuple[Any, Any, str]] = [
    (AgentRun(input="Hi", agent="a"), AgentRunResult(output="Ho"), "a: Hi → Ho"),
    (
        AgentRun(input={"question": "q", "n": 3}),
        AgentRunResult(output=[1, 2]),
        "question: q, n: 3 → 1, 2",
    ),
    (AgentRun(input=["a", "b", "c", "d"]), AgentRunResult(output={}), "a, b, c, … (4)"),
    (AgentRun(input=None, agent="a"), AgentRunResult(output="Ho"), "a → Ho"),
    (AgentRun(input={}, agent="a"), AgentRunResult(), "a"),
    (LLMCall(model="m", prompt="Hi"), LLMResult(response="Ho"), "m: Hi → Ho"),
    (LLMCall(model="m", prompt="p" * 9_000), LLMResult(), f"m: {'p' * 497}..."),
    (LLMCall(model="m"), LLMResult(response="Ho"), "m → Ho"),
    (
        LLMCall(model="m", messages=[{"role": "system", "content": "s"}, USER, {"role": "tool"}]),
        LLMResult(tool_calls=[{"name": "search"}, {"function": {"name": "add"}}]),
        "m: Which is higher? → calls search, add",
    ),
    (LLMCall(model="m", messages=[USER, PARTS]), LLMResult(), "m: Which is it?"),
    (LLMCall(model="m", messages=[{"role": "tool"}]), LLMResult(), "m: 1 message"),
    (LLMCall(model="m", messages=[USER] * 900), LLMResult(), "m: 900 messages"),
    (ToolCall(tool="t"), ToolResult(output=0), "t → 0"),
    (ToolCall(tool="t"), ToolResult(output=False), "t → false"),
    (ToolCall(tool="t"), ToolResult(output="x" * 90_000), f"t → {'x' * 497}..."),
    (
        ToolCall(tool="t", arguments={"q": "x", "of": {"a": 1}}),
        ToolResult(),
        "t(q: x, of: a: 1, …)",
    ),
    (ToolCall(tool="t", arguments={}), ToolResult(output=[]), "t"),
    (ToolCall(tool="t"), ToolResult(output=[{"title": "T"}, {}]), "t → title: T, …, none"),
    (
        ToolCall(tool="t", arguments={"a": 1, "args": [], "k": {}}),
        ToolResult(),
        "t(a: 1, args: none, k: none)",
    ),
    (
        ToolCall(tool="t", arguments={"a": "", "b": None, "c": False, "d": 0}),
        ToolResult(),
        "t(a: none, b: none, c: false, … (4))",
    ),
    (
        ToolCall(tool="t", arguments={"a": [1, 2], "b": {"c": {"d": 1}}, "e": {"f": None}}),
        ToolResult(),
        "t(a: …, b: c: …, e: …)",
    ),
    (
        ToolCall(tool="t", arguments={"a": "x" * 120_000, "b": 1}),
        ToolResult(output=[{"c": "y" * 120_000}]),
        f"t(a: {'x' * 497}..., b: 1) → c: {'y' * 497}..., …",
    ),
    (ToolCall(tool="t"), ToolResult(output=list(range(5_000))), "t → 0, 1, 2, … (5000)"),
    (Retrieval(query="q"), RetrievalResult(documents=[Document(id="d")]), "q → 1 document"),
    (Retrieval(query="q" * 90_000), RetrievalResult(documents=[]), f"{'q' * 497}... → 0 documents"),
    (Retrieval(query="q"), RetrievalResult(), "q"),
    (ToolCall(tool="t"), ToolResult(error=StepError(type="E", message="m")), "t ✕ E: m"),
    (Retrieval(query="q"), RetrievalResult(error=StepError(type="E")), "q ✕ E"),
    (LLMCall(model="m", prompt="p"), LLMResult(error=StepError(type="E")), "m: p ✕ E"),
    (AgentRun(input="i"), AgentRunResult(error=StepError(type="E")), "i ✕ E"),
    (Feedback(rating="up", comment="Nice"), None, "up: Nice"),
    (Feedback(rating="up", comment="n" * 90_000), None, f"up: {'n' * 497}..."),
]


async def test_summaries_say_something(prefactor: Recording) -> None:
    spans = await record(prefactor, *((params, result) for params, result, _ in SUMMARIES))
    assert [span.summary for span in spans] == [summary for _, _, summary in SUMMARIES]


async def test_a_summary_of_a_step_that_raised_says_its_error(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=standard_types()) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with pytest.raises(KeyError), instance.span(ToolCall(tool="t", arguments={"q": 1})):
            raise KeyError("k")
        with instance.span(ToolCall(tool="t")) as span:
            span.fail_nowait({"error": "no answer"})
    summaries = [span.summary for span in prefactor.run.spans]
    assert summaries == ["t(q: 1) ✕ KeyError: 'k'", "t ✕ no answer"]


async def test_texts_may_be_marked_as_sensitive(prefactor: Recording) -> None:
    call = LLMCall(model="small-1", prompt=sensitive("Ada", "personal_identifiers"))
    (span,) = await record(prefactor, (call, LLMResult(response=sensitive("1815", "minors_data"))))
    assert span.payload["prompt"]["value"] == "Ada"
    assert span.result is not None
    assert span.result["response"]["labels"] == ["minors_data"]


def test_the_total_of_tokens_is_filled_in_and_one_that_is_given_is_kept() -> None:
    assert TokenUsage(prompt_tokens=3, completion_tokens=4).total_tokens == 7
    assert TokenUsage(prompt_tokens=3, total_tokens=9).total_tokens == 9


def test_each_registry_is_its_own() -> None:
    mine = standard_types()
    mine.register_type("mine", {"type": "object"})
    assert "mine" not in standard_types().list_schemas()
    assert mine.name_of(ToolCall(tool="search")) == "agent:tool_call"


def test_the_table_of_opentelemetry_names_fields_that_there_are() -> None:
    _, document = (span_types.__doc__ or "").split("OpenTelemetry's semantic conventions")
    table = re.findall(r"^``.*?  ", document, re.MULTILINE)
    assert len(table) > 25
    for row in table:
        cls: Any = None
        for name in re.findall(r"``([\w.:]+)``", row):
            if name.startswith("agent:"):
                assert name in standard_types().list_schemas()
                continue
            head, _, field = name.rpartition(".")
            cls = getattr(span_types, head) if head else cls
            assert issubclass(cls, Struct)
            assert field in cls.__struct_fields__, name
