"""Everything that a client owns while it is open, and the order of its exit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio

# Capture needs it, and this module is imported in a thread.
import prefactor_core.payloads.jsonable  # noqa: F401  # pyright: ignore[reportUnusedImport]
from prefactor_core.client.route import open_route
from prefactor_core.client.runtime_environment import build_runtime_environment
from prefactor_core.client.unclosed import watch
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorTelemetryFailureError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.exporter import Exporter
from prefactor_core.journal.base import NO_JOURNAL, Journal
from prefactor_core.operations import Operation
from prefactor_core.payloads.capture import Capture
from prefactor_core.queue.awaited import without_waiting
from prefactor_core.queue.base import Queue
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.memory import InMemoryQueue
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.long_spans import LongSpans
from prefactor_core.recording.quality import QualityManager
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.run_end import finish_open_runs
from prefactor_core.recording.span_manager import SpanManager

if TYPE_CHECKING:
    from prefactor_core.api.client import AsgiApp
    from prefactor_core.client import default_types, journaling
    from prefactor_core.client.route import Route
    from prefactor_core.schema_registry.payload_check import PayloadChecks

else:
    default_types = LazyModule("prefactor_core.client.default_types")
    journaling = LazyModule("prefactor_core.client.journaling")

logger = logging.getLogger("prefactor_core.client")

_KEPT_ASIDE = {"refused", "retries_exhausted"}
"""The reasons of a loss that a journal keeps."""

CLOSE_TIMEOUT = 2.0
"""Seconds for closing the journal, connections and the local database, after the drain."""


class ClientScope:
    """The connections, exporter, runs and spans of a client, from :meth:`open` to :meth:`close`."""

    def __init__(
        self,
        config: PrefactorCoreConfig,
        exporter: Exporter,
        journal: Journal,
        checks: PayloadChecks | None,
        sdk_header_entry: Callable[[], str | None],
    ) -> None:
        self._connections = AsyncExitStack()
        self._journal = journal
        self._exporter = exporter
        self.event_loop = exporter.event_loop
        self.counters = exporter.counters
        self._host_task_id = anyio.get_current_task().id
        self._raise_on_loss = config.raise_on_loss
        self.instance_manager = AgentInstanceManager(
            exporter.buffer,
            exporter.identities,
            registrations=exporter,
            environment=lambda: build_runtime_environment(sdk_header_entry()),
            checks=checks,
            max_retries=config.http_config.max_retries,
            timeout=config.registration_timeout,
        )
        capture = Capture(
            max_payload_bytes=config.max_payload_bytes,
            redact=config.redact,
            enabled=config.capture_payloads,
            degraded=exporter.counters.degraded,
        )
        self.recorder = Recorder(
            exporter.buffer,
            exporter.identities,
            capture,
            self.instance_manager.begin,
            config.schema_registry or default_types.DEFAULT_TYPES,
        )
        self.span_manager = SpanManager(self.recorder, exporter.identities)
        self.quality_manager = QualityManager(self.recorder)
        exporter.run_also(LongSpans(self.recorder, config.queue_config.report_after))
        self._unclosed = watch(exporter, exporter.counters, exporter.event_loop, journal)

    @classmethod
    async def open(
        cls,
        config: PrefactorCoreConfig,
        queue: Queue[Operation] | None,
        asgi_app: AsgiApp | None,
        sdk_header_entry: Callable[[], str | None],
    ) -> ClientScope:
        """Open connections, queues and workers. No request is sent, except with
        ``validate_token``; if that raises, nothing stays open.

        ``sdk_header_entry``: returns the package that records by this one; asked for every request
        and registration.
        """
        http, queueing = config.http_config, config.queue_config
        checks = _payload_checks(config)
        async with AsyncExitStack() as opening:
            route = await open_route(opening, config, asgi_app, sdk_header_entry)
            if config.validate_token:
                try:
                    await _check_secret(route, config.registration_timeout)
                except BaseException:
                    # Refused, or cancelled. There are no workers yet, only connections to close.
                    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                        await opening.aclose()
                    raise
            queues: list[Queue[Operation]] = (
                [InMemoryQueue() for _ in range(queueing.num_workers)]
                if queue is None
                else [without_waiting(queue)]
            )
            backoff = Backoff(
                base=queueing.retry_delay_base,
                multiplier=http.retry_multiplier,
                cap=http.max_retry_delay,
            )
            event_loop = EventLoop.here()
            has_journal = _wants_journal(config)
            journal = journaling.open_journal(config, event_loop) if has_journal else NO_JOURNAL
            opening.push_async_callback(journal.synced)
            opening.callback(journal.close)
            exporter = Exporter(
                route.carrier,
                queues,
                queueing,
                backoff,
                config.drain_timeout,
                event_loop,
                journal,
            )
            route.attach(exporter, config)
            scope = cls(config, exporter, journal, checks, sdk_header_entry)
            if has_journal:
                instances = scope.instance_manager
                journaling.keep(config, journal, route.carrier, exporter, instances, scope.recorder)
            await exporter.__aenter__()
            # Nothing below waits or fails, so the line above need not be undone.
            scope._connections = opening.pop_all()
            return scope

    def check_task(self) -> None:
        """Raises :class:`ClientScopeError` unless the current task has opened the scope."""
        if anyio.get_current_task().id != self._host_task_id:
            raise ClientScopeError(
                "the client was opened in another task: its scope must be left by the task "
                "that entered it (any task may use it in between). Where one task opens it and "
                "another closes it, use initialize() and close()"
            )

    async def flush(self) -> None:
        """Return when every operation recorded so far is delivered or dropped."""
        self.event_loop.check("flush() waits")
        # First: in an outage, what a caller gives up waiting for is on the disk.
        await self._journal.synced()
        await self._exporter.buffer.flush()

    async def close(self, error: BaseException | None, *, raises: bool) -> None:
        """Deliver what is pending within ``drain_timeout``, and close everything.

        ``error``: the exception that ended the body. ``raises``: whether an exception leaves the
        client's block; False if a signal's cancellation ends there.
        """
        # THE ORDER OF EXIT. It is written here only; other places refer to these numbers.
        # 1. The body ends, with `error` or without. Cancel scopes close, innermost first: those of
        #    runs that are still entered, then that of the signals (client.py). They are younger
        #    than the workers' task group, and scopes nest. `error` goes no further in: Python
        #    raises the same object again when __aexit__ returns, and no group can wrap it.
        # 2. No more runs and spans begin, in any thread. Open runs finish by how the body ended,
        #    each after its open spans, children first; so do those that are being registered. Other
        #    tasks have turns in between, as there may be many. After that, nothing more is
        #    recorded.
        # 3. Delivery ends (export/exporter.py; its tasks are in queue/workers.py):
        #    a. The status poll, the loss report and the report of long spans end, and the queues
        #       close. The end of a queue tells its worker to drain; no batch waits for more
        #       operations. A worker that was cancelled natively is started once more.
        #    b. The workers drain for at most drain_timeout, shielded from cancellation. asyncio's
        #       own Task.cancel() and Ctrl-C on trio, which no shield stops, break the drain off.
        #       With Redis, the heartbeat ends after the last delivery.
        #    c. Workers that still run are cancelled, and the connection to Redis after the others;
        #       then the empty task group closes.
        #    d. Every operation that is not delivered counts as dropped, unless the journal has it:
        #       then it stays pending.
        # 4. One warning reports the loss, if there is one; one the rest that the journal has.
        # 5. The journal closes, and is deleted if nothing is left in it; else it is brought to the
        #    disk, with journal_sync="disk". Then connections close, and the local database. All
        #    within CLOSE_TIMEOUT.
        # 6. With raise_on_loss, a loss raises an error, but never in place of the body's.
        # 7. The program's signal handlers are back (client.py). A signal that arrived after step
        #    1 is raised again: there was no body left to cancel.
        # Whatever a step raises, the steps after it run, except 6. A run that ends before its
        # client finishes as in step 2, then its cancel scope closes (agent/scope.py). A
        # synchronous client takes all steps in its own thread, which ends then (loop_thread.py).
        self.recorder.close()
        self.instance_manager.close()
        try:
            try:
                await self.event_loop.in_turns(
                    finish_open_runs(self.instance_manager, self.recorder, error)
                )
            except Exception as bug:
                # A bug of ours must not keep the steps below from running; nor may a Ctrl-C.
                log(logger, logging.ERROR, "open runs could not be finished", error=bug)
        finally:
            await self._close(raises)  # noqa: ASYNC102 - shields and bounds what it awaits

    async def _close(self, raises: bool) -> None:
        try:
            # Step 3. No cancel scope may be opened around it: the task group is older.
            await self._exporter.__aexit__(None, None, None)
        finally:
            self._unclosed.detach()
            statistics = self.counters.statistics()
            if statistics.lost:
                log(logger, logging.WARNING, "%s", statistics.describe_loss())
                if self._journal.is_on and _KEPT_ASIDE & statistics.dropped.keys():
                    message = (
                        "what the API refused is kept in the journal %s: 'python -m prefactor_core "
                        "journal show' has the reasons, 'replay --refused' sends it again"
                    )
                    log(logger, logging.WARNING, message, self._journal.name)
            if statistics.pending:
                message = (
                    "%d of %d Prefactor operations are left in the journal %s: the next client "
                    "with this folder and API delivers them, or 'python -m prefactor_core journal "
                    "replay'"
                )
                left, all = statistics.pending, statistics.accepted
                log(logger, logging.WARNING, message, left, all, self._journal.name)
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._connections.aclose()
        if self._raise_on_loss and not raises and statistics.lost:
            raise PrefactorTelemetryFailureError(statistics.describe_loss(), statistics)


def _wants_journal(config: PrefactorCoreConfig) -> bool:
    # A database in memory dies with its process: nothing there is of use to another one.
    return bool(config.journal) and config.http_config.api_url != f"{LOCAL_PREFIX}:memory:"


def _payload_checks(config: PrefactorCoreConfig) -> PayloadChecks | None:
    if config.check_payloads == "off" or not config.capture_payloads:
        return None  # payloads that are not kept cannot be checked
    # Imported here: production does without it.
    from prefactor_core.schema_registry.payload_check import PayloadChecks

    return PayloadChecks(raises=config.check_payloads == "raise")


async def _check_secret(route: Route, seconds: float) -> None:
    """Raises :class:`PrefactorAuthError` if the receiver refuses the token or password.

    One that gives no answer must not keep an agent from starting: that is logged.
    """
    problem: object = f"no answer within {seconds:g} s"
    with anyio.move_on_after(seconds):
        try:
            await route.ping()
        except PrefactorAuthError:
            raise
        except PrefactorApiError as error:
            problem = error
        else:
            return
    log(logger, logging.WARNING, "%s could not be checked: %s", route.secret, problem)
