"""SpanRecord: all that is known of one span, from its making to its end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Raw

from prefactor_core.exceptions import (
    PrefactorTerminatedError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.exceptions.live import Live
from prefactor_core.export.identity import RunIdentity
from prefactor_core.models import Span
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import OPEN, SpanStatus
from prefactor_core.operations import identifiers
from prefactor_core.payloads.capture import EMPTY
from prefactor_core.schema_registry.type_schema import Fields


class SpanRecord(Live):
    """One span: its state, its captured payload, its result, its parent.

    A :class:`~prefactor_core.SpanContext` is one, with the calls of an agent.
    :class:`~prefactor_core.recording.recorder.Recorder` changes it, with the lock of recording
    held, except for ``result``, which the agent adds to.

    ``recorded_id``: the id that its operations call it by. ``run``, ``instance_id``: its run, and
    the id that operations call that by. ``parent``: the open span above it, if this client knows
    it; ``parent_span_id``: the id of its parent, as the API shall hear it.
    ``serial``: its place in the order of opening; 0 until it is opened.
    ``status``: ``pending`` until its create is recorded. The times are nanoseconds since 1970:
    ``created_at`` of its opening, the others None until then.
    ``payload``: what the agent gave; ``captured``: its JSON, until the create is recorded;
    ``held``: how many bytes of it count as those of an open span.
    ``result``: what it will end with, so far. Both are None once it has ended: other contexts may
    keep this object alive.
    ``from_result``: the fields of the payload that are filled in from the result.
    ``has_place``: it has waited for its place in a full buffer. ``late``: its run was ending when
    it was opened. ``unrecorded``: it belongs to a request of this library. ``dropped``: none of it
    is delivered, because the buffer was full, its run had ended, or it is ``unrecorded``.
    """

    _what = "a span in this process"

    # What most spans never change is an attribute of the class: making a span costs less.
    parent: SpanRecord | None = None
    serial = 0
    status: SpanStatus = SpanStatus.PENDING
    created_at = 0
    started_at: int | None = None
    finished_at: int | None = None
    captured: Raw = EMPTY
    held = 0
    has_place = False
    late = False
    dropped = False
    unrecorded = False
    result: dict[str, object] | None

    def __init__(
        self,
        run: RunIdentity,
        recorded_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        from_result: tuple[str, ...] = (),
    ) -> None:
        self.run = run
        self.recorded_id = recorded_id
        self.instance_id = run.recorded_id
        self.schema_name = schema_name
        self.parent_span_id = parent_span_id
        self.payload: Mapping[str, object] | Fields | None = payload
        self.result = {}
        self.from_result = from_result

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and has not ended."""
        return self.serial > 0 and self.status in OPEN

    @property
    def was_opened(self) -> bool:
        """Whether it was opened, ended or not."""
        return self.serial > 0

    @property
    def waits_for_result(self) -> bool:
        """Whether its payload, or that of a span above it, will be filled in from a result. The
        API takes no payload after the create, and no create before that of the parent."""
        span: SpanRecord | None = self
        while span is not None and span.status is SpanStatus.PENDING:
            if span.from_result:
                return True
            span = span.parent
        return False

    def as_model(self) -> Span:
        """The span as it is now, for a caller that asks for it by its id."""
        payload: Any = self.payload
        return Span(
            id=self.recorded_id,
            instance_id=self.instance_id,
            schema_name=self.schema_name,
            parent_span_id=self.parent_span_id,
            status=self.status,
            payload={} if payload is None else payload,
            result=dict(self.result or {}),
            created_at=to_datetime(self.created_at),
            started_at=_to_datetime(self.started_at),
            finished_at=_to_datetime(self.finished_at),
        )

    def __repr__(self) -> str:
        status = self.status if self.serial else "not entered"
        return f"<span {self.schema_name!r} {self.run.span_id(self.recorded_id)} {status}>"


def new_span_id(run: RunIdentity, span_id: str | None = None) -> str:
    """The id of a span to be: ``span_id`` if it can be one, else a new one.

    Raises :class:`PrefactorValueError` for what is no id of the run's partition, and
    :class:`PrefactorTerminatedError` if the run was stopped.
    """
    if run.termination.reason is not None and run.termination.stops_spans:
        raise PrefactorTerminatedError(str(run.termination.reason), run.id)
    if span_id is None:
        return identifiers.generate_related(run.id)
    if not identifiers.is_pfid(span_id):
        raise PrefactorValueError(f"span_id must be a PFID, got {in_message(span_id)}")
    partition = identifiers.partition_of(run.id)
    if identifiers.partition_of(span_id) != partition and run.registered:
        raise PrefactorValueError(
            f"span_id {span_id!r} is not of the partition of instance {run.id!r}"
        )
    return str.__str__(span_id)


def _to_datetime(nanoseconds: int | None) -> datetime | None:
    return None if nanoseconds is None else to_datetime(nanoseconds)
