"""Sender: one request, and what came of it; shared by all workers of a client."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
import msgspec

from prefactor_core.delivery.backlog import Parcel
from prefactor_core.delivery.identity import Identities
from prefactor_core.delivery.ledger import Ledger
from prefactor_core.delivery.outage import Outage
from prefactor_core.delivery.payloads import without_payload
from prefactor_core.delivery.verdict import Verdict, judge, judge_request, lacks_call
from prefactor_core.exceptions import (
    OperationError,
    PrefactorApiError,
    PrefactorContractError,
    PrefactorCoreError,
)
from prefactor_core.log import log
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    OperationType,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)

if TYPE_CHECKING:
    from prefactor_core.api.answers import Control, Output
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.delivery.sender")

T = TypeVar("T")

_ALL_TYPES = frozenset(OperationType)
_ITS_OWN_FAULT = (Verdict.REFUSED, Verdict.ID_REFUSED, Verdict.TOO_LARGE)
_ANSWERS = (Verdict.REFUSED, Verdict.TOO_LARGE)

_NO_HICCUP = 5.0
"""Seconds of waiting for an answer after which a single failure is an outage."""

_BULK_FAILURES = 5
"""How often bulk fails as a whole, while single calls go through, until it is not used more."""

_TIMES_ONLY_ALONE = 2
"""How often bulk fails at a type, having never taken it, until it is sent alone for good."""


class Sender:
    """Sends parcels and enters in the ledger what became of them.

    ``alone``: the types that the API takes only by their own endpoints, as far as it has
    shown. ``max_bytes``: how large a request may be, as far as it has shown.
    """

    def __init__(
        self, api: ApiClient, ledger: Ledger, identities: Identities, outage: Outage, max_bytes: int
    ) -> None:
        self._api = api
        self._ledger = ledger
        self.identities = identities
        self._outage = outage
        self.max_bytes = max_bytes
        self.alone: frozenset[OperationType] = frozenset()
        # What it has taken last, and whether with an id that it was given.
        self._last_taken: tuple[Operation, bool] | None = None
        # Types that were taken in bulk; and how often each other type was taken only alone.
        self._proven: set[OperationType] = set()
        self._only_alone: dict[OperationType, int] = {}
        # Whether single calls were taken since bulk failed last; how often it failed after that.
        self._taken_alone = False
        self._bulk_failures = 0
        # Whether the API has taken an id that it was given: then it can only refuse this one.
        self._took_given_id = False
        self._warned_of_loss = False
        self._warned_of_parents = False

    def drop_if_lost(self, parcel: Parcel) -> bool:
        """Give a parcel up if what it belongs to was given up; whether it was."""
        operation = parcel.operation
        reason = self.identities.of(operation.instance_id).reason_lost(operation)
        if reason is None:
            return False
        self._drop(parcel, reason)
        return True

    async def register_agent_instance(self, operation: RegisterAgentInstance) -> str:
        """Make a run known by one request, for who waits for it; its id, or what the API says."""
        round, sent_at = self._outage.round, anyio.current_time()
        try:
            registered = await self._request((), self._api.register_agent_instance(operation))
        except Exception as error:
            if judge_request(error) in (Verdict.FAILED, Verdict.BUSY):
                self.unanswered(error, round, anyio.current_time() - sent_at)
            raise
        self._last_taken = operation, True
        self._heed(registered.details.id, registered.control)
        return registered.details.id

    def gave_up_waiting(self, error: PrefactorApiError) -> None:
        """A registration has found the API away: nobody waits for its answer any more."""
        self._ledger.fail(error)
        self.unanswered(error, self._outage.round, _NO_HICCUP)

    def unanswered(self, error: Exception, round: int, took: float) -> None:
        """A request that was sent in ``round`` of the outage failed after ``took`` seconds,
        and nothing shows that the API is there."""
        denied = judge_request(error) is Verdict.DENIED
        asked = error.retry_after if isinstance(error, PrefactorApiError) else None
        news = self._outage.failed(
            round, anyio.current_time(), asked, denied=denied, certain=took >= _NO_HICCUP
        )
        self._ledger.outage_since = self._outage.since
        if news:
            log(
                logger,
                logging.ERROR if denied else logging.WARNING,
                "the Prefactor API does not take operations (%s); "
                "they are kept and tried again until the scope ends",
                error,
            )

    async def send(self, request: Sequence[Parcel]) -> list[Parcel]:
        """Make one request; the parcels that it settled.

        Those that are not settled, perhaps changed, are to be sent again at once. Raises if
        nothing is settled and the API, or something on the way to it, is the reason; or if it
        refuses the whole of a bulk request and does not say for which item.
        """
        if len(request) == 1:
            return [request[0]] if await self._send_alone(request[0]) else []
        return await self._send_in_bulk(request)

    async def probe(self) -> bool:
        """See whether the API takes anything, where there is nothing new that it could take.

        What it took last is sent once more, with the same key: that has no second effect
        (API.md section 5), and goes the way of all operations, which a ping does not. False
        also where it has taken nothing yet.
        """
        if self._last_taken is None:
            return False
        operation, given_id = self._last_taken
        try:
            await self._request((), self._call(operation, given_id))
        except Exception as error:
            return judge_request(error) in _ANSWERS
        return True

    def bulk_failed(self) -> None:
        """A bulk request failed as a whole, and what is in it is to be tried in smaller ones.

        If single calls go through, and the next bulk fails all the same, again and again, it
        is bulk itself that does not work.
        """
        if self._taken_alone:
            self._taken_alone = False
            self._bulk_failures += 1
            if self._bulk_failures >= _BULK_FAILURES:
                self._stop_bulk("it fails at what single calls are taken for")

    def give_up(self, parcel: Parcel, error: Exception, reason: str) -> None:
        """A parcel will not be delivered, and is the only one to blame."""
        self._drop(parcel, reason)
        if not self._warned_of_loss:
            self._warned_of_loss = True
            log(
                logger,
                logging.WARNING,
                "%s is given up (%s): %s. Further losses are only counted, in statistics()",
                _name(parcel.operation),
                reason,
                error,
                # A bug of ours deserves its traceback; what the API says needs none.
                error=None if isinstance(error, PrefactorCoreError) else error,
            )

    async def _send_alone(self, parcel: Parcel) -> bool:
        operation = self.identities.of(parcel.operation.instance_id).addressed(parcel.operation)
        try:
            api_id, control = await self._request([parcel], self._call(operation, parcel.given_id))
        except Exception as error:
            verdict = judge(operation, error)
            if verdict is Verdict.ID_REFUSED and parcel.given_id and not self._took_given_id:
                self._api_makes_ids()
                parcel.given_id = False
                return False
            if verdict is Verdict.PARENT_REFUSED:
                # Better kept without a parent than lost with all that is below it.
                parcel.with_parent = parcel.operation
                parcel.operation = msgspec.structs.replace(parcel.operation, parent_span_id=None)
                return False
            if isinstance(operation, RegisterAgentInstance) and (
                verdict is Verdict.ENVIRONMENT_REFUSED
            ):
                parcel.operation = operation.as_given()
                return False
            if verdict is Verdict.TOO_LARGE and (smaller := without_payload(parcel.operation)):
                self._ledger.shrink(parcel.size - smaller.size)
                parcel.operation, parcel.size = smaller, smaller.size
                return False
            if verdict in _ITS_OWN_FAULT:
                # It was not the parent, then: what is below can hang there.
                parcel.operation = parcel.with_parent or parcel.operation
                self.give_up(parcel, error, "refused")
                return True
            if verdict is not Verdict.SETTLED:
                raise
            api_id = None
        else:
            self._heed(operation.instance_id, control)
            if parcel.failed_in_bulk:
                self._taken_only_alone(operation.type)
        if parcel.with_parent is not None:
            self._warn_of_parent(parcel.operation)
        self._taken_alone = True
        self._deliver(parcel, api_id)
        self._last_taken = operation, parcel.given_id
        return True

    async def _send_in_bulk(self, request: Sequence[Parcel]) -> list[Parcel]:
        operations = [
            self.identities.of(parcel.operation.instance_id).addressed(parcel.operation)
            for parcel in request
        ]
        given_ids = [parcel.given_id for parcel in request]
        try:
            outputs = await self._request(request, self._bulk(operations, given_ids))
        except Exception as error:
            failure = error
        else:
            return self._read_outputs(request, operations, outputs)
        # A gateway may say the same, in its own words, while the API behind it is away.
        if lacks_call(failure) and (
            not isinstance(failure, PrefactorContractError) or await self.probe()
        ):
            self._stop_bulk(str(failure))
            return []
        if judge_request(failure) is Verdict.TOO_LARGE:
            size = sum(parcel.size for parcel in request)
            self.max_bytes = max(1, min(self.max_bytes, size // 2))
            return []
        raise failure

    def _read_outputs(
        self,
        request: Sequence[Parcel],
        operations: Sequence[Operation],
        outputs: Mapping[str, Output],
    ) -> list[Parcel]:
        settled: list[Parcel] = []
        for parcel, operation in zip(request, operations, strict=True):
            # After an error the API does nothing more: what has no output is sent again.
            output = outputs.get(operation.idempotency_key)
            if output is None:
                parcel.sent = False
                continue
            self._heed(operation.instance_id, output.control)
            if output.succeeded:
                self._proven.add(operation.type)
                self._deliver(parcel, output.details.id if output.details else None)
                self._last_taken = operation, parcel.given_id
                self._taken_alone, self._bulk_failures = False, 0
                settled.append(parcel)
            else:
                # What its own endpoint says has a status, which decides.
                parcel.alone = parcel.failed_in_bulk = True
        return settled

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
            if isinstance(error, PrefactorApiError) and judge_request(error) in _ANSWERS:
                self._answered()
            raise
        finally:
            self._ledger.in_flight -= operations
        self._answered()
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

    def _heed(self, instance_id: str, control: Control | None) -> None:
        """An answer may say that its run is to stop (API.md section 7)."""
        if control is not None and control.terminate:
            run = self.identities.of(instance_id)
            # Also one that another client registered: this one takes no more spans of it.
            self.identities.keep(run)
            run.terminate(control.reason)

    def _deliver(self, parcel: Parcel, api_id: str | None) -> None:
        self._ledger.deliver(parcel.count, parcel.size)
        operation = parcel.operation
        run = self.identities.of(operation.instance_id)
        match operation:
            case CreateSpan(span_id=span_id) if api_id is not None:
                if api_id == run.span_id(span_id):
                    self._took_given_id = True
                else:
                    self._api_makes_ids()
                    run.span_made(span_id, api_id)
                    self.identities.keep(run)
            case RegisterAgentInstance(instance_id=instance_id) if api_id is not None:
                self.identities.registered(instance_id, api_id)
            case FinishAgentInstance():
                self.identities.forget(run.recorded_id)
            case _:
                pass

    def _drop(self, parcel: Parcel, reason: str) -> None:
        self._ledger.drop(reason, parcel.count, parcel.size)
        operation = parcel.operation
        run = self.identities.of(operation.instance_id)
        match operation:
            case CreateSpan():
                run.span_lost(operation, reason)
                self.identities.keep(run)
            case RegisterAgentInstance():
                run.lost = reason
            case FinishAgentInstance():
                self.identities.forget(run.recorded_id)
            case _:
                pass

    def _warn_of_parent(self, operation: Operation) -> None:
        if not self._warned_of_parents:
            self._warned_of_parents = True
            message = "%s is kept without the parent that it was given: the API does not know that"
            log(logger, logging.WARNING, message, _name(operation))

    def _stop_bulk(self, why: str) -> None:
        self.alone = _ALL_TYPES
        message = "operations go to the Prefactor API one by one: it has no bulk that works (%s)"
        log(logger, logging.INFO, message, why)

    def _api_makes_ids(self) -> None:
        if self.identities.given_ids:
            self.identities.given_ids = False
            log(logger, logging.INFO, "the Prefactor API makes the ids of spans itself")

    def _taken_only_alone(self, operation_type: OperationType) -> None:
        """Bulk failed at what its own endpoint takes: perhaps it does not know the type."""
        if operation_type not in self._proven:
            times = self._only_alone.get(operation_type, 0) + 1
            self._only_alone[operation_type] = times
            if times >= _TIMES_ONLY_ALONE:
                self.alone |= {operation_type}

    def _answered(self) -> None:
        outage = self._outage.answered(anyio.current_time())
        self._ledger.outage_since = None
        if outage is not None:
            message = "the Prefactor API takes operations again after %.1f s"
            log(logger, logging.INFO, message, outage)


def _name(operation: Operation) -> str:
    name = operation.type.name
    if isinstance(operation, CreateSpan):
        return f"{name} of the {operation.schema_name!r} span {operation.span_id}"
    if isinstance(operation, RecordQuality):
        return f"{name} of {operation.name!r} in {operation.instance_id}"
    return f"{name} of {operation.instance_id}"
