"""SequenceSet: a set of sequence numbers, of which a journal may have millions. Pure."""

from __future__ import annotations

from typing import Final

_BITS: Final = 16
_SIZE: Final = 1 << _BITS
_MASK: Final = _SIZE - 1


class SequenceSet:
    """A set of numbers in blocks of 65,536, a byte for each: members come close together."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, number: int) -> None:
        """Add a number; nothing if it is a member."""
        block = self._blocks.get(number >> _BITS)
        if block is None:
            block = self._blocks[number >> _BITS] = bytearray(_SIZE)
        block[number & _MASK] = 1

    def discard(self, number: int) -> None:
        """Remove a number; nothing if it is no member."""
        block = self._blocks.get(number >> _BITS)
        if block is not None:
            block[number & _MASK] = 0

    def __contains__(self, number: int) -> bool:
        block = self._blocks.get(number >> _BITS)
        return block is not None and block[number & _MASK] == 1

    def __len__(self) -> int:
        return sum(block.count(1) for block in self._blocks.values())

    def count(self, first: int, last: int) -> int:
        """How many members there are from ``first`` to ``last``."""
        found = 0
        for key, block in self._blocks.items():
            start, end = first - (key << _BITS), last + 1 - (key << _BITS)
            if end > 0 and start < _SIZE:
                found += block.count(1, max(start, 0), end)
        return found
