"""Sender: one request, and what came of it; shared by all workers of a client."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorContractError,
    PrefactorUnreachableError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.batch import BatchItem
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.completion import Completion
from prefactor_core.export.counters import Counters
from prefactor_core.export.failures import (
    FailureKind,
    is_of_the_api,
    judge,
    judge_request,
    lacks_call,
    may_be_done,
    was_not_sent,
)
from prefactor_core.export.without_payload import without_payload
from prefactor_core.operations import (
    CreateSpan,
    Operation,
    RegisterAgentInstance,
)
from prefactor_core.operations.identifiers import is_pfid

if TYPE_CHECKING:
    from prefactor_core.api.answers import Output
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.export.sender")

T = TypeVar("T")

Settle = Callable[[BatchItem], None]
"""Is told of each item that was delivered or given up, as soon as that is so."""

_SLICE = 100
"""Outputs that are read in one turn of the loop."""


class Sender:
    """Sends items; ``completion`` counts what became of them."""

    def __init__(
        self,
        api: ApiClient,
        counters: Counters,
        outage: CircuitBreaker,
        completion: Completion,
    ) -> None:
        self._api = api
        self._counters = counters
        self._breaker = outage
        self.completion = completion
        self.identities = completion.identities
        self.limits = completion.limits
        # Whether single calls were taken since bulk failed last.
        self._taken_alone = False
        # Why items were refused that bulk is asked about now. Not in the items: an error
        # refers to the frames that refer to these.
        self._refusals: dict[int, Exception] = {}

    def gave_up_waiting(self, seconds: float) -> None:
        """A caller has waited for a registration, for so long, and no answer came to anything."""
        error = PrefactorUnreachableError(f"the API did not register a run within {seconds:g} s")
        self._counters.fail(error)
        self._note_outage(error, self._breaker.unanswered(anyio.current_time(), seconds))

    def _failed(self, error: Exception, round: int, took: float) -> None:
        asked = error.retry_after if isinstance(error, PrefactorApiError) else None
        denied = judge_request(error) is FailureKind.DENIED
        news = self._breaker.failed(round, anyio.current_time(), asked, took=took, denied=denied)
        self._note_outage(error, news)

    def _note_outage(self, error: Exception, news: bool) -> None:
        denied = judge_request(error) is FailureKind.DENIED
        self._counters.outage_since = self._breaker.since
        if news:
            log(
                logger,
                logging.ERROR if denied else logging.WARNING,
                "the Prefactor API does not take operations (%s); "
                "they are kept and tried again until the scope ends",
                error,
            )

    async def send(self, request: Sequence[BatchItem], settle: Settle) -> None:
        """Make one request. What is not settled then, perhaps changed, is to be sent again.

        Raises if nothing is settled, and the API, something on the way to it, or what was sent is
        the reason; the outage has been told of it.
        """
        round, sent_at = self._breaker.begin(), anyio.current_time()
        try:
            if len(request) == 1 and not request[0].in_bulk:
                await self._send_alone(request[0], settle)
            else:
                await self._send_in_bulk(request, settle)
        except Exception as error:
            for item in request:
                self._refusals.pop(id(item), None)
                item.attempts += 1
                item.maybe_done |= may_be_done(error)
                self.completion.attempt_failed(item)
            if judge_request(error) is not FailureKind.REFUSED:
                self._counters.retry()
            if not was_not_sent(error):
                self._failed(error, round, anyio.current_time() - sent_at)
            raise
        finally:
            self._breaker.end(round)

    def ask_bulk(self, item: BatchItem, refusal: Exception) -> None:
        """Find out by bulk whether the API refuses ``item``, as it has said, or everything."""
        item.in_bulk, item.alone = True, False
        self._refusals[id(item)] = refusal

    def shrink(self, item: BatchItem) -> bool:
        """Leave the larger payload of a item out at the next attempt; whether there is one."""
        smaller = without_payload(item.operation)
        if smaller is None:
            return False
        item.original = item.original or item.operation
        item.operation = smaller
        return True

    def bulk_failed(self) -> None:
        """A bulk request failed as a whole, and what is in it is to be tried in smaller ones.

        If single calls go through, and the next bulk fails all the same, again and again, it
        is bulk itself that does not work.
        """
        if self._taken_alone:
            self._taken_alone = False
            self.limits.bulk_failed(anyio.current_time())

    async def _send_alone(self, item: BatchItem, settle: Settle) -> None:
        operation = self.identities.of(item.operation.instance_id).addressed(item.operation)
        api_id = None
        try:
            answer = await self._request([item], self._api.send(operation, given_id=item.given_id))
        except Exception as error:
            if self._refused_alone(item, operation, error, settle):
                return
            if judge(operation, error) is not FailureKind.SETTLED:
                if item.original is not None:
                    # With less it was not taken either.
                    item.operation, item.original = item.original, None
                raise
            self._succeeded()
            item.maybe_done = True  # by whom, nobody knows
        else:
            api_id = answer.details.id
            self.completion.heed(operation.instance_id, answer.control)
            if item.failed_in_bulk and not _is_changed(item):
                self.limits.taken_only_alone(operation.type, anyio.current_time())
        if isinstance(operation, CreateSpan) and operation.parent_span_id is None:
            self.completion.kept_without_parent(item.original)
        self._taken_alone = True
        self.completion.deliver(item, api_id)
        settle(item)

    def _refused_alone(
        self, item: BatchItem, operation: Operation, error: Exception, settle: Settle
    ) -> bool:
        """Whether an answer to ``item`` alone says what to do with it at once."""
        kind = judge(operation, error)
        if kind is FailureKind.ID_REFUSED and item.given_id and not self.limits.took_given_id:
            self.completion.api_makes_ids()
            item.given_id = item.failed_in_bulk = False  # that was why
        elif kind is FailureKind.PARENT_REFUSED:
            # Better kept without a parent than lost with all that is below it.
            item.original = item.original or item.operation
            item.operation = msgspec.structs.replace(item.operation, parent_span_id=None)
        elif kind is FailureKind.ENVIRONMENT_REFUSED:
            assert isinstance(item.operation, RegisterAgentInstance)
            item.operation = item.operation.as_given()
        elif kind is FailureKind.TOO_LARGE and self.shrink(item):
            pass
        elif self._has_an_answer_for_caller(item, error) or (
            item.failed_in_bulk
            and kind in (FailureKind.REFUSED, FailureKind.ID_REFUSED, FailureKind.TOO_LARGE)
        ):
            self._succeeded()
            self.completion.give_up(item, error, "refused")
            settle(item)
        else:
            # What bulk said is no proof any more: later on the API may be in another state.
            item.failed_in_bulk = False
            return False
        return True

    def _has_an_answer_for_caller(self, item: BatchItem, error: Exception) -> bool:
        """Whether somebody waits for a registration, and the API says that it refuses that."""
        operation = item.operation
        if not isinstance(operation, RegisterAgentInstance) or not is_of_the_api(error):
            return False
        waits = self.identities.of(operation.instance_id).registration is not None
        return waits and judge(operation, error) in (
            FailureKind.REFUSED,
            FailureKind.ID_REFUSED,
            FailureKind.TOO_LARGE,
            FailureKind.DENIED,
        )

    async def _send_in_bulk(self, request: Sequence[BatchItem], settle: Settle) -> None:
        operations = [
            self.identities.of(item.operation.instance_id).addressed(item.operation)
            for item in request
        ]
        given_ids = [item.given_id for item in request]
        try:
            outputs = await self._request(request, self._bulk(operations, given_ids))
        except Exception as error:
            now = anyio.current_time()
            if lacks_call(error) and is_of_the_api(error):
                self.limits.lacks_bulk(now, str(error))
            if judge_request(error) is FailureKind.TOO_LARGE and len(request) > 1:
                self.limits.too_large(sum(item.size for item in request), now)
            if is_of_the_api(error) and judge_request(error) is FailureKind.DENIED:
                # Callers that wait for a registration get their answer.
                refused = [p for p in request if self._has_an_answer_for_caller(p, error)]
                for item in refused:
                    self.completion.give_up(item, error, "refused")
                    settle(item)
                if refused:
                    return
            raise
        self.limits.taken_of_size(sum(item.size for item in request))
        await self._read_outputs(request, operations, outputs, settle)

    async def _read_outputs(
        self,
        request: Sequence[BatchItem],
        operations: Sequence[Operation],
        outputs: Mapping[str, Output],
        settle: Settle,
    ) -> None:
        for place, (item, operation) in enumerate(zip(request, operations, strict=True)):
            if place % _SLICE == _SLICE - 1:
                # If this is cut short, the rest is sent again under the same keys.
                await anyio.lowlevel.checkpoint()
            # After an error the API does nothing more: what has no output is sent again.
            output = outputs.get(operation.idempotency_key)
            if output is None:
                item.sent = False
                continue
            self.completion.heed(operation.instance_id, output.control)
            if output.succeeded and not _lacks_id(operation, output):
                self.limits.taken_in_bulk(operation.type, len(request))
                self.completion.deliver(item, output.details.id if output.details else None)
                self._refusals.pop(id(item), None)
                self._taken_alone = False
                settle(item)
            elif (refusal := self._refusals.pop(id(item), None)) is not None:
                self.completion.give_up(item, refusal, "refused")
                settle(item)
            else:
                # What its own endpoint says has a status, which decides.
                item.alone = item.failed_in_bulk = True

    async def _request(self, request: Sequence[BatchItem], call: Awaitable[T]) -> T:
        operations = sum(item.count for item in request)
        self._counters.request()
        self._counters.in_flight += operations
        try:
            answer = await call
        except Exception as error:
            settles = (
                len(request) == 1 and judge(request[0].operation, error) is FailureKind.SETTLED
            )
            if not settles:
                self._counters.fail(error)
            raise
        finally:
            self._counters.in_flight -= operations
        self._succeeded()
        return answer

    async def _bulk(
        self, operations: Sequence[Operation], given_ids: Sequence[bool]
    ) -> dict[str, Output]:
        outputs = await self._api.bulk(operations, given_ids)
        if not any(operation.idempotency_key in outputs for operation in operations):
            # Else it would be sent again at once, and for ever.
            raise PrefactorContractError("bulk was answered without an output for any item")
        return outputs

    def _succeeded(self) -> None:
        outage = self._breaker.succeeded(anyio.current_time())
        self._counters.outage_since = None
        if outage is not None:
            message = "the Prefactor API takes operations again after %.1f s"
            log(logger, logging.INFO, message, outage)


def _is_changed(item: BatchItem) -> bool:
    """Whether something that the API did not take was left out of a item."""
    operation = item.operation
    return item.original is not None or (
        isinstance(operation, RegisterAgentInstance) and operation.is_as_given
    )


def _lacks_id(operation: Operation, output: Output) -> bool:
    """Whether a registration was answered without what the run is called from now on."""
    id = output.details.id if output.details else None
    return isinstance(operation, RegisterAgentInstance) and not is_pfid(id)
