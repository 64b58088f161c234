"""RecordingById: the methods of a client that record spans and quality by the id of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import anyio.lowlevel

from prefactor_core.agent.disabled_span import DisabledSpan
from prefactor_core.agent.span import SpanContext, new_span, start_by_id, start_by_id_nowait
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.models.lifecycle import Outcome
from prefactor_core.schema_registry.type_schema import Fields, SpanParams
from prefactor_core.schema_registry.typed_span import TypedStep

if TYPE_CHECKING:
    from prefactor_core import managers
    from prefactor_core.recording import quality
else:
    managers = LazyModule("prefactor_core.managers")
    quality = LazyModule("prefactor_core.recording.quality")


Result = TypeVar("Result")


class RecordingById(ABC):
    """Records spans and quality payloads of any run of the account, by the id of the run."""

    @property
    @abstractmethod
    def span_manager(self) -> managers.SpanManager:
        """The open spans. Raises :class:`ClientNotInitializedError` outside the scope."""

    @property
    @abstractmethod
    def quality_manager(self) -> quality.QualityManager:
        """Records quality payloads. Raises :class:`ClientNotInitializedError` outside the scope."""

    async def create_span(
        self,
        instance_id: str,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> str:
        """Start a span, now or as of ``started_at`` (a datetime with a time zone), and give its
        id.

        It is the innermost span of this context until :meth:`finish_span` ends it, in any task.
        """
        span = self._span(instance_id, schema_name, parent_span_id, None, payload)
        return await start_by_id(span, started_at)

    def create_span_nowait(
        self,
        instance_id: str,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> str:
        """As :meth:`create_span`, in synchronous code."""
        span = self._span(instance_id, schema_name, parent_span_id, None, payload)
        return start_by_id_nowait(span, started_at)

    async def finish_span(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | Fields | None = None,
        timestamp: datetime | None = None,
        *,
        status: Outcome = "complete",
    ) -> None:
        """End a span of :meth:`create_span`, now or as of ``timestamp`` (a datetime with a time
        zone).

        ``result_payload``: a mapping, or an object of the result class of its span type; merged
        into the result. ``status``: ``complete``, ``failed`` or ``cancelled``.

        Raises :class:`SpanNotFoundError` if no open span has this id, and
        :class:`PrefactorValueError` for another status and for a time before the start.
        """
        self.finish_span_nowait(span_id, result_payload, status=status, timestamp=timestamp)
        if self.span_manager.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def finish_span_nowait(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | Fields | None = None,
        timestamp: datetime | None = None,
        *,
        status: Outcome = "complete",
    ) -> None:
        """As :meth:`finish_span`, in synchronous code."""
        self.span_manager.finish(span_id, result_payload, status, timestamp=timestamp)

    async def record_quality(
        self, instance_id: str, name: str, payload: Mapping[str, object] | Fields | None = None
    ) -> None:
        """Set the quality payload ``name`` of a run to ``payload``; None removes it.

        ``instance_id`` may be that of any run of the account, also of one that has ended.
        ``name``: one of the quality schemas of the agent's schema version; the API refuses any
        other (POST agent_instance/{id}/record_quality). The last call for a name counts.

        Raises :class:`InstanceNotFoundError` if ``instance_id`` is no id of a run, and
        :class:`PrefactorValueError` for an empty name or a payload without fields.
        """
        run = self.span_manager.run_of(instance_id)
        await self.quality_manager.record_in_turn(run, name, payload)
        await anyio.lowlevel.checkpoint()

    def record_quality_nowait(
        self, instance_id: str, name: str, payload: Mapping[str, object] | Fields | None = None
    ) -> None:
        """As :meth:`record_quality`, in synchronous code."""
        run = self.span_manager.run_of(instance_id)
        self.quality_manager.record(run, name, payload)

    @overload
    def span(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
    ) -> SpanContext: ...

    @overload
    def span(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None,
        payload: Mapping[str, object],
        /,
    ) -> SpanContext: ...

    @overload
    def span(
        self,
        instance_id: str,
        params: SpanParams[Result],
        /,
        parent_span_id: str | None = None,
        span_id: str | None = None,
    ) -> SpanContext[Result]: ...

    @overload
    def span(
        self,
        instance_id: str,
        params: Fields,
        /,
        parent_span_id: str | None = None,
        span_id: str | None = None,
    ) -> SpanContext[Mapping[str, object] | Fields]: ...

    def span(
        self,
        instance_id: str,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        span_id: Any = None,
        payload: Any = None,
    ) -> SpanContext[Any]:
        """A step of a run: ``async with client.span(...) as span:``, or ``with``.

        ``schema_name``: its span type; or its parameters, an object of a class that is registered
        for a span type. ``parent_span_id``: by default the innermost open span of the same run in
        this context. ``span_id``: your own PFID. ``payload``: the parameters of the span, unless
        :meth:`SpanContext.start` is given others: a mapping or an object with fields; anything else
        becomes the field ``value``. A mapping in the fourth place, which is that of
        the payload in prefactor-core 0.5.3, is the payload.
        """
        if span_id is not None and payload is None and isinstance(span_id, Mapping):
            span_id, payload = None, cast("Mapping[str, object]", span_id)
        return self._span(instance_id, schema_name, parent_span_id, span_id, payload)

    def _span(
        self,
        instance_id: str,
        step: str | TypedStep,
        parent_span_id: str | None,
        span_id: str | None,
        payload: Mapping[str, object] | Fields | None,
    ) -> SpanContext[Any]:
        recorder = self.span_manager.recorder
        run = self.span_manager.run_of(instance_id)
        if not recorder.records:
            return DisabledSpan(recorder)
        return new_span(recorder, run, step, parent_span_id, span_id, payload)
