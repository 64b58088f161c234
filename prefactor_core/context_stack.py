"""Which spans are open around the running code: one context variable.

The variable holds the innermost entry, and each entry refers to the one below it. No entry that
is open ever changes its place, so that a task that inherits them can never change what its
creator sees. Entries are removed by identity and never with ``Token.reset``, which fails when a
block is left in another context than it was entered in (async generators, other tasks). A span
may end in a context that cannot reach this one's variable: ended spans are therefore passed over
on every look, and unlinked sooner or later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from msgspec import Struct

from prefactor_core.models import Span

_SPARE: Final = 32


class _Entry(Struct, eq=False):
    """A span, or an id that was pushed by hand, on top of ``below``.

    ``elsewhere``: the next entry below that is not of the same run. ``changes``: after how many
    more changes of the stack the ended spans in it are unlinked. That takes as many steps as
    there are entries and is due after as many changes, so a change takes a few steps on average.
    """

    id: str
    span: Span | None
    below: _Entry | None
    elsewhere: _Entry | None
    changes: int


_innermost: ContextVar[_Entry | None] = ContextVar("prefactor_core_spans", default=None)


def _on(top: _Entry | None, id: str, span: Span | None) -> _Entry:
    below = None if top is None else _open(top)
    if below is None:
        return _Entry(id, span, None, None, _SPARE)
    elsewhere: _Entry | None = below
    if span is not None and below.span is not None and below.span.instance_id == span.instance_id:
        elsewhere = below.elsewhere
    entry = _Entry(id, span, below, elsewhere, below.changes - 1)
    if entry.changes < 0:
        _unlink_ended(entry)
    return entry


def _open(entry: _Entry | None) -> _Entry | None:
    """The first entry that has not ended, from ``entry`` on."""
    while entry is not None and entry.span is not None and entry.span.ended:
        entry = entry.below
    return entry


def _top() -> _Entry | None:
    entry = _innermost.get()
    top = _open(entry)
    if top is not entry:
        _innermost.set(top)
    return top


def _open_entries() -> list[_Entry]:
    """The open entries, innermost first."""
    entries: list[_Entry] = []
    entry = _top()
    while entry is not None:
        entries.append(entry)
        entry = _open(entry.below)
    return entries


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


class SpanContextStack:
    """The open spans of the current context, outermost first.

    An id pushed by hand (``push("…")``) stands for a span that somebody else opened; it
    stays until it is popped. One that is no PFID can be no span's parent.
    """

    @classmethod
    def get_stack(cls) -> list[str]:
        """The ids of the open spans, outermost first; a new list each time."""
        return [entry.id for entry in reversed(_open_entries())]

    @classmethod
    def push(cls, span_id: Span | str) -> None:
        """Make a span, or an id, the innermost one of this context."""
        if isinstance(span_id, str):
            _innermost.set(_on(_innermost.get(), span_id, None))
        else:
            _innermost.set(_on(_innermost.get(), span_id.id, span_id))

    @classmethod
    def pop(cls) -> str | None:
        """Remove the innermost open span and return its id; None if there is none."""
        top = _top()
        if top is None:
            return None
        _innermost.set(_open(top.below))
        return top.id

    @classmethod
    def peek(cls) -> str | None:
        """The id of the innermost open span; None if there is none."""
        top = _top()
        return None if top is None else top.id

    @classmethod
    def depth(cls) -> int:
        """How many spans are open."""
        return len(_open_entries())

    @classmethod
    def is_empty(cls) -> bool:
        """Whether no span is open."""
        return _top() is None

    @classmethod
    def remove(cls, span: Span) -> None:
        """Remove this span, wherever it stands; nothing if it is not there."""
        top = _innermost.get()
        if top is None:
            return
        if top.span is span:
            below = top.below
            _innermost.set(None if below is None else _open(below))
        elif not span.ended:
            entries = _open_entries()
            if any(entry.span is span for entry in entries):
                rest: _Entry | None = None
                for entry in reversed(entries):
                    if entry.span is not span:
                        rest = _on(rest, entry.id, entry.span)
                _innermost.set(rest)
        else:
            # It may stand below, in this context or in none: it is passed over for now.
            top.changes -= 1
            if top.changes < 0 and (top := _top()) is not None:
                _unlink_ended(top)

    @classmethod
    def open_spans(cls) -> Iterator[Span]:
        """The open spans that are known here, innermost first."""
        entry = _top()
        while entry is not None:
            if entry.span is not None:
                yield entry.span
            entry = _open(entry.below)

    @classmethod
    def innermost(cls, instance_id: str) -> Span | str | None:
        """The innermost entry that can be a parent in one agent instance; None if there is none.

        Open spans of other instances are passed over. Of an id that was pushed by hand nobody
        knows the instance: whoever pushed it vouches for it.
        """
        above: _Entry | None = None
        entry = _innermost.get()
        while entry is not None:
            span = entry.span
            if span is None:
                return entry.id
            if span.instance_id != instance_id:
                above, entry = entry, entry.elsewhere
            elif not span.ended:
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

    __slots__ = ("_aside",)

    def __init__(self) -> None:
        self._aside = _innermost.get()

    def swap(self) -> None:
        """It is the other code's turn."""
        entry = _innermost.get()
        _innermost.set(self._aside)
        self._aside = entry

    def __enter__(self) -> None:
        self.swap()

    def __exit__(self, *error: object) -> None:
        self.swap()
