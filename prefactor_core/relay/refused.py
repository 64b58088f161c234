"""The operations that the API refused: to be read, sent once more, or deleted.

Relays keep them in one stream, in the order of the refusals.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

import msgspec
from msgspec import Struct

from prefactor_core.operations import Operation
from prefactor_core.operations.identifiers import without_partition
from prefactor_core.relay.entry import encode
from prefactor_core.relay.keys import Keys, shard_of
from prefactor_core.relay.server import RedisServer

_PAGE: Final = 100
_ENTRY_BYTES: Final = 1_000_000
"""Bytes of operations in an entry, about as many as an agent writes at most."""

_decoder: Final[msgspec.json.Decoder[Operation]] = msgspec.json.Decoder(Operation)


class RefusedOperation(Struct, frozen=True, kw_only=True):
    """An operation in the stream of refused ones.

    ``id``: of its entry there. ``operation``: None if it cannot be read. ``reason``: the kind of
    failure; ``error``: the API's own words. ``agent``: who recorded it.
    """

    id: str
    agent: str
    reason: str
    error: str
    operation: Operation | None

    @property
    def span_id(self) -> str | None:
        return getattr(self.operation, "span_id", None)


class Moved(Struct):
    """``done``: how many operations were sent once more; ``unreadable``: how many stay, as they
    cannot be read."""

    done: int = 0
    unreadable: int = 0


async def read_refused(
    server: RedisServer, keys: Keys, run: str | None = None
) -> AsyncGenerator[RefusedOperation]:
    """Read them, oldest first. ``run``: only those of this run, whatever its id's partition."""
    async for page in _pages(server, keys, run):
        for refused in page:
            yield refused


async def retry(server: RedisServer, keys: Keys, run: str | None = None) -> Moved:
    """Put them at the end of their shards, in their order, for the relays.

    An error in between leaves no gap: operations are deleted here when they are there. Operations
    that were put there and not deleted are sent twice, which their keys make harmless.
    """
    moved = Moved()
    async for page in _pages(server, keys, run):
        for shard, agent, operations in entries_of(page):
            await server.run("XADD", keys.operations(shard), "*", *encode(agent, operations))
        readable = [refused.id for refused in page if refused.operation is not None]
        if readable:
            await server.run("XDEL", keys.refused, *readable)
        moved.done += len(readable)
        moved.unreadable += len(page) - len(readable)
    return moved


async def drop(server: RedisServer, keys: Keys, run: str | None = None) -> int:
    """Delete them; return how many."""
    dropped = 0
    async for page in _pages(server, keys, run):
        if page:
            await server.run("XDEL", keys.refused, *(refused.id for refused in page))
        dropped += len(page)
    return dropped


def entries_of(page: Iterable[RefusedOperation]) -> list[tuple[int, str, list[Operation]]]:
    """Shard, agent and operations of the entries that bring ``page`` to the relays: the order
    within a shard stays. Pure."""
    entries: list[tuple[int, str, list[Operation]]] = []
    last: dict[int, tuple[str, list[Operation]]] = {}
    sizes: dict[int, int] = {}
    for refused in page:
        operation = refused.operation
        if operation is None:
            continue
        shard = shard_of(operation.instance_id)
        agent, operations = last.get(shard, ("", []))
        size = sizes.get(shard, 0) + operation.size
        if not operations or agent != refused.agent or size > _ENTRY_BYTES:
            operations, size = [], operation.size
            entries.append((shard, refused.agent, operations))
            last[shard] = refused.agent, operations
        operations.append(operation)
        sizes[shard] = size
    return entries


async def _pages(
    server: RedisServer, keys: Keys, run: str | None
) -> AsyncGenerator[list[RefusedOperation]]:
    """What is in the stream now. What relays add meanwhile is not: it may be the answer to a
    retry."""
    newest = _entries(await server.run("XREVRANGE", keys.refused, "+", "-", "COUNT", 1))
    if not newest:
        return
    start, end = "-", newest[0][0]
    while page := _entries(await server.run("XRANGE", keys.refused, start, end, "COUNT", _PAGE)):
        found = [_refused(id, fields) for id, fields in page]
        yield [refused for refused in found if run is None or _is_of(refused, run)]
        start = f"({page[-1][0]}"


def _entries(answer: object) -> list[tuple[str, Mapping[bytes, bytes]]]:
    rows = cast("Sequence[tuple[bytes, Sequence[bytes]]]", answer)
    return [(id.decode(), dict(zip(fields[::2], fields[1::2], strict=True))) for id, fields in rows]


def _refused(id: str, fields: Mapping[bytes, bytes]) -> RefusedOperation:
    operation: Operation | None = None
    with suppress(KeyError, RecursionError, msgspec.DecodeError):
        operation = _decoder.decode(fields[b"op"])
    agent, reason, error = (
        fields.get(name, b"").decode(errors="replace") for name in (b"agent", b"reason", b"error")
    )
    return RefusedOperation(id=id, agent=agent, reason=reason, error=error, operation=operation)


def _is_of(refused: RefusedOperation, run: str) -> bool:
    operation = refused.operation
    return operation is not None and (
        without_partition(operation.instance_id) == without_partition(run)
    )
