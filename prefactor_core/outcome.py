"""How a body ended, as the status of its span or run. Pure."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from prefactor_core.lifecycle import Outcome


def outcome_of(error: BaseException | None) -> Outcome:
    """``complete`` without an error, ``cancelled`` if stopped from outside, else ``failed``.

    Stopped from outside is: a cancellation of asyncio or trio, Ctrl-C, a generator that is
    closed early, and a group of nothing but these.
    """
    if error is None:
        return "complete"
    stops = _stops()
    if isinstance(error, BaseExceptionGroup):
        rest = cast("BaseExceptionGroup[BaseException]", error).split(stops)[1]
        return "cancelled" if rest is None else "failed"
    return "cancelled" if isinstance(error, stops) else "failed"


def _stops() -> tuple[type[BaseException], ...]:
    # Not anyio.get_cancelled_exc_class(): spans end in synchronous code and threads too,
    # where no event loop runs. Trio is looked up, never imported: it may not be installed.
    stops: tuple[type[BaseException], ...] = (
        asyncio.CancelledError,
        KeyboardInterrupt,
        GeneratorExit,
    )
    trio = sys.modules.get("trio")
    return stops if trio is None else (*stops, trio.Cancelled)
