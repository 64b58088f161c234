"""The tables of the commands about journals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.filesize import decimal

from prefactor_core.cli.journal_contents import Contents
from prefactor_core.cli.table import Column, Row, print_heading, print_table
from prefactor_core.cli.terminal import is_terminal
from prefactor_core.cli.texts import one_line, payload_text
from prefactor_core.models.lifecycle import SpanStatus

_JOURNALS: Final = (
    Column("journal"),
    Column("pending", is_number=True),
    Column("refused", is_number=True),
    Column("open runs", is_number=True),
    Column("open spans", is_number=True),
    Column("size", is_number=True),
)
_PENDING: Final = (
    Column("pending"),
    Column("status"),
    Column("time"),
    Column("bytes", is_number=True),
    Column("sent"),
)
_REFUSED: Final = (Column("refused"), Column("status"), Column("time"), Column("reason"))
_OPEN: Final = (Column("open"), Column("status"), Column("since"))


def print_journals(found: Sequence[Contents]) -> None:
    """Print a row for each journal."""
    print_table(_JOURNALS, list(map(_journal, found)), below="written by")


def print_contents(journal: Contents, document: dict[str, Any]) -> None:
    """Print the pending operations of a journal, by run; then those refused; then what is open.

    ``document``: what is printed as JSON.
    """
    if journal.damaged or journal.damaged_files:
        kept = ", ".join(journal.damaged_files) or "none"
        print_heading(f"damaged: {journal.damaged} places cannot be read; files set aside: {kept}")
    by_run: dict[str, list[Row]] = defaultdict(list)
    for operation in document["pending"]:
        by_run[operation["instance_id"]].append(_pending(operation))
    for instance_id, rows in by_run.items():
        columns: Sequence[Column] = _PENDING
        if not any(row.cells[-1] for row in rows):
            columns, rows = columns[:-1], [Row(row.cells[:-1], row.below) for row in rows]
        _print_part(f"agent instance {instance_id}", columns, "span id", rows)
    _print_part("refused by the API", _REFUSED, "error", map(_refused, document["refused"]))
    runs_and_spans = [*document["open_runs"], *document["open_spans"]]
    title = f"open at {_time(journal.until)}, the latest time in it"
    _print_part(title, _OPEN, "id", map(_open, runs_and_spans))


def _print_part(title: str, columns: Sequence[Column], below: str, rows: Iterable[Row]) -> None:
    listed = list(rows)
    if listed:
        print_heading(f"\n{title}")
        print_table(columns, listed, below=below)


def _journal(found: Contents) -> Row:
    state, style = "dead", "dim"
    if found.in_use is None:
        state, style = "in use or dead", "yellow"
    elif found.in_use:
        state, style = "in use", "green"
    if found.damaged or found.damaged_files:
        state, style = f"{state}, damaged", "red"
    problem = f"; {found.lock_problem}" if found.lock_problem is not None else ""
    if found.problem is not None:
        cells = [found.name, *("?" * 4), decimal(found.bytes)]
        return Row(cells, one_line(f"{state}: {found.problem}{problem}"), "red")
    wrote = f"process {found.process} on {found.host}" if found.host else "an unknown process"
    since = f" since {_time(found.since)}" if found.since else ""
    api = f", for {found.api_url}" if found.api_url else ""
    counts = found.pending, found.refused, found.open_runs, found.open_spans
    return Row(
        [found.name, *map(str, counts), decimal(found.bytes)],
        one_line(f"{state}: {wrote}{since}{api}{problem}"),
        style,
    )


def _pending(operation: dict[str, Any]) -> Row:
    cells = _operation(operation), _status(operation), _time(operation["timestamp"])
    sent = "" if not operation["sent"] else "changed" if operation["changed"] else "yes"
    return Row([*cells, f"{operation['bytes']:,}", sent], _ids_and_payloads(operation))


def _refused(operation: dict[str, Any]) -> Row:
    cells = _operation(operation), _status(operation), _time(operation["at"]), operation["reason"]
    error = one_line(operation["error"] or "no error of its own")
    run = operation["instance_id"]
    return Row(cells, f"{error}; agent instance {run} {_ids_and_payloads(operation)}".rstrip())


def _open(item: dict[str, Any]) -> Row:
    since = item["started_at"] if "span_id" not in item else item["since"]
    status = item["status"]
    if status == SpanStatus.PENDING:
        # A span that is opened, and of which nothing else is recorded, has a time.
        status = "not reported yet" if since else "not started"
    if "span_id" not in item:
        return Row(("agent instance", status, _time(since)), item["instance_id"])
    name = f"{item.get('schema_name', '')} span".lstrip()
    below = f"{item['span_id']} of agent instance {item['instance_id']}"
    if "payload" in item:
        below += f"  {_payloads(item)}"
    return Row((one_line(name), status, _time(since)), below)


def _operation(operation: dict[str, Any]) -> str:
    name = operation.get("schema_name") or operation.get("agent_id") or operation.get("name") or ""
    return one_line(f"{operation['operation_type']} {name}").rstrip()


def _status(operation: dict[str, Any]) -> str:
    return str(operation.get("status", ""))


def _ids_and_payloads(operation: dict[str, Any]) -> str:
    return f"{operation.get('span_id') or ''}  {_payloads(operation)}".strip()


def _payloads(item: dict[str, Any]) -> str:
    most = 1_000 if is_terminal() else None
    values = item.get("payload"), item.get("result_payload")
    return " → ".join(payload_text(value, most) for value in values if value is not None)


def _time(text: str | None) -> str:
    """ISO 8601 in UTC, to the second."""
    return f"{text[:10]} {text[11:19]}Z" if text else ""
