"""Pages of the spans of a run or an agent, found without a look at all of them. Synchronous."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prefactor_core.local.errors import invalid
from prefactor_core.local.pagination import Answer, page_of
from prefactor_core.local.requests import parse_time
from prefactor_core.local.spans import COUNTED
from prefactor_core.local.store import Row, Store

_OPPOSITES = {"at >= ?": "at < ?", "at <= ?": "at > ?"}


def page_of_spans(
    store: Store, query: Mapping[str, str], details: Callable[[Row], Answer]
) -> Answer:
    """The page that ``query`` asks for: spans of an ``agent_instance_id``, or else ``agent_id``,
    from ``start_time`` to ``end_time``. ``details`` shows a row."""
    times = {
        condition: parse_time(name, query[name], "")
        for name, condition in (("start_time", "at >= ?"), ("end_time", "at <= ?"))
        if name in query
    }
    with store.snapshot():
        if "agent_instance_id" in query:
            where = {"agent_instance_id = ?": query["agent_instance_id"], **times}
            total = _kept_number(store, "id", query["agent_instance_id"])
            if times:
                total = _count(store, where)
            index = "agent_spans_by_instance"
        elif "agent_id" in query:
            agent = {"agent_id = ?": query["agent_id"]}
            where, total, index = _of_agent(store, agent, times)
        else:
            raise invalid("agent_instance_id", "is required, or agent_id", "required")
        return page_of(store, "agent_spans", where, query, details, total=total, index=index)


def _of_agent(
    store: Store, agent: dict[str, str], times: dict[str, str]
) -> tuple[dict[str, str], int, str]:
    """The conditions of the spans of an agent, their number, and the index to find them by."""
    (agent_id,) = agent.values()
    total = _kept_number(store, "agent_id", agent_id)
    # A client that lists all spans may send times, too: count what is outside of them first.
    few = total // 4 + 1
    outside = sum(
        _count(store, {**agent, _OPPOSITES[condition]: time}, few)
        for condition, time in times.items()
    )
    if not outside:
        return agent, total, "agent_spans_by_agent"
    where = {**agent, **times}
    if outside < few:
        return where, total - outside, "agent_spans_by_agent"
    inside = _count(store, where)
    # To sort a few ids is faster than to look at the times of all.
    return where, inside, f"agent_spans_by_{'time' if inside < few else 'agent'}"


def _kept_number(store: Store, column: str, id: str) -> int:
    kept = " + ".join(f"{status}_spans" for status in COUNTED)
    query = f"SELECT total({kept}) AS n FROM agent_instances WHERE {column} = ?"
    return int(store.all(query, id)[0]["n"])


def _count(store: Store, where: Mapping[str, str], most: int | None = None) -> int:
    rows = f"FROM agent_spans WHERE {' AND '.join(where)}"
    if most is not None:  # which makes it slower
        rows = f"FROM (SELECT 1 {rows} LIMIT {most})"
    return int(store.all(f"SELECT count(*) AS n {rows}", *where.values())[0]["n"])
