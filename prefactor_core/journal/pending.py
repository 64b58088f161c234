"""Pending: the operations of a journal that are not settled. Pure."""

from __future__ import annotations


class Pending:
    """The operations that are not settled, by idempotency key.

    ``sequences``: their sequence numbers. ``in_doubt``: the keys of those whose appending was
    interrupted by an exception from outside: they may be in a file, and are not recorded. A set;
    as a dict, an addition is no call, which could be interrupted as well.
    """

    __slots__ = ("_before", "in_doubt", "sequences")

    def __init__(self) -> None:
        self.sequences: dict[str, int] = {}
        self.in_doubt: dict[str, None] = {}
        # Earlier operations with a key that a caller gave twice, oldest first.
        self._before: dict[str, list[int]] = {}

    def give_again(self, key: str) -> None:
        """Prepare for another operation with a key that is pending. The API sees both."""
        self._before[key] = [*self._before.get(key, ()), self.sequences[key]]

    def resume(self, key: str, sequence: int) -> None:
        """Add an operation of an adopted journal, unless it is there."""
        if self.sequences.get(key, sequence) != sequence:
            self.give_again(key)
        self.sequences[key] = sequence

    def oldest(self, key: str) -> int | None:
        """The number of the oldest operation with this key; None if it could not be written."""
        if key in self._before:
            return self._before[key][0]
        return self.sequences.get(key)

    def remove(self, key: str) -> None:
        """Remove the oldest operation with this key."""
        if key not in self._before:
            del self.sequences[key]
        elif others := self._before[key][1:]:
            self._before[key] = others
        else:
            del self._before[key]
