"""A stored span as lines of text: its error first, its payloads whole. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from prefactor_core.api.answers import AgentSpanAnswer
from prefactor_core.cli.run_lines import Line, Part, status_parts
from prefactor_core.cli.texts import (
    error_text,
    one_line,
    payload_lines,
    payload_text,
    stacktrace_lines,
    without_error,
)


def span_lines(span: AgentSpanAnswer) -> Iterator[Line]:
    """The lines that say all of a span: status, times, flags, error, input, result.

    Nothing is cut. Sensitive values are shown as their labels.
    """
    name = one_line(span.schema_name, None)
    yield _line((name, "bold"), *status_parts(span.status, span.started_at, span.finished_at))
    if span.summary and span.summary.strip() and span.status != "failed":
        yield _line((one_line(span.summary, None), ""))
    for title, text in (
        ("span", span.id),
        ("run", span.agent_instance_id),
        ("parent", span.parent_span_id),
        ("started", span.started_at),
        ("finished", span.finished_at),
    ):
        if text:
            yield _line((f"{title:<9}", "dim"), (one_line(text, None), ""))
    for flag in span.flags:
        yield _line((f"⚠ {one_line(flag, None)}", "yellow"))
    result = span.result_payload
    error = error_text(result, None)
    if error is not None:
        yield from _part("error", [error, *stacktrace_lines(result)], "red")
        result = without_error(result)
    for title, payload in (("input", span.payload), ("result", result)):
        if payload_text(payload) not in ("null", "{}"):
            yield from _part(title, payload_lines(payload))


def _part(title: str, lines: list[str], style: str = "") -> Iterator[Line]:
    yield _line((title, "bold"))
    for line in lines:
        yield _line((f"  {line}", style))


def _line(*parts: Part) -> Line:
    return Line("", list(parts))
