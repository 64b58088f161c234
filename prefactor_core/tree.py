"""The stored spans of a run as a tree for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

import msgspec
from rich.text import Text
from rich.tree import Tree

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer

_STYLES = {
    "pending": "dim",
    "active": "cyan",
    "complete": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "terminated": "bold magenta",
}


def run_tree(instance: AgentInstanceAnswer, spans: Iterable[AgentSpanAnswer]) -> Tree:
    """A line for the run and one for each span: name, status, duration, payload → result."""
    children: dict[str | None, list[AgentSpanAnswer]] = defaultdict(list)
    # By time: ids made within one millisecond are in no order.
    ordered = sorted(spans, key=lambda span: _time(span.started_at or span.finished_at))
    known = {span.id for span in ordered}
    for span in ordered:
        parent = span.parent_span_id
        children[parent if parent in known else None].append(span)
    head = Text.assemble(("agent instance ", "bold"), instance.id)
    _append_status(head, instance.status, instance.started_at, instance.finished_at)
    if instance.termination_reason:
        # As JSON, like the payloads: the text of others stays on the line of the run.
        head.append(f"  {msgspec.json.encode(instance.termination_reason).decode()}", style="dim")
    tree = Tree(head)
    # A list and no recursion: a run may be nested deeper than Python is.
    waiting = [(tree, span) for span in reversed(children[None])]
    while waiting:
        branch, span = waiting.pop()
        node = branch.add(_span_line(span))
        waiting.extend((node, child) for child in reversed(children[span.id]))
    return tree


def _span_line(span: AgentSpanAnswer) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis", end="").append(span.schema_name, style="bold")
    _append_status(line, span.status, span.started_at, span.finished_at)
    for mark, payload in (("  ", span.payload), (" → ", span.result_payload)):
        text = bytes(payload).decode()
        if text not in ("null", "{}"):
            line.append(mark + text, style="dim")
    return line


def _append_status(
    line: Text, status: str, started_at: str | None, finished_at: str | None
) -> None:
    line.append(f"  {status}", style=_STYLES.get(status))
    if started_at and finished_at:
        seconds = _time(finished_at) - _time(started_at)
        line.append(f"  {seconds * 1000:.1f} ms")


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0
