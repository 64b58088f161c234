"""Segments: the files of a journal that is written, one after another."""

from __future__ import annotations

import logging
import os
from bisect import bisect
from collections.abc import Callable, Collection, Iterable
from functools import partial
from time import monotonic
from typing import Final, TypeAlias
from zlib import crc32

from prefactor_core.exceptions.log import log
from prefactor_core.journal.directory import DAMAGED, Hold
from prefactor_core.journal.disk_sync import DiskSync
from prefactor_core.journal.files import open_file
from prefactor_core.journal.format import HEAD, PRIME, Kind, encode, frame

logger = logging.getLogger("prefactor_core.journal")

_HEAD: Final = HEAD.pack
_HEAD_SIZE: Final = HEAD.size
_SEGMENT_BYTES: Final = 8 * 1024 * 1024
_LEAST_SEGMENTS: Final = 4
_PAUSE: Final = 5.0
"""Seconds until files that could not be written are tried again."""

State: TypeAlias = Callable[[], Iterable[tuple[Kind, object]]]
"""The first records of a file: its header, and what a reader must know that only earlier ones
tell."""


class Segment:
    """One file: its number, the first sequence number in it, its bytes, and how many of its
    operations are not settled."""

    __slots__ = ("first", "number", "size", "unsettled")

    def __init__(self, number: int, first: int, size: int, unsettled: int = 0) -> None:
        self.number = number
        self.first = first
        self.size = size
        self.unsettled = unsettled


class Segments:
    """Appends records to the newest file, each by one ``write``. The caller holds a lock.

    After 8 MiB, or a quarter of ``max_bytes``, the next file begins with ``state()``. The oldest
    one is deleted as soon as all its operations are settled.

    A write that fails, or that a full disk cuts short, leaves no part of a record. The files then
    rest for five seconds: one warning says so, by ``soon``, and what is to be written meanwhile is
    not. After that a new file begins.

    ``sync``: brings the files to the disk, in a thread. ``earlier``: those of an adopted journal,
    oldest first; ``sequence``: the last number in them, or 0; ``damaged``: the numbers of those of
    them that are renamed in the end, and not deleted. ``wrote``: called with the kind, the number
    and the body of each further record.
    """

    def __init__(
        self,
        hold: Hold,
        state: State,
        soon: Callable[[Callable[[], object]], object],
        *,
        max_bytes: int,
        sync: DiskSync | None = None,
        earlier: Iterable[Segment] = (),
        sequence: int = 0,
        damaged: Collection[int] = (),
        wrote: Callable[[int, int, bytes], object] | None = None,
    ) -> None:
        self._hold = hold
        self._state = state
        self._soon = soon
        self._max_bytes = max_bytes
        self.limit = self._file_bytes = min(_SEGMENT_BYTES, max_bytes // _LEAST_SEGMENTS)
        self._sync = sync
        self._damaged = damaged
        self._wrote = wrote
        self.sequence = sequence
        # Oldest first. The last one is written.
        self._segments = list(earlier)
        self._earlier_bytes = sum(segment.size for segment in self._segments)
        self._file = -1
        self.size = 0
        self.is_resting = False
        self._resting_until = 0.0
        # Settled, but not written yet.
        self._settled: list[int] = []
        hold.watch_fork(self.leave)
        self.begin()

    @property
    def is_full(self) -> bool:
        """Whether the files have ``max_bytes``."""
        return self._earlier_bytes + self.size >= self._max_bytes

    @property
    def total_size(self) -> int:
        """The bytes of all files."""
        return self._earlier_bytes + self.size

    @property
    def unsettled(self) -> int:
        """The number of operations that are not settled, in all files."""
        return sum(segment.unsettled for segment in self._segments)

    def write(self, kind: Kind, body: bytes, operations: int = 0) -> bool:
        """Append a record of so many operations; False if it is not in the file."""
        if self.size >= self.limit or self.is_resting:
            self.begin()
            if self.is_resting:
                return False
        # Before the write: if that is interrupted, the number is not used again.
        self.sequence = sequence = self.sequence + 1
        length = len(body)
        try:
            written = os.write(
                self._file,
                _HEAD(length, crc32(body, (sequence << 4 | kind) % PRIME), sequence, kind) + body,
            )
            if written < length + _HEAD_SIZE:
                cut(self._file, written)
                raise OSError(f"only {written} of {length + _HEAD_SIZE} bytes were written")
        except OSError as error:
            self.rest(error)
            return False
        self.size += written
        self._segments[-1].unsettled += operations
        if self._wrote is not None:
            self._wrote(kind, sequence, body)
        if self._sync is not None:
            self._sync.appended()
        return True

    def begin(self) -> None:
        """Begin the next file; or rest, if that fails."""
        if self.is_resting and monotonic() < self._resting_until:
            return
        number = self._segments[-1].number + 1 if self._segments else 1
        sequence = self.sequence
        frames: list[bytes] = []
        for kind, body in self._state():
            sequence += 1
            frames.append(frame(sequence, kind, encode(body)))
        data = b"".join(frames)
        file = -1
        try:
            file = open_file(self._hold.path / file_name(number))
            os.ftruncate(file, 0)  # an attempt that was interrupted
            if (written := os.write(file, data)) < len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
        except BaseException as error:
            if file >= 0:
                os.ftruncate(file, 0)
                os.close(file)
            if not isinstance(error, OSError):
                raise
            self.rest(error)
            return
        before, self._file = self._file, file
        if before >= 0:
            self._segments[-1].size = self.size
            self._earlier_bytes += self.size
        self._segments.append(Segment(number, self.sequence + 1, 0))
        self.sequence, self.size = sequence, len(data)
        # Beside the first records: those may be more than a file has room for.
        self.limit = self.size + self._file_bytes
        if self._sync is not None:
            self._sync.began(file, before)
        elif before >= 0:
            os.close(before)
        if self.is_resting:
            self.is_resting = False
            self._say(logging.INFO, "the journal %s is written again", self._hold.path)

    def rest(self, error: OSError) -> None:
        """Write nothing for a while, because of ``error``."""
        if not self.is_resting:
            message = (
                "the journal %s cannot be written (%s): what is recorded from now on is in memory "
                "only; the next attempt follows in %d s"
            )
            self._say(logging.WARNING, message, self._hold.path, error, _PAUSE)
        self.is_resting, self._resting_until = True, monotonic() + _PAUSE

    def settle(self, sequence: int) -> None:
        """Note that an operation needs no further request; for :meth:`write_settled`."""
        self._settled.append(sequence)
        self._segments[bisect(self._segments, sequence, key=_first) - 1].unsettled -= 1

    def write_settled(self) -> None:
        """Append what is settled, and delete the files without an operation that is not."""
        if not self._settled:
            return
        try:
            if self._file >= 0 and os.fstat(self._file).st_nlink == 0:
                self.rest(FileNotFoundError("its file was deleted"))
        except OSError as error:
            self.rest(error)
        if self.write(Kind.SETTLED, encode(self._settled)):
            self._settled = []
        if self.is_resting:
            return
        if self.is_full and not self.unsettled:
            self.begin()
        # Oldest first: a file may say how an operation in an earlier one was sent, or that it is
        # settled.
        while len(self._segments) > 1 and not self._segments[0].unsettled:
            segment = self._segments.pop(0)
            self._earlier_bytes -= segment.size
            self._delete(segment)

    def delete(self) -> None:
        """Delete all files, oldest first: nothing in them is unsettled."""
        for segment in self._segments:
            self._delete(segment)

    def _delete(self, segment: Segment) -> None:
        file = self._hold.path / file_name(segment.number)
        try:
            if segment.number in self._damaged:
                # A person may still find something in it that no program can read.
                file.rename(file.with_suffix(DAMAGED))
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            self.rest(error)

    def leave(self) -> None:
        """Write nothing more: the journal is closed, or is that of the parent of this process."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self.is_resting, self._resting_until = -1, True, float("inf")

    def _say(self, level: int, message: str, *arguments: object) -> None:
        # A handler of the log may record, too: not while this step of recording goes on.
        self._soon(partial(log, logger, level, message, *arguments))


def file_name(number: int) -> str:
    """The name of a segment."""
    return f"{number:06}.log"


def cut(file: int, written: int) -> None:
    """Cut off the last bytes, a part of a record. Not to a size that was noted: an interrupted
    write may not be in it."""
    os.ftruncate(file, os.fstat(file).st_size - written)


def _first(segment: Segment) -> int:
    return segment.first
