"""Presence: shows relays that an agent lives, and tells the agent which of its runs have ended."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import time_ns
from typing import Final, cast

import anyio

from prefactor_core.exceptions import PrefactorApiError, PrefactorAuthError
from prefactor_core.exceptions.log import log
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.preconditions import SAFE_POLICY, unsafe_policy
from prefactor_core.relay.server import PASSWORD, RedisServer, Script

logger = logging.getLogger("prefactor_core.relay.presence")

_INTERVAL: Final = 0.5
"""Seconds between two looks for the ends of runs."""

_HEARTBEAT: Final = 5.0
"""Seconds between two heartbeats, and until the next command after one that failed."""

_MOST_RUNS: Final = 1_000

_LEAVE_TIMEOUT: Final = 1.0

# A script, which may run when the memory is full: relays must not take the agent for dead then.
_BEAT: Final = Script(
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])\nreturn redis.call('EXISTS', KEYS[2])"
)


class Presence:
    """Writes the heartbeat of ``agent`` each five seconds, and asks each half second whether the
    API has terminated one of its open runs, or a relay has ended one. A
    :class:`~prefactor_core.export.exporter.Job` of the exporter.

    A relay ends the runs of an agent that was silent for long, such as that of a machine that was
    suspended. The agent goes on: nothing is cancelled, and the log has one line. The API accepts no
    more of such a run. What it records from then on is dropped, and counted as ``run_ended``. What
    Redis got of it in the meantime counts as delivered; relays set that aside (``relay refused``).

    The log also has a line when no relay is alive, when one is again, and if the server may throw
    operations away when its memory is full. The workers report other problems.

    ``drained``: returns when everything is delivered. After :meth:`close` the heartbeat goes on
    until then, and is removed. If the drain is broken off, the heartbeat stays on the server:
    relays end the open runs after a while. ``terminations``: whether to ask for terminations, and
    for runs that relays have ended.
    """

    def __init__(
        self,
        server: RedisServer,
        keys: Keys,
        agent: str,
        identities: Identities,
        event_loop: EventLoop,
        drained: Callable[[], Awaitable[None]],
        *,
        terminations: bool = True,
    ) -> None:
        self._server = server
        self._keys = keys
        self._agent = agent
        self._identities = identities
        self._event_loop = event_loop
        self._wait_for_drain = drained
        self._terminations = terminations
        self._closing = anyio.Event()
        self._beat_at = -math.inf
        self._drained = self._knows_policy = self._lacks_relay = self._is_denied = False

    async def serve(self) -> None:
        """Do so until :meth:`close` and the end of the drain. In a fork of the process, do
        nothing: the heartbeat and the connection are the parent's."""
        event_loop = self._event_loop
        try:
            await self._serve()
        except Exception:
            if not event_loop.is_forked:
                raise
        if event_loop.is_forked:
            await event_loop.wait_for_end()

    def close(self) -> None:
        """End :meth:`serve` as soon as everything is delivered."""
        self._closing.set()

    async def _serve(self) -> None:
        while not (self._closing.is_set() or self._event_loop.is_forked):
            pause = await self._look()
            with anyio.move_on_after(pause):
                await self._closing.wait()
        while not (self._drained or self._event_loop.is_forked):
            with anyio.move_on_after(_HEARTBEAT):
                await self._wait_for_drain()
                self._drained = True
            await self._look()
        if not self._event_loop.is_forked:
            with anyio.move_on_after(_LEAVE_TIMEOUT), suppress(PrefactorApiError):
                await self._server.run("HDEL", self._keys.agents, self._agent)

    async def _look(self) -> float:
        """Do what is due; return the seconds until the next look."""
        try:
            now = anyio.current_time()
            if now >= self._beat_at:
                await self._beat()
                self._beat_at = now + _HEARTBEAT
            if self._terminations:
                await self._ask_for_ends()
        except PrefactorAuthError as error:
            if not self._is_denied and error.code != PASSWORD:
                self._is_denied = True
                message = (
                    "relays may take this agent for dead, and no termination reaches it: Redis "
                    "forbids its heartbeat (%s)"
                )
                log(logger, logging.WARNING, message, error)
            return _HEARTBEAT
        except PrefactorApiError:
            return _HEARTBEAT
        self._is_denied = False
        return _INTERVAL

    async def _beat(self) -> None:
        keys, now = [self._keys.agents, self._keys.relays], time_ns() // 1_000_000
        has_relay = bool(await self._server.call(_BEAT, keys, self._agent, now))
        if has_relay is self._lacks_relay:
            self._lacks_relay = not has_relay
            self._report_relays(has_relay=has_relay)
        if not self._knows_policy:
            await self._check_policy()
            self._knows_policy = True

    def _report_relays(self, *, has_relay: bool) -> None:
        if has_relay:
            log(logger, logging.INFO, "a relay is alive at %s again", self._server.address)
            return
        message = (
            "no relay is alive at %s: operations stay there until one is ('python -m "
            "prefactor_core relay')"
        )
        log(logger, logging.WARNING, message, self._server.address)

    async def _check_policy(self) -> None:
        policy = await unsafe_policy(self._server)
        if policy is not None:
            message = (
                "%s throws operations away when its memory is full: its maxmemory-policy is %s, "
                "and must be %s"
            )
            log(logger, logging.ERROR, message, self._server.address, policy, SAFE_POLICY)

    async def _ask_for_ends(self) -> None:
        open_runs = [run for run in self._identities.open_runs() if run.lost is None]
        buried: list[RunIdentity] = []
        for first in range(0, len(open_runs), _MOST_RUNS):
            runs = open_runs[first : first + _MOST_RUNS]
            keys = [key(run.id) for key in (self._keys.stop, self._keys.buried) for run in runs]
            answers = cast("Sequence[bytes | None]", await self._server.run("MGET", *keys))
            for run, reason in zip(runs, answers, strict=False):
                if reason is not None:
                    run.terminate(reason.decode(errors="replace") or None)
            ended = answers[len(runs) :]
            buried += [run for run, end in zip(runs, ended, strict=True) if end is not None]
        if buried:
            self._report_burial(buried)

    def _report_burial(self, runs: Sequence[RunIdentity]) -> None:
        for run in runs:
            run.lost = "run_ended"
        message = (
            "relays heard nothing of this agent for long, and have ended agent instance %s%s as "
            "failed: what is recorded there from now on is dropped, and counted as run_ended"
        )
        others = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        log(logger, logging.WARNING, message, runs[0].id, others)
