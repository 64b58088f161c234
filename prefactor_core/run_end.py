"""How a run ends: its open spans first, then itself."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from prefactor_core.capture import describe_error
from prefactor_core.checks import to_end
from prefactor_core.lifecycle import Outcome, check_outcome
from prefactor_core.models import AgentInstance
from prefactor_core.outcome import outcome_of

if TYPE_CHECKING:
    from prefactor_core.managers.agent_instance import AgentInstanceManager
    from prefactor_core.managers.span import SpanManager


class Managers(Protocol):
    """What knows the open runs and spans: a client, or its scope."""

    @property
    def instance_manager(self) -> AgentInstanceManager: ...
    @property
    def span_manager(self) -> SpanManager: ...


def finish_run(
    managers: Managers,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
    *,
    unbegun: Outcome | None = None,
    timestamp: datetime | None = None,
) -> None:
    """Finish what is still open of a run, then the run, now or at ``timestamp``; nothing if it
    has ended.

    Open spans end as ``failed``, with ``error`` as result, if that failed the run, else as
    ``cancelled``: they did not come to their own end. ``unbegun``: how a run ends that was not
    started and had no span, if not with ``outcome``.

    Raises :class:`PrefactorValueError`, before anything ends, for an outcome that there is not,
    and for a time that is naive or before the run's start.
    """
    check_outcome(outcome)
    at = None
    if timestamp is not None:
        at = to_end("timestamp", timestamp, f"agent instance {instance.id}", instance.started_at)
    if instance.ended:
        return
    spans, instances = managers.span_manager, managers.instance_manager
    failed = error if outcome == "failed" else None
    results = spans.results_of_open(
        instance.id, None if failed is None else {"error": describe_error(failed)}
    )
    # No other thread may open a span of it in between.
    with instances.home.lock:
        if not instance.ended:
            end: Outcome = "cancelled" if failed is None else "failed"
            spans.finish_open(instance.id, end, results, at)
            began = instance.started_at is not None
            goal = outcome if began or unbegun is None else unbegun
            instances.finish(instance.id, goal, at=at)


def finish_open_runs(managers: Managers, error: BaseException | None) -> None:
    """Finish the open runs of a client whose body ended with ``error``, or without one."""
    for instance in managers.instance_manager.open_instances():
        # A run that was neither started nor had a span did nothing, however this ends.
        finish_run(managers, instance, outcome_of(error), error, unbegun="cancelled")
    # Spans of runs that other clients registered.
    spans = managers.span_manager
    spans.finish_open(None, "cancelled", spans.results_of_open(None))
