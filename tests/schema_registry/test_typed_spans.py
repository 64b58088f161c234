"""Spans that are opened by an object of a registered class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict, cast

import pytest
from msgspec import Raw, Struct
from support.harness import AGENT

from prefactor_core import (
    PrefactorValueError,
    SchemaRegistry,
    SpanParams,
    current_span,
    open_prefactor,
    redact_keys,
    traced,
)
from prefactor_core.span_types import ToolCall
from prefactor_core.testing import Recording


class Answer(Struct, omit_defaults=True):
    response: str
    tokens: int | None = None


class Ask(Struct, SpanParams[Answer], rename="camel", omit_defaults=True):
    prompt: str
    max_tokens: int | None = None
    tokens: int | None = None

    from_result = ("tokens",)


@dataclass
class Search:
    query: str
    limit: int = 3


class Note(TypedDict):
    text: str


class Unknown(Struct):
    secret: str


registry = SchemaRegistry()
ask_type = registry.register_type("agent:ask", params=Ask, result=Answer)
registry.register_type("agent:search", params=Search, result_schema={"type": "object"})
note = registry.register_type("agent:note", params=Note, result=Note)


async def test_a_span_is_opened_by_its_parameters(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        async with instance.span(Ask("Hello", max_tokens=9)) as ask:
            with instance.span(Search("Olympus")) as search:
                search.set_result({"hits": 3})
            async with instance.span(note({"text": "told"}), parent_span_id=ask.id) as noted:
                await noted.complete({"text": "noted"})
            with client.span(instance.id, Search("Mars")):
                pass
            ask.set_result(Answer("Hi there"))
    assert prefactor.run.outline.splitlines() == [
        "complete",
        "agent:ask complete",
        "  agent:search complete",
        "  agent:note complete",
        "  agent:search complete",
    ]
    spans = prefactor.run.spans
    assert [span.payload for span in spans] == [
        {"prompt": "Hello", "maxTokens": 9},
        {"query": "Olympus", "limit": 3},
        {"text": "told"},
        {"query": "Mars", "limit": 3},
    ]
    assert [span.result for span in spans] == [
        {"response": "Hi there"},
        {"hits": 3},
        {"text": "noted"},
        None,
    ]


async def test_results_are_merged_field_by_field(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
        instance.span(Search("Olympus")) as span,
    ):
        span.set_result(Answer("first", tokens=1))
        span.set_result({"more": True})
        answer = Answer("second")
        span.set_result(answer)
        answer.response = "changed later"
        current = current_span()
        assert current is not None
        current.set_result(Answer("third"))
    assert prefactor.run.spans[0].result == {"response": "third", "tokens": 1, "more": True}


async def test_a_payload_beside_a_name_may_be_an_object_too(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span("agent:any", payload=Search("Olympus")):
            pass
        with instance.span("agent:any") as span:
            span.start_nowait(Ask("Hello"))
        for span_id in (
            await instance.create_span(Search("Mars")),
            client.create_span_nowait(instance.id, "agent:any", payload=Note(text="told")),
        ):
            await instance.finish_span(span_id)
    assert [(span.schema_name, span.payload) for span in prefactor.run.spans] == [
        ("agent:any", {"query": "Olympus", "limit": 3}),
        ("agent:any", {"prompt": "Hello"}),
        ("agent:search", {"query": "Mars", "limit": 3}),
        ("agent:any", {"text": "told"}),
    ]


async def test_the_steps_of_a_span_take_objects_too(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        async with instance.span(Ask("Hello")) as span:
            await span.start()
            await span.fail(Answer("no"))
        with instance.span(Ask("Hello")) as span:
            span.complete_nowait(Answer("yes"))
        with instance.span(Ask("Hello")) as span:
            span.fail_nowait({"reason": "away"})
    assert [span.status for span in prefactor.run.spans] == ["failed", "complete", "failed"]
    results = [span.result for span in prefactor.run.spans]
    assert results == [{"response": "no"}, {"response": "yes"}, {"reason": "away"}]


@pytest.mark.parametrize("started", ["not", "by start()", "by a child"])
async def test_fields_from_the_result_are_in_the_payload_of_a_span_recorded_at_its_end(
    prefactor: Recording, started: str
) -> None:
    async with (
        prefactor.open(schema_registry=registry, redact=redact_keys("response")) as client,
        client.agent_instance(**AGENT) as instance,
        instance.span(Ask("Hello")) as span,
    ):
        if started == "by start()":
            await span.start()
        if started == "by a child":
            instance.span(Search("Olympus")).start_nowait()
        span.set_result(Answer("Hi there", tokens=7))
    ask = prefactor.run.named("agent:ask")
    assert ask.result == {"response": "[redacted]", "tokens": 7}
    late = {"tokens": 7} if started == "not" else {}
    assert ask.payload == {"prompt": "Hello"} | late


async def test_fields_that_the_payload_has_already_are_kept(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span(Ask("Hello", tokens=1)) as span:
            span.set_result(Answer("Hi there", tokens=7))
        with instance.span(Ask("Hello")) as span:
            span.set_result(Answer("Hi there"))
        with pytest.raises(ZeroDivisionError), instance.span(Ask("Hello")) as span:
            span.set_result(Answer("Hi there", tokens=7))
            raise ZeroDivisionError
        with instance.span(Ask("Hello")) as span:
            span.set_result(Answer("Hi there", tokens=7))
            span.cancel_nowait()
        with instance.span(ask_type(Ask("Hello"))) as span:
            span.set_result(Answer("Hi there", tokens=7))
    payloads = [span.payload.get("tokens") for span in prefactor.run.spans]
    assert payloads == [1, None, 7, 7, 7]


async def test_a_field_from_the_result_may_be_null_until_then(prefactor: Recording) -> None:
    @dataclass
    class Find(SpanParams[Answer]):
        what: str
        tokens: int | None = None

        from_result = ("tokens",)

    types = SchemaRegistry()
    types.register_type("agent:find", params=Find)
    async with (
        prefactor.open(schema_registry=types) as client,
        client.agent_instance(**AGENT) as instance,
        instance.span(Find("Olympus")) as span,
    ):
        span.set_result(Answer("Hi there", tokens=7))
    assert prefactor.run.spans[0].payload == {"what": "Olympus", "tokens": 7}


async def test_fields_from_the_result_make_no_payload_larger_than_it_may_be(
    prefactor: Recording,
) -> None:
    class Long(Ask):
        from_result = ("response", "tokens")

    types = SchemaRegistry()
    types.register_type("agent:ask", params=Long)
    async with (
        prefactor.open(schema_registry=types, max_payload_bytes=2_000) as client,
        client.agent_instance(**AGENT) as instance,
        instance.span(Long("a" * 1_500)) as span,
    ):
        span.set_result(Answer("b" * 1_500, tokens=7))
    assert prefactor.run.spans[0].payload == {"prompt": "a" * 1_500, "tokens": 7}


async def test_json_that_is_none_never_raises(prefactor: Recording) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span(Ask("Hello")) as span:
            span.set_result({"tokens": Raw(b"{no")})
    # It costs its own field, and no other: the text that stands for it is of that field only.
    assert client.statistics().lost == 0
    assert prefactor.run.spans[0].payload["prompt"] == "Hello"


async def test_fields_that_share_parts_are_not_written_out(prefactor: Recording) -> None:
    endless: list[object] = []
    for _ in range(60):
        endless = [endless, endless]
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with instance.span(Ask(cast("str", endless))) as span:
            span.set_result(Answer(cast("str", endless)))
    (stored,) = prefactor.run.spans
    # Written as text: pytest would show what is left of them.
    for written in map(json.dumps, (stored.payload, stored.result)):
        assert '"$truncated"' in written
        assert len(written) <= 1_100_000


@pytest.mark.parametrize("given", ["tokens", 3, None, ("tokens", 3)])
def test_fields_from_the_result_are_named_by_a_tuple(given: Any) -> None:
    class Wrong(Struct, SpanParams[Answer]):
        prompt: str

        from_result = given

    types = SchemaRegistry()
    with pytest.raises(PrefactorValueError, match=r"Wrong, .*'agent:ask', must be a tuple of the"):
        types.register_type("agent:ask", params=Wrong)
    assert not types.has_schema("agent:ask")


def test_a_type_of_mappings_has_no_class_to_be_found_by() -> None:
    types = SchemaRegistry()
    types.register_type("agent:a", params=dict[str, int])
    assert types.register_type("agent:b", params=dict[str, str])({"a": "b"}).name == "agent:b"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Unknown("xyzzy"), "no span type with parameters of the class 'Unknown': register it"),
        ({"secret": "xyzzy"}, "schema_name must be the name of a span type, or parameters of a re"),
        (Ask, "parameters of a registered class, got the class Ask"),
        (None, "parameters of a registered class, got NoneType"),
        (3, "no span type with parameters of the class 'int'"),
        ("", "schema_name must be the name of a span type, got ''"),
    ],
    ids=["unknown", "dict", "class", "None", "number", "empty"],
)
async def test_what_stands_for_no_span_type_is_refused_and_not_shown(
    prefactor: Recording, step: Any, message: str
) -> None:
    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT) as instance,
    ):
        with pytest.raises(PrefactorValueError, match=message) as raised:
            instance.span(step)
        assert "xyzzy" not in str(raised.value)
        with pytest.raises(PrefactorValueError, match="takes no payload beside them"):
            instance.span(Ask("Hello"), payload={"prompt": "Hello"})  # type: ignore[call-overload]
    assert prefactor.run.spans == []


async def test_without_a_registry_no_class_but_those_of_the_standard_types_stands_for_a_type() -> (
    None
):
    async with (
        open_prefactor(api_url="local::memory:") as client,
        client.agent_instance(**AGENT, agent_schema_version={"external_identifier": "v1"}) as run,
    ):
        with pytest.raises(PrefactorValueError, match="of the class 'Ask': register it"):
            run.span(Ask("Hello"))
        assert run.span(ToolCall(tool="search")).schema_name == "agent:tool_call"


async def test_where_everything_is_switched_off_no_class_is_looked_at() -> None:
    async with (
        open_prefactor(enabled=False) as client,
        client.agent_instance(**AGENT, agent_schema_version={}) as instance,
        instance.span(Ask("Hello")) as span,
    ):
        span.set_result(Answer("Hi there"))
        with instance.span(Unknown("…")):
            pass


class Step(str):
    __slots__ = ()


class Steps(StrEnum):
    ANY = "agent:any"


@pytest.mark.parametrize("name", [Step("agent:any"), Steps.ANY])
async def test_a_name_may_be_any_kind_of_text(prefactor: Recording, name: str) -> None:
    async with (
        prefactor.open() as client,
        client.agent_instance(**AGENT) as instance,
        instance.span(name),
    ):
        pass
    assert prefactor.run.outline == "complete\nagent:any complete"


def test_synchronous_code_opens_typed_spans(prefactor: Recording) -> None:
    with prefactor.open_sync(schema_registry=registry) as client:
        with client.agent_instance(**AGENT) as instance:
            with instance.span(Ask("Hello")) as span:
                span.set_result(Answer("Hi there"))
            with client.span(instance.id, Search("Olympus")):
                pass
    assert [span.payload for span in prefactor.run.spans] == [
        {"prompt": "Hello"},
        {"query": "Olympus", "limit": 3},
    ]


async def test_what_a_traced_function_returns_is_the_result_field_by_field(
    prefactor: Recording,
) -> None:
    @traced("agent:ask")
    def ask(prompt: str) -> Answer:
        return Answer(prompt.upper())

    async with (
        prefactor.open(schema_registry=registry) as client,
        client.agent_instance(**AGENT),
    ):
        ask("hello")
    span = prefactor.run.named("agent:ask")
    assert (span.payload, span.result) == ({"prompt": "hello"}, {"response": "HELLO"})
