"""Identity: what the API calls the runs and spans that were recorded. Pure.

Operations carry the ids that they were recorded with. Mostly these are what the API calls
things too. They are not while a run could not be registered yet (its ids then have a
provisional partition, API.md section 3), and with an API that makes all ids itself.
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
    from prefactor_core.schema_registry.payload_check import PayloadCheck

logger = logging.getLogger("prefactor_core.export.identity")

V = TypeVar("V")

_NO_PARTITION = "0" * 32
_ENDED_KEPT = 1_000
_SPANS_KEPT = 10_000
_FOREIGN_KEPT = 1_000


class RegistrationWait(Protocol):
    """A task that waits until the API has answered the registration of a run."""

    def registered(self) -> None:
        """The API knows the run."""

    def refused(self, error: Exception) -> bool:
        """The API does not take the run; whether the caller is told of it."""
        ...

    def failed(self) -> None:
        """An attempt failed; there will be others."""

    def ended(self) -> None:
        """There will be no more attempts: the client has closed."""


class RunIdentity:
    """The ids of one run, and what became of its spans on their way.

    ``recorded_id``: what its operations call the run. ``id``: what the API calls it, as soon
    as that is known. ``registered``: False while it waits for that. ``begun``: whether its start is
    recorded, or is not for this client to record. ``lost``: why the run, and so
    all of it, cannot be delivered; None if it can.
    ``agent_id``: whose run it is, as far as the caller said. ``termination``: its kill switch.
    ``check``: what its payloads are held against, if they are. ``registration``: the task that
    waits for its registration, if one does. ``clock``: gives all times of the run and its spans.
    """

    __slots__ = (
        "_api_ids",
        "_ended_api_ids",
        "_lost_spans",
        "_recorded_ids",
        "agent_id",
        "begun",
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
        self.clock = Clock()
        # Span ids as recorded, each to what the API made instead. Of spans that have ended only
        # the last ones: they can still be named as parents.
        self._api_ids: dict[str, str] = {}
        self._ended_api_ids: dict[str, str] = {}
        self._recorded_ids: dict[str, str] = {}
        # Of creates that were given up: why, and the nearest ancestor that was not. By the part
        # of the span's id that stays the same.
        self._lost_spans: dict[str, tuple[str, str | None]] = {}

    @property
    def is_plain(self) -> bool:
        """Whether everything of the run is called as it was recorded, and nothing was lost."""
        return self.id == self.recorded_id and not (
            self._api_ids or self._ended_api_ids or self._lost_spans
        )

    def terminate(self, reason: str | None) -> None:
        """The API has stopped the run; ``reason`` is the one that it gave."""
        if self.termination.terminate(reason):
            message = "the Prefactor API has terminated agent instance %s: %s"
            log(logger, logging.WARNING, message, self.id, self.termination.reason)

    def span_id(self, recorded_id: str) -> str:
        """What the API calls a span, as far as that is known."""
        known = self._api_ids.get(recorded_id) or self._ended_api_ids.get(recorded_id)
        if known is not None:
            return known
        if self.id == self.recorded_id:
            return recorded_id
        return identifiers.with_partition_of(self.id, recorded_id)

    def span_made(self, recorded_id: str, api_id: str) -> None:
        """The API has made a span, under an id that may be its own."""
        if api_id != self.span_id(recorded_id):
            self._api_ids[recorded_id] = api_id
            self._recorded_ids[api_id] = recorded_id

    def recorded_span_id(self, api_id: str) -> str | None:
        """What a span is recorded as that the API has given this id; None if it gave none."""
        return self._recorded_ids.get(api_id)

    def span_ended(self, recorded_id: str) -> None:
        """The end of a span is delivered: its id is needed only by later children of it."""
        api_id = self._api_ids.pop(recorded_id, None)
        if api_id is not None:
            self._recorded_ids.pop(api_id, None)
            self._ended_api_ids[recorded_id] = api_id
            _keep_last(self._ended_api_ids, _SPANS_KEPT)

    def span_lost(self, create: CreateSpan, reason: str) -> None:
        """A span was given up: its finish goes with it, its children hang on its parent."""
        # Resolved now: ids and parents may be the user's own, and run in a circle.
        parent_id = self._not_lost(create.parent_span_id)
        bare = _bare(create.span_id)
        if parent_id is not None and _bare(parent_id) == bare:
            parent_id = None
        self._lost_spans[bare] = (reason, parent_id)
        _keep_last(self._lost_spans, _SPANS_KEPT)

    def reason_lost(self, operation: Operation) -> str | None:
        """Why an operation cannot be delivered any more; None if it can."""
        if self.lost is None and isinstance(operation, FinishSpan):
            return self._lost_spans.get(_bare(operation.span_id), (None, None))[0]
        return self.lost

    def addressed(self, operation: Operation) -> Operation:
        """The operation with the ids that the API knows."""
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

    def forget_spans(self) -> None:
        """Nothing of the run is to be delivered any more."""
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
        with suppress(RuntimeError):  # another thread has changed it just now
            kept.pop(next(iter(kept)), None)


def _bare(span_id: str) -> str:
    """What is the same in a span's provisional id and its final one."""
    return identifiers.with_partition_of(_NO_PARTITION, span_id)


class Identities:
    """The identities of a client's runs, for as long as something of them is to be delivered.

    ``given_ids``: whether the API takes the ids that it is given, as far as it has shown; if not,
    it makes all of them.
    """

    def __init__(self) -> None:
        self.given_ids = True
        self.runs: dict[str, RunIdentity] = {}
        # Runs of other clients of which something is remembered. The last ones only: nobody says
        # when they end.
        self._foreign: dict[str, RunIdentity] = {}
        # Ended ones of which something may still be said that an id alone does not tell. The
        # last ones only: there may be any number.
        self._ended: dict[str, RunIdentity] = {}

    def add(self, recorded_id: str, id: str | None = None) -> RunIdentity:
        """The identity of a run that is recorded as ``recorded_id`` from now on."""
        # What the answer to its registration said about it may have been kept.
        run = self.runs.get(recorded_id) or self._foreign.pop(recorded_id, None)
        run = run or RunIdentity(recorded_id, id)
        # An earlier one that was refused has nothing to say about this one.
        self._ended.pop(recorded_id, None)
        self.runs[recorded_id] = self.runs[run.id] = run
        return run

    def registered(self, recorded_id: str, id: str) -> None:
        """The API has made a run known, as ``id``."""
        run = self.of(recorded_id)
        run.id, run.registered = id, True
        self.runs[recorded_id] = run
        other = self.runs.get(id)
        if other is None or other.termination.over:
            self.runs[id] = run
        # Else it is what an open run is called: to the API they are one.
        if run.registration is not None:
            run.registration.registered()

    def close(self) -> None:
        """Nothing more is delivered: nobody has to wait for it."""
        for run in self.runs.values():
            if run.registration is not None:
                run.registration.ended()

    def rename(self, run: RunIdentity) -> None:
        """From now on operations call ``run``, of which none was recorded but its registration,
        what the API calls it."""
        if run.recorded_id != run.id:
            del self.runs[run.recorded_id]
            run.recorded_id = run.id

    def of(self, instance_id: str) -> RunIdentity:
        """The identity of a run, by either id; one that was not added is called as it is."""
        return (
            self.runs.get(instance_id)
            or self._ended.get(instance_id)
            or self._foreign.get(instance_id)
            or RunIdentity(instance_id)
        )

    def knows(self, instance_id: str) -> bool:
        """Whether a run of this client that has not ended is called so."""
        return instance_id in self.runs

    def open_runs(self) -> Sequence[RunIdentity]:
        """The runs that the API knows, and that neither it nor the agent has ended."""
        runs = [run for key, run in self.runs.items() if key == run.recorded_id]
        return [
            run
            for run in runs
            if run.registered and not run.termination.over and run.termination.reason is None
        ]

    def keep(self, run: RunIdentity) -> RunIdentity:
        """Something about a run is to be remembered, also if another client registered it; what it
        is remembered by. For any thread."""
        if run.recorded_id not in self.runs and run.recorded_id not in self._ended:
            # The one that is remembered, if there is one, and from now on the newest.
            self._foreign[run.recorded_id] = run = self._foreign.pop(run.recorded_id, run)
            _keep_last(self._foreign, _FOREIGN_KEPT)
        return run

    def forget(self, recorded_id: str) -> None:
        """A run has ended, and all of it is delivered or lost, but for its quality: that may be
        recorded at any time."""
        run = self.runs.pop(recorded_id, None)
        if run is not None:
            if self.runs.get(run.id) is run:
                del self.runs[run.id]
            run.forget_spans()
            if run.id != recorded_id or run.lost is not None:
                self._ended[recorded_id] = self._ended[run.id] = run
                _keep_last(self._ended, _ENDED_KEPT)
