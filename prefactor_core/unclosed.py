"""The one line that a client says which nobody closed."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

import msgspec

from prefactor_core.log import log

if TYPE_CHECKING:
    from prefactor_core.delivery.ledger import Ledger
    from prefactor_core.home import Home

logger = logging.getLogger("prefactor_core.client")


def watch(delivery: object, ledger: Ledger, home: Home) -> weakref.finalize[..., object]:
    """Say what was not delivered, if ``delivery`` is collected, or the interpreter ends, before
    ``detach()`` is called on what this gives.

    ``delivery``: what the workers refer to. While their tasks exist, something may be delivered.
    """
    # This keeps nothing of the client alive: neither of the two refers to it.
    return weakref.finalize(delivery, _say, ledger, home)


def _say(ledger: Ledger, home: Home) -> None:
    # In any thread, between any two statements of the program, or at the end of the interpreter:
    # nothing of the event loop is used.
    statistics = ledger.statistics()
    if home.is_left or not (statistics.pending or statistics.lost):
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
