"""Stored runs as lines of text: the tree of one, and a list of many. Pure.

A line is for every output: styled and cut on a terminal, whole in a pipe, plain without rich.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.cli.texts import (
    MOST_CHARACTERS,
    duration,
    error_text,
    one_line,
    payload_text,
    printable,
    time_of,
)
from prefactor_core.operations.cause import Cause, cause_in

STYLES: Final = {
    "pending": "dim",
    "active": "cyan",
    "complete": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "terminated": "bold magenta",
}

Part = tuple[str, str]
"""A text and its style, as rich names styles; empty for none."""


class Line(NamedTuple):
    """A line: the branches of the tree before it, and its parts."""

    branches: str
    parts: list[Part]

    @property
    def plain(self) -> str:
        """The whole line without styles."""
        return self.branches + "".join(text for text, _ in self.parts)


class _Node:
    """A line of the tree and the nodes below it."""

    __slots__ = ("below", "parts")

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.below: list[_Node] = []

    def add(self, parts: list[Part]) -> _Node:
        node = _Node(parts)
        self.below.append(node)
        return node

    def add_flags(self, flags: Iterable[str], most: int | None) -> None:
        for flag in flags:
            self.add([(f"⚠ {one_line(flag, most)}", "yellow")])


def tree_lines(
    instance: AgentInstanceAnswer,
    spans: Iterable[AgentSpanAnswer],
    most: int | None = MOST_CHARACTERS,
) -> Iterator[Line]:
    """A line for the run and one for each span, below its parent; siblings by their start.

    The step that caused the run, and its quality payloads, stand below it. Flags, such as a
    payload that does not fit its schema, stand below the line that they are about.

    ``most``: characters shown of each text and payload; None: all.
    """
    ordered = in_order(spans)
    known = {span.id for span in ordered}
    roots = [span for span in ordered if span.parent_span_id not in known]
    tree = _Node(instance_parts(instance, most))
    tree.add_flags(instance.flags, most)
    cause = next(filter(None, (cause_in(span.payload) for span in roots)), None)
    if cause is not None:
        tree.add([("caused by", "bold"), (f"  {_step(cause)}", "dim")])
    for name, payload in instance.quality_payloads.items():
        quality = _quality(instance, name, payload, most)
        branch = tree.add([(f"quality {one_line(name, most)}", "bold"), (f"  {quality}", "dim")])
        branch.add_flags(instance.quality_flags.get(name, ()), most)
    nodes: dict[str | None, _Node] = {}
    for span in ordered:
        node = nodes.get(span.parent_span_id, tree).add(span_parts(span, most))
        node.add_flags(span.flags, most)
        nodes[span.id] = node
    return _drawn(tree)


def in_order(spans: Iterable[AgentSpanAnswer]) -> list[AgentSpanAnswer]:
    """The spans of a run as its tree shows them: a parent before its children, siblings by their
    start. Ids made within one millisecond have no order."""
    by_start = sorted(spans, key=lambda span: time_of(span.started_at or span.finished_at))
    known = {span.id for span in by_start}
    children: dict[str | None, list[AgentSpanAnswer]] = defaultdict(list)
    for span in by_start:
        parent = span.parent_span_id
        children[parent if parent in known else None].append(span)
    ordered: list[AgentSpanAnswer] = []
    # A stack, not recursion: a run may be nested deeper than Python's recursion limit.
    waiting = children.pop(None, [])[::-1]
    while waiting:
        ordered.append(span := waiting.pop())
        waiting += children.pop(span.id, [])[::-1]
    # Circles of parents, which a file from elsewhere may have, are not reached.
    return ordered + [span for circle in children.values() for span in circle]


def _drawn(tree: _Node) -> Iterator[Line]:
    waiting = [(tree, "", "")]
    while waiting:
        node, branches, below = waiting.pop()
        yield Line(branches, node.parts)
        marks = [("├── ", "│   ")] * (len(node.below) - 1) + [("└── ", "    ")]
        waiting += [
            (child, below + mark, below + blank)
            for child, (mark, blank) in zip(reversed(node.below), reversed(marks), strict=False)
        ]


def instance_parts(instance: AgentInstanceAnswer, most: int | None = MOST_CHARACTERS) -> list[Part]:
    """The line of a run: id, status, duration, and why it was terminated."""
    parts = [("agent instance ", "bold"), (one_line(instance.id, most), "")]
    parts += status_parts(instance.status, instance.started_at, instance.finished_at)
    if instance.termination_reason:
        parts.append((f"  {_reason(instance.termination_reason, most)}", "dim"))
    return parts


def _step(cause: Cause) -> str:
    if cause.run_id is None:
        return cause.traceparent
    run = f"agent instance {cause.run_id}"
    return run if cause.span_id is None else f"span {cause.span_id} of {run}"


def _reason(reason: str, most: int | None) -> str:
    # As JSON, like the payloads: foreign text must not start a line of its own.
    return printable(msgspec.json.encode(reason).decode(), most)


def span_parts(span: AgentSpanAnswer, most: int | None = MOST_CHARACTERS) -> list[Part]:
    """The line of a span: name, status, duration, and the summary, or else payload → result.

    A failed span has its error, or else its result, before its summary or payload.
    """
    parts = [(one_line(span.schema_name, most), "bold")]
    parts += status_parts(span.status, span.started_at, span.finished_at)
    summary = one_line(span.summary or "", most)
    results = _payload_parts(" → ", span.result_payload, most)
    if span.status == "failed":
        error = error_text(span.result_payload, None)
        if error is None:
            parts += results
        else:
            parts.append((f"  {printable(error, most)}", "red"))
            summary = _without_error(summary, error)
        results = []
    if summary:
        return [*parts, (f"  {summary}", "dim")]
    return [*parts, *_payload_parts("  ", span.payload, most), *results]


def _payload_parts(mark: str, payload: msgspec.Raw, most: int | None) -> list[Part]:
    text = payload_text(payload, most)
    return [] if text in ("null", "{}") else [(mark + text, "dim")]


def _without_error(summary: str, error: str) -> str:
    """``summary`` without the error at its end, where the templates of the standard types show
    it."""
    before, _, shown = f" {summary}".partition(" ✕ ")
    # The template cuts a long message, and ``summary`` may have been cut once more.
    is_error = shown and error.startswith(shown.removesuffix("…").removesuffix("..."))
    return before.strip() if is_error else summary


def status_parts(status: str, started_at: str | None, finished_at: str | None) -> list[Part]:
    """The status of a run or a span, and how long it took."""
    took = duration(started_at, finished_at)
    status = one_line(status)
    return [(f"  {status}", STYLES.get(status, "")), *([(f"  {took}", "")] if took else [])]


def _quality(
    instance: AgentInstanceAnswer, name: str, payload: msgspec.Raw, most: int | None
) -> str:
    summary = instance.quality_summaries.get(name)
    return one_line(summary, most) if summary and summary.strip() else payload_text(payload, most)


# The columns of a list of runs. The agent's name, of any width, comes last.
_TITLES: Final = ("run", "status", "started", "took", "spans", "failed", "agent")
_WIDTHS: Final = (32, 10, 20, 12, 5, 6)
_AT_THE_RIGHT: Final = (3, 4, 5)


def list_of(
    instances: Iterable[AgentInstanceAnswer], names: Mapping[str, str], width: int | None = None
) -> Iterator[Line]:
    """A list of runs, below titles if ``width`` columns hold a run on one line."""
    if not _is_narrow(width):
        yield Line("", [("  ".join(_padded(_TITLES)), "bold")])
    for instance in instances:
        yield from list_lines(instance, names, width)


def list_lines(
    instance: AgentInstanceAnswer, names: Mapping[str, str], width: int | None = None
) -> list[Line]:
    """A run in a list: one line, or two if ``width`` columns do not hold its numbers.

    ``names``: the names of agents by id.
    """
    counts = instance.span_counts or {}
    agent_id = instance.agent_id or ""
    agent = one_line(names.get(agent_id) or agent_id)
    if instance.termination_reason:
        agent += f"  {_reason(instance.termination_reason, MOST_CHARACTERS)}"
    status = one_line(instance.status)
    cells = [
        one_line(instance.id),
        status,
        _second(instance.started_at or instance.inserted_at),
        duration(instance.started_at, instance.finished_at),
        str(counts.get("total", "")),
        str(counts.get("failed") or ""),
        agent,
    ]
    if _is_narrow(width):
        rest = "  ".join(filter(None, cells[2:4]))
        status_part = (f"  {status}", STYLES.get(status, ""))
        return [
            Line("", [(cells[0], "bold")]),
            Line("", [status_part, (f"  {rest}", ""), (f"  {agent}", "dim")]),
        ]
    first, state, *_ = padded = _padded(cells)
    rest = "  ".join(padded[2:]).rstrip()
    return [Line("", [(f"{first}  ", ""), (state, STYLES.get(status, "")), (f"  {rest}", "")])]


def _is_narrow(width: int | None) -> bool:
    return width is not None and width < sum(_WIDTHS) + 2 * len(_WIDTHS) + len("agent")


def _padded(cells: Iterable[str]) -> list[str]:
    *fixed, last = cells
    return [
        *(
            cell.rjust(width) if place in _AT_THE_RIGHT else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(fixed, _WIDTHS, strict=True))
        ),
        last,
    ]


def _second(text: str | None) -> str:
    """A time of the API to the second, in UTC: it ends with ``Z``."""
    if not text:
        return ""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
