"""run_tree: the stored spans of a run as a tree for the terminal."""

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
    """A line for the run and one for each span: name, status, duration, and the summary or else
    payload → result.

    The quality payloads of the run stand below it. Flags, such as a payload that does not fit its
    schema, stand below the line that they are about.

    ``most``: characters shown of each text and payload, more than fit on a line; None: all.
    """
    children: dict[str | None, list[AgentSpanAnswer]] = defaultdict(list)
    # By time: ids made within one millisecond have no order.
    ordered = sorted(spans, key=lambda span: _time(span.started_at or span.finished_at))
    known = {span.id for span in ordered}
    for span in ordered:
        parent = span.parent_span_id
        children[parent if parent in known else None].append(span)
    head = Text.assemble(("agent instance ", "bold"), one_line(instance.id, most))
    _append_status(head, instance.status, instance.started_at, instance.finished_at)
    if instance.termination_reason:
        # As JSON, like the payloads: foreign text must not start a line of its own.
        reason = msgspec.json.encode(instance.termination_reason).decode()
        head.append(f"  {_printable(reason, most)}", style="dim")
    tree = Tree(head)
    _add_flags(tree, instance.flags, most)
    for name, payload in instance.quality_payloads.items():
        line = _line().append(f"quality {one_line(name, most)}", style="bold")
        branch = tree.add(line.append(f"  {_quality(instance, name, payload, most)}", style="dim"))
        _add_flags(branch, instance.quality_flags.get(name, ()), most)
    # A stack, not recursion: a run may be nested deeper than Python's recursion limit.
    waiting = [(tree, span) for span in reversed(children[None])]
    while waiting:
        branch, span = waiting.pop()
        node = branch.add(_span_line(span, most))
        _add_flags(node, span.flags, most)
        waiting.extend((node, child) for child in reversed(children[span.id]))
    return tree


def tree_lines(tree: Tree) -> Iterator[tuple[Text, int]]:
    """The whole lines of ``tree``, each with the width of its branches in characters. (A console
    that prints a tree loses the lines that are deeper than it is wide.)"""
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
    # The error of a failed span is in its result; no template shows it.
    if span.summary and span.summary.strip() and span.status != "failed":
        return line.append(f"  {one_line(span.summary, most)}", style="dim")
    for mark, payload in (("  ", span.payload), (" → ", span.result_payload)):
        text = payload_text(payload, most)
        if text not in ("null", "{}"):
            line.append(mark + text, style="dim")
    return line


def visible(payload: msgspec.Raw) -> bytes:
    """The JSON of a payload, sensitive values replaced by their labels."""
    content = bytes(payload)
    if b'"$sensitive"' in content:
        try:
            return msgspec.json.encode(hidden(msgspec.json.decode(content)))
        except RecursionError:
            return b'"<too deep>"'
    return content


def payload_text(payload: msgspec.Raw, most: int | None = _MOST_CHARACTERS) -> str:
    """A payload as one line, cut at ``most`` characters, sensitive values replaced by labels."""
    # A character has at most four bytes, and the last one may be cut. The rest is not decoded:
    # with a thousand large payloads that would be slow.
    enough = None if most is None else 4 * (most + 1)
    return _printable(visible(payload)[:enough].decode(errors="ignore"), most)


def _quality(
    instance: AgentInstanceAnswer, name: str, payload: msgspec.Raw, most: int | None
) -> str:
    summary = instance.quality_summaries.get(name)
    return one_line(summary, most) if summary and summary.strip() else payload_text(payload, most)


def _add_flags(node: Tree, flags: Iterable[str], most: int | None) -> None:
    for flag in flags:
        node.add(_line().append(f"⚠ {one_line(flag, most)}", style="yellow"))


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis", end="")


def one_line(text: str, most: int | None = _MOST_CHARACTERS) -> str:
    """``text`` on one line, cut at ``most`` characters, without terminal control characters."""
    return _printable(" ".join(text.split()), most)


def _printable(text: str, most: int | None) -> str:
    """``text``, cut, without control characters; JSON escapes only some of them."""
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
