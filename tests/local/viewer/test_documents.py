"""The documents of the page of a run that another server stores, from the answers of its API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from support.local_api import SCHEMA
from support.viewing import Site

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.local.viewer.documents import documents_of


def documents_from(instance: object, spans: Iterable[dict[str, Any]]) -> dict[str, bytes]:
    """The documents from what the API answers."""
    return documents_of(
        msgspec.json.decode(msgspec.json.encode(instance), type=AgentInstanceAnswer),
        [msgspec.json.decode(msgspec.json.encode(span), type=AgentSpanAnswer) for span in spans],
        "https://api",
    )


def decoded(documents: dict[str, bytes]) -> dict[str, Any]:
    return {path: msgspec.json.decode(content) for path, content in documents.items()}


async def test_the_answers_of_the_api_have_the_documents_of_the_viewer(site: Site) -> None:
    span_type = {
        "name": "agent:llm_call",
        "title": "Model call",
        "params_schema": {"required": ["model"]},
        "template": "asked {{model}}",
    }
    quality = {"name": "score", "schema": {"required": ["n"]}, "template": "{{text}}"}
    schema = {**SCHEMA, "span_type_schemas": [span_type], "quality_schemas": [quality]}
    run_id = await site.api.register(agent_schema_version=schema, external_identifier="night")
    await site.api.done(f"agent_instance/{run_id}/start", {})
    body = {"name": "score", "payload": {"text": "good", "n": 2**60}}
    await site.api.done(f"agent_instance/{run_id}/record_quality", body)
    outer = await site.api.created(run_id, schema_name="agent:llm_call")
    usage = {"token_usage": {"prompt_tokens": 3, "completion_tokens": 4}, "cost": 0.25}
    for status in ("complete", "failed"):
        await site.api.created(
            run_id,
            schema_name="agent:llm_call",
            status=status,
            parent_span_id=outer["id"],
            payload={"model": "small-1", "n": 2**60},
            result_payload={**usage, "error": {"type": "E", "message": "no"}},
        )
    await site.api.terminate(run_id, "enough")
    instance, spans = await site.api.instance(run_id), await site.api.spans(run_id, summaries=True)
    # Whatever the order of the answer, parents are stored before their children.
    shown = decoded(documents_from(instance, reversed(spans)))
    about = shown.pop("/-/about")
    assert (about["database"], about["read_only"]) == ("https://api", True)
    expected = {path: await site.json(path) for path in shown}
    assert len(expected) == 3 + len(spans)
    here, there = expected.pop(f"/-/runs/{run_id}")["run"], shown.pop(f"/-/runs/{run_id}")["run"]
    for name in ("agent_version", "revision", "last_activity_at", "heard_at"):
        del here[name], there[name]
    assert there == here
    skeleton = f"/-/runs/{run_id}/skeleton"
    assert expected.pop(skeleton)["rows"] == shown.pop(skeleton)["rows"]
    for path, document in shown.items():
        if path.startswith("/-/spans/"):
            # The API does not say which schemas were registered.
            document["span"]["params_schema"] = expected[path]["span"]["params_schema"]
    assert shown == expected


async def test_a_service_that_answers_less_has_a_page_too(site: Site) -> None:
    instance = {"id": "r1", "status": "active"}
    span = {"agent_instance_id": "r1", "status": "active"}
    spans = [
        {**span, "id": "s2", "schema_name": "b", "parent_span_id": "s1"},
        {**span, "id": "s1", "schema_name": "a", "parent_span_id": "elsewhere"},
    ]
    shown = decoded(documents_from(instance, spans))
    assert shown["/-/runs/r1"]["run"]["spans"]["active"] == 2
    rows = shown["/-/runs/r1/skeleton"]["rows"]
    assert [row[:2] for row in rows] == [["s1", None], ["s2", "s1"]]


async def test_a_deep_run_has_a_page_too(site: Site) -> None:
    spans = [
        {
            "id": f"s{n:04}",
            "agent_instance_id": "r1",
            "status": "active",
            "schema_name": "a",
            "parent_span_id": f"s{n + 1:04}",
        }
        for n in range(1_200)
    ]
    shown = documents_from({"id": "r1", "status": "active"}, spans)
    assert len(shown) == 4 + len(spans)
