"""Which spans are open around the running code: one context variable.

The variable holds the innermost entry, and each entry refers to the one below it. No entry that
is open ever changes its place, so that a task that inherits them can never change what its
creator sees. Entries are removed by identity and never with ``Token.reset``, which fails when a
block is left in another context than it was entered in (async generators, other tasks). A span
may end in a context that cannot reach this one's variable: ended spans are therefore passed over
on every look, and unlinked sooner or later.

A generator runs in the context of who asks it for items, and holds its open spans between two of
them. These count only while it runs: on the stack of calls, or, for the tasks that it has started,
until it yields. Its frame is what all of that is told by
(:mod:`~prefactor_core.context_stack.generator_frames`).
What only the tasks of its consumer do while it waits for its next item cannot be told from that.
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
    """What the stack needs of a span."""

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
        """An attribute, not computed: it is read for every span that is opened."""
        ...


class _Entry(Struct, eq=False):
    """A span, or an id that was pushed by hand, on top of ``below``.

    ``elsewhere``: the next entry below that is not of the same run. ``changes``: after how many
    more changes of the stack the ended spans in it are unlinked. That takes as many steps as
    there are entries and is due after as many changes, so a change takes a few steps on average.
    ``generator``: in whose turn it was entered, of those that hold spans.
    """

    pushed_id: str | None
    span: OpenSpan | None
    below: _Entry | None
    elsewhere: _Entry | None
    changes: int
    generator: _Generator | None = None

    @property
    def id(self) -> str:
        return self.span.recorded_id if self.span is not None else self.pushed_id or ""

    @property
    def ended(self) -> bool:
        return self.span is not None and self.span.status not in OPEN


class _Generator(Struct, eq=False):
    """A generator that holds open spans, with these ids; ``frame``: None when it holds none.

    ``entered``: what was entered in its turns, in whichever contexts these were; its own stack.
    Of what has ended since, about as much is kept as is open. ``aside``: whether its stack is put
    aside while it waits at a yield, so that only its own tasks have it then.
    """

    frame: FrameType | None
    spans: set[str]
    entered: list[_Entry]
    most: int = _SPARE
    aside: bool = False

    @property
    def is_at_yield(self) -> bool:
        """Whether its turn is over, and it holds spans still."""
        return not self.aside and self.frame is not None and is_at_yield(self.frame)

    def enters(self, entry: _Entry) -> None:
        if len(self.entered) >= self.most:
            self.entered = [entry for entry in self.entered if not entry.ended]
            self.most = max(_SPARE, 2 * len(self.entered))
        self.entered.append(entry)


_innermost: ContextVar[_Entry | None] = ContextVar("prefactor_core_spans", default=None)

# The generators that hold open spans; and by the ids of these. A frame that is referred to here
# does not keep its generator: one that is forgotten is closed, which ends its spans.
_generators: Final = dict[FrameType, _Generator]()
_held: Final = dict[str, _Generator]()


def _on(
    top: _Entry | None,
    pushed_id: str | None,
    span: OpenSpan | None,
    generator: _Generator | None = None,
) -> _Entry:
    below = None if top is None else _open(top)
    if below is None:
        return _Entry(pushed_id, span, None, None, _SPARE, generator)
    elsewhere: _Entry | None = below
    if span is not None and below.span is not None and below.span.instance_id == span.instance_id:
        elsewhere = below.elsewhere
    entry = _Entry(pushed_id, span, below, elsewhere, below.changes - 1, generator)
    if entry.changes < 0:
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


def _running() -> Iterator[_Generator]:
    """The generators that hold spans and run now, innermost first."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame in _generators and (generator := _generators.get(frame)) is not None:
            yield generator
        frame = frame.f_back


def _visible() -> Iterator[_Entry]:
    """The entries that are open and count here, innermost first."""
    running: list[_Generator] = []
    if _generators:
        for generator in _running():
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
    """Remove an entry that is open, wherever it stands in this context."""
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
            rest = _on(rest, other.pushed_id, other.span, other.generator)
        _innermost.set(rest)


def _unlink_ended(top: _Entry) -> None:
    """Let nothing below ``top`` refer to a span that has ended.

    Other contexts share these entries, and other threads may do the same at this moment: all
    that changes is which ended spans are passed over without a look.
    """
    entries = [top]
    entry = _open(top.below)
    while entry is not None:
        entries.append(entry)
        entry = _open(entry.below)
    changes = max(_SPARE, len(entries))
    below: _Entry | None = None
    for entry in reversed(entries):
        elsewhere = below
        if (
            below is not None
            and entry.span is not None
            and below.span is not None
            and below.span.instance_id == entry.span.instance_id
        ):
            elsewhere = below.elsewhere
        entry.below, entry.elsewhere, entry.changes = below, elsewhere, changes
        below = entry


OWN_REQUEST: Final = "a request of ours"
"""The innermost entry while the API is asked: what is opened then, by what traces requests, is
not recorded. Its recording would be the next request."""


@contextmanager
def unrecorded() -> Generator[None]:
    """Record nothing that is opened in the block."""
    entry = _innermost.get()
    _innermost.set(_Entry(OWN_REQUEST, None, None, None, _SPARE))
    try:
        yield
    finally:
        _innermost.set(entry)


class SpanContextStack:
    """The open spans of the current context, outermost first.

    An id pushed by hand (``push("…")``) stands for a span that somebody else opened; it
    stays until it is popped. One that is no PFID can be no span's parent.
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
        entry = _on(_innermost.get(), span_id, None, next(_running(), None))
        if entry.generator is not None:
            entry.generator.enters(entry)
        _innermost.set(entry)

    @classmethod
    def enter(cls, span: OpenSpan, holder: FrameType | None = None) -> OpenSpan | str | None:
        """Make a span the innermost one of this context. Its parent, as :meth:`innermost` gives it.

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
        _innermost.set(_on(top, None, span))
        below = top.span
        if below is not None and below.instance_id == span.instance_id and below.status in OPEN:
            return below
        return cls._innermost_from(top, span.instance_id)

    @staticmethod
    def _enter_in_generator(top: _Entry | None, span: OpenSpan, holder: FrameType | None) -> None:
        if holder is None:
            generator = next(_running(), None)
        else:
            generator = _generators.get(holder)
            if generator is None:
                generator = _generators[holder] = _Generator(holder, set(), [])
            generator.spans.add(span.recorded_id)
            _held[span.recorded_id] = generator
        entry = _on(top, None, span, generator)
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
        """How many spans are open."""
        return sum(1 for _ in _visible())

    @classmethod
    def is_empty(cls) -> bool:
        """Whether no span is open."""
        return next(_visible(), None) is None

    @classmethod
    def remove(cls, span: OpenSpan) -> None:
        """Remove this span, wherever it stands; nothing if it is not there."""
        if _held and (generator := _held.pop(span.recorded_id, None)) is not None:
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
            # It may stand below, in this context or in none: it is passed over for now.
            top.changes -= 1
            if top.changes < 0 and (top := _top()) is not None:
                _unlink_ended(top)

    @classmethod
    def open_spans(cls) -> Iterator[OpenSpan]:
        """The open spans that are known here, innermost first."""
        for entry in _visible():
            if entry.span is not None:
                yield entry.span

    @classmethod
    def innermost(cls, instance_id: str) -> OpenSpan | str | None:
        """The innermost entry that can be a parent in one agent instance; None if there is none.

        Open spans of other instances are passed over. Of an id that was pushed by hand nobody
        knows the instance: whoever pushed it vouches for it.
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
                above, entry = entry, entry.elsewhere
            elif span.status in OPEN:
                return span
            else:
                if above is not None and above.elsewhere is entry:
                    above.elsewhere = entry.below  # the next look need not pass it over again
                entry = entry.below
        return None


class OtherStack:
    """The stack of code that takes turns with other code in one context.

    A generator runs in the context of who iterates it, and between two items that one opens
    spans of its own. Both begin with what is open here; at each :meth:`swap` the one stack is
    put aside and the other is that of the context, whichever context that is by then.
    ``with`` is a swap there and back.
    """

    __slots__ = ("_aside", "_base", "_generator")

    def __init__(self) -> None:
        self._base = self._aside = _innermost.get()
        self._generator: _Generator | None = None
        if _generators:
            self._own_entries(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]

    def _own_entries(self, frame: FrameType) -> None:
        """Let what is entered in this generator be its own, and not that of one that runs it."""
        entered: list[_Entry] = []
        entry = _top()
        while entry is not None and entry is not self._base:
            entered.append(entry)
            entry = _open(entry.below)
        entered.reverse()
        self._generator = _generators[frame] = _Generator(frame, set(), entered, aside=True)
        for entry in entered:
            entry.generator = self._generator

    def swap(self) -> None:
        """It is the other code's turn."""
        entry = _innermost.get()
        _innermost.set(self._aside)
        self._aside = entry

    def close(self) -> None:
        """The generator is at its end: it is the other code's turn for good."""
        _innermost.set(self._aside)
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
