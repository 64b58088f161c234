"""Viewer: the pages, and the private endpoints that they read, as an ASGI application."""

from __future__ import annotations

import gzip
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Final

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from prefactor_core.config._version import __version__
from prefactor_core.exceptions.log import log
from prefactor_core.local.errors import ApiError
from prefactor_core.local.requests import stored_now
from prefactor_core.local.viewer.agents import list_agents
from prefactor_core.local.viewer.events import EventStream, Position
from prefactor_core.local.viewer.export import export
from prefactor_core.local.viewer.reader import Reader, open_reader
from prefactor_core.local.viewer.run_list import list_runs
from prefactor_core.local.viewer.runs import run_details
from prefactor_core.local.viewer.search import search
from prefactor_core.local.viewer.spans import (
    changes,
    payloads,
    revision_of,
    run_of_span,
    skeleton,
    span_details,
)
from prefactor_core.local.viewer.static import StaticFiles, accepts_gzip
from prefactor_core.local.viewer.usage import usage

logger = logging.getLogger("prefactor_core.local")

Query = Callable[[Connection, str, Mapping[str, str]], bytes]
"""Takes the id in the path, or "", and the query of the URL; returns JSON."""

_LEAST_COMPRESSED: Final = 2_000
"""Bytes of an answer from which on it is worth compressing."""

_PAGES: Final = ("/", "/runs/{id}", "/agents", "/cli/connect")


class Viewer:
    """The pages over a database file; see :func:`open_viewer`."""

    def __init__(
        self,
        path: str,
        quick: Reader,
        slow: Reader,
        *,
        read_only: bool,
        needs_token: bool,
        stopping: anyio.Event | None,
    ) -> None:
        self._path = Path(path).absolute()
        self._quick = quick
        # What may take long has a thread of its own: the other one must not wait for it.
        self._slow = slow
        self._read_only = read_only
        self._needs_token = needs_token
        self._stopping = stopping or anyio.Event()
        self._static = StaticFiles()
        self._router = Starlette(
            routes=self._routes(),
            exception_handlers={
                ApiError: _on_api_error,
                HTTPException: self._on_unknown,
                sqlite3.Error: _on_storage_failure,
                Exception: _on_bug,
            },
        )
        self._router.router.redirect_slashes = False

    @property
    def static_version(self) -> str:
        """The part of the URL of static files that changes with their content."""
        return self._static.version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router(scope, receive, send)
        except Exception:
            # Starlette has answered by _on_bug, and raises the error for the log of the server.
            if scope["type"] != "http":
                raise

    def _routes(self) -> list[Route]:
        quick, slow = self._quick, self._slow
        run = "/-/runs/{id}"
        return [
            *(Route(path, self._page) for path in _PAGES),
            Route("/spans/{id}", self._redirect_to_span),
            Route("/favicon.ico", self._no_icon),
            Route("/-/static/{version}/{name:path}", self._file),
            Route("/-/about", self._about),
            Route("/-/events", self._events),
            _json("/-/agents", quick, lambda db, _id, _query: list_agents(db)),
            Route("/-/runs", self._runs),
            _json(run, quick, lambda db, id, _query: run_details(db, id)),
            _json(f"{run}/skeleton", slow, lambda db, id, _query: skeleton(db, id)),
            _json(f"{run}/changes", quick, changes),
            _json(f"{run}/search", slow, search),
            _json(f"{run}/usage", slow, lambda db, id, _query: usage(db, id)),
            Route(f"{run}/export", self._export),
            _json("/-/spans", slow, lambda db, _id, query: payloads(db, query)),
            _json("/-/spans/{id}", quick, lambda db, id, _query: span_details(db, id)),
        ]

    async def _page(self, request: Request) -> Response:
        return self._static.index()

    async def _file(self, request: Request) -> Response:
        return self._static.file(request)

    async def _no_icon(self, request: Request) -> Response:
        return Response(status_code=204)

    async def _redirect_to_span(self, request: Request) -> Response:
        span_id = _id(request)
        try:
            run_id = await self._quick.read(lambda db: run_of_span(db, span_id))
        except ApiError as error:
            return self._static.index(error.status)
        return RedirectResponse(f"/runs/{run_id}?span={span_id}", 302)

    async def _runs(self, request: Request) -> Response:
        # A text is looked for in all payloads.
        reader = self._slow if request.query_params.get("q") else self._quick
        return await _read(request, reader, lambda db, _id, query: list_runs(db, query))

    async def _about(self, request: Request) -> Response:
        def about(db: Connection, _id: str, _query: object) -> bytes:
            (account_id,) = db.execute("SELECT id FROM account").fetchone()
            return msgspec.json.encode(
                {
                    "database": self._path.name,
                    "path": str(self._path),
                    "url": str(request.base_url).rstrip("/"),
                    "version": __version__,
                    "read_only": self._read_only,
                    "needs_token": self._needs_token,
                    "time": stored_now(),
                    "account_id": account_id,
                }
            )

        return await _read(request, self._quick, about)

    async def _export(self, request: Request) -> Response:
        # A large run takes seconds: nothing else may wait for it.
        async with open_reader(str(self._path), "prefactor viewer, export") as reader:
            name, media_type, content = await reader.read(
                lambda db: export(db, self._path.name, _id(request), request.query_params)
            )
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        }
        return Response(content, headers=headers, media_type=media_type)

    async def _events(self, request: Request) -> EventStream:
        after = request.headers.get("Last-Event-ID") or request.query_params.get("after")
        position = Position(None if after is None else revision_of(after, "after"))
        return EventStream(self._quick, position, self._stopping)

    async def _on_unknown(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 404 and not path.startswith("/-/"):
            return self._static.index(404)
        code = "not_found" if error.status_code == 404 else "bad_request"
        message = f"{request.method} {path}: {error.detail}"
        return await _on_api_error(request, ApiError(error.status_code, code, message))


@asynccontextmanager
async def open_viewer(
    path: str,
    *,
    read_only: bool = False,
    needs_token: bool = False,
    stopping: anyio.Event | None = None,
) -> AsyncGenerator[Viewer]:
    """Open the pages over the database file ``path``, as an ASGI application.

    ``read_only``: the pages say that nothing in the file can be changed. The viewer itself never
    writes to it.
    ``needs_token``: the pages say that agents need the token of the server.
    ``stopping``: the server sets it before it stops; it ends all streams of events.

    Raises :class:`PrefactorValueError` for a file that cannot be read; see :func:`open_reader`.
    """
    async with (
        open_reader(path, "prefactor viewer") as quick,
        open_reader(path, "prefactor viewer, slow") as slow,
    ):
        yield Viewer(
            path, quick, slow, read_only=read_only, needs_token=needs_token, stopping=stopping
        )


def _json(path: str, reader: Reader, query: Query) -> Route:
    async def endpoint(request: Request) -> Response:
        return await _read(request, reader, query)

    return Route(path, endpoint)


async def _read(request: Request, reader: Reader, query: Query) -> Response:
    """Answer with the JSON of ``query``; made and compressed in the thread."""
    compressed = accepts_gzip(request)

    def answer(db: Connection) -> Response:
        content = query(db, _id(request), request.query_params)
        headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
        if compressed and len(content) >= _LEAST_COMPRESSED:
            headers["Content-Encoding"] = "gzip"
            # The lowest level is the fastest, and the answer has no long way to go.
            content = gzip.compress(content, 1, mtime=0)
        return Response(content, headers=headers, media_type="application/json")

    return await reader.read(answer)


def _id(request: Request) -> str:
    return str(request.path_params.get("id", ""))


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


async def _on_storage_failure(request: Request, error: Exception) -> Response:
    return await _on_api_error(request, ApiError(503, "storage_unavailable", str(error)))


async def _on_bug(request: Request, error: Exception) -> Response:
    call = f"{request.method} {request.url.path}"
    log(logger, logging.ERROR, "%s failed in the viewer", call, error=error)
    message = "this server failed: its log says why"
    return await _on_api_error(request, ApiError(500, "internal_error", message))
