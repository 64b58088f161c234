"""The relay as a process: its signals, its progress, and its pages for machines."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, closing
from functools import partial
from types import FrameType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import anyio

from prefactor_core.cli.relay_progress import Progress, progress
from prefactor_core.client.connection import open_api
from prefactor_core.config import HttpClientConfig
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.exceptions.log import log
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.monitor import Monitor
from prefactor_core.relay.relay import Relay, RelayConfig, open_relay
from prefactor_core.relay.server import RedisServer, open_server

logger = logging.getLogger("prefactor_core.relay")

_INTERVAL: Final = 1.0
_PATIENCE: Final = 2.0
"""Seconds that progress and metrics wait for the Redis server."""

Serve: TypeAlias = Callable[[Monitor], Coroutine[Any, Any, None]]


class Listen(NamedTuple):
    """The address for ``/healthz`` and ``/metrics``."""

    host: str
    port: int


async def run_relay(
    http_config: HttpClientConfig, config: RelayConfig, listen: Listen | None
) -> None:
    """Run a relay until SIGTERM or SIGINT, and then to its orderly end."""
    with anyio.CancelScope() as opening, _Signals(opening.cancel) as signals, progress() as shown:
        async with AsyncExitStack() as stack:
            serve: Serve | None = None
            if listen is not None:
                # Its imports are slow: no other relay pays for them.
                from prefactor_core.relay import endpoint

                listener = stack.enter_context(closing(endpoint.listen(*listen)))
                serve = partial(endpoint.serve, listener)
                host = f"[{listen.host}]" if ":" in listen.host else listen.host
                port = listener.getsockname()[1]
                _say("/healthz and /metrics are at http://%s:%d", host, port)
            api = await stack.enter_async_context(open_api(http_config))
            relay = await stack.enter_async_context(open_relay(api, config))
            signals.stop = relay.stop
            _say("relay %s delivers from %s to %s", relay.name, config.redis, api.api_url)
            await _run(relay, config, shown, serve)


async def _run(relay: Relay, config: RelayConfig, shown: Progress, serve: Serve | None) -> None:
    server = RedisServer(config.redis, config.redis_password, timeout=_PATIENCE)
    monitor = Monitor(relay, server, Keys(config.redis.prefix))
    failed: PrefactorCoreError | None = None
    async with open_server(server):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, monitor, shown)
            if serve is not None:
                tasks.start_soon(serve, monitor)
            try:
                await relay.run()
            except PrefactorCoreError as error:
                failed = error  # the group would wrap it
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        shown.end(await monitor.look())


async def _watch(monitor: Monitor, shown: Progress) -> None:
    while True:
        shown.show(await monitor.look())
        await anyio.sleep(_INTERVAL)


def _say(message: str, *args: object) -> None:
    log(logger, logging.INFO, message, *args)


class _Signals:
    """Lets SIGTERM and SIGINT call ``stop``, once: then they have their default effect again, so
    that a second one ends the process at once."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self.stop = stop
        self._event_loop = EventLoop.here()
        self._previous = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def __enter__(self) -> Self:
        for number in self._previous:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        # Runs between any two instructions of the main thread.
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
        self._event_loop.run_soon(lambda: self.stop())
