"""The end of runs: first their open spans, then the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.exceptions import InstanceNotFoundError
from prefactor_core.exceptions.checks import check_end, check_outcome, to_time
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.models import AgentInstance
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import Outcome
from prefactor_core.payloads.error_description import describe_error

if TYPE_CHECKING:
    from prefactor_core.recording.instance_manager import AgentInstanceManager
    from prefactor_core.recording.recorder import Recorder


SLICE: Final = 200
"""The number of spans that are ended before other tasks have a turn."""


def finish_run(
    instances: AgentInstanceManager,
    recorder: Recorder,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
    *,
    outcome_if_unstarted: Outcome | None = None,
    timestamp: datetime | None = None,
) -> None:
    """As :func:`finish_run_in_slices`, in one go."""
    for _ in finish_run_in_slices(
        instances,
        recorder,
        instance,
        outcome,
        error,
        outcome_if_unstarted=outcome_if_unstarted,
        timestamp=timestamp,
    ):
        pass


def finish_run_in_slices(
    instances: AgentInstanceManager,
    recorder: Recorder,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
    *,
    outcome_if_unstarted: Outcome | None = None,
    timestamp: datetime | None = None,
) -> Iterator[None]:
    """End the open spans of a run, then the run, now or at ``timestamp``; nothing if it has ended.

    Return an iterator that yields after each slice of the work; the caller must exhaust it. Open
    spans end as ``failed``, with ``error`` as result, if the run failed with ``error``, else as
    ``cancelled``.
    ``outcome_if_unstarted``: the outcome of a run that was not started and had no span.

    Raises :class:`PrefactorValueError`, before anything ends, for an unknown outcome, and for a
    ``timestamp`` that is naive or before the run's start.
    """
    check_outcome(outcome)
    at = None if timestamp is None else to_time("timestamp", timestamp)
    if at is not None and instance.started_at is not None:
        start: int | None = to_nanoseconds(instance.started_at)
        with suppress(InstanceNotFoundError):  # it has ended
            # If the wall clock was set back, the start may be ahead of it: the run ends at its
            # start.
            start = None if instances.identity(instance.id).clock.is_ahead else start
        check_end("timestamp", at, f"agent instance {instance.id}", start)
    if instance.ended:
        return
    failed = error if outcome == "failed" else None
    end: Outcome = "cancelled" if failed is None else "failed"
    result = None if failed is None else {"error": describe_error(failed, instance.created_at)}
    # All but the last slice. Counted once: other threads may open and end spans meanwhile.
    slices = recorder.index.count(instance.id) // SLICE
    if slices:
        with suppress(InstanceNotFoundError):  # another thread has ended it just now
            # A span that is opened from now on, between two slices, is dropped.
            instances.identity(instance.id).termination.ending = True
    for _ in range(slices):
        _end_slice(recorder, instance.id, end, result, at)
        yield
    results = _captured_results(recorder, instance.id, result)
    with instances.event_loop.lock:
        if not instance.ended:
            _end_all(recorder, instance.id, end, results, at)
            began = instance.started_at is not None
            unstarted = outcome if outcome_if_unstarted is None else outcome_if_unstarted
            instances.finish(instance.id, outcome if began else unstarted, at=at)


def finish_open_runs(
    instances: AgentInstanceManager, recorder: Recorder, error: BaseException | None
) -> Iterator[None]:
    """Finish the open runs of a client whose body ended with ``error``, or without one.

    Return an iterator, as :func:`finish_run_in_slices`.
    """
    done = 0
    for instance in instances.open_instances():
        done += 1 + recorder.index.count(instance.id) % SLICE
        # A run without a start and without spans did nothing: cancelled, even if the body failed.
        yield from finish_run_in_slices(
            instances,
            recorder,
            instance,
            outcome_of(error),
            error,
            outcome_if_unstarted="cancelled",
        )
        if done >= SLICE:
            done = 0
            yield
    # Spans of runs that other clients registered.
    for _ in range(recorder.index.count(None) // SLICE):
        _end_slice(recorder, None, "cancelled")
        yield
    _end_all(recorder, None, "cancelled", _captured_results(recorder, None))


# In the functions below, ``instance_id=None`` means the spans of all runs. Children end before
# their parents, and no span before its start.


def _captured_results(
    recorder: Recorder, instance_id: str | None, data: Mapping[str, object] | None = None
) -> dict[str, Raw | UnsetType]:
    """The captured results of the open spans, with ``data`` merged in, by span id.

    Called before the lock is acquired: capturing runs code of the agent.
    """
    if recorder.interrupted is not None:
        recorder.end_interrupted()
    with recorder.event_loop.lock:
        spans = recorder.index.last(instance_id)
    for span in spans:
        span.refresh()
    return {span.recorded_id: recorder.captured_result(span, data) for span in spans}


def _end_all(
    recorder: Recorder,
    instance_id: str | None,
    outcome: Outcome,
    results: Mapping[str, Raw | UnsetType],
    at: int | None = None,
) -> None:
    with recorder.event_loop.lock:
        for span in recorder.index.last(instance_id):
            # A span that another thread opened after the results were captured has no result.
            end, ended_at = span.end_of_run(outcome, at)
            recorder.end_as(span, end, ended_at, results.get(span.recorded_id, UNSET))


def _end_slice(
    recorder: Recorder,
    instance_id: str | None,
    outcome: Outcome,
    data: Mapping[str, object] | None = None,
    at: int | None = None,
) -> None:
    """End the spans that were opened last."""
    with recorder.event_loop.lock:
        some = recorder.index.last(instance_id, SLICE)
    for span in some:
        span.refresh()
    results = [recorder.captured_result(span, data) for span in some]
    with recorder.event_loop.lock:
        for span, result in zip(some, results, strict=True):
            end, ended_at = span.end_of_run(outcome, at)
            recorder.end_as(span, end, ended_at, result)
