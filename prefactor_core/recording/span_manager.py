"""SpanManager: opens, starts and ends the spans of a client by their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from prefactor_core.exceptions import (
    InstanceNotFoundError,
    OperationError,
    SpanNotFoundError,
    in_message,
)
from prefactor_core.exceptions.checks import check_outcome, to_time
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models import Span
from prefactor_core.models.lifecycle import OperationType, Outcome, SpanStatus
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.payloads.capture import fields_of
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.span_record import SpanRecord, new_span_id
from prefactor_core.schema_registry.type_schema import Fields


class SpanManager(Uncopyable):
    """Opens, starts and ends spans by their ids, through ``recorder``.

    If the client is disabled, each method accepts any id and records nothing.
    """

    _kind = "the record of a client's open spans in this process"

    def __init__(self, recorder: Recorder, identities: Identities) -> None:
        self.recorder = recorder
        self._identities = identities

    def run_of(self, instance_id: str) -> RunIdentity:
        """The identity of a run, which another client may have registered.

        Raises :class:`InstanceNotFoundError` if ``instance_id`` is no PFID.
        """
        if not is_pfid(instance_id):
            raise InstanceNotFoundError(
                f"instance_id {in_message(instance_id)} is not the id of an agent instance (32 "
                "characters); use the id of the handle that create_agent_instance() returned"
            )
        return self._identities.of(str.__str__(instance_id))

    def prepare(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        span_id: str | None = None,
    ) -> str:
        """Open a span locally, as the innermost of this context, and return its id. Nothing is
        recorded yet.

        Without ``parent_span_id`` the parent is the innermost open span of the same instance in
        this context.
        """
        return self._open_new(
            instance_id, schema_name, parent_span_id, payload, span_id
        ).recorded_id

    def create(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
    ) -> str:
        """Open and start a span, and return its id; it is the innermost of this context until it
        ends."""
        span = self._open_new(instance_id, schema_name, parent_span_id, payload)
        try:
            if self.recorder.records:
                self.recorder.start(span)
        except BaseException:
            # The caller gets no id and could never end the span.
            self.recorder.interrupted = (span, "cancelled", None, None, self.recorder.interrupted)
            raise
        return span.recorded_id

    def _open_new(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None,
        payload: Mapping[str, object] | Fields | None,
        span_id: str | None = None,
    ) -> SpanRecord:
        run = self.run_of(instance_id)
        name = self.recorder.name(schema_name)
        span_id = new_span_id(run, span_id)
        span = SpanRecord(run, span_id, name, parent_span_id, payload)
        if self.recorder.records:
            self.recorder.open(span)
        return span

    def start(self, span_id: str, payload: Mapping[str, object] | Fields | None = None) -> str:
        """Start a span now, with ``payload`` or that of :meth:`prepare`, and return its id.

        A span that was started before keeps its payload: the API accepts none later.
        """
        if self.recorder.records:
            self.recorder.start(self._find(span_id), payload)
        return span_id

    def cancel_unstarted(self, span_id: str) -> None:
        """Cancel a span; one that was not started is recorded as never started."""
        if self.recorder.records:
            self.recorder.skip(self._find(span_id))

    def finish(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | Fields | None = None,
        status: Outcome = "complete",
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """End a span, now or at ``timestamp``, with ``result_payload`` merged into its result.

        A span that was not started counts as started at its opening. Raises
        :class:`PrefactorValueError` for a ``timestamp`` that is naive or before the start.
        """
        check_outcome(status)
        at = None if timestamp is None else to_time("timestamp", timestamp)
        if self.recorder.records:
            self.recorder.end(self._find(span_id), status, result_payload, at)

    def update_payload(self, span_id: str, payload: Mapping[str, object]) -> None:
        """Merge ``payload`` into that of a span that has not started.

        Raises :class:`OperationError` if it has: the API has no call that changes a payload.
        """
        if not self.recorder.records:
            return
        span = self._find(span_id)
        before = span.payload
        if span.status is SpanStatus.PENDING:
            merged = {} if before is None else fields_of(before)
            self.recorder.capture.merge(merged, payload)
            if self.recorder.keep_payload(span, merged, self.recorder.capture(merged)):
                return
            # Another thread has started it meanwhile.
        raise OperationError(
            f"span {in_message(span_id)} has started, and the API changes no payload after "
            "that; put later data into the result",
            OperationType.UPDATE_SPAN_PAYLOAD,
        )

    def get_span(self, span_id: str) -> Span:
        """The open span of this id. Raises :class:`SpanNotFoundError` if there is none."""
        if not self.recorder.records:
            return Span(id=span_id, instance_id="", schema_name="")
        return self._find(span_id).as_model()

    def open_spans(self, instance_id: str) -> Sequence[SpanRecord]:
        """The open spans of a run, in the order of opening; none in a fork."""
        if self.recorder.event_loop.is_forked:
            return []
        with self.recorder.event_loop.lock:
            return self.recorder.index.last(instance_id)[::-1]

    def _find(self, span_id: str) -> SpanRecord:
        span = self.recorder.index.find(span_id)
        if span is None:
            raise SpanNotFoundError(
                f"no open span has the id {in_message(span_id)}: it has ended, or is not of "
                "this client"
            )
        return span
