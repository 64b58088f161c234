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

_TELL: Final = Script("return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])")


class Terminations:
    """Writes down the terminations that a relay hears of, at once: the steps of a shard wait for
    the request to the API that is on its way. A relay that no longer has the shard may do it, too.
    """

    def __init__(self, server: RedisServer, keys: Keys, outage: RedisOutage) -> None:
        self._server = server
        self._keys = keys
        self._outage = outage
        self._untold: dict[str, str] = {}
        self._heard = anyio.Event()

    def heard(self, instance_id: str, reason: str) -> None:
        """Note that the API has terminated a run."""
        self._untold[instance_id] = reason
        self._heard.set()

    async def serve(self) -> None:
        """Tell agents, until it is cancelled."""
        while True:
            await self._heard.wait()
            try:
                await self.tell()
            except PrefactorApiError as error:
                self._outage.failed(error)
                await anyio.sleep(_TRY_AGAIN_AFTER)

    async def tell(self) -> None:
        """Tell agents what was heard. Raises a :class:`~prefactor_core.PrefactorApiError` if Redis
        does not answer: the rest is told by the next call."""
        while self._untold:
            instance_id, reason = next(iter(self._untold.items()))
            await self._server.call(_TELL, [self._keys.stop(instance_id)], reason, _KEPT)
            self._untold.pop(instance_id, None)
        self._heard = anyio.Event()
