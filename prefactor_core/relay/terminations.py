"""Terminations: tell agents which of their runs the API has terminated."""

from __future__ import annotations

from typing import Final

import anyio

from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.redis_outage import RedisOutage
from prefactor_core.relay.server import RedisServer, Script

_KEPT: Final = 86_400
"""Seconds for which a termination is kept for its agent."""

_TRY_AGAIN_AFTER: Final = 0.5

_WRITE: Final = Script("return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])")


class Terminations:
    """Writes terminations to Redis for the agents, as soon as the API has reported them.

    Not in the next step of the shard: that waits for the request to the API that is on its way. A
    relay that has lost the shard may still write them.
    """

    def __init__(self, server: RedisServer, keys: Keys, outage: RedisOutage) -> None:
        self._server = server
        self._keys = keys
        self._outage = outage
        self._unwritten: dict[str, str] = {}
        self._added = anyio.Event()

    def add(self, instance_id: str, reason: str) -> None:
        """Note that the API has terminated a run."""
        self._unwritten[instance_id] = reason
        self._added.set()

    async def serve(self) -> None:
        """Write them, until it is cancelled."""
        while True:
            await self._added.wait()
            try:
                await self.write()
            except PrefactorApiError as error:
                self._outage.failed(error)
                await anyio.sleep(_TRY_AGAIN_AFTER)

    async def write(self) -> None:
        """Write those that were added. Raises a :class:`~prefactor_core.PrefactorApiError` if
        Redis does not answer: the next call writes the rest."""
        while self._unwritten:
            instance_id, reason = next(iter(self._unwritten.items()))
            await self._server.call(_WRITE, [self._keys.stop(instance_id)], reason, _KEPT)
            self._unwritten.pop(instance_id, None)
        self._added = anyio.Event()
