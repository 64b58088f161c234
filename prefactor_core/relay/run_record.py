"""RunRecord: the state of an open run on the server, with which another relay goes on. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec
from msgspec import Struct

from prefactor_core.operations import Operation, identifiers

if TYPE_CHECKING:
    from prefactor_core.relay.server import Word

Command: TypeAlias = "Sequence[Word]"

_LOST_RUN: Final = "lost"
_NO_PARTITION: Final = "0" * 32

_SECOND: Final = 10**9

_MOST_AGENTS: Final = 20
"""Agents that a record names: a run that is handed on again and again may have had any number."""

_MOST_SPANS: Final = 10_000
"""Spans that were given up, and ended ones with other ids, that a record names: the last ones, as
:class:`~prefactor_core.export.identity.RunIdentity` does."""


class Form(Struct, frozen=True, array_like=True):
    """The form in which an operation was sent: its idempotency key stands for that one alone."""

    operation: Operation
    given_id: bool


class OpenSpan(Struct, frozen=True, array_like=True):
    """A span whose create is delivered, and whose end is not.

    ``started``: False if it was created as one that never starts: it can only be cancelled.
    """

    span_id: str
    parent_span_id: str | None
    started: bool


class LostSpan(Struct, frozen=True, array_like=True):
    """A span that was given up: why, and the nearest ancestor that was not."""

    reason: str
    parent_span_id: str | None


class RunRecord:
    """The hash ``key``: ``fields``, of which every change is added to ``commands``, too."""

    def __init__(
        self, key: str, commands: list[Command], fields: Mapping[bytes, bytes] | None = None
    ) -> None:
        self._key = key
        self._commands = commands
        self._fields = {name.decode(): value for name, value in (fields or {}).items()}
        # The names of the fields of which only the last ones are kept, oldest first.
        self._lost = dict.fromkeys(name for name in self._fields if name.startswith("lost:"))
        self._ended = {
            name: None
            for name in self._fields
            if name.startswith("api_id:") and f"span:{name[7:]}" not in self._fields
        }

    @property
    def instance_id(self) -> str:
        """The run's id in operations."""
        return self._text("instance_id")

    @property
    def agents(self) -> list[str]:
        """The names of the agents that wrote its operations, and were not found to be gone."""
        return [name for name, _ in self._all("agent:")]

    @property
    def agent_id(self) -> str | None:
        """The agent that the run was registered for, if its caller named one."""
        return self._text("agent_id") or None

    @property
    def api_id(self) -> str:
        """The API's id of the run."""
        return self._text("api_id") or self.instance_id

    @property
    def is_started(self) -> bool:
        """Whether its start is delivered."""
        return "started" in self._fields

    @property
    def last_time(self) -> int:
        """The end of the second of its last delivered event, in nanoseconds since 1970; 0 before
        the first."""
        return int(self._text("last_time") or 0)

    @property
    def lost(self) -> str | None:
        """Why nothing of the run can be delivered; None if it can."""
        return self._text(_LOST_RUN) or None

    def check(self) -> None:
        """Raise :class:`ValueError` if a part of it cannot be read."""
        if not self.instance_id:
            raise ValueError("no run")
        for _ in (*self.open_spans(), *self.span_ids(), *self.lost_spans(), *self.agents):
            pass
        for _, value in self._all("form:"):
            msgspec.json.decode(value, type=Form)
        for name in ("agent_id", "api_id", _LOST_RUN):
            self._text(name)
        _ = self.last_time

    def set(self, **values: str | None) -> None:
        """Set the fields that are texts; None removes one."""
        for name, value in values.items():
            self._put(name, None if value is None else value.encode())

    def written_by(self, agent: str) -> None:
        """Note an agent that wrote an operation of the run."""
        if (name := f"agent:{agent}") not in self._fields:
            for first in self.agents[: 1 - _MOST_AGENTS]:
                self.left_by(first)
            self._put(name, b"")

    def happened(self, at: int) -> None:
        """Note the time of an event, in nanoseconds since 1970. It is rounded up to a second:
        Redis is written to once for many events."""
        if at > self.last_time:
            self._put("last_time", str(-(-at // _SECOND) * _SECOND).encode())

    def left_by(self, agent: str) -> None:
        """Note that an agent is gone, while another one has the run."""
        self._put(f"agent:{agent}", None)

    def open_spans(self) -> Iterator[OpenSpan]:
        """The open spans, in no order."""
        for _, value in self._all("span:"):
            yield msgspec.json.decode(value, type=OpenSpan)

    def span_opened(self, span: OpenSpan) -> None:
        """Note that the create of a span is delivered."""
        self._put(f"span:{span.span_id}", msgspec.json.encode(span))

    def span_ended(self, span_id: str) -> None:
        """Note that the end of a span is delivered: only later children still need its id."""
        self._put(f"span:{span_id}", None)
        if (name := f"api_id:{span_id}") in self._fields:
            self._keep(self._ended, name)

    def span_ids(self) -> Iterator[tuple[str, str]]:
        """The spans to which the API gave other ids, and these."""
        for span_id, value in self._all("api_id:"):
            yield span_id, value.decode()

    def span_made(self, span_id: str, api_id: str) -> None:
        """Note the API's id of a span."""
        self._put(f"api_id:{span_id}", api_id.encode())

    def lost_spans(self) -> Iterator[tuple[str, LostSpan]]:
        """The spans that were given up, by their ids."""
        for span_id, value in self._all("lost:"):
            yield span_id, msgspec.json.decode(value, type=LostSpan)

    def span_lost(self, span_id: str, span: LostSpan) -> None:
        """Note that a span was given up."""
        name = _lost(span_id)
        self._put(name, msgspec.json.encode(span))
        self._keep(self._lost, name)

    def found_span(self, span_id: str) -> None:
        """Note that a span which was given up is sent once more."""
        name = _lost(span_id)
        if self._lost and name in self._fields:
            self._put(name, None)
            self._lost.pop(name, None)

    def form(self, key: str) -> Form | None:
        """The form in which the operation with that idempotency key was sent, if it is another one
        than the recorded operation has."""
        value = self._fields.get(f"form:{key}")
        return None if value is None else msgspec.json.decode(value, type=Form)

    def sending(self, key: str, form: Form) -> None:
        """Note the form of an operation, before it is sent."""
        self._put(f"form:{key}", msgspec.json.encode(form))

    def sent(self, key: str) -> None:
        """Forget the form of an operation that is settled."""
        if (name := f"form:{key}") in self._fields:
            self._put(name, None)

    def delete(self) -> None:
        """Forget the run."""
        self._fields.clear()
        self._commands.append(["DEL", self._key])

    def _text(self, name: str) -> str:
        return self._fields.get(name, b"").decode()

    def _all(self, prefix: str) -> list[tuple[str, bytes]]:
        found = [(n, v) for n, v in self._fields.items() if n.startswith(prefix)]
        return [(name.removeprefix(prefix), value) for name, value in found]

    def _keep(self, kept: dict[str, None], name: str) -> None:
        """Note that a field is the newest of its kind; forget the oldest if there are too many."""
        kept.pop(name, None)
        kept[name] = None
        if len(kept) > _MOST_SPANS:
            oldest = next(iter(kept))
            del kept[oldest]
            self._put(oldest, None)

    def _put(self, name: str, value: bytes | None) -> None:
        if self._fields.get(name) == value:
            return
        if value is None:
            del self._fields[name]
            self._commands.append(["HDEL", self._key, name])
        else:
            self._fields[name] = value
            self._commands.append(["HSET", self._key, name, value])


def _lost(span_id: str) -> str:
    """The field of a span that was given up; the same for its provisional and its final id."""
    return f"lost:{identifiers.with_partition_of(_NO_PARTITION, span_id)}"
