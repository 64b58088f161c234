"""LatePayloads: the warning that a payload came too late to be recorded."""

from __future__ import annotations

import logging
from typing import Final

from prefactor_core.exceptions.log import log

_KEPT: Final = 1_000

logger = logging.getLogger("prefactor_core.recording")


class LatePayloads:
    """Warns once for each span type, of the first 1,000: there may be any number."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, schema_name: str) -> None:
        """Log that a span of this type got a payload after its start."""
        if schema_name in self._warned or len(self._warned) >= _KEPT:
            return
        self._warned.add(schema_name)
        message = (
            "a %r span was already started, by its start() or by that of a child, or reported "
            "because it was open for report_after seconds: its later payload is not recorded. "
            "Give it to span(payload=...) instead"
        )
        log(logger, logging.WARNING, message, schema_name)
