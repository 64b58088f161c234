"""Logging that never raises."""

from __future__ import annotations

from contextlib import suppress
from logging import Logger


def log(
    logger: Logger, level: int, message: str, *args: object, error: BaseException | None = None
) -> None:
    """Call ``logger.log(level, message, *args)``, with the traceback of ``error`` if given.

    Errors of handlers and filters are dropped: they must not end a worker, interrupt an exit, or
    reach the agent.
    """
    with suppress(Exception):
        logger.log(level, message, *args, exc_info=error, stacklevel=2)
