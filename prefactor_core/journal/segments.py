"""Segments: the files of a journal that is written, one after another."""

from __future__ import annotations

import logging
import os
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from os.path import exists
from pathlib import Path
from time import monotonic
from typing import Final, TypeAlias
from zlib import crc32

from msgspec import Raw

from prefactor_core.exceptions.log import log
from prefactor_core.journal.directory import DAMAGED, Hold
from prefactor_core.journal.disk_sync import DiskSync
from prefactor_core.journal.files import Segment, close_file, cut, file_name, open_file
from prefactor_core.journal.format import HEAD, PRIME, Kind, Opened, encode, frame
from prefactor_core.journal.pending import Pending
from prefactor_core.journal.repetition import repeated

logger = logging.getLogger("prefactor_core.journal")

_HEAD: Final = HEAD.pack
_HEAD_SIZE: Final = HEAD.size
_SETTLED: Final = int(Kind.SETTLED)
_SEGMENT_BYTES: Final = 8 * 1024 * 1024
_LEAST_SEGMENTS: Final = 4
_PAUSE: Final = 5.0
"""Seconds until files that could not be written are tried again, or full ones are left."""

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT
"""A file is read again if the disk fails, or if somebody deletes it."""

State: TypeAlias = Callable[[], Iterable[tuple[Kind, object]]]
"""The first records of a file: its header, and what a reader must know that only earlier ones
tell."""


class Segments:
    """Appends records to the newest file, each by one ``write``. The caller holds a lock.

    After 8 MiB, or a quarter of ``max_bytes``, the next file begins with ``state()``. The oldest
    one is deleted as soon as all its operations are settled.

    A write that fails, or that a full disk cuts short, leaves no part of a record. The files then
    rest for five seconds: one warning says so, by ``soon``, and what is to be written meanwhile is
    not. After that a new file begins.

    An exception from outside, of a signal's handler say, may interrupt any method anywhere. No
    sequence number is used twice then, and :meth:`write` has done nothing, as far as a reader can
    see once the same operation is written again, or the journal is closed.

    ``sync``: brings the files to the disk, in a thread. ``earlier``: those of an adopted journal,
    oldest first; ``sequence``: the last number in them, or 0; ``damaged``: the numbers of those of
    them that are renamed in the end, and not deleted. ``wrote``: called with the kind, the number
    and the body of each further record. ``clock``: seconds, for the rest.

    ``size``: the bytes of the newest file. ``limit``: its size from which on :meth:`make_room`
    comes before a record; ``full_at``: from which on all files have ``max_bytes``.
    ``payloads``: those of the OPENED records in the newest file, by span.
    ``pending``: the operations that are not settled.
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
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._hold = hold
        self._state = state
        self._soon = soon
        self._max_bytes = max_bytes
        self._bytes = min(_SEGMENT_BYTES, max_bytes // _LEAST_SEGMENTS)
        self._sync = sync
        self._damaged = damaged
        self._wrote = wrote
        self._clock = clock
        self.sequence = sequence
        # Oldest first. The last one is written.
        self._segments = list(earlier)
        self._earlier_bytes = sum(segment.size for segment in self._segments)
        self._newest = Segment(max((s.number for s in self._segments), default=0), 0, 0)
        self._file = -1
        self.size = self.limit = 0
        self.full_at = max_bytes - self._earlier_bytes
        self.payloads: dict[str, Raw] = {}
        self.pending = Pending()
        self._sequences = self.pending.sequences
        # Settled, but not written yet.
        self._settled: list[int] = []
        # The number of a file from which on all that is unsettled is written again.
        self._repeat_from: int | None = None
        self._is_beginning = self.is_resting = False
        self._resting_until = self._full_until = 0.0
        self.begin()

    @property
    def total_size(self) -> int:
        """The bytes of all files."""
        return self._earlier_bytes + self.size

    @property
    def unsettled(self) -> int:
        """The number of operations that are not settled, in all files."""
        return sum(segment.unsettled for segment in self._segments) - len(self.pending.in_doubt)

    @property
    def left(self) -> int:
        """The same, without those in files that somebody has deleted."""
        paths = {self._path(segment.number): segment.unsettled for segment in self._segments}
        # Unlike Path.exists(), it raises nothing.
        lost = sum(count for path, count in paths.items() if not exists(path))  # noqa: PTH110
        return max(0, self.unsettled - lost)

    def write(self, kind: int, body: bytes, key: str = "") -> bool:
        """Append a record; False if it is not in the file. ``key``: that of an operation."""
        if key in self._sequences:
            self._given_again(key)
        if self.size >= self.limit and not self.make_room():
            return False
        length, sequence = len(body), self.sequence + 1
        size = _HEAD_SIZE + length
        head = _HEAD(length, crc32(body, (sequence << 4 | kind) % PRIME), sequence, kind)
        if sequence <= self.sequence:
            # The handler of a signal has written meanwhile. From here to the write none can run.
            return self.write(kind, body, key)
        self.sequence = sequence
        try:
            written = os.write(self._file, head + body)
            if written < size:
                self.limit = 0  # a new file follows in any case
                cut(self._file, written)
                raise OSError(f"only {written} of {size} bytes were written")
            if self._wrote is not None:
                self._wrote(kind, sequence, body)
            if self._sync is not None:
                self._sync.appended()
        except OSError as error:
            self.rest(error)
            return False
        except BaseException:
            # From outside. The record may be written. Without a call, as is the end below.
            self.size += size
            if key:
                self._newest.unsettled += 1
                self._sequences[key], self.pending.in_doubt[key] = sequence, None
            raise
        self.size += size
        if key:
            self._newest.unsettled += 1
            self._sequences[key] = sequence
        return True

    def _given_again(self, key: str) -> None:
        """Prepare for another operation with a key that is pending."""
        pending = self.pending
        if key in pending.in_doubt:
            # The same call again. On the disk first: a restart must not send both.
            self.write(_SETTLED, encode([self._sequences[key]]))
            self.settle([key])
            del pending.in_doubt[key]
        else:
            pending.give_again(key)

    def make_room(self) -> bool:
        """Begin the next file, unless the files rest; return whether there is one to write to."""
        if self._is_beginning or (self.is_resting and self._clock() < self._resting_until):
            return False
        self.begin()
        return not self.is_resting

    def begin(self) -> None:
        """Begin the next file; or rest, if that fails."""
        file = -1
        # What the handler of a signal records meanwhile is not written: it could be missing in the
        # state, and in the old file it could come too late.
        self._is_beginning, self.limit = True, 0
        try:
            segment = Segment(self._newest.number + 1, self.sequence + 1, 0)
            file = open_file(self._path(segment.number), _FLAGS)
            os.ftruncate(file, 0)  # an attempt that was interrupted
            frames, payloads = list[bytes](), dict[str, Raw]()
            for kind, body in self._state():
                frames.append(frame(segment.first + len(frames), kind, encode(body)))
                if isinstance(body, Opened):
                    payloads[body.span_id] = body.payload
            earlier, moved = self._segments, dict[str, int]()
            if self._repeat_from is not None:
                earlier, moved = self._repeat(segment, frames)
            settled, count = list(self._settled), len(self._settled)
            settled += [self._sequences[key] for key in moved]
            if settled:
                frames.append(frame(segment.first + len(frames), Kind.SETTLED, encode(settled)))
            # Not the size that is noted: an interrupted write may not be in the file.
            before_size = os.fstat(self._file).st_size if self._file >= 0 else 0
            data = b"".join(frames)
            self.sequence, size = self.sequence + len(frames), len(data)
            if (written := os.write(file, data)) < size:
                raise OSError(f"only {written} of {size} bytes were written")
        except OSError as error:
            self._give_up_beginning(file)
            self.rest(error)
            return
        except BaseException:
            self._give_up_beginning(file)
            raise
        # Without a call, so that nothing can interrupt it.
        before, was_resting = self._file, self.is_resting
        if before >= 0:
            earlier[-1].size = before_size
            self._earlier_bytes += before_size
        self._segments, self.payloads = [*earlier, segment], payloads
        self._sequences |= moved
        self._settled = self._settled[count:]
        self._file, self._newest, self.size = file, segment, size
        self.limit, self.full_at = size + self._bytes, self._max_bytes - self._earlier_bytes
        self.is_resting, self._is_beginning, self._repeat_from = False, False, None
        # One call each, which is interrupted before it or after it.
        if self._sync is not None:
            self._sync.files.append((file, segment.number))
            self._sync.appended()
        elif before >= 0:
            close_file(before)
        if was_resting:
            self._say(logging.INFO, "the journal %s is written again", self._hold.path)

    def _give_up_beginning(self, file: int) -> None:
        self._is_beginning = False
        if file >= 0:
            with suppress(OSError):
                os.ftruncate(file, 0)
            close_file(file)

    def _repeat(
        self, segment: Segment, frames: list[bytes]
    ) -> tuple[list[Segment], dict[str, int]]:
        """Add to the ``frames`` of a new segment what is not settled in the files that are lost.
        Return the earlier segments as they are after that, and the new sequence numbers by key."""
        keys = {sequence: key for key, sequence in self._sequences.items()}
        earlier = [Segment(s.number, s.first, s.size, s.unsettled) for s in self._segments]
        moved: dict[int, int] = {}
        for kind, sequence, body in repeated(self._files_to_repeat(), keys.keys(), moved):
            if sequence:
                moved[sequence] = segment.first + len(frames)
                earlier[bisect(earlier, sequence, key=_first) - 1].unsettled -= 1
            frames.append(frame(segment.first + len(frames), kind, body))
        segment.unsettled = len(moved)
        return earlier, {keys[sequence]: new for sequence, new in moved.items()}

    def _files_to_repeat(self) -> Iterator[bytes]:
        """The contents of the files that are to be written again."""
        for segment in self._segments if self.unsettled else ():
            if segment.number >= (self._repeat_from or 0):
                with suppress(OSError):
                    if segment is self._newest:
                        # By its descriptor: somebody may have deleted it.
                        yield os.pread(self._file, os.fstat(self._file).st_size, 0)
                    else:
                        yield self._path(segment.number).read_bytes()

    def rest(self, error: OSError, repeat_from: int | None = None) -> None:
        """Write nothing for a while, because of ``error``. ``repeat_from``: the number of a file
        from which on all that is unsettled is to be written again after that."""
        if repeat_from is not None:
            self._repeat_from = min(repeat_from, self._repeat_from or repeat_from)
        if not self.is_resting:
            message = (
                "the journal %s cannot be written (%s): what is recorded from now on is in memory "
                "only; the next attempt follows in %d s"
            )
            self._say(logging.WARNING, message, self._hold.path, error, _PAUSE)
        self.limit, self.is_resting = 0, True
        self._resting_until = max(self._resting_until, self._clock() + _PAUSE)

    def settle(self, keys: Iterable[str]) -> None:
        """Note that operations need no further request; for :meth:`write_settled`."""
        for key in keys:
            found = self.pending.oldest(key)
            if found is not None:
                segment = self._segment_of(found)
                self.pending.remove(key)
                # Without a call, as the end of that.
                segment.unsettled -= 1
                self._settled += [found]

    def _segment_of(self, sequence: int) -> Segment:
        if sequence >= self._newest.first:
            return self._newest
        return self._segments[bisect(self._segments, sequence, key=_first) - 1]

    def write_settled(self) -> None:
        """Append what is settled, and delete the files without an operation that is not."""
        if not self._settled or self._file < 0:
            return
        self.look()
        settled = self._settled
        if self.write(_SETTLED, encode(settled)):
            self._settled = self._settled[len(settled) :]
        if self.size >= self.full_at and not self._newest.unsettled:
            self._leave_full_file()
        if self._sync is not None and self._sync.through < self._newest.number:
            return  # what the newest file repeats is not on the disk yet
        # Oldest first: a file may say how an operation in an earlier one was sent, or that it is
        # settled.
        while not self._segments[0].unsettled and self._segments[0] is not self._newest:
            segment, *self._segments = self._segments
            self._earlier_bytes -= segment.size
            self.full_at += segment.size
            self._delete(segment)

    def _leave_full_file(self) -> None:
        """Begin the next file before the newest one has its size: notes of spans that have ended
        since may fill the files."""
        # Not each time: spans that are still open may fill the next one as well.
        if self._clock() >= self._full_until and self.make_room():
            self._full_until = self._clock() + _PAUSE

    def look(self) -> None:
        """Rest if somebody has deleted the newest file: writes to it succeed, and are lost."""
        try:
            if self._file >= 0 and not self.is_resting and not os.fstat(self._file).st_nlink:
                self.rest(FileNotFoundError("its file was deleted"), self._newest.number)
        except OSError as error:
            self.rest(error)

    def discard_doubtful(self) -> None:
        """Settle the operations whose recording was interrupted, and not repeated."""
        self.settle(self.pending.in_doubt)
        self.pending.in_doubt.clear()

    def delete(self) -> None:
        """Delete all files, oldest first: nothing in them is unsettled."""
        for segment in self._segments:
            self._delete(segment)
        self._earlier_bytes = self.size = 0

    def _delete(self, segment: Segment) -> None:
        file = self._path(segment.number)
        try:
            if segment.number in self._damaged:
                # A person may still find something in it that no program can read.
                file.rename(file.with_suffix(DAMAGED))
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            self.rest(error)

    def close(self) -> None:
        """Write nothing more."""
        if self._sync is not None:
            self._stop()
            self._sync.close()
        else:
            self.forget()

    def forget(self) -> None:
        """Close the files and write nothing more; also in a fork, where they are the parent's."""
        files = [self._file] if self._sync is None else [file for file, _ in self._sync.files]
        self._stop()
        if self._sync is not None:
            self._sync.files.clear()
        for file in files:
            if file >= 0:
                close_file(file)

    def _stop(self) -> None:
        self._file, self.is_resting = -1, True
        self.limit, self._resting_until = 0, float("inf")

    def _path(self, number: int) -> Path:
        return self._hold.path / file_name(number)

    def _say(self, level: int, message: str, *arguments: object) -> None:
        # A handler of the log may record, too: not while this step of recording goes on.
        self._soon(partial(log, logger, level, message, *arguments))


def _first(segment: Segment) -> int:
    return segment.first
