"""``open_prefactor`` and the client: the scope that owns everything."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from prefactor_core.agent.instance import current_instance
from prefactor_core.agent.run_termination import RunTermination
from prefactor_core.agent.scope import AgentInstanceScope
from prefactor_core.client.captures import NOWHERE, captured, is_capturing
from prefactor_core.client.recording_client import RecordingClient
from prefactor_core.compat.adapters import ClientAliases
from prefactor_core.config import PrefactorCoreConfig, PrefactorOptions, check_options
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import (
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorValueError,
)
from prefactor_core.exceptions.checks import to_sdk_entry
from prefactor_core.export.counters import Counters
from prefactor_core.models.statistics import Statistics
from prefactor_core.operations import Operation
from prefactor_core.payloads.secret_str import SecretStr
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.importing import import_in_thread

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


class OpenOptions(PrefactorOptions, total=False):
    """All that :func:`open_prefactor` takes by name."""

    api_url: str | None
    api_token: str | None
    queue: Queue[Operation] | None
    asgi_app: api_client.AsgiApp | None


def open_prefactor(
    config: PrefactorCoreConfig | None = None,
    *,
    api_url: str | None = None,
    api_token: str | None = None,
    queue: Queue[Operation] | None = None,
    asgi_app: api_client.AsgiApp | None = None,
    **options: Unpack[PrefactorOptions],
) -> PrefactorCoreClient:
    """The scope of everything that is recorded: ``async with open_prefactor() as client:``.

    Give either ``config``, or ``api_url`` and ``api_token``; each of these two may come from the
    environment instead (``PREFACTOR_API_URL``, ``PREFACTOR_API_TOKEN``). With
    ``api_url="local:PATH"`` a database file in this process takes the place of the service; neither
    that nor a server at ``http://127.0.0.1`` needs a token. ``api_url="redis://HOST"`` is a Redis
    server, from which relays (``python -m prefactor_core relay``) bring operations to the service:
    they count as delivered when Redis has them. It needs the extra ``redis``.
    ``options`` are the fields of :class:`PrefactorCoreConfig`; they go before those of ``config``.
    ``queue`` and ``asgi_app``: see :class:`PrefactorCoreClient`.

    Raises :class:`PrefactorValueError` if no address is given, or if ``config`` and ``api_url`` or
    ``api_token`` are given together.
    """
    if isinstance(api_token, str):
        api_token = SecretStr(api_token)  # no traceback with locals shows it
    check_options(options, "api_url", "api_token")
    if config is None:
        if is_capturing() and asgi_app is None:
            api_url, api_token = NOWHERE, None  # a test need not have those of production
        config = PrefactorCoreConfig.from_env(api_url=api_url, api_token=api_token, **options)
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
        if options.get("schema_registry") is None:
            options.pop("schema_registry", None)  # None does not remove that of the config
        config = config.replace(**options)
    return PrefactorCoreClient(config, queue, asgi_app=asgi_app)


def follow_cells() -> bool:
    """In IPython or Jupyter, carry the current run and span over from cell to cell; return whether
    this is one of them."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    if shell is None:
        return False
    from prefactor_core.agent import cells

    cells.follow(shell)
    return True


class PrefactorCoreClient(ClientAliases, RecordingClient):
    """Records runs and ships them in the background, while its scope is open.

    ``async with PrefactorCoreClient(config) as client:``, in one task; or :meth:`initialize` and
    :meth:`close`, in any tasks. Leaving waits until everything is delivered, for at most
    ``config.drain_timeout`` seconds, also under a cancellation from outside; then one warning
    reports the number of operations that were not delivered, or are left in the journal. An
    exception of the block leaves it as the same object. The client can be opened again after that.
    Any task may use it, and any thread may record.

    Its loggers are those below ``prefactor_core``. ``ERROR``: a refused run or token, a Redis
    server that may throw operations away, or a bug. ``WARNING``: an outage, a loss (its size once a
    minute), a payload that is not whole, a rest in the journal. ``INFO``: recovery, an adopted
    journal, changed assumptions about the API.

    ``queue``: your own queue for operations. One worker empties it, which keeps the order of every
    run. By default each of the ``config.queue_config.num_workers`` workers has an
    :class:`InMemoryQueue`.
    ``sdk_header_entry`` replaces that of ``config``.
    ``asgi_app``: an ASGI application that answers in place of ``config.http_config.api_url``,
    for tests.
    """

    def __init__(
        self,
        config: PrefactorCoreConfig,
        queue: Queue[Operation] | None = None,
        sdk_header_entry: str | None = None,
        *,
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
        self._sdk_entry = config.sdk_header_entry
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
                "the operations in the client's queue belong to the process that this one was "
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

    # Only an open client needs httpx, which is most of the cost of importing this package. So it is
    # imported here, and in a thread.

    def _signal_cancellation(self) -> SignalCancellation | None:
        if not self._config.cancel_on_signals:
            return None
        from prefactor_core.client.signals import SignalCancellation

        return SignalCancellation(self._config.cancel_on_signals)

    async def _open(self) -> ClientScope | DisabledScope:
        if self._config.enabled:
            await import_in_thread("prefactor_core.client.scope")
            from prefactor_core.client.scope import ClientScope

            config, asgi_app = captured(self._config, self._asgi_app)
            if config.schema_registry is None:
                await import_in_thread("prefactor_core.client.default_types")
            return await ClientScope.open(config, self._queue, asgi_app, lambda: self._sdk_entry)
        from prefactor_core.client.disabled import DisabledScope

        return DisabledScope()

    if not TYPE_CHECKING:  # a type checker reports that they are missing, before the program runs

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
                # A fork has nothing to close: everything is the parent's.
                self._scope = None
                return None
            self._scope.check_task()
        rest = await self._close(error)  # noqa: ASYNC102 - shields and bounds what it awaits
        if rest is None or rest is error:
            return rest is not error  # only the cancellation by a signal is swallowed
        context = rest.__context__
        try:
            raise rest
        finally:
            rest.__context__ = context  # not `error`, which Python has set

    async def initialize(self) -> None:
        """Open the scope without a block, in a task of its own, until :meth:`close`.

        For frameworks that open in one task and close in another; see
        :class:`~prefactor_core.client.host_task.HostTask` for the limits of that. No request is
        sent, except with ``validate_token``. If :meth:`close` is never called and operations are
        lost by that, one warning reports it, at the latest as the program ends.

        Raises :class:`ClientAlreadyInitializedError` if it is open or still closing, and
        :class:`PrefactorValueError` with ``cancel_on_signals``, which needs a block to cancel.
        """
        if self._config.cancel_on_signals:
            raise PrefactorValueError(
                "cancel_on_signals cancels the block of 'async with', and initialize() has no "
                "block: leave it out, or write 'async with'"
            )
        in_shell = follow_cells()
        if not self._config.enabled:
            await self.__aenter__()  # nothing in it belongs to a task
            return
        if self._host is not None and not self._host.ended:
            raise ClientAlreadyInitializedError("Client is already initialized")
        from prefactor_core.client.host_task import HostTask

        self._host = HostTask(self)
        await self._host.open()
        if in_shell:
            self._host.close_at_exit()

    async def close(self) -> None:
        """End open runs, deliver, and close, from any task of the loop.

        Does nothing if the client is not open; a second call waits for the first.

        A run ends as ``complete``, or as ``cancelled`` if it was never started. A scope that was
        entered by ``async with`` can be closed early, but only by its own task.

        Raises :class:`ClientScopeError` in another task then, and in another event loop.
        """
        if self._host is not None and not self._host.ended:
            await self._host.close()
        elif self._scope is not None and self._scope.event_loop.is_forked:
            self._scope = None
        elif self._scope is not None:
            self._scope.check_task()
            await self._close(None)

    async def _close(self, error: BaseException | None) -> BaseException | None:
        """Leave the scope; gives ``error`` without the cancellation by a signal.

        ``ClientScope.close`` has the order of exit; here are steps 1 and 7.
        """
        AgentInstanceScope.client_closes(self)
        rest = error if self._signals is None else self._signals.body_ends(error)
        scope, self._scope = self._scope, None
        try:
            if scope is not None:
                await scope.close(error, raises=rest is not None)
        finally:
            if self._signals is not None:
                self._signals.restore()
        return rest

    @property
    def config(self) -> PrefactorCoreConfig:
        """The configuration of the client."""
        return self._config

    @property
    def is_open(self) -> bool:
        """Whether runs can be recorded: from the opening of the scope until its end begins."""
        return self._scope is not None and not self._scope.event_loop.is_forked

    @property
    def sdk_header_entry(self) -> str | None:
        """The package that builds on this one, as every request and every run names it."""
        return self._sdk_entry

    def set_sdk_header_entry(self, entry: str | None) -> None:
        """Name the package that builds on this one, in place of that of the configuration.

        ``entry``: ``package@version``, or several divided by a blank; None for no package. While
        the client is open, this holds from the next request, and from the next run that is
        registered. Raises :class:`PrefactorValueError` for a text of another form.
        """
        self._sdk_entry = to_sdk_entry("entry", entry) if entry else None

    @property
    def termination(self) -> RunTermination:
        """Whether the API has terminated the run of the calling context.

        That is the :func:`current_instance`, if it is a run of this client; else the one of the
        client's open runs that was registered last. It is chosen now; the view stays with it. Where
        the run is at hand, ask :attr:`AgentInstanceHandle.terminated`.
        """
        scope, current = self._scope, current_instance()
        if scope is None:
            return RunTermination(None)
        if current is not None and current.client is self:
            return RunTermination(scope.span_manager.run_of(current.id))
        return RunTermination(scope.instance_manager.newest())

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal of ``cancel_on_signals`` that cancelled the block, if one did."""
        return None if self._signals is None else self._signals.received

    def statistics(self) -> Statistics:
        """Counts of the operations recorded in this scope, or in the last one, by outcome."""
        return self._counters.statistics()

    async def flush(self) -> None:
        """Return when every operation that was recorded before is delivered or dropped.

        During an outage this waits; bound it with ``anyio.move_on_after(seconds)``. With
        ``journal_sync="disk"`` it first waits until all of it is on the disk.
        """
        await self._open_scope().flush()

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
