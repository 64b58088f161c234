"""Request bodies: operations as the API accepts them, alone or in bulk. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

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

# The key of a sensitive value as msgspec encodes it. A text that merely mentions the key does not
# match: its quotes are escaped.
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


# By class: how the bulk item begins, and the field for the id that the single call has in its path.
_ITEMS: Final[dict[type[Operation], tuple[bytes, bytes]]] = {
    RegisterAgentInstance: (b'{"_type":"agent_instances/register",', b""),
    StartAgentInstance: (b'{"_type":"agent_instances/start",', b"agent_instance_id"),
    FinishAgentInstance: (b'{"_type":"agent_instances/finish",', b"agent_instance_id"),
    RecordQuality: (b'{"_type":"agent_instances/record_quality",', b"agent_instance_id"),
    CreateSpan: (b'{"_type":"agent_spans/create",', b""),
    FinishSpan: (b'{"_type":"agent_spans/finish",', b"agent_span_id"),
}


def single(operation: Operation, *, given_id: bool = True) -> tuple[str, Struct]:
    """The path below ``/api/v1/`` and the body of the call for one operation.

    ``given_id``: False to let the API make the id of a span. Raises :class:`OperationError` for an
    operation that the API has no endpoint for.
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
            return "agent_instance/register", _registration(operation)
        case _:
            raise OperationError(
                f"{operation.type.name}: the API has no call that changes the payload of a span "
                "that has started",
                operation.type,
            )


def termination(instance_id: str, reason: str, idempotency_key: str) -> tuple[str, Struct]:
    """The path and the body of the call that terminates a run; there is no operation for it."""
    body = _Terminate(reason=reason, idempotency_key=idempotency_key)
    return f"agent_instance/{instance_id}/terminate", body


def item(operation: Operation, body: bytes) -> bytes:
    """The item of POST /api/v1/bulk for ``operation``; ``body``: its single call, as JSON."""
    begin, id_field = _ITEMS[type(operation)]
    if not id_field:
        return begin + body[1:]
    id = operation.span_id if isinstance(operation, FinishSpan) else operation.instance_id
    return b'%s%s,"%s":%s}' % (begin, body[1:-1], id_field, msgspec.json.encode(id))


def _registration(operation: RegisterAgentInstance) -> _Register:
    version = operation.agent_version
    if operation.runtime_environment is not UNSET:
        fields = msgspec.json.decode(version, type=dict[str, Raw])
        fields["runtime_environment"] = operation.runtime_environment
        version = Raw(msgspec.json.encode(fields))
    return _Register(
        agent_id=operation.agent_id,
        environment_id=operation.environment_id,
        external_identifier=operation.external_identifier,
        purpose=operation.purpose,
        agent_version=version,
        agent_schema_version=operation.agent_schema_version,
        update_current_version=True,
        idempotency_key=operation.idempotency_key,
        id=operation.instance_id if operation.asks_for_id else None,
    )


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
    """Whether ``payload`` has sensitive values: the API wants that as ``sensitive_encoding``."""
    return payload is not UNSET and _SENSITIVE in bytes(payload)


def page(offset: int, size: int, direction: str) -> dict[str, str]:
    """The query for a page of a list, ordered by id: ``asc`` or ``desc``."""
    return {
        "pagination[offset]": str(offset),
        "pagination[page_size]": str(size),
        "sorting[field]": "id",
        "sorting[direction]": direction,
    }
