"""Fields that a schema does not declare: misspelled ones and those of another type are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from support.cases import case, for_each

from prefactor_core import PrefactorValueError
from prefactor_core.schema_registry.undeclared import undeclared_fields
from prefactor_core.span_types import (
    AgentRunResult,
    LLMCall,
    LLMResult,
    Retrieval,
    RetrievalResult,
    ToolCall,
    ToolResult,
    standard_types,
)
from prefactor_core.testing import Recording

TYPES: list[dict[str, Any]] = standard_types().to_agent_schema_version("")["span_type_schemas"]
PAYLOADS = {each["name"]: each["params_schema"] for each in TYPES}
RESULTS = {each["name"]: each["result_schema"] for each in TYPES if "result_schema" in each}
PARTS: list[tuple[str, dict[str, Any]]] = [("payload", PAYLOADS), ("result", RESULTS)]

# The library adds these, or frameworks do; some look like declared ones.
OTHERS = {
    *("error", "otel", "attributes", "inputs", "ai", "token_usage", "prefactor_caused_by"),
    *("items", "items_left_out", "value", "result", "top_k", "tool_call_id", "model_name", "n"),
    *("user", "stop", "seed", "metadata", "stream", "latency", "system_prompt", "conversation"),
}


def misspelled(name: str) -> Iterator[str]:
    for at in range(len(name)):
        # A letter more, less or wrong may make a pair of names, as in PAIRS.
        part = len(name[:at].rpartition("_")[2]) + len(name[at:].partition("_")[0])
        if name[at] == "_" or part > 2:
            if name[at:] != "s":
                yield name[:at] + name[at + 1 :]
            if len(name) > 5:
                yield f"{name[:at]}x{name[at + 1 :]}"
        if name[at] == "_" or part > 1:
            yield name[:at] + name[at] + name[at:]
        yield name[:at] + name[at : at + 2][::-1] + name[at + 2 :]
    yield name.upper()
    yield name.replace("_", "")


def test_every_misspelling_of_a_field_of_a_standard_type_is_found() -> None:
    found = 0
    for part, schemas in PARTS:
        for name, schema in schemas.items():
            for field in schema["properties"]:
                for wrong in {*misspelled(field)} - {*schema["properties"]} - OTHERS:
                    with case(part, name, wrong):
                        problem = f"{part}.{wrong}: is no declared field; the nearest is "
                        problems = undeclared_fields(part, schemas, name, {wrong: 1})
                        assert len(field) < 4 or f"{problem}{field!r}" in problems
                        found += len(problems)
                        whole = {wrong: 1, **dict.fromkeys(schema["properties"], 1)}
                        assert undeclared_fields(part, schemas, name, whole) == []
    assert found > 500


def test_declared_fields_and_those_that_others_add_are_no_problem() -> None:
    for part, schemas in PARTS:
        for name, schema in schemas.items():
            for field in {*schema["properties"], *OTHERS}:
                for beside in {}, {"error": 1}, {next(iter(schema["properties"])): 1}:
                    with case(part, name, field, beside):
                        assert undeclared_fields(part, schemas, name, {field: 1, **beside}) == []


PAIRS = [
    *(("page_1", "page_2"), ("items1", "items2"), ("page", "page2"), ("page_12", "page_21")),
    *(("input_a", "input_b"), ("input_en", "input_es"), ("x_coord", "y_coord")),
    *(("latency_ms", "latency_us"), ("latency_s", "latency_ms"), ("position_x", "position_xy")),
    *(("user_id", "user_ids"), ("source", "sources"), ("item_count", "items_count")),
]


@for_each(("one", "other"), [*PAIRS, *((other, one) for one, other in PAIRS)])
def test_a_field_that_may_stand_beside_a_declared_one_is_no_misspelling(
    one: str, other: str
) -> None:
    schemas = {"ask": {"properties": {one: {}}}}
    assert undeclared_fields("payload", schemas, "ask", {other: 1}) == []


def test_a_misspelling_beside_a_digit_a_short_part_or_a_plural_is_found() -> None:
    for field, name in [
        *(("pgae_1", "page_1"), ("latncy_ms", "latency_ms"), ("latency_sm", "latency_ms")),
        *(("sourcess", "sources"), ("userids", "user_ids"), ("x_cord", "x_coord")),
    ]:
        with case(field):
            schemas = {"ask": {"properties": {name: {}}}}
            assert len(undeclared_fields("payload", schemas, "ask", {field: 1})) == 1


def test_a_name_of_a_declared_field_that_is_no_text_is_left_out() -> None:
    properties: dict[Any, Any] = {1: {}, None: {}, "prompt": {}}
    for value, found in ({"promt": 1}, 1), ({"prompt": 1}, 0), ({"other": 1}, 0):
        schemas = {"ask": {"properties": properties}, "other": {"properties": {2: {}}}}
        assert len(undeclared_fields("result", schemas, "ask", value)) == found


PROPERTIES = {"properties": {"prompt": {}}}


@for_each(
    "schema",
    [
        *(None, True, {}, {"type": "object"}, {"properties": 5}, "none"),
        *({**PROPERTIES, "additionalProperties": rule} for rule in (False, {}, {"type": "string"})),
        *({**PROPERTIES, "patternProperties": {"^pr": {}}}, {**PROPERTIES, "allOf": [{}]}),
        {**PROPERTIES, "$ref": "#/$defs/more", "$defs": {"more": {"properties": {"promt": {}}}}},
    ],
)
def test_a_schema_that_says_more_of_other_fields_is_left_to_its_own_check(schema: Any) -> None:
    for part in ("payload", "result"):
        assert undeclared_fields(part, {"ask": schema}, "ask", {"promt": 1}) == []
        assert undeclared_fields(part, {"ask": PROPERTIES}, "ask", ["promt"]) == []
    assert len(undeclared_fields("payload", {"ask": PROPERTIES}, "ask", {"promt": 1})) == 1


RESULT_CLASSES: dict[str, Any] = {
    "agent:run": AgentRunResult(output=1),
    "agent:llm_call": LLMResult(response="x"),
    "agent:tool_call": ToolResult(output=1),
    "agent:retrieval": RetrievalResult(documents=[{"text": "x"}]),  # type: ignore[list-item]
}
STEPS: list[tuple[str, Any]] = [
    ("agent:llm_call", LLMCall(model="m")),
    ("agent:tool_call", ToolCall(tool="t")),
    ("agent:retrieval", Retrieval(query="q")),
]


async def test_the_result_of_another_type_is_found(prefactor: Recording) -> None:
    """Unless it has the fields of the right one: a run and a tool call both have an output."""
    async with (
        prefactor.open(check_payloads="raise") as client,
        client.agent_instance("tested-agent", {"name": "Tested"}) as instance,
    ):
        for name, step in STEPS:
            for other, result in RESULT_CLASSES.items():
                with case(name, other):
                    if other == name or {name, other} == {"agent:run", "agent:tool_call"}:
                        with instance.span(step) as span:
                            span.set_result(result)
                        continue
                    problem = "result: has no declared field, but those of 'agent:"
                    with pytest.raises(PrefactorValueError, match=problem):
                        with instance.span(step) as span:
                            span.set_result(result)


async def test_the_flags_of_a_recording_name_them_too(prefactor: Recording) -> None:
    async with (
        prefactor.open() as client,
        client.agent_instance("tested-agent", {"name": "Tested"}) as instance,
    ):
        with instance.span("agent:llm_call", payload={"model": "m", "temprature": 1}) as span:
            span.set_result({"responce": "x"})
        with instance.span(LLMCall(model="m")) as span:
            span.set_result(cast("Any", ToolResult(output=1)))
    assert prefactor.run.flags == [
        "agent:llm_call: payload.temprature: is no declared field; the nearest is 'temperature'",
        "agent:llm_call: result.responce: is no declared field; the nearest is 'response'",
        "agent:llm_call: result: has no declared field, but those of 'agent:run'",
    ]
