"""A journal that a test writes: with a clock, and files as small as the test asks for."""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

import msgspec
from support.journal_files import HEADER, NOON, RESULT, create, opened

from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import Damage, Kind, records
from prefactor_core.journal.reader import Entry, JournalReader
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, Operation

LARGE = 1 << 30
PAUSE = 5.0


@dataclass(eq=False)
class Item:
    """An item of a request."""

    operation: Operation
    keys: tuple[str, ...]
    is_changed: bool = False
    given_id: bool = True
    noted: object = None


def item(operation: Operation, **fields: bool) -> Item:
    return Item(operation, (operation.idempotency_key,), **fields)


def recorded(span: str, parent: str | None = None) -> CreateSpan:
    """The create of a span that has ended."""
    return create(span, parent, status=SpanStatus.COMPLETE, finished_at=NOON + 1, result=RESULT)


@dataclass
class Writing:
    """A journal in ``folder``. ``now``: its clock. ``open``: the spans in its state."""

    folder: Path
    max_bytes: int = LARGE
    synchronise: Callable[[int], None] | None = None
    soon: Callable[[Callable[[], object]], object] = lambda call: call()
    now: float = 0.0
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        directory = JournalDirectory(self.folder)
        directory.open()
        self.hold = directory.create()
        self.lock = RLock()
        self.journal = JournalWriter(
            self.hold,
            HEADER,
            self.lock,
            self.soon,
            state=self._state,
            max_bytes=self.max_bytes,
            synchronise=self.synchronise,
            clock=lambda: self.now,
        )

    def _state(self) -> Iterable[tuple[Kind, object]]:
        yield from [(Kind.OPENED, opened(span)) for span in self.open]
        yield Kind.BEAT, NOON

    def open_span(self, span: str) -> None:
        """Note an open span."""
        self.journal.opened(*msgspec.structs.astuple(opened(span)))
        self.open.append(span)

    def end_span(self, span: str) -> CreateSpan:
        """Record the create of an open span, as one that has ended."""
        operation = recorded(span)
        self.journal.append(operation)
        self.open.remove(span)
        return operation

    def settle(self, *operations: Operation) -> None:
        self.journal.settled([item(operation) for operation in operations])

    def give(self, *operations: Operation) -> None:
        for operation in operations:
            self.journal.append(operation)

    @property
    def files(self) -> list[Path]:
        """The segments, oldest first."""
        return sorted(self.hold.path.glob("0*.log"))

    def records(self) -> list[tuple[int, int, bytes]]:
        """All records that are whole, in the order of the files."""
        found = [record for file in self.files for record in records(file.read_bytes())]
        return [record for record in found if not isinstance(record, Damage)]

    def read(self) -> tuple[JournalReader, list[Entry]]:
        """What a reader finds. Nothing may be damaged."""
        reader = JournalReader(self.hold.path)
        for _ in reader.scan():
            pass
        entries = [*reader.entries()]
        assert (reader.damaged, reader.torn) == ({}, {})
        return reader, entries

    def operations(self) -> list[Operation]:
        """The operations that a reader finds, in order."""
        return [entry.operation for entry in self.read()[1]]


@contextmanager
def room_in_files(size: int) -> Generator[None]:
    """No file of this process grows beyond ``size``: a write is cut short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
