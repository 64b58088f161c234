"""RedisOutage: one warning when Redis stops answering a relay, and one line when it is back."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Final

from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.exceptions.log import log
from prefactor_core.relay.server import may_pass

logger = logging.getLogger("prefactor_core.relay")

_QUIET_SECONDS: Final = 10.0
"""Seconds without a failure after which a server that has refused one of several commands serves
again: more than between two commands of a kind."""


class RedisOutage:
    """``since``: when the first failure after the last answer was; None if there was none.
    ``error``: the last one."""

    def __init__(self) -> None:
        self.since: datetime | None = None
        self.error: PrefactorApiError | None = None
        # The begin of the outage that the log knows of; and whether other commands may be answered
        # in it.
        self._reported: datetime | None = None
        self._is_partial = False
        self._failed_at = 0.0

    def failed(self, error: PrefactorApiError) -> None:
        """Note that a command failed."""
        self.error = error
        self._failed_at = time.monotonic()
        self._is_partial |= not may_pass(error)
        if self.since is None:
            self.since = datetime.now(UTC)
        if self._reported is None:
            self._reported = self.since
            message = "Redis does not serve this relay (%s); it is tried again, and nothing is lost"
            log(logger, logging.WARNING, message, error)

    def answered(self) -> None:
        """Note that a command was answered."""
        self.since = None
        if self._reported is None:
            return
        if self._is_partial and time.monotonic() - self._failed_at < _QUIET_SECONDS:
            return
        seconds = (datetime.now(UTC) - self._reported).total_seconds()
        log(logger, logging.INFO, "Redis serves this relay again after %.1f s", seconds)
        self._reported, self._is_partial = None, False
