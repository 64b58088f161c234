"""CircuitBreaker: when the workers may send, all of them together, after the API failed.

Times are seconds of the event loop's clock, passed in.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from prefactor_core.queue.retry_policy import Backoff

LONGEST_RETRY_AFTER = 3600.0
"""Seconds that the API can ask to wait: one mistake must not end the delivery."""

_FIRST_PART = 0.1
"""The part of the backoff's first wait that passes before the first retry."""

_OUTAGE_FAILURES = 4
"""Failures in a row that are an outage and no hiccup; fewer if they take long."""

_OUTAGE_SECONDS = 5.0
"""Seconds without a success after which a failure is an outage."""

_QUIET_SECONDS = 5.0
"""Seconds without a failure after which the outage of a busy API is over: one that is nearly full
accepts some, and refuses the next ones."""

_MAX_WAIT = 5.0
"""Seconds that any wait may take."""

_MAX_WAIT_PART = 0.1
"""The part of an outage's length that a wait in it may take, if that is more."""

_LAST_PART = 0.02
"""The last part of a drain, in which no wait is cut short: halves of it would be cut without
end."""


class CircuitBreaker:
    """The state of the API, as all workers share it.

    One failure delays only its own request. From the second in a row on, the breaker is open: all
    workers wait together, longer after each failure, and then one of them sends a probe, a
    request with one operation. The first success closes the breaker.

    ``since``: when the first failure after the last success was, aware, in UTC; None if there was
    none. ``is_outage``: whether the failures are an outage that the log has reported.
    ``failures``: how many there were in a row.
    ``accepted``: how many operations the API has accepted that it cannot have known before. A
    failure is the fault of an operation only if that number grows meanwhile: a cache may answer for
    known operations, before an API that accepts nothing.
    ``recoveries``: how many times the breaker has closed. ``answers``: how many requests succeeded.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.backoff = backoff
        self._short = Backoff(
            base=backoff.base * _FIRST_PART, multiplier=backoff.multiplier, cap=backoff.cap
        )
        self.since: datetime | None = None
        self.is_outage = False
        self.failures = self.accepted = self.recoveries = self.answers = 0
        self._began = 0.0
        # The begin of the outage that the log knows of; when a request succeeded after the last
        # failure; and whether the API was busy in that outage, or in the failures that may become
        # one.
        self._reported: float | None = None
        self._well_since: float | None = None
        self._was_busy = False
        self._until = self._asked_until = -math.inf
        # Requests that are on their way together fail together: only the first one of a round
        # counts.
        self._round: int = 0
        # The round of the probe that is on its way.
        self._probe: int | None = None
        self._drained_at = math.inf
        self._too_short = 0.0

    @property
    def is_open(self) -> bool:
        """Whether requests are sent one at a time, each with one operation."""
        return self.failures > 1

    def wait(self, now: float) -> float:
        """The seconds until another request may be sent; not positive if it may be sent now.

        Infinite while another worker's probe is on its way.
        """
        if self.is_open and self._probe is not None:
            return math.inf
        return max(self._until, self._asked_until) - now

    def begin(self) -> int:
        """Note that a request is sent; return its round, for :meth:`failed` and :meth:`end`."""
        if self.is_open:
            self._probe = self._round
        return self._round

    def end(self, round: int) -> None:
        """Note that a request of ``round`` has ended, in whichever way."""
        # One that was sent before the failures is of an earlier round: no probe.
        if round == self._probe:
            self._probe = None

    def first_wait(self) -> float:
        """The seconds before a request that failed for the first time is sent again."""
        return self._short.delay(1)

    def failed(
        self,
        round: int,
        now: float,
        retry_after: float | None = None,
        *,
        took: float = 0.0,
        denied: bool = False,
        busy: bool = False,
    ) -> bool:
        """Note that a request of ``round`` failed after ``took`` seconds; return whether an outage
        has to be reported. Call :meth:`report_end` first: an earlier outage may be over.

        ``retry_after``: the wait in seconds that the API asked for. ``denied``: the API refuses
        the token, so that retries soon are no use. ``busy``: it is up, and takes no more for now.
        """
        if retry_after is not None:
            asked = self._in_time(now, now + min(retry_after, LONGEST_RETRY_AFTER))
            self._asked_until = max(self._asked_until, asked)
        if round != self._round:
            return False
        self._round += 1
        self.failures += 1
        self._well_since = None
        self._was_busy |= busy
        if self.since is None:
            self.since, self._began = datetime.now(UTC), now - took
        if self.failures > 1:
            wait = self._short.delay(self.failures)
            if not denied:
                # One operation costs little, and an outage that has just begun may soon be over.
                wait = min(wait, max(_MAX_WAIT, (now - self._began) * _MAX_WAIT_PART))
            self._until = self._in_time(now, now + wait)
        lasts = self.failures >= _OUTAGE_FAILURES or now - self._began >= _OUTAGE_SECONDS
        self.is_outage |= lasts
        if not lasts or self._reported is not None:
            return False
        self._reported = self._began
        return True

    def unanswered(self, now: float, waited: float) -> bool:
        """Note that a caller has waited ``waited`` seconds without an answer to any request; return
        whether an outage has to be reported.

        Any number of callers may say so of one outage: once it is reported, they add no failure.
        """
        return not self.is_outage and self.failed(self._round, now, took=waited)

    def succeeded(self, now: float) -> float | None:
        """Note that a request succeeded; return the seconds that a reported outage took, if its end
        has to be reported. A wait that the API asked for goes on."""
        self.answers += 1
        self.recoveries += self.failures > 1
        self.since = None
        self.is_outage = False
        self.failures = 0
        self._until = -math.inf
        if self._well_since is None:
            self._well_since = now
        return self.report_end(now)

    def report_end(self, now: float = math.inf) -> float | None:
        """Return the seconds that a reported outage took, if it is over by ``now`` and its end was
        not reported. Without ``now``, a success is its end, also of a busy API."""
        began, well_since = self._reported, self._well_since
        if well_since is None:
            return None
        if began is not None and self._was_busy and now - well_since < _QUIET_SECONDS:
            return None
        self._reported, self._was_busy = None, False
        return None if began is None else well_since - began

    def drain(self, now: float, until: float) -> None:
        """Begin the waits anew, and let none outlast ``until``, when the drain ends."""
        self._drained_at = until
        self._too_short = (until - now) * _LAST_PART
        self.failures = min(self.failures, 2)
        self._until = -math.inf
        self._asked_until = self._in_time(now, self._asked_until)

    def _in_time(self, now: float, until: float) -> float:
        """The end of a wait; no wait may cost the last attempt of a drain."""
        # Decided when the wait begins: later on half of the rest would be left again and again.
        left = self._drained_at - now
        if until - now < left or left < self._too_short:
            return until
        return now + left / 2
