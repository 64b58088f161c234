"""SpanManager: the spans of a client, by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from prefactor_core.exceptions import (
    InstanceNotFoundError,
    OperationError,
    SpanNotFoundError,
    in_message,
)
from prefactor_core.exceptions.checks import check_outcome, to_time
from prefactor_core.exceptions.live import Live
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models import Span
from prefactor_core.models.lifecycle import OperationType, Outcome, SpanStatus
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.payloads.capture import fields_of
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.span_record import SpanRecord, new_span_id
from prefactor_core.schema_registry.type_schema import Fields


class SpanManager(Live):
    """Opens, starts and ends spans by their ids; ``recorder`` does it.

    Where everything is switched off, each method takes every id for one of an open span, and
    records nothing.
    """

    _what = "what a client in this process knows of its open spans"

    def __init__(self, recorder: Recorder, identities: Identities) -> None:
        self.recorder = recorder
        self._identities = identities

    def run_of(self, instance_id: str) -> RunIdentity:
        """What the API calls the run of this id, which may be one that others registered.

        Raises :class:`InstanceNotFoundError` for what is no id of a run.
        """
        if not is_pfid(instance_id):
            raise InstanceNotFoundError(
                f"instance_id {in_message(instance_id)} is not the id of an agent instance (32 "
                "characters); use the id of what create_agent_instance() gave"
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
        """Open a span here, as the innermost of this context; nothing is recorded yet. Its id.

        Without ``parent_span_id`` the parent is the innermost open span of the same
        instance in this context.
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
        """Open and start a span; it stays the innermost of this context until it ends."""
        span = self._open_new(instance_id, schema_name, parent_span_id, payload)
        try:
            if self.recorder.records:
                self.recorder.start(span)
        except BaseException:
            # Nobody will get the id, so nobody could end the span.
            self.recorder.unended = (span, "cancelled", None, None, self.recorder.unended)
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
        """The span starts now, with ``payload`` or what it was prepared with. Its id.

        A span that was started already keeps its payload: the API takes none later.
        """
        if self.recorder.records:
            self.recorder.start(self._find(span_id), payload)
        return span_id

    def cancel_unstarted(self, span_id: str) -> None:
        """The span is cancelled; if it had not started, as one that never did."""
        if self.recorder.records:
            self.recorder.skip(self._find(span_id))

    def finish(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | None = None,
        status: Outcome = "complete",
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """The span ends now, or at ``timestamp``, with ``result_payload`` merged into its result.

        A span that was not started has begun with its opening. Raises
        :class:`PrefactorValueError` for a time that is naive, or before that.
        """
        check_outcome(status)
        at = None if timestamp is None else to_time("timestamp", timestamp)
        if self.recorder.records:
            self.recorder.end(self._find(span_id), status, result_payload, at)

    def update_payload(self, span_id: str, payload: Mapping[str, object]) -> None:
        """Merge into the payload that the span will start with.

        Raises :class:`OperationError` once it has started: the API has no call for that.
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
            "that; put what came later into the result",
            OperationType.UPDATE_SPAN_PAYLOAD,
        )

    def get_span(self, span_id: str) -> Span:
        """The open span of this id. Raises :class:`SpanNotFoundError` if there is none."""
        if not self.recorder.records:
            return Span(id=span_id, instance_id="", schema_name="")
        return self._find(span_id).as_model()

    def _find(self, span_id: str) -> SpanRecord:
        span = self.recorder.index.find(span_id)
        if span is None:
            raise SpanNotFoundError(
                f"no open span has the id {in_message(span_id)}: it has ended, or is not of "
                "this client"
            )
        return span
