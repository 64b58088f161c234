"""Sender: one request, and what came of it; shared by all workers of a client."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from prefactor_core.exceptions import (
    OperationError,
    PrefactorApiError,
    PrefactorContractError,
    PrefactorUnreachableError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.batch import Parcel
from prefactor_core.export.circuit_breaker import Outage
from prefactor_core.export.completion import Settlement
from prefactor_core.export.counters import Ledger
from prefactor_core.export.failures import (
    Verdict,
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
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)
from prefactor_core.operations.identifiers import is_pfid

if TYPE_CHECKING:
    from prefactor_core.api.answers import Control, Output
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.export.sender")

T = TypeVar("T")

Settle = Callable[[Parcel], None]
"""Is told of each parcel that was delivered or given up, as soon as that is so."""

_SLICE = 100
"""Outputs that are read in one turn of the loop."""


class Sender:
    """Sends parcels; ``settlement`` counts what became of them."""

    def __init__(
        self,
        api: ApiClient,
        ledger: Ledger,
        outage: Outage,
        settlement: Settlement,
    ) -> None:
        self._api = api
        self._ledger = ledger
        self._outage = outage
        self.settlement = settlement
        self.identities = settlement.identities
        self.limits = settlement.limits
        # Whether single calls were taken since bulk failed last.
        self._taken_alone = False
        # Why parcels were refused that bulk is asked about now. Not in the parcels: an error
        # refers to the frames that refer to these.
        self._refusals: dict[int, Exception] = {}

    def gave_up_waiting(self, seconds: float) -> None:
        """A caller has waited for a registration, for so long, and no answer came to anything."""
        error = PrefactorUnreachableError(f"the API did not register a run within {seconds:g} s")
        self._ledger.fail(error)
        self._note_outage(error, self._outage.unanswered(anyio.current_time(), seconds))

    def _failed(self, error: Exception, round: int, took: float) -> None:
        asked = error.retry_after if isinstance(error, PrefactorApiError) else None
        denied = judge_request(error) is Verdict.DENIED
        news = self._outage.failed(round, anyio.current_time(), asked, took=took, denied=denied)
        self._note_outage(error, news)

    def _note_outage(self, error: Exception, news: bool) -> None:
        denied = judge_request(error) is Verdict.DENIED
        self._ledger.outage_since = self._outage.since
        if news:
            log(
                logger,
                logging.ERROR if denied else logging.WARNING,
                "the Prefactor API does not take operations (%s); "
                "they are kept and tried again until the scope ends",
                error,
            )

    async def send(self, request: Sequence[Parcel], settle: Settle) -> None:
        """Make one request. What is not settled then, perhaps changed, is to be sent again.

        Raises if nothing is settled, and the API, something on the way to it, or what was sent is
        the reason; the outage has been told of it.
        """
        round, sent_at = self._outage.begin(), anyio.current_time()
        try:
            if len(request) == 1 and not request[0].in_bulk:
                await self._send_alone(request[0], settle)
            else:
                await self._send_in_bulk(request, settle)
        except Exception as error:
            for parcel in request:
                self._refusals.pop(id(parcel), None)
                parcel.attempts += 1
                parcel.maybe_done |= may_be_done(error)
                self.settlement.attempt_failed(parcel)
            if judge_request(error) is not Verdict.REFUSED:
                self._ledger.retry()
            if not was_not_sent(error):
                self._failed(error, round, anyio.current_time() - sent_at)
            raise
        finally:
            self._outage.end(round)

    def ask_bulk(self, parcel: Parcel, refusal: Exception) -> None:
        """Find out by bulk whether the API refuses ``parcel``, as it has said, or everything."""
        parcel.in_bulk, parcel.alone = True, False
        self._refusals[id(parcel)] = refusal

    def shrink(self, parcel: Parcel) -> bool:
        """Leave the larger payload of a parcel out at the next attempt; whether there is one."""
        smaller = without_payload(parcel.operation)
        if smaller is None:
            return False
        parcel.original = parcel.original or parcel.operation
        parcel.operation = smaller
        return True

    def bulk_failed(self) -> None:
        """A bulk request failed as a whole, and what is in it is to be tried in smaller ones.

        If single calls go through, and the next bulk fails all the same, again and again, it
        is bulk itself that does not work.
        """
        if self._taken_alone:
            self._taken_alone = False
            self.limits.bulk_failed(anyio.current_time())

    async def _send_alone(self, parcel: Parcel, settle: Settle) -> None:
        operation = self.identities.of(parcel.operation.instance_id).addressed(parcel.operation)
        api_id = None
        try:
            api_id, control = await self._request([parcel], self._call(operation, parcel.given_id))
        except Exception as error:
            if self._refused_alone(parcel, operation, error, settle):
                return
            if judge(operation, error) is not Verdict.SETTLED:
                if parcel.original is not None:
                    # With less it was not taken either.
                    parcel.operation, parcel.original = parcel.original, None
                raise
            self._succeeded()
            parcel.maybe_done = True  # by whom, nobody knows
        else:
            self.settlement.heed(operation.instance_id, control)
            if parcel.failed_in_bulk and not _is_changed(parcel):
                self.limits.taken_only_alone(operation.type, anyio.current_time())
        if isinstance(operation, CreateSpan) and operation.parent_span_id is None:
            self.settlement.kept_without_parent(parcel.original)
        self._taken_alone = True
        self.settlement.deliver(parcel, api_id)
        settle(parcel)

    def _refused_alone(
        self, parcel: Parcel, operation: Operation, error: Exception, settle: Settle
    ) -> bool:
        """Whether an answer to ``parcel`` alone says what to do with it at once."""
        verdict = judge(operation, error)
        if verdict is Verdict.ID_REFUSED and parcel.given_id and not self.limits.took_given_id:
            self.settlement.api_makes_ids()
            parcel.given_id = parcel.failed_in_bulk = False  # that was why
        elif verdict is Verdict.PARENT_REFUSED:
            # Better kept without a parent than lost with all that is below it.
            parcel.original = parcel.original or parcel.operation
            parcel.operation = msgspec.structs.replace(parcel.operation, parent_span_id=None)
        elif verdict is Verdict.ENVIRONMENT_REFUSED:
            assert isinstance(parcel.operation, RegisterAgentInstance)
            parcel.operation = parcel.operation.as_given()
        elif verdict is Verdict.TOO_LARGE and self.shrink(parcel):
            pass
        elif self._has_an_answer_for_caller(parcel, error) or (
            parcel.failed_in_bulk
            and verdict in (Verdict.REFUSED, Verdict.ID_REFUSED, Verdict.TOO_LARGE)
        ):
            self._succeeded()
            self.settlement.give_up(parcel, error, "refused")
            settle(parcel)
        else:
            # What bulk said is no proof any more: later on the API may be in another state.
            parcel.failed_in_bulk = False
            return False
        return True

    def _has_an_answer_for_caller(self, parcel: Parcel, error: Exception) -> bool:
        """Whether somebody waits for a registration, and the API says that it refuses that."""
        operation = parcel.operation
        if not isinstance(operation, RegisterAgentInstance) or not is_of_the_api(error):
            return False
        waits = self.identities.of(operation.instance_id).registration is not None
        return waits and judge(operation, error) in (
            Verdict.REFUSED,
            Verdict.ID_REFUSED,
            Verdict.TOO_LARGE,
            Verdict.DENIED,
        )

    async def _send_in_bulk(self, request: Sequence[Parcel], settle: Settle) -> None:
        operations = [
            self.identities.of(parcel.operation.instance_id).addressed(parcel.operation)
            for parcel in request
        ]
        given_ids = [parcel.given_id for parcel in request]
        try:
            outputs = await self._request(request, self._bulk(operations, given_ids))
        except Exception as error:
            now = anyio.current_time()
            if lacks_call(error) and is_of_the_api(error):
                self.limits.lacks_bulk(now, str(error))
            if judge_request(error) is Verdict.TOO_LARGE and len(request) > 1:
                self.limits.too_large(sum(parcel.size for parcel in request), now)
            if is_of_the_api(error) and judge_request(error) is Verdict.DENIED:
                # Callers that wait for a registration get their answer.
                refused = [p for p in request if self._has_an_answer_for_caller(p, error)]
                for parcel in refused:
                    self.settlement.give_up(parcel, error, "refused")
                    settle(parcel)
                if refused:
                    return
            raise
        self.limits.taken_of_size(sum(parcel.size for parcel in request))
        await self._read_outputs(request, operations, outputs, settle)

    async def _read_outputs(
        self,
        request: Sequence[Parcel],
        operations: Sequence[Operation],
        outputs: Mapping[str, Output],
        settle: Settle,
    ) -> None:
        for place, (parcel, operation) in enumerate(zip(request, operations, strict=True)):
            if place % _SLICE == _SLICE - 1:
                # If this is cut short, the rest is sent again under the same keys.
                await anyio.lowlevel.checkpoint()
            # After an error the API does nothing more: what has no output is sent again.
            output = outputs.get(operation.idempotency_key)
            if output is None:
                parcel.sent = False
                continue
            self.settlement.heed(operation.instance_id, output.control)
            if output.succeeded and not _lacks_id(operation, output):
                self.limits.taken_in_bulk(operation.type, len(request))
                self.settlement.deliver(parcel, output.details.id if output.details else None)
                self._refusals.pop(id(parcel), None)
                self._taken_alone = False
                settle(parcel)
            elif (refusal := self._refusals.pop(id(parcel), None)) is not None:
                self.settlement.give_up(parcel, refusal, "refused")
                settle(parcel)
            else:
                # What its own endpoint says has a status, which decides.
                parcel.alone = parcel.failed_in_bulk = True

    async def _request(self, request: Sequence[Parcel], call: Awaitable[T]) -> T:
        operations = sum(parcel.count for parcel in request)
        self._ledger.request()
        self._ledger.in_flight += operations
        try:
            answer = await call
        except Exception as error:
            settles = len(request) == 1 and judge(request[0].operation, error) is Verdict.SETTLED
            if not settles:
                self._ledger.fail(error)
            raise
        finally:
            self._ledger.in_flight -= operations
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

    async def _call(
        self, operation: Operation, given_id: bool
    ) -> tuple[str | None, Control | None]:
        """The operation's own call; the id of a run or span that it made, and what else the
        API wants."""
        match operation:
            case CreateSpan():
                created = await self._api.create_span(operation, given_id=given_id)
                return created.details.id, created.control
            case FinishSpan():
                return None, (await self._api.finish_span(operation)).control
            case StartAgentInstance():
                return None, (await self._api.start_agent_instance(operation)).control
            case FinishAgentInstance():
                return None, (await self._api.finish_agent_instance(operation)).control
            case RecordQuality():
                return None, (await self._api.record_quality(operation)).control
            case RegisterAgentInstance():
                registered = await self._api.register_agent_instance(operation)
                return registered.details.id, registered.control
            case UpdateSpanPayload():
                raise OperationError(
                    "the API has no call that changes the payload of a span that has started",
                    operation.type,
                )

    def _succeeded(self) -> None:
        outage = self._outage.succeeded(anyio.current_time())
        self._ledger.outage_since = None
        if outage is not None:
            message = "the Prefactor API takes operations again after %.1f s"
            log(logger, logging.INFO, message, outage)


def _is_changed(parcel: Parcel) -> bool:
    """Whether something that the API did not take was left out of a parcel."""
    operation = parcel.operation
    return parcel.original is not None or (
        isinstance(operation, RegisterAgentInstance) and operation.is_as_given
    )


def _lacks_id(operation: Operation, output: Output) -> bool:
    """Whether a registration was answered without what the run is called from now on."""
    id = output.details.id if output.details else None
    return isinstance(operation, RegisterAgentInstance) and not is_pfid(id)
