"""Relay: brings operations from Redis to the API, beside any number of other relays."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Final, cast

import anyio
import anyio.abc
from msgspec import Struct, field

from prefactor_core.config import QueueConfig
from prefactor_core.config.redis import RedisAddress
from prefactor_core.exceptions import PrefactorApiError, PrefactorValueError
from prefactor_core.exceptions.log import log
from prefactor_core.queue.retry_policy import Backoff
from prefactor_core.relay.account import Account
from prefactor_core.relay.burial import Heartbeats
from prefactor_core.relay.delivery import Delivery
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.lease import Lease
from prefactor_core.relay.ownership import shards_of
from prefactor_core.relay.preconditions import check_account, check_persistence, check_policy
from prefactor_core.relay.redis_outage import RedisOutage
from prefactor_core.relay.scripts import ANNOUNCE
from prefactor_core.relay.server import RedisServer, Word, may_pass, open_server
from prefactor_core.relay.shard_worker import ShardWorker
from prefactor_core.relay.terminations import Terminations

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.relay")

_LEAST_LEASE: Final = 0.2
_TURNS_A_LEASE: Final = 4
"""How often a relay announces itself and renews its leases within the time of one."""

_CHECK_AGAIN_AFTER: Final = 1.0
"""Seconds until a server is tried again that did not answer at the start."""

_HEARTBEATS_EVERY: Final = 5.0
_BLOCK_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 35.0
"""Seconds for the requests on their way, when a relay stops: those of one request, and a few."""

_REST_SECONDS: Final = 5.0
"""Seconds for which this relay leaves a shard after an error that was not expected."""

_FORGET_AFTER: Final = 600.0
"""Seconds for which the heartbeat of an agent whose runs have ended is kept, in addition."""

_NEVER_AFTER: Final = 86_400.0
"""Seconds after which the heartbeat of an agent is forgotten that is never taken for dead."""

_REDIS_SECONDS: Final = 10.0
"""Seconds for one command: longer than a lease, and shorter than what a supervisor waits."""

_LAST_SECONDS: Final = 2.0
"""Seconds for giving up a lease."""


class RelayConfig(Struct, kw_only=True):
    """The configuration of a relay. Times are in seconds.

    ``redis``, ``redis_password``: the server. ``name``: of this relay, in logs and in its status;
    by default host, process and a random part. ``bury_after``: the silence after which an agent is
    gone: its runs end as failed; ``math.inf``: never. ``poll_interval``: how often the API is
    asked whether it has terminated a run. ``lease``: how long a shard stays with a relay that does
    not renew its lease; at least 0.2. ``queue_config``: batches and retries, as of a client.
    ``max_retry_delay``, ``retry_multiplier``: of the waits between attempts.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    redis: RedisAddress
    redis_password: str = ""
    name: str = ""
    bury_after: float = 300.0
    poll_interval: float = 5.0
    lease: float = 5.0
    queue_config: QueueConfig = field(default_factory=QueueConfig)
    max_retry_delay: float = 60.0
    retry_multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not self.name:
            self.name = f"{socket.gethostname()}-{os.getpid()}-{token_hex(2)}"
        if "/" in self.name or not self.name.isprintable():
            raise PrefactorValueError("the name of a relay must be printable and have no '/'")
        if not self.bury_after > 0:
            raise PrefactorValueError(f"bury_after must be positive, got {self.bury_after}")
        if not self.poll_interval > 0:
            raise PrefactorValueError(f"poll_interval must be positive, got {self.poll_interval}")
        if not self.lease >= _LEAST_LEASE:
            raise PrefactorValueError(f"lease must be at least {_LEAST_LEASE}, got {self.lease}")


class RelayStatistics(Struct, kw_only=True, frozen=True):
    """What a relay has done so far.

    ``shards``: those that it reads now. ``delivered``, ``refused``: operations; ``pending``: those
    that it has read and not settled. ``requests``, ``retries``: to the API. ``terminated``,
    ``buried``: runs. ``outage_since``: when the API stopped accepting operations;
    ``redis_outage_since``: when Redis stopped answering; None without one.
    """

    name: str
    shards: list[int]
    delivered: int
    refused: int
    pending: int
    requests: int
    retries: int
    terminated: int
    buried: int
    outage_since: datetime | None
    redis_outage_since: datetime | None
    last_error: str | None


@asynccontextmanager
async def open_relay(api: ApiClient, config: RelayConfig) -> AsyncGenerator[Relay]:
    """Open a relay from ``config.redis`` to ``api``, which is open.

    A server that does not answer yet is waited for in :meth:`Relay.run`, which then raises what
    this function raises of one that answers: a :class:`~prefactor_core.PrefactorApiError` for a
    password, rights or certificates that it does not accept, and :class:`PrefactorValueError` if
    its keys are those of another API, or if it could throw away what it has accepted.
    """
    server = RedisServer(config.redis, config.redis_password, timeout=_REDIS_SECONDS)
    async with open_server(server):
        relay = Relay(api, server, config)
        await relay.check()
        yield relay


class Relay:
    """One of any number of relays; :meth:`run` does its work."""

    def __init__(self, api: ApiClient, server: RedisServer, config: RelayConfig) -> None:
        self._server = server
        self._keys = keys = Keys(config.redis.prefix)
        self._config = config
        # The addition is unique: another process may have the same name.
        self._holder = f"{config.name}/{token_hex(4)}"
        backoff = Backoff(
            base=config.queue_config.retry_delay_base,
            multiplier=config.retry_multiplier,
            cap=config.max_retry_delay,
        )
        self._outage = RedisOutage()
        terminations = Terminations(server, keys, self._outage)
        self._account = Account(server, keys, api, backoff)
        self._delivery = Delivery(api, self._account, config.queue_config, backoff, terminations)
        self._is_checked = False
        self._heartbeats = Heartbeats(2 * _HEARTBEATS_EVERY)
        self._workers: dict[int, ShardWorker] = {}
        self._leases: dict[int, Lease] = {}
        self._paused_until: dict[int, float] = {}
        # The wait for the server, and the delivery.
        self._until_checked, self._until_stop = anyio.CancelScope(), anyio.CancelScope()
        self._changed = anyio.Event()

    @property
    def name(self) -> str:
        """Its name in logs and in the status."""
        return self._config.name

    def stop(self) -> None:
        """End :meth:`run` after the requests that are on their way."""
        self._until_checked.cancel()
        self._until_stop.cancel()

    def statistics(self) -> RelayStatistics:
        """What it has done so far."""
        counts, account = self._delivery.counters.statistics(), self._account
        is_outage = self._delivery.breaker.is_outage
        return RelayStatistics(
            name=self.name,
            shards=sorted(self._workers),
            delivered=counts.delivered,
            refused=sum(counts.dropped.values()),
            pending=counts.pending,
            requests=counts.requests,
            retries=counts.retries,
            terminated=self._delivery.terminated,
            buried=self._delivery.buried,
            outage_since=counts.outage_since if is_outage else account.waits_since,
            redis_outage_since=self._outage.since,
            last_error=counts.last_error if account.error is None else str(account.error),
        )

    async def check(self) -> None:
        """Check that the server may be used, if it answers. Raises as :func:`open_relay`."""
        try:
            await check_policy(self._server)
            await check_account(self._server, self._keys, self._delivery.api.api_url)
            await check_persistence(self._server)
        except PrefactorApiError as error:
            if not may_pass(error):
                raise
            self._outage.failed(error)
        else:
            self._outage.answered()
            self._is_checked = True

    async def run(self) -> None:
        """Deliver until :meth:`stop`; then give all shards to the other relays.

        Raises as :func:`open_relay` if the server did not answer before.
        """
        with self._until_checked:
            while not self._is_checked:
                await anyio.sleep(_CHECK_AGAIN_AFTER)
                await self.check()
        if self._is_checked:
            await self._deliver()

    async def _deliver(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._delivery.losses.serve, name="loss-report")
            try:
                # A server that answers nothing must not hold up the end.
                with self._until_stop:
                    group.start_soon(self._account.serve, name="account")
                    await self._account.answered.wait()
                    group.start_soon(self._delivery.terminations.serve, name="terminations")
                    group.start_soon(self._read_heartbeats, name="heartbeats")
                    group.start_soon(self._wake_idle_shards, name="arrivals")
                    while True:
                        await self._turn(group)
                        await anyio.sleep(self._config.lease / _TURNS_A_LEASE)
            finally:
                # Shielded: leases that are not given up hold the others up for seconds.
                with anyio.move_on_after(_STOP_SECONDS, shield=True):
                    await self._leave()
                self._delivery.losses.close()
                group.cancel_scope.cancel()

    async def _turn(self, group: anyio.abc.TaskGroup) -> None:
        """Renew leases, and gain or give up shards."""
        try:
            for lease in list(self._leases.values()):
                await lease.renew()
                # Meanwhile the worker may have met that, and ended.
                worker = self._workers.get(lease.shard)
                if lease.is_lost and worker is not None:
                    worker.leave()
            wanted = shards_of(self._holder, await self._announce())
            for shard in self._workers.keys() - wanted:
                self._workers[shard].leave()
            for shard in sorted(wanted - self._workers.keys()):
                if self._paused_until.get(shard, 0.0) <= anyio.current_time():
                    await self._gain(group, shard)
        except PrefactorApiError as error:
            self._outage.failed(error)
        else:
            self._outage.answered()

    async def _announce(self) -> set[str]:
        milliseconds = round(1000 * self._config.lease)
        keys = [self._keys.relays, self._keys.config]
        # The fields of the account again: the server may have lost its data.
        facts = self._account.facts
        relays = await self._server.call(ANNOUNCE, keys, self._holder, milliseconds, *facts)
        return {relay.decode() for relay in cast("Sequence[bytes]", relays)}

    async def _gain(self, group: anyio.abc.TaskGroup, shard: int) -> None:
        config = self._config
        lease = Lease(self._server, self._keys, shard, self._holder, config.lease, self._outage)
        try:
            if not await lease.gain():
                return
        except BaseException:
            # No answer, or the end: Redis may have given it all the same.
            with anyio.move_on_after(_LAST_SECONDS, shield=True), suppress(PrefactorApiError):
                await lease.release()
            raise
        self._leases[shard] = lease
        self._workers[shard] = ShardWorker(
            lease,
            self._delivery,
            self._heartbeats,
            bury_after=config.bury_after,
            poll_interval=config.poll_interval,
        )
        group.start_soon(self._read, lease, self._workers[shard], name=f"shard-{shard}")

    async def _read(self, lease: Lease, worker: ShardWorker) -> None:
        shard = lease.shard
        try:
            await worker.run()
        except PrefactorApiError as error:
            self._outage.failed(error)
        except Exception as error:
            # A bug of ours must not take the other shards with it, nor spin.
            message = "shard %d met an error that was not expected, and rests"
            log(logger, logging.ERROR, message, shard, error=error)
            self._paused_until[shard] = anyio.current_time() + _REST_SECONDS
        finally:
            with anyio.move_on_after(_LAST_SECONDS, shield=True), suppress(PrefactorApiError):
                await lease.release()
            del self._workers[shard], self._leases[shard]
            self._changed.set()

    async def _leave(self) -> None:
        for worker in self._workers.values():
            worker.leave()
        with suppress(PrefactorApiError):
            await self._server.run("ZREM", self._keys.relays, self._holder)
        while self._workers:
            self._changed = anyio.Event()
            await self._changed.wait()
        with suppress(PrefactorApiError):
            await self._delivery.terminations.write()

    async def _read_heartbeats(self) -> None:
        """Read the heartbeats of agents."""
        while True:
            try:
                beats, clock = await self._server.run_all(
                    [["HGETALL", self._keys.agents], ["TIME"]]
                )
                seconds, microseconds = map(int, cast("Sequence[bytes]", clock))
                self._heartbeats.read(
                    cast("Mapping[bytes, bytes]", beats),
                    time.monotonic(),
                    1000 * seconds + microseconds // 1000,
                )
                gone = self._heartbeats.forget(
                    _FORGET_AFTER + min(self._config.bury_after, _NEVER_AFTER)
                )
                if gone:
                    await self._server.run("HDEL", self._keys.agents, *gone)
            except PrefactorApiError as error:
                self._outage.failed(error)
            for worker in self._workers.values():
                worker.wake()
            await anyio.sleep(_HEARTBEATS_EVERY)

    async def _wake_idle_shards(self) -> None:
        """Wake the shards that have nothing to do when an entry arrives.

        The read blocks for a short time: it does not cover shards that become idle meanwhile.
        """
        while True:
            idle = {
                self._keys.operations(shard): worker
                for shard, worker in self._workers.items()
                if worker.is_idle
            }
            if not idle:
                await anyio.sleep(_BLOCK_SECONDS)
                continue
            last_ids = [worker.last_id for worker in idle.values()]
            how: list[Word] = ["COUNT", 1, "BLOCK", round(1000 * _BLOCK_SECONDS), "STREAMS"]
            try:
                arrived = await self._server.run(
                    "XREAD", *how, *idle, *last_ids, waits=_BLOCK_SECONDS
                )
            except PrefactorApiError as error:
                self._outage.failed(error)
                await anyio.sleep(1)
                continue
            for stream in cast("Mapping[bytes, object] | None", arrived) or ():
                idle[stream.decode()].wake()
