"""The pages of a relay for machines: ``/healthz`` and ``/metrics``, by Starlette and uvicorn."""

from __future__ import annotations

import logging
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.relay.metrics import CONTENT_TYPE, metrics
from prefactor_core.relay.monitor import Monitor

_GRACE: Final = 0.2
"""Seconds that answers have to end when the relay does."""


def listen(host: str, port: int) -> socket.socket:
    """Open a port for :func:`serve`; 0 for any free one.

    Raises :class:`PrefactorValueError` for a host or port that cannot be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise PrefactorValueError(
            f"cannot listen on port {port} of {in_message(host)}: {problem}"
        ) from None


def app(monitor: Monitor) -> Starlette:
    """The ASGI application.

    ``GET /healthz`` is answered 200 while the relay runs, also in an outage, which a restart would
    not end: the field ``status`` is ``ok``, or ``outage`` if the API or the Redis server does not
    answer.
    """

    async def healthz(_request: Request) -> Response:
        moment = await monitor.look()
        relay = moment.statistics
        is_well = relay.outage_since is None and relay.redis_outage_since is None
        body = {"status": "ok" if is_well else "outage", "lag": moment.lag, "relay": relay}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def numbers(_request: Request) -> Response:
        # As a header: else Starlette adds another charset.
        headers = {"Content-Type": CONTENT_TYPE}
        return Response(metrics(await monitor.look()), headers=headers)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", numbers)])


async def serve(listener: socket.socket, monitor: Monitor) -> None:
    """Serve on ``listener`` until it is cancelled, on asyncio."""
    config = uvicorn.Config(
        app(monitor),
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    # Its annotation says int.
    config.timeout_graceful_shutdown = _GRACE  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    server = _Server(config)
    try:
        await server.serve(sockets=[listener])
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(2 * _GRACE, shield=True):
            if server.started:
                # It would log every answer that it cuts off.
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                await server.shutdown([listener])
        raise


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # they are the relay's
