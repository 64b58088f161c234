"""The stored spans of a run as a tree for the terminal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, cast

import msgspec
from rich.text import Text
from rich.tree import Tree

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.schema_registry.sensitive import hidden

_MOST_CHARACTERS: Final = 1_000

_STYLES = {
    "pending": "dim",
    "active": "cyan",
    "complete": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "terminated": "bold magenta",
}


def run_tree(
    instance: AgentInstanceAnswer,
    spans: Iterable[AgentSpanAnswer],
    most: int | None = _MOST_CHARACTERS,
) -> Tree:
    """A line for the run and one for each span: name, status, duration, and its summary, or
    else payload → result.

    Below the run are its quality payloads, and below each what is flagged about it, such as what
    of its payloads does not fit.

    ``most``: characters that are shown of each text and payload, as more fit on no line; None:
    all of them.
    """
    children: dict[str | None, list[AgentSpanAnswer]] = defaultdict(list)
    # By time: ids made within one millisecond are in no order.
    ordered = sorted(spans, key=lambda span: _time(span.started_at or span.finished_at))
    known = {span.id for span in ordered}
    for span in ordered:
        parent = span.parent_span_id
        children[parent if parent in known else None].append(span)
    head = Text.assemble(("agent instance ", "bold"), one_line(instance.id, most))
    _append_status(head, instance.status, instance.started_at, instance.finished_at)
    if instance.termination_reason:
        # As JSON, like the payloads: the text of others stays on the line of the run.
        reason = msgspec.json.encode(instance.termination_reason).decode()
        head.append(f"  {_printable(reason, most)}", style="dim")
    tree = Tree(head)
    _add_flags(tree, instance.flags, most)
    for name, payload in instance.quality_payloads.items():
        line = _line().append(f"quality {one_line(name, most)}", style="bold")
        branch = tree.add(line.append(f"  {_quality(instance, name, payload, most)}", style="dim"))
        _add_flags(branch, instance.quality_flags.get(name, ()), most)
    # A list and no recursion: a run may be nested deeper than Python is.
    waiting = [(tree, span) for span in reversed(children[None])]
    while waiting:
        branch, span = waiting.pop()
        node = branch.add(_span_line(span, most))
        _add_flags(node, span.flags, most)
        waiting.extend((node, child) for child in reversed(children[span.id]))
    return tree


def tree_lines(tree: Tree) -> Iterator[tuple[Text, int]]:
    """The lines of ``tree``, whole, and how many characters of each are its branches. (What is
    deeper than the console is wide is lost where the console prints it.)"""
    waiting = [(tree, "", "")]
    while waiting:
        node, branches, below = waiting.pop()
        yield Text.assemble(branches, cast("Text", node.label)), len(branches)
        marks = [("├── ", "│   ")] * (len(node.children) - 1) + [("└── ", "    ")]
        waiting += [
            (child, below + mark, below + blank)
            for child, (mark, blank) in zip(reversed(node.children), reversed(marks), strict=False)
        ]


def _span_line(span: AgentSpanAnswer, most: int | None) -> Text:
    line = _line().append(one_line(span.schema_name, most), style="bold")
    _append_status(line, span.status, span.started_at, span.finished_at)
    # What a span failed with is in its result, and in no template.
    if span.summary and span.summary.strip() and span.status != "failed":
        return line.append(f"  {one_line(span.summary, most)}", style="dim")
    for mark, payload in (("  ", span.payload), (" → ", span.result_payload)):
        text = _shown(payload, most)
        if text not in ("null", "{}"):
            line.append(mark + text, style="dim")
    return line


def _shown(payload: msgspec.Raw, most: int | None) -> str:
    """A payload, without what is sensitive in it."""
    content = bytes(payload)
    if b'"$sensitive"' in content:
        try:
            content = msgspec.json.encode(hidden(msgspec.json.decode(content)))
        except RecursionError:
            return "<too deep>"
    # A character has four bytes at most, and the last one may be cut. What does not fit is not
    # decoded: of a thousand large payloads that takes its time.
    enough = None if most is None else 4 * (most + 1)
    return _printable(content[:enough].decode(errors="ignore"), most)


def _quality(
    instance: AgentInstanceAnswer, name: str, payload: msgspec.Raw, most: int | None
) -> str:
    summary = instance.quality_summaries.get(name)
    return one_line(summary, most) if summary and summary.strip() else _shown(payload, most)


def _add_flags(node: Tree, flags: Iterable[str], most: int | None) -> None:
    for flag in flags:
        node.add(_line().append(f"⚠ {one_line(flag, most)}", style="yellow"))


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis", end="")


def one_line(text: str, most: int | None = _MOST_CHARACTERS) -> str:
    """``text`` on one line, cut at ``most`` characters, without what a terminal would obey."""
    return _printable(" ".join(text.split()), most)


def _printable(text: str, most: int | None) -> str:
    """``text``, cut, without what a terminal would obey; JSON escapes only a part of that."""
    if most is not None and len(text) > most:
        text = f"{text[:most]}…"
    return text if text.isprintable() else re.sub("[^ -~]", _replaced, text)


def _replaced(character: re.Match[str]) -> str:
    return character[0] if character[0].isprintable() else "\N{REPLACEMENT CHARACTER}"


def _append_status(
    line: Text, status: str, started_at: str | None, finished_at: str | None
) -> None:
    line.append(f"  {one_line(status)}", style=_STYLES.get(status))
    if started_at and finished_at:
        seconds = _time(finished_at) - _time(started_at)
        line.append(f"  {seconds * 1000:.1f} ms")


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0
