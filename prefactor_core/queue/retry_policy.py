"""Backoff: the waits between attempts, by the one retry schedule."""

from __future__ import annotations

from msgspec import Struct


class Backoff(Struct, frozen=True, kw_only=True):
    """Exponential waits with jitter; all times in seconds.

    The wait after failed attempt *n* (counted from 1) is ``base * multiplier ** (n - 1)``,
    at most ``cap``, times a random factor between 0.75 and 1.25, so that clients that
    failed together do not come back together.
    """

    base: float = 1.0
    multiplier: float = 2.0
    cap: float = 60.0

    def delay(self, attempt: int) -> float:
        """The wait after failed attempt ``attempt``."""
        try:
            wait = min(self.cap, self.base * self.multiplier ** (attempt - 1))
        except OverflowError:
            wait = self.cap
        import random  # here: it takes milliseconds to import, and is rarely needed

        return wait * random.uniform(0.75, 1.25)
