"""Monitor: one relay and all shards, at one moment after another."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import anyio
from msgspec import Struct

from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.relay import Relay, RelayStatistics
from prefactor_core.relay.server import RedisServer
from prefactor_core.relay.status import ShardStatus, read_shards


class Moment(Struct, frozen=True, kw_only=True):
    """A relay at one moment. ``at``: by a clock that cannot be set, in seconds. ``shards``: those
    of all relays; None if they cannot be read."""

    at: float
    statistics: RelayStatistics
    shards: list[ShardStatus] | None
    outage: float
    """Seconds since the API has answered no request; 0 without an outage."""

    @property
    def lag(self) -> float | None:
        """The age of the oldest entry, in seconds; None if it is not known."""
        if self.shards is None:
            return None
        return max((shard.age or 0.0 for shard in self.shards), default=0.0)


class Monitor:
    """Looks at ``relay``, and through ``server`` at all shards."""

    def __init__(self, relay: Relay, server: RedisServer, keys: Keys) -> None:
        self._relay = relay
        self._server = server
        self._keys = keys

    async def look(self) -> Moment:
        shards: list[ShardStatus] | None = None
        with suppress(PrefactorApiError):
            shards = await read_shards(self._server, self._keys)
        statistics = self._relay.statistics()
        since = statistics.outage_since
        outage = 0.0 if since is None else (datetime.now(UTC) - since).total_seconds()
        return Moment(
            at=anyio.current_time(),
            statistics=statistics,
            shards=shards,
            outage=max(outage, 0.0),
        )
