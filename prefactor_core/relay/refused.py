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
    failure; ``error``: the API's own words. ``agent``: the name of the agent's heartbeats.
    ``whole``: the shard and the fields of an entry that a relay could not read, and kept whole: a
    later version may.
    """

    id: str
    agent: str
    reason: str
    error: str
    operation: Operation | None
    whole: tuple[int, list[bytes]] | None = None

    @property
    def span_id(self) -> str | None:
        return getattr(self.operation, "span_id", None)

    @property
    def is_readable(self) -> bool:
        """Whether it can be sent once more."""
        return self.operation is not None or self.whole is not None


class Retried(Struct):
    """``given``: the number of operations, or whole entries, that the relays have again;
    ``unreadable``: the number of those that stay refused."""

    given: int = 0
    unreadable: int = 0


async def read_refused(
    server: RedisServer, keys: Keys, run: str | None = None
) -> AsyncGenerator[RefusedOperation]:
    """Read them, oldest first. ``run``: only those of this run, whatever its id's partition."""
    async for page in _pages(server, keys, run):
        for refused in page:
            yield refused


async def retry(server: RedisServer, keys: Keys, run: str | None = None) -> Retried:
    """Put them at the end of their shards, in their order, for the relays.

    Operations are written to the shards first, and then deleted from the refused ones: an error in
    between loses nothing. An operation that was written and not deleted is sent twice, which its
    key makes harmless.
    """
    retried = Retried()
    async for page in _pages(server, keys, run):
        for shard, fields in entries_of(page):
            await server.run("XADD", keys.operations(shard), "*", *fields)
        given = [refused.id for refused in page if refused.is_readable]
        if given:
            await server.run("XDEL", keys.refused, *given)
        retried.given += len(given)
        retried.unreadable += len(page) - len(given)
    return retried


async def drop(server: RedisServer, keys: Keys, run: str | None = None) -> int:
    """Delete them; return how many."""
    dropped = 0
    async for page in _pages(server, keys, run):
        if page:
            await server.run("XDEL", keys.refused, *(refused.id for refused in page))
        dropped += len(page)
    return dropped


def entries_of(page: Iterable[RefusedOperation]) -> list[tuple[int, list[bytes]]]:
    """Shard and fields of the entries that bring ``page`` to the relays: as few as possible, in
    the order within each shard. Pure."""
    entries: list[tuple[int, list[bytes]]] = []
    batches: dict[int, _Batch] = {}

    def end(shard: int) -> None:
        batch = batches.pop(shard, None)
        if batch is not None:
            entries.append((shard, encode(batch.agent, batch.operations)))

    for refused in page:
        operation = refused.operation
        if operation is None:
            if refused.whole is not None:
                end(refused.whole[0])
                entries.append(refused.whole)
            continue
        shard = shard_of(operation.instance_id)
        batch = batches.get(shard)
        if batch is None or batch.agent != refused.agent or batch.size >= _ENTRY_BYTES:
            end(shard)
            batch = batches[shard] = _Batch(refused.agent)
        batch.operations.append(operation)
        batch.size += operation.size
    for shard in list(batches):
        end(shard)
    return entries


class _Batch(Struct):
    agent: str
    operations: list[Operation] = []
    size: int = 0


async def _pages(
    server: RedisServer, keys: Keys, run: str | None
) -> AsyncGenerator[list[RefusedOperation]]:
    """The stream as it is now, without operations that relays add meanwhile: a retry may have
    been refused again."""
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
    content = fields.get(b"op", b"")
    operation: Operation | None = None
    whole: tuple[int, list[bytes]] | None = None
    with suppress(RecursionError, msgspec.DecodeError):
        operation = _decoder.decode(content)
    agent, reason, error = (fields.get(name, b"") for name in (b"agent", b"reason", b"error"))
    if operation is None and b"version" in fields:
        version, shard = fields[b"version"], int(fields[b"shard"])
        whole = shard, [b"version", version, b"agent", agent, b"ops", content]
    return RefusedOperation(
        id=id,
        agent=agent.decode(errors="replace"),
        reason=reason.decode(errors="replace"),
        error=error.decode(errors="replace"),
        operation=operation,
        whole=whole,
    )


def _is_of(refused: RefusedOperation, run: str) -> bool:
    operation = refused.operation
    return operation is not None and (
        without_partition(operation.instance_id) == without_partition(run)
    )
