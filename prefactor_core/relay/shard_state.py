"""ShardState: the entries of a shard that a relay has read, and the changes to write. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from prefactor_core.relay.entry import milliseconds_of_entry
from prefactor_core.relay.final_ids import FinalIds
from prefactor_core.relay.keys import GROUP, Keys
from prefactor_core.relay.run_record import Command, RunRecord

if TYPE_CHECKING:
    from prefactor_core.relay.server import Word

_NEW: Final = ">"
_BEGINNING: Final = "0"

_BURIED_KEPT: Final = 7 * 86_400
"""Seconds for which an agent can learn that its run was ended: a machine may be suspended."""

_MOST_WORDS: Final = 4_000
"""Words of commands in one step: Lua has room for some 8,000 on its stack."""


class ShardState:
    """The entries of one shard that a relay has read, and its open runs.

    An entry is settled when all its operations are; then it is acknowledged and deleted. Until then
    the server knows which ones are: nobody sends them again, perhaps in another form than before.
    The relay can pass operations over, and read their entries again later.

    What is to be written to the server waits here as commands, until a step has carried them out.

    ``read_from``: where to read next. A relay that has just gained the shard begins with the oldest
    entry, whether another relay has read it or not. ``last_id``: the newest entry that was read.
    ``is_at_end``: whether the last read found everything that there was. ``bytes``: of the
    operations that are held in memory. ``steps``: how many :meth:`words` there were.
    ``most_words``: of commands in one step.
    """

    def __init__(self, keys: Keys, shard: int, most_words: int = _MOST_WORDS) -> None:
        self._keys = keys
        self._shard = shard
        self._most_words = most_words
        self.runs: dict[str, RunRecord] = {}
        self.ids = FinalIds()
        self.read_from = _BEGINNING
        self.last_id = "0-0"
        self.is_at_end = False
        # How many operations of an entry are not settled; 0 until the server has deleted it.
        self._unsettled: dict[str, int] = {}
        # The operations of an entry that are held in memory, as bits.
        self._held: dict[str, int] = {}
        # The settled operations of an entry, as bits; and the entries of which the server has to
        # learn some, and of which it knows some.
        self._done: dict[str, int] = {}
        self._changed: set[str] = set()
        self._known: set[str] = set()
        self._commands: list[Command] = []
        # The words that are not carried out yet, and the entries that they delete.
        self._words: list[Word] = []
        self._written: list[str] = []
        self.steps = 0
        # The bytes of each operation of an entry.
        self._sizes: dict[str, Sequence[int]] = {}
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
        return bool(self._words or self._commands or self._changed) or 0 in self._unsettled.values()

    @property
    def unsettled(self) -> int:
        """How many operations were read and are not settled."""
        return sum(self._unsettled.values())

    def load(self, key: str, fields: Mapping[bytes, bytes]) -> RunRecord:
        """Add an open run, as an earlier relay has left it."""
        record = RunRecord(key, self._commands, fields)
        self.runs[record.instance_id] = record
        self.ids.began(record.instance_id)
        return record

    def open_run(self, instance_id: str, agent: str, agent_id: str | None) -> RunRecord:
        """Add a run, unless it is there."""
        record = self.runs.get(instance_id)
        if record is None:
            key = self._keys.run(instance_id)
            record = self.runs[instance_id] = RunRecord(key, self._commands)
            self._commands.append(["SADD", self._keys.runs(self._shard), key])
        record.set(instance_id=instance_id, agent_id=agent_id)
        if agent:
            record.written_by(agent)
        return record

    def close_run(self, instance_id: str, *, buried: bool = False) -> None:
        """Forget a run that has ended. ``buried``: whether a relay has ended it, of which the agent
        learns if it lives."""
        if buried:
            self._commands.append(["SET", self._keys.buried(instance_id), 1, "EX", _BURIED_KEPT])
        self.ids.ended(instance_id)
        record = self.runs.pop(instance_id, None)
        if record is not None:
            record.delete()
            self.forget(self._keys.run(instance_id))

    def delete(self, key: str) -> None:
        """Forget a run of which the server has nothing that can be read."""
        self._commands.append(["DEL", key])
        self.forget(key)

    def forget(self, key: str) -> None:
        """Forget a run of which the server has nothing, and only its name in the set."""
        self._commands.append(["SREM", self._keys.runs(self._shard), key])

    def set_aside(self, fields: Sequence[Word]) -> None:
        """Keep what cannot be delivered; ``fields``: alternating names and values."""
        self._commands.append(["XADD", self._keys.refused, "*", *fields, "shard", str(self._shard)])

    def has_read(self, ids: Sequence[str], most: int) -> list[str]:
        """Note the entries that a step has read, of which it wanted ``most``; return the ones that
        are new.

        An entry is read again after :meth:`read_again`, or if its group was deleted. One of which
        operations were passed over is new, too.
        """
        self.read_from = _NEW
        self.is_at_end = len(ids) < most
        if self.is_at_end and (gone := self._known.difference(self._unsettled, ids)):
            # Somebody has deleted their entries.
            self._commands.append(["HDEL", self._keys.done(self._shard), *gone])
            for id in gone:
                self._known.discard(id)
                self._done.pop(id, None)
        if ids:
            self.last_id = max(self.last_id, ids[-1], key=_position)
        held, unsettled = self._held, self._unsettled
        return [id for id in ids if unsettled.get(id, -1) != held.get(id, 0).bit_count()]

    def read_again(self) -> None:
        """Read from the beginning before newer entries: those that were passed over, or that a step
        has read of which the answer is lost."""
        self.read_from = _BEGINNING
        self.last_id = "0-0"
        self.is_at_end = False

    def load_done(self, fields: Mapping[bytes, bytes]) -> None:
        """Note which operations of entries earlier relays have settled."""
        for name, value in fields.items():
            with suppress(ValueError):
                self._done[name.decode()] = int(value, 16)
        self._known.update(self._done)

    def took(
        self, entry_id: str, sizes: Sequence[int], passed_over: Collection[int] = ()
    ) -> list[int]:
        """Note that an entry has operations of so many bytes each; return the places of those that
        are to be settled now, without those that are held already, or at the places
        ``passed_over``."""
        done, held = self._done.get(entry_id, 0), self._held.get(entry_id, 0)
        left = [place for place in range(len(sizes)) if not done >> place & 1]
        new = [place for place in left if not held >> place & 1 and place not in passed_over]
        self._unsettled[entry_id] = len(left)
        self._sizes[entry_id] = sizes
        self.bytes += sum(sizes[place] for place in new)
        self._held[entry_id] = held | sum(1 << place for place in new)
        self._forget_unheld(entry_id)
        return new

    def put_back(self, entry_id: str, place: int) -> None:
        """Pass over an operation that :meth:`took` has returned."""
        self._release(entry_id, place)
        self._forget_unheld(entry_id)

    def settled(self, entry_id: str, place: int) -> None:
        """Note that the operation at ``place`` of an entry is delivered, or set aside."""
        self._release(entry_id, place)
        self._unsettled[entry_id] -= 1
        self._done[entry_id] = self._done.get(entry_id, 0) | 1 << place
        self._changed.add(entry_id)

    def _release(self, entry_id: str, place: int) -> None:
        self._held[entry_id] &= ~(1 << place)
        self.bytes -= self._sizes[entry_id][place]

    def _forget_unheld(self, entry_id: str) -> None:
        """Forget an entry of which nothing is held or settled: any number may be passed over."""
        if self._unsettled[entry_id] and not (self._held[entry_id] or self._done.get(entry_id)):
            del self._unsettled[entry_id], self._held[entry_id], self._sizes[entry_id]

    def words(self) -> list[Word]:
        """The commands to carry out next, each as the number of its words and the words; the same
        ones again until :meth:`written`, whatever is added meanwhile."""
        if not self._words:
            self._words = list(chain.from_iterable([str(len(c)), *c] for c in self._next()))
            self.steps += 1
        return self._words

    def _next(self) -> list[Command]:
        commands, words, taken = self._commands, 0, 0
        for command in commands:
            words += len(command) + 1
            if words > self._most_words and taken:
                break
            taken += 1
        carried = commands[:taken]
        del commands[:taken]
        # After the last change only: an entry that is deleted must have left its traces.
        if not commands:
            self._written = [id for id, left in self._unsettled.items() if left == 0][
                : self._most_words
            ]
            done = self._keys.done(self._shard)
            for entry_id in self._changed:
                if self._unsettled[entry_id]:
                    self._known.add(entry_id)  # perhaps: the step may not be answered
                    carried.append(["HSET", done, entry_id, f"{self._done[entry_id]:x}"])
            self._changed.clear()
            if self._written:
                stream = self._keys.operations(self._shard)
                carried.append(["XACK", stream, GROUP, *self._written])
                carried.append(["XDEL", stream, *self._written])
                if known := self._known.intersection(self._written):
                    carried.append(["HDEL", done, *known])
        return carried

    def written(self) -> None:
        """Note that the last :meth:`words` are carried out."""
        for entry_id in self._written:
            del self._unsettled[entry_id], self._held[entry_id], self._sizes[entry_id]
            self._done.pop(entry_id, None)
            self._known.discard(entry_id)
        self._words, self._written = [], []


def _position(id: str) -> tuple[int, int]:
    milliseconds, _, number = id.partition("-")
    return int(milliseconds), int(number or 0)
