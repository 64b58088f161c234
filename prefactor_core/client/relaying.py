"""RedisRoute: the way of a client to the API through Redis and a relay."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config.http import HttpClientConfig
from prefactor_core.config.redis import RedisAddress
from prefactor_core.export.exporter import Exporter
from prefactor_core.relay.carrier import RedisCarrier
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.presence import Presence
from prefactor_core.relay.server import RedisServer, open_server


class RedisRoute:
    """A :class:`~prefactor_core.client.route.Route` through the Redis server at ``address``."""

    secret = "the password of Redis"

    def __init__(self, http: HttpClientConfig, address: RedisAddress) -> None:
        self._http = http
        self._address = address
        self.server = RedisServer(
            address,
            http.api_token,
            timeout=http.request_timeout,
            connect_timeout=http.connect_timeout,
        )
        self._keys = Keys(address.prefix)
        # The name is that of this client: a process may have several, and a fork opens its own.
        self._agent = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self.carrier = RedisCarrier(self.server, self._keys, self._agent)

    async def ping(self) -> None:
        """Ping the server, by a connection of its own."""
        async with open_redis_carrier(self._http, self._address) as carrier:
            await carrier.ping()

    def attach(self, exporter: Exporter, config: PrefactorCoreConfig) -> None:
        """Make the exporter serve the connection, and show relays that this client lives."""
        exporter.run_in_background(self.server.serve)
        exporter.run_also(
            Presence(
                self.server,
                self._keys,
                self._agent,
                exporter.identities,
                exporter.event_loop,
                exporter.buffer.flush,
                terminations=config.termination_poll_interval < math.inf,
            )
        )


@asynccontextmanager
async def open_redis_carrier(
    http: HttpClientConfig, address: RedisAddress
) -> AsyncGenerator[RedisCarrier]:
    """Open a connection for as long as the block runs, without a heartbeat."""
    route = RedisRoute(http, address)
    await route.server.prepare()
    async with open_server(route.server):
        yield route.carrier
