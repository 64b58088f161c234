"""The entries of the stack of open spans, and the generators that hold some of them open."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Final, Protocol

from msgspec import Struct

from prefactor_core.context_stack.generator_frames import is_at_yield
from prefactor_core.models.lifecycle import OPEN, SpanStatus

SPARE: Final = 32
"""The least number of changes of a stack between two clean-ups of it."""


class OpenSpan(Protocol):
    """The attributes of a span that the stack reads."""

    @property
    def recorded_id(self) -> str:
        """The id that the span was recorded with."""
        ...

    @property
    def instance_id(self) -> str:
        """The id that the span's run was recorded with."""
        ...

    @property
    def status(self) -> SpanStatus:
        """The state of the span. A plain attribute, because each opening of a span reads it."""
        ...


class Entry(Struct, eq=False):
    """A span, or an id that was pushed by hand, on top of ``below``.

    ``next_run``: the next entry below that is of another run. ``changes_left``: the number of
    changes of the stack until its ended spans are unlinked. Unlinking takes as many steps as there
    are entries and is due after as many changes, so a change takes a few steps on average.
    ``generator``: the generator that ran when the entry was made, if that holds spans.
    """

    pushed_id: str | None
    span: OpenSpan | None
    below: Entry | None
    next_run: Entry | None
    changes_left: int
    generator: SpanHolder | None = None

    @property
    def id(self) -> str:
        return self.span.recorded_id if self.span is not None else self.pushed_id or ""

    @property
    def ended(self) -> bool:
        return self.span is not None and self.span.status not in OPEN


class SpanHolder(Struct, eq=False):
    """A generator that holds the open spans ``spans`` (their ids); ``frame``: None without any.

    ``entered``: the entries that were made while it ran, in any context: its own stack. It is
    pruned of ended ones when it has ``prune_at`` entries, twice as many as were open.
    ``is_separate``: whether a :class:`SeparateStack` removes its entries from the context while it
    waits at a yield, so that only its own tasks have them then.
    """

    frame: FrameType | None
    spans: set[str]
    entered: list[Entry]
    prune_at: int = SPARE
    is_separate: bool = False

    @property
    def is_at_yield(self) -> bool:
        """Whether it has yielded, and holds spans."""
        return not self.is_separate and self.frame is not None and is_at_yield(self.frame)

    def enters(self, entry: Entry) -> None:
        if len(self.entered) >= self.prune_at:
            self.entered = [entry for entry in self.entered if not entry.ended]
            self.prune_at = max(SPARE, 2 * len(self.entered))
        self.entered.append(entry)


innermost_entry: ContextVar[Entry | None] = ContextVar("prefactor_core_spans", default=None)

# The generators that hold open spans, by their frames and by the ids of the spans. A reference to
# a frame does not keep its generator alive: a collected generator is closed, which ends its spans.
span_holders: Final = dict[FrameType, SpanHolder]()
holders_by_span: Final = dict[str, SpanHolder]()


def pushed_on(
    top: Entry | None,
    pushed_id: str | None,
    span: OpenSpan | None,
    generator: SpanHolder | None = None,
) -> Entry:
    below = None if top is None else first_open(top)
    if below is None:
        return Entry(pushed_id, span, None, None, SPARE, generator)
    next_run: Entry | None = below
    if span is not None and below.span is not None and below.span.instance_id == span.instance_id:
        next_run = below.next_run
    entry = Entry(pushed_id, span, below, next_run, below.changes_left - 1, generator)
    if entry.changes_left < 0:
        unlink_ended(entry)
    return entry


def first_open(entry: Entry | None) -> Entry | None:
    """The first entry that has not ended, from ``entry`` on."""
    while entry is not None and entry.span is not None and entry.span.status not in OPEN:
        entry = entry.below
    return entry


def top_entry() -> Entry | None:
    entry = innermost_entry.get()
    top = first_open(entry)
    if top is not entry:
        innermost_entry.set(top)
    return top


def running_holders() -> Iterator[SpanHolder]:
    """The running generators that hold spans, innermost first."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame in span_holders and (generator := span_holders.get(frame)) is not None:
            yield generator
        frame = frame.f_back


def visible_entries() -> Iterator[Entry]:
    """The open entries that count for the running code, innermost first."""
    running: list[SpanHolder] = []
    if span_holders:
        for generator in running_holders():
            running.append(generator)
            for entry in reversed(generator.entered):
                if not entry.ended:
                    yield entry
    top = top_entry()
    while top is not None:
        if top.generator is None or (
            top.generator not in running and not top.generator.is_at_yield
        ):
            yield top
        top = first_open(top.below)


def remove_entry(entry: Entry) -> None:
    """Remove an open entry, at any depth of this context."""
    if entry.generator is not None and entry in entry.generator.entered:
        entry.generator.entered.remove(entry)
    above: list[Entry] = []
    top = top_entry()
    while top is not None and top is not entry:
        above.append(top)
        top = first_open(top.below)
    if top is not None:
        rest = first_open(top.below)
        for other in reversed(above):
            rest = pushed_on(rest, other.pushed_id, other.span, other.generator)
        innermost_entry.set(rest)


def unlink_ended(top: Entry) -> None:
    """Unlink the ended spans below ``top``.

    Other contexts share these entries, and other threads may do the same at this moment. That is
    safe: an ended span is skipped in any case, linked or not.
    """
    entries = [top]
    entry = first_open(top.below)
    while entry is not None:
        entries.append(entry)
        entry = first_open(entry.below)
    changes_left = max(SPARE, len(entries))
    below: Entry | None = None
    for entry in reversed(entries):
        next_run = below
        if (
            below is not None
            and entry.span is not None
            and below.span is not None
            and below.span.instance_id == entry.span.instance_id
        ):
            next_run = below.next_run
        entry.below, entry.next_run, entry.changes_left = below, next_run, changes_left
        below = entry
