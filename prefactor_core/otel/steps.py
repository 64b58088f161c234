"""Payload and result of each span type, from the facts of a span. Pure.

What is recorded fits the schemas of the standard types: it is made of their classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

import msgspec
from msgspec import Struct

from prefactor_core.otel.dialect import LLM, OTHER, RETRIEVAL, RUN, TOOL
from prefactor_core.otel.messages import (
    decoded,
    found_messages,
    items,
    text_of,
    to_messages,
    tool_call,
    unwrapped,
)
from prefactor_core.otel.reading import Facts
from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.schema_registry.type_schema import SpanParams
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    Document,
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

Step: TypeAlias = tuple[Struct, Struct]
"""The parameters and the result of a span."""

_PARAMETERS: Final = ("temperature", "top_p", "max_tokens")
_TOKENS: Final = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


class OtherResult(Struct, kw_only=True, omit_defaults=True):
    """The result of another step."""

    output: object = None
    error: StepError | None = None


class OtherSpan(Struct, SpanParams[OtherResult], kw_only=True, omit_defaults=True):
    """``otel:span``: a step that is none of the standard types: a chain, a task, a request."""

    name: str
    input: object = None


def add_span_types(registry: SchemaRegistry) -> None:
    """Add the types of the spans that are made here to ``registry``, unless it has them."""
    for standard in standard_types().to_agent_schema_version("")["span_type_schemas"]:
        name = standard.pop("name")
        if name in _STEPS and not registry.has_schema(name):
            registry.register_type(name, **standard)
    if not registry.has_schema(OTHER):
        registry.register_type(
            OTHER,
            params=OtherSpan,
            result=OtherResult,
            title="Step",
            template=(
                "{{name | truncate: 500}}{% if error %} ✕ {{error.type}}"
                "{% if error.message %}: {{error.message | truncate: 500}}{% endif %}{% endif %}"
            ),
        )


def to_step(name: str, facts: Facts, *, counts_tokens: bool = True) -> Step:
    """The parameters and the result of the span ``name``, of the type that its facts say.

    ``counts_tokens``: False if the tokens are those of spans inside.
    """
    if facts.span_type == LLM and not counts_tokens:
        for count in _TOKENS:
            facts.keep(count)
    return _STEPS[facts.span_type or OTHER](name, facts)


def _run(name: str, facts: Facts) -> Step:
    params = AgentRun(
        input=_input(facts),
        agent=_text(facts.take("agent", "entity")) or name.removeprefix("invoke_agent "),
        conversation_id=_text(facts.take("conversation_id")),
    )
    return params, AgentRunResult(output=_output(facts))


def _llm(name: str, facts: Facts) -> Step:
    messages, system = facts.take("messages"), facts.take("system")
    prompt = None
    if messages is None:
        messages, prompt = _conversation(facts, "input")
    facts.take("input")  # the same messages in another form
    parameters = _parameters(facts)
    answered = facts.take("response_model")
    model = _text(facts.take("model")) or _text(answered) or "unknown"
    tools = facts.take("tools")
    params = LLMCall(
        model=model,
        prompt=_text(prompt),
        messages=None if messages is None else to_messages(messages),
        system=_system(system),
        tools=None if tools is None else [_tool(item) for item in items(tools)],
        provider=_text(facts.take("provider")),
        temperature=_number(parameters.get("temperature")),
        top_p=_number(parameters.get("top_p")),
        max_tokens=_count(parameters.get("max_tokens")),
    )
    answers, output = facts.take("answers"), None
    if answers is None:
        answers, output = _conversation(facts, "output")
    facts.take("output")
    found = [] if answers is None else to_messages(answers, "assistant")
    calls: list[dict[str, object]] = [
        call
        for message in found
        for call in cast("list[dict[str, object]]", message.get("tool_calls") or [])
    ]
    if not calls and (told := facts.take("tool_calls")) is not None:
        calls = [tool_call(call) for call in items(told)]
    reasons = [message["finish_reason"] for message in found if "finish_reason" in message]
    reason = facts.take("finish_reason") or reasons
    response = text_of(found) or _text(facts.take("answer"))
    result = LLMResult(
        response=_text(output) if response is None and not calls else response,
        tool_calls=calls or None,
        finish_reason=_text(next(iter(items(reason)), None)),
        token_usage=_usage(facts),
        model=_text(answered) if answered != model else None,
        response_id=_text(facts.take("response_id")),
        time_to_first_token=_number(facts.take("first_token")),
    )
    params.token_usage = result.token_usage
    return params, result


def _conversation(facts: Facts, fact: str) -> tuple[object, object]:
    """The messages of a fact; without any, the fact. What else it says stays among the
    attributes."""
    attribute, given = facts.names.get(fact), facts.take(fact)
    if isinstance(listed := decoded(given), list):
        return cast("object", listed), None
    found, rest = found_messages(given)
    if found is None:
        return None, given
    if rest and attribute is not None:
        facts.attributes[attribute] = rest
    return found, None


def _tool_call(name: str, facts: Facts) -> Step:
    given = decoded(facts.take("arguments", "input"))
    if given is None:
        given = _only_content(facts.take("messages"))
    arguments: Mapping[str, object] | None = None
    if isinstance(given, Mapping):
        arguments = {
            str(key): value for key, value in cast("Mapping[object, object]", given).items()
        }
    elif given is not None:
        arguments = {"input": given}
    params = ToolCall(
        tool=_text(facts.take("tool", "entity")) or name.removeprefix("execute_tool "),
        arguments=arguments,
        call_id=_text(facts.take("call_id")),
    )
    return params, ToolResult(output=_output(facts))


def _retrieval(name: str, facts: Facts) -> Step:
    params = Retrieval(
        query=_text(facts.take("query", "input")) or name,
        source=_text(facts.take("source")),
        top_k=_count(facts.take("top_k")),
    )
    found = facts.take("documents")
    documents = None if found is None else [_document(item) for item in items(found)]
    if documents:
        facts.take("output")  # the same documents as one text
    return params, RetrievalResult(documents=documents)


def _other(name: str, facts: Facts) -> Step:
    message = _text(facts.take("message"))  # the name with its values
    return OtherSpan(name=message or name, input=_input(facts)), OtherResult(output=_output(facts))


_STEPS: Final[Mapping[str, Callable[[str, Facts], Step]]] = {
    RUN: _run,
    LLM: _llm,
    TOOL: _tool_call,
    RETRIEVAL: _retrieval,
    OTHER: _other,
}


def fields_of(struct: Struct) -> dict[str, object]:
    """The fields that a struct records."""
    return cast("dict[str, object]", msgspec.to_builtins(struct))


def _input(facts: Facts) -> object:
    given = facts.take("input")
    if given is None and (messages := facts.take("messages")) is not None:
        return to_messages(messages)
    return decoded(given)


def _output(facts: Facts) -> object:
    output = facts.take("output", "answer")
    if output is None and (answers := facts.take("answers")) is not None:
        found = to_messages(answers, "assistant")
        return text_of(found) or found
    return decoded(output)


def _only_content(messages: object) -> object:
    if messages is None:
        return None
    found = to_messages(messages)
    return found[0].get("content") if len(found) == 1 else found


def _parameters(facts: Facts) -> Mapping[str, object]:
    """The parameters of a request to a model; others than ours stay attributes."""
    found: dict[str, object] = {}
    if "parameters" in facts.values:
        given = decoded(facts.values["parameters"])
        if isinstance(given, Mapping):
            found |= cast("Mapping[str, object]", given)
    for name in _PARAMETERS:
        if (value := facts.take(name)) is not None:
            found[name] = value
    return found


def _usage(facts: Facts) -> TokenUsage | None:
    counts: dict[str, Any] = {}
    for name in _TOKENS:
        if name in facts.values and (count := _count(facts.values[name])) is not None:
            facts.take(name)
            counts[name] = count
    return TokenUsage(**counts) if counts else None


def _system(value: object) -> str | None:
    if value is None:
        return None
    given = decoded(value)
    if isinstance(given, list):
        parts = cast("list[object]", given)
        return text_of(to_messages([{"parts": parts}], "system"))
    return _text(value)


def _tool(item: object) -> dict[str, object]:
    item = unwrapped(item)
    if not isinstance(item, Mapping):
        return {"name": item}
    fields = dict(cast("Mapping[str, object]", item))
    if "json_schema" in fields:  # of OpenInference
        return _tool(decoded(fields["json_schema"]))
    return fields


def _document(item: object) -> Document:
    item = unwrapped(item)
    if not isinstance(item, Mapping):
        return Document(text=_text(item))
    fields = cast("Mapping[str, object]", item)
    metadata = decoded(fields.get("metadata"))
    return Document(
        id=_text(fields.get("id")),
        text=_text(fields.get("content", fields.get("text"))),
        score=_number(fields.get("score")),
        metadata=cast("Mapping[str, object]", metadata) if isinstance(metadata, Mapping) else None,
    )


def _text(value: object) -> str | None:
    """A text; other values as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except Exception:  # no JSON
        return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value
