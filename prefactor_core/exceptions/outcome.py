"""How a body ended, as the status of its span or run. Pure."""

from __future__ import annotations

import sys
from typing import cast

from prefactor_core.exceptions import PrefactorTerminatedError
from prefactor_core.models.lifecycle import Outcome


def outcome_of(error: BaseException | None) -> Outcome:
    """``complete`` without an error, ``cancelled`` if stopped from outside, else ``failed``.

    Stopped from outside is: a cancellation of asyncio or trio, Ctrl-C, a generator that is
    closed early, a run that the API has terminated, and a group of nothing but these.
    """
    if error is None:
        return "complete"
    stops = _stops()
    # A loop over the leaves and not split(): that calls derive(), which may be anybody's.
    waiting = [error]
    while waiting:
        part = waiting.pop()
        if isinstance(part, BaseExceptionGroup):
            waiting.extend(cast("BaseExceptionGroup[BaseException]", part).exceptions)
        elif not isinstance(part, stops):
            return "failed"
    return "cancelled"


def _stops() -> tuple[type[BaseException], ...]:
    # Not anyio.get_cancelled_exc_class(): spans end in synchronous code and threads too,
    # where no event loop runs. Looked up and never imported: one may not be installed, and
    # the other takes its time.
    stops: tuple[type[BaseException], ...] = (
        KeyboardInterrupt,
        GeneratorExit,
        PrefactorTerminatedError,
    )
    if (asyncio := sys.modules.get("asyncio")) is not None:
        stops = (*stops, asyncio.CancelledError)
    if (trio := sys.modules.get("trio")) is not None:
        stops = (*stops, trio.Cancelled)
    return stops
