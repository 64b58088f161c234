"""The formats of ``export``: each makes the bytes of a file of a run and its spans.

``json`` needs no extra of the package; the others are imported when they are asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.exceptions import PrefactorValueError

Spans: TypeAlias = Sequence[AgentSpanAnswer]


def to_json(instance: AgentInstanceAnswer, spans: Spans, _origin: str) -> bytes:
    """``{"agent_instance": …, "agent_spans": […]}``, with the fields of the API."""
    return msgspec.json.encode({"agent_instance": instance, "agent_spans": spans}) + b"\n"


def to_otlp(instance: AgentInstanceAnswer, spans: Spans, _origin: str) -> bytes:
    """A trace, in the JSON of OpenTelemetry."""
    from prefactor_core.local.viewer.exports.otlp import otlp

    return otlp(instance, spans) + b"\n"


def to_html(instance: AgentInstanceAnswer, spans: Spans, origin: str) -> bytes:
    """The page of the run, with its data."""
    from prefactor_core.local.viewer.documents import documents_of
    from prefactor_core.local.viewer.exports.html import html

    return html(documents_of(instance, spans, origin))


FORMATS: Final[dict[str, Callable[[AgentInstanceAnswer, Spans, str], bytes]]] = {
    "json": to_json,
    "otlp": to_otlp,
    "html": to_html,
}
"""The formats by name. The last argument is where the run is stored, for a reader to see."""


def write(content: bytes, path: str | None) -> None:
    """Write ``content`` to a file for its owner alone, or to the standard output.

    Raises :class:`PrefactorValueError` if the file cannot be written.
    """
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        with open(path, "wb", opener=_for_its_owner) as file:
            file.write(content)
    except OSError as error:
        raise PrefactorValueError(f"{path!r} cannot be written: {error.strerror}") from None


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
