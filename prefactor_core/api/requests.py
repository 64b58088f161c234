"""The bodies of requests: operations as the API takes them, alone or in bulk. Pure.

API.md sections 6.1 (single calls), 8 (spans) and 10 (bulk).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from prefactor_core.exceptions import OperationError
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    Purpose,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
)

# The key of a tagged value as msgspec writes it. Inside of a text its quotes would be escaped, so
# it is not found where somebody has merely written about it.
_SENSITIVE: Final = b'"$sensitive":'


class _Register(Struct, kw_only=True, omit_defaults=True):
    agent_id: str | None = None
    environment_id: str | None = None
    agent_version: Raw
    agent_schema_version: Raw
    update_current_version: bool
    idempotency_key: str
    id: str | None = None
    external_identifier: str | None = None
    purpose: Purpose | None = None


class _Start(Struct, kw_only=True):
    timestamp: datetime
    idempotency_key: str


class _FinishInstance(Struct, kw_only=True):
    status: InstanceStatus
    timestamp: datetime
    idempotency_key: str


class _Quality(Struct, kw_only=True):
    name: str
    payload: Raw
    idempotency_key: str


class _Terminate(Struct, kw_only=True):
    reason: str
    idempotency_key: str


class _SpanDetails(Struct, kw_only=True, omit_defaults=True):
    agent_instance_id: str
    schema_name: str
    status: SpanStatus
    payload: Raw
    # Some versions of the API read the key here, others beside the details.
    idempotency_key: str
    id: str | None = None
    parent_span_id: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result_payload: Raw | UnsetType = UNSET
    sensitive_encoding: bool = False


class _Create(Struct, kw_only=True):
    details: _SpanDetails
    idempotency_key: str


class _FinishSpan(Struct, kw_only=True, omit_defaults=True):
    status: SpanStatus
    timestamp: datetime
    idempotency_key: str
    result_payload: Raw | UnsetType = UNSET
    sensitive_encoding: bool = False


class _RegisterItem(_Register, kw_only=True, tag_field="_type", tag="agent_instances/register"):
    pass


class _StartItem(_Start, kw_only=True, tag_field="_type", tag="agent_instances/start"):
    agent_instance_id: str


class _FinishInstanceItem(
    _FinishInstance, kw_only=True, tag_field="_type", tag="agent_instances/finish"
):
    agent_instance_id: str


class _QualityItem(_Quality, kw_only=True, tag_field="_type", tag="agent_instances/record_quality"):
    agent_instance_id: str


class _CreateItem(_Create, kw_only=True, tag_field="_type", tag="agent_spans/create"):
    pass


class _FinishSpanItem(_FinishSpan, kw_only=True, tag_field="_type", tag="agent_spans/finish"):
    agent_span_id: str


def single(operation: Operation, *, given_id: bool = True) -> tuple[str, Struct]:
    """The path below ``/api/v1/`` and the body of an operation's own call.

    ``given_id``: whether the API is told which id a span shall have. Raises
    :class:`OperationError` for what the API has no call for.
    """
    match operation:
        case CreateSpan():
            key = operation.idempotency_key
            details = _span_details(operation, given_id)
            return "agent_spans", _Create(details=details, idempotency_key=key)
        case FinishSpan():
            return f"agent_spans/{operation.span_id}/finish", _FinishSpan(
                status=operation.status,
                timestamp=to_datetime(operation.timestamp),
                idempotency_key=operation.idempotency_key,
                result_payload=operation.result_payload,
                sensitive_encoding=_has_tags(operation.result_payload),
            )
        case StartAgentInstance():
            return f"agent_instance/{operation.instance_id}/start", _Start(
                timestamp=to_datetime(operation.timestamp),
                idempotency_key=operation.idempotency_key,
            )
        case FinishAgentInstance():
            return f"agent_instance/{operation.instance_id}/finish", _FinishInstance(
                status=operation.status,
                timestamp=to_datetime(operation.timestamp),
                idempotency_key=operation.idempotency_key,
            )
        case RecordQuality():
            return f"agent_instance/{operation.instance_id}/record_quality", _Quality(
                name=operation.name,
                payload=operation.payload,
                idempotency_key=operation.idempotency_key,
            )
        case RegisterAgentInstance():
            return "agent_instance/register", _Register(**_registration(operation))
        case _:
            raise OperationError(
                "the API has no call that changes the payload of a span that has started",
                operation.type,
            )


def termination(instance_id: str, reason: str, idempotency_key: str) -> tuple[str, Struct]:
    """The path and the body of the call that terminates a run; no operation does."""
    body = _Terminate(reason=reason, idempotency_key=idempotency_key)
    return f"agent_instance/{instance_id}/terminate", body


def item(operation: Operation, given_id: bool) -> Struct:
    """An operation as an item of a bulk request.

    ``given_id``: whether the API is told which id a span shall have. Raises
    :class:`OperationError` for what the API has no call for.
    """
    key = operation.idempotency_key
    match operation:
        case CreateSpan():
            return _CreateItem(details=_span_details(operation, given_id), idempotency_key=key)
        case FinishSpan():
            return _FinishSpanItem(
                agent_span_id=operation.span_id,
                status=operation.status,
                timestamp=to_datetime(operation.timestamp),
                idempotency_key=key,
                result_payload=operation.result_payload,
                sensitive_encoding=_has_tags(operation.result_payload),
            )
        case StartAgentInstance():
            return _StartItem(
                agent_instance_id=operation.instance_id,
                timestamp=to_datetime(operation.timestamp),
                idempotency_key=key,
            )
        case FinishAgentInstance():
            return _FinishInstanceItem(
                agent_instance_id=operation.instance_id,
                status=operation.status,
                timestamp=to_datetime(operation.timestamp),
                idempotency_key=key,
            )
        case RecordQuality():
            return _QualityItem(
                agent_instance_id=operation.instance_id,
                name=operation.name,
                payload=operation.payload,
                idempotency_key=key,
            )
        case RegisterAgentInstance():
            return _RegisterItem(**_registration(operation))
        case _:
            raise OperationError(f"{operation.type.name} does not go into bulk", operation.type)


def _registration(operation: RegisterAgentInstance) -> dict[str, Any]:
    version = operation.agent_version
    if operation.runtime_environment is not UNSET:
        fields = msgspec.json.decode(version, type=dict[str, Raw])
        fields["runtime_environment"] = operation.runtime_environment
        version = Raw(msgspec.json.encode(fields))
    return {
        "agent_id": operation.agent_id,
        "environment_id": operation.environment_id,
        "external_identifier": operation.external_identifier,
        "purpose": operation.purpose,
        "agent_version": version,
        "agent_schema_version": operation.agent_schema_version,
        "update_current_version": True,
        "idempotency_key": operation.idempotency_key,
        "id": operation.instance_id if operation.asks_for_id else None,
    }


def _span_details(operation: CreateSpan, given_id: bool) -> _SpanDetails:
    begun, finished_at = to_datetime(operation.timestamp), operation.finished_at
    return _SpanDetails(
        id=operation.span_id if given_id else None,
        agent_instance_id=operation.instance_id,
        parent_span_id=operation.parent_span_id,
        schema_name=operation.schema_name,
        status=operation.status,
        payload=operation.payload,
        started_at=None if operation.status is SpanStatus.PENDING else begun,
        finished_at=None if finished_at is None else to_datetime(finished_at),
        result_payload=operation.result_payload,
        sensitive_encoding=_has_tags(operation.payload) or _has_tags(operation.result_payload),
        idempotency_key=operation.idempotency_key,
    )


def _has_tags(payload: Raw | UnsetType) -> bool:
    """Whether values in ``payload`` are marked as sensitive (API.md section 8)."""
    return payload is not UNSET and _SENSITIVE in bytes(payload)
