"""Identity: the API's ids of the runs and spans that were recorded. Pure.

Operations carry the ids that they were recorded with, and mostly the API uses the same ones. It
does not in two cases: the run could not be registered yet, so that its ids have a provisional
partition (characters 11 to 16 of a PFID, the same in all PFIDs of an account); or the API makes
all ids itself (``POST /agent_instance/register`` and ``POST /agent_spans`` return others).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from prefactor_core.exceptions.log import log
from prefactor_core.export.termination import Termination
from prefactor_core.models.clock import Clock
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RecordQuality,
    StartAgentInstance,
    identifiers,
)

if TYPE_CHECKING:
    from prefactor_core.operations.cause import Cause
    from prefactor_core.schema_registry.payload_check import PayloadCheck

logger = logging.getLogger("prefactor_core.export.identity")

V = TypeVar("V")

_NO_PARTITION = "0" * 32
_ENDED_KEPT = 1_000
_SPANS_KEPT = 10_000
_FOREIGN_KEPT = 1_000


class RegistrationWait(Protocol):
    """A task that waits for the outcome of a registration."""

    def registered(self) -> None:
        """The API has registered the run."""

    def refused(self, error: Exception) -> bool:
        """The API has refused the run. Return whether the caller raises ``error``."""
        ...

    def failed(self) -> None:
        """An attempt failed; others may follow."""

    def ended(self) -> None:
        """The client has closed: no attempt follows."""


class RunIdentity:
    """The ids of one run and of its spans, and which of its spans were lost.

    ``recorded_id``: the run's id in operations. ``id``: the API's id of it, as soon as that is
    known. ``registered``: False until then. ``begun``: whether its start is recorded, or another
    client records it. ``lost``: the reason why nothing of the run can be delivered; None if it can.
    ``agent_id``: the agent of the run, if the caller gave it. ``termination``: its kill switch.
    ``check``: the check of its payloads, if they are checked. ``cause``: the step elsewhere that
    caused it, if the caller named one. ``registration``: the task that waits for its registration,
    if any. ``clock``: the clock for all times of the run and its spans.
    """

    __slots__ = (
        "_api_ids",
        "_ended_api_ids",
        "_lost_spans",
        "_recorded_ids",
        "agent_id",
        "begun",
        "cause",
        "check",
        "clock",
        "id",
        "lost",
        "recorded_id",
        "registered",
        "registration",
        "termination",
    )

    def __init__(self, recorded_id: str, id: str | None = None) -> None:
        self.recorded_id = recorded_id
        self.id = recorded_id if id is None else id
        self.registered = True
        self.begun = False
        self.lost: str | None = None
        self.agent_id: str | None = None
        self.registration: RegistrationWait | None = None
        self.termination = Termination()
        self.check: PayloadCheck | None = None
        self.cause: Cause | None = None
        self.clock = Clock()
        # The API's span ids, by the recorded ones, where they differ. Of ended spans only the last
        # ones are kept: they can still be named as parents.
        self._api_ids: dict[str, str] = {}
        self._ended_api_ids: dict[str, str] = {}
        self._recorded_ids: dict[str, str] = {}
        # Lost spans: the reason, and the nearest ancestor that was not lost. By the part of the
        # span's id that stays the same.
        self._lost_spans: dict[str, tuple[str, str | None]] = {}

    @property
    def is_plain(self) -> bool:
        """Whether the API uses the recorded ids of the run and its spans, and no span was lost."""
        return self.id == self.recorded_id and not (
            self._api_ids or self._ended_api_ids or self._lost_spans
        )

    def terminate(self, reason: str | None) -> None:
        """Note that the API has terminated the run, with its ``reason`` if it gave one."""
        if self.termination.terminate(reason):
            message = "the Prefactor API has terminated agent instance %s: %s"
            log(logger, logging.WARNING, message, self.id, self.termination.reason)

    def span_id(self, recorded_id: str) -> str:
        """The API's id of a span, as far as that is known."""
        known = self._api_ids.get(recorded_id) or self._ended_api_ids.get(recorded_id)
        if known is not None:
            return known
        if self.id == self.recorded_id:
            return recorded_id
        return identifiers.with_partition_of(self.id, recorded_id)

    def span_made(self, recorded_id: str, api_id: str) -> None:
        """Note that the API has created a span, with an id that may be another one."""
        if api_id != self.span_id(recorded_id):
            self._api_ids[recorded_id] = api_id
            self._recorded_ids[api_id] = recorded_id

    def recorded_span_id(self, api_id: str) -> str | None:
        """The recorded id of the span to which the API gave the id ``api_id``; None without one."""
        return self._recorded_ids.get(api_id)

    def span_ended(self, recorded_id: str) -> None:
        """Note that the end of a span is delivered: only later children still need its id."""
        api_id = self._api_ids.pop(recorded_id, None)
        if api_id is not None:
            self._recorded_ids.pop(api_id, None)
            self._ended_api_ids[recorded_id] = api_id
            _keep_last(self._ended_api_ids, _SPANS_KEPT)

    def span_lost(self, create: CreateSpan, reason: str) -> None:
        """Note a lost span: its finish is lost, too, and its children get its parent."""
        # Resolved now: a user may give ids and parents that form a circle.
        parent_id = self._not_lost(create.parent_span_id)
        bare = _bare(create.span_id)
        if parent_id is not None and _bare(parent_id) == bare:
            parent_id = None
        self._lost_spans[bare] = (reason, parent_id)
        _keep_last(self._lost_spans, _SPANS_KEPT)

    def reason_lost(self, operation: Operation) -> str | None:
        """The reason why an operation cannot be delivered; None if it can."""
        if self.lost is None and isinstance(operation, FinishSpan):
            return self._lost_spans.get(_bare(operation.span_id), (None, None))[0]
        return self.lost

    def addressed(self, operation: Operation) -> Operation:
        """The operation with the API's ids."""
        if self.is_plain:
            return operation
        match operation:
            case CreateSpan():
                parent_id = self._not_lost(operation.parent_span_id)
                return msgspec.structs.replace(
                    operation,
                    instance_id=self.id,
                    span_id=self.span_id(operation.span_id),
                    parent_span_id=None if parent_id is None else self.span_id(parent_id),
                )
            case FinishSpan():
                return msgspec.structs.replace(
                    operation, instance_id=self.id, span_id=self.span_id(operation.span_id)
                )
            case StartAgentInstance() | FinishAgentInstance() | RecordQuality():
                return msgspec.structs.replace(operation, instance_id=self.id)
            case _:
                return operation

    def given_span_ids(self) -> Sequence[tuple[str, str]]:
        """The spans to which the API gave other ids: the recorded ones, and the API's."""
        return list((self._ended_api_ids | self._api_ids).items())

    def lost_spans(self) -> Sequence[tuple[str, str, str | None]]:
        """The lost spans, for :meth:`restore_lost_span`: id, reason, and the nearest ancestor that
        was not lost."""
        return [(id, *lost) for id, lost in list(self._lost_spans.items())]

    def lost_span(self, span_id: str) -> tuple[str, str | None] | None:
        """Why a span was lost, and the nearest ancestor that was not; None if it was not."""
        return self._lost_spans.get(_bare(span_id))

    def restore_lost_span(self, span_id: str, reason: str, parent_span_id: str | None) -> None:
        """Note a span that an earlier process has lost."""
        self._lost_spans[_bare(span_id)] = (reason, parent_span_id)

    def found_span(self, span_id: str) -> None:
        """Note that a span is sent once more, whether it was lost or not."""
        self._lost_spans.pop(_bare(span_id), None)

    def forget_spans(self) -> None:
        """Forget the spans of a run of which nothing is pending."""
        self._api_ids.clear()
        self._ended_api_ids.clear()
        self._recorded_ids.clear()
        self._lost_spans.clear()

    def _not_lost(self, span_id: str | None) -> str | None:
        """The span itself, or its nearest ancestor that was not lost."""
        seen: set[str] = set()
        while span_id is not None and (bare := _bare(span_id)) in self._lost_spans:
            if bare in seen:
                return None
            seen.add(bare)
            span_id = self._lost_spans[bare][1]
        return span_id


def _keep_last(kept: dict[str, V], most: int) -> None:
    while len(kept) > most:
        with suppress(RuntimeError):  # another thread changed it at the same time
            kept.pop(next(iter(kept)), None)


def _bare(span_id: str) -> str:
    """The part that a span's provisional and final id have in common."""
    return identifiers.with_partition_of(_NO_PARTITION, span_id)


class Identities:
    """The identities of a client's runs, while operations of them are pending.

    ``given_ids``: whether the API accepts ids from the client, as far as it has shown; if not, it
    makes all of them.
    """

    def __init__(self) -> None:
        self.given_ids = True
        self.runs: dict[str, RunIdentity] = {}
        # Runs of other clients. Only the last ones are kept: this client does not learn when they
        # end.
        self._foreign: dict[str, RunIdentity] = {}
        # Ended runs whose API id differs, or that were lost: quality may still be recorded for
        # them. Only the last ones are kept: there may be any number.
        self._ended: dict[str, RunIdentity] = {}

    def add(self, recorded_id: str, id: str | None = None) -> RunIdentity:
        """Add a run with this id in its operations, and return its identity."""
        # It may be known already, from the answer to its registration.
        run = self.runs.get(recorded_id) or self._foreign.pop(recorded_id, None)
        run = run or RunIdentity(recorded_id, id)
        # An earlier run with this id was refused: that does not concern this one.
        self._ended.pop(recorded_id, None)
        self.runs[recorded_id] = self.runs[run.id] = run
        return run

    def registered(self, recorded_id: str, id: str) -> None:
        """Note that the API has registered a run, as ``id``."""
        run = self.of(recorded_id)
        run.id, run.registered = id, True
        self.runs[recorded_id] = run
        other = self.runs.get(id)
        if other is None or other.termination.over:
            self.runs[id] = run
        # Else the id belongs to an open run: for the API both are one.
        if run.registration is not None:
            run.registration.registered()

    def all_known(self) -> Sequence[RunIdentity]:
        """All runs of which anything is known."""
        kept = [*self.runs.values(), *self._foreign.values(), *self._ended.values()]
        return list({id(run): run for run in kept}.values())

    def close(self) -> None:
        """End the waits for registrations: the client has closed."""
        for run in self.runs.values():
            if run.registration is not None:
                run.registration.ended()

    def rename(self, run: RunIdentity) -> None:
        """Use the API's id in the operations of ``run``, of which only the registration was
        recorded."""
        if run.recorded_id != run.id:
            del self.runs[run.recorded_id]
            run.recorded_id = run.id

    def of(self, instance_id: str) -> RunIdentity:
        """The identity of a run, by either id; a new one if the run was not added."""
        return (
            self.runs.get(instance_id)
            or self._ended.get(instance_id)
            or self._foreign.get(instance_id)
            or RunIdentity(instance_id)
        )

    def knows(self, instance_id: str) -> bool:
        """Whether this is the id of a run of this client that has not ended."""
        return instance_id in self.runs

    def open_runs(self) -> Sequence[RunIdentity]:
        """The registered runs that neither the API nor the agent has ended."""
        runs = [run for key, run in self.runs.items() if key == run.recorded_id]
        return [
            run
            for run in runs
            if run.registered and not run.termination.over and run.termination.reason is None
        ]

    def keep(self, run: RunIdentity) -> RunIdentity:
        """Keep the identity of a run, even one that another client registered, and return the kept
        one. For any thread."""
        if run.recorded_id not in self.runs and run.recorded_id not in self._ended:
            # One that is kept already becomes the newest.
            self._foreign[run.recorded_id] = run = self._foreign.pop(run.recorded_id, run)
            _keep_last(self._foreign, _FOREIGN_KEPT)
        return run

    def forget(self, recorded_id: str) -> None:
        """Forget a run that has ended, and of which nothing is pending. Its quality may still be
        recorded, at any time."""
        run = self.runs.pop(recorded_id, None)
        if run is not None:
            if self.runs.get(run.id) is run:
                del self.runs[run.id]
            run.forget_spans()
            if run.id != recorded_id or run.lost is not None:
                self._ended[recorded_id] = self._ended[run.id] = run
                _keep_last(self._ended, _ENDED_KEPT)
