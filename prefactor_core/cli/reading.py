"""Read stored runs for the commands: the newest ones, the spans of one, and changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Final, TypeVar

import anyio

from prefactor_core.api.answers import AgentAnswer, AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.api.client import ApiClient
from prefactor_core.cli.finding import Progress, find_agent, silently
from prefactor_core.cli.run_lines import in_order
from prefactor_core.cli.texts import one_line
from prefactor_core.client.connection import open_api
from prefactor_core.config import PrefactorCoreConfig
from prefactor_core.config.http import LOCAL_PREFIX
from prefactor_core.exceptions import (
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValueError,
)

T = TypeVar("T")

INTERVAL: Final = 1.0
"""Seconds between two questions for changes."""

MOST_LOOKED_AT: Final = 1_000
"""The runs of each agent, from the newest on, that a list looks through."""

_MOST_FAILURES: Final = 9

_ENDED: Final = ("complete", "failed", "cancelled", "terminated")


@asynccontextmanager
async def open_stored(api_url: str) -> AsyncGenerator[ApiClient]:
    """Open the API at ``api_url`` to look at what is stored there.

    Raises :class:`PrefactorValueError` for a database file that is missing: its name may be
    mistyped, and opening would create it.
    """
    _check_exists(api_url)
    config = PrefactorCoreConfig.from_env(api_url=api_url).http_config
    # An agent that asks for its run hears of a termination. This is no agent.
    async with open_api(config, is_agent=False) as api:
        yield api


def _check_exists(api_url: str) -> None:
    path = api_url.removeprefix(LOCAL_PREFIX)
    if path != api_url and not Path(path).exists():
        raise PrefactorValueError(f"there is no database {path!r}: nothing was recorded there")


async def spans_of(
    api: ApiClient, instance: AgentInstanceAnswer, progress: Progress = silently
) -> list[AgentSpanAnswer]:
    """All spans of a run, in the order of its tree."""
    total = (instance.span_counts or {}).get("total", 0)
    spans: list[AgentSpanAnswer] = []
    async for span in api.list_agent_spans(instance.id):
        spans.append(span)
        progress(len(spans), max(total, len(spans)))
    return in_order(spans)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask once a second while the API is away or busy, 10 times at most: what is followed goes on
    meanwhile."""
    for _ in range(_MOST_FAILURES):
        try:
            return await ask()
        except (PrefactorUnreachableError, PrefactorServerError, PrefactorRateLimitError):
            await anyio.sleep(INTERVAL)
    return await ask()


def is_ended(instance: AgentInstanceAnswer) -> bool:
    """Whether the run has ended. Spans of a terminated run may be open for a while, or for ever."""
    return instance.status in _ENDED


class NewestRuns:
    """The newest runs of one agent or all agents, newest first: ``await runs.read()``.

    ``agent``: an agent's id, name or external identifier; None: all. ``statuses``: those shown;
    empty: all. ``limit``: runs shown. ``names``: the names of the agents by id. Each reading asks
    for the runs of those agents only that may have changed since the last one.
    """

    def __init__(
        self, api: ApiClient, agent: str | None, statuses: Collection[str], limit: int
    ) -> None:
        self._api = api
        self._agent = agent
        self._statuses = statuses
        self._limit = limit
        self._read: dict[str, tuple[Mapping[str, int] | None, list[AgentInstanceAnswer]]] = {}
        self.names: dict[str, str] = {}
        self._cut: set[str] = set()

    @property
    def note(self) -> str | None:
        """What a reader must know of runs that were not looked through; None: nothing."""
        if not self._cut:
            return None
        names = ", ".join(sorted(one_line(self.names.get(id, id)) for id in self._cut))
        return f"only the newest {MOST_LOOKED_AT:,} runs were looked through of: {names}"

    async def read(self, progress: Progress = silently) -> Sequence[AgentInstanceAnswer]:
        """The runs as they are now. The API cannot list by status: of each agent, the newest 1,000
        runs are looked through."""
        agents = await self._agents()
        self.names = {agent.id: agent.name or agent.id for agent in agents}
        runs: list[AgentInstanceAnswer] = []
        for done, agent in enumerate(agents):
            progress(done, len(agents))
            counts, known = self._read.get(agent.id, (None, []))
            if counts is None or counts != agent.instance_counts or _goes_on(counts):
                known = await self._newest_of(agent.id)
                self._read[agent.id] = agent.instance_counts, known
            runs += known
        return nlargest(self._limit, runs, key=lambda run: run.id)  # ids sort by time

    async def _agents(self) -> list[AgentAnswer]:
        if self._agent is not None:
            return [await find_agent(self._api, self._agent)]
        return [agent async for agent in self._api.list_agents()]

    async def _newest_of(self, agent_id: str) -> list[AgentInstanceAnswer]:
        found: list[AgentInstanceAnswer] = []
        looked_at = 0
        listed = self._api.list_agent_instances(agent_id, newest_first=True)
        async with aclosing(listed):
            async for run in listed:
                looked_at += 1
                if not self._statuses or run.status in self._statuses:
                    found.append(run)
                if len(found) == self._limit:
                    break
                if looked_at == MOST_LOOKED_AT:
                    self._cut.add(agent_id)
                    break
        return found


def _goes_on(counts: Mapping[str, int]) -> bool:
    """Whether a run of an agent may change without a change of the agent's counts."""
    return not {"pending", "active"} <= counts.keys() or counts["pending"] + counts["active"] > 0


async def changes_of(
    api: ApiClient, instance: AgentInstanceAnswer
) -> AsyncGenerator[tuple[AgentInstanceAnswer, list[AgentSpanAnswer]], None]:
    """The run and its spans as they are now, and again after each change; ends with the run.

    The API has no stream: the run is asked for each second, and its spans if its counts differ.
    """
    seen: object = None
    while True:
        state = instance.status, instance.span_counts, instance.updated_at
        if state != seen or instance.span_counts is None:
            seen = state
            yield instance, await patiently(partial(spans_of, api, instance))
        if is_ended(instance):
            return
        await anyio.sleep(INTERVAL)
        instance = await patiently(partial(api.get_agent_instance, instance.id))
