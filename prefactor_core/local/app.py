"""LocalPrefactor: the API as an ASGI application."""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.log import log
from prefactor_core.local import answers
from prefactor_core.local.agents import Agents
from prefactor_core.local.bulk import Bulk
from prefactor_core.local.endpoint import Call, Endpoint
from prefactor_core.local.endpoints import endpoints
from prefactor_core.local.errors import ApiError
from prefactor_core.local.faults import FaultMiddleware, Faults, ReadOnly
from prefactor_core.local.openapi import openapi_document
from prefactor_core.local.requests import BulkBody, parse_body
from prefactor_core.local.resources.api_tokens import ApiTokens
from prefactor_core.local.resources.environments import Environments
from prefactor_core.local.service import Service
from prefactor_core.local.store import MEMORY, Store, is_busy
from prefactor_core.local.tokens import TOKEN_PREFIX, Deployment, Tokens, check_account
from prefactor_core.queue.daemon_thread import DaemonThread

logger = logging.getLogger("prefactor_core.local")

T = TypeVar("T")


class LocalPrefactor:
    """The API over ``store``; see :func:`open_local_prefactor`.

    ``thread``: where calls on a file run; by default a thread of its own.
    ``refusals`` counts the error responses by their code, also those of items in a bulk request.
    """

    def __init__(
        self,
        store: Store,
        *,
        api_token: str | None = None,
        deployment_tokens: Mapping[str, Deployment] | None = None,
        agents: Collection[str] | None = None,
        faults: Faults | None = None,
        thread: DaemonThread | None = None,
    ) -> None:
        if agents is not None and (
            isinstance(agents, str) or not all(isinstance(id, str) and id for id in agents)
        ):
            raise PrefactorValueError(
                f"agents must be a collection of ids, got {in_message(agents)}"
            )
        self.refusals: Counter[str] = Counter()
        self._store = store
        self._tokens = Tokens(api_token, deployment_tokens)
        self._faults = faults or Faults()
        self._agents = Agents(store, agents, self._faults)
        self._service = Service(store, self._agents, self._faults)
        self._environments = Environments(store, self._faults)
        self._api_tokens = ApiTokens(store, self._faults)
        self._refused_items: list[str] = []
        # Calls on a file run in a thread, one at a time. Memory never waits, and without a thread
        # tests on virtual time can use it.
        in_memory = store.path == MEMORY
        self._thread = None if in_memory else thread or DaemonThread("prefactor local")
        self._storage_fails = False
        self._logged_failures: set[tuple[object, ...]] = set()
        self._router = Starlette(
            routes=[self._route(endpoint) for endpoint in self._endpoints()],
            exception_handlers={
                ApiError: self._on_api_error,
                HTTPException: self._on_unknown_call,
                sqlite3.Error: self._on_storage_failure,
                ReadOnly: self._on_read_only,
                ClientDisconnect: self._on_disconnect,
                Exception: self._on_bug,
            },
        )
        self._router.router.redirect_slashes = False
        self._app = FaultMiddleware(self._answered, self._faults, self.refusals)

    @property
    def faults(self) -> Faults:
        """The errors to make on purpose; change its fields at any time."""
        return self._faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _endpoints(self) -> list[Endpoint]:
        service, agents, tokens = self._service, self._agents, self._api_tokens
        # Made on demand: few ask for it.
        document = cache(lambda: openapi_document(table))
        table = [
            Endpoint(
                method="POST",
                path="bulk",
                summary="Make several calls in one request",
                run=self._bulk,
                answer=answers.Outputs,
                body=BulkBody,
                scope="any",
            ),
            *endpoints(self._store, service, agents, tokens, self._faults),
            Endpoint(
                method="GET",
                path="ping",
                summary="Check the token",
                run=_ping,
                answer=answers.Details[answers.TokenType],
                scope="any",
            ),
            Endpoint(
                method="GET",
                path="openapi",
                summary="Get this document",
                run=lambda _: document(),
                answer=dict[str, Any],
                scope="open",
            ),
        ]
        return table

    def _route(self, endpoint: Endpoint) -> Route:
        async def answer(request: Request) -> Response:
            caller = None if endpoint.scope == "open" else await self._caller(request)
            if endpoint.scope == "account":
                check_account(caller)
            form = endpoint.body
            call = Call(
                caller=caller,
                by_sdk="X-Prefactor-SDK" in request.headers,
                id=str(request.path_params.get("id", "")),
                query=request.query_params,
                body=None if form is None else parse_body(await request.body(), form),
            )

            def run() -> bytes:
                if form is not None:
                    _import_slow_modules()
                return endpoint.run(call)

            content = await self._call(run)
            if form is not None and self._storage_fails:
                self._storage_fails = False
                log(logger, logging.INFO, "the local database works again")
            while self._refused_items:
                self.refusals[self._refused_items.pop()] += 1
            return Response(content, media_type="application/json")

        return Route(f"/api/v1/{endpoint.path}", answer, methods=[endpoint.method])

    def _bulk(self, call: Call) -> bytes:
        if not self._faults.bulk:
            raise ApiError(404, "not_found", "POST /api/v1/bulk: Not Found")
        items = Bulk(self._service, self._agents, self._environments, self._faults, call.caller)
        # This may run in a thread; the counter belongs to another one.
        return items.run(call.body, lambda error: self._refused_items.append(error.code))

    async def _caller(self, request: Request) -> Deployment | None:
        authorization = request.headers.get("Authorization", "")
        scheme, _, token = authorization.partition(" ")
        if scheme == "Bearer" and token.startswith(TOKEN_PREFIX):
            caller = await self._call(lambda: self._api_tokens.caller(token))
            if caller is not UNSET:
                return caller
        return self._tokens.caller(authorization)

    async def _call(self, call: Callable[[], T]) -> T:
        if self._thread is None:
            return call()
        waiting = [call]
        try:
            return await self._thread.call(lambda: waiting.pop()())
        finally:
            # A call whose caller left before it began is neither made nor kept: with a disk that
            # hangs, such calls would pile up.
            waiting.clear()

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router(scope, receive, send)
        except Exception:
            # Starlette answers by _on_bug and then raises the error again: a server would log it a
            # second time, and an in-process client would get it.
            if scope["type"] != "http":
                raise

    async def _on_api_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        self.refusals[error.code] += 1
        return JSONResponse(error.body(), error.status)

    async def _on_unknown_call(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = "not_found" if error.status_code == 404 else "bad_request"
        message = f"{request.method} {request.url.path}: {error.detail}"
        answer = await self._on_api_error(request, ApiError(error.status_code, code, message))
        if error.status_code == 405:
            # The router knows the methods of one route, and a path has a route for each.
            answer.headers["Allow"] = ", ".join(self._methods_of(request.url.path))
        return answer

    def _methods_of(self, path: str) -> list[str]:
        routes = [route for route in self._router.routes if isinstance(route, Route)]
        # agent/show is no agent of this id.
        found = [route for route in routes if route.path == path]
        found = found or [route for route in routes if route.path_regex.match(path)]
        return sorted({method for route in found for method in route.methods or ()})

    async def _on_disconnect(self, request: Request, error: Exception) -> Response:
        message = "the connection was closed before the body was whole"
        return await self._on_api_error(request, ApiError(400, "bad_request", message))

    async def _on_read_only(self, request: Request, error: Exception) -> Response:
        return self._app.failure()

    async def _on_bug(self, request: Request, error: Exception) -> Response:
        # A bug, or a damaged file. The client tries again: log each place in the code once.
        frames = traceback.extract_tb(error.__traceback__)
        place = type(error), *((frame.filename, frame.lineno) for frame in frames[-1:])
        if place not in self._logged_failures:
            self._logged_failures.add(place)
            call = f"{request.method} {request.url.path}"
            log(logger, logging.ERROR, "%s failed in this server", call, error=error)
        message = "this server failed: its log says why"
        return await self._on_api_error(request, ApiError(500, "internal_error", message))

    async def _on_storage_failure(self, request: Request, error: Exception) -> Response:
        # A full disk or a locked file passes: the client keeps its operations and tries again.
        # The client also warns of the outage, once. A client in another process does not share
        # this log, so one line per outage stands here, too.
        if not self._storage_fails:
            self._storage_fails = True
            level = logging.INFO if is_busy(error) else logging.WARNING
            log(logger, level, "the local database failed: %s", error)
        return await self._on_api_error(request, ApiError(503, "storage_unavailable", str(error)))


def _ping(call: Call) -> bytes:
    token_type = "account" if call.caller is None else "agent_deployment"
    return msgspec.json.encode({"status": "success", "details": {"token_type": token_type}})


def _import_slow_modules() -> None:
    """Import the modules that a first write needs. In its transaction that would keep other
    processes waiting for longer than they do."""
    import_module("prefactor_core.local.summaries")
    import_module("prefactor_core.schema_registry.json_schema")
