"""The tree of a run as a little HTML, for notebooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from prefactor_core.models.duration import duration_text
from prefactor_core.models.lifecycle import OPEN

if TYPE_CHECKING:
    from prefactor_core.models import AgentInstance
    from prefactor_core.recording.span_record import SpanRecord

MOST_SPANS: Final = 100
"""The spans that are shown; the others are counted."""

MOST_CHARACTERS: Final = 100
"""The characters that are shown of a text."""

_COLORS: Final = {
    "failed": "#c22",
    "cancelled": "#a60",
    "terminated": "#a0a",
    "active": "#07a",
    "open": "#07a",
}


class SpanLine(NamedTuple):
    """A span: its depth in the tree, from 0; and the times between which it was active."""

    depth: int
    name: str
    status: str
    started_at: datetime | None = None
    finished_at: datetime | None = None
    text: str = ""


def run_html(run: SpanLine, spans: Iterable[SpanLine], note: str = "") -> str:
    """A run and its ``spans``, each after its parent; ``note``: a line below them.

    All text is escaped. The HTML is bounded, whatever the run holds.
    """
    waiting = iter(spans)
    parts = [_line(run)]
    depth = -1
    for span in islice(waiting, MOST_SPANS):
        parts.append(
            "<ul>" if span.depth > depth else "</li>" + "</ul></li>" * (depth - span.depth)
        )
        parts.append(f"<li>{_line(span)}")
        depth = span.depth
    parts.append("</li></ul>" * (depth + 1))
    notes = [f"and {others} more spans"] if (others := sum(1 for _ in waiting)) else []
    if note:
        notes.append(note)
    parts += [f"<p><small>{escape(text)}</small></p>" for text in notes]
    return f"<div>{''.join(parts)}</div>"


def open_run_html(
    instance: AgentInstance, spans: Iterable[SpanRecord], *, recorded: bool, reason: str | None
) -> str:
    """A run of this process, and ``spans``: its open ones, in the order of their opening.

    A client keeps no span that has ended, and no payload that was recorded. ``reason``: why the API
    has terminated the run, if it has.
    """
    if recorded:
        note = (
            "Spans that have ended are not kept in memory. They are where the run is recorded: "
            f"python -m prefactor_core tree {instance.id}"
        )
    else:
        note = "This run is not recorded."
    run = SpanLine(
        0,
        f"agent instance {instance.id}",
        instance.status if reason is None else "terminated",
        instance.started_at,
        instance.finished_at,
        reason or "",
    )
    return run_html(run, _open_lines(spans), note)


def _open_lines(spans: Iterable[SpanRecord]) -> Iterator[SpanLine]:
    below: dict[SpanRecord | None, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        parent = span.parent
        below[parent if parent is not None and parent.status in OPEN else None].append(span)
    # A stack, not recursion: spans may be nested deeper than Python's recursion limit.
    waiting = [(0, span) for span in reversed(below[None])]
    while waiting:
        depth, span = waiting.pop()
        yield SpanLine(depth, span.schema_name, "open")
        waiting += [(depth + 1, child) for child in reversed(below[span])]


def _line(line: SpanLine) -> str:
    status = f'<span style="color: {_COLORS.get(line.status, "inherit")}">{line.status}</span>'
    parts = [f"<b>{_shown(line.name)}</b>", status]
    if line.started_at is not None and line.finished_at is not None:
        parts.append(duration_text((line.finished_at - line.started_at).total_seconds()))
    if line.text:
        parts.append(f"<code>{_shown(line.text)}</code>")
    return " ".join(parts)


def _shown(text: str) -> str:
    """``text`` on one line, cut and escaped."""
    # A lone surrogate is no character of any page.
    line = " ".join(text[: 2 * MOST_CHARACTERS].encode(errors="replace").decode().split())
    is_cut = len(line) > MOST_CHARACTERS or len(text) > 2 * MOST_CHARACTERS
    return escape(line[:MOST_CHARACTERS] + ("…" if is_cut else ""))
