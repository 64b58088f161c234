"""Journal: what the other rooms tell a journal; and the journal of a client that has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from msgspec import Raw

from prefactor_core.operations import Operation


class Item(Protocol):
    """One item of a request, for the journal.

    ``keys``: the idempotency keys of the recorded operations that it stands for, one or two.
    ``operation``: what is sent. ``is_changed``: whether that is another operation than the recorded
    ones say. ``given_id``: whether it asks for the id of its span.
    ``noted``: for the journal alone: what it has noted of the item's form.
    """

    noted: object

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def operation(self) -> Operation: ...

    @property
    def is_changed(self) -> bool: ...

    @property
    def given_id(self) -> bool: ...


class Journal(Protocol):
    """Keeps what is recorded until it is settled: delivered, or given up.

    No method waits for a disk on purpose, and none raises an error of the disk: a journal that
    cannot be written says so once, and the client goes on in memory.
    ``append``, ``opened`` and ``discarded`` are for any thread that holds the lock of recording;
    the other methods are for the thread of the event loop.
    """

    @property
    def is_on(self) -> bool:
        """Whether anything is written; False for :class:`NoJournal` alone."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether the files have reached their bound: new runs and spans are dropped."""
        ...

    @property
    def name(self) -> str:
        """Where it is, for a log line."""
        ...

    @property
    def size(self) -> int:
        """The bytes of its files, without those of refused operations."""
        ...

    @property
    def unwritten(self) -> int:
        """The number of operations that it could not be given: they are in memory only."""
        ...

    @property
    def pending(self) -> int:
        """The number of operations in the journal that are not settled."""
        ...

    def append(self, operation: Operation) -> None:
        """Note a recorded operation."""

    def opened(
        self,
        span_id: str,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None,
        created_at: int,
        payload: Raw,
    ) -> None:
        """Note an open span, of which no operation is recorded yet."""

    def discarded(self, span_id: str, parent_span_id: str | None) -> None:
        """Note that an opened span is not recorded; its children hang on ``parent_span_id``."""

    def identified(self, instance_id: str, span_id: str | None, api_id: str) -> None:
        """Note the API's id of a run, or of a span of the run, where that is another one."""

    def sending(self, items: Iterable[Item]) -> None:
        """Note the form of items, before the request."""

    def settled(self, items: Iterable[Item]) -> None:
        """Note that items are delivered or given up: they are never sent again."""

    def withdrawn(self, keys: Sequence[str], operation: Operation, reason: str) -> None:
        """Note that an operation is dropped, and its run or span lost; its caller knows of it.

        ``keys``: see :class:`Item`.
        """

    def set_aside(
        self, item: Item, reason: str, error: str | None, addressed: Operation | None = None
    ) -> None:
        """Keep an item that is given up for ``reason``, until a person removes it.

        ``addressed``: its operation with the API's ids, which may be forgotten by then.
        """

    async def synced(self) -> None:
        """Return when all that is appended so far is on the disk, if the mode asks for that."""

    def close(self) -> None:
        """Close the files of a scope that was left in order, in which all runs and spans have
        ended; remove them if nothing is pending. :meth:`synced` then waits for the last time."""

    def abandon(self) -> None:
        """Close the files as if the process had died."""


class NoJournal:
    """The journal of a client that has none."""

    is_on = False
    is_full = False
    name = ""
    size = unwritten = pending = 0

    def append(self, operation: Operation) -> None: ...

    def opened(
        self,
        span_id: str,
        instance_id: str,
        schema_name: str,
        parent_span_id: str | None,
        created_at: int,
        payload: Raw,
    ) -> None: ...

    def discarded(self, span_id: str, parent_span_id: str | None) -> None: ...

    def identified(self, instance_id: str, span_id: str | None, api_id: str) -> None: ...

    def sending(self, items: Iterable[Item]) -> None: ...

    def settled(self, items: Iterable[Item]) -> None: ...

    def withdrawn(self, keys: Sequence[str], operation: Operation, reason: str) -> None: ...

    def set_aside(
        self, item: Item, reason: str, error: str | None, addressed: Operation | None = None
    ) -> None: ...

    async def synced(self) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


NO_JOURNAL: Final = NoJournal()
