"""Propagation: the current step, written into the headers of a request to another process."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from importlib import import_module
from typing import cast

from prefactor_core.agent.instance import AgentInstanceHandle, Client, context_runs
from prefactor_core.agent.span import SpanContext
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.context_stack.finders import found_in, found_spans
from prefactor_core.exceptions import InstanceNotFoundError
from prefactor_core.exceptions.log import log
from prefactor_core.export.identity import RunIdentity
from prefactor_core.operations.cause import Cause
from prefactor_core.operations.identifiers import is_pfid
from prefactor_core.operations.trace_headers import TRACEPARENT, new_traceparent, write
from prefactor_core.operations.trace_ids import span_id_of, trace_id_of
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.span_record import SpanRecord, deeper

logger = logging.getLogger("prefactor_core.agent.propagation")


def inject(headers: MutableMapping[str, str], client: Client) -> None:
    """Write the current step of ``client`` into ``headers``; nothing without one.

    Headers that cannot be changed stay as they are, with a warning in the log.
    """
    recorder = client.span_manager.recorder
    run, span_id = _current_step(client, recorder)
    if run is None:
        return
    cause = run.cause
    if recorder.records and run.lost is None:
        trace_id = trace_id_of(run.id) if cause is None else cause.trace_id
        flags = "01" if cause is None else cause.flags
        known = run.registered  # the API may replace a provisional id by any other
        cause = Cause(
            traceparent=new_traceparent(trace_id, span_id_of(span_id or run.id), flags),
            run_id=run.id if known else None,
            span_id=span_id if known else None,
        )
    # Else nothing is recorded of the run: what it causes has the cause that the run has itself.
    if cause is None:
        return
    try:
        write(headers, cause, traceparent=not _opentelemetry_has_written(headers))
    except Exception as error:  # of the caller's own mapping, say
        message = "the current step was not written into the headers of a request: %s"
        log(logger, logging.WARNING, message, type(error).__qualname__)


def _current_step(client: Client, recorder: Recorder) -> tuple[RunIdentity | None, str | None]:
    """The current run, and the id of its innermost span; without a run, that of an open span,
    and then that of the current span of OpenTelemetry."""
    for instance in reversed(context_runs.get()):
        if instance.recorder is recorder and not instance.ended:
            try:
                run = client.instance_manager.identity(instance.id)
            except InstanceNotFoundError:
                continue  # another thread has just ended it
            own: object = SpanContextStack.innermost(run.recorded_id)
            return run, _recorded_id(run, deeper(own, found_in(run.recorded_id)))
    for span in SpanContextStack.open_spans():
        if isinstance(span, SpanContext) and span.recorder is recorder:
            run = span.run
            own = cast("object", span)
            return run, _recorded_id(run, deeper(own, found_in(run.recorded_id)))
    for found in found_spans():
        handle = found.instance
        if isinstance(handle, AgentInstanceHandle) and handle.recorder is recorder:
            run = client.span_manager.run_of(handle.id)
            return run, _recorded_id(run, found)
    return None, None


def _recorded_id(run: RunIdentity, span: object) -> str | None:
    """The id of a span, or of its nearest ancestor that is recorded; None without one."""
    if isinstance(span, SpanRecord):
        span = span.parent_span_id if span.dropped else span.recorded_id
    return run.span_id(span) if is_pfid(span) else None


def _opentelemetry_has_written(headers: MutableMapping[str, str]) -> bool:
    """Let OpenTelemetry write its own context, if one is current. Return whether it has written a
    ``traceparent``."""
    trace = sys.modules.get("opentelemetry.trace")
    try:
        if trace is None or not trace.get_current_span().get_span_context().is_valid:
            return False
        import_module("opentelemetry.propagate").inject(headers)
    except Exception as error:
        message = "OpenTelemetry did not write its context into the headers (%s)"
        log(logger, logging.INFO, message, type(error).__qualname__)
        return False
    return any(name.lower() == TRACEPARENT for name in headers)
