"""Assumption: a conclusion about the API, doubted again after a while. Pure."""

from __future__ import annotations

import math

_FIRST = 5.0
_LONGEST = 3600.0


class Assumption:
    """What the API has shown that it does not do, for now.

    It is believed for five seconds, and each time that the API shows it again for twice as long
    as before, at most an hour. After that one attempt finds out. Times are seconds of the event
    loop's clock.
    """

    def __init__(self) -> None:
        self._until = -math.inf
        self._pause = _FIRST
        self.made = False

    def holds(self, now: float) -> bool:
        """Whether it is believed: no attempt is due."""
        return now < self._until

    def make(self, now: float) -> bool:
        """The API has shown it; whether that is news."""
        news = not self.made
        if not self.holds(now):  # later answers to requests of one moment say nothing more
            self._until = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST)
        self.made = True
        return news

    def refute(self) -> bool:
        """The API has done it; whether that is news."""
        news, self.made = self.made, False
        self._until, self._pause = -math.inf, _FIRST
        return news
