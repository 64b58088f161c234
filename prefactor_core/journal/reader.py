"""JournalReader: what a journal holds that is not settled, in its last form."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.exceptions.log import log
from prefactor_core.journal.directory import REFUSED_NAME
from prefactor_core.journal.files import file_name, open_file
from prefactor_core.journal.format import (
    DECODE_ERRORS,
    NONE,
    Aside,
    Created,
    Damage,
    Form,
    Header,
    Kind,
    Opened,
    decode_operation,
    records,
)
from prefactor_core.journal.repetition import create_of
from prefactor_core.journal.state import JournalState
from prefactor_core.operations import CreateSpan, FinishSpan, Operation

logger = logging.getLogger("prefactor_core.journal")

_SEGMENT: Final = re.compile(r"(\d{6,})\.log")
_HEADER_BYTES: Final = 4096
_TURN: Final = 1024 * 1024
"""Bytes to read until other tasks have a turn."""

_SLICE: Final = 1_000
"""Records for which the same holds, if few of them are decoded."""

_RECORD: Final = 1024
"""Bytes that take as long to read as a record without a body."""


class JournalUnreadableError(PrefactorCoreError):
    """The system does not let a file or the folder of a journal be read."""


class Entry(Struct, frozen=True, gc=False):
    """One item to send: an operation, or the start and the finish of a span in one.

    ``operation``: what goes into the request. ``original``: what was recorded, if that is another
    operation, else None. ``keys``, ``sequences``: those of the recorded operations, oldest first.
    ``is_sent``: it may have been in a request, and must not be merged with others. ``given_id``:
    whether it asks for the id of its span.
    """

    operation: Operation
    keys: tuple[str, ...]
    sequences: tuple[int, ...]
    original: Operation | None = None
    is_sent: bool = False
    given_id: bool = True


class JournalReader:
    """Reads a journal in two passes: :meth:`scan`, then :meth:`entries`. The caller holds it.

    Memory: one file, and a little for each operation that is not settled, or open span.

    ``state``: that of the journal after its last record. For each file, by number:
    ``unsettled``: how many of its operations are not settled; ``sizes``: its bytes; ``firsts``: its
    first sequence number; ``damaged``: how many records or groups of records are lost, if any;
    ``torn``: the bytes after its last record, if any: the writer died, or the disk was full.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._begin()

    def _begin(self) -> None:
        self.state = JournalState()
        self.unsettled: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.firsts: dict[int, int] = {}
        self._lasts: dict[int, int] = {}
        self.damaged: dict[int, int] = {}
        self.torn: dict[int, int] = {}

    def scan(self) -> Iterator[None]:
        """Read all files, to fill the attributes. Yield after each slice of the work.

        Raises :class:`JournalUnreadableError`, and
        :class:`~prefactor_core.journal.format.JournalVersionError` for a file of a later version.
        """
        numbers = self._numbers()
        # Most spans of a file end in it, and the next one lists the others.
        yield from self._scan(numbers, repeated=numbers[:-1])
        if self.damaged or not self.state.lists_spans:
            self._begin()
            yield from self._scan(numbers)

    def _scan(self, numbers: Iterable[int], repeated: Collection[int] = ()) -> Iterator[None]:
        state, done = self.state, 0
        apply = state.apply
        for number in numbers:
            data = self._read(number)
            if data is None:
                continue
            self.sizes[number] = len(data)
            state.begin_file(is_repeated=number in repeated)
            sequence = 0
            for record in records(data):
                if isinstance(record, Damage):
                    self._note(number, record)
                    continue
                sequence, kind, body = record
                if number not in self.firsts:
                    self.firsts[number] = sequence
                if not apply(kind, sequence, body):
                    self._lost(number)
                done += _RECORD + len(body)
                if done >= _TURN:
                    done = 0
                    yield
            self._lasts[number] = sequence
            del data  # before the next file is read
        for number, last in self._lasts.items():
            self.unsettled[number] = state.pending.count(self.firsts.get(number, 1), last)

    def entries(self) -> Iterator[Entry]:
        """The operations that were not settled when :meth:`scan` ended, in their order and last
        form; then those in files that are there since.

        Files are read as the caller goes on. One that has gone meanwhile counts as damaged.
        Raises :class:`JournalUnreadableError`.
        """
        return (entry for entry in self.entries_in_turns() if entry is not None)

    def entries_in_turns(self) -> Iterator[Entry | None]:
        """As :meth:`entries`; and None after each slice of the work without one: few operations of
        a large file may be left."""
        unsettled = {number for number, count in self.unsettled.items() if count}
        new = {number for number in self._numbers() if number not in self.unsettled}
        finishes = yield from self._merged_finishes(unsettled)
        forms, merged = self.state.forms, set[int]()
        for number in sorted(unsettled | new):
            for found in self._operations(number):
                if found is None:
                    yield None
                    continue
                sequence, operation = found
                form = forms.get(sequence)
                if sequence in merged:
                    continue
                if form is None:
                    yield Entry(operation, (operation.idempotency_key,), (sequence,))
                    continue
                finish = None
                if isinstance(operation, CreateSpan):
                    finish = finishes.get(form.sequences[-1])
                if finish is not None:
                    merged.add(form.sequences[-1])
                yield self._in_form(number, form, sequence, operation, finish)

    def _numbers(self) -> list[int]:
        """The numbers of the files, oldest first."""
        try:
            names = [file.name for file in self.path.iterdir()]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        found = [_SEGMENT.fullmatch(name) for name in names]
        return sorted(int(match[1]) for match in found if match is not None)

    def _read(self, number: int) -> bytes | None:
        """The bytes of a file; None if it has gone, which counts as damage."""
        data = _read(self.path / file_name(number))
        if data is None:
            self._lost(number)
        return data

    def _lost(self, number: int) -> None:
        self.damaged[number] = self.damaged.get(number, 0) + 1

    def _note(self, number: int, damage: Damage) -> None:
        if damage.is_tail:
            self.torn[number] = damage.end - damage.start
        else:
            self._lost(number)

    def _merged_finishes(
        self, numbers: Iterable[int]
    ) -> Generator[None, None, dict[int, FinishSpan]]:
        """Return the finishes of spans that were in one item with their start, by sequence
        number. Yield after each slice of the work."""
        pending = self.state.pending
        wanted = {
            form.sequences[1]
            for form in self.state.forms.values()
            if len(form.sequences) == 2 and form.sequences[0] in pending
        }
        finishes: dict[int, FinishSpan] = {}
        for number in numbers:
            first, last = self.firsts[number], self._lasts[number]
            if not any(first <= sequence <= last for sequence in wanted):
                continue
            for place, record in enumerate(records(self._read(number) or b"")):
                if place % _SLICE == _SLICE - 1:
                    yield
                if not isinstance(record, Damage) and record[0] in wanted:
                    with suppress(*DECODE_ERRORS):  # counted when its turn comes
                        operation = decode_operation(record[2])
                        if isinstance(operation, FinishSpan):
                            finishes[record[0]] = operation
        return finishes

    def _operations(self, number: int) -> Iterator[tuple[int, Operation] | None]:
        """The operations of a file that are not settled, with their sequence numbers; and None
        after each slice of the work without one."""
        pending, is_new = self.state.pending, number not in self.unsettled
        is_checked = not (is_new or number in self.damaged or number in self.torn)
        opened: dict[str, Opened] = {}
        found = records(self._read(number) or b"", is_checked=is_checked)
        for place, record in enumerate(found):
            if place % _SLICE == _SLICE - 1:
                yield None
            if isinstance(record, Damage):
                if is_new:
                    self._note(number, record)
                continue
            sequence, kind, body = record
            try:
                if kind == _OPENED:
                    note = _decode_opened(body)
                    opened[note.span_id] = note
                elif not is_new and sequence not in pending:
                    continue
                elif kind == _OPERATION:
                    yield sequence, decode_operation(body)
                elif kind == _CREATED:
                    created = _decode_created(body)
                    yield sequence, create_of(opened.pop(created.span_id), created)
            except (KeyError, *DECODE_ERRORS):
                self._lost(number)

    def _in_form(
        self,
        number: int,
        form: Form,
        sequence: int,
        operation: Operation,
        finish: FinishSpan | None,
    ) -> Entry:
        """The entry of an operation, and of the ``finish`` that was in one item with it."""
        keys: tuple[str, ...] = (operation.idempotency_key,)
        sequences: tuple[int, ...] = (sequence,)
        original = None
        if finish is not None and isinstance(operation, CreateSpan):
            keys, sequences = (*keys, finish.idempotency_key), form.sequences
            operation = operation.finished_by(finish)
        if form.operation != NONE:
            try:
                operation, original = decode_operation(form.operation), operation
            except DECODE_ERRORS:
                self._lost(number)
        return Entry(operation, keys, sequences, original, is_sent=True, given_id=form.given_id)


def read_header(path: Path) -> Header | None:
    """The header of a journal; None if none is readable.

    Raises :class:`~prefactor_core.journal.format.JournalVersionError` for one of a later version.
    """
    state = JournalState()
    for file in sorted(path.glob("*.log")):
        for record in records(_read(file, _HEADER_BYTES) or b""):
            if not isinstance(record, Damage) and record[1] == Kind.HEADER:
                state.apply(record[1], record[0], record[2])
                if state.header is not None:
                    return state.header
    return None


def asides(path: Path) -> Iterator[tuple[int, Aside]]:
    """The operations of a journal that are given up, with their sequence numbers, 0 if unknown.

    Damaged ones are left out, and a warning says so. Raises :class:`JournalUnreadableError`.
    """
    for record in records(_read(path / REFUSED_NAME) or b""):
        aside = None
        if not isinstance(record, Damage):
            if record[1] == Kind.HEADER:
                continue
            with suppress(*DECODE_ERRORS):
                aside = record[0], _decode_aside(record[2])
        if aside is not None:
            yield aside
        else:
            message = "a refused operation in %s is damaged, and left out"
            log(logger, logging.WARNING, message, path / REFUSED_NAME)


def _read(path: Path, most: int = -1) -> bytes | None:
    """The bytes of a file, or the first ``most`` of them; None if there is no such file."""
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb", buffering=0) as file:
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> JournalUnreadableError:
    return JournalUnreadableError(f"the journal at {path} cannot be read: {error.strerror}")


_OPERATION: Final = int(Kind.OPERATION)
_OPENED: Final = int(Kind.OPENED)
_CREATED: Final = int(Kind.CREATED)

_decode_opened: Final = msgspec.json.Decoder(Opened).decode
_decode_created: Final = msgspec.json.Decoder(Created).decode
_decode_aside: Final = msgspec.json.Decoder(Aside).decode
