"""CircuitBreaker: when the workers may send, all of them together, after the API failed. Pure.

Times are seconds of the event loop's clock, passed in.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from prefactor_core.queue.retry_policy import Backoff

_LONGEST_ASKED = 3600.0
"""Seconds: nobody means more, and one mistake must not end the delivery."""

_SOON = 0.1
"""The part of the first wait that passes before a request that failed for the first time is sent
again."""

_TOLD_AFTER = 4
"""Failures in a row that are an outage and no hiccup; fewer if they take long."""

_PATIENT = 5.0
"""Seconds that any wait may take."""

_PATIENCE = 0.1
"""The part of an outage's length that a wait in it may take, if that is more."""

_LAST_PART = 0.02
"""The last part of a drain, in which no wait is cut any more: halves of it would be cut without
end."""

_NO_HICCUP = 5.0
"""Seconds without a success after which a failure is an outage."""


class CircuitBreaker:
    """What all workers know about the state of the API.

    One failure holds up its own request only. From the second in a row on, all workers wait
    together, longer after each failure, and then send one request at a time, with one operation
    in it. The first success ends that.

    ``since``: when the first failure after the last success was, aware, in UTC; None if there was
    none. ``told``: whether the log was told. ``failures``: how many there were in a row.
    ``taken``: how many operations the API has taken that it cannot have known before. A failure is
    the fault of an operation only if that number grows meanwhile: answers to what it knew already
    may come from a cache, before an API that takes nothing. ``delivered``: how many it has taken at
    all. ``ended``: how many times several
    failures in a row came to an end. ``answers``: how many requests were answered as they should.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.backoff = backoff
        self._soon = Backoff(
            base=backoff.base * _SOON, multiplier=backoff.multiplier, cap=backoff.cap
        )
        self.since: datetime | None = None
        self.told = False
        self.failures = 0
        self.taken = self.delivered = 0
        self.ended = 0
        self.answers = 0
        self._began = 0.0
        self._until = self._asked_until = -math.inf
        # The round of the one request that is on its way while requests are limited.
        self._probe: int | None = None
        self._drained_at = math.inf
        self._too_short = 0.0
        # Requests that are on their way together fail together: only the first one counts.
        self._round: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether requests are sent one at a time, each with one operation."""
        return self.failures > 1

    def wait(self, now: float) -> float:
        """The seconds until another request may be sent; not positive if it may be sent now.

        Infinite while another worker's request finds out whether the API is back.
        """
        if self.is_limited and self._probe is not None:
            return math.inf
        return max(self._until, self._asked_until) - now

    def begin(self) -> int:
        """A request is sent; what :meth:`failed` and :meth:`end` are to be told of it."""
        if self.is_limited:
            self._probe = self._round
        return self._round

    def end(self, round: int) -> None:
        """A request that was sent in ``round`` has come to its end, whatever that was."""
        # One that was sent before the failures is of an earlier round: it is not waited for.
        if round == self._probe:
            self._probe = None

    def soon(self) -> float:
        """The seconds before a request that failed for the first time is sent again."""
        return self._soon.delay(1)

    def failed(
        self,
        round: int,
        now: float,
        retry_after: float | None = None,
        *,
        took: float = 0.0,
        denied: bool = False,
    ) -> bool:
        """A request that was sent in ``round`` failed ``took`` seconds later; whether that is news
        to be told. ``retry_after``: the wait in seconds that the API asked for. ``denied``: it does
        not take the token, which does not pass by itself."""
        if retry_after is not None:
            asked = self._in_time(now, now + min(retry_after, _LONGEST_ASKED))
            self._asked_until = max(self._asked_until, asked)
        if round != self._round:
            return False
        self._round += 1
        self.failures += 1
        if self.since is None:
            self.since, self._began = datetime.now(UTC), now - took
        if self.failures > 1:
            wait = self._soon.delay(self.failures)
            if not denied:
                # One operation costs little, and what has just begun may soon be over.
                wait = min(wait, max(_PATIENT, (now - self._began) * _PATIENCE))
            self._until = self._in_time(now, now + wait)
        lasts = self.failures >= _TOLD_AFTER or now - self._began >= _NO_HICCUP
        news = lasts and not self.told
        self.told = self.told or news
        return news

    def unanswered(self, now: float, waited: float) -> bool:
        """A caller has waited ``waited`` seconds, and nothing was answered; whether that is news
        to be told. As many callers as there are may say the same: once it is known, it is no
        further failure."""
        return not self.told and self.failed(self._round, now, took=waited)

    def succeeded(self, now: float) -> float | None:
        """A request was answered as it should be; the seconds that an outage took that was told,
        if one was. What the API asked to wait for is still waited for."""
        took = now - self._began if self.told else None
        self.answers += 1
        self.ended += self.failures > 1
        self.since = None
        self.told = False
        self.failures = 0
        self._until = -math.inf
        return took

    def drain(self, now: float, until: float) -> None:
        """Little time is left, until ``until``: the waits begin anew, and none outlasts it."""
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
