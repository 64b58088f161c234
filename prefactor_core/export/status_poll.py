"""StatusPoll: asks the API whether it has terminated open runs."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from prefactor_core.exceptions import (
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorCoreError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.export.api_limits import Assumption
from prefactor_core.export.circuit_breaker import LONGEST_RETRY_AFTER, CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models.lifecycle import InstanceStatus
from prefactor_core.queue.event_loop import EventLoop

if TYPE_CHECKING:
    from prefactor_core.api.answers import AgentInstanceAnswer
    from prefactor_core.api.client import ApiClient

logger = logging.getLogger("prefactor_core.export.status_poll")

_FEW = 2
"""Runs of an agent that are read one by one; more are looked up in the list of its runs."""

_MAX_LISTED = 1_000
"""The newest runs of an agent that are looked through; older ones are read one by one."""

_NO_READING = "no reading of runs"


class StatusPoll:
    """Reads the status of every open run each ``interval`` seconds; one worker runs it.

    The answers to spans also say that a run is terminated. The poll is for a run that records
    nothing for a while, and for an API whose answers do not say it. No answer ends the poll: a
    token that may not read runs is tried again, after longer and longer pauses.
    """

    def __init__(
        self,
        api: ApiClient,
        identities: Identities,
        breaker: CircuitBreaker,
        counters: Counters,
        event_loop: EventLoop,
        interval: float,
    ) -> None:
        self._api = api
        self._identities = identities
        self._breaker = breaker
        self._counters = counters
        self._event_loop = event_loop
        self._interval = interval
        self._ended = False
        self._scope: anyio.CancelScope | None = None
        self._denied = Assumption(counters, _NO_READING)
        self._unlisted = Assumption()
        self._asked_until = -math.inf

    async def serve(self) -> None:
        """Poll until :meth:`close`."""
        if self._ended or self._interval == math.inf:
            return
        with anyio.CancelScope() as self._scope:
            while not self._ended:
                await anyio.sleep(self._interval)
                await self._ask_for_all()

    def close(self) -> None:
        """End the poll; a request that is on its way is cancelled."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    @property
    def _may_ask(self) -> bool:
        # In an outage the workers send the probes.
        now = anyio.current_time()
        return not (
            self._ended
            or self._breaker.failures
            or self._event_loop.is_forked
            or self._denied.holds(now)
            or now < self._asked_until
        )

    async def _ask_for_all(self) -> None:
        by_agent: dict[str | None, list[RunIdentity]] = defaultdict(list)
        for run in self._identities.open_runs():
            by_agent[run.agent_id].append(run)
        for agent_id, runs in by_agent.items():
            left: Sequence[RunIdentity] = runs
            if agent_id is not None and len(runs) > _FEW:
                left = await self._ask_for_list(agent_id, runs)
            for run in left:
                await self._ask_for(run)

    async def _ask_for_list(
        self, agent_id: str, runs: Sequence[RunIdentity]
    ) -> Sequence[RunIdentity]:
        """Look for runs among the newest of their agent; return those that are not there."""
        if not self._may_ask or self._unlisted.holds(anyio.current_time()):
            return runs
        missing = {run.id: run for run in runs}
        oldest = min(missing)  # ids are in the order of time
        listed = 0
        self._counters.request()
        try:
            async with aclosing(
                self._api.list_agent_instances(agent_id, newest_first=True)
            ) as instances:
                async for instance in instances:
                    listed += 1
                    run = missing.pop(instance.id, None)
                    if run is not None:
                        self._look_at(run, instance)
                    if not missing or instance.id < oldest or listed >= _MAX_LISTED:
                        break
        except PrefactorCoreError as error:
            # The single calls may work where the list does not.
            if not self._noted(error):
                self._unlisted.make(anyio.current_time())
        return list(missing.values())

    async def _ask_for(self, run: RunIdentity) -> None:
        if not self._may_ask:
            return
        self._counters.request()
        try:
            instance = await self._api.get_agent_instance(run.id)
        except PrefactorCoreError as error:
            self._noted(error)
        else:
            self._denied.refute()
            self._look_at(run, instance)

    def _look_at(self, run: RunIdentity, instance: AgentInstanceAnswer) -> None:
        if instance.status == InstanceStatus.TERMINATED:
            run.terminate(instance.termination_reason)

    def _noted(self, error: PrefactorCoreError) -> bool:
        """Note what ``error`` says about when to ask again; return whether it says so."""
        now = anyio.current_time()
        if isinstance(error, PrefactorApiError) and error.retry_after is not None:
            self._asked_until = now + min(error.retry_after, LONGEST_RETRY_AFTER)
            return True
        if isinstance(error, PrefactorAuthError):
            # The token of a deployment may write and not read.
            if self._denied.make(now):
                message = (
                    "this token may not read runs: only answers to spans tell of a termination; "
                    "reading is tried again later (%s)"
                )
                log(logger, logging.INFO, message, error)
            return True
        return False
