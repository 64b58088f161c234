"""Route: the way from a client to the API, by HTTP, or through Redis and a relay."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.export.status_poll import StatusPoll
from prefactor_core.queue.importing import import_in_thread

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient, AsgiApp
    from prefactor_core.config.http import HttpClientConfig
    from prefactor_core.export.carrier import Carrier
    from prefactor_core.export.exporter import Exporter
    from prefactor_core.relay.carrier import RedisCarrier


class Route(Protocol):
    """A way to the API. ``secret``: what the receiver knows the client by, for log lines."""

    @property
    def carrier(self) -> Carrier:
        """Takes operations, as soon as the exporter runs."""
        ...

    @property
    def secret(self) -> str: ...

    async def ping(self) -> None:
        """Ask the receiver whether it is there, and accepts the secret."""

    def attach(self, exporter: Exporter, config: PrefactorCoreConfig) -> None:
        """Make the exporter run what the route needs, and watch for terminations; before the
        exporter is entered."""


class _DirectRoute:
    secret = "the API token"

    def __init__(self, api: ApiClient) -> None:
        self.carrier = api
        self.ping = api.ping

    def attach(self, exporter: Exporter, config: PrefactorCoreConfig) -> None:
        exporter.run_also(
            StatusPoll(
                self.carrier,
                exporter.identities,
                exporter.breaker,
                exporter.counters,
                exporter.event_loop,
                config.termination_poll_interval,
            )
        )


async def open_route(
    stack: AsyncExitStack,
    config: PrefactorCoreConfig,
    asgi_app: AsgiApp | None,
    sdk_header_entry: Callable[[], str | None],
) -> Route:
    """Open the route that ``config`` asks for, until ``stack`` closes. No request is sent.

    Raises :class:`PrefactorValueError` as :func:`open_api`, and for Redis without its extra, or
    with a file for TLS that cannot be used.
    """
    http = config.http_config
    address = http.redis if asgi_app is None else None
    if address is not None:
        await import_in_thread("prefactor_core.client.relaying")
        from prefactor_core.client.relaying import RedisRoute

        route = RedisRoute(http, address)
        await route.server.prepare()
        return route
    # Not a generator around another one: if the client is never closed, asyncio ends both at once.
    api = open_api(http, asgi_app, sdk_header_entry, config.registration_timeout)
    return _DirectRoute(await stack.enter_async_context(api))


@asynccontextmanager
async def open_carrier(http: HttpClientConfig) -> AsyncGenerator[ApiClient | RedisCarrier]:
    """Open a carrier that needs no exporter; raises as :func:`open_route`."""
    address = http.redis
    if address is None:
        async with open_api(http) as api:
            yield api
    else:
        await import_in_thread("prefactor_core.client.relaying")
        from prefactor_core.client.relaying import open_redis_carrier

        async with open_redis_carrier(http, address) as carrier:
            yield carrier
