"""Operations: one frozen struct for each kind of call to the API. Pure.

Ids, times and captured payloads come in; operations go out to the buffer. An operation is made when
the event happens, with its time and its idempotency key, and every attempt sends it unchanged.
``msgspec`` can encode any of them and decode it as :data:`Operation`; the tag is the name of its
:class:`OperationType`. Read this file first, then ``identifiers`` (PFIDs and keys).
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.models.lifecycle import OperationType as OperationType

ENVELOPE_SIZE = 512
"""Bytes of an operation without its payloads, in a request as in memory; an estimate."""

_AS_GIVEN = "-as-given"
_BY_ID = "-by-id"

Purpose: TypeAlias = Literal["live", "smoke_test", "eval"]
"""The purpose of a run."""


class _Operation(Struct, frozen=True, kw_only=True, tag_field="operation_type"):
    """The fields of all operations."""

    timestamp: int
    """The time of the event: nanoseconds since 1970, in UTC."""

    idempotency_key: str
    """8 to 64 characters; the same on every attempt."""

    @property
    def size(self) -> int:
        """Bytes in a request: exact for payloads, an estimate for the rest."""
        return ENVELOPE_SIZE


class RegisterAgentInstance(
    _Operation, frozen=True, kw_only=True, gc=False, tag="REGISTER_AGENT_INSTANCE"
):
    """A run is registered, with the agent's version and its span types.

    ``instance_id``: the id of the run in its other operations; the API is asked to use it only if
    the caller chose it (``asks_for_id``). Without ``agent_id`` and ``environment_id`` the token
    identifies these. ``agent_version`` and ``agent_schema_version``: their JSON at the time of
    recording. ``runtime_environment``: the addition to the former, unset without one.
    """

    type: ClassVar[OperationType] = OperationType.REGISTER_AGENT_INSTANCE

    agent_id: str | None
    agent_version: Raw
    agent_schema_version: Raw
    instance_id: str
    asks_for_id: bool = False
    environment_id: str | None = None
    purpose: Purpose | None = None
    external_identifier: str | None = None
    # Unset, not None: msgspec cannot read ``Raw | None`` back.
    runtime_environment: Raw | UnsetType = UNSET

    def as_given(self) -> RegisterAgentInstance:
        """Return the same operation with the agent's version as the caller gave it.

        The key is another one, as it is another request.
        """
        return msgspec.structs.replace(
            self, runtime_environment=UNSET, idempotency_key=self.idempotency_key + _AS_GIVEN
        )

    @property
    def is_as_given(self) -> bool:
        """Whether this operation was made by :meth:`as_given`."""
        return self.idempotency_key.endswith(_AS_GIVEN)

    def by_id(self) -> RegisterAgentInstance:
        """Return the same operation, that asks the API to use ``instance_id``; with another key."""
        key = self.idempotency_key + _BY_ID
        return msgspec.structs.replace(self, asks_for_id=True, idempotency_key=key)

    @property
    def is_by_id(self) -> bool:
        """Whether this operation was made by :meth:`by_id`: its caller did not choose the id."""
        return _BY_ID in self.idempotency_key

    def without_id(self) -> RegisterAgentInstance:
        """Return the operation of which :meth:`by_id` has made this one."""
        key = self.idempotency_key.replace(_BY_ID, "")
        return msgspec.structs.replace(self, asks_for_id=False, idempotency_key=key)

    @property
    def size(self) -> int:
        environment = self.runtime_environment
        return (
            ENVELOPE_SIZE
            + len(self.agent_version)
            + len(self.agent_schema_version)
            + (0 if environment is UNSET else len(environment))
        )


class StartAgentInstance(
    _Operation, frozen=True, kw_only=True, gc=False, tag="START_AGENT_INSTANCE"
):
    """A run begins: pending to active."""

    type: ClassVar[OperationType] = OperationType.START_AGENT_INSTANCE

    instance_id: str


class FinishAgentInstance(
    _Operation, frozen=True, kw_only=True, gc=False, tag="FINISH_AGENT_INSTANCE"
):
    """A run ends: complete, failed or cancelled."""

    type: ClassVar[OperationType] = OperationType.FINISH_AGENT_INSTANCE

    instance_id: str
    status: InstanceStatus


class CreateSpan(_Operation, frozen=True, kw_only=True, gc=False, tag="CREATE_SPAN"):
    """A span begins (active), or is created only to be cancelled (pending).

    A span that has already ended is created complete or failed, with ``finished_at`` and its
    result. ``timestamp`` is its beginning.
    """

    type: ClassVar[OperationType] = OperationType.CREATE_SPAN

    instance_id: str
    span_id: str
    schema_name: str
    status: SpanStatus
    payload: Raw
    parent_span_id: str | None = None
    finished_at: int | None = None
    result_payload: Raw | UnsetType = UNSET

    @property
    def size(self) -> int:
        result = self.result_payload
        return ENVELOPE_SIZE + len(self.payload) + (0 if result is UNSET else len(result))

    def finished_by(self, finish: FinishSpan) -> CreateSpan:
        """Return one operation for both: the beginning and the end of the span."""
        return CreateSpan(
            timestamp=self.timestamp,
            idempotency_key=self.idempotency_key,
            instance_id=self.instance_id,
            span_id=self.span_id,
            schema_name=self.schema_name,
            status=finish.status,
            payload=self.payload,
            parent_span_id=self.parent_span_id,
            finished_at=finish.timestamp,
            result_payload=finish.result_payload,
        )


class FinishSpan(_Operation, frozen=True, kw_only=True, gc=False, tag="FINISH_SPAN"):
    """A span ends: complete, failed or cancelled, with its result if it has one."""

    type: ClassVar[OperationType] = OperationType.FINISH_SPAN

    instance_id: str
    span_id: str
    status: SpanStatus
    result_payload: Raw | UnsetType = UNSET

    @property
    def size(self) -> int:
        result = self.result_payload
        return ENVELOPE_SIZE + (0 if result is UNSET else len(result))


class UpdateSpanPayload(_Operation, frozen=True, kw_only=True, tag="UPDATE_SPAN_PAYLOAD"):
    """A new payload for a span that has started. The API has no call for it: never sent."""

    type: ClassVar[OperationType] = OperationType.UPDATE_SPAN_PAYLOAD

    instance_id: str
    span_id: str
    payload: Raw


class RecordQuality(_Operation, frozen=True, kw_only=True, gc=False, tag="RECORD_QUALITY"):
    """One named quality payload of a run is set, or removed if ``payload`` is JSON's null."""

    type: ClassVar[OperationType] = OperationType.RECORD_QUALITY

    instance_id: str
    name: str
    payload: Raw

    @property
    def size(self) -> int:
        return ENVELOPE_SIZE + len(self.payload)


Operation: TypeAlias = (
    RegisterAgentInstance
    | StartAgentInstance
    | FinishAgentInstance
    | CreateSpan
    | FinishSpan
    | UpdateSpanPayload
    | RecordQuality
)
