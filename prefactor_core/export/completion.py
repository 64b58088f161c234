"""Completion: items are counted as delivered or dropped, and their runs hear of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.exceptions.log import log
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.export.loss_report import LossReport
from prefactor_core.journal.base import NO_JOURNAL, Journal
from prefactor_core.models.lifecycle import is_terminal
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
)

if TYPE_CHECKING:
    from prefactor_core.api.answers import Control

logger = logging.getLogger("prefactor_core.export.completion")


class Completion:
    """Completes items: counts them as delivered or dropped, and keeps what later operations need
    to know of them.

    ``identities``: what the API calls runs and spans. ``limits``: the features that the API seems
    to lack.
    """

    def __init__(
        self,
        counters: Counters,
        identities: Identities,
        breaker: CircuitBreaker,
        limits: ApiLimits,
        losses: LossReport,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self.journal = journal
        self._counters = counters
        self.identities = identities
        self._breaker = breaker
        self.limits = limits
        self._losses = losses

    def drop_if_lost(self, item: BatchItem) -> bool:
        """Drop an item if its run or span was dropped; return whether it was."""
        operation = item.operation
        reason = self.identities.of(operation.instance_id).reason_lost(operation)
        if reason is None:
            return False
        self._drop(item, reason)
        return True

    def give_up(self, item: BatchItem, error: Exception, reason: str) -> None:
        """Drop an item that the API refuses or fails at, because of ``error``."""
        # Its parent was not the reason, then: its children can hang there.
        item.operation = item.original or item.operation
        self._drop(item, reason, error)
        if not isinstance(error, PrefactorCoreError):
            # A bug of ours deserves its traceback; an answer of the API needs none.
            message = "%s met an error that was not expected"
            log(logger, logging.ERROR, message, _name(item.operation), error=error)

    def handle_control(self, instance_id: str, control: Control | None) -> None:
        """Terminate a run if an answer says so."""
        if control is not None and control.terminate:
            run = self.identities.of(instance_id)
            # Also a run that another client registered: this one records no more spans of it.
            self.identities.keep(run)
            run.terminate(control.reason)

    def deliver(self, item: BatchItem, api_id: str | None) -> None:
        """Complete an item that the API has accepted. ``api_id``: the id that the API gave the run
        or span."""
        item.completed = True
        operation = item.operation
        run = self.identities.of(operation.instance_id)
        match operation:
            case CreateSpan(span_id=span_id) if api_id is not None:
                if api_id != run.span_id(span_id):
                    if item.given_id:
                        self.api_makes_ids()
                    run.span_made(span_id, api_id)
                    self.identities.keep(run)
                    # Before the item is settled, or a restart would not know the id.
                    self.journal.identified(operation.instance_id, span_id, api_id)
                elif item.given_id:
                    self._api_takes_ids()
            case RegisterAgentInstance(instance_id=instance_id) if api_id is not None:
                if operation.is_as_given:
                    # Refused with an environment, and accepted without: that was the reason.
                    self.limits.refuses_environment(anyio.current_time())
                self.identities.registered(instance_id, api_id)
                if api_id != instance_id:
                    self.journal.identified(instance_id, None, api_id)
            case FinishAgentInstance():
                self._run_ended(run)
            case _:
                pass
        if isinstance(operation, FinishSpan) or (
            isinstance(operation, CreateSpan) and is_terminal(operation.status)
        ):
            run.span_ended(operation.span_id)
        if not item.outcome_unknown:
            self._breaker.accepted += 1
        self._counters.deliver(item.count, item.size)

    def _drop(self, item: BatchItem, reason: str, error: Exception | None = None) -> None:
        item.completed = True
        operation = item.operation
        run = self.identities.of(operation.instance_id)
        addressed = run.addressed(operation)
        match operation:
            case CreateSpan():
                run.span_lost(operation, reason)
                self.identities.keep(run)
            case RegisterAgentInstance():
                run.lost = reason
                if run.registration is not None and error is not None:
                    # The caller gets the error, and the log needs no line.
                    if run.registration.refused(error):
                        self.journal.withdrawn(item.keys, operation, reason)
                        self._counters.hand_back(item.count, item.size)
                    else:
                        self.journal.set_aside(item, reason, str(error), addressed)
                        self._counters.drop(reason, item.count, item.size)
                    return
            case FinishAgentInstance():
                self._run_ended(run)
            case _:
                pass
        self.journal.set_aside(item, reason, None if error is None else str(error), addressed)
        self._counters.drop(reason, item.count, item.size)
        if run.lost is None or error is not None:
            detail = None if error is None else f"{_name(operation)} is given up: {error}"
            self._losses.dropped(reason, detail)

    def _run_ended(self, run: RunIdentity) -> None:
        # A run that goes on may have the id of one that has ended.
        if run.termination.over:
            self.identities.forget(run.recorded_id)

    def attempt_failed(self, item: BatchItem) -> None:
        """Tell a caller that waits for a registration that an attempt failed."""
        if isinstance(item.operation, RegisterAgentInstance):
            run = self.identities.of(item.operation.instance_id)
            if run.registration is not None:
                run.registration.failed()

    def kept_without_parent(self, original: Operation | None) -> None:
        """Report a span without a parent, if its ``original`` operation had one."""
        if not isinstance(original, CreateSpan) or original.parent_span_id is None:
            return
        self._losses.kept_without_parent(_name(original))

    def api_makes_ids(self) -> None:
        """Note that the API has refused a given id, and makes all ids itself."""
        self.identities.given_ids = False
        self.limits.makes_ids(anyio.current_time())

    def _api_takes_ids(self) -> None:
        self.identities.given_ids = True
        self.limits.takes_ids()


def _name(operation: Operation) -> str:
    name = operation.type.name
    if isinstance(operation, CreateSpan):
        return f"{name} of the {operation.schema_name!r} span {operation.span_id}"
    if isinstance(operation, RecordQuality):
        return f"{name} of {operation.name!r} in {operation.instance_id}"
    return f"{name} of {operation.instance_id}"
