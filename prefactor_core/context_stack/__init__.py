"""The open spans around the running code, in one context variable.

The variable holds the innermost entry, and each entry refers to the one below it. Open entries
never change their order, so a task that inherits them cannot change what its creator sees. Entries
are removed by identity and never with ``Token.reset``, which fails when a block is left in another
context than it was entered in (async generators, other tasks). A span may end in a context that
cannot reach the variable of this one. So each look skips ended spans, and they are unlinked later.

A generator runs in the context of its consumer, and keeps its spans open between two items. These
spans count only while the generator runs: for the code below it on the call stack, and, for the
tasks that it has started, until it yields. The frame of the generator decides both
(:mod:`~prefactor_core.context_stack.generator_frames`). One case remains: while an asynchronous
generator awaits something, tasks of its consumer look like tasks that it has started.

Another library may have a current span, too. ``finders`` asks for it.

Read this file first, then ``entries`` and ``generator_frames``.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from prefactor_core.context_stack.entries import (
    SPARE,
    Entry,
    OpenSpan,
    SpanHolder,
    first_open,
    holders_by_span,
    innermost_entry,
    pushed_on,
    remove_entry,
    running_holders,
    span_holders,
    top_entry,
    unlink_ended,
    visible_entries,
)
from prefactor_core.models.lifecycle import OPEN

OWN_REQUEST: Final = "a request of prefactor_core"
"""The id of the innermost entry during a request of this library. Spans that are opened then, by
code that traces requests, are not recorded: their recording would cause the next request."""


@contextmanager
def unrecorded() -> Generator[None]:
    """Do not record the spans that are opened in the block."""
    entry = innermost_entry.get()
    innermost_entry.set(Entry(OWN_REQUEST, None, None, None, SPARE))
    try:
        yield
    finally:
        innermost_entry.set(entry)


class SpanContextStack:
    """The open spans of the current context, outermost first.

    An id that is pushed by hand (``push("…")``) stands for a span that other code opened, until it
    is popped. An id that is no PFID cannot be a parent.
    """

    @classmethod
    def get_stack(cls) -> list[str]:
        """The ids of the open spans, outermost first; a new list each time."""
        ids = [entry.id for entry in visible_entries()]
        ids.reverse()
        return ids

    @classmethod
    def push(cls, span_id: str) -> None:
        """Make an id the innermost one of this context."""
        entry = pushed_on(innermost_entry.get(), span_id, None, next(running_holders(), None))
        if entry.generator is not None:
            entry.generator.enters(entry)
        innermost_entry.set(entry)

    @classmethod
    def enter(cls, span: OpenSpan, holder: FrameType | None = None) -> OpenSpan | str | None:
        """Make a span the innermost one of this context; return its parent, as :meth:`innermost`.

        ``holder``: the frame of the generator that holds the span open; None if none does.
        """
        top = innermost_entry.get()
        if holder is not None or span_holders:
            parent = cls.innermost(span.instance_id)
            cls._enter_in_generator(top, span, holder)
            return parent
        if top is None:
            innermost_entry.set(Entry(None, span, None, None, SPARE))
            return None
        innermost_entry.set(pushed_on(top, None, span))
        below = top.span
        if below is not None and below.instance_id == span.instance_id and below.status in OPEN:
            return below
        return cls._innermost_from(top, span.instance_id)

    @staticmethod
    def _enter_in_generator(top: Entry | None, span: OpenSpan, holder: FrameType | None) -> None:
        if holder is None:
            generator = next(running_holders(), None)
        else:
            generator = span_holders.get(holder)
            if generator is None:
                generator = span_holders[holder] = SpanHolder(holder, set(), [])
            generator.spans.add(span.recorded_id)
            holders_by_span[span.recorded_id] = generator
        entry = pushed_on(top, None, span, generator)
        if generator is not None:
            generator.enters(entry)
        innermost_entry.set(entry)

    @classmethod
    def pop(cls) -> str | None:
        """Remove the innermost open span and return its id; None if there is none."""
        top = next(visible_entries(), None)
        if top is None:
            return None
        remove_entry(top)
        return top.id

    @classmethod
    def peek(cls) -> str | None:
        """The id of the innermost open span; None if there is none."""
        top = next(visible_entries(), None)
        return None if top is None else top.id

    @classmethod
    def depth(cls) -> int:
        """The number of open spans."""
        return sum(1 for _ in visible_entries())

    @classmethod
    def is_empty(cls) -> bool:
        """Whether no span is open."""
        return next(visible_entries(), None) is None

    @classmethod
    def remove(cls, span: OpenSpan) -> None:
        """Remove a span, at any depth; nothing if the context does not have it."""
        if (
            holders_by_span
            and (generator := holders_by_span.pop(span.recorded_id, None)) is not None
        ):
            generator.spans.discard(span.recorded_id)
            if not generator.spans and generator.frame is not None:
                span_holders.pop(generator.frame, None)
                generator.frame = None
        top = innermost_entry.get()
        if top is None:
            return
        has_ended = span.status not in OPEN
        if top.span is span and (top.generator is None or has_ended):
            below = top.below
            innermost_entry.set(None if below is None else first_open(below))
        elif not has_ended:
            for entry in visible_entries():
                if entry.span is span:
                    remove_entry(entry)
                    break
        else:
            # It may be a lower entry of this context. Looks skip it until it is unlinked.
            top.changes_left -= 1
            if top.changes_left < 0 and (top := top_entry()) is not None:
                unlink_ended(top)

    @classmethod
    def open_spans(cls) -> Iterator[OpenSpan]:
        """The open spans that count for the running code, innermost first."""
        for entry in visible_entries():
            if entry.span is not None:
                yield entry.span

    @classmethod
    def innermost(cls, instance_id: str) -> OpenSpan | str | None:
        """The innermost entry that can be a parent in one agent instance; None without one.

        Open spans of other instances are skipped. The instance of an id that was pushed by hand is
        unknown: such an id can be the parent in any instance.
        """
        if span_holders:
            for seen in visible_entries():
                if seen.span is None or seen.span.instance_id == instance_id:
                    return seen.span or seen.id
            return None
        return cls._innermost_from(innermost_entry.get(), instance_id)

    @staticmethod
    def _innermost_from(entry: Entry | None, instance_id: str) -> OpenSpan | str | None:
        above: Entry | None = None
        while entry is not None:
            span = entry.span
            if span is None:
                return entry.id
            if span.instance_id != instance_id:
                above, entry = entry, entry.next_run
            elif span.status in OPEN:
                return span
            else:
                if above is not None and above.next_run is entry:
                    above.next_run = entry.below  # so that the next look need not skip it
                entry = entry.below
        return None


class SeparateStack:
    """The stack of a generator that shares a context with its consumer.

    A generator runs in the context of its consumer, and between two items the consumer opens spans
    of its own. Both stacks begin with the spans that are open at construction. Each :meth:`swap`
    saves the stack of the current context and replaces it by the other one; the context may be
    another one each time. ``with`` swaps on entering and on leaving.
    """

    __slots__ = ("_base", "_generator", "_saved")

    def __init__(self) -> None:
        self._base = self._saved = innermost_entry.get()
        self._generator: SpanHolder | None = None
        if span_holders:
            self._own_entries(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]

    def _own_entries(self, frame: FrameType) -> None:
        """Attribute the entries of this generator to it, and not to a generator that runs it."""
        entered: list[Entry] = []
        entry = top_entry()
        while entry is not None and entry is not self._base:
            entered.append(entry)
            entry = first_open(entry.below)
        entered.reverse()
        self._generator = span_holders[frame] = SpanHolder(frame, set(), entered, is_separate=True)
        for entry in entered:
            entry.generator = self._generator

    def swap(self) -> None:
        """Exchange the stack of the context and the saved one."""
        entry = innermost_entry.get()
        innermost_entry.set(self._saved)
        self._saved = entry

    def close(self) -> None:
        """The generator has ended: restore the stack of its consumer."""
        innermost_entry.set(self._saved)
        generator = self._generator
        if generator is not None and generator.frame is not None:
            span_holders.pop(generator.frame, None)
            generator.frame = None

    def __enter__(self) -> None:
        self.swap()

    def __exit__(self, *error: object) -> None:
        self.swap()
        if span_holders and self._generator is None:
            self._own_entries(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
