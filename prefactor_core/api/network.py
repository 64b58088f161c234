"""Network: the connections of httpcore, to addresses that a daemon thread looks up."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, cast

import anyio
import anyio.lowlevel

# httpcore uses this module without importing it.
import anyio.streams.tls  # pyright: ignore[reportUnusedImport]
import httpcore

from prefactor_core.api.resolver import resolve

_STAGGER: Final = 0.25
"""Seconds between an attempt to connect and the next one, to another address, beside it."""

_MOST_HEADERS: Final = 32 * 1024
"""The most bytes of an answer before its body."""

_HEADER_READ: Final = 4096
"""The most bytes of one read before the body: h11 parses a whole read in one go, however many
"100 Continue" answers it holds."""

_opened: ContextVar[list[httpcore.AsyncNetworkStream] | None] = ContextVar("_opened", default=None)


@asynccontextmanager
async def no_connection_left() -> AsyncGenerator[None]:
    """Close the connections that the block opened if it raises.

    httpcore forgets a connection whose handshake with the server (TLS) or a proxy (SOCKS) fails or
    is cancelled. asyncio then keeps it open as long as the loop runs.
    """
    opened: list[httpcore.AsyncNetworkStream] = []
    token = _opened.set(opened)
    try:
        yield
    except BaseException:
        with anyio.CancelScope(shield=True):  # a TCP connection closes at once
            for stream in opened:
                await stream.aclose()
        raise
    finally:
        _opened.reset(token)


# ASYNC109: the time-outs are httpcore's.


class Network(httpcore.AsyncNetworkBackend):
    """Connects by TCP; each connection is a :class:`Connection`."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Look ``host`` up and connect, within ``timeout`` seconds in all."""
        try:
            with anyio.fail_after(timeout):
                addresses = await resolve(host, port)
                if len(addresses) == 1:
                    stream = await _backend_here().connect_tcp(addresses[0], port)
                else:
                    stream = await _connect_to_one(addresses, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection to {host}") from None
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from None
        opened = _opened.get()
        if opened is not None:
            opened.append(stream)
        return Connection(stream)


class Connection(httpcore.AsyncNetworkStream):
    """A TCP or TLS connection that bounds the bytes of an answer before its body."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._headers_left: int | None = _MOST_HEADERS
        self._is_given_up = False

    def body_begins(self) -> None:
        """Lift the bound until the next request: the headers of the answer are read."""
        self._headers_left = None

    def give_up(self) -> None:
        """Make the next read fail: the rest of the answer is not needed."""
        self._is_given_up = True

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bytes:
        """Receive the next bytes."""
        if self._is_given_up:
            raise httpcore.ReadError("the answer was given up")
        if self._headers_left is None:
            return await self._stream.read(max_bytes, timeout)
        if self._headers_left <= 0:
            raise httpcore.RemoteProtocolError(
                f"the answer has more than {_MOST_HEADERS:,} bytes before its body"
            )
        data = await self._stream.read(min(max_bytes, _HEADER_READ), timeout)
        self._headers_left -= len(data)
        return data

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        """Send a request, or a part of one; the bound applies to its answer."""
        self._headers_left = _MOST_HEADERS
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """The same connection, encrypted."""
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except httpcore.ConnectError as error:
            raise httpcore.ConnectError(f"no TLS connection: {_why_no_tls(error)}") from None
        return Connection(stream)

    def get_extra_info(self, info: str) -> Any:
        """Information about the connection, for httpcore."""
        return self._stream.get_extra_info(info)


async def _connect_to_one(addresses: list[str], port: int) -> httpcore.AsyncNetworkStream:
    """A connection to the first address that accepts one. The attempts start ``_STAGGER`` seconds
    apart, or as soon as the one before has failed."""
    backend = _backend_here()
    connected: httpcore.AsyncNetworkStream | None = None
    problems: list[Exception] = []

    async def attempt(address: str, failed: anyio.Event) -> None:
        nonlocal connected
        try:
            stream = await backend.connect_tcp(address, port)
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
            problems.append(error)
            failed.set()
            return
        if connected is None:
            connected = stream
            attempts.cancel_scope.cancel()
        else:
            await stream.aclose()

    try:
        async with anyio.create_task_group() as attempts:
            for address in addresses:
                failed = anyio.Event()
                attempts.start_soon(attempt, address, failed)
                with anyio.move_on_after(_STAGGER):
                    await failed.wait()
    except BaseException:
        # This task was cancelled in the turn in which a connection was made.
        if connected is not None:
            with anyio.CancelScope(shield=True):  # a TCP connection closes at once
                await connected.aclose()
        raise
    if connected is None:
        raise httpcore.ConnectError(str(problems[0]) if problems else "no address")
    return connected


def _why_no_tls(error: BaseException | None) -> str:
    """The text of the ssl error; trio raises an error without text, with the ssl error as cause."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return str(error)
        error = error.__cause__ or error.__context__
    return "the server has hung up"


def _backend_here() -> httpcore.AsyncNetworkBackend:
    """The backend for the running event loop."""
    is_trio = hasattr(anyio.lowlevel.current_token().native_token, "run_sync_soon")
    # The cast: where its package is missing, either class is a stand-in of another type.
    return cast(
        "httpcore.AsyncNetworkBackend",
        httpcore.TrioBackend() if is_trio else httpcore.AnyIOBackend(),
    )
