"""Outage: when the workers may send again after the API failed, all of them together. Pure.

Times are seconds of the event loop's clock, passed in.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from prefactor_core.backoff import Backoff

_LONGEST_ASKED = 3600.0
"""Seconds: nobody means more, and one mistake must not end the delivery."""

_TOLD_AFTER = 2
"""Failed rounds after which it is an outage and no hiccup."""


class Outage:
    """The failed requests since the last one that was answered as it should be.

    ``since``: when the first of them failed, aware, in UTC; None if there are none. ``told``:
    whether they are more than a hiccup.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.backoff = backoff
        self.since: datetime | None = None
        self._began = 0.0
        self.told = False
        self._failures = 0
        self._until = self._asked_until = -math.inf
        # Requests that are on their way together fail together: only the first one counts.
        self.round = 0

    def wait(self, now: float) -> float:
        """The seconds until another request may be sent; not positive if it may be sent now."""
        return max(self._until, self._asked_until) - now

    def failed(
        self,
        round: int,
        now: float,
        retry_after: float | None = None,
        *,
        denied: bool = False,
        certain: bool = False,
    ) -> bool:
        """A request that was sent in ``round`` failed; whether that is news to be told.

        ``retry_after``: the wait in seconds that the API asked for. ``denied``: the token was
        not taken; the next attempt is as far away as the schedule goes. ``certain``: this is
        no hiccup, although it is the first.
        """
        if retry_after is not None:
            self._asked_until = max(self._asked_until, now + min(retry_after, _LONGEST_ASKED))
        if round != self.round:
            return False
        self.round += 1
        self._failures += 1
        if self.since is None:
            self.since, self._began = datetime.now(UTC), now
        delay = self.backoff.cap if denied else self.backoff.delay(self._failures)
        self._until = now + delay
        news = not self.told and (denied or certain or self._failures >= _TOLD_AFTER)
        self.told = self.told or news
        return news

    def answered(self, now: float) -> float | None:
        """A request was answered; the seconds that an outage took that was told, if one was.

        Waits that have begun are kept: one worker's success must not hurry another's retry.
        """
        took = now - self._began if self.told else None
        self.since = None
        self.told = False
        self._failures = 0
        return took

    def hurry(self) -> None:
        """Little time is left: only the waits that the API asked for are still kept."""
        self._until = -math.inf
        self._failures = 0
