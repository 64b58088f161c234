"""SpanManager: the spans of a client, by their ids and in the agent's hands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.agent.span_context import SpanContext
from prefactor_core.context_stack import OURS, SpanContextStack
from prefactor_core.exceptions import (
    InstanceNotFoundError,
    OperationError,
    PrefactorTerminatedError,
    PrefactorValueError,
    SpanNotFoundError,
    in_message,
)
from prefactor_core.exceptions.checks import check_outcome
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models import Span
from prefactor_core.models.lifecycle import Outcome, SpanStatus
from prefactor_core.operations import CreateSpan, OperationType, identifiers
from prefactor_core.payloads.capture import Capture, fields_of
from prefactor_core.payloads.markers import utf8
from prefactor_core.recording.open_span import OpenSpan
from prefactor_core.recording.open_spans import OpenSpans
from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.schema_registry.type_schema import Fields
from prefactor_core.schema_registry.typed_span import TypedStep, from_result, name_and_params


class SpanManager(OpenSpans):
    """Knows every open span by its id; see :class:`OpenSpans`.

    ``registry``: the span types of classes.
    """

    records = True

    def __init__(
        self,
        buffer: Buffer,
        identities: Identities,
        capture: Capture,
        begin_run: Callable[[CreateSpan], None],
        registry: SchemaRegistry | None = None,
    ) -> None:
        super().__init__(buffer, identities, capture, begin_run)
        self._registry = registry

    def run_of(self, instance_id: str) -> RunIdentity:
        """What the API calls the run of this id, which may be one that others registered.

        Raises :class:`InstanceNotFoundError` for what is no id of a run.
        """
        if not identifiers.is_pfid(instance_id):
            raise InstanceNotFoundError(
                f"instance_id {in_message(instance_id)} is not the id of an agent instance (32 "
                "characters); use the id of what create_agent_instance() gave"
            )
        return self._identities.of(str.__str__(instance_id))

    def new_id(self, run: RunIdentity, schema_name: str, span_id: str | None = None) -> str:
        """The id of a span to be: ``span_id`` if it can be one, else a new one; plain text.

        Raises :class:`PrefactorValueError` for names and ids that no span can have, and
        :class:`PrefactorTerminatedError` if the run was stopped.
        """
        if run.termination.reason is not None and run.termination.stops_spans:
            raise PrefactorTerminatedError(str(run.termination.reason), run.id)
        if not isinstance(schema_name, str) or not schema_name:
            raise PrefactorValueError(
                f"schema_name must be the name of a span type, got {in_message(schema_name)}"
            )
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

    @property
    def waits_for_place(self) -> bool:
        """Whether a span of asynchronous code waits while the buffer is full."""
        event_loop = self._event_loop
        return (
            self._buffer.waits_when_full
            and event_loop.is_here
            and not event_loop.is_forked
            # The worker that makes a request of ours would wait for itself.
            and OURS not in SpanContextStack.get_stack()
        )

    async def wait_for_place(self) -> None:
        """Return when a span may be opened that is sure to be recorded."""
        await self._buffer.wait_for_place()

    def give_place_back(self) -> None:
        """The span that has waited for its place is not opened."""
        self._buffer.give_place_back()

    def context(
        self,
        run: RunIdentity,
        step: str | TypedStep,
        parent_span_id: str | None = None,
        span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
    ) -> SpanContext[Any]:
        """A span in the agent's hands; ``step``: its span type, or parameters that tell it."""
        if isinstance(step, str):
            if type(step) is not str or not step.isascii():
                step = utf8(str.__str__(step))  # of anything else no JSON is written
            return SpanContext(self, run, step, parent_span_id, span_id, payload)
        schema_name, params = name_and_params(self._registry, step, payload)
        schema_name = utf8(str.__str__(schema_name))
        payload = self._capture.fields_of(params)
        late = from_result(step)
        return SpanContext(self, run, schema_name, parent_span_id, span_id, payload, late)

    def prepare(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        span_id: str | None = None,
    ) -> str:
        """Open a span here, as the innermost of this context; nothing is told yet. Its id.

        Without ``parent_span_id`` the parent is the innermost open span of the same
        instance in this context.
        """
        run = self.run_of(instance_id)
        span_id = self.new_id(run, schema_name, span_id)
        schema_name = utf8(str.__str__(schema_name))
        return self.open(span_id, run, schema_name, parent_span_id, payload).id

    def start(self, span_id: str, payload: Mapping[str, object] | Fields | None = None) -> str:
        """The span starts now, with ``payload`` or what it was prepared with. Its id.

        A span that was started already keeps its payload: the API takes none later.
        """
        self.begin(self._find(span_id), payload)
        return span_id

    def create(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        has_place: bool = False,
    ) -> str:
        """Open and start a span; it stays the innermost of this context until it ends."""
        run = self.run_of(instance_id)
        span_id = self.new_id(run, schema_name)
        schema_name = utf8(str.__str__(schema_name))
        span = self.open(span_id, run, schema_name, parent_span_id, payload, has_place)
        try:
            return self.start(span_id)
        except BaseException:
            # Nobody will get the id, so nobody could end the span.
            self.unended = (span, "cancelled", None, None, self.unended)
            raise

    def cancel_unstarted(self, span_id: str) -> None:
        """The span is cancelled; if it had not started, as one that never did."""
        self.skip(self._find(span_id))

    def finish(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | None = None,
        status: Outcome = "complete",
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """The span ends now, or at ``timestamp``, with ``result_payload`` merged into its result.

        One that was not started has begun with its entering. Raises
        :class:`PrefactorValueError` for a time that is naive, or before that.
        """
        check_outcome(status)
        self.end(self._find(span_id), result_payload, status, timestamp)

    def update_payload(self, span_id: str, payload: Mapping[str, object]) -> None:
        """Merge into the payload that the span will start with.

        Raises :class:`OperationError` once it has started: the API has no call for that.
        """
        span = self._find(span_id)
        if span.status is not SpanStatus.PENDING:
            raise OperationError(
                f"span {in_message(span_id)} has started, and the API changes no payload after "
                "that; put what came later into the result",
                OperationType.UPDATE_SPAN_PAYLOAD,
            )
        merged = fields_of(span.payload)
        self._capture.merge(merged, payload)
        self.keep_payload(span, merged, self._capture(merged))

    def get_span(self, span_id: str) -> Span:
        """The open span of this id. Raises :class:`SpanNotFoundError` if there is none."""
        return self._find(span_id)

    def results_of_open(
        self, instance_id: str | None, result_payload: Mapping[str, object] | None = None
    ) -> dict[str, Raw | UnsetType]:
        """What is still open of an instance (None: of all) would end with, by the spans' ids.

        For :meth:`finish_open`, whose caller may hold the lock then.
        """
        if self.unended is not None:
            self._end_unended()
        with self._lock:
            spans = self.index.last(instance_id)
        return {span.id: self._result(span, result_payload) for span in spans}

    def finish_open(
        self,
        instance_id: str | None,
        status: Outcome,
        results: Mapping[str, Raw | UnsetType],
        at: datetime | None = None,
    ) -> None:
        """End what is still open of an instance (None: of all), children before parents; now, or
        ``at``, but no span before its start."""
        with self._lock:
            for span in self.index.last(instance_id):
                # One that another thread has opened since the results were looked at has none.
                self._end(span, status, results.get(span.id, UNSET), at)

    def end_some(
        self,
        instance_id: str | None,
        status: Outcome,
        most: int,
        result_payload: Mapping[str, object] | None = None,
        at: datetime | None = None,
    ) -> None:
        """End up to ``most`` of what is open of an instance (None: of all), as
        :meth:`finish_open` does."""
        with self._lock:
            some = self.index.last(instance_id, most)
        results = [self._result(span, result_payload) for span in some]
        with self._lock:
            for span, result in zip(some, results, strict=True):
                self._end(span, status, result, at)

    def _find(self, span_id: str) -> OpenSpan:
        span = self.index.find(span_id)
        if span is None:
            raise SpanNotFoundError(
                f"no open span has the id {in_message(span_id)}: it has ended, or is not of "
                "this client"
            )
        return span
