"""Traced functions as steps of the standard types: what is recorded, which always fits."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw
from support.harness import AGENT

from prefactor_core import PrefactorValueError, SchemaRegistry, redact_keys, sensitive, traced
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
)
from prefactor_core.testing import RecordedSpan, Recording, open_recording

LOGGER = "prefactor_core.agent.traced"


def spans_of(call: Callable[[], object], **options: Any) -> list[RecordedSpan]:
    """What is recorded of a call in a run, all of which fits."""
    with open_recording() as recording:
        with recording.open_sync(**options) as client, client.agent_instance(**AGENT):
            call()
        assert recording.run.flags == []
        return recording.run.spans


def span_of(call: Callable[[], object], **options: Any) -> RecordedSpan:
    (span,) = spans_of(call, **options)
    return span


# A tool


async def test_a_bare_decorator_records_the_call_of_a_tool(prefactor: Recording) -> None:
    @traced
    async def search(query: str, limit: int = 3) -> list[str]:
        return [query] * limit

    @traced()
    def count(*words: str, **options: int) -> int:
        return len(words)

    @traced(exclude=("key",), capture_result=False)
    def pay(amount: int, key: str) -> str:
        return "receipt"

    async with prefactor.open() as client, client.agent_instance(**AGENT):
        assert await search("x", limit=2) == ["x", "x"]
        assert count("a", "b", least=1) == 2
        assert pay(3, "secret") == "receipt"
    assert {span.schema_name for span in prefactor.run.spans} == {"agent:tool_call"}
    assert [(span.payload, span.result) for span in prefactor.run.spans] == [
        ({"tool": "search", "arguments": {"query": "x", "limit": 2}}, {"output": ["x", "x"]}),
        (
            {"tool": "count", "arguments": {"words": ["a", "b"], "options": {"least": 1}}},
            {"output": 2},
        ),
        ({"tool": "pay", "arguments": {"amount": 3}}, None),
    ]
    assert prefactor.run.flags == []


class Toolbox:
    @traced
    def method(self, n: int) -> int:
        return n

    @classmethod
    @traced
    def of_the_class(cls, n: int) -> int:
        return n

    @traced
    @staticmethod
    def static(n: int) -> int:
        return n

    @traced
    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    def __call__(self, n: int) -> int:
        return n


def test_a_tool_has_the_name_of_its_function() -> None:
    box = Toolbox()
    functions: list[tuple[Callable[[int], object], str]] = [
        (box.method, "method"),
        (Toolbox.of_the_class, "of_the_class"),
        (Toolbox.static, "static"),
        (traced(lambda n: n), "<lambda>"),
        (traced(partial(partial(box.__call__))), "__call__"),
        (traced(box), "Toolbox"),
        (traced(ToolCall, tool="other")(lambda n: n), "other"),
    ]
    for function, name in functions:
        span = span_of(lambda function=function: function(1))  # type: ignore[misc]
        assert span.payload == {"tool": name, "arguments": {"n": 1}}
        assert span.result == {"output": 1}
    span = span_of(lambda: list(box.items(3)))
    assert (span.payload["tool"], span.result) == ("items", {"output": [0, 1, 2]})


def test_parameters_of_a_bare_tool_are_arguments_whatever_they_are_called() -> None:
    @traced
    def sharpen(tool: str, arguments: int) -> str:
        return tool

    @traced
    def wrap(arguments: dict[str, int]) -> None: ...

    assert span_of(lambda: sharpen("axe", 2)).payload == {
        "tool": "sharpen",
        "arguments": {"tool": "axe", "arguments": 2},
    }
    assert span_of(lambda: wrap({"n": 1})).payload["arguments"] == {"arguments": {"n": 1}}


def test_a_function_that_calls_tools_by_name_gives_their_names() -> None:
    @traced(ToolCall)
    def dispatch(tool: str, arguments: object, call_id: str | None = None) -> ToolResult:
        return ToolResult(output=tool.upper())

    @traced(ToolCall)
    def run(tool: str, n: int, **arguments: int) -> dict[str, object]:
        return {"output": n}

    span = span_of(lambda: dispatch("search", {"query": "x"}, "c1"))
    assert span.payload == {"tool": "search", "arguments": {"query": "x"}, "call_id": "c1"}
    assert span.result == {"output": "SEARCH"}
    span = span_of(lambda: dispatch("search", "x"))
    assert span.payload == {"tool": "search", "arguments": {"value": "x"}}
    span = span_of(lambda: run("search", 1, m=2))
    assert span.payload == {"tool": "search", "arguments": {"n": 1, "arguments": {"m": 2}}}
    assert span.result == {"output": 1}


# A call of a model


def test_a_call_of_a_model_has_its_fields_from_the_arguments() -> None:
    @traced(LLMCall, provider="acme")
    def ask(client: object, model: str, messages: list[Any], **options: Any) -> LLMResult:
        usage = TokenUsage(prompt_tokens=3, completion_tokens=4)
        return LLMResult(response="Hi", finish_reason="stop", token_usage=usage)

    messages = [{"role": "user", "content": "Hello"}]
    span = span_of(lambda: ask(object(), "small-1", messages, temperature=0.5, stream=False))
    assert span.schema_name == "agent:llm_call"
    assert span.payload == {
        "model": "small-1",
        "inputs": {"model": "small-1"},
        "messages": messages,
        "provider": "acme",
        "temperature": 0.5,
        "token_usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
    assert span.result == {
        "response": "Hi",
        "finish_reason": "stop",
        "ai": {"finishReason": "stop"},
        "token_usage": span.payload["token_usage"],
    }


def test_a_given_field_is_for_calls_without_the_argument() -> None:
    @traced(LLMCall, model="small-1")
    def ask(prompt: str, model: str | None = None) -> str:
        return prompt.upper()

    assert span_of(lambda: ask("hi")).payload["model"] == "small-1"
    span = span_of(lambda: ask("hi", "large-1"))
    assert (span.payload["model"], span.payload["prompt"]) == ("large-1", "hi")
    assert span.result == {"response": "HI"}


RESULTS: list[tuple[object, object]] = [
    ("text", {"response": "text"}),
    (None, None),
    (["a", "b"], {"response": '["a","b"]'}),
    ({"response": "text", "cost": 0.5}, {"response": "text", "cost": 0.5}),
    ({"response": "text", "cost": None}, {"response": "text"}),
    ({"finish_reason": "stop"}, {"finish_reason": "stop", "ai": {"finishReason": "stop"}}),
    ({"response": 5}, {"response": '{"response":5}'}),
    ({"answer": "text"}, {"response": '{"answer":"text"}'}),
    ({}, {"response": "{}"}),
    (LLMResult(response="text", cost=0.5), {"response": "text", "cost": 0.5}),
    (
        LLMResult(response=["a"], cost="much", error={"type": "E"}),  # type: ignore[arg-type]
        {"response": '["a"]', "error": {"type": "E"}},
    ),
    (ToolResult(output=3), {"response": '{"output":3}'}),
]


def test_what_a_function_returns_is_the_result_of_its_type() -> None:
    @traced(LLMCall, model="m")
    def ask(value: object) -> object:
        return value

    for value, result in RESULTS:
        assert span_of(lambda value=value: ask(value)).result == result  # type: ignore[misc]


async def test_the_stream_of_a_model_is_its_response(prefactor: Recording) -> None:
    @traced(LLMCall, model="m")
    async def stream(prompt: str) -> AsyncIterator[object]:
        for word in prompt.split():
            yield word

    @traced(LLMCall, model="m")
    def numbers() -> Iterator[int]:
        yield 1

    @traced(LLMCall, model="m", reduce=lambda items: LLMResult(response="".join(items), cost=1))
    def reduced(prompt: str) -> Iterator[str]:
        yield from prompt

    @traced(LLMCall, model="m", reduce=lambda items: 1 // 0)
    def irreducible(prompt: str) -> Iterator[str]:
        yield from prompt

    async with prefactor.open() as client, client.agent_instance(**AGENT):
        assert [item async for item in stream("a b")] == ["a", "b"]
        assert list(numbers()) == [1]
        assert list(reduced("ab")) == list(irreducible("ab")) == ["a", "b"]
    assert [span.result for span in prefactor.run.spans] == [
        {"response": "ab"},
        {"response": "[1]"},
        {"response": "ab", "cost": 1},
        {"response": "ab"},
    ]
    assert prefactor.run.flags == []


# A retrieval, and an agent


@dataclass
class Found:
    page_content: str
    score: float = 0.5


DOCUMENTS: list[tuple[object, object]] = [
    ("a", [{"text": "a"}]),
    (["a", 3, None], [{"text": "a"}, {"text": "3"}, {"text": "null"}]),
    ([Document(id="d", text="t")], [{"id": "d", "text": "t"}]),
    ({"id": 5, "score": "high", "more": 1}, [{"id": "5", "more": 1}]),
    ([Found("c")], [{"page_content": "c", "score": 0.5}]),
    (RetrievalResult(documents=[Document(text="t")]), [{"text": "t"}]),
    ({"documents": [{"text": "t"}]}, [{"text": "t"}]),
]


def test_what_a_retrieval_returns_becomes_documents() -> None:
    @traced(Retrieval, source="atlas")
    def search(query: str, value: object, top_k: int = 2) -> object:
        return value

    for value, documents in DOCUMENTS:
        span = span_of(lambda value=value: search("q", value))  # type: ignore[misc]
        assert span.schema_name == "agent:retrieval"
        assert span.payload == {"query": "q", "source": "atlas", "top_k": 2}
        assert span.result == {"documents": documents}


def test_an_agent_has_its_arguments_as_input() -> None:
    @traced(AgentRun, agent="research")
    def work(question: str, conversation_id: int) -> AgentRunResult:
        return AgentRunResult(output=[question])

    @traced(AgentRun)
    def on(input: object) -> object:
        return {"answer": input}

    span = span_of(lambda: work("Why?", 7))
    assert span.payload == {
        "agent": "research",
        "conversation_id": "7",
        "input": {"question": "Why?"},
    }
    assert span.result == {"output": ["Why?"]}
    span = span_of(lambda: on("Why?"))
    assert (span.payload, span.result) == ({"input": "Why?"}, {"output": {"answer": "Why?"}})


# Around


async def test_registries_without_the_type_and_with_another_name_for_it(
    prefactor: Recording,
) -> None:
    @traced(LLMCall, model="m")
    def ask(prompt: str) -> dict[str, object]:
        return {"response": "Hi", "token_usage": {"prompt_tokens": 1}}

    renamed = SchemaRegistry()
    renamed.register_type("mine:llm", params=LLMCall)
    for registry in (SchemaRegistry(), renamed):
        async with prefactor.open(schema_registry=registry) as client:
            async with client.agent_instance(**AGENT):
                ask("Hello")
    spans = [span for run in prefactor.runs for span in run.spans]
    assert [span.schema_name for span in spans] == ["agent:llm_call", "mine:llm"]
    assert {span.payload["token_usage"]["prompt_tokens"] for span in spans} == {1}


def test_secrets_stay_out_of_what_becomes_a_text() -> None:
    @traced(LLMCall, model="m")
    def ask(prompt: object, system: object) -> object:
        return {"password": "hunter2", "name": sensitive("Ada", "personal_identifiers")}

    said = sensitive(1815, "minors_data")
    span = span_of(lambda: ask({"api_key": "hunter2"}, said), redact=redact_keys())
    assert span.payload["prompt"] == '{"api_key":"[redacted]"}'
    assert span.payload["system"] == "[minors_data]"
    assert span.result == {"response": '{"password":"[redacted]","name":"[personal_identifiers]"}'}


def test_what_fits_in_no_form_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    @traced(LLMCall, model="m")
    def ask(temperature: object, max_tokens: object, top_p: object) -> None: ...

    caplog.set_level(logging.WARNING, LOGGER)
    for _ in range(2):
        span = span_of(lambda: ask("hot", True, 1))
        assert span.payload == {"model": "m", "inputs": {"model": "m"}, "top_p": 1}
    (message,) = caplog.messages
    assert message.endswith("is not recorded: temperature, max_tokens")


def test_arguments_that_do_not_fit_the_function_raise_its_own_error() -> None:
    def look_up(query: str) -> str:
        return query

    for params in (AgentRun, Retrieval, ToolCall):
        with open_recording() as recording:
            with recording.open_sync() as client, client.agent_instance(**AGENT):
                with pytest.raises(TypeError, match="missing 1 required"):
                    traced(params)(look_up)()  # type: ignore[call-arg]
            assert recording.run.flags == []
            assert recording.run.spans[0].status == "failed"


@pytest.mark.parametrize("options", [{"capture_payloads": False}, {"max_payload_bytes": 1_024}])
def test_what_is_not_kept_or_too_large_is_recorded_as_ever(options: dict[str, Any]) -> None:
    @traced(LLMCall, model="m")
    def ask(prompt: object, messages: object) -> object:
        return messages

    with open_recording() as recording:
        with recording.open_sync(**options) as client, client.agent_instance(**AGENT):
            ask(["x" * 3_000], list(range(50_000)))
        assert recording.run.spans[0].status == "complete"


def _ask(prompt: str) -> str:
    return prompt


def _anything(**options: object) -> None: ...


def test_misuse_is_a_clear_error_at_decoration() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: traced(LLMCall)(_ask),
            r"needs a model, and _ask has no .*@traced\(LLMCall, model=",
        ),
        (lambda: traced(LLMCall, model=None)(_ask), "needs a model"),
        (lambda: traced(Retrieval)(_ask), "Retrieval needs a query"),
        (lambda: traced(Retrieval, exclude=("query",))(lambda query: None), "needs a query"),
        (lambda: traced(LLMCall, modle="m")(_ask), "no field 'modle' to be given: use model, pr"),
        (lambda: traced(LLMCall, inputs={})(_ask), "no field 'inputs'"),
        (lambda: traced(Feedback), "got the class Feedback"),
        (lambda: traced(StepError), "AgentRun, LLMCall, Retrieval or ToolCall, got the class S"),  # type: ignore[arg-type]
    ]
    for decorate, message in cases:
        with pytest.raises(PrefactorValueError, match=message):
            decorate()
    assert traced(LLMCall)(_anything)
    assert traced(Retrieval, query="q")(_ask)


# What is recorded fits


RESULTS_OF: dict[Any, Any] = {
    AgentRun: AgentRunResult,
    LLMCall: LLMResult,
    Retrieval: RetrievalResult,
    ToolCall: ToolResult,
}
TEXTS = st.text(max_size=5)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**40)
    | st.floats()
    | TEXTS
    | st.binary(max_size=3)
    | st.sampled_from([object(), Raw(b"[1]"), Raw(b"no json"), len, ToolCall, 1j, ValueError("e")])
    | st.builds(sensitive, st.integers() | TEXTS | st.booleans(), st.just("minors_data"))
)
KNOWN = {
    *(name for cls in RESULTS_OF.values() for name in cls.__struct_fields__),
    *(*Document.__struct_fields__, *TokenUsage.__struct_fields__, *StepError.__struct_fields__),
    *("$sensitive", "value", "labels", "password"),
}
KEYS = TEXTS | st.integers() | st.sampled_from(sorted(KNOWN))


def _deeper(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    named = st.dictionaries(KEYS, values, max_size=4)
    return st.lists(values, max_size=3) | named | st.tuples(values) | named.map(_Object)


class _Object:
    """Has what it is given as attributes."""

    def __init__(self, fields: dict[object, object]) -> None:
        self.fields = fields


VALUES = st.recursive(SCALARS, _deeper, max_leaves=6)


def _structs(cls: Any) -> st.SearchStrategy[object]:
    fields = st.dictionaries(st.sampled_from(cls.__struct_fields__), VALUES, max_size=4)
    return fields.map(lambda given: cls(**given))


RETURNED = VALUES | st.sampled_from(list(RESULTS_OF.values())).flatmap(_structs)
NAMES = sorted({"other", *(name for cls in RESULTS_OF for name in cls.__struct_fields__)})
CASES: list[tuple[Any, dict[str, object]]] = [
    (None, {}),
    (ToolCall, {}),
    (AgentRun, {}),
    (LLMCall, {"model": "small-1"}),
    (LLMCall, {}),
    (Retrieval, {"query": "q"}),
    (Retrieval, {}),
]


def _function(names: list[str], *, has_options: bool, streams: bool) -> Callable[..., Any]:
    """A function with these parameters that gives the value of its first one, ``returned``."""
    parameters = ", ".join(["returned", *names, *(["**options"] if has_options else [])])
    body = "yield from returned" if streams else "return returned"
    scope: dict[str, Any] = {}
    exec(f"def function({parameters}):\n    {body}\n", scope)
    return scope["function"]  # type: ignore[no-any-return]


@given(
    case=st.sampled_from(CASES),
    arguments=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5),
    positional=st.integers(0, 5),
    returned=RETURNED,
    streams=st.booleans(),
)
@example(
    case=(ToolCall, {}),
    arguments={"arguments": {"$sensitive": 1, "value": 2}},
    positional=1,
    returned={"output": 1, "error": "no"},
    streams=False,
)
def test_what_is_recorded_fits_the_schema_of_its_type(
    case: tuple[Any, dict[str, object]],
    arguments: dict[str, object],
    positional: int,
    returned: object,
    streams: bool,
) -> None:
    params, fields = case
    # Some arguments are parameters of the function, the others options; it has what is required.
    names = list(arguments)[:positional]
    streams = streams and isinstance(returned, list)
    function = _function(names, has_options=True, streams=streams)

    def call() -> None:
        value = traced(params, **fields)(function)(returned, **arguments)
        if streams:
            list(value)

    span_of(call)
