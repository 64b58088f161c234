"""JournalWriter: appends what is recorded, and what becomes of it, to one journal."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from threading import RLock
from time import monotonic, time_ns
from typing import Final

from msgspec import UNSET, Raw

from prefactor_core.exceptions.log import log
from prefactor_core.journal.base import Item
from prefactor_core.journal.directory import REFUSED_NAME, Hold
from prefactor_core.journal.disk_sync import DiskSync
from prefactor_core.journal.files import Segment, cut, open_file
from prefactor_core.journal.format import (
    NONE,
    Aside,
    Discarded,
    Form,
    Header,
    Identified,
    Kind,
    Refused,
    encode,
    frame,
)
from prefactor_core.journal.segments import Segments, State
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, Operation, RegisterAgentInstance

logger = logging.getLogger("prefactor_core.journal")

_OPERATION: Final = int(Kind.OPERATION)
_OPENED: Final = int(Kind.OPENED)
_CREATED: Final = int(Kind.CREATED)


class JournalWriter:
    """Writes the journal that ``hold`` has locked; the methods are those of
    :class:`~prefactor_core.journal.base.Journal`.

    Each call appends at most one record, under ``lock``. An exception from outside, of a signal
    handler say, may interrupt any of them: an operation may then be in the journal although its
    recording did not happen. If the process dies before it records anything else, a restart sends
    it; if the same call is made again, that one counts.

    ``state``: the records at the beginning of each further file, which make a reader independent of
    earlier ones; to be set before anything is recorded. ``soon`` and the arguments after it: see
    :class:`~prefactor_core.journal.segments.Segments`.
    ``synchronise``: brings a file to the disk; see
    :class:`~prefactor_core.journal.disk_sync.DiskSync`. None: nothing does.
    ``unwritten``: how many operations are not in the journal, because it could not be written.

    Raises OSError if the system has no thread for the synchronisation.
    """

    is_on = True

    def __init__(
        self,
        hold: Hold,
        header: Header,
        lock: RLock,
        soon: Callable[[Callable[[], object]], object],
        *,
        max_bytes: int,
        state: State = tuple,
        synchronise: Callable[[int], None] | None = None,
        earlier: Iterable[Segment] = (),
        sequence: int = 0,
        damaged: Collection[int] = (),
        wrote: Callable[[int, int, bytes], object] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._hold = hold
        self._header = header
        self._lock = lock
        self.state = state
        self._soon = soon
        self._max_bytes = max_bytes
        self._sync = None
        if synchronise is not None:
            self._sync = DiskSync(hold.path, soon, self._lost, synchronise)
            try:
                self._sync.start()
            except RuntimeError as error:
                raise OSError(str(error)) from error
        self.unwritten = 0
        self._is_closed = False
        self._not_kept = 0
        self._segments = Segments(
            hold,
            self._first_records,
            soon,
            max_bytes=max_bytes,
            sync=self._sync,
            earlier=earlier,
            sequence=sequence,
            damaged=damaged,
            wrote=wrote,
            clock=clock,
        )
        hold.watch_fork(self._leave)

    @property
    def is_full(self) -> bool:
        """Whether the files have ``max_bytes``."""
        segments = self._segments  # total_size, without the call: it runs for every operation
        return segments.size >= segments.full_at

    @property
    def is_resting(self) -> bool:
        """Whether it cannot be written."""
        return self._segments.is_resting

    @property
    def name(self) -> str:
        """The path of its folder."""
        return str(self._hold.path)

    @property
    def size(self) -> int:
        """The bytes of its files, without those of refused operations."""
        return self._segments.total_size

    @property
    def pending(self) -> int:
        """The number of operations in the journal that are not settled."""
        return self._segments.left

    def append(self, operation: Operation) -> None:
        """Append a recorded operation."""
        segments = self._segments
        if segments.size >= segments.limit:
            segments.make_room()  # a CREATED belongs in the file of its OPENED
        if (
            type(operation) is CreateSpan
            and segments.payloads.pop(operation.span_id, None) is operation.payload
        ):
            # The Created, as its fields: without the object it takes half the time.
            result = operation.result_payload
            body = encode(
                (
                    operation.span_id,
                    operation.parent_span_id,
                    operation.timestamp,
                    operation.status,
                    operation.finished_at,
                    None if result is UNSET else result,
                )
            )
            written = segments.write(_CREATED, body, operation.idempotency_key)
        else:
            written = segments.write(_OPERATION, encode(operation), operation.idempotency_key)
        if not written:
            self.unwritten += 1

    def opened(
        self,
        span_id: str,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None,
        created_at: int,
        payload: Raw,
    ) -> None:
        """Append that a span was opened."""
        segments = self._segments
        if segments.size >= segments.limit and not segments.make_room():
            return
        if segments.size >= segments.full_at:
            # Its create is most likely dropped; and in an outage, when nothing is settled and no
            # file goes, the notes of dropped spans would have no bound.
            return
        body = encode((span_id, instance_id, schema_name, parent_span_id, created_at, payload))
        # First, so that discarded() finds it if the write is interrupted.
        segments.payloads[span_id] = payload
        if not segments.write(_OPENED, body):
            segments.payloads.pop(span_id, None)

    def discarded(self, span_id: str, parent_span_id: str | None) -> None:
        """Append that an opened span is not recorded."""
        if span_id in self._segments.payloads:
            self._segments.write(Kind.DISCARDED, encode(Discarded(span_id, parent_span_id)))
            self._segments.payloads.pop(span_id, None)

    def identified(self, instance_id: str, span_id: str | None, api_id: str) -> None:
        """Append the API's id of a run, or of a span."""
        with self._lock:
            body = encode(Identified(instance_id, span_id, api_id))
            self._segments.write(Kind.IDENTIFIED, body)

    def beat(self) -> None:
        """Append that the process lives."""
        with self._lock:
            self._segments.look()
            self._segments.write(Kind.BEAT, encode(time_ns()))

    def resumed(self, keys: Iterable[str], sequences: Iterable[int]) -> None:
        """Take over operations of an adopted journal, which are sent next."""
        for key, sequence in zip(keys, sequences, strict=True):
            self._segments.pending.resume(key, sequence)

    def sending(self, items: Iterable[Item]) -> None:
        """Append how items stand in a request, where a restart could not tell."""
        with self._lock:
            forms: list[Form] = []
            noted: list[Item] = []
            for item in items:
                form = self._new_form(item)
                if form is not None:
                    forms.append(form)
                    noted.append(item)
            if forms and self._segments.write(Kind.SENDING, encode(forms)):
                for item in noted:
                    item.noted = item.operation, item.given_id

    def _new_form(self, item: Item) -> Form | None:
        operation, given_id, keys, noted = item.operation, item.given_id, item.keys, item.noted
        if isinstance(noted, tuple) and noted[0] is operation and noted[1] == given_id:
            return None
        may_merge = len(keys) > 1 or (
            type(operation) is CreateSpan and operation.status is SpanStatus.ACTIVE
        )
        is_changed = item.is_changed
        if not (noted or may_merge or is_changed or not given_id):
            return None
        pending = self._segments.pending.sequences
        sequences = tuple([pending[key] for key in keys if key in pending])
        if not sequences:
            return None
        is_whole = is_changed or len(sequences) < len(keys)
        return Form(sequences, given_id, Raw(encode(operation)) if is_whole else NONE)

    def settled(self, items: Iterable[Item]) -> None:
        """Append that items need no further request, and delete the files that are done with."""
        with self._lock:
            for item in items:
                self._segments.settle(item.keys)
            self._segments.write_settled()

    def withdrawn(self, keys: Sequence[str], operation: Operation, reason: str) -> None:
        """Append that an operation is dropped, and its run or span lost; its caller knows of it."""
        with self._lock:
            self._lose(keys, operation, reason)

    def set_aside(
        self, item: Item, reason: str, error: str | None, addressed: Operation | None = None
    ) -> None:
        """Append an item that is given up to the file of those, then that it is settled."""
        operation = item.operation
        with self._lock:
            aside = Aside(
                reason=reason, error=error, at=time_ns(), operation=addressed or operation
            )
            self._keep_aside(frame(self._sequence_of(item.keys), Kind.REFUSED, encode(aside)))
            self._lose(item.keys, operation, reason)
            self._segments.write_settled()

    def _lose(self, keys: Sequence[str], operation: Operation, reason: str) -> None:
        span_id, parent_id = (
            (operation.span_id, operation.parent_span_id)
            if isinstance(operation, CreateSpan)
            else (None, None)
        )
        refused = Refused(
            self._sequence_of(keys),
            reason,
            operation.instance_id,
            span_id,
            parent_id,
            isinstance(operation, RegisterAgentInstance),
        )
        self._segments.write(Kind.REFUSED, encode(refused))
        self._segments.settle(keys)

    def _sequence_of(self, keys: Sequence[str]) -> int:
        pending = self._segments.pending.sequences
        found = [pending[key] for key in keys if key in pending]
        return found[0] if found else 0

    async def synced(self) -> None:
        """Return when all that is appended so far is on the disk, if the mode asks for that."""
        if self._sync is not None:
            await self._sync.synced()

    def close(self) -> None:
        """Close the journal of a scope that was left in order; remove it if nothing is left.

        In the mode that synchronises, :meth:`synced` waits for the last time.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            segments = self._segments
            segments.discard_doubtful()
            segments.write_settled()
            is_empty = not segments.unsettled
            if not is_empty:
                segments.look()
                segments.write(Kind.CLOSED, encode(time_ns()))
            segments.close()
            if is_empty:
                segments.delete()
            if not is_empty or self._hold.has_kept_files:
                self._hold.release()
            else:
                self._hold.remove()

    def abandon(self) -> None:
        """Close the files as if the process had died."""
        if not self._is_closed:
            self._is_closed = True
            self._segments.close()
            self._hold.release()

    def _leave(self) -> None:
        """In a fork: everything is the parent's."""
        self._is_closed = True
        self._segments.forget()

    def _lost(self, error: OSError, number: int) -> None:
        """Go on in a new file, and write again there what is not settled in this one and later
        ones: the disk may have lost it."""
        with self._lock:
            self._segments.rest(error, number)

    def _first_records(self) -> Iterator[tuple[Kind, object]]:
        # Twice: without it the rest is of use to nobody, and damage hits one record.
        yield Kind.HEADER, self._header
        yield Kind.HEADER, self._header
        yield from self.state()

    def _keep_aside(self, record: bytes) -> None:
        try:
            file = open_file(self._hold.path / REFUSED_NAME)
            try:
                size = os.fstat(file).st_size
                if size + len(record) > self._max_bytes:
                    raise OSError(f"journal_max_bytes={self._max_bytes} is reached")
                if not size:
                    # It may be all that stays of the journal, and a person must know whose it is.
                    record = frame(0, Kind.HEADER, encode(self._header)) + record
                if (written := os.write(file, record)) < len(record):
                    cut(file, written)
                    raise OSError("the disk is full")
            finally:
                os.close(file)
        except OSError as error:
            self._not_kept += 1
            if self._not_kept & (self._not_kept - 1):
                return  # logged for the first, the second, the fourth...
            message = "an operation that is given up (number %d) cannot be kept in %s: %s"
            arguments = self._not_kept, self._hold.path, error
            self._soon(partial(log, logger, logging.WARNING, message, *arguments))
