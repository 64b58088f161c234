"""Which spans are open around the running code: one context variable.

The variable holds an immutable tuple, so that a task that inherits it can never change what
its creator sees. Entries are removed by identity and never with ``Token.reset``, which
fails when a block is left in another context than it was entered in (async generators,
other tasks). A span may end in a context that cannot reach this one's tuple: ended spans
are therefore passed over on every look, and dropped with the next change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

from prefactor_core.models import Span

_entries: ContextVar[tuple[Span | str, ...]] = ContextVar("prefactor_core_spans", default=())


def _open_entries() -> tuple[Span | str, ...]:
    entries = _entries.get()
    for entry in entries:
        if isinstance(entry, Span) and entry.ended:
            return tuple(e for e in entries if isinstance(e, str) or not e.ended)
    return entries


def _id(entry: Span | str) -> str:
    return entry if isinstance(entry, str) else entry.id


class SpanContextStack:
    """The open spans of the current context, outermost first.

    An id pushed by hand (``push("…")``) stands for a span that somebody else opened; it
    stays until it is popped.
    """

    @classmethod
    def get_stack(cls) -> list[str]:
        """The ids of the open spans, outermost first; a new list each time."""
        return [_id(entry) for entry in _open_entries()]

    @classmethod
    def push(cls, span_id: Span | str) -> None:
        """Make a span, or an id, the innermost one of this context."""
        _entries.set((*_open_entries(), span_id))

    @classmethod
    def pop(cls) -> str | None:
        """Remove the innermost open span and return its id; None if there is none."""
        entries = _open_entries()
        if not entries:
            return None
        _entries.set(entries[:-1])
        return _id(entries[-1])

    @classmethod
    def peek(cls) -> str | None:
        """The id of the innermost open span; None if there is none."""
        entries = _open_entries()
        return _id(entries[-1]) if entries else None

    @classmethod
    def depth(cls) -> int:
        """How many spans are open."""
        return len(_open_entries())

    @classmethod
    def is_empty(cls) -> bool:
        """Whether no span is open."""
        return not _open_entries()

    @classmethod
    def remove(cls, span: Span) -> None:
        """Remove this span, wherever it stands; nothing if it is not there."""
        entries = _entries.get()
        if entries and entries[-1] is span:
            _entries.set(entries[:-1])
        elif any(entry is span for entry in entries):
            _entries.set(tuple(entry for entry in entries if entry is not span))

    @classmethod
    def open_spans(cls) -> Iterator[Span]:
        """The open spans that are known here, innermost first."""
        for entry in reversed(_entries.get()):
            if not isinstance(entry, str) and not entry.ended:
                yield entry

    @classmethod
    def innermost(cls, instance_id: str) -> Span | str | None:
        """The innermost entry that can be a parent in one agent instance; None if there is none.

        Open spans of other instances are passed over. Of an id that was pushed by hand nobody
        knows the instance: whoever pushed it vouches for it.
        """
        for entry in reversed(_entries.get()):
            if isinstance(entry, str) or (entry.instance_id == instance_id and not entry.ended):
                return entry
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
        self._aside = _entries.get()

    def swap(self) -> None:
        """It is the other code's turn."""
        entries = _entries.get()
        _entries.set(self._aside)
        self._aside = entries

    def __enter__(self) -> None:
        self.swap()

    def __exit__(self, *error: object) -> None:
        self.swap()
