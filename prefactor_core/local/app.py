"""LocalPrefactor: the service as an ASGI application."""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import anyio
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
from prefactor_core.local.faults import Faults, FaultyFront, ReadOnly
from prefactor_core.local.refusal import Refusal
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

_CLOSE_TIMEOUT: Final = 1.0
"""Seconds to wait for the file to be closed; after them its thread does that alone."""


@asynccontextmanager
async def open_local_prefactor(
    path: str,
    *,
    api_token: str | None = None,
    deployment_tokens: Mapping[str, Deployment] | None = None,
    agents: Collection[str] | None = None,
    faults: Faults | None = None,
    opening_timeout: float = 10.0,
) -> AsyncGenerator[LocalPrefactor]:
    """The API on the database file ``path``, made if it is not there, as an ASGI application.

    ``:memory:`` is a database that is gone when the block is left. ``api_token`` is the token
    of the account; each of ``deployment_tokens`` stands for one agent in one environment, and
    may record and not read (API.md section 1). By default every token is taken, also none, as
    the account's. ``agents`` are the agents that exist, beside those that are created; by
    default every agent that registers a run is made known. ``faults`` are what it does wrong.
    ``opening_timeout``: seconds to wait while other processes have the file locked and it must
    be made, or brought up to date; otherwise no lock is needed.

    A file that it makes is for its owner alone. Another process may have the same file open. A
    call that finds it locked for 0.2 s is answered 503.

    Raises :class:`PrefactorValueError` if ``path`` can be no database or cannot be opened in
    time, and for a token or an agent that can be none.
    """
    # SQLite takes "" for a file without a name, gone when it is closed.
    if not path:
        raise PrefactorValueError(f"path must be a file name or {MEMORY!r}, got {in_message(path)}")

    # A thread that nothing waits for: one that hangs in a lock or a disk, or a loop that is
    # stopped in the middle, must not keep the process from ending.
    thread = None if path == MEMORY else DaemonThread("prefactor local")
    stores: list[Store] = []

    def make() -> LocalPrefactor:
        store = Store(path, opening_timeout)
        stores.append(store)
        return LocalPrefactor(
            store,
            api_token=api_token,
            deployment_tokens=deployment_tokens,
            agents=agents,
            faults=faults,
            thread=thread,
        )

    def close() -> None:
        for store in stores:
            store.close()

    close_timeout = 0.0  # for an opening that failed, or whose caller is gone
    try:
        app = await _opened(path, make, thread, opening_timeout)
        close_timeout = _CLOSE_TIMEOUT
        yield app
    finally:
        if thread is None:
            close()
        else:
            # The same thread closes it, after calls that nobody waits for any more.
            # RuntimeError: it cannot be started; SQLite closes what nothing refers to.
            with (
                suppress(RuntimeError, sqlite3.Error),
                anyio.move_on_after(close_timeout, shield=True),
            ):
                try:
                    await thread.call(close)
                finally:
                    thread.end()


async def _opened(
    path: str,
    make: Callable[[], LocalPrefactor],
    thread: DaemonThread | None,
    seconds: float,
) -> LocalPrefactor:
    try:
        if thread is None:
            return make()
        # A second more: who waits for a lock gives up itself, and says so better.
        with anyio.fail_after(seconds + 1.0):
            return await thread.call(make)
    except PrefactorValueError:
        raise
    except TimeoutError:
        problem = f"the disk did not answer within {seconds + 1.0:g} s"
    except (sqlite3.Error, OSError, ValueError, RuntimeError) as error:
        # RuntimeError: no thread can be started.
        problem = str(error)
    raise PrefactorValueError(f"cannot open the database {path!r}: {problem}")


class LocalPrefactor:
    """The API over ``store``; see :func:`open_local_prefactor`. ``thread``: where the calls on
    a file are made, by default in one of its own.

    ``refusals`` counts the answers that were errors, by their code, also those of an item in
    a bulk.
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
        # A file is read and written in a thread, one call at a time. Memory has nothing to
        # wait for; without threads, tests on virtual time can use it.
        in_memory = store.path == MEMORY
        self._thread = None if in_memory else thread or DaemonThread("prefactor local")
        self._storage_fails = False
        app = Starlette(
            routes=[
                Route("/api/v1/ping", self._ping),
                Route("/api/v1/agent", self._list_agents),
                Route("/api/v1/agent", self._create_agent, methods=["POST"]),
                Route("/api/v1/agent/show", self._show_agent),
                Route("/api/v1/agent/{id}", self._get_agent),
                Route("/api/v1/agent/{id}", self._update_agent, methods=["PUT"]),
                Route("/api/v1/agent/{id}/retire", self._retire_agent, methods=["POST"]),
                Route("/api/v1/agent/{id}/reinstate", self._reinstate_agent, methods=["POST"]),
                Route("/api/v1/agent_instance", self._list_instances),
                Route("/api/v1/agent_instance/register", self._register, methods=["POST"]),
                Route("/api/v1/agent_instance/{id}", self._get_instance),
                Route("/api/v1/agent_instance/{id}/start", self._start, methods=["POST"]),
                Route("/api/v1/agent_instance/{id}/finish", self._finish, methods=["POST"]),
                Route("/api/v1/agent_instance/{id}/terminate", self._terminate, methods=["POST"]),
                Route(
                    "/api/v1/agent_instance/{id}/record_quality", self._quality, methods=["POST"]
                ),
                Route("/api/v1/agent_spans", self._list_spans),
                Route("/api/v1/agent_spans", self._create_span, methods=["POST"]),
                Route("/api/v1/agent_spans/{id}/finish", self._finish_span, methods=["POST"]),
                Route("/api/v1/bulk", self._bulk, methods=["POST"]),
            ],
            exception_handlers={
                Refusal: self._refused,
                HTTPException: self._no_such_call,
                sqlite3.Error: self._no_storage,
                ReadOnly: self._failed,
                ClientDisconnect: self._cut_off,
                Exception: self._broken,
            },
        )
        app.router.redirect_slashes = False
        self._routes = app
        self._told: set[tuple[object, ...]] = set()
        self._app = FaultyFront(self._answered, self._faults, self.refusals)

    @property
    def faults(self) -> Faults:
        """What it does wrong; change its fields at any time."""
        return self._faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._routes(scope, receive, send)
        except Exception:
            # Starlette has it answered by _broken, and raises it again: for a server that would
            # log it once more, and in the same process into the client.
            if scope["type"] != "http":
                raise

    async def _ping(self, request: Request) -> Response:
        caller = self._caller(request)
        token_type = "account" if caller is None else "agent_deployment"
        return JSONResponse({"status": "success", "details": {"token_type": token_type}})

    async def _list_agents(self, request: Request) -> Response:
        return await self._get(request, lambda: self._agents.list(request.query_params))

    async def _create_agent(self, request: Request) -> Response:
        return await self._manage(request, CreateAgentBody, self._agents.create)

    async def _show_agent(self, request: Request) -> Response:
        return await self._get(request, lambda: self._agents.show(request.query_params))

    async def _get_agent(self, request: Request) -> Response:
        id = request.path_params["id"]
        return await self._get(request, lambda: self._agents.get(id))

    async def _update_agent(self, request: Request) -> Response:
        id = request.path_params["id"]
        return await self._manage(
            request, UpdateAgentBody, lambda body: self._agents.update(id, body)
        )

    async def _retire_agent(self, request: Request) -> Response:
        id = request.path_params["id"]
        return await self._manage(
            request, MoveAgentBody, lambda body: self._agents.retire(id, body)
        )

    async def _reinstate_agent(self, request: Request) -> Response:
        id = request.path_params["id"]
        return await self._manage(
            request, MoveAgentBody, lambda body: self._agents.reinstate(id, body)
        )

    async def _register(self, request: Request) -> Response:
        return await self._post(request, RegisterBody, self._acting(request).register)

    async def _start(self, request: Request) -> Response:
        id = request.path_params["id"]
        acting = self._acting(request)
        return await self._post(request, StartBody, lambda body: acting.start(id, body))

    async def _finish(self, request: Request) -> Response:
        id = request.path_params["id"]
        acting = self._acting(request)
        return await self._post(
            request, FinishInstanceBody, lambda body: acting.finish_instance(id, body)
        )

    async def _terminate(self, request: Request) -> Response:
        id = request.path_params["id"]
        acting = self._acting(request)
        return await self._post(request, TerminateBody, lambda body: acting.terminate(id, body))

    async def _quality(self, request: Request) -> Response:
        id = request.path_params["id"]
        acting = self._acting(request)
        return await self._post(
            request, RecordQualityBody, lambda body: acting.record_quality(id, body)
        )

    async def _create_span(self, request: Request) -> Response:
        return await self._post(request, CreateSpanBody, self._acting(request).create_span)

    async def _finish_span(self, request: Request) -> Response:
        id = request.path_params["id"]
        acting = self._acting(request)
        return await self._post(request, FinishSpanBody, lambda body: acting.finish_span(id, body))

    async def _bulk(self, request: Request) -> Response:
        if not self._faults.bulk:
            raise HTTPException(404)
        # Items may run in a thread; the counter belongs to this one.
        refused: list[Refusal] = []
        items = Bulk(self._service, self._agents, self._faults, self._caller(request))
        answer = await self._post(request, BulkBody, lambda body: items.run(body, refused.append))
        self.refusals.update(refusal.code for refusal in refused)
        return answer

    async def _get_instance(self, request: Request) -> Response:
        id = request.path_params["id"]
        return await self._get(request, lambda: self._service.get_instance(id))

    async def _list_instances(self, request: Request) -> Response:
        return await self._get(request, lambda: self._service.list_instances(request.query_params))

    async def _list_spans(self, request: Request) -> Response:
        return await self._get(request, lambda: self._service.list_spans(request.query_params))

    async def _post(
        self, request: Request, body_type: type[Body], call: Callable[[Body], bytes]
    ) -> Response:
        self._caller(request)
        body = parse_body(await request.body(), body_type)
        answer = await self._answer(lambda: call(body))
        if self._storage_fails:
            self._storage_fails = False
            log(logger, logging.INFO, "the local database works again")
        return answer

    async def _manage(
        self, request: Request, body_type: type[Body], call: Callable[[Body], bytes]
    ) -> Response:
        check_account(self._caller(request))
        return await self._post(request, body_type, call)

    async def _get(self, request: Request, call: Callable[[], bytes]) -> Response:
        check_account(self._caller(request))
        return await self._answer(call)

    async def _answer(self, call: Callable[[], bytes]) -> Response:
        return Response(await self._call(call), media_type="application/json")

    async def _call(self, call: Callable[[], bytes]) -> bytes:
        if self._thread is None:
            return call()
        waiting = [call]
        try:
            return await self._thread.call(lambda: waiting.pop()())
        finally:
            # If the caller is gone before its call began, it is not made, and not kept: with a
            # disk that hangs, such calls would pile up.
            waiting.clear()

    def _acting(self, request: Request) -> Service:
        return self._service.acting_for(self._caller(request))

    def _caller(self, request: Request) -> Deployment | None:
        return self._tokens.caller(request.headers.get("Authorization", ""))

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        self.refusals[error.code] += 1
        return JSONResponse(error.body(), error.status)

    async def _no_such_call(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = "not_found" if error.status_code == 404 else "bad_request"
        message = f"{request.method} {request.url.path}: {error.detail}"
        return await self._refused(request, Refusal(error.status_code, code, message))

    async def _cut_off(self, request: Request, error: Exception) -> Response:
        message = "the connection was closed before the body was whole"
        return await self._refused(request, Refusal(400, "bad_request", message))

    async def _failed(self, request: Request, error: Exception) -> Response:
        return self._app.failure()

    async def _broken(self, request: Request, error: Exception) -> Response:
        # A bug, or a damaged file. The client tries again, and each time it is the same line.
        frames = traceback.extract_tb(error.__traceback__)
        place = type(error), *((frame.filename, frame.lineno) for frame in frames[-1:])
        if place not in self._told:
            self._told.add(place)
            call = f"{request.method} {request.url.path}"
            log(logger, logging.ERROR, "%s failed in this server", call, error=error)
        message = "this server failed: its log says why"
        return await self._refused(request, Refusal(500, "internal_error", message))

    async def _no_storage(self, request: Request, error: Exception) -> Response:
        # A full disk or a locked file passes: the client keeps its operations and tries again.
        # It also warns, once, of the outage; where it runs elsewhere, one line for each does.
        if not self._storage_fails:
            self._storage_fails = True
            level = logging.INFO if is_busy(error) else logging.WARNING
            log(logger, level, "the local database failed: %s", error)
        return await self._refused(request, Refusal(503, "storage_unavailable", str(error)))
