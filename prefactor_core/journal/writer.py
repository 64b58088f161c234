"""JournalWriter: appends what is recorded, and what becomes of it, to one journal."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from threading import RLock
from time import time_ns

from msgspec import UNSET, Raw

from prefactor_core.exceptions.log import log
from prefactor_core.journal.base import Item
from prefactor_core.journal.directory import REFUSED_NAME, Hold
from prefactor_core.journal.disk_sync import DiskSync
from prefactor_core.journal.files import open_file
from prefactor_core.journal.format import (
    NONE,
    Aside,
    Created,
    Discarded,
    Form,
    Header,
    Identified,
    Kind,
    Opened,
    Refused,
    encode,
    frame,
)
from prefactor_core.journal.segments import Segment, Segments, State, cut
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, Operation, RegisterAgentInstance

logger = logging.getLogger("prefactor_core.journal")


class JournalWriter:
    """Writes the journal that ``hold`` has locked; the methods are those of
    :class:`~prefactor_core.journal.base.Journal`.

    Each call appends at most one record, under ``lock``. An exception from outside, of a signal
    handler say, may interrupt any of them: an operation may then be in the journal although its
    recording did not happen. For a restart it has happened.

    ``state``: the records at the beginning of each further file, which make a reader independent of
    earlier ones; to be set before anything is recorded. ``soon`` and the arguments after it: see
    :class:`~prefactor_core.journal.segments.Segments`.
    ``synchronise``: brings a file to the disk; see
    :class:`~prefactor_core.journal.disk_sync.DiskSync`. None: nothing does.
    ``unwritten``: how many operations are not in the journal, because it could not be written.
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
    ) -> None:
        self._hold = hold
        self._header = header
        self._lock = lock
        self.state = state
        self._soon = soon
        self._max_bytes = max_bytes
        self._sync = (
            None if synchronise is None else DiskSync(hold.path, soon, self._rewrite, synchronise)
        )
        # The sequence numbers of the operations that are not settled, by idempotency key.
        self._pending: dict[str, int] = {}
        # The payloads in the OPENED records of the newest file: the CREATED need not repeat them.
        self._payloads: dict[str, Raw] = {}
        self._aside_bytes = 0
        self.unwritten = 0
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
        )

    @property
    def is_full(self) -> bool:
        """Whether the files have ``max_bytes``."""
        return self._segments.is_full

    @property
    def is_resting(self) -> bool:
        """Whether it cannot be written."""
        return self._segments.is_resting

    @property
    def name(self) -> str:
        """The path of its folder."""
        return str(self._hold.path)

    @property
    def bytes_on_disk(self) -> int:
        """The bytes of all files, without those of refused operations."""
        return self._segments.total_size

    @property
    def pending(self) -> int:
        """The number of operations in the journal that are not settled."""
        return self._segments.unsettled

    def append(self, operation: Operation) -> None:
        """Append a recorded operation."""
        segments, written = self._segments, False
        if type(operation) is CreateSpan and operation.span_id in self._payloads:
            if segments.size >= segments.limit:
                segments.begin()  # a CREATED belongs in the file of its OPENED
            if self._payloads.pop(operation.span_id, None) is operation.payload:
                result = operation.result_payload
                body = encode(
                    Created(
                        operation.span_id,
                        operation.parent_span_id,
                        operation.timestamp,
                        operation.status,
                        operation.finished_at,
                        NONE if result is UNSET else result,
                    )
                )
                written = segments.write(Kind.CREATED, body, 1)
            else:
                written = segments.write(Kind.OPERATION, encode(operation), 1)
        else:
            written = segments.write(Kind.OPERATION, encode(operation), 1)
        if not written:
            self.unwritten += 1
            return
        key = operation.idempotency_key
        if key in self._pending:
            # An interrupted call was made again, or a caller gave an id twice.
            segments.settle(self._pending[key])
        self._pending[key] = segments.sequence

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
        body = encode((span_id, instance_id, schema_name, parent_span_id, created_at, payload))
        if self._segments.write(Kind.OPENED, body):
            self._payloads[span_id] = payload

    def discarded(self, span_id: str, parent_span_id: str | None) -> None:
        """Append that an opened span is not recorded."""
        if self._payloads.pop(span_id, None) is not None:
            self._segments.write(Kind.DISCARDED, encode(Discarded(span_id, parent_span_id)))

    def identified(self, instance_id: str, span_id: str | None, api_id: str) -> None:
        """Append the API's id of a run, or of a span."""
        with self._lock:
            body = encode(Identified(instance_id, span_id, api_id))
            self._segments.write(Kind.IDENTIFIED, body)

    def beat(self) -> None:
        """Append that the process lives."""
        with self._lock:
            self._segments.write(Kind.BEAT, encode(time_ns()))

    def resumed(self, keys: Iterable[str], sequences: Iterable[int]) -> None:
        """Take over operations of an adopted journal, which are sent next."""
        for key, sequence in zip(keys, sequences, strict=True):
            self._pending[key] = sequence

    def sending(self, items: Iterable[Item]) -> None:
        """Append how items stand in a request, where a restart could not tell."""
        with self._lock:
            forms = [form for item in items if (form := self._new_form(item)) is not None]
            if forms:
                self._segments.write(Kind.SENDING, encode(forms))

    def _new_form(self, item: Item) -> Form | None:
        operation, given_id, keys = item.operation, item.given_id, item.keys
        noted, item.noted = item.noted, (operation, given_id)
        if isinstance(noted, tuple) and noted[0] is operation and noted[1] == given_id:
            return None
        sequences = tuple([self._pending[key] for key in keys if key in self._pending])
        is_whole = item.is_changed or len(sequences) < len(keys)
        may_merge = len(keys) > 1 or (
            type(operation) is CreateSpan and operation.status is SpanStatus.ACTIVE
        )
        if not sequences or not (noted or is_whole or may_merge or not given_id):
            return None
        return Form(sequences, given_id, Raw(encode(operation)) if is_whole else NONE)

    def settled(self, items: Iterable[Item]) -> None:
        """Append that items need no further request, and delete the files that are done with."""
        with self._lock:
            for item in items:
                for sequence in self._pop(item.keys):
                    self._segments.settle(sequence)
            self._segments.write_settled()

    def withdrawn(self, operation: Operation) -> None:
        """Append that an operation is dropped that was just appended."""
        with self._lock:
            for sequence in self._pop([operation.idempotency_key]):
                self._segments.settle(sequence)

    def set_aside(self, item: Item, reason: str, error: str | None) -> None:
        """Append an item that is given up to the file of those, then that it is settled."""
        operation = item.operation
        with self._lock:
            sequences = self._pop(item.keys)
            sequence = sequences[0] if sequences else 0
            body = encode(Aside(reason=reason, error=error, at=time_ns(), operation=operation))
            self._keep_aside(frame(sequence, Kind.REFUSED, body))
            span_id, parent_id = (
                (operation.span_id, operation.parent_span_id)
                if isinstance(operation, CreateSpan)
                else (None, None)
            )
            refused = Refused(
                sequence,
                reason,
                operation.instance_id,
                span_id,
                parent_id,
                isinstance(operation, RegisterAgentInstance),
            )
            self._segments.write(Kind.REFUSED, encode(refused))
            for sequence in sequences:
                self._segments.settle(sequence)
            self._segments.write_settled()

    async def synced(self) -> None:
        """Return when all that is appended so far is on the disk, if the mode asks for that."""
        if self._sync is not None:
            await self._sync.synced()

    def close(self) -> None:
        """Close the journal of a scope that was left in order; remove it if nothing is left."""
        with self._lock:
            self._segments.write_settled()
            is_empty = not self._segments.unsettled
            if not is_empty:
                self._segments.write(Kind.CLOSED, encode(time_ns()))
            self._close_files()
            if is_empty:
                self._segments.delete()
            if not is_empty or self._hold.has_kept_files:
                self._hold.release()
            else:
                self._hold.remove()

    def abandon(self) -> None:
        """Close the files as if the process had died."""
        self._close_files()
        self._hold.release()

    def _close_files(self) -> None:
        self._segments.leave()
        if self._sync is not None:
            self._sync.close()

    def _rewrite(self, error: OSError) -> None:
        """Append again what is not settled, to a new file: ``error`` may have lost the last one."""
        with self._lock:
            self._segments.rest(error)

    def _pop(self, keys: Sequence[str]) -> list[int]:
        return [sequence for key in keys if (sequence := self._pending.pop(key, None))]

    def _first_records(self) -> Iterator[tuple[Kind, object]]:
        # Twice: without it the rest is of use to nobody, and damage hits one record.
        yield Kind.HEADER, self._header
        yield Kind.HEADER, self._header
        self._payloads = {}
        for kind, body in self.state():
            if isinstance(body, Opened):
                self._payloads[body.span_id] = body.payload
            yield kind, body

    def _keep_aside(self, record: bytes) -> None:
        try:
            if self._aside_bytes + len(record) > self._max_bytes:
                raise OSError(f"journal_max_bytes={self._max_bytes} is reached")
            file = open_file(self._hold.path / REFUSED_NAME)
            try:
                if (written := os.write(file, record)) < len(record):
                    cut(file, written)
                    raise OSError("the disk is full")
            finally:
                os.close(file)
        except OSError as error:
            message = "an operation that is given up cannot be kept in %s: %s"
            self._soon(partial(log, logger, logging.WARNING, message, self._hold.path, error))
        else:
            self._aside_bytes += len(record)
