"""The bodies of requests, byte for byte: single calls, spans and bulk."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw, UnsetType
from support.cases import case

from prefactor_core.api.requests import item, single, termination
from prefactor_core.exceptions import OperationError
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    OperationType,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)

AT = to_nanoseconds(datetime(2026, 7, 20, 12, 0, 0, 123456, UTC))
LATER = AT + 1_000_000_000
START = StartAgentInstance(timestamp=AT, idempotency_key="run-start", instance_id="run")
FINISH = FinishAgentInstance(
    timestamp=AT, idempotency_key="run-finish", instance_id="run", status=InstanceStatus.FAILED
)
UPDATE = UpdateSpanPayload(
    timestamp=AT,
    idempotency_key="span-update",
    instance_id="run",
    span_id="span",
    payload=Raw(b"{}"),
)


def bulk(operations: list[Operation], given_ids: list[bool]) -> dict[str, list[Raw]]:
    """The body of a bulk request."""
    items: list[Raw] = []
    for operation, given_id in zip(operations, given_ids, strict=True):
        _, body = single(operation, given_id=given_id)
        items.append(Raw(item(operation, msgspec.json.encode(body))))
    return {"items": items}


QUALITY = RecordQuality(
    timestamp=AT,
    idempotency_key="a-key-of-its-own",
    instance_id="run",
    name="accuracy",
    payload=Raw(b'{"score":0.5}'),
)
REMOVED = msgspec.structs.replace(QUALITY, payload=Raw(b"null"))


def register(**own: Any) -> RegisterAgentInstance:
    return RegisterAgentInstance(
        timestamp=AT,
        idempotency_key="run-register",
        agent_id="agent",
        agent_version=Raw(b'{"name":"Agent"}'),
        agent_schema_version=Raw(b'{"span_schemas":{}}'),
        instance_id="run",
        **own,
    )


def create(status: SpanStatus = SpanStatus.ACTIVE, **more: Any) -> CreateSpan:
    return CreateSpan(
        timestamp=AT,
        idempotency_key="span-create",
        instance_id="run",
        span_id="span",
        schema_name="agent:llm",
        status=status,
        payload=Raw(b'{"text":"\xc3\xa9", "n":1.50}'),
        **more,
    )


def end(status: SpanStatus, result: Raw | UnsetType = UNSET) -> FinishSpan:
    return FinishSpan(
        timestamp=AT,
        idempotency_key="span-finish",
        instance_id="run",
        span_id="span",
        status=status,
        result_payload=result,
    )


ENDED = create(
    SpanStatus.COMPLETE, parent_span_id="parent", finished_at=LATER, result_payload=Raw(b'{"r":1}')
)

SINGLE: list[tuple[Operation, str, bytes]] = [
    (
        register(),
        "agent_instance/register",
        (
            b'{"agent_id":"agent","agent_version":{"name":"Agent"},'
            b'"agent_schema_version":{"span_schemas":{}},"update_current_version":true,'
            b'"idempotency_key":"run-register"}'
        ),
    ),
    (
        register(asks_for_id=True),
        "agent_instance/register",
        (
            b'{"agent_id":"agent","agent_version":{"name":"Agent"},'
            b'"agent_schema_version":{"span_schemas":{}},"update_current_version":true,'
            b'"idempotency_key":"run-register","id":"run"}'
        ),
    ),
    (
        register(environment_id="test", purpose="eval", external_identifier="ticket-1"),
        "agent_instance/register",
        (
            b'{"agent_id":"agent","environment_id":"test","agent_version":{"name":"Agent"},'
            b'"agent_schema_version":{"span_schemas":{}},"update_current_version":true,'
            b'"idempotency_key":"run-register","external_identifier":"ticket-1",'
            b'"purpose":"eval"}'
        ),
    ),
    (
        START,
        "agent_instance/run/start",
        b'{"timestamp":"2026-07-20T12:00:00.123456Z","idempotency_key":"run-start"}',
    ),
    (
        FINISH,
        "agent_instance/run/finish",
        (
            b'{"status":"failed","timestamp":"2026-07-20T12:00:00.123456Z",'
            b'"idempotency_key":"run-finish"}'
        ),
    ),
    (
        QUALITY,
        "agent_instance/run/record_quality",
        b'{"name":"accuracy","payload":{"score":0.5},"idempotency_key":"a-key-of-its-own"}',
    ),
    (
        REMOVED,
        "agent_instance/run/record_quality",
        b'{"name":"accuracy","payload":null,"idempotency_key":"a-key-of-its-own"}',
    ),
    (
        create(),
        "agent_spans",
        (
            b'{"details":{"agent_instance_id":"run","schema_name":"agent:llm","status":"active",'
            b'"payload":{"text":"\xc3\xa9", "n":1.50},"idempotency_key":"span-create","id":"span",'
            b'"started_at":"2026-07-20T12:00:00.123456Z"},"idempotency_key":"span-create"}'
        ),
    ),
    (
        create(SpanStatus.PENDING, parent_span_id="parent"),
        "agent_spans",
        (
            b'{"details":{"agent_instance_id":"run","schema_name":"agent:llm","status":"pending",'
            b'"payload":{"text":"\xc3\xa9", "n":1.50},"idempotency_key":"span-create","id":"span",'
            b'"parent_span_id":"parent"},"idempotency_key":"span-create"}'
        ),
    ),
    (
        ENDED,
        "agent_spans",
        (
            b'{"details":{"agent_instance_id":"run","schema_name":"agent:llm","status":"complete",'
            b'"payload":{"text":"\xc3\xa9", "n":1.50},"idempotency_key":"span-create","id":"span",'
            b'"parent_span_id":"parent","started_at":"2026-07-20T12:00:00.123456Z",'
            b'"finished_at":"2026-07-20T12:00:01.123456Z","result_payload":{"r":1}},'
            b'"idempotency_key":"span-create"}'
        ),
    ),
    (
        end(SpanStatus.CANCELLED),
        "agent_spans/span/finish",
        (
            b'{"status":"cancelled","timestamp":"2026-07-20T12:00:00.123456Z",'
            b'"idempotency_key":"span-finish"}'
        ),
    ),
    (
        end(SpanStatus.COMPLETE, Raw(b'{ "r" : [ ] }')),
        "agent_spans/span/finish",
        (
            b'{"status":"complete","timestamp":"2026-07-20T12:00:00.123456Z",'
            b'"idempotency_key":"span-finish","result_payload":{ "r" : [ ] }}'
        ),
    ),
]

ITEMS: list[tuple[Operation, bytes]] = [
    (
        register(),
        (
            b'{"_type":"agent_instances/register","agent_id":"agent",'
            b'"agent_version":{"name":"Agent"},"agent_schema_version":{"span_schemas":{}},'
            b'"update_current_version":true,"idempotency_key":"run-register"}'
        ),
    ),
    (
        register(
            asks_for_id=True,
            environment_id="test",
            purpose="eval",
            external_identifier="ticket-1",
            runtime_environment=Raw(b'{"os":"linux"}'),
        ),
        (
            b'{"_type":"agent_instances/register","agent_id":"agent","environment_id":"test",'
            b'"agent_version":{"name":"Agent","runtime_environment":{"os":"linux"}},'
            b'"agent_schema_version":{"span_schemas":{}},"update_current_version":true,'
            b'"idempotency_key":"run-register","id":"run","external_identifier":"ticket-1",'
            b'"purpose":"eval"}'
        ),
    ),
    (
        START,
        (
            b'{"_type":"agent_instances/start","timestamp":"2026-07-20T12:00:00.123456Z",'
            b'"idempotency_key":"run-start","agent_instance_id":"run"}'
        ),
    ),
    (
        FINISH,
        (
            b'{"_type":"agent_instances/finish","status":"failed",'
            b'"timestamp":"2026-07-20T12:00:00.123456Z","idempotency_key":"run-finish",'
            b'"agent_instance_id":"run"}'
        ),
    ),
    (
        QUALITY,
        (
            b'{"_type":"agent_instances/record_quality","name":"accuracy",'
            b'"payload":{"score":0.5},"idempotency_key":"a-key-of-its-own",'
            b'"agent_instance_id":"run"}'
        ),
    ),
    (
        create(),
        (
            b'{"_type":"agent_spans/create","details":{"agent_instance_id":"run",'
            b'"schema_name":"agent:llm","status":"active","payload":{"text":"\xc3\xa9", "n":1.50},'
            b'"idempotency_key":"span-create","id":"span",'
            b'"started_at":"2026-07-20T12:00:00.123456Z"},"idempotency_key":"span-create"}'
        ),
    ),
    (
        end(SpanStatus.FAILED),
        (
            b'{"_type":"agent_spans/finish","status":"failed",'
            b'"timestamp":"2026-07-20T12:00:00.123456Z","idempotency_key":"span-finish",'
            b'"agent_span_id":"span"}'
        ),
    ),
    (
        end(SpanStatus.FAILED, Raw(b'{"r":1}')),
        (
            b'{"_type":"agent_spans/finish","status":"failed",'
            b'"timestamp":"2026-07-20T12:00:00.123456Z","idempotency_key":"span-finish",'
            b'"result_payload":{"r":1},"agent_span_id":"span"}'
        ),
    ),
]


def test_a_single_call_has_its_path_and_its_body() -> None:
    for operation, path, body in SINGLE:
        with case(operation):
            asked, struct = single(operation)
            assert asked == path
            assert msgspec.json.encode(struct) == body


def test_a_registration_without_an_agent_names_none() -> None:
    operation = msgspec.structs.replace(register(), agent_id=None)
    assert msgspec.json.encode(single(operation)[1]) == (
        b'{"agent_version":{"name":"Agent"},"agent_schema_version":{"span_schemas":{}},'
        b'"update_current_version":true,"idempotency_key":"run-register"}'
    )


def test_what_a_run_runs_on_is_a_part_of_its_agents_version() -> None:
    operation = register(runtime_environment=Raw(b'{"os":"linux"}'))
    body = msgspec.json.encode(single(operation)[1])
    assert b'"agent_version":{"name":"Agent","runtime_environment":{"os":"linux"}}' in body
    # With the version as the caller gave it, it is another request.
    given = msgspec.json.encode(single(operation.as_given())[1])
    plain = msgspec.json.encode(single(register())[1])
    assert given == plain.replace(b'"run-register"', b'"run-register-as-given"')


def test_a_termination_has_its_path_and_its_body() -> None:
    path, body = termination("run", "over budget", "a-key")
    assert path == "agent_instance/run/terminate"
    assert msgspec.json.encode(body) == b'{"reason":"over budget","idempotency_key":"a-key"}'


def test_an_item_of_bulk_has_its_type_and_its_body() -> None:
    for operation, expected in ITEMS:
        with case(operation):
            assert (
                msgspec.json.encode(bulk([operation], [True])) == b'{"items":[' + expected + b"]}"
            )


def test_the_items_of_bulk_keep_their_order() -> None:
    operations = [operation for operation, _ in ITEMS]
    body = msgspec.json.encode(bulk(operations, [True] * len(operations)))
    assert body == b'{"items":[' + b",".join(item for _, item in ITEMS) + b"]}"


def test_a_span_says_when_it_began_unless_it_never_did() -> None:
    for status in list(SpanStatus):
        with case(status):
            for body in (single(create(status))[1], bulk([create(status)], [True])):
                said = b'"started_at":"2026-07-20T12:00:00.123456Z"' in msgspec.json.encode(body)
                assert said == (status is not SpanStatus.PENDING)


def test_without_given_ids_a_span_comes_without_its_id_and_else_the_same() -> None:
    for operation in [create(), ENDED]:
        with case(operation):
            with_id = single(operation)[1], bulk([operation], [True])
            without = single(operation, given_id=False)[1], bulk([operation], [False])
            for one, other in zip(with_id, without, strict=True):
                body = msgspec.json.encode(one)
                assert body.count(b',"id":"span"') == 1
                assert msgspec.json.encode(other) == body.replace(b',"id":"span"', b"")


def test_a_finish_names_its_span_also_without_given_ids() -> None:
    operation = end(SpanStatus.COMPLETE)
    path, body = single(operation, given_id=False)
    assert (path, body) == single(operation)
    assert bulk([operation], [False]) == bulk([operation], [True])


def test_every_time_has_an_offset() -> None:
    operation = msgspec.structs.replace(ENDED, timestamp=AT, finished_at=AT)
    for body in (single(operation)[1], bulk([operation], [True])):
        written = msgspec.json.encode(body)
        assert written.count(b'"2026-07-20T12:00:00.123456Z"') == 2


def test_what_the_api_has_no_call_for_is_refused() -> None:
    with pytest.raises(OperationError, match="no call that changes the payload") as caught:
        single(UPDATE)
    assert caught.value.operation_type is OperationType.UPDATE_SPAN_PAYLOAD
    with pytest.raises(OperationError, match="UPDATE_SPAN_PAYLOAD") as caught:
        bulk([START, UPDATE], [True, True])
    assert caught.value.operation_type is OperationType.UPDATE_SPAN_PAYLOAD


def test_the_version_of_an_agent_is_sent_byte_for_byte_as_it_was_recorded() -> None:
    # Even JSON that msgspec would encode differently: the same key must have the same body.
    version = Raw(b'{ "name" : "\\u00e9" , "n" : 1.50e1 , "name" : "twice" }')
    schemas = Raw(b'{"span_schemas" : { }}')
    operation = msgspec.structs.replace(
        register(), agent_version=version, agent_schema_version=schemas
    )
    for body in (single(operation)[1], bulk([operation], [True])):
        text = msgspec.json.encode(body)
        assert b'"agent_version":%s,"agent_schema_version":%s,' % (version, schemas) in text


def test_an_environment_is_added_beside_fields_that_are_sent_as_they_were_recorded() -> None:
    version = Raw(b'{"name":"Agent","n": 1.50e1 }')
    operation = msgspec.structs.replace(
        register(runtime_environment=Raw(b'{"os" : "linux"}')), agent_version=version
    )
    expected = b'"agent_version":{"name":"Agent","n":1.50e1,"runtime_environment":{"os" : "linux"}}'
    for body in (single(operation)[1], bulk([operation], [True])):
        assert expected in msgspec.json.encode(body)


def test_an_item_of_bulk_says_what_the_single_call_says() -> None:
    # The item has the ids of the path, too, and a type.
    for operation, _ in ITEMS:
        path, body = single(operation)
        alone = msgspec.to_builtins(msgspec.json.decode(msgspec.json.encode(body)))
        (item,) = msgspec.json.decode(msgspec.json.encode(bulk([operation], [True])))["items"]
        more = {name: item.pop(name) for name in set(item) - set(alone)}
        assert item == alone
        assert more.pop("_type").split("/")[0] in ("agent_instances", "agent_spans")
        assert all(value in path.split("/") for value in more.values())
