"""The one line that a client says which nobody closed."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

import msgspec

from prefactor_core.exceptions.log import log

if TYPE_CHECKING:
    from prefactor_core.export.counters import Counters
    from prefactor_core.queue.event_loop import EventLoop

logger = logging.getLogger("prefactor_core.client")


def watch(
    delivery: object, counters: Counters, event_loop: EventLoop
) -> weakref.finalize[..., object]:
    """Say what was not delivered, if ``delivery`` is collected, or the interpreter ends, before
    ``detach()`` is called on what this gives.

    ``delivery``: what the workers refer to. While their tasks exist, something may be delivered;
    but anyio keeps tasks of a loop that is closed for ever. What was lost with such a loop is
    said when the next client opens.
    """
    for other, its_event_loop in list(_watched.items()):
        if its_event_loop.loop_is_closed:
            other()
        if not other.alive:
            _watched.pop(other, None)
    # This keeps nothing of the client alive: neither of the two refers to it.
    watched = weakref.finalize(delivery, _say, counters, event_loop)
    _watched[watched] = event_loop
    return watched


_watched: dict[weakref.finalize[..., object], EventLoop] = {}


def _say(counters: Counters, event_loop: EventLoop) -> None:
    # In any thread, between any two statements of the program, or at the end of the interpreter:
    # nothing of the event loop is used.
    statistics = counters.statistics()
    if event_loop.is_forked or not (statistics.pending or statistics.lost):
        return
    dropped = {**statistics.dropped, "never closed": statistics.pending}
    loss = msgspec.structs.replace(
        statistics, dropped={reason: count for reason, count in dropped.items() if count}
    )
    message = (
        "%s; the client was not closed before its event loop or the program ended: use "
        "'async with', or call close()"
    )
    log(logger, logging.WARNING, message, loss.describe_loss())
