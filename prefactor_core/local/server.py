"""The site: the API and the pages of one database file, on a port of this machine."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Final

import anyio
import uvicorn
from msgspec import Struct
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import is_loopback
from prefactor_core.local import retention
from prefactor_core.local.access import Access, is_any_address
from prefactor_core.local.errors import ApiError
from prefactor_core.local.opening import open_local_prefactor
from prefactor_core.local.viewer import open_viewer

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8787

_GRACE: Final = 0.2
"""Seconds that answers have to end when the server does."""

_KEEP_ALIVE: Final = 60
"""Seconds that a connection stays open without a request: longer than clients keep theirs, or a
request meets a connection that is being closed."""


class Site(Struct, frozen=True):
    """An open site: an ASGI application, and the socket where it can be served.

    ``url``: the address of its first page, with a slash at the end. ``stopping``: every stream of
    events ends when it is set. ``keep``: deletes old runs until it is cancelled.
    """

    app: ASGIApp
    url: str
    listener: socket.socket
    stopping: anyio.Event
    keep: Callable[[], Coroutine[Any, Any, None]] | None


def site(
    local: ASGIApp,
    viewer: ASGIApp,
    *,
    host: str,
    port: int,
    token: str | None = None,
) -> ASGIApp:
    """The ASGI application of the API ``local`` and the pages ``viewer``, served at ``host`` and
    ``port``; see :class:`Access` for what it refuses."""

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and not scope["path"].startswith("/api/")
        await (viewer if is_page else local)(scope, receive, send)

    return Access(both, host=host, port=port, token=token)


@asynccontextmanager
async def open_site(
    path: str,
    *,
    host: str = DEFAULT_HOST,
    port: int | None = DEFAULT_PORT,
    token: str | None = None,
    keep_days: float | None = None,
    read_only: bool = False,
) -> AsyncGenerator[Site]:
    """Open the database file ``path`` and a port for its API and pages.

    ``host``: the name or address to listen on; one that other machines reach needs a ``token``.
    ``port``: 0 for any free one; None for the default one, or else any free one.
    ``keep_days``: delete runs that ended so many days ago; None to keep them all.
    ``read_only``: change nothing in the file; calls of the API that write are answered 405.
    Otherwise the file is created if missing, and brought up to date if it was made by an earlier
    version of this package.

    Raises :class:`PrefactorValueError` for a file, host or port that cannot be opened, and for a
    missing or empty token.
    """
    if token is not None and not token.strip():
        raise PrefactorValueError("the token must be a text that is not empty")
    if token is None and not is_loopback(host):
        raise PrefactorValueError(
            f"other machines reach the host {host!r}: give the server a token, which API and pages "
            "then ask for, by the environment variable PREFACTOR_SERVE_TOKEN or by --token"
        )
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(await _listen(host, port))
        bound: int = listener.getsockname()[1]
        local: ASGIApp = await stack.enter_async_context(
            open_local_prefactor(path, api_token=token, read_only=read_only)
        )
        if read_only:
            local = _reading(local)
        stopping = anyio.Event()
        viewer = await stack.enter_async_context(
            open_viewer(path, read_only=read_only, needs_token=token is not None, stopping=stopping)
        )
        app = site(local, viewer, host=host, port=bound, token=token)
        keep = None if keep_days is None else partial(retention.keep, path, keep_days)
        yield Site(app, _url(host, bound), listener, stopping, keep)


async def serve(site: Site) -> None:
    """Serve until Ctrl-C or SIGTERM, on asyncio. Ends in less than a second then, with pages and
    streams open."""
    config = uvicorn.Config(
        site.app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        # Behind a proxy the address of a request is the proxy's, and stays that.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    # Its annotation says int.
    config.timeout_graceful_shutdown = _GRACE  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    async with anyio.create_task_group() as tasks:
        if site.keep is not None:
            tasks.start_soon(site.keep)
        await _Server(config, site.stopping).serve(sockets=[site.listener])
        tasks.cancel_scope.cancel()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stopping: anyio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        # From here on uvicorn would log every answer that it cuts off.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end: for this command it is no failure.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


async def _listen(host: str, port: int | None) -> socket.socket:
    if port is None:
        with suppress(PrefactorValueError):
            return await _listen(host, DEFAULT_PORT)
        port = 0
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PrefactorValueError(f"cannot find the host {in_message(host)}: {error}") from None
    family, _, _, _, address = found[0]
    # Made as TCP and no other way, or asyncio leaves Nagle's algorithm on.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            # A port whose last connections are still being closed is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            problem = "it is in use: choose another by --port, or any free one by --port 0"
        else:
            problem = error.strerror or str(error)
        raise PrefactorValueError(f"cannot listen on port {port} of {host}: {problem}") from None
    return listener


def _reading(api: ASGIApp) -> ASGIApp:
    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            message = "this server shows a file and changes nothing in it"
            error = ApiError(405, "read_only", message)
            await JSONResponse(error.body(), error.status, {"Allow": "GET, HEAD"})(
                scope, receive, send
            )
        else:
            await api(scope, receive, send)

    return read


def _url(host: str, port: int) -> str:
    if is_any_address(host):
        host = DEFAULT_HOST
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
