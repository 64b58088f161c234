"""The stored spans of a run as a tree for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

import msgspec
from rich.text import Text
from rich.tree import Tree

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.sensitive import hidden

_STYLES = {
    "pending": "dim",
    "active": "cyan",
    "complete": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "terminated": "bold magenta",
}


def run_tree(instance: AgentInstanceAnswer, spans: Iterable[AgentSpanAnswer]) -> Tree:
    """A line for the run and one for each span: name, status, duration, and its summary, or
    else payload → result.

    Below the run are its quality payloads, and below each what is flagged about it, such as what
    of its payloads does not fit.
    """
    children: dict[str | None, list[AgentSpanAnswer]] = defaultdict(list)
    # By time: ids made within one millisecond are in no order.
    ordered = sorted(spans, key=lambda span: _time(span.started_at or span.finished_at))
    known = {span.id for span in ordered}
    for span in ordered:
        parent = span.parent_span_id
        children[parent if parent in known else None].append(span)
    head = Text.assemble(("agent instance ", "bold"), _one_line(instance.id))
    _append_status(head, instance.status, instance.started_at, instance.finished_at)
    if instance.termination_reason:
        # As JSON, like the payloads: the text of others stays on the line of the run.
        reason = msgspec.json.encode(instance.termination_reason).decode()
        head.append(f"  {_printable(reason)}", style="dim")
    tree = Tree(head)
    _add_flags(tree, instance.flags)
    for name, payload in instance.quality_payloads.items():
        line = _line().append(f"quality {_one_line(name)}", style="bold")
        branch = tree.add(line.append(f"  {_quality(instance, name, payload)}", style="dim"))
        _add_flags(branch, instance.quality_flags.get(name, ()))
    # A list and no recursion: a run may be nested deeper than Python is.
    waiting = [(tree, span) for span in reversed(children[None])]
    while waiting:
        branch, span = waiting.pop()
        node = branch.add(_span_line(span))
        _add_flags(node, span.flags)
        waiting.extend((node, child) for child in reversed(children[span.id]))
    return tree


def _span_line(span: AgentSpanAnswer) -> Text:
    line = _line().append(_one_line(span.schema_name), style="bold")
    _append_status(line, span.status, span.started_at, span.finished_at)
    # What a span failed with is in its result, and in no template.
    if span.summary and span.summary.strip() and span.status != "failed":
        return line.append(f"  {_one_line(span.summary)}", style="dim")
    for mark, payload in (("  ", span.payload), (" → ", span.result_payload)):
        text = _shown(payload)
        if text not in ("null", "{}"):
            line.append(mark + _printable(text), style="dim")
    return line


def _shown(payload: msgspec.Raw) -> str:
    """A payload, without what is sensitive in it."""
    if b'"$sensitive"' not in bytes(payload):
        return bytes(payload).decode()
    try:
        return msgspec.json.encode(hidden(msgspec.json.decode(payload))).decode()
    except RecursionError:
        return "<too deep>"


def _quality(instance: AgentInstanceAnswer, name: str, payload: msgspec.Raw) -> str:
    summary = instance.quality_summaries.get(name)
    return _one_line(summary) if summary and summary.strip() else _printable(_shown(payload))


def _add_flags(node: Tree, flags: Iterable[str]) -> None:
    for flag in flags:
        node.add(_line().append(f"⚠ {_one_line(flag)}", style="yellow"))


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis", end="")


def _one_line(text: str) -> str:
    """``text`` on one line."""
    return _printable(" ".join(text.split()))


def _printable(text: str) -> str:
    """``text`` without what a terminal would obey; JSON escapes only a part of that."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _append_status(
    line: Text, status: str, started_at: str | None, finished_at: str | None
) -> None:
    line.append(f"  {_one_line(status)}", style=_STYLES.get(status))
    if started_at and finished_at:
        seconds = _time(finished_at) - _time(started_at)
        line.append(f"  {seconds * 1000:.1f} ms")


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0
