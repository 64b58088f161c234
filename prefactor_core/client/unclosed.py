"""The one warning of a client that was never closed."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

import msgspec

from prefactor_core.exceptions.log import log

if TYPE_CHECKING:
    from prefactor_core.export.counters import Counters
    from prefactor_core.journal.base import Journal
    from prefactor_core.queue.event_loop import EventLoop

logger = logging.getLogger("prefactor_core.client")


def watch(
    exporter: object, counters: Counters, event_loop: EventLoop, journal: Journal
) -> weakref.finalize[..., object]:
    """Log the operations that were not delivered, if ``exporter`` is collected or the interpreter
    ends first. Call ``detach()`` on the result to prevent that: the client has closed.

    ``exporter``: an object that the workers refer to. While their tasks exist, operations may
    still be delivered. But anyio keeps the tasks of a closed loop for ever: the loss with such a
    loop is logged when the next client opens.
    """
    for other, its_event_loop in list(_watched.items()):
        if its_event_loop.loop_is_closed:
            other()
        if not other.alive:
            _watched.pop(other, None)
    # Keeps no client alive: neither the counters nor the others refer to it.
    watched = weakref.finalize(exporter, _log_loss, counters, event_loop, journal)
    _watched[watched] = event_loop
    return watched


_watched: dict[weakref.finalize[..., object], EventLoop] = {}


def _log_loss(counters: Counters, event_loop: EventLoop, journal: Journal) -> None:
    # Runs in any thread, between any two statements of the program, or as the interpreter ends:
    # it must not use the event loop.
    statistics = counters.statistics()
    if event_loop.is_forked:
        return
    left = journal.pending
    journal.abandon()  # the next client that has it ends the runs, too
    if not (statistics.pending > left or statistics.lost):
        return
    dropped = {**statistics.dropped, "never closed": statistics.pending - left}
    loss = msgspec.structs.replace(
        statistics, dropped={reason: count for reason, count in dropped.items() if count}
    )
    message = (
        "%s; the client was not closed before its event loop or the program ended: use "
        "'async with', or call close()"
    )
    log(logger, logging.WARNING, message, loss.describe_loss())
