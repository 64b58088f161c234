"""Operations: one frozen struct for each kind, each encoded and decoded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest
from msgspec import UNSET, Raw, Struct
from support.cases import for_each

from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    ENVELOPE_SIZE,
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

KINDS: list[type[Any]] = list(get_args(Operation))
COMMON: dict[str, Any] = {
    "timestamp": to_nanoseconds(datetime(2026, 7, 20, 12, 0, 0, 123456, UTC)),
    "idempotency_key": "key-of-the-step",
}
SPAN = {"instance_id": "i" * 32, "span_id": "s" * 32}
REQUIRED: dict[type[Any], dict[str, Any]] = {
    RegisterAgentInstance: {
        "agent_id": "agent",
        "agent_version": Raw(b'{"name":"Agent", "labels":["a",{"b":null}]}'),
        "agent_schema_version": Raw(b'{"span_schemas":{"agent:llm":{"type":"object"}}}'),
        "instance_id": "i" * 32,
    },
    StartAgentInstance: {"instance_id": "i" * 32},
    FinishAgentInstance: {"instance_id": "i" * 32, "status": InstanceStatus.FAILED},
    CreateSpan: {
        **SPAN,
        "schema_name": "agent:llm",
        "status": SpanStatus.ACTIVE,
        "payload": Raw(b'{"text":"\xc3\xa9","n":1.5}'),
    },
    FinishSpan: {**SPAN, "status": SpanStatus.CANCELLED},
    UpdateSpanPayload: {**SPAN, "payload": Raw(b"{}")},
    RecordQuality: {"instance_id": "i" * 32, "name": "accuracy", "payload": Raw(b'{"score":1}')},
}
OPTIONAL: dict[type[Any], dict[str, Any]] = {
    RegisterAgentInstance: {
        "asks_for_id": True,
        "environment_id": "environment",
        "purpose": "eval",
        "external_identifier": "ticket-1",
        "runtime_environment": Raw(b'{"os":"linux","agent_sdk":[]}'),
    },
    CreateSpan: {
        "parent_span_id": "p" * 32,
        "finished_at": to_nanoseconds(datetime(2026, 7, 20, 12, 0, 1, tzinfo=UTC)),
        "result_payload": Raw(b'{"ok":true}'),
    },
    FinishSpan: {"result_payload": Raw(b'{"ok":true}')},
}

each_kind = for_each("kind", KINDS, ids=lambda kind: kind.__name__)


def make(kind: type[Any], **others: Any) -> Any:
    return kind(**COMMON, **REQUIRED[kind], **others)


def test_every_type_of_operation_has_one_struct() -> None:
    assert [kind.type for kind in KINDS] == list(OperationType)


def test_the_values_of_the_types_are_those_of_the_first_version() -> None:
    assert {type_.name: type_.value for type_ in OperationType} == {
        "REGISTER_AGENT_INSTANCE": 1,
        "START_AGENT_INSTANCE": 2,
        "FINISH_AGENT_INSTANCE": 3,
        "CREATE_SPAN": 4,
        "FINISH_SPAN": 5,
        "UPDATE_SPAN_PAYLOAD": 6,
        "RECORD_QUALITY": 7,
    }


@each_kind
def test_an_operation_is_one_by_isinstance(kind: type[Any]) -> None:
    operation = make(kind)
    assert isinstance(operation, Operation)
    assert [other for other in KINDS if isinstance(operation, other)] == [kind]


def test_another_struct_is_no_operation() -> None:
    class Other(Struct):
        pass

    assert not isinstance(Other(), Operation)


@each_kind
def test_an_operation_cannot_be_changed(kind: type[Any]) -> None:
    operation = make(kind)
    for name in (*operation.__struct_fields__, "type"):
        with pytest.raises(AttributeError):
            setattr(operation, name, None)


@each_kind
@for_each("with_optional", [False, True])
def test_an_operation_is_the_same_after_being_written_down(
    kind: type[Any], with_optional: bool
) -> None:
    operation = make(kind, **(OPTIONAL.get(kind, {}) if with_optional else {}))
    written = msgspec.json.encode(operation)
    assert msgspec.json.decode(written)["operation_type"] == kind.type.name
    read = msgspec.json.decode(written, type=Operation)
    assert type(read) is kind
    assert read == operation
    assert read.type is kind.type


@each_kind
def test_an_operation_has_its_own_fields_and_no_others(kind: type[Any]) -> None:
    own = {**COMMON, **REQUIRED[kind], **OPTIONAL.get(kind, {})}
    assert set(kind.__struct_fields__) == set(own)
    operation = make(kind)
    assert all(getattr(operation, name) in (None, False, UNSET) for name in OPTIONAL.get(kind, {}))
    with pytest.raises(TypeError, match="metadata"):
        make(kind, metadata={})


@each_kind
def test_no_required_field_can_be_left_out(kind: type[Any]) -> None:
    given = {**COMMON, **REQUIRED[kind]}
    for name in given:
        with pytest.raises(TypeError, match=name):
            kind(**{field: value for field, value in given.items() if field != name})


def test_an_unknown_kind_of_operation_is_not_decoded() -> None:
    written = msgspec.json.encode(make(FinishSpan)).replace(b"FINISH_SPAN", b"FINISH_SPIN")
    with pytest.raises(msgspec.ValidationError, match="FINISH_SPIN"):
        msgspec.json.decode(written, type=Operation)


@each_kind
def test_the_size_of_an_operation_is_its_envelope_and_its_json(kind: type[Any]) -> None:
    for others in ({}, OPTIONAL.get(kind, {})):
        operation = make(kind, **others)
        json = [value for value in msgspec.structs.astuple(operation) if isinstance(value, Raw)]
        counted = [] if kind is UpdateSpanPayload else json  # that is never sent
        assert operation.size == ENVELOPE_SIZE + sum(len(bytes(text)) for text in counted)


def test_a_registration_as_given_is_another_request_without_the_environment() -> None:
    plain = make(RegisterAgentInstance)
    added = make(RegisterAgentInstance, **OPTIONAL[RegisterAgentInstance])
    given = added.as_given()
    assert given.runtime_environment is UNSET
    assert given.idempotency_key != added.idempotency_key
    back = msgspec.structs.replace(
        given,
        runtime_environment=added.runtime_environment,
        idempotency_key=added.idempotency_key,
    )
    assert back == added
    assert plain.as_given().idempotency_key == given.idempotency_key


def test_a_registration_may_name_neither_agent_nor_environment() -> None:
    operation = msgspec.structs.replace(make(RegisterAgentInstance), agent_id=None)
    assert msgspec.json.decode(msgspec.json.encode(operation), type=Operation) == operation
