"""Recorded texts, payloads, errors and times as text that a terminal may show. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Raw, Struct

from prefactor_core.models.duration import duration_text
from prefactor_core.schema_registry.sensitive import hidden

MOST_CHARACTERS: Final = 1_000
"""The characters that are shown of a text by default: more than fit on a line."""


class _Failed(Struct):
    """The part of a result that describes an error."""

    error: Raw = Raw(b"null")


class _Error(Struct):
    """An error as the library records it; values of an agent's own may be of any kind."""

    type: object = None
    message: object = None
    stacktrace: object = None


def one_line(text: str, most: int | None = MOST_CHARACTERS) -> str:
    """``text`` on one line, cut at ``most`` characters, without terminal control characters."""
    return printable(" ".join(text.split()), most)


def printable(text: str, most: int | None = None) -> str:
    """``text``, cut, without control characters; JSON escapes only some of them."""
    if most is not None and len(text) > most:
        text = f"{text[:most]}…"
    return text if text.isprintable() else re.sub("[^ -~]", _replaced, text)


def _replaced(character: re.Match[str]) -> str:
    return character[0] if character[0].isprintable() else "\N{REPLACEMENT CHARACTER}"


def visible(payload: Raw) -> bytes:
    """The JSON of a payload, sensitive values replaced by their labels."""
    content = bytes(payload)
    if b'"$sensitive"' in content:
        try:
            return msgspec.json.encode(hidden(msgspec.json.decode(content)))
        except RecursionError:
            return b'"<too deep>"'
    return content


def payload_text(payload: Raw, most: int | None = MOST_CHARACTERS) -> str:
    """A payload as one line, cut at ``most`` characters, sensitive values replaced by labels."""
    # A character has at most four bytes, and the last one may be cut. The rest is not decoded:
    # with a thousand large payloads that would be slow.
    enough = None if most is None else 4 * (most + 1)
    return printable(visible(payload)[:enough].decode(errors="ignore"), most)


def payload_lines(payload: Raw) -> list[str]:
    """A payload as indented JSON, sensitive values replaced by labels."""
    try:
        laid_out = msgspec.json.format(visible(payload), indent=2)
    except (msgspec.DecodeError, RecursionError):
        laid_out = visible(payload)
    return [printable(line) for line in laid_out.decode(errors="replace").split("\n")]


def error_text(result: Raw, most: int | None = MOST_CHARACTERS) -> str | None:
    """The error in the result of a failed step, ``Type: message``; None if there is none."""
    error = _error_in(result)
    if isinstance(error, _Error):
        parts = [part for part in (error.type, error.message) if isinstance(part, str) and part]
        return one_line(": ".join(parts), most) if parts else None
    return one_line(error, most) if error else None


def stacktrace_lines(result: Raw) -> list[str]:
    """The stacktrace in the result of a failed step."""
    error = _error_in(result)
    if not isinstance(error, _Error) or not isinstance(error.stacktrace, str):
        return []
    return [printable(line) for line in error.stacktrace.rstrip().splitlines()]


def without_error(result: Raw) -> Raw:
    """The result of a failed step without its error."""
    try:
        fields = msgspec.json.decode(result, type=dict[str, Raw])
    except (msgspec.DecodeError, RecursionError):
        return result
    fields.pop("error", None)
    return Raw(msgspec.json.encode(fields))


def _error_in(result: Raw) -> _Error | str | None:
    try:
        error = msgspec.json.decode(visible(result), type=_Failed).error
        return msgspec.json.decode(error, type=_Error | str | None)
    except (msgspec.DecodeError, RecursionError):
        return None  # a result of another form


def time_of(text: str | None) -> float:
    """An ISO 8601 text as seconds since 1970; 0 for none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def duration(started_at: str | None, finished_at: str | None) -> str:
    """The time between; empty unless both are known."""
    if not started_at or not finished_at:
        return ""
    return duration_text(time_of(finished_at) - time_of(started_at))
