"""What the tests record with: a strict API in memory, its faults, and what it stored."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import anyio
import httpx
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
from prefactor_core.client.connection import open_api
from prefactor_core.local import open_local_prefactor

Answer: TypeAlias = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""

TOKEN = "token-for-tests"
AGENT = {
    "agent_id": "tested-agent",
    "agent_version": {"name": "Tested agent", "external_identifier": "v1"},
}
# What the API can say of one item of a bulk request; anything else is about all of it.
_REFUSALS = frozenset(range(400, 500)) - {401, 403, 408, 413, 429}
_NO = {"status": "error", "code": "spoiled", "message": "no"}


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
    """A configuration whose URL nobody answers: for use with ``asgi_app=``. Runs are not polled,
    and spans are not reported by time, so that only what a test does makes a request."""
    options.setdefault("schema_registry", make_registry())
    options.setdefault("termination_poll_interval", math.inf)
    return PrefactorCoreConfig(
        http_config={"api_url": "http://prefactor.invalid", "api_token": TOKEN, **(http or {})},
        queue_config={"report_after": math.inf, **(queue or {})},
        **options,
    )


@dataclass
class Call:
    """One request that reached the API, and how it was answered (0: not at all).

    ``items``: for a bulk request, the single calls that would have done the same; one after an
    item that failed has no status.
    """

    method: str
    path: str
    body: Any
    headers: dict[str, str]
    status: int = 0
    time: float = 0.0
    items: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The last word of the path: register, start, agent_spans, finish, bulk…"""
        return self.path.rsplit("/", 1)[-1]


def _items_of(call: Call) -> list[Call]:
    """The items of a bulk request, each as the call that does the same alone."""
    paths = {
        "agent_instances/register": "agent_instance/register",
        "agent_instances/start": "agent_instance/{agent_instance_id}/start",
        "agent_instances/finish": "agent_instance/{agent_instance_id}/finish",
        "agent_instances/record_quality": "agent_instance/{agent_instance_id}/record_quality",
        "agent_spans/create": "agent_spans",
        "agent_spans/finish": "agent_spans/{agent_span_id}/finish",
    }
    return [
        replace(call, path="/api/v1/" + paths[item["_type"]].format_map(item), body=item)
        for item in call.body["items"]
    ]


def on_create_of(name: str, fault: object) -> Callable[[Call], object]:
    """A fault for the creates of spans of this name, and of no other."""

    def choose(call: Call) -> object:
        return fault if call.body["details"]["schema_name"] == name else None

    return choose


@dataclass
class FaultyApi:
    """An ASGI application in front of another: it records the calls, and can spoil them.

    ``away``: connections are refused. ``hanging``: no call is answered. ``held``:
    calls whose path has one of these as its last word wait. ``lost_answers``: so many requests are
    done, and their answers lost.

    ``faults``: maps the last word of a path to what is given instead of the application's
    answer: a status, an answer (status, headers, body), an exception, a function that is
    given the :class:`Call` and gives one of these, or None for no fault; a list of them is
    used up one by one. ``"*"`` stands for every request that has no entry of its own,
    ``"bulk"`` for bulk requests as a whole. Any other word finds its calls in bulk too: there
    a refusal is the output of the item, as ``POST /bulk`` returns it (the items before it are done,
    those after it are not); any other fault is that of the whole request, and nothing is done.
    """

    app: AsgiApp
    calls: list[Call] = field(default_factory=list)
    away: bool = False
    hanging: bool = False
    held: frozenset[str] = frozenset()
    lost_answers: int = 0
    faults: dict[str, Any] = field(default_factory=dict)

    @property
    def operations(self) -> list[Call]:
        """The calls, with the items of a bulk request in its place."""
        return [part for call in self.calls for part in call.items or [call]]

    def names(self) -> list[str]:
        """What was done with success, alone or in bulk, in order."""
        return [call.name for call in self.operations if 0 < call.status < 400]

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
        if call.name == "bulk":
            call.items = _items_of(call)
        if self.away:
            raise ConnectionRefusedError("nobody is there")
        if self.hanging:
            await anyio.sleep_forever()
        while call.name in self.held:  # noqa: ASYNC110 - by another thread
            await anyio.sleep(0.02)
        fault, refused = self._fault_of(call)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            answer = self._answer_of(fault)
        elif refused == 0:
            answer = 200, {}, msgspec.json.encode({"status": "success", "outputs": {}})
        else:
            if refused is not None:
                content = msgspec.json.encode({"items": body["items"][:refused]})
            answer = await self._ask(scope, content)
        if call.items and answer[0] == 200:
            answer = self._with_outputs(call, answer, refused)
        call.status = answer[0]
        if self.lost_answers:
            self.lost_answers -= 1
            raise ConnectionResetError("the answer is lost")
        await self._send(answer, send)

    async def _ask(self, scope: AsgiMessage, content: bytes) -> Answer:
        """What the application answers."""
        status, headers, body = 0, dict[str, str](), b""

        async def replay() -> AsgiMessage:
            return {"type": "http.request", "body": content, "more_body": False}

        async def note(message: AsgiMessage) -> None:
            nonlocal status, headers, body
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                body += message.get("body", b"")

        await self.app(scope, replay, note)
        return status, headers, body

    def _fault_of(self, call: Call) -> tuple[Any, int | None]:
        """The fault of the whole request; else which of its items is to be refused."""
        fault = self._next_fault(call, call.name if call.name in self.faults else "*")
        if fault is not None:
            return fault, None
        for place, item in enumerate(call.items):
            fault = self._next_fault(item, item.name)
            if isinstance(fault, int) and fault in _REFUSALS:
                item.status = fault
                return None, place
            if fault is not None:
                return fault, None
        return None, None

    def _next_fault(self, call: Call, key: str) -> Any:
        fault = self.faults.get(key)
        if isinstance(fault, list):
            fault = fault.pop(0) if fault else None
        return fault(call) if callable(fault) else fault

    def _with_outputs(self, call: Call, answer: Answer, refused: int | None) -> Answer:
        """The answer to a bulk request, with that of the item that is refused."""
        try:
            outputs = msgspec.json.decode(answer[2])["outputs"]
        except msgspec.DecodeError:
            return answer
        if refused is not None:
            outputs[call.items[refused].body["idempotency_key"]] = _NO
        for item in call.items:
            output = outputs.get(item.body["idempotency_key"])
            if output is not None and not item.status:
                item.status = 200 if output["status"] == "success" else 400
        return 200, {}, msgspec.json.encode({"status": "success", "outputs": outputs})

    def _answer_of(self, fault: Any) -> Answer:
        status, headers, body = fault if isinstance(fault, tuple) else (fault, {}, None)
        return status, headers, msgspec.json.encode(_NO) if body is None else body

    async def _send(self, answer: Answer, send: Any) -> None:
        status, headers, body = answer
        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
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
    termination_reason: str | None
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


def _behind(app: AsgiApp) -> AsgiApp:
    return app.app if isinstance(app, FaultyApi) else app


async def terminate(app: AsgiApp, instance_id: str, reason: str = "over budget") -> None:
    """Have the API terminate a run that is active there; the client does not learn of it yet."""
    async with open_api(make_config().http_config, _behind(app)) as api:
        await api.terminate_agent_instance(instance_id, reason)


async def stored_runs(app: AsgiApp, agent_id: str = "tested-agent") -> list[StoredRun]:
    """What the API stored, oldest run first, read through the API."""
    app = _behind(app)
    async with open_api(make_config().http_config, app) as api:
        instances = [run async for run in api.list_agent_instances(agent_id)]
        runs = [
            _run(run, [span async for span in api.list_agent_spans(run.id)]) for run in instances
        ]
    # By time: ids made within one millisecond are in no order.
    return sorted(runs, key=lambda run: run.started_at or "")


async def stored_quality(app: AsgiApp, run_id: str) -> Any:
    """The quality payloads of a run, by name."""
    transport = httpx.ASGITransport(_behind(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://api/api/v1/") as http:
        answer = await http.get(f"agent_instance/{run_id}")
    return answer.json()["details"]["quality_payloads"]


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
        termination_reason=instance.termination_reason,
        spans={span.id: span for span in spans},
    )
