"""SpanRecord: the state and the data of one span, from construction to its end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Raw

from prefactor_core.exceptions import (
    PrefactorTerminatedError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.export.identity import RunIdentity
from prefactor_core.models import Span
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import OPEN, Outcome, SpanStatus
from prefactor_core.operations import identifiers
from prefactor_core.payloads.capture import EMPTY, fields_of
from prefactor_core.schema_registry.type_schema import Fields


class SpanRecord(Uncopyable):
    """One span: its state, its captured payload, its result, its parent.

    :class:`~prefactor_core.SpanContext`, its subclass, adds the methods for an agent.
    :class:`~prefactor_core.recording.recorder.Recorder` changes all attributes with the lock of
    recording held, except ``result``, to which the agent adds.

    ``recorded_id``: the span's id in its operations. ``run``: its run. ``instance_id``: the run's
    id in operations. ``parent``: its parent, if that is an open span of this client.
    ``parent_span_id``: the id of the parent in the create.
    ``serial``: the span's number in the order of opening; 0 until it is opened.
    ``status``: ``pending`` until its create is recorded.
    ``created_at``: the time of opening; ``started_at``, ``finished_at``: None until the event. All
    in nanoseconds since 1970.
    ``payload``: as the agent gave it. ``captured``: its JSON, until the create is recorded.
    ``held``: the bytes of it that count as those of an open span.
    ``result``: the result so far. ``payload`` and ``result`` are None after the end: other contexts
    may keep this object alive.
    ``from_result``: the fields of the payload that are filled in from the result.
    ``has_slot``: it has waited until a full buffer had a slot for it.
    ``run_was_ending``: its run was ending when the span was opened.
    ``unrecorded``: it belongs to a request of this library.
    ``dropped``: none of it is delivered, because the buffer was full, its run had ended, or it is
    ``unrecorded``.
    """

    _kind = "a span in this process"

    # Most spans never change these: as attributes of the class, they cost a new span nothing.
    parent: SpanRecord | None = None
    serial = 0
    status: SpanStatus = SpanStatus.PENDING
    created_at = 0
    started_at: int | None = None
    finished_at: int | None = None
    captured: Raw = EMPTY
    held = 0
    has_slot = False
    run_was_ending = False
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
        """Whether the span was opened and has not ended."""
        return self.serial > 0 and self.status in OPEN

    @property
    def was_opened(self) -> bool:
        """Whether the span was opened, even if it has ended since."""
        return self.serial > 0

    @property
    def waits_for_result(self) -> bool:
        """Whether its create must wait for the end: its payload, or that of a pending ancestor, is
        filled in from a result. The API accepts no payload after the create, and no create before
        that of the parent."""
        span: SpanRecord | None = self
        while span is not None and span.status is SpanStatus.PENDING:
            if span.from_result:
                return True
            span = span.parent
        return False

    def is_inside(self, around: SpanRecord) -> bool:
        """Whether ``around`` is the span itself, or one of its ancestors."""
        span: SpanRecord | None = self
        while span is not None:
            # By its id, too: an ended span has no parent any more.
            if span is around or span.parent_span_id == around.recorded_id:
                return True
            span = span.parent
        return False

    def refresh(self) -> None:
        """Bring type and payload up to date, before the create is recorded."""

    def end_of_run(self, outcome: Outcome, at: int | None) -> tuple[Outcome, int | None]:
        """The outcome and the time of its end if it is open when its run ends with these."""
        return outcome, at

    def with_cause(self, captured: Raw) -> Raw:
        """The captured payload, with the cause of the run unless the span has a parent.

        The API has no parent in another run, so that the payload says it. Each span without a
        parent has it: any one of them may be lost.
        """
        cause = self.run.cause
        if cause is None or self.parent_span_id is not None:
            return captured
        return cause.added_to(captured)

    def as_model(self) -> Span:
        """The state of this moment, for a caller that looks the span up by its id."""
        return Span(
            id=self.recorded_id,
            instance_id=self.instance_id,
            schema_name=self.schema_name,
            parent_span_id=self.parent_span_id,
            status=self.status,
            payload={} if self.payload is None else fields_of(self.payload),
            result=dict(self.result or {}),
            created_at=to_datetime(self.created_at),
            started_at=_to_datetime(self.started_at),
            finished_at=_to_datetime(self.finished_at),
        )

    def __repr__(self) -> str:
        status = self.status if self.serial else "not entered"
        return f"<span {self.schema_name!r} {self.run.span_id(self.recorded_id)} {status}>"


def deeper(own: object, found: object) -> object:
    """Which of two spans is the parent of what is opened now: the innermost one of the context,
    which may be an id that was pushed by hand, or the current span of another library.

    A span that was opened inside of the other one is the deeper one. If neither was, the other
    library has made an older span current again.
    """
    if not isinstance(found, SpanRecord) or isinstance(own, str):
        return own
    return own if isinstance(own, SpanRecord) and own.is_inside(found) else found


def refresh_pending(span: SpanRecord | None) -> None:
    """Bring a span and its ancestors up to date, before their creates are recorded."""
    while span is not None and span.status is SpanStatus.PENDING:
        span.refresh()
        span = span.parent


def new_span_id(run: RunIdentity, span_id: str | None = None) -> str:
    """The id for a new span: ``span_id`` if given, else a new PFID.

    Raises :class:`PrefactorValueError` if ``span_id`` is no PFID of the run's partition, and
    :class:`PrefactorTerminatedError` if the run was terminated.
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
