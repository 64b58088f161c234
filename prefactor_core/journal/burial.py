"""Burial: the operations that end what a dead process left open. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import UNSET, Raw

from prefactor_core.journal.format import Opened, OpenSpan
from prefactor_core.journal.state import JournalState
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    StartAgentInstance,
)
from prefactor_core.operations.identifiers import idempotency_key

_ERROR: Final = Raw(
    msgspec.json.encode(
        {
            "error": {
                "type": "process_died",
                "message": "the process ended while this span was open; the time is that of the "
                "last entry in its journal",
                "stacktrace": "",
            }
        }
    )
)


def burials(state: JournalState) -> Iterator[Operation]:
    """The operations that fail the open spans and runs of a journal, at the time of its last entry.

    First the creates of spans that have open children, parents first, as the API must know a parent
    before its child; then the ends of spans, children first; then those of runs. A run that was not
    started is started before its first span. Runs of other journals go on.

    Once a part of these has been recorded in the journal, the rest follows from its state, with
    the same times and keys.
    """
    if state.is_closed:
        return
    at, runs = state.last_time, [*state.runs.values()]
    unstarted = {id(run): run for run in runs if run.status is InstanceStatus.PENDING}
    spans = [
        msgspec.structs.replace(span, parent_span_id=state.parent_of(span))
        if isinstance(span, Opened)
        else span
        for span in state.open_spans()
    ]
    ids = {id(run): run.instance_id for run in runs}
    parents = {span.parent_span_id for span in spans if isinstance(span, Opened)}
    for place, span in enumerate(spans):
        if not isinstance(span, Opened):
            continue
        run = state.run_of(span.instance_id)
        if run is not None and unstarted.pop(id(run), None) is not None:
            ids[id(run)] = span.instance_id
            yield start_of_run(span.instance_id, span.created_at)
        if span.span_id in parents:
            yield _create(span, SpanStatus.ACTIVE)
            spans[place] = OpenSpan(span.span_id, span.instance_id, span.created_at)
    for span in reversed(spans):
        if isinstance(span, Opened):
            yield _create(span, SpanStatus.FAILED, at)
        else:
            started = span.started_at is not None
            yield end_of_span(span.span_id, span.instance_id, at, _ERROR, started=started)
    for run in runs:
        instance_id = ids[id(run)]
        if id(run) in unstarted:
            yield start_of_run(instance_id, at)
        yield end_of_run(instance_id, at)


def _create(span: Opened, status: SpanStatus, finished_at: int | None = None) -> CreateSpan:
    return CreateSpan(
        timestamp=span.created_at,
        idempotency_key=f"{span.span_id}-create",
        instance_id=span.instance_id,
        span_id=span.span_id,
        schema_name=span.schema_name,
        status=status,
        payload=span.payload,
        parent_span_id=span.parent_span_id,
        finished_at=finished_at,
        result_payload=UNSET if finished_at is None else _ERROR,
    )


def end_of_span(
    span_id: str, instance_id: str, at: int, error: Raw, *, started: bool
) -> FinishSpan:
    """The end of a span that was left open, at ``at``, with ``error`` as its result.

    ``started``: False for a span that was created as one that never started.
    """
    return FinishSpan(
        timestamp=at,
        idempotency_key=idempotency_key(span_id, "finish"),
        instance_id=instance_id,
        span_id=span_id,
        # A span that has never started can only be cancelled.
        status=SpanStatus.FAILED if started else SpanStatus.CANCELLED,
        result_payload=error,
    )


def end_of_run(instance_id: str, at: int) -> FinishAgentInstance:
    """The end of a run that was left open."""
    return FinishAgentInstance(
        timestamp=at,
        idempotency_key=idempotency_key(instance_id, "finish"),
        instance_id=instance_id,
        status=InstanceStatus.FAILED,
    )


def start_of_run(instance_id: str, at: int) -> StartAgentInstance:
    """The start of a run that has to have one before it can end."""
    return StartAgentInstance(
        timestamp=at,
        idempotency_key=idempotency_key(instance_id, "start"),
        instance_id=instance_id,
    )
