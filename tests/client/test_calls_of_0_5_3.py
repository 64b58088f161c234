"""Calls as they were written for prefactor-core 0.5.3, where the order or a keyword differs."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.harness import (
    AGENT,
    FaultyApi,
    StoredRun,
    StoredSpan,
    make_config,
    make_registry,
    open_faulty_api,
    recording,
    stored_run,
)

from prefactor_core import (
    PrefactorCoreClient,
    PrefactorValueError,
    SchemaRegistry,
    __version__,
)
from prefactor_core.testing import open_recording

AGENT_ID, VERSION = AGENT["agent_id"], AGENT["agent_version"]
SCHEMAS = make_registry().to_agent_schema_version("types-1")
PAST = datetime(2020, 1, 1, 12, tzinfo=UTC)
LATER = PAST + timedelta(seconds=5)
SECRET = {"prompt": "a secret"}


@asynccontextmanager
async def opened(
    *more: Any, **options: Any
) -> AsyncGenerator[tuple[PrefactorCoreClient, FaultyApi]]:
    async with open_faulty_api() as api:
        async with PrefactorCoreClient(make_config(**options), *more, asgi_app=api) as client:
            yield client, api


def times(stored: StoredSpan | StoredRun) -> tuple[datetime, datetime]:
    assert stored.started_at is not None
    assert stored.finished_at is not None
    return datetime.fromisoformat(stored.started_at), datetime.fromisoformat(stored.finished_at)


# Times by position


@pytest.mark.parametrize(
    ("end", "status"), [("complete", "complete"), ("fail", "failed"), ("cancel", "cancelled")]
)
@pytest.mark.parametrize("suffix", ["", "_nowait"])
async def test_the_times_of_a_span_may_be_given_by_position(
    end: str, status: str, suffix: str
) -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            results = () if end == "cancel" else ({"n": 1},)
            for call in (
                getattr(span, f"start{suffix}")({"p": 1}, PAST),
                getattr(span, f"{end}{suffix}")(*results, LATER),
            ):
                if call is not None:
                    await call
    stored = recorded.run.named("agent:llm")
    assert (stored.status, stored.payload) == (status, {"p": 1})
    assert stored.result == (results[0] if results else None)
    assert times(stored) == (PAST, LATER)


async def test_the_times_of_a_run_may_be_given_by_position() -> None:
    async with opened() as (client, api):
        run = await client.create_agent_instance(**AGENT)
        await run.start(PAST)
        await run.finish("failed", LATER)
        await client.flush()
        stored = await stored_run(api)
    assert stored.status == "failed"
    assert times(stored) == (PAST, LATER)


@pytest.mark.parametrize("owner", ["client", "handle"])
@pytest.mark.parametrize("suffix", ["", "_nowait"])
async def test_the_times_of_a_span_by_its_id_may_be_given_by_position(
    owner: str, suffix: str
) -> None:
    async with recording() as recorded:
        who: Any = recorded.client if owner == "client" else recorded.instance
        run = (recorded.instance.id,) if owner == "client" else ()
        span_id = getattr(who, f"create_span{suffix}")(*run, "agent:llm", None, {"p": 1}, PAST)
        if not suffix:
            span_id = await span_id
        finished = getattr(who, f"finish_span{suffix}")(span_id, {"n": 1}, LATER)
        if not suffix:
            await finished
    stored = recorded.run.named("agent:llm")
    assert (stored.payload, stored.result) == ({"p": 1}, {"n": 1})
    assert times(stored) == (PAST, LATER)


def test_the_times_of_synchronous_code_may_be_given_by_position() -> None:
    with open_recording() as recorded:
        with recorded.open_sync() as client, client.agent_instance(**AGENT) as instance:
            span_id = client.create_span(instance.id, "agent:llm", None, {"p": 1}, PAST)
            client.finish_span(span_id, {"n": 1}, LATER)
        span = recorded.run.named("agent:llm")
    assert (span.started_at, span.finished_at) == (PAST, LATER)


async def test_a_payload_in_the_place_of_a_time_is_not_shown() -> None:
    async with recording() as recorded:
        async with recorded.instance.span("agent:llm") as span:
            with pytest.raises(PrefactorValueError, match="must be a datetime, got dict") as caught:
                await span.complete({}, SECRET)  # type: ignore[arg-type]
            assert "secret" not in str(caught.value)


# The version of a run in first place

SAID = {
    "environment_id": "environment-1",
    "purpose": "eval",
    "external_identifier": "ticket-1",
}


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((VERSION, SCHEMAS, AGENT_ID), SAID),
        ((VERSION, SCHEMAS), {"agent_id": AGENT_ID, **SAID}),
        ((VERSION,), {"agent_id": AGENT_ID, "agent_schema_version": SCHEMAS, **SAID}),
        ((VERSION, None, AGENT_ID, None, "types-1", *SAID.values()), {}),
        ((AGENT_ID, VERSION, SCHEMAS), SAID),
        ((AGENT_ID, VERSION, None, None, "types-1"), SAID),
        ((), {"agent_id": AGENT_ID, "agent_version": VERSION, **SAID}),
    ],
)
async def test_a_run_takes_its_arguments_in_both_orders(
    positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    async with opened() as (client, api):
        await client.create_agent_instance(*positional, **named)
    (call,) = (call for call in api.operations if call.name == "register")
    assert call.body["agent_id"] == AGENT_ID
    assert call.body["agent_version"].items() >= VERSION.items()
    assert call.body["agent_schema_version"]["span_type_schemas"] == SCHEMAS["span_type_schemas"]
    assert call.body.items() >= SAID.items()
    if positional:
        assert call.body["agent_schema_version"]["external_identifier"] == "types-1"


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((VERSION, None, AGENT_ID), {"agent_id": AGENT_ID}),
        ((VERSION,), {"agent_version": SECRET}),
        ((SECRET, SECRET, AGENT_ID, None, None, None, None, None, SECRET), {}),
        ((AGENT_ID, VERSION, None, None, None, "environment-1"), {}),
    ],
)
async def test_an_argument_given_twice_or_too_many_is_the_usual_error(
    positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    async with opened() as (client, api):
        with pytest.raises(TypeError, match=r"create_agent_instance\(\) (got|takes)") as caught:
            await client.create_agent_instance(*positional, **named)
        assert "secret" not in str(caught.value)
    assert api.calls == []


def test_a_run_takes_its_arguments_in_both_orders_in_synchronous_code() -> None:
    with open_recording() as recorded:
        with recorded.open_sync() as client:
            client.create_agent_instance(VERSION, None, AGENT_ID).finish_nowait()
            client.create_agent_instance(AGENT_ID, VERSION).finish_nowait()
        assert [run.agent_id for run in recorded.runs] == [AGENT_ID] * 2


def test_what_creates_a_run_is_still_a_coroutine_function_with_its_own_signature() -> None:
    create = PrefactorCoreClient.create_agent_instance
    assert inspect.iscoroutinefunction(create)
    assert list(inspect.signature(create).parameters)[1:3] == ["agent_id", "agent_version"]


# The payload of a span in fourth place


async def test_a_mapping_in_fourth_place_is_the_payload_of_a_span() -> None:
    async with recording() as recorded:
        client, run_id = recorded.client, recorded.instance.id
        async with client.span(run_id, "agent:run") as outer:
            async with client.span(run_id, "agent:llm", outer.id, {"p": 1}):
                pass
            async with recorded.instance.span("agent:tool", outer.id, {"p": 2}):
                pass
    (root,) = recorded.run.roots
    assert [(child.name, child.payload) for child in root.children] == [
        ("agent:llm", {"p": 1}),
        ("agent:tool", {"p": 2}),
    ]


async def test_a_span_with_two_payloads_is_an_error_that_shows_neither() -> None:
    async with recording() as recorded:
        span: Any = recorded.client.span
        with pytest.raises(PrefactorValueError, match="span_id must be a PFID, got dict") as caught:
            span(recorded.instance.id, "agent:llm", None, SECRET, {"p": 1})
        assert "secret" not in str(caught.value)


# The keywords of a registry


def test_a_registry_takes_the_keywords_of_0_5_3_and_those_of_the_seed() -> None:
    registry = SchemaRegistry()
    for number, keyword in enumerate(("schema_name", "name")):
        name: dict[str, Any] = {keyword: f"agent:{number}"}
        registry.register(**name, schema={"type": "object"})
        registry.register_unsafe(**name, schema={"type": "array"})
        result = "result_schema" if keyword == "schema_name" else "schema"
        registry.register_result(**name, **{result: {"type": "string"}})
        assert registry.has_schema(**name)
        assert registry.get(**name) == {"type": "array"}
    version = registry.to_agent_schema_version("v1")
    assert version["span_result_schemas"] == {
        "agent:0": {"type": "string"},
        "agent:1": {"type": "string"},
    }


def test_a_registry_takes_the_data_risk_of_a_type_by_position() -> None:
    risk = {
        "action_profile": {"read_data": "allowed"},
        "params_data_categories": {},
        "result_data_categories": {},
    }
    by_position, by_name = SchemaRegistry(), SchemaRegistry()
    by_position.register_type("agent:llm", {}, None, "Call", "A call", None, risk)
    by_name.register_type("agent:llm", {}, title="Call", description="A call", data_risk=risk)
    version = by_position.to_agent_schema_version("v1")
    assert version == by_name.to_agent_schema_version("v1")
    assert "data_risk" in version["span_type_schemas"][0]


def test_a_name_that_is_given_twice_is_the_usual_error() -> None:
    registry: Any = SchemaRegistry()
    with pytest.raises(TypeError, match="multiple values"):
        registry.get("agent:llm", name="agent:llm")
    with pytest.raises(TypeError, match="multiple values"):
        registry.get(schema_name="agent:llm", name="agent:llm")
    with pytest.raises(TypeError, match="multiple values"):
        registry.register_result("agent:llm", {}, schema={})


# The package of an adapter in third place


async def test_a_client_takes_the_package_of_an_adapter_in_third_place() -> None:
    async with opened(None, "prefactor-langchain@0.3.0") as (client, api):
        await client.create_agent_instance(**AGENT)
    header = api.calls[0].headers["x-prefactor-sdk"]
    assert header == f"prefactor-langchain@0.3.0 prefactor-core@{__version__}"
