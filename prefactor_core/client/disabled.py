"""DisabledScope: what a client has while it is open and everything is switched off."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import anyio

from prefactor_core.agent.span_context import DisabledSpan, SpanContext
from prefactor_core.config import QueueConfig
from prefactor_core.exceptions.checks import check_outcome
from prefactor_core.export.buffer import Buffer, Recorded
from prefactor_core.export.counters import Counters
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.export.loss_report import LossReport
from prefactor_core.models import Span
from prefactor_core.models.lifecycle import Outcome
from prefactor_core.operations import FinishAgentInstance, Operation
from prefactor_core.payloads.capture import Capture
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.recording.agent_instances import AgentInstanceManager
from prefactor_core.recording.quality import QualityManager
from prefactor_core.recording.run_end import finish_open_runs
from prefactor_core.recording.spans import SpanManager
from prefactor_core.schema_registry.type_schema import Fields
from prefactor_core.schema_registry.typed_span import TypedStep

_NO_PAYLOADS: Final = Capture(enabled=False)


class DisabledScope:
    """Runs live as ever, with ids of their own; spans do nothing; nothing is sent or waited for."""

    def __init__(self) -> None:
        try:
            self.event_loop: EventLoop = _AnyHome.here()
        except anyio.NoEventLoopError:
            self.event_loop = _AnyHome(None)  # a synchronous program needs none
        self.counters = Counters()
        identities = Identities()
        buffer = _NoBuffer(self.counters, identities, self.event_loop)
        self.instance_manager = AgentInstanceManager(
            buffer.record, identities=identities, event_loop=self.event_loop
        )
        self.span_manager = _NoSpans(
            buffer, identities, _NO_PAYLOADS, self.instance_manager.start_with
        )
        self.quality_manager = QualityManager(buffer, _NO_PAYLOADS)

    def check_task(self) -> None:
        """Nothing here belongs to a task."""

    async def flush(self) -> None:
        """There is nothing to wait for."""

    async def close(self, error: BaseException | None, *, raises: bool) -> None:
        """End open runs."""
        self.span_manager.close()
        for _ in finish_open_runs(self, error):
            pass


class _AnyHome(EventLoop):
    """Every thread is at event_loop here."""

    @property
    def is_here(self) -> bool:
        return True


class _NoBuffer(Buffer):
    """Forgets what is recorded."""

    def __init__(self, counters: Counters, identities: Identities, event_loop: EventLoop) -> None:
        super().__init__([], counters, LossReport(counters, event_loop), QueueConfig(), event_loop)
        self._identities = identities

    def record(
        self,
        operation: Operation,
        of: Recorded | None = None,
        status: object = None,
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
        *,
        held: int = 0,
        has_place: bool = False,
        late: bool = False,
    ) -> bool:
        if of is not None:
            of.status, of.started_at, of.finished_at = status, started_at, finished_at
        if isinstance(operation, FinishAgentInstance):
            self._identities.forget(operation.instance_id)
        return True


class _NoSpans(SpanManager):
    """Gives out spans that do nothing, and takes every id for one of theirs."""

    records = False

    def context(
        self,
        run: RunIdentity,
        step: str | TypedStep,
        parent_span_id: str | None = None,
        span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
    ) -> SpanContext[Any]:
        return DisabledSpan()

    def prepare(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        span_id: str | None = None,
    ) -> str:
        return self.new_id(self.run_of(instance_id), schema_name, span_id)

    def create(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        has_place: bool = False,
    ) -> str:
        return self.prepare(instance_id, schema_name)

    def start(self, span_id: str, payload: Mapping[str, object] | Fields | None = None) -> str:
        return span_id

    def cancel_unstarted(self, span_id: str) -> None: ...

    def finish(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | None = None,
        status: Outcome = "complete",
        *,
        timestamp: datetime | None = None,
    ) -> None:
        check_outcome(status)

    def update_payload(self, span_id: str, payload: Mapping[str, object]) -> None: ...

    def get_span(self, span_id: str) -> Span:
        return Span(id=span_id, instance_id="", schema_name="")
