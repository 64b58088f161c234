"""Sender: one operation, one request; what came of it goes into the ledger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from prefactor_core.backoff import Backoff
from prefactor_core.delivery.ledger import Ledger
from prefactor_core.delivery.verdict import Verdict, judge
from prefactor_core.exceptions import (
    OperationError,
    PrefactorApiError,
    PrefactorCoreError,
)
from prefactor_core.log import log
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.delivery.sender")


class Sender:
    """Handler and retry rule of the workers that deliver operations.

    While the API is away nothing is given up. An operation that the API refuses is given
    up at once and alone; one that the API fails at is given up after ``max_retries`` more
    attempts, and only while the API answers a ping.
    """

    def __init__(self, api: ApiClient, ledger: Ledger, backoff: Backoff, max_retries: int) -> None:
        self._api = api
        self._ledger = ledger
        self._backoff = backoff
        self._max_retries = max_retries
        self._outage_since: float | None = None
        self._warned_of_loss = False

    async def send(self, operation: Operation) -> None:
        """Make one attempt. Raises if the operation is neither delivered nor given up."""
        self._ledger.attempt()
        try:
            await self._request(operation)
        except Exception as error:
            self._ledger.fail(error)
            match judge(operation, error):
                case Verdict.AWAY | Verdict.FAULT:
                    raise
                case Verdict.REFUSED:
                    self._give_up(operation, error, "refused")
                case Verdict.SETTLED:
                    self._ledger.deliver()
        else:
            self._ledger.deliver()
        self._answered()

    async def retry_delay(
        self, operation: Operation, error: Exception, attempt: int
    ) -> float | None:
        """The wait in seconds before the next attempt; None to give the operation up."""
        if judge(operation, error) is Verdict.AWAY:
            self._unanswered(error)
        elif attempt > self._max_retries:
            # Is it this operation, or the API altogether? A ping tells.
            try:
                await self._api.ping()
            except Exception as no_answer:
                self._unanswered(no_answer)
            else:
                self._give_up(operation, error, "retries_exhausted")
                return None
        self._ledger.retry()
        asked = error.retry_after if isinstance(error, PrefactorApiError) else None
        return self._backoff.delay(attempt, at_least=asked)

    async def _request(self, operation: Operation) -> None:
        match operation:
            case CreateSpan():
                await self._api.create_span(operation)
            case FinishSpan():
                await self._api.finish_span(operation)
            case StartAgentInstance():
                await self._api.start_agent_instance(operation)
            case FinishAgentInstance():
                await self._api.finish_agent_instance(operation)
            case RegisterAgentInstance():
                await self._api.register_agent_instance(operation)
            case UpdateSpanPayload():
                raise OperationError(
                    "the API has no call that changes the payload of a span that has started",
                    operation.type,
                )

    def _give_up(self, operation: Operation, error: Exception, reason: str) -> None:
        self._ledger.drop(reason)
        if not self._warned_of_loss:
            self._warned_of_loss = True
            log(
                logger,
                logging.WARNING,
                "%s is given up (%s): %s. Further losses are only counted, in statistics()",
                operation.type.name,
                reason,
                error,
                # A bug of ours deserves its traceback; what the API says needs none.
                error=None if isinstance(error, PrefactorCoreError) else error,
            )

    def _unanswered(self, error: Exception) -> None:
        if self._outage_since is None:
            self._outage_since = anyio.current_time()
            log(
                logger,
                logging.WARNING,
                "the Prefactor API does not take operations (%s); "
                "they are kept and tried again until the scope ends",
                error,
            )

    def _answered(self) -> None:
        if self._outage_since is not None:
            outage = anyio.current_time() - self._outage_since
            self._outage_since = None
            message = "the Prefactor API takes operations again after %.1f s"
            log(logger, logging.INFO, message, outage)
