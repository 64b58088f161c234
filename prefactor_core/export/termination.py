"""Termination: whether the API has stopped a run, and who is to hear of it. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from prefactor_core.exceptions.log import log

logger = logging.getLogger("prefactor_core.export.termination")

NO_REASON = "no reason was given"

OnTerminate = Callable[[str], object]
"""Is told the reason."""


class Termination:
    """The kill switch of one run, from the API's side: it can be thrown once, while the run lasts.

    ``reason``: why the run was stopped; None if it was not. ``has_scope``: whether a scope of the
    run is cancelled for it; what is done inside of that while it unwinds is still recorded.
    ``ending``: the run's open spans are being ended, and no other one belongs to it any more.
    ``over``: it has ended.
    """

    __slots__ = ("_callbacks", "ending", "has_scope", "over", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.has_scope = False
        self.ending = False
        self.over = False
        self._callbacks: list[partial[object]] = []

    @property
    def stops_spans(self) -> bool:
        """Whether no new span may begin."""
        return self.reason is not None and (self.over or not self.has_scope)

    def throw(self, reason: str | None) -> bool:
        """The run is stopped; whether that is news. Nothing for a run that ends, or has ended."""
        if self.over or self.ending or self.reason is not None:
            return False
        self.reason = reason or NO_REASON
        while self._callbacks:
            with suppress(IndexError):  # another thread has just taken its own
                _tell(self._callbacks.pop(0), self.reason)
        return True

    def watch(self, callback: OnTerminate) -> None:
        """Call ``callback`` with the reason when the run is stopped; at once if it was."""
        if not self.over or self.reason is not None:
            entry = partial(callback)  # the same function may be given twice
            self._callbacks.append(entry)
            if self.reason is not None:
                # Its own only: the others belong to who throws, perhaps in another thread.
                with suppress(ValueError):  # who has taken it already
                    self._callbacks.remove(entry)
                    _tell(entry, self.reason)

    def run_ended(self) -> None:
        """The run is over: whatever comes later is too late."""
        self.over = True
        self._callbacks.clear()


def _tell(callback: OnTerminate, reason: str) -> None:
    try:
        callback(reason)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Also a cancellation or a SystemExit: whoever hears of it is not the one to end by it.
        log(logger, logging.ERROR, "a callback of on_terminate() raised", error=error)
