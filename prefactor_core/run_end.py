"""How a run ends: its open spans first, then itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prefactor_core.capture import describe_error
from prefactor_core.lifecycle import Outcome
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
) -> None:
    """Finish what is still open of a run, then the run; nothing if it has ended."""
    if instance.ended:
        return
    instances = managers.instance_manager
    # No other thread may open a span of it in between.
    with instances.home.lock:
        if not instance.ended:
            finish_spans(managers, instance, outcome, error)
            instances.finish(instance.id, outcome)


def finish_spans(
    managers: Managers,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None,
) -> None:
    """Finish the open spans of a run that ends with ``outcome``.

    They end as ``failed``, with ``error`` as result, if that failed the run, else as
    ``cancelled``: they did not come to their own end.
    """
    if error is not None and outcome == "failed":
        result = {"error": describe_error(error)}
        managers.span_manager.finish_open(instance.id, result, "failed")
    else:
        managers.span_manager.finish_open(instance.id, None, "cancelled")


def finish_open_runs(managers: Managers, error: BaseException | None) -> None:
    """Finish the open runs of a client whose body ended with ``error``, or without one."""
    outcome = outcome_of(error)
    instances = managers.instance_manager
    with instances.home.lock:
        for instance in instances.open_instances():
            finish_spans(managers, instance, outcome, error)
            # A run that was neither started nor had a span did nothing, however this ends.
            began = instance.started_at is not None
            instances.finish(instance.id, outcome if began else "cancelled")
        # Spans of runs that other clients registered.
        managers.span_manager.finish_open(None, None, "cancelled")
