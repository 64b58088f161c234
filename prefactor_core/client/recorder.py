"""Recorder: what an open client records, runs and spans by their ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, overload

import anyio.lowlevel

from prefactor_core.agent.disabled_span import DisabledSpan
from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.agent.scope import AgentInstanceScope
from prefactor_core.agent.span import SpanContext, new_span, start_by_id, start_by_id_nowait
from prefactor_core.config import OnRefused, PrefactorCoreConfig
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.live import Live
from prefactor_core.operations import Purpose
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.quality import QualityManager
from prefactor_core.recording.span_manager import SpanManager
from prefactor_core.schema_registry import Schema
from prefactor_core.schema_registry.schema_version import choose_schema_version
from prefactor_core.schema_registry.type_schema import Fields, SpanParams
from prefactor_core.schema_registry.typed_span import TypedStep

Result = TypeVar("Result")


class Recorder(Live, ABC):
    """The part of a :class:`~prefactor_core.PrefactorCoreClient` that records."""

    _what = "a client in this process"

    # The schema version of the last run, and what it was chosen by.
    _chosen: tuple[tuple[object, ...], Schema] | None = None

    @property
    @abstractmethod
    def config(self) -> PrefactorCoreConfig:
        """What the client works with."""

    @property
    @abstractmethod
    def instance_manager(self) -> AgentInstanceManager:
        """The open runs. Raises :class:`ClientNotInitializedError` outside of the scope."""

    @property
    @abstractmethod
    def span_manager(self) -> SpanManager:
        """The open spans. Raises :class:`ClientNotInitializedError` outside of the scope."""

    @property
    @abstractmethod
    def quality_manager(self) -> QualityManager:
        """What tells of quality. Raises :class:`ClientNotInitializedError` outside of the
        scope."""

    async def create_agent_instance(
        self,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
        *,
        environment_id: str | None = None,
        purpose: Purpose | None = None,
        external_identifier: str | None = None,
        on_refused: OnRefused = "raise",
    ) -> AgentInstanceHandle:
        """Register a run and give its handle; the one call that waits for the API.

        If the API cannot be reached within ``config.registration_timeout`` seconds, the run
        goes on under a provisional id, and is registered in the background.

        ``agent_id``, ``environment_id``: left out with a token that stands for an agent in an
        environment.
        ``agent_version``: name, external_identifier, description (POST agent_instance/register);
        required.
        Unless it says so itself, it gets the ``runtime_environment`` that
        :func:`build_runtime_environment` gives; not if the API refuses it so, as a version that
        it has stored without one or with another.
        ``agent_schema_version``: the span types, as the API takes them; without it they come
        from the schema registry, identified by ``external_schema_version_id`` or else by a
        hash of their content, so that the same types are the same version on every run.
        ``instance_id``: an id of your own, a PFID of the account's partition.
        ``purpose``: why the run is made: ``live``, ``smoke_test`` or ``eval``.
        ``external_identifier``: what you call the run. It is unique for each agent: the API refuses
        a second run of the same agent with the same one, such as the id of a chat that goes on or
        of a job that is delivered again. Use it for what happens once.
        ``on_refused``: what to do if the API refuses: ``"raise"``, or ``"log"`` an error and let
        the run go on unrecorded.

        Raises :class:`PrefactorValueError` if ``agent_version`` is left out, or neither a schema
        version nor a registry is given, and a :class:`PrefactorApiError` if the API refuses.
        """
        instances = self.instance_manager
        if agent_id is not None and not (isinstance(agent_id, str) and agent_id):
            raise PrefactorValueError(
                f"agent_id must be the id of an agent, got {in_message(agent_id)}; leave it out "
                "only where the API token stands for an agent, and give agent_version= by name then"
            )
        if agent_version is None:
            raise PrefactorValueError(
                "agent_version is required: pass agent_version={'name': 'My agent', "
                "'external_identifier': 'v1.0.0'}, say"
            )
        registered = await instances.register(
            agent_id,
            agent_version,
            self._schema_version(agent_id, agent_schema_version, external_schema_version_id),
            instance_id,
            environment_id=environment_id,
            purpose=purpose,
            external_identifier=external_identifier,
            on_refused=on_refused,
        )
        return AgentInstanceHandle(registered, self)

    def agent_instance(
        self,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
        *,
        environment_id: str | None = None,
        purpose: Purpose | None = None,
        external_identifier: str | None = None,
        on_refused: OnRefused | None = None,
    ) -> AgentInstanceScope:
        """The scope of one run: ``async with client.agent_instance(...) as instance:``.

        Takes what :meth:`create_agent_instance` takes. The run is registered and started on
        entering, and ends with the block, by how that ended. ``on_refused``: by default what the
        client's configuration says, which is ``"log"`` unless you say otherwise.
        """
        return AgentInstanceScope(
            self,
            partial(
                self.create_agent_instance,
                agent_id,
                agent_version,
                agent_schema_version,
                instance_id,
                external_schema_version_id,
                environment_id=environment_id,
                purpose=purpose,
                external_identifier=external_identifier,
                on_refused=self.config.on_refused if on_refused is None else on_refused,
            ),
        )

    def _schema_version(
        self, agent_id: str | None, given: Schema | None, external_id: str | None
    ) -> Schema:
        registry = self.config.schema_registry
        if given is not None or registry is None:
            return choose_schema_version(agent_id, given, external_id, registry)
        # Mostly all runs of a program have the same, and it takes its time.
        key = registry, registry.revision, agent_id, external_id
        if self._chosen is None or self._chosen[0] != key:
            self._chosen = key, choose_schema_version(agent_id, None, external_id, registry)
        return self._chosen[1]

    async def create_span(
        self,
        instance_id: str,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        *,
        started_at: datetime | None = None,
    ) -> str:
        """Start a span, now or as of ``started_at`` (an aware datetime), and give its id. It is
        the innermost one of this context until :meth:`finish_span` ends it, in whichever task."""
        span = self._span(instance_id, schema_name, parent_span_id, None, payload)
        return await start_by_id(span, started_at)

    def create_span_nowait(
        self,
        instance_id: str,
        schema_name: str | TypedStep,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | Fields | None = None,
        *,
        started_at: datetime | None = None,
    ) -> str:
        """As :meth:`create_span`, in synchronous code."""
        span = self._span(instance_id, schema_name, parent_span_id, None, payload)
        return start_by_id_nowait(span, started_at)

    async def finish_span(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | None = None,
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """End a span of :meth:`create_span` as ``complete``, now or as of ``timestamp`` (an
        aware datetime).

        Raises :class:`SpanNotFoundError` if no open span has this id, and
        :class:`PrefactorValueError` for a time before its start.
        """
        self.finish_span_nowait(span_id, result_payload, timestamp=timestamp)
        if self.span_manager.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    def finish_span_nowait(
        self,
        span_id: str,
        result_payload: Mapping[str, object] | None = None,
        *,
        timestamp: datetime | None = None,
    ) -> None:
        """As :meth:`finish_span`, in synchronous code."""
        self.span_manager.finish(span_id, result_payload, timestamp=timestamp)

    async def record_quality(
        self, instance_id: str, name: str, payload: Mapping[str, object] | Fields | None = None
    ) -> None:
        """Tell what was found out about a run: its quality payload ``name`` is ``payload`` from
        now on; None removes it.

        ``instance_id`` may be that of any run of the account, and the run may have ended.
        ``name``: one of the quality schemas of its agent's schema version, or the API refuses it
        (API.md section 9). The last call for a name counts.

        Raises :class:`InstanceNotFoundError` for what is no id of a run, and
        :class:`PrefactorValueError` for what is no name, or has no fields.
        """
        run = self.span_manager.recorder.run_of(instance_id)
        await self.quality_manager.record_in_turn(run, name, payload)
        await anyio.lowlevel.checkpoint()

    def record_quality_nowait(
        self, instance_id: str, name: str, payload: Mapping[str, object] | Fields | None = None
    ) -> None:
        """As :meth:`record_quality`, in synchronous code."""
        run = self.span_manager.recorder.run_of(instance_id)
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
        span_id: str | None = None,
        payload: Any = None,
    ) -> SpanContext[Any]:
        """A step of a run: ``async with client.span(...) as span:``, or ``with``.

        ``schema_name``: its span type; or its parameters, an object of a class that was
        registered with one. ``parent_span_id``: by default the innermost open span
        of the same run in this context. ``span_id``: a PFID of your own. ``payload``: what the
        span starts with if :meth:`SpanContext.start` is not given one.
        """
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
        run = recorder.run_of(instance_id)
        if not recorder.records:
            return DisabledSpan(recorder)
        return new_span(recorder, run, step, parent_span_id, span_id, payload)
