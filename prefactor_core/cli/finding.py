"""Find the run or the span that a user names. It reads from any API, of a service or a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from prefactor_core.api.answers import (
    AgentAnswer,
    AgentInstanceAnswer,
    AgentSpanAnswer,
    Summaries,
)
from prefactor_core.api.client import ApiClient
from prefactor_core.cli.texts import one_line
from prefactor_core.exceptions import (
    PrefactorNotFoundError,
    PrefactorValidationError,
    PrefactorValueError,
)
from prefactor_core.operations.identifiers import is_beginning, is_pfid

_CANDIDATES: Final = 10
"""The candidates that an error lists."""

Progress = Callable[[int, int], None]
"""Called with the amount that is done, and the whole."""


class _Stored(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Stored)


def silently(done: int, total: int) -> None:
    """Show no progress."""


async def find_run(api: ApiClient, word: str, progress: Progress = silently) -> AgentInstanceAnswer:
    """The run that ``word`` names: by its id, by the id, name or external identifier of an agent
    (that agent's newest run), or by the beginning of its id, 4 characters at least.

    Raises :class:`PrefactorValueError` if there is none, or if ``word`` names several agents or
    runs; the message lists them. Raises :class:`PrefactorNotFoundError` for an unknown id.
    """
    unknown: PrefactorNotFoundError | None = None
    if is_pfid(word):
        try:
            return await api.get_agent_instance(word)
        except PrefactorNotFoundError as error:
            unknown = error
    newest = await _newest_run(api, word)
    if newest is not None:
        return newest
    agents = [agent async for agent in api.list_agents()]
    agent = _named(agents, word)
    if agent is not None:
        newest = await _newest_run(api, agent.id)
        if newest is None:
            raise PrefactorValueError(f"agent {one_line(word)!r} has no run at {api.api_url}")
        return newest
    if unknown is not None:
        raise unknown
    if not is_beginning(word):
        raise _no_agent(api, word)
    found = await _beginning_with(agents, api.agent_instance_page, word, progress)
    return _only(api, word, "run", found, lambda run: f"{run.id} ({run.status})")


async def find_agent(api: ApiClient, word: str) -> AgentAnswer:
    """The agent with this id, name or external identifier.

    Raises :class:`PrefactorValueError` if there is none, or if several have this name.
    """
    agent = _named([agent async for agent in api.list_agents()], word)
    if agent is None:
        raise _no_agent(api, word)
    return agent


async def find_span(
    api: ApiClient, word: str, run: str | None = None, progress: Progress = silently
) -> AgentSpanAnswer:
    """The span with this id, or with an id that begins so. ``run``: a word for :func:`find_run`;
    only the spans of that run are looked at. ``RUN/SPAN`` in ``word`` says the same.

    Raises :class:`PrefactorValueError` as :func:`find_run` does.
    """
    if run is None and "/" in word:
        run, word = word.rsplit("/", 1)
    if not is_beginning(word):
        raise PrefactorValueError(
            f"{one_line(word)!r} is not the id of a span, nor the first 4 characters of one"
        )
    if run is None:
        agents = [agent async for agent in api.list_agents()]
        found = await _beginning_with(agents, api.agent_span_page, word, progress)
    else:
        instance = await find_run(api, run, progress)
        found = [span async for span in api.list_agent_spans(instance.id) if _is(span, word)]
    return _only(api, word, "span", found, lambda span: f"{span.id} ({one_line(span.schema_name)})")


async def _newest_run(api: ApiClient, agent_id: str) -> AgentInstanceAnswer | None:
    try:
        return await api.newest_agent_instance(agent_id)
    except (PrefactorNotFoundError, PrefactorValidationError):
        return None  # the id of no agent


def _named(agents: Sequence[AgentAnswer], word: str) -> AgentAnswer | None:
    for agent in agents:
        if agent.id == word:
            return agent
    named = [agent for agent in agents if word in (agent.name, agent.external_identifier)]
    if len(named) > 1:
        raise PrefactorValueError(
            f"{len(named)} agents are named {one_line(word)!r}: give the id of one, "
            + _listed([agent.id for agent in named])
        )
    return named[0] if named else None


async def _beginning_with(
    agents: Sequence[AgentAnswer],
    page: Callable[[str, int, int], Awaitable[Summaries[T]]],
    beginning: str,
    progress: Progress,
) -> list[T]:
    """What the lists of all agents hold under ids that begin so. ``page`` gives a part of the list
    of an agent, from an offset on, in the order of ids."""
    found: list[T] = []
    for done, agent in enumerate(agents):
        progress(done, len(agents))
        low, high = 0, await _length(page, agent.id)
        while low < high:  # the first id that is not before the beginning
            middle = (low + high) // 2
            one = (await page(agent.id, middle, 1)).summaries
            if one and one[0].id < beginning:
                low = middle + 1
            else:
                high = middle
        near = (await page(agent.id, low, _CANDIDATES + 1)).summaries
        found += [each for each in near if _is(each, beginning)]
    return found


async def _length(page: Callable[[str, int, int], Awaitable[Summaries[T]]], agent_id: str) -> int:
    pagination = (await page(agent_id, 0, 1)).pagination
    if pagination is None or pagination.item_count is None:
        raise PrefactorValueError("this API does not say how long its lists are: give a whole id")
    return pagination.item_count


def _is(stored: _Stored, beginning: str) -> bool:
    return stored.id.startswith(beginning)


def _no_agent(api: ApiClient, word: str) -> PrefactorValueError:
    return PrefactorValueError(f"there is no agent {one_line(word)!r} at {api.api_url}")


def _only(
    api: ApiClient, beginning: str, kind: str, found: Sequence[T], shown: Callable[[T], str]
) -> T:
    if not found:
        raise PrefactorValueError(
            f"there is no {kind} at {api.api_url} whose id begins with {beginning!r}"
        )
    if len(found) > 1:
        raise PrefactorValueError(
            f"the ids of several {kind}s begin with {beginning!r}: give more of one, "
            + _listed([shown(each) for each in found])
        )
    return found[0]


def _listed(candidates: Sequence[str]) -> str:
    rest = [f"and {len(candidates) - _CANDIDATES} more"] if len(candidates) > _CANDIDATES else []
    return ", ".join([*candidates[:_CANDIDATES], *rest])
