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
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Final, Protocol

from msgspec import Struct

from prefactor_core.context_stack.generator_frames import is_at_yield
from prefactor_core.models.lifecycle import OPEN, SpanStatus

_SPARE: Final = 32


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


class _Entry(Struct, eq=False):
    """A span, or an id that was pushed by hand, on top of ``below``.

    ``next_run``: the next entry below that is of another run. ``changes_left``: the number of
    changes of the stack until its ended spans are unlinked. Unlinking takes as many steps as there
    are entries and is due after as many changes, so a change takes a few steps on average.
    ``generator``: the generator that ran when the entry was made, if that holds spans.
    """

    pushed_id: str | None
    span: OpenSpan | None
    below: _Entry | None
    next_run: _Entry | None
    changes_left: int
    generator: _Generator | None = None

    @property
    def id(self) -> str:
        return self.span.recorded_id if self.span is not None else self.pushed_id or ""

    @property
    def ended(self) -> bool:
        return self.span is not None and self.span.status not in OPEN


class _Generator(Struct, eq=False):
    """A generator that holds the open spans ``spans`` (their ids); ``frame``: None without any.

    ``entered``: the entries that were made while it ran, in any context: its own stack. It is
    pruned of ended ones when it has ``prune_at`` entries, twice as many as were open.
    ``is_separate``: whether a :class:`SeparateStack` removes its entries from the context while it
    waits at a yield, so that only its own tasks have them then.
    """

    frame: FrameType | None
    spans: set[str]
    entered: list[_Entry]
    prune_at: int = _SPARE
    is_separate: bool = False

    @property
    def is_at_yield(self) -> bool:
        """Whether it has yielded, and holds spans."""
        return not self.is_separate and self.frame is not None and is_at_yield(self.frame)

    def enters(self, entry: _Entry) -> None:
        if len(self.entered) >= self.prune_at:
            self.entered = [entry for entry in self.entered if not entry.ended]
            self.prune_at = max(_SPARE, 2 * len(self.entered))
        self.entered.append(entry)


_innermost: ContextVar[_Entry | None] = ContextVar("prefactor_core_spans", default=None)

# The generators that hold open spans, by their frames and by the ids of the spans. A reference to
# a frame does not keep its generator alive: a collected generator is closed, which ends its spans.
_generators: Final = dict[FrameType, _Generator]()
_by_span: Final = dict[str, _Generator]()


def _pushed_on(
    top: _Entry | None,
    pushed_id: str | None,
    span: OpenSpan | None,
    generator: _Generator | None = None,
) -> _Entry:
    below = None if top is None else _open(top)
    if below is None:
        return _Entry(pushed_id, span, None, None, _SPARE, generator)
    next_run: _Entry | None = below
    if span is not None and below.span is not None and below.span.instance_id == span.instance_id:
        next_run = below.next_run
    entry = _Entry(pushed_id, span, below, next_run, below.changes_left - 1, generator)
    if entry.changes_left < 0:
        _unlink_ended(entry)
    return entry


def _open(entry: _Entry | None) -> _Entry | None:
    """The first entry that has not ended, from ``entry`` on."""
    while entry is not None and entry.span is not None and entry.span.status not in OPEN:
        entry = entry.below
    return entry


def _top() -> _Entry | None:
    entry = _innermost.get()
    top = _open(entry)
    if top is not entry:
        _innermost.set(top)
    return top


def _running_generators() -> Iterator[_Generator]:
    """The running generators that hold spans, innermost first."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame in _generators and (generator := _generators.get(frame)) is not None:
            yield generator
        frame = frame.f_back


def _visible() -> Iterator[_Entry]:
    """The open entries that count for the running code, innermost first."""
    running: list[_Generator] = []
    if _generators:
        for generator in _running_generators():
            running.append(generator)
            for entry in reversed(generator.entered):
                if not entry.ended:
                    yield entry
    top = _top()
    while top is not None:
        if top.generator is None or (
            top.generator not in running and not top.generator.is_at_yield
        ):
            yield top
        top = _open(top.below)


def _remove_entry(entry: _Entry) -> None:
    """Remove an open entry, at any depth of this context."""
    if entry.generator is not None and entry in entry.generator.entered:
        entry.generator.entered.remove(entry)
    above: list[_Entry] = []
    top = _top()
    while top is not None and top is not entry:
        above.append(top)
        top = _open(top.below)
    if top is not None:
        rest = _open(top.below)
        for other in reversed(above):
            rest = _pushed_on(rest, other.pushed_id, other.span, other.generator)
        _innermost.set(rest)


def _unlink_ended(top: _Entry) -> None:
    """Unlink the ended spans below ``top``.

    Other contexts share these entries, and other threads may do the same at this moment. That is
    safe: an ended span is skipped in any case, linked or not.
    """
    entries = [top]
    entry = _open(top.below)
    while entry is not None:
        entries.append(entry)
        entry = _open(entry.below)
    changes_left = max(_SPARE, len(entries))
    below: _Entry | None = None
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


OWN_REQUEST: Final = "a request of prefactor_core"
"""The id of the innermost entry during a request of this library. Spans that are opened then, by
code that traces requests, are not recorded: their recording would cause the next request."""


@contextmanager
def unrecorded() -> Generator[None]:
    """Do not record the spans that are opened in the block."""
    entry = _innermost.get()
    _innermost.set(_Entry(OWN_REQUEST, None, None, None, _SPARE))
    try:
        yield
    finally:
        _innermost.set(entry)


class SpanContextStack:
    """The open spans of the current context, outermost first.

    An id that is pushed by hand (``push("…")``) stands for a span that other code opened, until it
    is popped. An id that is no PFID cannot be a parent.
    """

    @classmethod
    def get_stack(cls) -> list[str]:
        """The ids of the open spans, outermost first; a new list each time."""
        ids = [entry.id for entry in _visible()]
        ids.reverse()
        return ids

    @classmethod
    def push(cls, span_id: str) -> None:
        """Make an id the innermost one of this context."""
        entry = _pushed_on(_innermost.get(), span_id, None, next(_running_generators(), None))
        if entry.generator is not None:
            entry.generator.enters(entry)
        _innermost.set(entry)

    @classmethod
    def enter(cls, span: OpenSpan, holder: FrameType | None = None) -> OpenSpan | str | None:
        """Make a span the innermost one of this context; return its parent, as :meth:`innermost`.

        ``holder``: the frame of the generator that holds the span open; None if none does.
        """
        top = _innermost.get()
        if holder is not None or _generators:
            parent = cls.innermost(span.instance_id)
            cls._enter_in_generator(top, span, holder)
            return parent
        if top is None:
            _innermost.set(_Entry(None, span, None, None, _SPARE))
            return None
        _innermost.set(_pushed_on(top, None, span))
        below = top.span
        if below is not None and below.instance_id == span.instance_id and below.status in OPEN:
            return below
        return cls._innermost_from(top, span.instance_id)

    @staticmethod
    def _enter_in_generator(top: _Entry | None, span: OpenSpan, holder: FrameType | None) -> None:
        if holder is None:
            generator = next(_running_generators(), None)
        else:
            generator = _generators.get(holder)
            if generator is None:
                generator = _generators[holder] = _Generator(holder, set(), [])
            generator.spans.add(span.recorded_id)
            _by_span[span.recorded_id] = generator
        entry = _pushed_on(top, None, span, generator)
        if generator is not None:
            generator.enters(entry)
        _innermost.set(entry)

    @classmethod
    def pop(cls) -> str | None:
        """Remove the innermost open span and return its id; None if there is none."""
        top = next(_visible(), None)
        if top is None:
            return None
        _remove_entry(top)
        return top.id

    @classmethod
    def peek(cls) -> str | None:
        """The id of the innermost open span; None if there is none."""
        top = next(_visible(), None)
        return None if top is None else top.id

    @classmethod
    def depth(cls) -> int:
        """The number of open spans."""
        return sum(1 for _ in _visible())

    @classmethod
    def is_empty(cls) -> bool:
        """Whether no span is open."""
        return next(_visible(), None) is None

    @classmethod
    def remove(cls, span: OpenSpan) -> None:
        """Remove a span, at any depth; nothing if the context does not have it."""
        if _by_span and (generator := _by_span.pop(span.recorded_id, None)) is not None:
            generator.spans.discard(span.recorded_id)
            if not generator.spans and generator.frame is not None:
                _generators.pop(generator.frame, None)
                generator.frame = None
        top = _innermost.get()
        if top is None:
            return
        has_ended = span.status not in OPEN
        if top.span is span and (top.generator is None or has_ended):
            below = top.below
            _innermost.set(None if below is None else _open(below))
        elif not has_ended:
            for entry in _visible():
                if entry.span is span:
                    _remove_entry(entry)
                    break
        else:
            # It may be a lower entry of this context. Looks skip it until it is unlinked.
            top.changes_left -= 1
            if top.changes_left < 0 and (top := _top()) is not None:
                _unlink_ended(top)

    @classmethod
    def open_spans(cls) -> Iterator[OpenSpan]:
        """The open spans that count for the running code, innermost first."""
        for entry in _visible():
            if entry.span is not None:
                yield entry.span

    @classmethod
    def innermost(cls, instance_id: str) -> OpenSpan | str | None:
        """The innermost entry that can be a parent in one agent instance; None without one.

        Open spans of other instances are skipped. The instance of an id that was pushed by hand is
        unknown: such an id can be the parent in any instance.
        """
        if _generators:
            for seen in _visible():
                if seen.span is None or seen.span.instance_id == instance_id:
                    return seen.span or seen.id
            return None
        return cls._innermost_from(_innermost.get(), instance_id)

    @staticmethod
    def _innermost_from(entry: _Entry | None, instance_id: str) -> OpenSpan | str | None:
        above: _Entry | None = None
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
        self._base = self._saved = _innermost.get()
        self._generator: _Generator | None = None
        if _generators:
            self._own_entries(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]

    def _own_entries(self, frame: FrameType) -> None:
        """Attribute the entries of this generator to it, and not to a generator that runs it."""
        entered: list[_Entry] = []
        entry = _top()
        while entry is not None and entry is not self._base:
            entered.append(entry)
            entry = _open(entry.below)
        entered.reverse()
        self._generator = _generators[frame] = _Generator(frame, set(), entered, is_separate=True)
        for entry in entered:
            entry.generator = self._generator

    def swap(self) -> None:
        """Exchange the stack of the context and the saved one."""
        entry = _innermost.get()
        _innermost.set(self._saved)
        self._saved = entry

    def close(self) -> None:
        """The generator has ended: restore the stack of its consumer."""
        _innermost.set(self._saved)
        generator = self._generator
        if generator is not None and generator.frame is not None:
            _generators.pop(generator.frame, None)
            generator.frame = None

    def __enter__(self) -> None:
        self.swap()

    def __exit__(self, *error: object) -> None:
        self.swap()
        if _generators and self._generator is None:
            self._own_entries(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
