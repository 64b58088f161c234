"""resolve: the addresses of a host, looked up in daemon threads.

Event loops look names up in threads that they wait for when they end: a resolver that hangs would
outlast every time-out.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from threading import Lock, Thread
from typing import Final

import anyio

from prefactor_core.queue.event_loop import run_soon_here

_PATIENCE: Final = 30.0
"""Seconds until a second lookup starts beside one that hangs."""

_MOST_THREADS: Final = 4
"""The most lookups of one name at a time."""


class _Wait:
    """One call of :func:`resolve`, and the result of its lookup."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.addresses: list[str] = []
        self.problem = ""


class _Lookups:
    """The lookups of one name. The first to end answers all waiting calls."""

    def __init__(self) -> None:
        self.waits: list[_Wait] = []
        self.threads = 0
        self.last_begun = 0.0


_lock = Lock()
_lookups: dict[tuple[str, int], _Lookups] = {}


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of ``host``, in the order in which to try them.

    Simultaneous calls for the same name share one lookup, also across event loops. A cancelled
    call returns at once; the lookup goes on.

    Raises :class:`OSError` if the name has no address.
    """
    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        return [host]
    done = anyio.Event()
    wait = _Wait(partial(run_soon_here(), done.set))
    _begin(host, port, wait)
    try:
        await done.wait()
    finally:
        _end(host, port, wait)
    if wait.problem:
        raise OSError(wait.problem)
    return wait.addresses


def _begin(host: str, port: int, wait: _Wait) -> None:
    with _lock:
        lookups = _lookups.setdefault((host, port), _Lookups())
        now = time.monotonic()
        if not lookups.threads or (
            lookups.threads < _MOST_THREADS and now - lookups.last_begun > _PATIENCE
        ):
            thread = Thread(
                target=_look_up, args=(host, port), name=f"prefactor-resolve {host}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(f"no thread to look {host} up in: {error}") from None
            lookups.threads += 1
            lookups.last_begun = now
        lookups.waits.append(wait)


def _end(host: str, port: int, wait: _Wait) -> None:
    with _lock:
        lookups = _lookups.get((host, port))
        if lookups is not None and wait in lookups.waits:
            lookups.waits.remove(wait)


def _look_up(host: str, port: int) -> None:
    addresses: list[str] = []
    problem = ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = _alternating([(family, str(address[0])) for family, *_, address in found])
    except (OSError, UnicodeError) as error:
        problem = f"{host} has no address: {error}"
    except Exception as error:
        problem = f"{host} could not be looked up: {error!r}"
    with _lock:
        lookups = _lookups.get((host, port))
        if lookups is None:
            return
        lookups.threads -= 1
        waits, lookups.waits = lookups.waits, []
        if not lookups.threads:
            del _lookups[host, port]
    for wait in waits:
        wait.addresses, wait.problem = addresses, problem
        wait.wake()


def _alternating(found: list[tuple[int, str]]) -> list[str]:
    """The addresses in their order, but the second of the other family if possible: if IPv6 leads
    nowhere, say, the next attempt is IPv4."""
    other = next((pair for pair in found if pair[0] != found[0][0]), None)
    if other is not None:
        found.remove(other)
        found.insert(1, other)
    return list(dict.fromkeys(address for _, address in found))


def _forget() -> None:
    """After a fork: the threads do not exist in the child, and one may have held the lock."""
    global _lock
    _lock = Lock()
    _lookups.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
