"""ClientScope: everything that a client owns while it is open, and the order of its exit."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import anyio

from prefactor_core.client.connection import open_api
from prefactor_core.client.runtime_environment import build_runtime_environment
from prefactor_core.client.unclosed import watch
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.exceptions import (
    ClientScopeError,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorTelemetryFailureError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.exporter import Exporter
from prefactor_core.operations import Operation
from prefactor_core.payloads.capture import Capture
from prefactor_core.queue.awaited import without_waiting
from prefactor_core.queue.base import Queue
from prefactor_core.queue.memory import InMemoryQueue
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.long_spans import LongSpans
from prefactor_core.recording.quality import QualityManager
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.run_end import finish_open_runs
from prefactor_core.recording.span_manager import SpanManager

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient, AsgiApp
    from prefactor_core.schema_registry.payload_check import PayloadChecks

logger = logging.getLogger("prefactor_core.client")

CLOSE_TIMEOUT = 2.0
"""Seconds for closing connections and the local database, after the drain."""


class ClientScope:
    """Connections, delivery, runs and spans of a client, from :meth:`open` to :meth:`close`."""

    def __init__(
        self,
        config: PrefactorCoreConfig,
        delivery: Exporter,
        checks: PayloadChecks | None,
    ) -> None:
        self._connections = AsyncExitStack()
        self._delivery = delivery
        self.event_loop = delivery.event_loop
        self.counters = delivery.counters
        self._host_task_id = anyio.get_current_task().id
        self._raise_on_loss = config.raise_on_loss
        self.instance_manager = AgentInstanceManager(
            delivery.buffer,
            delivery.identities,
            registrations=delivery,
            environment=partial(build_runtime_environment, config.sdk_header_entry),
            checks=checks,
            max_retries=config.http_config.max_retries,
            timeout=config.registration_timeout,
        )
        capture = Capture(
            max_payload_bytes=config.max_payload_bytes,
            redact=config.redact,
            enabled=config.capture_payloads,
            degraded=delivery.counters.degraded,
        )
        self.recorder = Recorder(
            delivery.buffer,
            delivery.identities,
            capture,
            self.instance_manager.begin,
            config.schema_registry,
        )
        self.span_manager = SpanManager(self.recorder)
        self.quality_manager = QualityManager(self.recorder)
        delivery.run_also(LongSpans(self.recorder, config.queue_config.report_after))
        self._unclosed = watch(delivery, delivery.counters, delivery.event_loop)

    @classmethod
    async def open(
        cls,
        config: PrefactorCoreConfig,
        queue: Queue[Operation] | None,
        asgi_app: AsgiApp | None,
    ) -> ClientScope:
        """Open connections, queues and workers. No request is sent, except with
        ``validate_token``; what that raises leaves nothing open."""
        http, queueing = config.http_config, config.queue_config
        checks = _payload_checks(config)
        async with AsyncExitStack() as opening:
            api = await opening.enter_async_context(
                open_api(http, asgi_app, config.sdk_header_entry, config.registration_timeout)
            )
            if config.validate_token:
                try:
                    await _check_token(api, config.registration_timeout)
                except BaseException:
                    # Refused, or cancelled. There are no workers yet: this is all to close.
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
            delivery = Exporter(
                api,
                queues,
                queueing,
                backoff,
                config.drain_timeout,
                config.termination_poll_interval,
            )
            scope = cls(config, delivery, checks)
            try:
                await delivery.__aenter__()
            except BaseException:
                scope._unclosed.detach()
                raise
            # Nothing below waits or fails, so nothing has to undo the line above.
            scope._connections = opening.pop_all()
            return scope

    def check_task(self) -> None:
        """Raises :class:`ClientScopeError` in another task than the one that opened this."""
        if anyio.get_current_task().id != self._host_task_id:
            raise ClientScopeError(
                "the client was opened in another task: its scope must be left by the task "
                "that entered it (any task may use it in between). Where one task opens it and "
                "another closes it, use initialize() and close()"
            )

    async def flush(self) -> None:
        """Return when everything that is recorded so far is settled."""
        self.event_loop.check("flush() waits")
        await self._delivery.buffer.flush()

    async def close(self, error: BaseException | None, *, raises: bool) -> None:
        """Deliver what there is within the time for it, and close everything.

        ``error``: what ended the body. ``raises``: whether that leaves the client's block.
        """
        # The order of exit:
        # 1. The body has ended, with `error` or without. It goes no further in here: Python
        #    raises it again, as the same object, when __aexit__ returns.
        # 2. No more spans begin, in whichever thread; open runs are finished, their open spans
        #    first. Then nothing more is recorded.
        #    There may be many of them: other tasks have their turns in between.
        self.recorder.close()
        try:
            try:
                await self.event_loop.in_turns(
                    finish_open_runs(self.instance_manager, self.recorder, error)
                )
            except Exception as bug:
                # Of ours; nothing of the exit below may be skipped for it, nor for a Ctrl-C.
                log(logger, logging.ERROR, "open runs could not be finished", error=bug)
        finally:
            await self._close(raises)  # noqa: ASYNC102 - shields and bounds what it awaits

    async def _close(self, raises: bool) -> None:
        try:
            # 3. The queues close, the workers drain for at most drain_timeout, what is left
            #    is cancelled, the task group closes: all in the delivery, shielded from
            #    cancellation. No scope may be opened around it: the group's is older.
            await self._delivery.__aexit__(None, None, None)
        finally:
            # 4. What was not delivered has been counted, and is reported.
            self._unclosed.detach()
            statistics = self.counters.statistics()
            if statistics.lost:
                log(logger, logging.WARNING, "%s", statistics.describe_loss())
            # 5. Connections close, and the local database.
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._connections.aclose()
        # 6. Everything is closed. A loss is an error if the caller wants it to be, but never
        #    in place of the body's own.
        if self._raise_on_loss and not raises and statistics.lost:
            raise PrefactorTelemetryFailureError(statistics.describe_loss(), statistics)


def _payload_checks(config: PrefactorCoreConfig) -> PayloadChecks | None:
    if config.check_payloads == "off" or not config.capture_payloads:
        return None  # of payloads that are not kept there is nothing to check
    from prefactor_core.schema_registry.payload_check import (
        PayloadChecks,  # here: production does without
    )

    return PayloadChecks(raises=config.check_payloads == "raise")


async def _check_token(api: ApiClient, seconds: float) -> None:
    """Raises :class:`PrefactorAuthError` if the API does not take the token.

    An API that cannot be asked must not keep an agent from starting.
    """
    problem: object = f"no answer within {seconds:g} s"
    with anyio.move_on_after(seconds):
        try:
            await api.ping()
        except PrefactorAuthError:
            raise
        except PrefactorApiError as error:
            problem = error
        else:
            return
    log(logger, logging.WARNING, "the API token could not be checked: %s", problem)
