"""AdoptedJournal: the journal of a dead process, which this one writes from now on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from prefactor_core.exceptions.log import log
from prefactor_core.journal.burial import burials
from prefactor_core.journal.directory import REFUSED_NAME, Hold
from prefactor_core.journal.files import Segment
from prefactor_core.journal.format import Header
from prefactor_core.journal.reader import JournalReader, JournalUnreadableError, asides, read_header
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.queue.event_loop import EventLoop

logger = logging.getLogger("prefactor_core.journal")

_SLICE: Final = 200
"""Burials that are written in one turn of the loop."""

_MAX_BYTES: Final = 1 << 62
"""It may grow without a bound: by the ends of what was open, and by notes of what is settled."""


class AdoptedJournal:
    """The journal that ``hold`` has: read, then taken over, then sent by a replay.

    ``reader``: what it holds. ``writer``, from :meth:`take_over` on: notes what becomes of that,
    and deletes the journal in the end. If this process dies, too, the next one adopts the same
    journal, and nothing is ended twice.

    ``with_refused``: send what the API refused once more, after the other operations.
    """

    writer: JournalWriter

    def __init__(self, hold: Hold, event_loop: EventLoop, *, with_refused: bool = False) -> None:
        self._hold = hold
        self._with_refused = with_refused
        self._event_loop = event_loop
        self.reader = JournalReader(hold.path)

    @property
    def header(self) -> Header | None:
        """Where it was written, and for which API; None if that is lost, or if it is empty."""
        return self.reader.state.header

    def read(self) -> Iterator[None]:
        """Read all of it. Yield after each slice of the work.

        Raises :class:`~prefactor_core.journal.reader.JournalUnreadableError`, and
        :class:`~prefactor_core.journal.format.JournalVersionError` for one of a later version.
        """
        reader = self.reader
        yield from reader.scan()
        if self._with_refused and reader.state.header is None:
            reader.state.header = read_header(self._hold.path)
        lost, torn = sum(reader.damaged.values()), sum(reader.torn.values())
        if lost or torn:
            message = (
                "the journal %s is damaged: %d records cannot be read, and %d bytes at the end "
                "are no record"
            )
            log(logger, logging.WARNING, message, self._hold.path, lost, torn)

    def remove_if_empty(self) -> None:
        """Delete it, unless a file but the lock has a byte: its process died at once."""
        if not any(self.reader.sizes.values()) and not self._hold.has_kept_files:
            self._hold.remove()

    def abandon(self) -> None:
        """Leave it as it is to the next process."""
        if hasattr(self, "writer"):
            self.writer.abandon()
        self._hold.release()

    def take_over(self) -> Iterator[None]:
        """Begin a file of one's own, after :meth:`read`, and end in it what the dead process left
        open. Yield after each slice of the work.

        Raises :class:`~prefactor_core.journal.reader.JournalUnreadableError` if it cannot be
        written: what was delivered would be sent again and again, and what could not be written
        would never be sent.
        """
        reader, state = self.reader, self.reader.state
        assert state.header is not None
        if self._with_refused:
            state.lost_runs.clear()
            state.lost_spans.clear()
        self.writer = JournalWriter(
            self._hold,
            state.header,
            self._event_loop.lock,
            self._event_loop.run_soon,
            max_bytes=_MAX_BYTES,
            state=state.records,
            earlier=[
                Segment(number, reader.firsts.get(number, 1), size, reader.unsettled[number])
                for number, size in reader.sizes.items()
            ],
            sequence=state.last_sequence,
            damaged=reader.damaged.keys(),
            wrote=state.apply,
        )
        if self.writer.is_resting:
            raise self._not_writable()
        if self._with_refused:
            self._resume_refused()
        for place, operation in enumerate(burials(state)):
            self.writer.append(operation)
            if place % _SLICE == _SLICE - 1:
                yield
        if self.writer.unwritten:
            raise self._not_writable()

    def _not_writable(self) -> JournalUnreadableError:
        return JournalUnreadableError(f"the journal at {self._hold.path} cannot be written")

    def _resume_refused(self) -> None:
        for _, aside in asides(self._hold.path):
            self.writer.append(aside.operation)
        # Until here they may be in both: their keys let them take effect once.
        if not self.writer.unwritten:
            (self._hold.path / REFUSED_NAME).unlink(missing_ok=True)
