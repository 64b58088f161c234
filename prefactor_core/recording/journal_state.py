"""What a new file of the journal begins with, so that earlier files can go."""

from __future__ import annotations

from collections.abc import Iterator
from time import time_ns

from prefactor_core.export.identity import Identities
from prefactor_core.journal.format import (
    Identified,
    Kind,
    Opened,
    OpenRun,
    OpenSpan,
    Refused,
)
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.span_index import SpanIndex


def journal_state(
    instances: AgentInstanceManager, index: SpanIndex, identities: Identities
) -> Iterator[tuple[Kind, object]]:
    """The ids, open runs and open spans of this moment. The caller holds the lock of recording."""
    for run in identities.all_known():
        if run.id != run.recorded_id:
            yield Kind.IDENTIFIED, Identified(run.recorded_id, None, run.id)
        if run.lost is not None:
            yield Kind.REFUSED, Refused(0, run.lost, run.recorded_id, None, None, True)
        for span_id, api_id in run.given_span_ids():
            yield Kind.IDENTIFIED, Identified(run.recorded_id, span_id, api_id)
        for span_id, reason, parent_id in run.lost_spans():
            yield Kind.REFUSED, Refused(0, reason, run.recorded_id, span_id, parent_id, False)
    for instance_id, status, started_at in instances.states():
        yield Kind.OPEN_RUN, OpenRun(instance_id, status, started_at)
    # A copy, by one call: a finaliser may open or end a span in between.
    for span in list(index.spans.values()):
        span_id, run_id = span.recorded_id, span.instance_id
        if span.dropped:
            continue
        if span.status is SpanStatus.PENDING:
            parent, parent_id = span.parent, span.parent_span_id
            if parent is not None and parent.dropped:
                parent_id = parent.parent_span_id  # no record of this file says so
            yield (
                Kind.OPENED,
                Opened(
                    span_id, run_id, span.schema_name, parent_id, span.created_at, span.captured
                ),
            )
        else:
            yield Kind.OPEN_SPAN, OpenSpan(span_id, run_id, span.started_at)
    # Last: a reader takes from it that nothing else is open.
    yield Kind.BEAT, time_ns()
