"""open_prefactor and PrefactorCoreClient: the scope that owns everything."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from prefactor_core.agent.scope import AgentInstanceScope
from prefactor_core.client.recorder import Recorder
from prefactor_core.config import PrefactorCoreConfig, PrefactorOptions, check_options
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import (
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorValueError,
)
from prefactor_core.export.counters import Counters
from prefactor_core.models.statistics import Statistics
from prefactor_core.operations import Operation
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.importing import import_in_thread
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.quality import QualityManager
from prefactor_core.recording.span_manager import SpanManager
from prefactor_core.schema_registry import SchemaRegistry

if TYPE_CHECKING:
    import signal

    from prefactor_core.api import client as api_client
    from prefactor_core.client.disabled import DisabledScope
    from prefactor_core.client.host_task import HostTask
    from prefactor_core.client.scope import ClientScope
    from prefactor_core.client.signals import SignalCancellation
else:
    signal = LazyModule("signal")
    api_client = LazyModule("prefactor_core.api.client")


def open_prefactor(
    config: PrefactorCoreConfig | None = None,
    *,
    api_url: str | None = None,
    api_token: str | None = None,
    schema_registry: SchemaRegistry | None = None,
    queue: Queue[Operation] | None = None,
    asgi_app: api_client.AsgiApp | None = None,
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
    if isinstance(api_token, str):
        api_token = SecretStr(api_token)  # no traceback with locals shows it
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
            config = config.replace(schema_registry=schema_registry)
        config = config.replace(**options)
    return PrefactorCoreClient(config, queue, asgi_app=asgi_app)


class PrefactorCoreClient(Recorder):
    """Records runs and ships them in the background, for as long as its scope is open.

    ``async with PrefactorCoreClient(config) as client:``, in one task; or :meth:`initialize` and
    :meth:`close`, in whichever tasks. Leaving waits until everything is delivered, for at most
    ``config.drain_timeout`` seconds, also when it is cancelled from outside; what is not
    delivered then is counted and reported in one warning. What the block raises leaves it as
    the same object. A client can be opened again after that. Any task may use it, and any
    thread may record.

    ``queue``: a queue of your own for what is recorded; it is emptied by one worker, so that
    the order of every run is kept. By default each of ``config.queue_config.num_workers``
    workers has an :class:`InMemoryQueue`.
    ``sdk_header_entry`` goes before that of ``config``.
    ``asgi_app``: an ASGI application that answers in place of ``config.http_config.api_url``,
    for tests.
    """

    def __init__(
        self,
        config: PrefactorCoreConfig,
        queue: Queue[Operation] | None = None,
        *,
        sdk_header_entry: str | None = None,
        asgi_app: api_client.AsgiApp | None = None,
    ) -> None:
        if not isinstance(config, PrefactorCoreConfig):
            raise PrefactorValueError(
                f"config must be a PrefactorCoreConfig, got {type(config).__qualname__}; "
                "open_prefactor(api_url=...) makes one"
            )
        if sdk_header_entry is not None:
            config = config.replace(sdk_header_entry=sdk_header_entry)
        self._config = config
        self._queue = queue
        self._asgi_app = asgi_app
        self._scope: ClientScope | DisabledScope | None = None
        self._opening = False
        self._host: HostTask | None = None
        self._signals: SignalCancellation | None = None
        self._counters = Counters()

    async def __aenter__(self) -> Self:
        if self._opening or (self._scope is not None and not self._scope.event_loop.is_forked):
            raise ClientAlreadyInitializedError("Client is already initialized")
        if self._queue is not None and self._queue.closed:
            raise QueueClosedError(
                "the client's queue was closed with its last scope: make a client with a new one"
            )
        if self._scope is not None and self._queue is not None:
            raise ClientScopeError(
                "what is in the client's queue is recorded by the process that this one was "
                "forked from: make a client with a queue of its own here"
            )
        self._opening = True
        try:
            self._signals = self._signal_cancellation()
            self._scope = await self._open()
        finally:
            self._opening = False
        self._counters = self._scope.counters
        if self._signals is not None:
            self._signals.body_begins(self._scope.event_loop)
        return self

    # What only an open client needs, httpx before all, is most of the cost of importing this
    # package: it is imported when it is needed, and in a thread.

    def _signal_cancellation(self) -> SignalCancellation | None:
        if not self._config.cancel_on_signals:
            return None
        from prefactor_core.client.signals import SignalCancellation

        return SignalCancellation(self._config.cancel_on_signals)

    async def _open(self) -> ClientScope | DisabledScope:
        if self._config.enabled:
            await import_in_thread("prefactor_core.client.scope")
            from prefactor_core.client.scope import ClientScope

            return await ClientScope.open(self._config, self._queue, self._asgi_app)
        from prefactor_core.client.disabled import DisabledScope

        return DisabledScope()

    if not TYPE_CHECKING:  # where they are not there, and so are told of earlier

        def __enter__(self) -> None:
            raise ClientScopeError(
                "this client is for 'async with': without an event loop, use open_prefactor_sync()"
            )

        def __exit__(self, *error: object) -> None: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._scope is not None:
            if self._scope.event_loop.is_forked:
                # In a fork there is nothing to close: everything is the parent's.
                self._scope = None
                return None
            self._scope.check_task()
        left = await self._close(error)  # noqa: ASYNC102 - shields and bounds what it awaits
        if left is None or left is error:
            # Swallowed is the cancellation by a signal alone.
            return left is not error
        context = left.__context__
        try:
            raise left
        finally:
            left.__context__ = context

    async def initialize(self) -> None:
        """Open the scope without a block, in a task of its own, until :meth:`close`.

        For frameworks that open in one task and close in another; see
        :class:`~prefactor_core.client.host_task.HostTask` for what that can and cannot promise. No
        request is sent, except with ``validate_token``. If :meth:`close` is never called, and
        operations are lost by that, one warning says so, as the program ends at the latest.

        Raises :class:`ClientAlreadyInitializedError` if it is open or still closing, and
        :class:`PrefactorValueError` with ``cancel_on_signals``, which needs a block to cancel.
        """
        if self._config.cancel_on_signals:
            raise PrefactorValueError(
                "cancel_on_signals cancels the block of 'async with', which initialize() has "
                "not: leave it out, or write 'async with'"
            )
        if not self._config.enabled:
            await self.__aenter__()  # there is nothing that belongs to a task
            return
        if self._host is not None and not self._host.ended:
            raise ClientAlreadyInitializedError("Client is already initialized")
        from prefactor_core.client.host_task import HostTask

        self._host = HostTask(self)
        await self._host.open()

    async def close(self) -> None:
        """End open runs, deliver, close; in any task of the loop. Nothing if the client is not
        open; a second call waits for the first.

        A run ends as ``complete``, or as ``cancelled`` if nothing was done in it. A scope that
        was entered by ``async with`` is closed early, and by its own task only.

        Raises :class:`ClientScopeError` in another one, or in another event loop.
        """
        if self._host is not None and not self._host.ended:
            await self._host.close()
        elif self._scope is not None and self._scope.event_loop.is_forked:
            self._scope = None
        elif self._scope is not None:
            self._scope.check_task()
            await self._close(None)

    async def _close(self, error: BaseException | None) -> BaseException | None:
        """Close what is open; what goes on of ``error``."""
        # Cancel scopes nest: those inside of the client's are left before it.
        AgentInstanceScope.client_closes(self)
        left = error if self._signals is None else self._signals.body_ends(error)
        scope, self._scope = self._scope, None
        try:
            if scope is not None:
                await scope.close(error, raises=left is not None)
        finally:
            if self._signals is not None:
                self._signals.restore()
        return left

    @property
    def config(self) -> PrefactorCoreConfig:
        """What the client works with."""
        return self._config

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal of ``cancel_on_signals`` that cancelled the block; None if none did."""
        return None if self._signals is None else self._signals.received

    def statistics(self) -> Statistics:
        """What became of everything recorded in this scope, or in the last one."""
        return self._counters.statistics()

    async def flush(self) -> None:
        """Return when everything that was recorded before is delivered, or given up.

        While the API is away this waits; bound it with ``anyio.move_on_after(seconds)``.
        """
        await self._open_scope().flush()

    @property
    def instance_manager(self) -> AgentInstanceManager:
        """The open runs. Raises :class:`ClientNotInitializedError` outside of the scope."""
        return self._open_scope().instance_manager

    @property
    def span_manager(self) -> SpanManager:
        """The open spans. Raises :class:`ClientNotInitializedError` outside of the scope."""
        return self._open_scope().span_manager

    @property
    def quality_manager(self) -> QualityManager:
        """What tells of quality. Raises :class:`ClientNotInitializedError` outside of the
        scope."""
        return self._open_scope().quality_manager

    def _open_scope(self) -> ClientScope | DisabledScope:
        scope = self._scope
        if scope is None:
            raise ClientNotInitializedError(
                "the client is not open, or closed already: use it inside "
                "'async with open_prefactor(...) as client:', or between initialize() and close()"
            )
        if scope.event_loop.is_forked:
            scope.event_loop.check_process()
        return scope
