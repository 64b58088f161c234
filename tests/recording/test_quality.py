"""record_quality(): quality payloads of a run, at any time, are recorded in order and counted."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from support.harness import (
    AGENT,
    Answer,
    Call,
    FaultyApi,
    make_config,
    open_faulty_api,
    stored_quality,
)

from prefactor_core import (
    ClientNotInitializedError,
    InstanceNotFoundError,
    PrefactorValueError,
    open_prefactor,
)
from prefactor_core.export.batch_item import without_payload
from prefactor_core.local import Faults
from prefactor_core.operations import RecordQuality
from prefactor_core.operations.identifiers import generate
from prefactor_core.testing import open_recording

pytestmark = pytest.mark.virtual_time


def answer(call: Call) -> Answer:
    """The answer of an API that accepts every quality payload."""
    run = call.path.split("/")[-2]
    details = {"id": run, "status": "complete"}
    return 200, {}, msgspec.json.encode({"status": "success", "details": details})


@asynccontextmanager
async def open_api() -> AsyncGenerator[FaultyApi]:
    """An API that accepts single quality payloads, also of runs that it does not know."""
    async with open_faulty_api() as api:
        api.faults["record_quality"] = answer
        yield api


def alone(**options: Any) -> Any:
    queue = {"max_batch_operations": 1, **options.pop("queue", {})}
    return make_config(queue=queue, **options)


def recorded(api: FaultyApi) -> list[tuple[str, Any]]:
    return [
        (call.body["name"], call.body["payload"])
        for call in api.operations
        if call.name == "record_quality" and call.status == 200
    ]


# Recorded quality


async def test_quality_is_recorded_in_order_each_with_its_own_key() -> None:
    async with open_api() as api:
        async with (
            open_prefactor(alone(), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            await instance.record_quality("accuracy", {"score": 1})
            instance.record_quality_nowait("accuracy", {"score": 2})
            await client.record_quality(instance.id, "accuracy")
            client.record_quality_nowait(instance.id, "cost", {"score": 3})
            with instance.span("agent:llm"):
                pass
        statistics = client.statistics()
        assert recorded(api) == [
            ("accuracy", {"score": 1}),
            ("accuracy", {"score": 2}),
            ("accuracy", None),
            ("cost", {"score": 3}),
        ]
        calls = [call for call in api.operations if call.name == "record_quality"]
        assert {call.path for call in calls} == {
            f"/api/v1/agent_instance/{instance.id}/record_quality"
        }
        keys = [call.body["idempotency_key"] for call in calls]
        assert len(set(keys)) == 4
        assert all(8 <= len(key) <= 64 for key in keys)
        assert api.names()[0] == "register"
    # The registration, the start, four of these, the span, and the finish.
    assert (statistics.accepted, statistics.delivered, statistics.lost) == (8, 8, 0)


async def test_a_quality_payload_is_captured_at_the_call() -> None:
    def redact(payload: dict[str, object]) -> dict[str, object]:
        return {**payload, "secret": "[redacted]"}

    async with open_api() as api:
        config = alone(redact=redact, max_payload_bytes=1_024)
        async with (
            open_prefactor(config, asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            payload = {"scores": [1], "secret": "x"}
            await instance.record_quality("accuracy", payload)
            payload["scores"] = []
            await instance.record_quality("reasons", {"text": "x" * 10_000})
        (_, first), (_, second) = recorded(api)
        assert first == {"scores": [1], "secret": "[redacted]"}
        assert second["text"].endswith("characters truncated]")


async def test_the_same_key_is_sent_on_each_attempt() -> None:
    async with open_api() as api:
        api.faults["record_quality"] = [503, 503, answer]
        async with (
            open_prefactor(alone(), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            await instance.record_quality("accuracy", {"score": 1})
        calls = [call for call in api.operations if call.name == "record_quality"]
        assert [call.status for call in calls] == [503, 503, 200]
        assert len({call.body["idempotency_key"] for call in calls}) == 1
        assert client.statistics().lost == 0


@pytest.mark.parametrize("when", ["before the start", "after the end", "after its delivery"])
async def test_quality_is_recorded_in_every_state_of_a_run(when: str) -> None:
    async with open_api() as api:
        async with open_prefactor(alone(), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            if when != "before the start":
                await instance.start()
                await instance.finish("failed")
            if when == "after its delivery":
                await client.flush()
            await instance.record_quality("accuracy", {"score": 1})
            await client.record_quality(instance.id, "cost")
        assert recorded(api) == [("accuracy", {"score": 1}), ("cost", None)]
        assert client.statistics().lost == 0


async def test_quality_is_recorded_for_runs_of_other_clients() -> None:
    async with open_api() as api:
        async with open_prefactor(alone(), asgi_app=api) as client:
            run = generate(5)
            await client.record_quality(run, "accuracy", {"score": 1})
        (call,) = api.operations
        assert call.path == f"/api/v1/agent_instance/{run}/record_quality"
        assert client.statistics().delivered == 1


@pytest.mark.parametrize("flushed", [True, False])
async def test_quality_of_a_run_that_was_registered_late_has_the_apis_id(
    flushed: bool,
) -> None:
    async with open_api() as api:
        config = alone(registration_timeout=0.05)
        async with open_prefactor(config, asgi_app=api) as client:
            api.away = True
            instance = await client.create_agent_instance(**AGENT)
            provisional = instance.id
            await instance.record_quality("a", {})
            await instance.start()
            await instance.finish()
            await instance.record_quality("b", {})
            api.away = False
            if flushed:
                await client.flush()
            await instance.record_quality("c", {})
            await client.record_quality(provisional, "d", {})
            await client.flush()
            assert instance.id != provisional
            await client.record_quality(instance.id, "e", {})
        assert [name for name, _ in recorded(api)] == ["a", "b", "c", "d", "e"]
        taken = [call for call in api.operations if call.status == 200]
        assert taken[0].name == "register"
        paths = {call.path for call in taken if call.name == "record_quality"}
        assert paths == {f"/api/v1/agent_instance/{instance.id}/record_quality"}
        assert client.statistics().lost == 0


async def test_threads_record_quality_too() -> None:
    async with open_api() as api:
        async with (
            open_prefactor(alone(), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            thread = threading.Thread(
                target=instance.record_quality_nowait, args=("accuracy", {"score": 1})
            )
            thread.start()
            thread.join()
        assert recorded(api) == [("accuracy", {"score": 1})]


# Quality that is not recorded


async def test_a_refused_quality_payload_is_dropped_alone_and_counted() -> None:
    async with open_api() as api:
        api.faults["record_quality"] = lambda call: (
            422 if call.body["name"] == "unknown" else answer(call)
        )
        async with (
            open_prefactor(alone(), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            await instance.record_quality("unknown", {})
            await instance.record_quality("accuracy", {})
        assert recorded(api) == [("accuracy", {})]
        assert client.statistics().dropped == {"refused": 1}


async def test_when_the_buffer_is_full_quality_is_dropped_and_counted() -> None:
    async with open_api() as api:
        config = alone(queue={"max_pending_operations": 3, "num_workers": 1})
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            instance.start_nowait()
            for score in range(4):
                instance.record_quality_nowait("accuracy", {"score": score})
            instance.finish_nowait()
        assert recorded(api) == [("accuracy", {"score": 0}), ("accuracy", {"score": 1})]
        assert client.statistics().dropped == {"full": 2}


async def test_quality_of_a_refused_run_is_counted_as_dropped_with_it() -> None:
    async with open_api() as api:
        api.away = True
        config = alone(registration_timeout=0.05)
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            await instance.record_quality("accuracy", {})
            await instance.finish()
            api.away, api.faults["register"] = False, 422
            await client.flush()
            await instance.record_quality("accuracy", {})
        assert recorded(api) == []
        assert client.statistics().dropped == {"refused": 5}


WRONG: list[tuple[Any, Any, str]] = [
    ("", {}, "name must be the name of a quality schema, got ''"),
    (None, {}, "name must be the name of a quality schema, got None"),
    (
        "accuracy",
        ["secret"],
        "payload must be a mapping .* payload 'accuracy', got a list",
    ),
    ("accuracy", "secret", "got a str"),
]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("name", "payload", "message"), WRONG)
async def test_invalid_quality_is_an_error_and_nothing_is_recorded(
    name: Any, payload: Any, message: str, enabled: bool
) -> None:
    async with open_api() as api:
        async with open_prefactor(alone(enabled=enabled), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            with pytest.raises(PrefactorValueError, match=message) as caught:
                await instance.record_quality(name, payload)
            assert "secret" not in str(caught.value)
            with pytest.raises(PrefactorValueError, match=message):
                client.record_quality_nowait(instance.id, name, payload)
            for id_ in ("my-run", "", None):
                with pytest.raises(InstanceNotFoundError):
                    await client.record_quality(id_, "accuracy", {})  # type: ignore[arg-type]
        assert recorded(api) == []
        assert client.statistics().lost == 0


async def test_after_the_client_nothing_is_recorded() -> None:
    async with open_api() as api:
        async with open_prefactor(alone(), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
        with pytest.raises(ClientNotInitializedError):
            await instance.record_quality("accuracy", {})
        with pytest.raises(ClientNotInitializedError):
            await client.record_quality(instance.id, "accuracy", {})


async def test_a_disabled_client_accepts_quality_and_records_nothing() -> None:
    async with open_prefactor(make_config(enabled=False)) as client:
        async with client.agent_instance(**AGENT) as instance:
            await instance.record_quality("accuracy", {"score": 1})
            await client.record_quality(instance.id, "accuracy")
        instance.record_quality_nowait("accuracy", {"score": 1})
    assert client.statistics().accepted == 0


def test_a_quality_payload_too_large_for_the_api_becomes_a_marker() -> None:
    large = RecordQuality(
        timestamp=1_784_548_800_000_000_000,
        idempotency_key="a-key-of-its-own",
        instance_id=generate(1),
        name="accuracy",
        payload=msgspec.Raw(b'{"text":"%s"}' % (b"x" * 1_000)),
    )
    smaller = without_payload(large)
    assert isinstance(smaller, RecordQuality)
    assert msgspec.json.decode(smaller.payload) == {"$truncated": {"bytes": 1_011}}
    assert smaller.size < large.size
    removal = msgspec.structs.replace(large, payload=msgspec.Raw(b"null"))
    assert without_payload(removal) is None


# As a Prefactor has it: in bulk and alone, and read back.

SCHEMA = {"type": "object"}
JUDGED = {
    **AGENT,
    "agent_schema_version": {
        "external_identifier": "v1",
        "span_schemas": {"agent:llm": SCHEMA},
        "quality_schemas": [{"name": name, "schema": SCHEMA} for name in ("accuracy", "cost")],
    },
}


@pytest.mark.parametrize("most", [1, 2, 1_000])
@pytest.mark.parametrize("given_ids", [True, False])
async def test_the_last_payload_of_each_name_is_what_is_stored(most: int, given_ids: bool) -> None:
    async with open_faulty_api(faults=Faults(given_ids=given_ids)) as api:
        config = make_config(queue={"max_batch_operations": most})
        async with open_prefactor(config, asgi_app=api) as client:
            async with client.agent_instance(**JUDGED) as instance:
                for score in range(5):
                    await instance.record_quality("accuracy", {"score": score})
                    with instance.span("agent:llm"):
                        instance.record_quality_nowait("cost", {"score": score})
                await instance.record_quality("cost")
            await client.flush()
            assert await stored_quality(api, instance.id) == {"accuracy": {"score": 4}}
            await instance.record_quality("accuracy")
            await client.record_quality(instance.id, "cost", {"score": 9})
        assert await stored_quality(api, instance.id) == {"cost": {"score": 9}}
        assert client.statistics().lost == 0
        if most == 1_000 and given_ids:
            assert [call.name for call in api.calls] == ["register", "bulk", "bulk"]


async def test_where_bulk_does_not_know_quality_it_is_sent_alone_after_two_attempts() -> None:
    known = [f"agent_{of}" for of in ("instances/start", "instances/finish", "spans/create")]
    async with open_faulty_api(faults=Faults(bulk_types=[*known, "agent_spans/finish"])) as api:
        async with (
            open_prefactor(make_config(), asgi_app=api) as client,
            client.agent_instance(**JUDGED) as instance,
        ):
            for score in range(6):
                with instance.span("agent:llm"):
                    pass
                await instance.record_quality("accuracy", {"score": score})
        assert await stored_quality(api, instance.id) == {"accuracy": {"score": 5}}
        assert client.statistics().lost == 0
        refused = [item for call in api.calls for item in call.items if item.status == 400]
        assert [item.name for item in refused] == ["record_quality"] * 2


async def test_quality_overtakes_nothing_of_its_name_when_the_api_fails_at_it() -> None:
    async with open_faulty_api() as api:
        api.faults["record_quality"] = [500, 500, 500]
        async with (
            open_prefactor(make_config(), asgi_app=api) as client,
            client.agent_instance(**JUDGED) as instance,
        ):
            with instance.span("agent:llm"):
                pass
            await client.flush()
            for score in range(3):
                await instance.record_quality("accuracy", {"score": score})
            await instance.record_quality("cost", {"score": 9})
        assert await stored_quality(api, instance.id) == {
            "accuracy": {"score": 2},
            "cost": {"score": 9},
        }
        assert client.statistics().lost == 0


def test_synchronous_code_records_quality_the_same_way() -> None:
    with open_recording() as recorded:
        with recorded.open_sync() as client, client.agent_instance(**JUDGED) as instance:
            client.record_quality(instance.id, "accuracy", {"score": 1})
            instance.record_quality_nowait("cost", {"score": 2})
        statistics = client.statistics()
    assert (statistics.accepted, statistics.lost) == (5, 0)


def scores_once(api: FaultyApi) -> list[object]:
    """The recorded quality, without repetitions under the same key."""
    calls = {
        call.body["idempotency_key"]: call.body["payload"]["score"]
        for call in api.operations
        if call.name == "record_quality" and call.status == 200
    }
    return [*calls.values()]


async def test_record_quality_waits_for_a_slot_where_spans_do() -> None:
    queue = {"when_full": "wait", "max_pending_operations": 5, "batch_window": 0}
    async with open_api() as api:
        async with (
            open_prefactor(make_config(queue=queue), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            api.away = True

            async def come_back() -> None:
                await anyio.sleep(30)
                api.away = False

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(come_back)
                with anyio.fail_after(300):
                    for score in range(20):
                        await instance.record_quality("accuracy", {"score": score})
    assert scores_once(api) == [*range(20)]
    assert client.statistics().dropped == {}


async def test_a_cancelled_wait_for_a_slot_has_recorded_nothing() -> None:
    queue = {"when_full": "wait", "max_pending_operations": 2, "batch_window": 0}
    async with open_api() as api:
        async with (
            open_prefactor(make_config(queue=queue), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            api.away = True
            for score in range(9):
                with anyio.move_on_after(1):
                    await client.record_quality(instance.id, "accuracy", {"score": score})
            api.away = False
    scores = scores_once(api)
    assert scores == [*range(len(scores))]
    assert 0 < len(scores) < 9
    statistics = client.statistics()
    assert (statistics.lost, statistics.pending) == (0, 0)


async def test_without_payloads_only_the_removal_of_quality_is_recorded() -> None:
    async with open_api() as api:
        async with (
            open_prefactor(make_config(capture_payloads=False), asgi_app=api) as client,
            client.agent_instance(**AGENT) as instance,
        ):
            await instance.record_quality("accuracy", {"score": 1})
            instance.record_quality_nowait("accuracy", {"score": 2})
            await instance.record_quality("accuracy")
    assert recorded(api) == [("accuracy", None)]
