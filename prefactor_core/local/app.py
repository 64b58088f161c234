"""LocalPrefactor: the API as an ASGI application."""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.log import log
from prefactor_core.local.agents import Agents
from prefactor_core.local.bulk import Bulk
from prefactor_core.local.errors import ApiError
from prefactor_core.local.faults import FaultMiddleware, Faults, ReadOnly
from prefactor_core.local.requests import (
    BulkBody,
    CreateAgentBody,
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    MoveAgentBody,
    RecordQualityBody,
    RegisterBody,
    StartBody,
    TerminateBody,
    UpdateAgentBody,
    parse_body,
)
from prefactor_core.local.service import Service
from prefactor_core.local.store import MEMORY, Store, is_busy
from prefactor_core.local.tokens import Deployment, Tokens, check_account
from prefactor_core.queue.daemon_thread import DaemonThread

logger = logging.getLogger("prefactor_core.local")

Body = TypeVar("Body", bound=Struct)


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
        self._tokens = Tokens(api_token, deployment_tokens)
        self._faults = faults or Faults()
        self._agents = Agents(store, agents, self._faults)
        self._service = Service(store, self._agents, self._faults)
        # Calls on a file run in a thread, one at a time. Memory never waits, and without a thread
        # tests on virtual time can use it.
        in_memory = store.path == MEMORY
        self._thread = None if in_memory else thread or DaemonThread("prefactor local")
        self._storage_fails = False
        self._logged_failures: set[tuple[object, ...]] = set()
        self._router = Starlette(
            routes=self._routes(),
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

    def _routes(self) -> list[Route]:
        agents, service = self._agents, self._service
        read, manage, record = self._read, self._manage, self._record
        return [
            _route("GET", "ping", self._ping),
            _route("POST", "bulk", self._bulk),
            read("agent", lambda _, query: agents.list(query)),
            manage("POST", "agent", CreateAgentBody, lambda _, body: agents.create(body)),
            read("agent/show", lambda _, query: agents.show(query)),
            read("agent/{id}", lambda id, _: agents.get(id)),
            manage("PUT", "agent/{id}", UpdateAgentBody, agents.update),
            manage("POST", "agent/{id}/retire", MoveAgentBody, agents.retire),
            manage("POST", "agent/{id}/reinstate", MoveAgentBody, agents.reinstate),
            read("agent_instance", lambda _, query: service.list_instances(query)),
            record(
                "agent_instance/register",
                RegisterBody,
                lambda service, _, body: service.register(body),
            ),
            _route("GET", "agent_instance/{id}", self._get_instance),
            record("agent_instance/{id}/start", StartBody, Service.start),
            record("agent_instance/{id}/finish", FinishInstanceBody, Service.finish_instance),
            record("agent_instance/{id}/terminate", TerminateBody, Service.terminate),
            record("agent_instance/{id}/record_quality", RecordQualityBody, Service.record_quality),
            read("agent_spans", lambda _, query: service.list_spans(query)),
            record(
                "agent_spans", CreateSpanBody, lambda service, _, body: service.create_span(body)
            ),
            record("agent_spans/{id}/finish", FinishSpanBody, Service.finish_span),
        ]

    def _read(self, path: str, call: Callable[[str, Mapping[str, str]], bytes]) -> Route:
        """A route that reads, for the account. ``call`` takes the id in the path, or "", and the
        query."""

        async def endpoint(request: Request) -> Response:
            check_account(self._caller(request))
            return await self._answer(lambda: call(_id(request), request.query_params))

        return _route("GET", path, endpoint)

    def _manage(
        self, method: str, path: str, body_type: type[Body], call: Callable[[str, Body], bytes]
    ) -> Route:
        """A route that writes, for the account. ``call`` takes the id in the path, or ""."""

        async def endpoint(request: Request) -> Response:
            check_account(self._caller(request))
            return await self._write(request, body_type, lambda body: call(_id(request), body))

        return _route(method, path, endpoint)

    def _record(
        self, path: str, body_type: type[Body], call: Callable[[Service, str, Body], bytes]
    ) -> Route:
        """A route that writes, for any token. ``call`` takes the service as the caller may use it,
        and the id in the path, or ""."""

        async def endpoint(request: Request) -> Response:
            service = self._service.acting_for(self._caller(request))
            return await self._write(
                request, body_type, lambda body: call(service, _id(request), body)
            )

        return _route("POST", path, endpoint)

    async def _ping(self, request: Request) -> Response:
        caller = self._caller(request)
        token_type = "account" if caller is None else "agent_deployment"
        return JSONResponse({"status": "success", "details": {"token_type": token_type}})

    async def _get_instance(self, request: Request) -> Response:
        check_account(self._caller(request))
        # An agent asks whether it was terminated; a browser only shows the run.
        by_agent = "X-Prefactor-SDK" in request.headers
        return await self._answer(
            lambda: self._service.get_instance(_id(request), by_agent=by_agent)
        )

    async def _bulk(self, request: Request) -> Response:
        if not self._faults.bulk:
            raise HTTPException(404)
        # Items may run in a thread; the counter belongs to this one.
        errors: list[ApiError] = []
        items = Bulk(self._service, self._agents, self._faults, self._caller(request))
        answer = await self._write(request, BulkBody, lambda body: items.run(body, errors.append))
        self.refusals.update(error.code for error in errors)
        return answer

    async def _write(
        self, request: Request, body_type: type[Body], call: Callable[[Body], bytes]
    ) -> Response:
        body = parse_body(await request.body(), body_type)

        def write() -> bytes:
            _import_slow_modules()
            return call(body)

        answer = await self._answer(write)
        if self._storage_fails:
            self._storage_fails = False
            log(logger, logging.INFO, "the local database works again")
        return answer

    async def _answer(self, call: Callable[[], bytes]) -> Response:
        return Response(await self._call(call), media_type="application/json")

    async def _call(self, call: Callable[[], bytes]) -> bytes:
        if self._thread is None:
            return call()
        waiting = [call]
        try:
            return await self._thread.call(lambda: waiting.pop()())
        finally:
            # A call whose caller left before it began is neither made nor kept: with a disk that
            # hangs, such calls would pile up.
            waiting.clear()

    def _caller(self, request: Request) -> Deployment | None:
        return self._tokens.caller(request.headers.get("Authorization", ""))

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
        return await self._on_api_error(request, ApiError(error.status_code, code, message))

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


def _route(method: str, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(f"/api/v1/{path}", endpoint, methods=[method])


def _import_slow_modules() -> None:
    """Import the modules that a first write needs. In its transaction that would keep other
    processes waiting for longer than they do."""
    import prefactor_core.local.summaries
    import prefactor_core.schema_registry.json_schema  # noqa: F401


def _id(request: Request) -> str:
    return str(request.path_params.get("id", ""))
