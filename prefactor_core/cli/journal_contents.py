"""What a journal holds, as values that a table or JSON shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import UNSET, Raw, Struct

from prefactor_core.cli.texts import visible
from prefactor_core.journal.directory import DAMAGED
from prefactor_core.journal.files import file_name
from prefactor_core.journal.format import Aside, JournalVersionError, Opened, OpenSpan
from prefactor_core.journal.reader import (
    Entry,
    JournalReader,
    JournalUnreadableError,
    asides,
    read_header,
)
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, Operation
from prefactor_core.operations.identifiers import is_pfid, milliseconds_of

_MILLISECOND = 1_000_000


class Contents(Struct, kw_only=True):
    """One journal.

    ``since``: when it was made; ``until``: the latest time in any record. ``in_use``: whether a
    process has locked it; None if that cannot be told, because of ``lock_problem``. ``damaged``:
    how many records, or groups of records, cannot be read. ``damaged_files``: files of which the
    rest was delivered, and which are kept. ``problem``: why the journal cannot be read; the counts
    are 0 then.
    """

    name: str
    in_use: bool | None
    lock_problem: str | None = None
    since: str | None = None
    until: str | None = None
    host: str | None = None
    process: int | None = None
    api_url: str | None = None
    pending: int = 0
    refused: int = 0
    open_runs: int = 0
    open_spans: int = 0
    bytes: int = 0
    damaged: int = 0
    damaged_files: list[str] = []
    problem: str | None = None

    @property
    def has_only_refused(self) -> bool:
        """Whether nothing stays if what was refused goes."""
        return not (self.pending or self.open_runs or self.open_spans) and not (
            self.damaged or self.damaged_files or self.problem
        )


def read(
    journal: Path, in_use: bool | str, on_progress: Callable[[int, int], object]
) -> tuple[Contents, JournalReader]:
    """Read a journal; ``on_progress()`` gets the bytes that are read, and all.

    ``in_use``: whether a process has it, or why that cannot be told.
    """
    reader = JournalReader(journal)
    contents = Contents(name=journal.stem, in_use=None)
    if isinstance(in_use, str):
        contents.lock_problem = in_use
    else:
        contents.in_use = in_use
    with suppress(OverflowError):  # a time after the year 9999, in a name that is a person's
        if is_pfid(contents.name):
            contents.since = time_of(milliseconds_of(contents.name) * _MILLISECOND)
    contents.bytes = sum(_sizes(journal))
    contents.damaged_files = damaged_files(journal)
    try:
        for _ in reader.scan():
            on_progress(sum(reader.sizes.values()), contents.bytes)
        contents.refused = sum(1 for _ in asides(journal))
        header = read_header(journal)
    except (JournalVersionError, JournalUnreadableError) as error:
        contents.problem = str(error)
        return contents, reader
    state = reader.state
    if header is not None:
        contents.host, contents.process = header.host, header.process
        contents.api_url = header.api_url
    contents.until = time_of(state.last_time) if state.last_time else None
    contents.pending = len(state.pending)
    contents.open_runs = len(state.runs)
    contents.open_spans = sum(1 for _ in state.open_spans())
    # A living process deletes files that are done with, and may be in the middle of a record.
    contents.damaged = sum(
        count for number, count in reader.damaged.items() if (journal / file_name(number)).exists()
    ) + (0 if contents.in_use else len(reader.torn))
    return contents, reader


def damaged_files(journal: Path) -> list[str]:
    """The names of the files that are kept, as a part of them cannot be read."""
    return sorted(file.name for file in journal.glob(f"*{DAMAGED}"))


def document(contents: Contents, reader: JournalReader, payloads: bool) -> dict[str, object]:
    """All that a journal holds, for JSON; with ``payloads`` or without.

    There may be much of it: lists are iterators.
    """
    is_readable = contents.problem is None
    entries = reader.entries() if is_readable else ()
    kept = asides(reader.path) if is_readable else ()
    state = reader.state
    # Of an open span whose create is recorded, the state has no schema name. The create may be
    # pending: it is read before the open spans are.
    names: dict[str, str] = {}

    def pending() -> Iterator[dict[str, object]]:
        for entry in entries:
            operation = entry.operation
            if isinstance(operation, CreateSpan) and operation.span_id in state.spans:
                names[operation.span_id] = operation.schema_name
            yield _pending(entry, payloads)

    return {
        "journal": contents,
        "pending": pending(),
        "refused": (_refused(aside, payloads) for _, aside in kept),
        "open_runs": (
            {
                "instance_id": run.instance_id,
                "status": run.status,
                "started_at": _time_or_none(run.started_at),
            }
            for run in state.runs.values()
        ),
        "open_spans": (
            _open_span(span, names.get(span.span_id), payloads) for span in state.open_spans()
        ),
    }


def _pending(entry: Entry, payloads: bool) -> dict[str, object]:
    return {
        **_fields(entry.operation, payloads),
        "sequences": entry.sequences,
        "bytes": entry.operation.size,
        "sent": entry.is_sent,
        "changed": entry.original is not None,
    }


def _refused(aside: Aside, payloads: bool) -> dict[str, object]:
    return {
        **_fields(aside.operation, payloads),
        "reason": aside.reason,
        "error": aside.error,
        "at": time_of(aside.at),
    }


def _open_span(
    span: Opened | OpenSpan, schema_name: str | None, payloads: bool
) -> dict[str, object]:
    """``schema_name``: of a span whose create is recorded, if it is known."""
    at, status = None, SpanStatus.PENDING
    if isinstance(span, Opened):
        schema_name, at = span.schema_name, span.created_at
    elif span.started_at is not None:
        at, status = span.started_at, SpanStatus.ACTIVE
    fields: dict[str, object] = {"span_id": span.span_id, "instance_id": span.instance_id}
    if schema_name is not None:
        fields["schema_name"] = schema_name
    fields |= {"status": status, "since": _time_or_none(at)}
    if payloads and isinstance(span, Opened):
        fields["payload"] = Raw(visible(span.payload))
    return fields


def time_of(nanoseconds: int) -> str:
    """A time for people and programs: ISO 8601, in UTC, to the millisecond."""
    return to_datetime(nanoseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time_or_none(nanoseconds: int | None) -> str | None:
    return None if nanoseconds is None else time_of(nanoseconds)


def _fields(operation: Operation, payloads: bool) -> dict[str, object]:
    fields: dict[str, object] = {"operation_type": operation.type.name}
    for name, value in msgspec.structs.asdict(operation).items():
        if isinstance(value, Raw):
            if payloads:
                fields[name] = Raw(visible(value))
        elif name in ("timestamp", "finished_at") and value is not None:
            fields[name] = time_of(value)
        elif value is not UNSET:
            fields[name] = value
    return fields


def _sizes(folder: Path) -> Iterator[int]:
    """The sizes of the files that are there; a living process deletes some meanwhile."""
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                yield file.stat().st_size
