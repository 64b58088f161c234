"""How a run ends: its open spans first, then itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from prefactor_core.exceptions import ClientNotInitializedError, InstanceNotFoundError
from prefactor_core.exceptions.checks import check_outcome, to_end
from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.models import AgentInstance
from prefactor_core.models.lifecycle import Outcome
from prefactor_core.payloads.error_description import describe_error

if TYPE_CHECKING:
    from prefactor_core.recording.agent_instances import AgentInstanceManager
    from prefactor_core.recording.spans import SpanManager


class Managers(Protocol):
    """What knows the open runs and spans: a client, or its scope."""

    @property
    def instance_manager(self) -> AgentInstanceManager: ...
    @property
    def span_manager(self) -> SpanManager: ...


SLICE: Final = 200
"""How many spans are ended at once, where other tasks can have a turn in between."""


def finish_run(
    managers: Managers,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
    *,
    unbegun: Outcome | None = None,
    timestamp: datetime | None = None,
) -> None:
    """As :func:`finish_run_in_slices`, at once."""
    for _ in finish_run_in_slices(
        managers, instance, outcome, error, unbegun=unbegun, timestamp=timestamp
    ):
        pass


def finish_run_in_slices(
    managers: Managers,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
    *,
    unbegun: Outcome | None = None,
    timestamp: datetime | None = None,
) -> Iterator[None]:
    """Finish what is still open of a run, then the run, now or at ``timestamp``; nothing if it
    has ended. Gives something after each slice of the work, and has to be gone through.

    Open spans end as ``failed``, with ``error`` as result, if that failed the run, else as
    ``cancelled``: they did not come to their own end. ``unbegun``: how a run ends that was not
    started and had no span, if not with ``outcome``.

    Raises :class:`PrefactorValueError`, before anything ends, for an outcome that there is not,
    and for a time that is naive or before the run's start.
    """
    check_outcome(outcome)
    at = None
    if timestamp is not None:
        start = instance.started_at
        with suppress(ClientNotInitializedError, InstanceNotFoundError):  # it has ended
            # Where the wall was set back, the start may be ahead of it: the end is the start then.
            clock = managers.instance_manager.identity(instance.id).clock
            start = None if clock.is_ahead else start
        at = to_end("timestamp", timestamp, f"agent instance {instance.id}", start)
    if instance.ended:
        return
    spans, instances = managers.span_manager, managers.instance_manager
    failed = error if outcome == "failed" else None
    end: Outcome = "cancelled" if failed is None else "failed"
    result = None if failed is None else {"error": describe_error(failed, instance.created_at)}
    # All but the last slice, by a count that others cannot change.
    slices = spans.index.count(instance.id) // SLICE
    if slices:
        with suppress(InstanceNotFoundError):  # another thread has ended it just now
            # A span that begins from now on, between two slices, is too late.
            instances.identity(instance.id).termination.ending = True
    for _ in range(slices):
        spans.end_some(instance.id, end, SLICE, result, at)
        yield
    results = spans.results_of_open(instance.id, result)
    with instances.event_loop.lock:
        if not instance.ended:
            spans.finish_open(instance.id, end, results, at)
            began = instance.started_at is not None
            goal = outcome if began or unbegun is None else unbegun
            instances.finish(instance.id, goal, at=at)


def finish_open_runs(managers: Managers, error: BaseException | None) -> Iterator[None]:
    """Finish the open runs of a client whose body ended with ``error``, or without one; in slices,
    as :func:`finish_run_in_slices`."""
    spans, done = managers.span_manager, 0
    for instance in managers.instance_manager.open_instances():
        done += 1 + spans.index.count(instance.id) % SLICE
        # A run that was neither started nor had a span did nothing, however this ends.
        yield from finish_run_in_slices(
            managers, instance, outcome_of(error), error, unbegun="cancelled"
        )
        if done >= SLICE:
            done = 0
            yield
    # Spans of runs that other clients registered.
    for _ in range(spans.index.count(None) // SLICE):
        spans.end_some(None, "cancelled", SLICE)
        yield
    spans.finish_open(None, "cancelled", spans.results_of_open(None))
