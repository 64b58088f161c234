"""Pending: the operations of a journal that are not settled. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class Pending:
    """The operations that are not settled, by idempotency key.

    ``sequences``: their sequence numbers. ``in_doubt``: the numbers of those whose appending was
    interrupted by an exception from outside: they may be in a file, and are not recorded.
    """

    __slots__ = ("_before", "in_doubt", "sequences")

    def __init__(self) -> None:
        self.sequences: dict[str, int] = {}
        self.in_doubt: dict[str, int] = {}
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

    def pop(self, keys: Iterable[str]) -> list[int]:
        """Remove the oldest operation with each of these keys, and return the numbers of those that
        are there: some could not be written."""
        found: list[int] = []
        for key in keys:
            if key in self._before:
                sequence, *others = self._before.pop(key)
                if others:
                    self._before[key] = others
                found.append(sequence)
            elif key in self.sequences:
                found.append(self.sequences.pop(key))
        return found
