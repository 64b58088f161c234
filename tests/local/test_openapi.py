"""The OpenAPI document: it has every call, and the answers fit it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route
from support.local_api import NOON, REGISTRATION, Api, calling, item, opened, refused

from prefactor_core.local import LocalPrefactor, open_local_prefactor
from prefactor_core.local.resources.nothing import EMPTY_KINDS
from prefactor_core.local.store import Store

PREFIX = "/api/v1/"
OPEN = [
    "RegisteredVersion",
    "RegisteredSchemaVersion",
    "AgentVersion",
    "AgentSchemaVersion",
    "Output",
]


async def document_of(api: Api) -> Any:
    answer = await api.get("openapi")
    assert answer.status_code == 200
    return answer.json()


async def test_every_route_is_in_the_document(store: Store) -> None:
    app = LocalPrefactor(store)
    routes = {
        (route.path, method.lower())
        for route in app._router.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    async with calling(app) as api:
        document = await document_of(api)
    described = {(path, method) for path, each in document["paths"].items() for method in each}
    assert described == routes
    assert len(routes) > 60
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


async def test_the_document_is_there_with_and_without_a_token() -> None:
    async with open_local_prefactor(":memory:", api_token="right") as app:
        documents = []
        for headers in ({}, {"Authorization": "Bearer right"}, {"Authorization": "Bearer wrong"}):
            async with calling(app, **headers) as api:
                documents.append(await document_of(api))
        assert documents[0]["openapi"] == "3.1.0"
        assert documents[0] == documents[1] == documents[2]


async def test_all_schemas_of_the_document_are_valid(api: Api) -> None:
    document = await document_of(api)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    text = str(document)
    assert [name for name in schemas if f"'#/components/schemas/{name}'" not in text] == []


class Described:
    """Checks answers against the document."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self.seen: set[str] = set()

    async def check(self, answer: httpx.Response) -> None:
        request = answer.request
        path = request.url.path
        parts = path.removeprefix(PREFIX).split("/")
        for template, methods in self.document["paths"].items():
            names = template.removeprefix(PREFIX).split("/")
            if len(names) == len(parts) and all(
                name in ("{id}", part) for name, part in zip(names, parts, strict=True)
            ):
                operation = methods.get(request.method.lower())
                if operation and (path == template or "{id}" in template):
                    break
        else:
            raise AssertionError(f"{request.method} {path} is not described")
        self.seen.add(operation["operationId"])
        responses = operation["responses"]
        assert str(answer.status_code) in responses, (request.method, path, answer.text)
        schema = responses[str(answer.status_code)]["content"]["application/json"]["schema"]
        whole = {**schema, "components": self.document["components"]}
        Draft202012Validator(whole).validate(answer.json())
        self.check_names(schema, answer.json())

    def check_names(self, schema: dict[str, Any], value: Any) -> None:
        """Nothing is answered that is not described."""
        if "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if isinstance(value, list) and "items" in schema:
            for each in value:
                self.check_names(schema["items"], each)
        elif isinstance(value, dict) and "properties" in schema and not self.is_open(schema):
            assert set(value) <= set(schema["properties"])
            for name, each in value.items():
                self.check_names(schema["properties"][name], each)

    def is_open(self, schema: dict[str, Any]) -> bool:
        # Versions and outputs have more fields than those that are described.
        return schema["title"] in OPEN


async def test_the_answers_of_a_whole_life_fit_the_document() -> None:
    async with opened(":memory:") as api:
        described = Described(await document_of(api))
        api.http.event_hooks = {"response": [lambda answer: answer.aread()]}

        async def call(method: str, path: str, body: object = None) -> Any:
            answer = await api.http.request(method, path, json=body)
            await described.check(answer)
            return answer.json()

        account = (await call("GET", "account"))["summaries"][0]["id"]
        await call("PUT", f"account/{account}", {"details": {"name": "Mine"}})
        await call("GET", f"account/{account}")
        agent = (await call("POST", "agent", {"details": {"name": "A"}}))["details"]["id"]
        await call("PUT", f"agent/{agent}", {"details": {"description": "d"}})
        await call("GET", f"agent/show?agent_id={agent}")
        for method, path in (
            ("GET", f"agent/{agent}"),
            ("POST", f"agent/{agent}/retire"),
            ("POST", f"agent/{agent}/reinstate"),
            ("GET", "agent"),
        ):
            await call(method, path)
        environment = await call("POST", "environment", {"details": {"name": "E"}})
        environment = environment["details"]["id"]
        await call("PUT", f"environment/{environment}", {"details": {"name": "F"}})
        await call("GET", f"environment/{environment}")
        await call("GET", "environment")
        details = {"agent_id": agent, "environment_id": environment}
        deployment = await call("POST", "agent_deployment", {"details": details})
        deployment = deployment["details"]["id"]
        for kind in ("agent_version", "agent_schema_version"):
            details = {"agent_id": agent, "external_identifier": "v"}
            version = (await call("POST", kind, {"details": details}))["details"]["id"]
            await call("GET", f"{kind}/{version}")
            await call("GET", f"{kind}?agent_id={agent}")
        await call("PUT", f"agent_deployment/{deployment}", {"details": {}})
        await call("GET", f"agent_deployment/{deployment}")
        await call("GET", f"agent_deployment?agent_id={agent}")
        details = {"token_scope": "agent_deployment", "agent_id": agent}
        token = (await call("POST", "api_token", {"details": details}))["details"]["id"]
        for action in ("suspend", "activate", "revoke"):
            await call("POST", f"api_token/{token}/{action}")
        await call("GET", f"api_token/{token}")
        await call("GET", "api_token")
        await call("DELETE", f"api_token/{token}")
        await call("POST", "pfid/generate", {"count": 2})
        types = [{"name": "agent:llm", "template": "{{ a }}", "data_risk": {"x": 1}}]
        schema = {"span_type_schemas": types, "quality_schemas": [{"name": "q"}]}
        body = {**REGISTRATION, "agent_schema_version": schema}
        run = (await call("POST", "agent_instance/register", body))["details"]["id"]
        await call("POST", f"agent_instance/{run}/start", {})
        span = {"agent_instance_id": run, "schema_name": "agent:llm", "payload": {"a": 1}}
        for status in ("pending", "active", "complete", "failed", "cancelled"):
            answer = await call("POST", "agent_spans", {"details": {**span, "status": status}})
            await call("POST", f"agent_spans/{answer['details']['id']}/finish", {})
        late = {**span, "status": "active", "started_at": "2100-01-01T00:00:00Z"}
        late = (await call("POST", "agent_spans", {"details": late}))["details"]["id"]
        finish = {"timestamp": NOON, "result_payload": {"b": [1]}}
        assert (await call("POST", f"agent_spans/{late}/finish", finish))["details"]["flags"]
        await call("POST", "agent_spans/create_test_spans", {"agent_instance_id": run})
        quality = {"name": "q", "payload": {"a": 1}}
        await call("POST", f"agent_instance/{run}/record_quality", quality)
        await call("GET", f"agent_instance/{run}")
        await call("PUT", f"agent_instance/{run}", {"details": {"quality_payload": {"a": 1}}})
        await call("POST", f"agent_instance/{run}/terminate", {"reason": "r"})
        controlled = await call("POST", "agent_spans", {"details": {**span, "status": "active"}})
        assert controlled["control"]
        await call("POST", f"agent_instance/{run}/finish", {})
        await call("GET", "agent_instance?agent_id=a1")
        await call("GET", f"agent_spans?agent_instance_id={run}")
        await call("GET", f"agent_spans?agent_instance_id={run}&include_summaries=true")
        await call("GET", f"agent_instance/{run}/agent_context")
        items = [item("agents/list", "list-0001"), item("nothing", "nothing-1")]
        await call("POST", "bulk", {"items": items})
        await call("DELETE", f"agent_deployment/{deployment}")
        await call("DELETE", f"environment/{environment}")
        await call("DELETE", f"agent/{agent}")
        await call("DELETE", "agent/a1")
        await call("GET", "ping")
        await call("GET", "alerts/count")
        await call("GET", "openapi")
        for kind in EMPTY_KINDS:
            await call("GET", kind)
            await call("GET", f"{kind}/one")
        every = {
            operation["operationId"]
            for path in described.document["paths"].values()
            for operation in path.values()
        }
        assert described.seen == every


async def test_errors_fit_the_document(api: Api) -> None:
    described = Described(await document_of(api))
    run = await api.start()
    for answer in (
        await api.post("agent_spans", b"{"),
        await api.post("agent_spans", {"details": {}}),
        await api.get("agent_instance/i0"),
        await api.post(f"agent_instance/{run}/start", {}),
        await api.get("agent_spans"),
    ):
        assert answer.status_code >= 400
        await described.check(answer)


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS"])
async def test_a_method_that_is_not_there_names_those_that_are(api: Api, method: str) -> None:
    for path, methods in (
        ("agent_spans", "GET, HEAD, POST"),
        ("agent/show", "GET, HEAD"),
        ("agent_instance/one", "GET, HEAD, PUT"),
        ("bulk", "POST"),
    ):
        answer = await api.http.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["Allow"] == methods
    refused(await api.http.request(method, "nowhere"), 404, "not_found")


# --- bounds


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
async def test_a_body_may_have_800_levels(api: Api, opening: bytes) -> None:
    run = await api.start()
    closing = b"]" if opening == b"[" else b"}"

    async def send(depth: int) -> httpx.Response:
        value = opening * depth + b"1" + closing * depth
        # Brackets in a text are no levels.
        text = rb'"]}\\\"[[{{", "\\"'
        payload = b'{"texts": [' + text + b', "' + b"[" * 900 + b'"], "value": ' + value + b"}"
        details = b'{"agent_instance_id": "%s", "schema_name": "x", "status": "active", '
        return await api.post(
            "agent_spans",
            b'{"details": ' + details % run.encode() + b'"payload": ' + payload + b"}}",
        )

    assert (await send(797)).status_code == 200
    for depth in (798, 10_000):
        answer = await send(depth)
        refused(answer, 400, "bad_request")
        assert answer.json()["message"] == "the body is nested deeper than 800 levels"


async def test_a_bulk_may_have_10000_items(api: Api) -> None:
    items = [item("agents/list", f"key-{number:05}") for number in range(10_001)]
    answer = await api.post("bulk", {"items": items})
    refused(answer, 413, "payload_too_large")
