"""Leave the sockets of Redis clients to the process that opened them, if it forks.

A child whose main task goes on ends the tasks of its copy of asyncio's loop. These would close the
connections, and with them stop the parent's loop from watching its own: parent and child share the
selector of the system.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakSet

from anyio.abc import SocketAttribute

if TYPE_CHECKING:
    import coredis

_clients: Final[WeakSet[coredis.Redis[bytes]]] = WeakSet()

# Open, or the sockets in the child would be at their end, and wake tasks there that cannot run.
_silent: Final[list[socket.socket]] = []


def leave_to_parent(client: coredis.Redis[bytes]) -> None:
    """Put a socket on which nothing ever arrives into the place of each socket of ``client``, in
    every forked child."""
    _clients.add(client)


def _replace_in_child() -> None:
    numbers = [number for client in _clients for number in _sockets_of(client)]
    if numbers:
        ours, other = socket.socketpair()
        _silent.append(other)
        with ours:
            ours.setblocking(False)
            for number in numbers:
                os.dup2(ours.fileno(), number)


def _sockets_of(client: coredis.Redis[bytes]) -> Iterable[int]:
    pool: Any = client.connection_pool
    for connection in cast("Iterable[Any]", getattr(pool, "_online_connections", ())):
        if connection.stream is not None:
            yield connection.stream.extra(SocketAttribute.raw_socket).fileno()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_in_child)
