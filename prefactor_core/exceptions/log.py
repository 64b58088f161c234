"""Logging that cannot get in the way. Pure, but for the log."""

from __future__ import annotations

from contextlib import suppress
from logging import Logger


def log(
    logger: Logger, level: int, message: str, *args: object, error: BaseException | None = None
) -> None:
    """``logger.log(level, message, *args)``, with the traceback of ``error`` if there is one.

    A handler or filter that raises must not end a worker, break an exit off, or reach the
    agent: what it raises is dropped.
    """
    with suppress(Exception):
        logger.log(level, message, *args, exc_info=error, stacklevel=2)
