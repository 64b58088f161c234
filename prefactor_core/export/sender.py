"""Sender: one request, and how its answer completes or changes items; shared by all workers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorUnreachableError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.completion import Completion
from prefactor_core.export.counters import Counters
from prefactor_core.export.failures import (
    FailureKind,
    classify,
    classify_request,
    exists_already,
    is_of_the_api,
    lacks_call,
    outcome_is_unknown,
    was_not_sent,
)
from prefactor_core.operations import CreateSpan, Operation, RegisterAgentInstance
from prefactor_core.operations.identifiers import is_pfid

if TYPE_CHECKING:
    from prefactor_core.api.answers import Output
    from prefactor_core.export.carrier import Carrier

logger = logging.getLogger("prefactor_core.export.sender")

T = TypeVar("T")

_REFUSALS = (FailureKind.REFUSED, FailureKind.TOO_LARGE)

_SLICE = 100
"""Outputs that are read in one turn of the loop."""


class Sender:
    """Sends items; ``completion`` counts the delivered and the dropped ones."""

    def __init__(
        self,
        carrier: Carrier,
        counters: Counters,
        breaker: CircuitBreaker,
        completion: Completion,
    ) -> None:
        self._carrier = carrier
        self._counters = counters
        self._breaker = breaker
        self.completion = completion
        self.identities = completion.identities
        self.limits = completion.limits
        # Whether single calls have succeeded since bulk failed last.
        self._single_succeeded = False
        # Why items were refused alone that bulk is to confirm. Not in the items: an error
        # refers to the frames that refer to these.
        self._refusals: dict[int, Exception] = {}

    async def send(self, batch: Sequence[BatchItem]) -> None:
        """Make one request. Send the items again that are not completed then, perhaps changed.

        Raises if no item is completed because the API, something on the way to it, or an
        operation failed; the circuit breaker knows of the failure then.
        """
        round, sent_at = self._breaker.begin(), anyio.current_time()
        try:
            if len(batch) == 1 and not batch[0].in_bulk:
                await self._send_alone(batch[0])
            else:
                await self._send_in_bulk(batch)
        except Exception as error:
            for item in batch:
                self._refusals.pop(id(item), None)
                item.attempts += 1
                item.outcome_unknown |= outcome_is_unknown(error)
                self.completion.attempt_failed(item)
            if classify_request(error) is not FailureKind.REFUSED:
                self._counters.retry()
            if not was_not_sent(error):
                self._failed(error, round, anyio.current_time() - sent_at)
            raise
        finally:
            self._breaker.end(round)

    def gave_up_waiting(self, seconds: float) -> None:
        """Note that a caller has waited ``seconds`` for a registration, without an answer to any
        request."""
        error = PrefactorUnreachableError(
            f"{self._carrier.receiver} took no registration of a run within {seconds:g} s"
        )
        self._counters.fail(error)
        now = anyio.current_time()
        self._report_end(self._breaker.report_end(now))
        if self._breaker.unanswered(now, seconds):
            self._report_outage(error)

    def confirm_in_bulk(self, item: BatchItem, refusal: Exception) -> None:
        """Send ``item`` by bulk next, to see whether the API refuses it or everything."""
        item.in_bulk, item.alone = True, False
        self._refusals[id(item)] = refusal

    def bulk_failed(self) -> None:
        """Note that a bulk request failed as a whole, and its items go in smaller ones next.

        If again and again single calls succeed and the next bulk fails all the same, bulk itself
        does not work.
        """
        if self._single_succeeded:
            self._single_succeeded = False
            self.limits.bulk_failed(anyio.current_time())

    async def _send_alone(self, item: BatchItem) -> None:
        operation = self.identities.of(item.operation.instance_id).addressed(item.operation)
        api_id = None
        try:
            answer = await self._request(
                [item], self._carrier.send(operation, given_id=item.given_id)
            )
        except Exception as error:
            is_done = classify(operation, error) is FailureKind.ALREADY_DONE or (
                item.may_be_known and exists_already(operation, error)
            )
            if not is_done and self._handle_refusal(item, operation, error):
                return
            if not is_done:
                if item.original is not None and classify_request(error) in _REFUSALS:
                    # The API refused the reduced operation, too. It may have accepted one of which
                    # the answer is lost: that keeps its form.
                    item.operation, item.original = item.original, None
                raise
            self._succeeded()
            item.outcome_unknown = True  # another attempt, or another program, has done it
        else:
            api_id = answer.details.id
            self.completion.handle_control(operation.instance_id, answer.control)
            if item.failed_in_bulk and not item.is_changed:
                self.limits.accepted_only_alone(operation.type, anyio.current_time())
        if isinstance(operation, CreateSpan) and operation.parent_span_id is None:
            self.completion.kept_without_parent(item.original)
        self._single_succeeded = True
        self.completion.deliver(item, api_id)

    def _handle_refusal(self, item: BatchItem, operation: Operation, error: Exception) -> bool:
        """Change or drop an item as the answer to it alone says; return whether it says so."""
        kind = classify(operation, error)
        registration = item.operation
        if kind is FailureKind.ID_REFUSED and isinstance(registration, RegisterAgentInstance):
            item.operation, item.failed_in_bulk = registration.without_id(), False
        elif kind is FailureKind.ID_REFUSED and item.given_id and not self.limits.took_given_id:
            self.completion.api_makes_ids()
            item.given_id = item.failed_in_bulk = False  # the id was the reason
        elif kind is FailureKind.PARENT_REFUSED:
            # Better kept without a parent than lost with all its descendants.
            item.original = item.original or item.operation
            item.operation = msgspec.structs.replace(item.operation, parent_span_id=None)
        elif kind is FailureKind.ENVIRONMENT_REFUSED:
            assert isinstance(item.operation, RegisterAgentInstance)
            item.operation = item.operation.as_given()
        elif kind is FailureKind.TOO_LARGE and item.shrink():
            pass
        elif self._answers_caller(item, error) or (
            item.failed_in_bulk
            and kind in (FailureKind.REFUSED, FailureKind.ID_REFUSED, FailureKind.TOO_LARGE)
        ):
            self._succeeded()
            self.completion.give_up(item, error, "refused")
        else:
            # The error from bulk is no proof any more: later the API may be in another state.
            item.failed_in_bulk = False
            return False
        return True

    def _answers_caller(self, item: BatchItem, error: Exception) -> bool:
        """Whether a caller waits for a registration, and ``error`` is the API's refusal of it."""
        operation = item.operation
        if not isinstance(operation, RegisterAgentInstance) or not is_of_the_api(error):
            return False
        waits = self.identities.of(operation.instance_id).registration is not None
        return waits and classify(operation, error) in (
            FailureKind.REFUSED,
            FailureKind.ID_REFUSED,
            FailureKind.TOO_LARGE,
            FailureKind.DENIED,
        )

    async def _send_in_bulk(self, batch: Sequence[BatchItem]) -> None:
        operations = [
            self.identities.of(item.operation.instance_id).addressed(item.operation)
            for item in batch
        ]
        size = sum(item.size for item in batch)
        try:
            outputs = await self._request(
                batch, self._carrier.bulk(operations, [item.given_id for item in batch])
            )
        except Exception as error:
            now, kind = anyio.current_time(), classify_request(error)
            if lacks_call(error) and is_of_the_api(error):
                self.limits.lacks_bulk(now, str(error))
            if kind is FailureKind.TOO_LARGE and len(batch) > 1:
                self.limits.too_large(size, now)
            if kind is FailureKind.DENIED and is_of_the_api(error):
                # Callers that wait for a registration get their answer.
                refused = [item for item in batch if self._answers_caller(item, error)]
                for item in refused:
                    self.completion.give_up(item, error, "refused")
                if refused:
                    return
            raise
        self.limits.accepted_size(size)
        await self._read_outputs(batch, operations, outputs)

    async def _read_outputs(
        self,
        batch: Sequence[BatchItem],
        operations: Sequence[Operation],
        outputs: Mapping[str, Output],
    ) -> None:
        for place, (item, operation) in enumerate(zip(batch, operations, strict=True)):
            if place % _SLICE == _SLICE - 1:
                # If this is cut short, the rest is sent again under the same keys.
                await anyio.lowlevel.checkpoint()
            # After an error the API does nothing more: an item without output is sent again.
            output = outputs.get(operation.idempotency_key)
            if output is None:
                # Its form may change, unless an earlier attempt may have had an effect.
                item.sent = item.may_be_known
                continue
            self.completion.handle_control(operation.instance_id, output.control)
            if output.succeeded and not _lacks_id(operation, output):
                self.limits.accepted_in_bulk(operation.type, len(batch))
                self.completion.deliver(item, output.details.id if output.details else None)
                self._refusals.pop(id(item), None)
                self._single_succeeded = False
            elif (refusal := self._refusals.pop(id(item), None)) is not None:
                self.completion.give_up(item, refusal, "refused")
            else:
                # The answer of the item's own endpoint has a status, which decides.
                item.alone = item.failed_in_bulk = True

    async def _request(self, batch: Sequence[BatchItem], call: Awaitable[T]) -> T:
        operations = sum(item.count for item in batch)
        self._counters.request()
        self._counters.in_flight += operations
        try:
            answer = await call
        except Exception as error:
            operation = batch[0].operation
            if len(batch) > 1 or classify(operation, error) is not FailureKind.ALREADY_DONE:
                self._counters.fail(error)
            raise
        finally:
            self._counters.in_flight -= operations
        self._succeeded()
        return answer

    def _failed(self, error: Exception, round: int, took: float) -> None:
        retry_after = error.retry_after if isinstance(error, PrefactorApiError) else None
        kind, now = classify_request(error), anyio.current_time()
        denied, busy = kind is FailureKind.DENIED, kind is FailureKind.BUSY
        # Nothing may have been sent since the last outage: its end comes before a new beginning.
        self._report_end(self._breaker.report_end(now))
        if self._breaker.failed(round, now, retry_after, took=took, denied=denied, busy=busy):
            self._report_outage(error)

    def _report_outage(self, error: Exception) -> None:
        denied = classify_request(error) is FailureKind.DENIED
        log(
            logger,
            logging.ERROR if denied else logging.WARNING,
            "%s does not take operations (%s); they are kept and tried again",
            self._carrier.receiver,
            error,
        )

    def _succeeded(self) -> None:
        self._report_end(self._breaker.succeeded(anyio.current_time()))

    def close(self) -> None:
        """Report the end of an outage that may still have come back."""
        self._report_end(self._breaker.report_end())

    def _report_end(self, outage: float | None) -> None:
        if outage is not None:
            message = "%s accepts operations again after %.1f s"
            log(logger, logging.INFO, message, self._carrier.receiver, outage)


def _lacks_id(operation: Operation, output: Output) -> bool:
    """Whether the answer to a registration does not say what the API calls the run."""
    id = output.details.id if output.details else None
    return isinstance(operation, RegisterAgentInstance) and not is_pfid(id)
