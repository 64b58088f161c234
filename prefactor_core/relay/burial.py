"""Burial: the operations that end a run whose agent is gone. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from prefactor_core.journal.burial import end_of_run, end_of_span, start_of_run
from prefactor_core.operations import Operation
from prefactor_core.operations.identifiers import is_pfid, milliseconds_of
from prefactor_core.relay.run_record import OpenSpan, RunRecord

_LONGEST_REST: Final = 10 * 10**9
"""Nanoseconds for which an agent may have lived after its last beat."""

_ERROR: Final = Raw(
    msgspec.json.encode(
        {
            "error": {
                "type": "agent_gone",
                "message": "the agent's heartbeats ended while this span was open; the time is "
                "that of its last sign of life",
                "stacktrace": "",
            }
        }
    )
)


def burial_of(run: RunRecord, at: int) -> Iterator[Operation]:
    """The operations that fail the open spans of ``run``, children first, and the run itself.

    ``at``: the agent's last beat, in nanoseconds since 1970. The end is later if an event of the
    run is: an agent goes on for a while after its last beat. Every relay makes the same operations
    of the same record, so that nothing ends twice.
    """
    instance_id = run.instance_id
    open_ids = [instance_id, *(span.span_id for span in run.open_spans())]
    times = [1_000_000 * milliseconds_of(id) for id in open_ids if is_pfid(id)]
    times.append(run.last_time)
    # The caller can give ids and times of any moment.
    at = max([at, *(time for time in times if time <= at + _LONGEST_REST)])
    if not run.is_started:
        yield start_of_run(instance_id, at)
    spans = {span.span_id: span for span in run.open_spans()}
    for span in sorted(spans.values(), key=lambda span: (_depth(span, spans), span.span_id))[::-1]:
        yield end_of_span(span.span_id, instance_id, at, _ERROR, started=span.started)
    yield end_of_run(instance_id, at)


def _depth(span: OpenSpan, spans: Mapping[str, OpenSpan]) -> int:
    depth, parent = 0, span.parent_span_id
    # Bounded: a caller can give ids and parents that form a circle.
    while parent is not None and parent in spans and depth < len(spans):
        depth, parent = depth + 1, spans[parent].parent_span_id
    return depth


class Heartbeats:
    """How long agents have been silent, as far as this relay has seen.

    Only a change of an agent's beat counts, or an entry of the agent, and only the time between two
    readings of the server: neither the clocks of other machines nor an outage of Redis makes an
    agent silent. ``readings``: how many there were.
    """

    def __init__(self, longest_step: float) -> None:
        self._longest_step = longest_step
        self.readings = 0
        self._heard = 0.0
        self._read_at: float | None = None
        # The last beat of an agent, and the time of hearing by which it was new.
        self._beats: dict[str, tuple[bytes | None, float]] = {}
        self._last_times: dict[str, int] = {}

    def read(self, beats: Mapping[bytes, bytes], now: float, server_time: int) -> None:
        """Note what the server has; ``now``: seconds of a clock that never goes back.
        ``server_time``: milliseconds since 1970 by the server's clock."""
        if self._read_at is not None:
            self._heard += min(now - self._read_at, self._longest_step)
        self._read_at = now
        self.readings += 1
        for name, beat in beats.items():
            agent = name.decode(errors="replace")
            if self._beats.get(agent, (None, 0.0))[0] != beat:
                self._beats[agent] = beat, self._heard
                self._last_times[agent] = server_time
        for agent, (last, _) in list(self._beats.items()):
            if last is not None and agent.encode() not in beats:
                self._beats[agent] = None, self._heard

    def wrote(self, agent: str, server_time: int) -> None:
        """Note an entry that was read, and that an agent wrote at ``server_time``: Redis may
        forbid the agent its beat."""
        self._beats[agent] = self._beats.get(agent, (None, 0.0))[0], self._heard
        self._last_times[agent] = max(self._last_times.get(agent, 0), server_time)

    def last_time(self, agent: str) -> int:
        """The server's time at the last beat or entry of an agent; 0 if it is not known."""
        return self._last_times.get(agent, 0)

    def silence(self, agent: str) -> float:
        """The seconds for which an agent was silent. An agent without a beat or entry is silent
        from the first call on."""
        return self._heard - self._beats.setdefault(agent, (None, self._heard))[1]

    def last(self, agent: str) -> int | None:
        """The time of an agent's last beat, in nanoseconds since 1970, if it is known."""
        beat = self._beats.get(agent, (None, 0.0))[0]
        return int(beat) * 1_000_000 if beat is not None and beat.isdigit() else None

    def forget(self, seconds: float) -> list[str]:
        """Forget the agents that were silent for ``seconds``; return those whose beat the server
        still has."""
        gone = [agent for agent in self._beats if self.silence(agent) > seconds]
        for agent in gone:
            self._last_times.pop(agent, None)
        return [agent for agent in gone if self._beats.pop(agent)[0] is not None]
