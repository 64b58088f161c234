"""The calls of the local Prefactor, as any HTTP client makes them, and their errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from support.transport import http_to

from prefactor_core.local import LocalPrefactor, open_local_prefactor

VERSION = {"name": "An agent", "external_identifier": "v1"}
SCHEMA = {
    "external_identifier": "s1",
    "span_type_schemas": [{"name": "agent:llm", "params_schema": {"type": "object"}}],
}
REGISTRATION: dict[str, Any] = {
    "agent_id": "a1",
    "agent_version": VERSION,
    "agent_schema_version": SCHEMA,
}
OUTCOMES = ["complete", "failed", "cancelled"]
NOON = "2026-01-01T12:00:00.000000Z"
ONE = "2026-01-01T13:00:00.000000Z"


Body = dict[str, Any]


def span_of(instance_id: str, **changes: object) -> Body:
    """The details for creating a span."""
    details = {
        "agent_instance_id": instance_id,
        "schema_name": "agent:llm",
        "status": "active",
        "payload": {},
    }
    return {**details, **changes}


def item(type: str, key: str, **parameters: object) -> Body:
    """An item of a bulk."""
    return {"_type": type, "idempotency_key": key, **parameters}


def create(instance_id: str, key: str, **changes: object) -> Body:
    """An item that creates a span."""
    return item("agent_spans/create", key, details=span_of(instance_id, **changes))


@dataclass
class Api:
    """The calls of the API, as any HTTP client makes them."""

    http: httpx.AsyncClient

    async def get(self, path: str, **query: str) -> httpx.Response:
        return await self.http.get(path, params=query)

    async def post(self, path: str, body: object) -> httpx.Response:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return await self.http.post(path, content=content)

    async def done(self, path: str, body: object) -> Any:
        """Make a call that must succeed; its details."""
        answer = await self.post(path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()["details"]

    async def register(self, **changes: object) -> str:
        return str((await self.done("agent_instance/register", {**REGISTRATION, **changes}))["id"])

    async def start(self) -> str:
        """Register and start a run; its id."""
        instance_id = await self.register()
        await self.done(f"agent_instance/{instance_id}/start", {})
        return instance_id

    async def terminate(self, instance_id: str, reason: str) -> Any:
        return await self.done(f"agent_instance/{instance_id}/terminate", {"reason": reason})

    async def create(self, instance_id: str, **changes: object) -> httpx.Response:
        return await self.post("agent_spans", {"details": span_of(instance_id, **changes)})

    async def created(self, instance_id: str, **changes: object) -> Any:
        answer = await self.create(instance_id, **changes)
        assert answer.status_code == 200, answer.text
        return answer.json()["details"]

    async def instance(self, instance_id: str) -> Any:
        return (await self.get(f"agent_instance/{instance_id}")).json()["details"]

    async def spans(self, instance_id: str, *, summaries: bool = False) -> list[Any]:
        query = {"agent_instance_id": instance_id, "include_summaries": str(summaries).lower()}
        answer = await self.get("agent_spans", **query)
        return list(answer.json()["summaries"])


@asynccontextmanager
async def calling(app: LocalPrefactor, **headers: str) -> AsyncGenerator[Api]:
    async with http_to(app, "http://local/api/v1/", **headers) as http:
        yield Api(http)


@asynccontextmanager
async def opened(path: str, **options: Any) -> AsyncGenerator[Api]:
    async with open_local_prefactor(path, **options) as app, calling(app) as api:
        yield api


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def invalid(answer: httpx.Response, field: str, code: str = "invalid_value") -> None:
    refused(answer, 422, "validation_errors")
    assert {name: error["code"] for name, error in answer.json()["errors"].items()} == {field: code}


WRITES = ["register", "start", "finish", "terminate", "create span", "finish span"]


async def write(api: Api, name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The path and body of a call that takes effect, and a change that makes it another call."""
    if name == "register":
        return "agent_instance/register", dict(REGISTRATION), {"agent_id": "a2"}
    instance_id = await (api.register() if name == "start" else api.start())
    if name == "start":
        return f"agent_instance/{instance_id}/start", {"timestamp": ONE}, {"timestamp": NOON}
    if name == "finish":
        path = f"agent_instance/{instance_id}/finish"
        return path, {"status": "failed"}, {"status": "complete"}
    if name == "terminate":
        path = f"agent_instance/{instance_id}/terminate"
        return path, {"reason": "over budget"}, {"reason": "another"}
    if name == "finish span":
        span = await api.created(instance_id)
        return f"agent_spans/{span['id']}/finish", {"status": "failed"}, {"status": "complete"}
    details = {
        "agent_instance_id": instance_id,
        "schema_name": "agent:llm",
        "status": "active",
        "payload": {},
    }
    return "agent_spans", {"details": details}, {"details": {**details, "payload": {"n": 1}}}


async def everything(api: Api) -> list[Any]:
    """The runs of agent a1, each with its spans."""
    runs = (await api.get("agent_instance", agent_id="a1")).json()["summaries"]
    return [(run, await api.spans(run["id"])) for run in runs]
