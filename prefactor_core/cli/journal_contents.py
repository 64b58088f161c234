"""What a journal holds, as values that a table or JSON shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import UNSET, Raw, Struct

from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.journal.directory import hold
from prefactor_core.journal.format import JournalVersionError, Opened
from prefactor_core.journal.reader import (
    REFUSED_NAME,
    Entry,
    JournalReader,
    JournalUnreadableError,
    asides,
)
from prefactor_core.journal.segments import file_name
from prefactor_core.local.run_tree import visible
from prefactor_core.models.clock import to_datetime
from prefactor_core.operations import Operation
from prefactor_core.operations.identifiers import is_pfid, milliseconds_of

_MILLISECOND = 1_000_000


class Contents(Struct, kw_only=True):
    """One journal.

    ``since``: when it was made; ``until``: the latest time in any record. ``in_use``: whether a
    process has locked it; None if that cannot be told. ``damaged``: how many records, or groups of
    records, are lost. ``problem``: why it cannot be read; the counts are 0 then.
    """

    name: str
    in_use: bool | None
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
    problem: str | None = None


def is_in_use(journal: Path) -> bool | None:
    """Whether a process has locked a journal; None if that cannot be told."""
    try:
        held = hold(journal)
    except (OSError, PrefactorValueError):
        return None
    if held is not None:
        held.release()
    return held is None


def read(
    journal: Path, in_use: bool | None, on_turn: Callable[[], object]
) -> tuple[Contents, JournalReader]:
    """Read a journal; ``on_turn()`` is called after each megabyte."""
    reader = JournalReader(journal)
    contents = Contents(name=journal.stem, in_use=in_use)
    if is_pfid(contents.name):
        contents.since = time_of(milliseconds_of(contents.name) * _MILLISECOND)
    try:
        for _ in reader.scan():
            on_turn()
        contents.refused = sum(1 for _ in asides(journal))
    except (JournalVersionError, JournalUnreadableError) as error:
        contents.problem = str(error)
        return contents, reader
    state = reader.state
    if state.header is not None:
        contents.host, contents.process = state.header.host, state.header.process
        contents.api_url = state.header.api_url
    contents.until = time_of(state.last_time) if state.last_time else None
    contents.pending = len(state.pending)
    contents.open_runs = len(state.runs)
    contents.open_spans = sum(1 for _ in state.open_spans())
    contents.bytes = sum(reader.sizes.values()) + _size(journal / REFUSED_NAME)
    # A living process deletes files that are done with, and may be in the middle of a record.
    contents.damaged = sum(
        count for number, count in reader.damaged.items() if (journal / file_name(number)).exists()
    ) + (0 if in_use else len(reader.torn))
    return contents, reader


def pending(entry: Entry, payloads: bool) -> dict[str, object]:
    """A pending operation for JSON."""
    return {
        **_fields(entry.operation, payloads),
        "sequences": entry.sequences,
        "bytes": entry.operation.size,
        "sent": entry.is_sent,
        "changed": entry.original is not None,
    }


def refused(journal: Path, payloads: bool) -> Iterator[dict[str, object]]:
    """The operations for JSON that the API refused."""
    for _, aside in asides(journal):
        yield {
            **_fields(aside.operation, payloads),
            "reason": aside.reason,
            "error": aside.error,
            "at": time_of(aside.at),
        }


def open_runs(reader: JournalReader) -> Iterator[dict[str, object]]:
    """The open runs, for JSON."""
    for run in reader.state.runs.values():
        yield {
            "instance_id": run.instance_id,
            "status": run.status,
            "started_at": None if run.started_at is None else time_of(run.started_at),
        }


def open_spans(reader: JournalReader) -> Iterator[dict[str, object]]:
    """The open spans, for JSON, in the order of their opening."""
    for span in reader.state.open_spans():
        is_recorded = not isinstance(span, Opened)
        at = span.started_at if not isinstance(span, Opened) else span.created_at
        yield {
            "span_id": span.span_id,
            "instance_id": span.instance_id,
            "schema_name": None if is_recorded else span.schema_name,
            "is_recorded": is_recorded,
            "at": None if at is None else time_of(at),
        }


def time_of(nanoseconds: int) -> str:
    """A time for people and programs: ISO 8601, in UTC, to the millisecond."""
    return to_datetime(nanoseconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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


def _size(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0
