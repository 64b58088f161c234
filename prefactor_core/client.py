"""open_prefactor and PrefactorCoreClient: the scope that owns everything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import anyio
import anyio.lowlevel
import msgspec

from prefactor_core.agent_instance import AgentInstanceHandle, AgentInstanceScope, finish_open_runs
from prefactor_core.backoff import Backoff
from prefactor_core.capture import Capture
from prefactor_core.config import PrefactorCoreConfig, PrefactorOptions, check_options
from prefactor_core.delivery.ledger import Ledger, Statistics
from prefactor_core.exceptions import (
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorTelemetryFailureError,
    PrefactorValueError,
)
from prefactor_core.log import log
from prefactor_core.operations import Operation
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.memory import InMemoryQueue
from prefactor_core.schema_registry import SchemaRegistry, choose_schema_version
from prefactor_core.span_context import SpanContext

if TYPE_CHECKING:
    from prefactor_core.api.client import AsgiApp
    from prefactor_core.delivery.delivery import Delivery
    from prefactor_core.managers.agent_instance import AgentInstanceManager
    from prefactor_core.managers.span import SpanManager

logger = logging.getLogger("prefactor_core.client")

_CLOSE_TIMEOUT = 2.0
"""Seconds for closing connections and the local database, after the drain."""


def open_prefactor(
    config: PrefactorCoreConfig | None = None,
    *,
    api_url: str | None = None,
    api_token: str | None = None,
    schema_registry: SchemaRegistry | None = None,
    queue: Queue[Operation] | None = None,
    asgi_app: AsgiApp | None = None,
    **options: Unpack[PrefactorOptions],
) -> PrefactorCoreClient:
    """The scope of everything that is recorded: ``async with open_prefactor() as client:``.

    ``config`` says it all; or ``api_url`` and ``api_token``, each of which may come from the
    environment instead (``PREFACTOR_API_URL``, ``PREFACTOR_API_TOKEN``). With
    ``api_url="local:PATH"`` a database file in this process takes the place of the service.
    ``schema_registry`` and ``options`` are fields of :class:`PrefactorCoreConfig`, and go before
    those of ``config``; ``queue`` and ``asgi_app`` are those of :class:`PrefactorCoreClient`.

    Raises :class:`PrefactorValueError` if nothing says where to record to, or if ``config``
    and ``api_url`` or ``api_token`` are given together.
    """
    check_options(options)
    if config is None:
        config = PrefactorCoreConfig.from_env(
            api_url=api_url, api_token=api_token, schema_registry=schema_registry, **options
        )
    elif api_url is not None or api_token is not None:
        raise PrefactorValueError(
            "api_url and api_token are in config.http_config already: give either the config "
            "or these arguments"
        )
    elif not isinstance(config, PrefactorCoreConfig):
        raise PrefactorValueError(
            f"config must be a PrefactorCoreConfig, got {type(config).__qualname__}; "
            "to record to an address, pass api_url="
        )
    else:
        if schema_registry is not None:
            config = msgspec.structs.replace(config, schema_registry=schema_registry)
        config = msgspec.structs.replace(config, **options)
    return PrefactorCoreClient(config, queue, asgi_app=asgi_app)


class _Scope(msgspec.Struct, frozen=True):
    """What a client has while it is open."""

    host_task_id: int
    connections: AsyncExitStack
    delivery: Delivery
    instances: AgentInstanceManager
    spans: SpanManager


class PrefactorCoreClient:
    """Records runs and ships them in the background, for as long as its scope is open.

    ``async with PrefactorCoreClient(config) as client:``, or :meth:`initialize` and
    :meth:`close` in one task, last opened, first closed. Leaving waits until everything is
    delivered, for at most ``config.drain_timeout`` seconds, also when it is cancelled from
    outside; what is not delivered then is counted and reported in one warning. What the
    block raises leaves it as the same object. A client can be opened again after that.

    ``queue``: a queue of your own for what is recorded; it is emptied by one worker, so that
    the order of every run is kept. By default each of ``config.queue_config.num_workers``
    workers has an :class:`InMemoryQueue`.
    ``asgi_app``: an ASGI application that answers in place of ``config.http_config.api_url``,
    for tests.
    """

    def __init__(
        self,
        config: PrefactorCoreConfig,
        queue: Queue[Operation] | None = None,
        *,
        asgi_app: AsgiApp | None = None,
    ) -> None:
        if not isinstance(config, PrefactorCoreConfig):
            raise PrefactorValueError(
                f"config must be a PrefactorCoreConfig, got {type(config).__qualname__}; "
                "open_prefactor(api_url=...) makes one"
            )
        self._config = config
        self._queue = queue
        self._asgi_app = asgi_app
        self._scope: _Scope | None = None
        self._opening = False
        self._ledger = Ledger()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close(error)  # noqa: ASYNC102 - shields and bounds what it awaits

    async def initialize(self) -> None:
        """Open the scope: connections, queues, workers. No request is sent.

        Raises :class:`ClientAlreadyInitializedError` if it is open.
        """
        if self._scope is not None or self._opening:
            raise ClientAlreadyInitializedError("Client is already initialized")
        if self._queue is not None and self._queue.closed:
            raise QueueClosedError(
                "the client's queue was closed with its last scope: make a client with a new one"
            )
        self._opening = True
        try:
            self._scope = await self._open()
        finally:
            self._opening = False

    async def _open(self) -> _Scope:
        # Here and not above: what only an open client needs, httpx before all, is most of the
        # cost of importing this package.
        from prefactor_core.connection import open_api
        from prefactor_core.delivery.delivery import Delivery
        from prefactor_core.managers.agent_instance import AgentInstanceManager
        from prefactor_core.managers.span import SpanManager

        http, queueing = self._config.http_config, self._config.queue_config
        async with AsyncExitStack() as opening:
            api = await opening.enter_async_context(open_api(http, self._asgi_app))
            queues: list[Queue[Operation]] = (
                [InMemoryQueue() for _ in range(queueing.num_workers)]
                if self._queue is None
                else [self._queue]
            )
            growth, cap = http.retry_multiplier, http.max_retry_delay
            backoff = Backoff(base=queueing.retry_delay_base, multiplier=growth, cap=cap)
            delivery = Delivery(
                api,
                queues,
                queueing,
                backoff,
                self._config.drain_timeout,
                self._config.termination_poll_interval,
            )
            await delivery.__aenter__()
            # Nothing below waits or fails, so nothing has to undo the line above.
            instances = AgentInstanceManager(
                delivery.sender,
                delivery.outbox.record,
                identities=delivery.identities,
                is_away=delivery.is_away,
                on_timeout=delivery.sender.gave_up_waiting,
                backoff=Backoff(base=http.initial_retry_delay, multiplier=growth, cap=cap),
                max_retries=http.max_retries,
                timeout=self._config.registration_timeout,
            )
            capture = Capture(
                max_payload_bytes=self._config.max_payload_bytes,
                redact=self._config.redact,
                enabled=self._config.capture_payloads,
            )
            spans = SpanManager(delivery.outbox, delivery.identities, capture, instances.start_with)
            self._ledger = delivery.ledger
            return _Scope(
                host_task_id=anyio.get_current_task().id,
                connections=opening.pop_all(),
                delivery=delivery,
                instances=instances,
                spans=spans,
            )

    async def close(self) -> None:
        """End open runs, deliver, close. Nothing if the client is not open.

        A run ends as ``complete``, or as ``cancelled`` if nothing was done in it.

        Raises :class:`ClientScopeError` in another task than :meth:`initialize` ran in.
        """
        await self._close(None)

    async def _close(self, error: BaseException | None) -> None:
        scope = self._scope
        if scope is None:
            return
        if anyio.get_current_task().id != scope.host_task_id:
            raise ClientScopeError(
                "the client was opened in another task: its scope must be left by the task "
                "that entered it (any task may use it in between)"
            )
        # The order of exit:
        # 1. The body has ended, with `error` or without. It goes no further in here: Python
        #    raises it again, as the same object, when __aexit__ returns.
        # 2. Open runs are finished, their open spans first; then nothing more is recorded.
        try:
            finish_open_runs(self, error)
        except Exception as bug:
            # Of ours; nothing of the exit below may be skipped for it.
            log(logger, logging.ERROR, "open runs could not be finished", error=bug)
        scope.spans.close()
        self._scope = None
        try:
            # 3. The queues close, the workers drain for at most drain_timeout, what is left
            #    is cancelled, the task group closes: all in the delivery, shielded from
            #    cancellation. No scope may be opened around it: the group's is older.
            await scope.delivery.__aexit__(None, None, None)
        finally:
            # 4. What was not delivered has been counted, and is reported.
            statistics = self.statistics()
            if statistics.lost:
                log(logger, logging.WARNING, "%s", statistics.describe_loss())
            # 5. Connections close, and the local database.
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await scope.connections.aclose()
        # 6. Everything is closed. A loss is an error if the caller wants it to be, but never
        #    in place of the body's own.
        if self._config.raise_on_loss and error is None and statistics.lost:
            raise PrefactorTelemetryFailureError(statistics.describe_loss(), statistics)

    async def create_agent_instance(
        self,
        agent_id: str,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
    ) -> AgentInstanceHandle:
        """Register a run and give its handle; the one call that waits for the API.

        If the API cannot be reached within ``config.registration_timeout`` seconds, the run
        goes on under a provisional id, and is registered in the background.

        ``agent_version``: name, external_identifier, description (API.md section 6.1).
        ``agent_schema_version``: the span types, as the API takes them; without it they come
        from the schema registry, identified by ``external_schema_version_id`` or else by a
        hash of their content, so that the same types are the same version on every run.
        ``instance_id``: an id of your own, a PFID of the account's partition.

        Raises :class:`PrefactorValueError` if neither a schema version nor a registry is
        given, and a
        :class:`PrefactorApiError` if the API refuses the run.
        """
        instances = self.instance_manager
        if not isinstance(agent_id, str) or not agent_id:
            raise PrefactorValueError(f"agent_id must be the id of an agent, got {agent_id!r}")
        registered = await instances.register(
            agent_id,
            agent_version,
            choose_schema_version(
                agent_id,
                agent_schema_version,
                external_schema_version_id,
                self._config.schema_registry,
            ),
            instance_id,
        )
        return AgentInstanceHandle(registered, self)

    def agent_instance(
        self,
        agent_id: str,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object] | None = None,
        instance_id: str | None = None,
        external_schema_version_id: str | None = None,
    ) -> AgentInstanceScope:
        """The scope of one run: ``async with client.agent_instance(...) as instance:``.

        Takes what :meth:`create_agent_instance` takes. The run is registered and started on
        entering, and ends with the block, by how that ended.
        """
        return AgentInstanceScope(
            self,
            agent_id,
            agent_version,
            agent_schema_version,
            instance_id,
            external_schema_version_id,
        )

    async def create_span(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> str:
        """Start a span and give its id. It is the innermost one of this context until
        :meth:`finish_span` ends it, in whichever task."""
        span = self.span(instance_id, schema_name, parent_span_id, payload=payload)
        await span.__aenter__()
        try:
            await span.start()
        except BaseException:
            # Cancelled: nobody will get the id, so nobody could end the span.
            span.cancel_nowait()
            raise
        return span.id

    def create_span_nowait(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> str:
        """As :meth:`create_span`, in synchronous code."""
        span = self.span(instance_id, schema_name, parent_span_id, payload=payload)
        span.start_nowait()
        return span.id

    async def finish_span(
        self, span_id: str, result_payload: Mapping[str, object] | None = None
    ) -> None:
        """End a span of :meth:`create_span` as ``complete``.

        Raises :class:`SpanNotFoundError` if no open span has this id.
        """
        self.finish_span_nowait(span_id, result_payload)
        await anyio.lowlevel.checkpoint()

    def finish_span_nowait(
        self, span_id: str, result_payload: Mapping[str, object] | None = None
    ) -> None:
        """As :meth:`finish_span`, in synchronous code."""
        self.span_manager.finish(span_id, result_payload)

    def span(
        self,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None = None,
        span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> SpanContext:
        """A step of a run: ``async with client.span(...) as span:``, or ``with``.

        ``schema_name``: its span type. ``parent_span_id``: by default the innermost open span
        of the same run in this context. ``span_id``: a PFID of your own. ``payload``: what the
        span starts with if :meth:`SpanContext.start` is not given one.
        """
        spans = self.span_manager
        run = spans.run_of(instance_id)
        return SpanContext(spans, run, schema_name, parent_span_id, span_id, payload)

    def statistics(self) -> Statistics:
        """What became of everything recorded in this scope, or in the last one."""
        return self._ledger.statistics()

    async def flush(self) -> None:
        """Return when everything that was recorded before is delivered, or given up.

        While the API is away this waits; bound it with ``anyio.move_on_after(seconds)``.
        """
        await self._open_scope().delivery.outbox.flush()

    @property
    def instance_manager(self) -> AgentInstanceManager:
        """The open runs. Raises :class:`ClientNotInitializedError` outside of the scope."""
        return self._open_scope().instances

    @property
    def span_manager(self) -> SpanManager:
        """The open spans. Raises :class:`ClientNotInitializedError` outside of the scope."""
        return self._open_scope().spans

    def _open_scope(self) -> _Scope:
        if self._scope is None:
            raise ClientNotInitializedError(
                "the client is not open, or closed already: use it inside "
                "'async with open_prefactor(...) as client:', or between initialize() and close()"
            )
        return self._scope
