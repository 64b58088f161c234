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

Format: TypeAlias = Callable[[AgentInstanceAnswer, Sequence[AgentSpanAnswer]], bytes]


def _json(instance: AgentInstanceAnswer, spans: Sequence[AgentSpanAnswer]) -> bytes:
    return msgspec.json.encode({"agent_instance": instance, "agent_spans": spans}) + b"\n"


FORMATS: Final[dict[str, Format]] = {"json": _json}
"""The formats by name."""


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
