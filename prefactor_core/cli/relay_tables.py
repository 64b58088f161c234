"""The tables of the commands about relays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from prefactor_core.cli.table import Column, Row, print_heading, print_table
from prefactor_core.cli.terminal import say
from prefactor_core.cli.texts import one_line, time_of
from prefactor_core.models.clock import to_datetime
from prefactor_core.relay.entry import milliseconds_of_entry
from prefactor_core.relay.refused import RefusedOperation
from prefactor_core.relay.status import RelaysStatus

_SHARDS: Final = (
    Column("shard  relay"),
    Column("waiting", is_number=True),
    Column("pending", is_number=True),
    Column("oldest", is_number=True),
)
_RELAYS: Final = (
    Column("relay"),
    Column("shards", is_number=True),
    Column("last announcement", is_number=True),
)
_NO_ERROR: Final = "given up with its run or parent span"
_REFUSED: Final = (Column("refused"), Column("reason"), Column("age", is_number=True))


def print_status(status: RelaysStatus) -> None:
    """Print the shards, the relays, and the totals."""
    to = "" if status.api is None else f", to {one_line(status.api)}"
    print_heading(f"{status.redis}, prefix {status.prefix}{to}")
    rows = [
        Row(
            (
                f"{shard.shard:>5}  {_name(shard.owner or '-')}",
                f"{shard.waiting:,}",
                f"{shard.pending:,}",
                age_text(shard.age),
            )
        )
        for shard in status.shards
    ]
    print_table(_SHARDS, rows)
    if status.relays:
        print_heading("")
        relays = [
            Row((_name(relay.name), str(len(relay.shards)), age_text(relay.age)))
            for relay in status.relays
        ]
        print_table(_RELAYS, relays)
    waiting = sum(shard.waiting for shard in status.shards)
    pending = sum(shard.pending for shard in status.shards)
    say(f"\n{_count(waiting, 'entry', 'entries')} waiting, {pending:,} pending")
    say(f"{len(status.relays) or 'no'} relay{'' if len(status.relays) == 1 else 's'} alive")
    said = f", oldest heartbeat {age_text(status.heartbeat_age)} ago" if status.agents else ""
    say(f"{_count(status.agents, 'agent', 'agents')}{said}")
    said = f", oldest {age_text(status.refused_age)} ago: see relay refused"
    refused = _count(status.refused, "operation", "operations")
    say(f"{refused} refused{said if status.refused else ''}")


def print_refused(found: Sequence[dict[str, Any]]) -> None:
    """Print refused operations, and how many there are. ``found``: what is printed as JSON."""
    now = time.time()
    rows: list[Row] = []
    for each in found:
        cells = (
            each["operation_type"],
            one_line(each["reason"]),
            age_text(now - time_of(each["at"])),
        )
        span = "" if each["span_id"] is None else f" span {each['span_id']}"
        run = each["instance_id"] or "?"
        rows.append(Row(cells, one_line(f"run {run}{span}: {each['error'] or _NO_ERROR}")))
    print_table(_REFUSED, rows, below="run, span, error")
    say(f"{len(rows)} refused operation{'' if len(rows) == 1 else 's'}")


def document(refused: RefusedOperation) -> dict[str, Any]:
    """A refused operation as JSON, without its payloads."""
    operation = refused.operation
    return {
        "id": refused.id,
        "at": to_datetime(milliseconds_of_entry(refused.id) * 1_000_000).isoformat(),
        "operation_type": "unreadable" if operation is None else operation.type.name,
        "instance_id": None if operation is None else operation.instance_id,
        "span_id": refused.span_id,
        "reason": refused.reason,
        "error": refused.error,
        "agent": refused.agent,
    }


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _name(holder: str) -> str:
    """A relay's name, without the addition that tells two of one name apart."""
    return one_line(holder.partition("/")[0])


def age_text(seconds: float | None) -> str:
    """An age for a person; empty for none."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
