"""What the tests record with: a strict API in memory, its faults, and what it stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    SchemaRegistry,
    open_prefactor,
)
from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.api.client import AsgiApp, AsgiMessage
from prefactor_core.connection import open_api
from prefactor_core.local import open_local_prefactor

TOKEN = "token-for-tests"
AGENT = {
    "agent_id": "tested-agent",
    "agent_version": {"name": "Tested agent", "external_identifier": "v1"},
}


def make_registry() -> SchemaRegistry:
    registry = SchemaRegistry()
    for name in ("agent:run", "agent:llm", "agent:tool"):
        registry.register_type(name, {"type": "object"})
    return registry


def make_config(
    *,
    http: dict[str, object] | None = None,
    queue: dict[str, object] | None = None,
    **options: Any,
) -> PrefactorCoreConfig:
    """A configuration whose URL nobody answers: for use with ``asgi_app=``."""
    options.setdefault("schema_registry", make_registry())
    return PrefactorCoreConfig(
        http_config={"api_url": "http://prefactor.invalid", "api_token": TOKEN, **(http or {})},
        queue_config=queue or {},
        **options,
    )


@dataclass
class Call:
    """One request that reached the API, and how it was answered (0: not at all)."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]
    status: int = 0
    time: float = 0.0

    @property
    def name(self) -> str:
        """The last words of the path, without ids: register, start, agent_spans, finish…"""
        return self.path.removeprefix("/api/v1/").rsplit("/", 1)[-1]


@dataclass
class FaultyApi:
    """An ASGI application in front of another: it records the calls, and can spoil them.

    ``away``: connections are refused. ``hanging``: no call is answered. ``faults``: maps the
    last word of a path (or "*") to a status, an answer (status, headers, body), or an exception,
    given instead of the application's; a list of them is used up one by one.
    ``lost_answers``: so many calls are done, and their answers lost.
    """

    app: AsgiApp
    calls: list[Call] = field(default_factory=list)
    away: bool = False
    hanging: bool = False
    lost_answers: int = 0
    faults: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The calls that were answered with success, in order."""
        return [call.name for call in self.calls if 0 < call.status < 400]

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        body = msgspec.json.decode(content) if content else None
        call = Call(scope["method"], scope["path"], body, headers, time=anyio.current_time())
        self.calls.append(call)
        if self.away:
            raise ConnectionRefusedError("nobody is there")
        if self.hanging:
            await anyio.sleep_forever()
        fault = self._next_fault(call.name)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            await self._answer(call, fault, send)
            return

        async def replay() -> AsgiMessage:
            return {"type": "http.request", "body": content, "more_body": False}

        async def note(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
            if not self.lost_answers:
                await send(message)

        await self.app(scope, replay, note)
        if self.lost_answers:
            self.lost_answers -= 1
            raise ConnectionResetError("the answer is lost")

    def _next_fault(self, name: str) -> Any:
        fault = self.faults.get(name, self.faults.get("*"))
        if isinstance(fault, list):
            return fault.pop(0) if fault else None
        return fault

    async def _answer(self, call: Call, fault: Any, send: Any) -> None:
        status, headers, body = fault if isinstance(fault, tuple) else (fault, {}, None)
        if body is None:
            body = msgspec.json.encode({"status": "error", "code": "spoiled", "message": "no"})
        call.status = status
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def open_faulty_api(**options: Any) -> AsyncGenerator[FaultyApi]:
    """The strict API in memory, behind a :class:`FaultyApi`."""
    async with open_local_prefactor(":memory:", **options) as app:
        yield FaultyApi(app)


@dataclass
class StoredSpan:
    """A span as the server has it, with its children in the order of their start."""

    name: str
    status: str
    payload: Any
    result: Any
    id: str
    parent_id: str | None
    started_at: str | None
    finished_at: str | None
    children: list[StoredSpan] = field(default_factory=list)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Name, status and children: what does not change from run to run."""
        return (self.name, self.status, [child.shape for child in self.children])


@dataclass
class StoredRun:
    """An agent instance as the server has it; ``roots`` are the spans without a parent."""

    id: str
    status: str
    started_at: str | None
    finished_at: str | None
    spans: dict[str, StoredSpan]

    @property
    def roots(self) -> list[StoredSpan]:
        return [span for span in self.spans.values() if span.parent_id is None]

    @property
    def shape(self) -> tuple[Any, ...]:
        return (self.status, [root.shape for root in self.roots])

    def named(self, name: str) -> StoredSpan:
        """The one span of this name."""
        (span,) = (span for span in self.spans.values() if span.name == name)
        return span


async def stored_runs(app: AsgiApp, agent_id: str = "tested-agent") -> list[StoredRun]:
    """What the API stored, oldest run first, read through the API."""
    app = app.app if isinstance(app, FaultyApi) else app
    async with open_api(make_config().http_config, app) as api:
        instances = [run async for run in api.list_agent_instances(agent_id)]
        runs = [
            _run(run, [span async for span in api.list_agent_spans(run.id)]) for run in instances
        ]
    # By time: ids made within one millisecond are in no order.
    return sorted(runs, key=lambda run: run.started_at or "")


async def stored_run(app: AsgiApp) -> StoredRun:
    """The one run that the API stored."""
    (run,) = await stored_runs(app)
    return run


@dataclass
class Recording:
    """A client with one run open; ``runs`` is what the API has once the block is left."""

    client: PrefactorCoreClient
    instance: AgentInstanceHandle
    api: FaultyApi
    runs: list[StoredRun] = field(default_factory=list)

    @property
    def run(self) -> StoredRun:
        """The one run that was stored."""
        (run,) = self.runs
        return run


@asynccontextmanager
async def recording(**options: Any) -> AsyncGenerator[Recording]:
    """Record one run of the tested agent; nothing of it may be lost."""
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with (
                open_prefactor(make_config(**options), asgi_app=api) as client,
                client.agent_instance(**AGENT) as instance,
            ):
                recorded = Recording(client, instance, api)
                yield recorded
            assert client.statistics().lost == 0, client.statistics()
            recorded.runs = await stored_runs(api)


def _run(instance: AgentInstanceAnswer, answers: Iterable[AgentSpanAnswer]) -> StoredRun:
    spans = [
        StoredSpan(
            name=answer.schema_name,
            status=answer.status,
            payload=msgspec.json.decode(answer.payload),
            result=msgspec.json.decode(answer.result_payload),
            id=answer.id,
            parent_id=answer.parent_span_id,
            started_at=answer.started_at,
            finished_at=answer.finished_at,
        )
        for answer in answers
    ]
    spans.sort(key=lambda span: span.started_at or span.finished_at or "")
    by_parent: dict[str | None, list[StoredSpan]] = defaultdict(list)
    for span in spans:
        by_parent[span.parent_id].append(span)
    for span in spans:
        span.children = by_parent[span.id]
    return StoredRun(
        id=instance.id,
        status=instance.status,
        started_at=instance.started_at,
        finished_at=instance.finished_at,
        spans={span.id: span for span in spans},
    )
