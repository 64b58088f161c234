"""Transport: sends requests of httpx over our own connections (:mod:`.network`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final, cast

import httpcore
import httpx

from prefactor_core.api.network import Connection, Network, no_connection_left
from prefactor_core.api.proxies import Proxy, proxy_for
from prefactor_core.api.tls import tls_context
from prefactor_core.queue.daemon_thread import DaemonThread

_MOST_CONNECTIONS: Final = 100
_MOST_IDLE: Final = 20
_IDLE_SECONDS: Final = 5.0

_thread: Final = DaemonThread("prefactor-transport", idle_seconds=0)


async def open_transport(url: str) -> Transport:
    """Make a transport to the server of ``url``, by the proxy that the environment names, if any.

    A daemon thread reads the environment and the files of certificates.

    Raises :class:`PrefactorValueError` for a proxy or certificates that cannot be used.
    """
    return await _thread.call(partial(_make, url))


def _make(url: str) -> Transport:
    proxy = proxy_for(url)
    is_tls = url.lower().startswith("https://")
    return Transport(_pool(is_tls, proxy), proxy.password if proxy else "")


def _pool(is_tls: bool, proxy: Proxy | None) -> httpcore.AsyncConnectionPool:
    context = tls_context() if is_tls else None
    options: dict[str, Any] = {
        "max_connections": _MOST_CONNECTIONS,
        "max_keepalive_connections": _MOST_IDLE,
        "keepalive_expiry": _IDLE_SECONDS,
        "network_backend": Network(),
    }
    if proxy is None:
        return httpcore.AsyncConnectionPool(context, **options)
    address = httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target="/")
    login = (
        (proxy.username.encode(), proxy.password.encode())
        if proxy.username or proxy.password
        else None
    )
    if proxy.scheme in ("http", "https"):
        proxy_context = tls_context() if proxy.scheme == "https" else None
        return httpcore.AsyncHTTPProxy(
            address, login, ssl_context=context, proxy_ssl_context=proxy_context, **options
        )
    return httpcore.AsyncSOCKSProxy(address, login, ssl_context=context, **options)


class Transport(httpx.AsyncBaseTransport):
    """Sends requests over a pool of connections. ``password``: that of the proxy, or empty.

    The extension ``give_up`` of a response is a function that ends the reading of its body.
    """

    def __init__(self, pool: httpcore.AsyncConnectionPool, password: str) -> None:
        self._pool = pool
        self.password = password

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the response with an unread body."""
        url = request.url
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        outgoing = httpcore.Request(
            request.method,
            target,
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            async with no_connection_left():
                answer = await self._pool.handle_async_request(outgoing)
        except Exception as error:
            raise _as_httpx(error) from None
        given = cast("dict[str, Any]", answer.extensions)
        extensions: dict[str, Any] = {}
        connection = given.get("network_stream")
        if isinstance(connection, Connection):
            connection.body_begins()
            extensions["give_up"] = connection.give_up
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer), extensions=extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._answer.aiter_stream():
                yield part
        except Exception as error:
            raise _as_httpx(error) from None

    async def aclose(self) -> None:
        try:
            await self._answer.aclose()
        except Exception as error:
            raise _as_httpx(error) from None


def _as_httpx(error: Exception) -> httpx.TransportError:
    """Map an error of the packages below (httpcore, ssl, socksio) to one of httpx."""
    kind = httpx.TransportError
    if isinstance(error, httpcore.TimeoutException):
        kind = httpx.TimeoutException
    elif isinstance(error, httpcore.LocalProtocolError):
        kind = httpx.LocalProtocolError
    return kind(str(error) or type(error).__name__)
