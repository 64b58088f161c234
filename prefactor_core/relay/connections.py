"""Connections of coredis that leave nothing open when they fail, and nothing to forked children.

Imported by the first server that is opened, in a thread.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, cast
from weakref import WeakSet, finalize

import anyio
import coredis
from anyio.abc import ByteStream, SocketAttribute, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)
from coredis.pool import ConnectionPool
from coredis.retry import NoRetryPolicy

from prefactor_core.config.redis import RedisAddress

_connections: Final[WeakSet[BaseConnection]] = WeakSet()

# Kept open: else the sockets in a child would read an end, and wake tasks that cannot run there.
_silent: Final[list[socket.socket]] = []


# Whether the running task is that of a connection of ours: what fails there is raised and reported.
_is_ours: Final[ContextVar[bool]] = ContextVar("prefactor_core_redis_connection", default=False)
logging.getLogger("coredis").addFilter(lambda _: not _is_ours.get())


class _Connection(BaseConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # coredis closes them only at the end of a connection that was made, and anyio warns of each
        # that is collected open.
        streams: list[MemoryObjectSendStream[Any] | MemoryObjectReceiveStream[Any]] = [
            part
            for part in vars(self).values()
            if isinstance(part, MemoryObjectSendStream | MemoryObjectReceiveStream)
        ]
        finalize(self, _close, streams)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        _is_ours.set(True)
        await super().run(task_status=task_status)

    async def _connect(self) -> ByteStream:
        stream = await super()._connect()  # type: ignore[safe-super]  # pyright: ignore[reportAbstractUsage]
        _connections.add(self)
        return stream


def _close(streams: Sequence[MemoryObjectSendStream[Any] | MemoryObjectReceiveStream[Any]]) -> None:
    for stream in streams:
        stream.close()


class _Tcp(_Connection, TCPConnection):
    pass


class _Unix(_Connection, UnixDomainSocketConnection):
    async def _connect(self) -> ByteStream:
        return _UnixStream(await super()._connect())


class _UnixStream(ByteStream):
    """A stream of a Unix socket whose reader can be cancelled at any time.

    That of anyio on asyncio lets an exception into the loop's handler, if the reader is cancelled
    in the turn in which something arrives.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._socket = stream.extra(SocketAttribute.raw_socket)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return cast("Mapping[Any, Callable[[], Any]]", self._stream.extra_attributes)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            await anyio.wait_readable(self._socket)
        except ValueError:  # the socket was closed
            raise anyio.ClosedResourceError from None
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
        await self._stream.aclose()


def make_client(
    address: RedisAddress, password: str, connect_timeout: float, ssl_context: ssl.SSLContext | None
) -> coredis.Redis[bytes]:
    """A client that is not connected yet, and makes one attempt for each command."""
    pool = ConnectionPool[BaseConnection](
        connection_class=_Unix if address.path else _Tcp,
        location=UnixDomainSocketLocation(address.path)
        if address.path
        else TCPLocation(address.host, address.port),
        db=address.database,
        username=address.username,
        password=password or None,
        connect_timeout=connect_timeout,
        ssl_context=ssl_context,
    )
    return coredis.Redis(connection_pool=pool, verify_version=False, retry_policy=NoRetryPolicy())


def _replace_in_child() -> None:
    """Put a socket on which nothing arrives into the place of each connection's.

    A child whose main task goes on ends the tasks of its copy of asyncio's loop. These would close
    the connections, and remove the parent's sockets from the system's selector, which parent and
    child share.
    """
    streams = [connection.stream for connection in _connections if connection.stream is not None]
    if streams:
        ours, other = socket.socketpair()
        _silent.append(other)
        with ours:
            ours.setblocking(False)
            for stream in streams:
                os.dup2(ours.fileno(), stream.extra(SocketAttribute.raw_socket).fileno())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_in_child)
