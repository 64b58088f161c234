"""RedisOutage: one warning when Redis stops answering a relay, and one line when it is back."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefactor_core.exceptions import PrefactorApiError
from prefactor_core.exceptions.log import log

logger = logging.getLogger("prefactor_core.relay")


class RedisOutage:
    """``since``: when the first failure after the last answer was; None if there was none.
    ``error``: the last one."""

    def __init__(self) -> None:
        self.since: datetime | None = None
        self.error: PrefactorApiError | None = None

    def failed(self, error: PrefactorApiError) -> None:
        """Note that a command failed."""
        if self.since is None:
            self.since = datetime.now(UTC)
            message = "Redis does not serve this relay (%s); it is tried again, and nothing is lost"
            log(logger, logging.WARNING, message, error)
        self.error = error

    def answered(self) -> None:
        """Note that a command was answered."""
        if self.since is not None:
            seconds = (datetime.now(UTC) - self.since).total_seconds()
            log(logger, logging.INFO, "Redis serves this relay again after %.1f s", seconds)
            self.since = None
