"""The end of a body as the status of its span or run. Pure."""

from __future__ import annotations

import sys
from typing import cast

from prefactor_core.exceptions import PrefactorTerminatedError
from prefactor_core.models.lifecycle import Outcome


def outcome_of(error: BaseException | None) -> Outcome:
    """Return ``complete`` without an error, ``cancelled`` if stopped from outside, else ``failed``.

    Stops from outside are: a cancellation of asyncio or trio, Ctrl-C, the early close of a
    generator, a run that the API terminated, and a group of only these.
    """
    if error is None:
        return "complete"
    stops = _stops()
    # A loop over the leaves and not split(), which calls derive(), perhaps a user's method.
    waiting = [error]
    while waiting:
        part = waiting.pop()
        if isinstance(part, BaseExceptionGroup):
            waiting.extend(cast("BaseExceptionGroup[BaseException]", part).exceptions)
        elif not isinstance(part, stops):
            return "failed"
    return "cancelled"


def _stops() -> tuple[type[BaseException], ...]:
    # Not anyio.get_cancelled_exc_class(): spans also end in synchronous code and threads, where no
    # event loop runs. Looked up and never imported: trio may not be installed, and asyncio takes
    # time to import.
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
