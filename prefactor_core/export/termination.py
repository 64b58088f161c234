"""Termination: whether the API has terminated a run, and the callbacks for it. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from prefactor_core.exceptions.log import log

logger = logging.getLogger("prefactor_core.export.termination")

NO_REASON = "no reason was given"

OnTerminate = Callable[[str], object]
"""A callback that gets the reason."""


class Termination:
    """The kill switch of one run: the API can terminate the run once, while it lasts.

    ``reason``: why the run was terminated; None if it was not. ``has_scope``: whether a scope of
    the run is cancelled by the termination; the spans of its unwinding are still recorded.
    ``ending``: the run's open spans are being ended, and no other span can begin in it.
    ``over``: the run has ended.
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

    @property
    def is_watched(self) -> bool:
        """Whether a callback waits for the termination."""
        return bool(self._callbacks)

    def terminate(self, reason: str | None) -> bool:
        """Terminate the run, unless it is ending or over; return whether this call did it."""
        if self.over or self.ending or self.reason is not None:
            return False
        self.reason = reason or NO_REASON
        while self._callbacks:
            with suppress(IndexError):  # another thread has just removed its own
                _call(self._callbacks.pop(0), self.reason)
        return True

    def watch(self, callback: OnTerminate) -> None:
        """Call ``callback`` with the reason when the run is terminated; at once if it was."""
        if not self.over or self.reason is not None:
            entry = partial(callback)  # the same function may be given twice
            self._callbacks.append(entry)
            if self.reason is not None:
                # This one only: terminate() calls the others, perhaps in another thread.
                with suppress(ValueError):  # terminate() has called it already
                    self._callbacks.remove(entry)
                    _call(entry, self.reason)

    def run_ended(self) -> None:
        """Note that the run is over: no termination comes any more."""
        self.over = True
        self._callbacks.clear()


def _call(callback: OnTerminate, reason: str) -> None:
    try:
        callback(reason)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Also a cancellation or a SystemExit: the caller of terminate() must not end by it.
        log(logger, logging.ERROR, "a callback of on_terminate() raised", error=error)
