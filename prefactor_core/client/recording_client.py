"""RecordingClient: the methods of an open client that record runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Unpack, overload

from prefactor_core.agent.instance import AgentInstanceHandle, Client
from prefactor_core.agent.scope import AgentInstanceScope
from prefactor_core.client.recording_by_id import RecordingById
from prefactor_core.client.run_arguments import (
    RunOptions,
    accepts_version_first,
    checked_version,
)
from prefactor_core.config import OnRefused, PrefactorCoreConfig
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.operations import Purpose
from prefactor_core.schema_registry import Schema
from prefactor_core.schema_registry.schema_version import choose_schema_version

if TYPE_CHECKING:
    from prefactor_core import managers
    from prefactor_core.agent import propagation
    from prefactor_core.client import default_types
    from prefactor_core.recording import quality
else:
    managers = LazyModule("prefactor_core.managers")
    propagation = LazyModule("prefactor_core.agent.propagation")
    default_types = LazyModule("prefactor_core.client.default_types")
    quality = LazyModule("prefactor_core.recording.quality")


class RecordingClient(RecordingById, Uncopyable):
    """The part of a :class:`~prefactor_core.PrefactorCoreClient` that records."""

    _kind = "a client in this process"

    # The schema version of the last run, and its key: registry, agent and external id.
    _chosen: tuple[tuple[object, ...], Schema] | None = None

    @property
    @abstractmethod
    def config(self) -> PrefactorCoreConfig:
        """The configuration of the client."""

    @abstractmethod
    def _open_scope(self) -> Client:
        """The open scope. Raises :class:`ClientNotInitializedError` if there is none."""

    @property
    def instance_manager(self) -> managers.AgentInstanceManager:
        """The open runs. Raises :class:`ClientNotInitializedError` outside the scope."""
        return self._open_scope().instance_manager

    @property
    def span_manager(self) -> managers.SpanManager:
        """The open spans. Raises :class:`ClientNotInitializedError` outside the scope."""
        return self._open_scope().span_manager

    @property
    def quality_manager(self) -> quality.QualityManager:
        """Records quality payloads. Raises :class:`ClientNotInitializedError` outside the scope."""
        return self._open_scope().quality_manager

    @overload
    async def create_agent_instance(
        self,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
        *,
        on_refused: OnRefused = "raise",
        **options: Unpack[RunOptions],
    ) -> AgentInstanceHandle: ...

    @overload
    async def create_agent_instance(
        self,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object] | None = None,
        agent_id: str | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
        environment_id: str | None = None,
        purpose: Purpose | None = None,
        external_identifier: str | None = None,
        *,
        on_refused: OnRefused = "raise",
    ) -> AgentInstanceHandle: ...

    @accepts_version_first
    async def create_agent_instance(
        self,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
        *,
        on_refused: OnRefused = "raise",
        **options: Unpack[RunOptions],
    ) -> AgentInstanceHandle:
        """Register a run and give its handle; the one call that waits for the API.

        If the API cannot be reached within ``config.registration_timeout`` seconds, the run
        goes on under a provisional id, and is registered in the background. During an outage it
        does so at once.

        ``agent_id``, ``environment_id``: leave them out if the token stands for an agent in an
        environment.
        ``agent_version``: name, external_identifier, description (POST agent_instance/register);
        required. The identifier stands for the details: change both together. Unless it has a
        ``runtime_environment``, that of :func:`build_runtime_environment` is added. If the API
        refuses the version with it, having stored the version without one or with another, it is
        registered as you gave it.
        ``agent_schema_version``: the span types, in the form of the API. By default they come
        from the schema registry of the configuration, or without one are the standard types,
        identified by ``external_schema_version_id`` or else by a hash of their content, so that
        the same types are the same version on every run.
        ``instance_id``: your own id, a PFID of the account's partition.
        ``purpose``: ``live``, ``smoke_test`` or ``eval``.
        ``external_identifier``: your own name of the run, unique for each agent. The API refuses a
        second run of the same agent with the same one: do not use the id of a chat that goes on,
        or of a job that may be delivered again.
        ``parent``: the headers of the request or message that caused the run, a mapping or pairs.
        The sender has written its step there by :meth:`inject`, or as a ``traceparent``. The API
        knows no parent in another run, so the spans of this run that have no parent name the
        step in their payloads, as ``prefactor_caused_by``. The OpenTelemetry export of this run
        belongs to the trace of that step. Malformed headers are ignored and logged. A sender can
        name any step: take no headers from strangers.
        ``on_refused``: if the API refuses, ``"raise"`` its error, or ``"log"`` it and let the run
        go on unrecorded.

        The order of prefactor-core 0.5.3 is accepted as well: a mapping in first place is the
        ``agent_version``, followed by ``agent_schema_version``, ``agent_id``, ``instance_id``,
        ``external_schema_version_id``, ``environment_id``, ``purpose``, ``external_identifier``.

        Raises :class:`PrefactorValueError` if ``agent_version`` is left out or an option is
        unknown, and a :class:`PrefactorApiError` if the API refuses.
        """
        instances = self.instance_manager
        version = checked_version(agent_id, agent_version, options)
        registered = await instances.register(
            agent_id,
            version,
            self._schema_version(agent_id, agent_schema_version, external_schema_version_id),
            instance_id,
            on_refused=on_refused,
            **options,
        )
        return AgentInstanceHandle(registered, self)

    def create_agent_instance_nowait(
        self,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        agent_schema_version: Mapping[str, object] | None = None,
        external_schema_version_id: str | None = None,
        **options: Unpack[RunOptions],
    ) -> AgentInstanceHandle:
        """As :meth:`create_agent_instance`, in synchronous code and in any thread: register a run
        in the background, and give its handle at once.

        The id of the run is provisional until the API has registered it. If the API refuses, that
        is logged, and the run goes on unrecorded.
        """
        instances = self.instance_manager
        version = checked_version(agent_id, agent_version, options)
        schema_version = self._schema_version(
            agent_id, agent_schema_version, external_schema_version_id
        )
        registered = instances.register_nowait(agent_id, version, schema_version, **options)
        return AgentInstanceHandle(registered, self)

    def agent_instance(
        self,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
        *,
        on_refused: OnRefused | None = None,
        **options: Unpack[RunOptions],
    ) -> AgentInstanceScope:
        """The scope of one run: ``async with client.agent_instance(...) as instance:``.

        Takes the arguments of :meth:`create_agent_instance`, ``agent_id`` first. The run is
        registered and started on entering, and ends with the block: ``complete``, ``failed`` or
        ``cancelled``.
        ``on_refused``: by default that of the client's configuration, ``"log"`` unless set.
        """
        return AgentInstanceScope(
            self,
            partial(
                self.create_agent_instance,
                agent_id=agent_id,
                agent_version=agent_version,
                agent_schema_version=agent_schema_version,
                instance_id=instance_id,
                external_schema_version_id=external_schema_version_id,
                on_refused=self.config.on_refused if on_refused is None else on_refused,
                **options,
            ),
        )

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Write the current step into the headers of a request or message to another process::

            headers: dict[str, str] = {}
            client.inject(headers)  # changes them, and returns nothing

        The receiver gives them to :meth:`agent_instance` as ``parent``. The step is the innermost
        open span of the current run, or the run itself; without a current run, the innermost open
        span. Outside of a run nothing is written.

        ``traceparent`` gets the ids by which the OpenTelemetry export knows the step. If a span of
        OpenTelemetry is current, OpenTelemetry writes its own context there instead. ``baggage``
        gets the ids of run and span in Prefactor, beside what others have written; a run that the
        API has not registered yet has only a ``traceparent``.
        """
        propagation.inject(headers, self)

    def _schema_version(
        self, agent_id: str | None, given: Schema | None, external_id: str | None
    ) -> Schema:
        if given is not None:
            return choose_schema_version(agent_id, given, external_id)
        registry = self.config.schema_registry or default_types.DEFAULT_TYPES
        # Most programs use one version for all runs, and choosing it is slow.
        key = registry, registry.revision, agent_id, external_id
        if self._chosen is None or self._chosen[0] != key:
            self._chosen = key, choose_schema_version(agent_id, registry, external_id)
        return self._chosen[1]
