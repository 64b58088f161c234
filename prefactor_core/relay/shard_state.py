"""ShardState: what a relay has read of a shard, and what is to be written back. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING, Final

from prefactor_core.relay.entry import milliseconds_of_entry
from prefactor_core.relay.keys import GROUP, Keys
from prefactor_core.relay.run_record import Command, RunRecord

if TYPE_CHECKING:
    from prefactor_core.relay.server import Word

_NEW: Final = ">"
_BEGINNING: Final = "0"

_MOST_WORDS: Final = 4_000
"""Words of commands in one step: Lua has room for some 8,000 on its stack."""


class ShardState:
    """The entries of one shard that a relay has read, and its open runs.

    An entry is settled when all its operations are; then it is acknowledged and deleted. What is to
    be written to the server waits here as commands, until a step has carried them out.

    ``read_from``: where to read next. A relay that has just gained the shard begins with the oldest
    entry, whether another relay has read it or not. ``last_id``: the newest entry that was read.
    ``is_at_end``: whether the last read found everything that there was. ``bytes``: of the entries
    that are not settled. ``most_words``: of commands in one step.
    """

    def __init__(self, keys: Keys, shard: int, most_words: int = _MOST_WORDS) -> None:
        self._keys = keys
        self._shard = shard
        self._most_words = most_words
        self.runs: dict[str, RunRecord] = {}
        self.read_from = _BEGINNING
        self.last_id = "0-0"
        self.is_at_end = False
        # How many operations of an entry are not settled; 0 until the server has deleted it.
        self._unsettled: dict[str, int] = {}
        self._commands: list[Command] = []
        # What is to be forgotten when the entry with this position is deleted: until then another
        # relay may have to send again what was settled, in the same form. In this order.
        self._late: list[tuple[tuple[int, int], str, list[Command]]] = []
        self._forgotten = 0
        # What the last words carry out: so many commands, and the ends of these entries.
        self._taken = 0
        self._written: list[str] = []
        self._bytes: dict[str, int] = {}
        self.bytes = 0

    @property
    def last_time(self) -> int:
        """The time of the newest entry that was read, in milliseconds since 1970."""
        return milliseconds_of_entry(self.last_id)

    @property
    def will_have_none(self) -> bool:
        """Whether the last :meth:`words` delete all entries that were read."""
        return len(self._written) == len(self._unsettled)

    @property
    def has_changes(self) -> bool:
        """Whether anything is to be written."""
        oldest = next(iter(self._unsettled.values()), None)
        return bool(self._commands or self._can_forget()) or oldest == 0

    @property
    def unsettled(self) -> int:
        """How many operations were read and are not settled."""
        return sum(self._unsettled.values())

    def load(self, key: str, fields: Mapping[bytes, bytes]) -> RunRecord:
        """Add an open run, as an earlier relay has left it."""
        record = RunRecord(key, self._commands, fields)
        self.runs[record.instance_id] = record
        return record

    def open_run(self, instance_id: str, agent: str, agent_id: str | None) -> RunRecord:
        """Add a run, unless it is there."""
        record = self.runs.get(instance_id)
        if record is None:
            key = self._keys.run(instance_id)
            record = self.runs[instance_id] = RunRecord(key, self._commands)
            if any(late_key == key for _, late_key, _ in self._late):
                # It has ended, and begins again, as its entries are there twice.
                self._late = [late for late in self._late if late[1] != key]
                self._commands.append(["DEL", key])
            self._commands.append(["SADD", self._keys.runs(self._shard), key])
        record.set(instance_id=instance_id, agent_id=agent_id)
        if agent:
            record.written_by(agent)
        return record

    def close_run(self, instance_id: str, entry_id: str = "") -> None:
        """Forget a run that has ended, when the entry is deleted that has ended it."""
        if self.runs.pop(instance_id, None) is not None:
            key = self._keys.run(instance_id)
            self._later(entry_id, key, ["DEL", key], ["SREM", self._keys.runs(self._shard), key])

    def sent(self, record: RunRecord, key: str, entry_id: str) -> None:
        """Forget the form of an operation that is settled, when its entry is deleted; ``key``: its
        idempotency key."""
        if (command := record.sent(key)) is not None:
            self._later(entry_id, str(command[1]), command)

    def _later(self, entry_id: str, key: str, *commands: Command) -> None:
        self._late.append((_position(entry_id or "0-0"), key, list(commands)))
        self._late.sort(key=lambda late: late[0])

    def _can_forget(self) -> int:
        """How many of the late ones need not wait any longer."""
        if not self._late:
            return 0
        first = next(islice(self._unsettled, len(self._written), None), None)
        if first is None:
            return len(self._late)
        oldest = _position(first)
        return sum(position < oldest for position, _, _ in self._late)

    def delete(self, key: str) -> None:
        """Forget a run of which the server has nothing that can be read."""
        self._commands.append(["DEL", key])
        self.forget(key)

    def forget(self, key: str) -> None:
        """Forget a run of which the server has nothing, and only its name in the set."""
        self._commands.append(["SREM", self._keys.runs(self._shard), key])

    def set_aside(self, fields: Sequence[Word]) -> None:
        """Keep what cannot be delivered; ``fields``: names and values by turns."""
        self._commands.append(["XADD", self._keys.refused, "*", *fields, "shard", str(self._shard)])

    def has_read(self, ids: Sequence[str], most: int) -> list[str]:
        """Note the entries that a step has read, of which it wanted ``most``; return the ones that
        are new.

        An entry is read again after a step that was not answered, or if its group was deleted.
        """
        self.read_from = _NEW
        self.is_at_end = len(ids) < most
        if ids:
            self.last_id = max(self.last_id, ids[-1], key=_position)
        return [id for id in ids if id not in self._unsettled]

    def unanswered(self) -> None:
        """Note that a step was not answered: it may have read entries, which are to be read again
        before newer ones."""
        self.read_from = _BEGINNING

    def took(self, entry_id: str, operations: int, size: int = 0) -> None:
        """Note that an entry of ``size`` bytes has so many operations to settle."""
        self._unsettled[entry_id] = operations
        if operations:
            self._bytes[entry_id] = size
            self.bytes += size

    def settled(self, entry_id: str, operations: int = 1) -> None:
        """Note that operations of an entry are delivered, or set aside."""
        self._unsettled[entry_id] -= operations
        if not self._unsettled[entry_id]:
            self.bytes -= self._bytes.pop(entry_id)

    def words(self) -> list[Word]:
        """The commands to carry out next, each as the number of its words and the words; the same
        ones again until :meth:`written`."""
        self._taken, self._written, self._forgotten = 0, [], 0
        words = 0
        for command in self._commands:
            words += len(command) + 1
            if words > self._most_words and self._taken:
                break
            self._taken += 1
        carried = self._commands[: self._taken]
        # After the last change only: an entry that is deleted must have left its traces.
        if self._taken == len(self._commands):
            self._written = self._first_settled()
            if self._written:
                stream = self._keys.operations(self._shard)
                carried.append(["XACK", stream, GROUP, *self._written])
                carried.append(["XDEL", stream, *self._written])
            self._forgotten = min(self._can_forget(), self._most_words)
            for _, _, commands in self._late[: self._forgotten]:
                carried += commands
        return list(chain.from_iterable([str(len(c)), *c] for c in carried))

    def _first_settled(self) -> list[str]:
        """The entries that can be deleted: an entry stays as long as an older one does, or a relay
        that begins with the older one would not meet what ended its runs."""
        settled = takewhile(lambda id: not self._unsettled[id], self._unsettled)
        return list(islice(settled, self._most_words))

    def written(self) -> None:
        """Note that the last :meth:`words` are carried out."""
        del self._commands[: self._taken]
        del self._late[: self._forgotten]
        for entry_id in self._written:
            del self._unsettled[entry_id]
        self._taken, self._written, self._forgotten = 0, [], 0


def _position(id: str) -> tuple[int, int]:
    milliseconds, _, number = id.partition("-")
    return int(milliseconds), int(number or 0)
