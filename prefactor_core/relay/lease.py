"""Lease: the right of one relay to read a shard, for some seconds at a time."""

from __future__ import annotations

from prefactor_core.relay.keys import Keys
from prefactor_core.relay.redis_outage import RedisOutage
from prefactor_core.relay.scripts import GAIN, RELEASE, RENEW
from prefactor_core.relay.server import RedisServer


class Lease:
    """The lease of ``shard`` for ``holder``, the unique name of a relay.

    It lasts for ``seconds`` after each renewal; ``is_lost`` says that another relay may have it
    now. The methods raise a :class:`~prefactor_core.PrefactorApiError` if Redis does not answer.
    """

    def __init__(
        self,
        server: RedisServer,
        keys: Keys,
        shard: int,
        holder: str,
        seconds: float,
        outage: RedisOutage,
    ) -> None:
        self.server = server
        self.keys = keys
        self.shard = shard
        self.holder = holder
        self.key = keys.lease(shard)
        self.milliseconds = round(1000 * seconds)
        self.outage = outage
        self.is_lost = False

    async def gain(self) -> bool:
        """Take it if it is free; return whether it is this holder's now."""
        answer = await self.server.call(GAIN, [self.key], self.holder, self.milliseconds)
        self.is_lost = not answer
        return bool(answer)

    async def renew(self) -> None:
        """Prolong it, unless it is lost."""
        if not await self.server.call(RENEW, [self.key], self.holder, self.milliseconds):
            self.is_lost = True

    async def release(self) -> None:
        """Give it up, so that another relay need not wait for its end."""
        await self.server.call(RELEASE, [self.key], self.holder)
