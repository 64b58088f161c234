"""The progress of a relay: a line that is rewritten on a terminal, lines of a log elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.cells import set_cell_size

from prefactor_core.cli.relay_tables import age_text
from prefactor_core.cli.texts import one_line
from prefactor_core.exceptions.log import log
from prefactor_core.relay.monitor import Moment

logger = logging.getLogger("prefactor_core.relay")

_LOG_INTERVAL: Final = 30.0


class Progress:
    """Shows moments of a relay in the log: the first, changes, and one in 30 seconds while it has
    something to do."""

    def __init__(self) -> None:
        self._last: Moment | None = None

    def show(self, moment: Moment) -> None:
        last = self._last
        if last is None or _has_changed(last, moment) or _is_due(last, moment):
            log(logger, logging.INFO, "%s", progress_text(moment, last))
            self._last = moment

    def end(self, moment: Moment) -> None:
        """Show the last moment."""
        log(logger, logging.INFO, "stopped: %s", progress_text(moment, None))


class TerminalProgress(Progress):
    """Shows every moment on the last line of the terminal."""

    def show(self, moment: Moment) -> None:
        columns = shutil.get_terminal_size().columns - 1
        text = set_cell_size(progress_text(moment, self._last), columns)
        sys.stderr.write(f"\r{text}")
        sys.stderr.flush()
        self._last = moment


class _Handler(logging.StreamHandler[TextIO]):
    """Writes over the line of the progress, which comes again."""

    def emit(self, record: logging.LogRecord) -> None:
        blank = " " * (shutil.get_terminal_size().columns - 1)
        self.stream.write(f"\r{blank}\r")
        super().emit(record)


@contextmanager
def progress() -> Generator[Progress]:
    """Show progress, and the log of this package, on the standard error."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    handler = _Handler() if is_terminal else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("prefactor_core")
    level = package.level
    logging.root.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield TerminalProgress() if is_terminal else Progress()
    finally:
        package.setLevel(level)
        logging.root.removeHandler(handler)


def progress_text(moment: Moment, last: Moment | None) -> str:
    """A moment on one line; ``last``: an earlier one. Pure."""
    now = moment.statistics
    parts = [f"delivered {now.delivered:,}"]
    if last is not None and moment.at > last.at:
        rate = (now.delivered - last.statistics.delivered) / (moment.at - last.at)
        parts[0] += f" ({rate:,.0f}/s)"
    if now.redis_outage_since is not None:
        parts.append("no answer from the Redis server")
    elif moment.lag is not None:
        parts.append(f"lag {age_text(moment.lag)}")
    parts.append(f"{len(now.shards)} shard{'' if len(now.shards) == 1 else 's'}")
    if now.refused:
        parts.append(f"{now.refused:,} refused")
    if now.buried:
        parts.append(f"{now.buried:,} buried")
    if now.outage_since is not None:
        why = f": {now.last_error}" if now.last_error else ""
        parts.append(f"no answer from the API for {age_text(moment.outage)}{why}")
    return one_line(", ".join(parts))


def _is_due(last: Moment, moment: Moment) -> bool:
    is_idle = moment.lag == 0 and moment.statistics.delivered == last.statistics.delivered
    return moment.at - last.at >= _LOG_INTERVAL and not is_idle


def _has_changed(last: Moment, moment: Moment) -> bool:
    return _state(last) != _state(moment)


def _state(moment: Moment) -> tuple[object, ...]:
    statistics = moment.statistics
    return (
        sorted(statistics.shards),
        statistics.outage_since is None,
        statistics.redis_outage_since is None,
    )
