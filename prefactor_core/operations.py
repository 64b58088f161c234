"""What is told to the API: one frozen struct for each kind of operation. Pure.

An operation is made when the thing happens, with its time and its idempotency key, and is
sent as it is on every attempt. ``msgspec`` can write any of them down and read it back as
:data:`Operation`; the tag is the name of its :class:`OperationType`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, auto
from typing import ClassVar, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType

from prefactor_core.lifecycle import InstanceStatus, SpanStatus


class OperationType(Enum):
    """The kinds of operation."""

    REGISTER_AGENT_INSTANCE = auto()
    START_AGENT_INSTANCE = auto()
    FINISH_AGENT_INSTANCE = auto()
    CREATE_SPAN = auto()
    FINISH_SPAN = auto()
    UPDATE_SPAN_PAYLOAD = auto()


class _Operation(Struct, frozen=True, kw_only=True, tag_field="operation_type"):
    """What all operations have."""

    timestamp: datetime
    """When it happened; aware, UTC."""

    idempotency_key: str
    """8 to 64 characters; the same on every attempt (API.md section 5)."""


class RegisterAgentInstance(_Operation, frozen=True, kw_only=True, tag="REGISTER_AGENT_INSTANCE"):
    """A run is made known, with the agent's version and its span types."""

    type: ClassVar[OperationType] = OperationType.REGISTER_AGENT_INSTANCE

    agent_id: str
    agent_version: Mapping[str, object]
    agent_schema_version: Mapping[str, object]
    instance_id: str | None = None


class StartAgentInstance(_Operation, frozen=True, kw_only=True, tag="START_AGENT_INSTANCE"):
    """A run begins: pending to active."""

    type: ClassVar[OperationType] = OperationType.START_AGENT_INSTANCE

    instance_id: str


class FinishAgentInstance(_Operation, frozen=True, kw_only=True, tag="FINISH_AGENT_INSTANCE"):
    """A run ends: complete, failed or cancelled."""

    type: ClassVar[OperationType] = OperationType.FINISH_AGENT_INSTANCE

    instance_id: str
    status: InstanceStatus


class CreateSpan(_Operation, frozen=True, kw_only=True, tag="CREATE_SPAN"):
    """A span begins (active), or is made only to be cancelled (pending)."""

    type: ClassVar[OperationType] = OperationType.CREATE_SPAN

    instance_id: str
    span_id: str
    schema_name: str
    status: SpanStatus
    payload: Raw
    parent_span_id: str | None = None


class FinishSpan(_Operation, frozen=True, kw_only=True, tag="FINISH_SPAN"):
    """A span ends: complete, failed or cancelled, with its result if it has one."""

    type: ClassVar[OperationType] = OperationType.FINISH_SPAN

    instance_id: str
    span_id: str
    status: SpanStatus
    result_payload: Raw | UnsetType = UNSET


class UpdateSpanPayload(_Operation, frozen=True, kw_only=True, tag="UPDATE_SPAN_PAYLOAD"):
    """A new payload for a span that has started. The API has no call for it: never sent."""

    type: ClassVar[OperationType] = OperationType.UPDATE_SPAN_PAYLOAD

    instance_id: str
    span_id: str
    payload: Raw


Operation: TypeAlias = (
    RegisterAgentInstance
    | StartAgentInstance
    | FinishAgentInstance
    | CreateSpan
    | FinishSpan
    | UpdateSpanPayload
)
