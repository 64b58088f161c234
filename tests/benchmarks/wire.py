"""The messages of the benchmark server: the Prefactor API, read leniently, and OTLP.

Requests are decoded as far as the counters need; payloads stay bytes (``msgspec.Raw``).
Answers have every field that the official clients' models ask for.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Raw, Struct, field

NOW = "2026-01-01T00:00:00.000000Z"
"""The time of every answer: no client reads it, and formatting a time costs."""

_PARTITION = "ds15na"


def make_id(number: int) -> str:
    """A PFID (its random part is ``number``)."""
    return f"01m81h526z{_PARTITION}{number:016d}"


class SpanCreate(Struct):
    """The details of a new span."""

    agent_instance_id: str = ""
    schema_name: str = ""
    status: str = "active"
    id: str | None = None
    parent_span_id: str | None = None
    payload: Raw = field(default_factory=lambda: Raw(b"{}"))
    result_payload: Raw = field(default_factory=lambda: Raw(b"null"))
    started_at: str | None = None
    finished_at: str | None = None
    idempotency_key: str | None = None


class SpanCreateCall(Struct):
    """``POST agent_spans``."""

    details: SpanCreate
    idempotency_key: str | None = None


class FinishCall(Struct):
    """``POST agent_spans/{id}/finish`` and, with fewer fields, the calls of an instance."""

    status: str | None = "complete"
    result_payload: Raw = field(default_factory=lambda: Raw(b"null"))
    timestamp: str | None = None
    idempotency_key: str | None = None


class RegisterCall(Struct):
    """``POST agent_instance/register``."""

    agent_id: str | None = None
    id: str | None = None


class BulkItem(SpanCreate):
    """One item of a bulk request, of any type; a span may be flat or in ``details``."""

    type: str = field(default="", name="_type")
    details: SpanCreate | None = None
    agent_span_id: str = ""
    timestamp: str | None = None
    agent_id: str | None = None


class BulkCall(Struct):
    """``POST bulk``."""

    items: list[BulkItem]


class SpanDetails(Struct):
    """A span, as the API answers it."""

    id: str
    agent_instance_id: str
    schema_name: str
    status: str
    parent_span_id: str | None = None
    payload: Raw = field(default_factory=lambda: Raw(b"{}"))
    result_payload: Raw = field(default_factory=lambda: Raw(b"null"))
    started_at: str | None = NOW
    finished_at: str | None = None
    type: str = "agent_span"
    account_id: str = make_id(1)
    agent_id: str = make_id(2)
    schema_title: str | None = None
    summary: str | None = None
    inserted_at: str = NOW
    updated_at: str = NOW


class SpanCounts(Struct):
    """All seven counts: the oldest client refuses an answer without one."""

    total: int = 0
    pending: int = 0
    active: int = 0
    complete: int = 0
    failed: int = 0
    cancelled: int = 0
    finished: int = 0


class InstanceDetails(Struct):
    """An agent instance, as the API answers it."""

    id: str
    status: str
    started_at: str | None = None
    finished_at: str | None = None
    type: str = "agent_instance"
    account_id: str = make_id(1)
    agent_id: str = make_id(2)
    agent_version_id: str = make_id(3)
    environment_id: str = make_id(4)
    agent_deployment_id: str = make_id(5)
    inserted_at: str = NOW
    updated_at: str = NOW
    termination_reason: str | None = None
    external_identifier: str | None = None
    span_counts: SpanCounts = field(default_factory=SpanCounts)
    purpose: str = "live"
    quality_payloads: dict[str, Raw] = field(default_factory=dict[str, Raw])
    quality_summaries: dict[str, str] = field(default_factory=dict[str, str])


class VersionDetails(Struct):
    """An agent version or a schema version, as registering answers it."""

    id: str
    type: str
    external_identifier: str = "v1"
    span_type_schemas: dict[str, Raw] = field(default_factory=dict[str, Raw])


class Success(Struct):
    """The envelope of one answer, and one output of a bulk answer."""

    details: SpanDetails | InstanceDetails
    status: str = "success"
    agent_version: VersionDetails | None = None
    agent_schema_version: VersionDetails | None = None


class BulkAnswer(Struct):
    """The answers of a bulk request, by idempotency key."""

    outputs: dict[str, Success]
    status: str = "success"


def otlp_span_ids(request: bytes) -> Iterator[bytes]:
    """The span ids in a protobuf ExportTraceServiceRequest.

    Its field 1 holds resource spans, their field 2 scope spans, their field 2 spans, and their
    field 2 the id.
    """
    view = memoryview(request)
    for resource_spans in _messages(view, 1):
        for scope_spans in _messages(resource_spans, 2):
            for span in _messages(scope_spans, 2):
                for span_id in _messages(span, 2):
                    yield bytes(span_id)
                    break


def _messages(view: memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields of number ``wanted`` in a protobuf message."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        match key & 7:
            case 0:
                _, position = _varint(view, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(view, position)
                if key >> 3 == wanted:
                    yield view[position : position + length]
                position += length
            case 5:
                position += 4
            case kind:
                raise ValueError(f"protobuf field of wire type {kind}")


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
