"""Wall time that never runs backwards within one tree of spans. Pure."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from prefactor_core.checks import PLAIN_DATETIME


class Clock:
    """The wall clock as it stood when this was made, carried on by the monotonic clock.

    A wall clock that is set during a run would put a child outside its parent or a finish
    before its start. One ``Clock`` serves one run or one tree of spans; a longer-lived one
    would miss the corrections that the wall clock gets for good reason.
    """

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> datetime:
        """Now, aware, in UTC."""
        return PLAIN_DATETIME.fromtimestamp((self._offset + time.monotonic_ns()) / 1e9, UTC)
