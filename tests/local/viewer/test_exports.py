"""The exports of a run: JSON, OTLP, and the page in one file."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

import msgspec
from support.cases import case
from support.local_api import NOON, ONE
from support.viewing import Site

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.local.viewer.exports.otlp import otlp

HEX = {16: re.compile("[0-9a-f]{32}"), 8: re.compile("[0-9a-f]{16}")}


async def exported(site: Site, run_id: str, format: str) -> bytes:
    answer = await site.get(f"/-/runs/{run_id}/export", format=format)
    assert answer.status_code == 200, answer.text
    ending = {"json": "json", "otlp": "otlp.json", "html": "html"}[format]
    disposition = f'attachment; filename="{run_id}.{ending}"'
    assert answer.headers["content-disposition"] == disposition
    return answer.content


async def test_json_has_what_the_api_answers(site: Site) -> None:
    run_id = await site.api.start()
    for n in range(3):
        await site.api.created(run_id, payload={"n": 2**53 + n})
    run = msgspec.json.decode(await exported(site, run_id, "json"))
    assert run["agent_instance"] == await site.api.instance(run_id)
    assert run["agent_spans"] == await site.api.spans(run_id, summaries=True)


async def test_an_unknown_run_or_format_is_refused(site: Site) -> None:
    run_id = await site.api.start()
    for format in ("json", "otlp", "html"):
        answer = await site.get("/-/runs/unknown/export", format=format)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    for query in ({}, {"format": "pdf"}):
        answer = await site.get(f"/-/runs/{run_id}/export", **query)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_errors")


def trace_of(content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The resource and the spans of a request to a collector, its attributes as a map."""
    (resource,) = msgspec.json.decode(content)["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    assert scope["scope"]["name"] == "prefactor_core"
    spans = scope["spans"]
    for span in spans:
        assert HEX[16].fullmatch(span["traceId"])
        assert HEX[8].fullmatch(span["spanId"])
        assert span["traceId"] == spans[0]["traceId"]
        assert 0 <= int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        span["attributes"] = attributes_of(span["attributes"])
        for event in span.get("events", ()):
            event["attributes"] = attributes_of(event["attributes"])
    assert "parentSpanId" not in spans[0]
    ids = [span["spanId"] for span in spans]
    assert len(set(ids)) == len(ids)
    assert {span["parentSpanId"] for span in spans[1:]} <= set(ids)
    return attributes_of(resource["resource"]["attributes"]), spans


def attributes_of(attributes: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in attributes:
        assert attribute["key"] not in found
        found[attribute["key"]] = value_of(attribute["value"])
    return found


def value_of(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [value_of(each) for each in content["values"]]
    types = {"stringValue": str, "intValue": str, "boolValue": bool, "doubleValue": float | int}
    assert isinstance(content, types[kind])
    return int(content) if kind == "intValue" else content


async def test_a_trace_has_the_run_as_its_root(site: Site) -> None:
    run_id = await site.api.register()
    await site.api.done(f"agent_instance/{run_id}/start", {"timestamp": NOON})
    root = await site.api.created(run_id, schema_name="agent:run", started_at=NOON)
    child = await site.api.created(run_id, parent_span_id=root["id"])
    await site.api.terminate(run_id, "over budget")
    resource, spans = trace_of(await exported(site, run_id, "otlp"))
    assert resource == {"service.name": "a1"}
    run, *others = spans
    assert (run["name"], run["kind"]) == ("invoke_agent a1", 1)
    assert run["status"] == {"code": 2, "message": "over budget"}
    assert run["startTimeUnixNano"] == "1767268800000000000"
    assert run["attributes"]["prefactor.agent_instance.id"] == run_id
    assert run["attributes"]["prefactor.agent_instance.status"] == "terminated"
    by_id = {span["attributes"]["prefactor.span.id"]: span for span in others}
    assert by_id[root["id"]]["parentSpanId"] == run["spanId"]
    assert by_id[child["id"]]["parentSpanId"] == by_id[root["id"]]["spanId"]
    # The same run has the same ids when it is exported again.
    again = trace_of(await exported(site, run_id, "otlp"))[1]
    assert [span["spanId"] for span in again] == [span["spanId"] for span in spans]


def described(schema_name: str, payload: Any, result: Any = None, **changes: Any) -> Any:
    """A span of the trace of a run that has only this one."""
    span = AgentSpanAnswer(
        id="s1",
        status=changes.get("status", "complete"),
        agent_instance_id="r1",
        schema_name=schema_name,
        started_at=changes.get("started_at", NOON),
        finished_at=changes.get("finished_at", ONE),
        payload=msgspec.Raw(msgspec.json.encode(payload)),
        result_payload=msgspec.Raw(msgspec.json.encode(result)),
        flags=changes.get("flags", []),
    )
    run = AgentInstanceAnswer("r1", "active", agent_id="a1", started_at=NOON)
    return trace_of(otlp(run, [span]))[1][1]


def texts(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def test_a_model_call_has_the_attributes_of_the_conventions() -> None:
    payload = {
        "model": "small-1",
        "provider": "acme",
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": [{"type": "image", "url": "x"}]},
            {"role": "tool"},
            "no message",
        ],
        "temperature": 0.5,
        "top_p": 1,
        "max_tokens": 100,
        "tools": [{"name": "search"}],
        "token_usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    calls = [{"id": "c1", "function": {"name": "search", "arguments": '{"q": "x"}'}}]
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cache_read_tokens": 3,
        "cache_write_tokens": 4,
        "reasoning_tokens": 5,
    }
    result = {
        "response": "Hi",
        "tool_calls": calls,
        "finish_reason": "tool_calls",
        "model": "small-1-2026",
        "response_id": "r-7",
        "time_to_first_token": 0.25,
        "token_usage": usage,
    }
    span = described("agent:llm_call", payload, result, flags=["payload: odd"])
    assert (span["name"], span["kind"], span["status"]) == ("chat small-1", 3, {"code": 1})
    attributes = span["attributes"]
    parts = [
        {"type": "text", "content": "Hi"},
        {"type": "tool_call", "id": "c1", "name": "search", "arguments": '{"q": "x"}'},
    ]
    for name, expected in {
        "gen_ai.input.messages": [
            texts("user", "Hello"),
            texts("user", '[{"type":"image","url":"x"}]'),
        ],
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": parts, "finish_reason": "tool_calls"}
        ],
        "gen_ai.system_instructions": [{"type": "text", "content": "Be kind."}],
        "gen_ai.tool.definitions": [{"name": "search"}],
        "prefactor.span.payload": payload,
        "prefactor.span.result_payload": result,
    }.items():
        with case(name):
            assert msgspec.json.decode(attributes.pop(name)) == expected
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "small-1",
        "gen_ai.provider.name": "acme",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.response.model": "small-1-2026",
        "gen_ai.response.id": "r-7",
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.response.finish_reasons": ["tool_calls"],
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.cache_creation.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "prefactor.span.id": "s1",
        "prefactor.span.type": "agent:llm_call",
        "prefactor.span.status": "complete",
        "prefactor.span.flags": ["payload: odd"],
    }


def test_other_steps_have_the_names_and_attributes_of_the_conventions() -> None:
    for schema_name, payload, result, name, expected in (
        (
            "agent:tool_call",
            {"tool": "search", "call_id": "c1", "arguments": {"q": "x"}},
            {"output": ["a"]},
            "execute_tool search",
            {
                "gen_ai.tool.name": "search",
                "gen_ai.tool.call.id": "c1",
                "gen_ai.tool.call.arguments": '{"q":"x"}',
                "gen_ai.tool.call.result": '["a"]',
            },
        ),
        (
            "agent:retrieval",
            {"query": "Everest", "source": "atlas", "top_k": 3},
            {"documents": [{"id": "d1"}]},
            "retrieval atlas",
            {
                "gen_ai.retrieval.query.text": "Everest",
                "gen_ai.data_source.id": "atlas",
                "gen_ai.request.top_k": 3,
                "gen_ai.retrieval.documents": '[{"id":"d1"}]',
            },
        ),
        (
            "agent:run",
            {"agent": "planner", "input": "Why?", "conversation_id": "t1"},
            {"output": "Because."},
            "invoke_agent planner",
            {
                "gen_ai.agent.name": "planner",
                "gen_ai.conversation.id": "t1",
                "gen_ai.input.messages": msgspec.json.encode([texts("user", "Why?")]).decode(),
            },
        ),
        ("langchain:llm", {}, None, "chat", {"gen_ai.operation.name": "chat"}),
        ("my:step", {"n": 1}, None, "my:step", {"prefactor.span.payload": '{"n":1}'}),
    ):
        with case(schema_name):
            span = described(schema_name, payload, result)
            assert span["name"] == name
            assert span["attributes"].items() >= expected.items()


def test_the_error_of_a_failed_span_is_an_exception_event() -> None:
    error = {"type": "ValueError", "message": "no number", "stacktrace": "Traceback …"}
    span = described("agent:tool_call", {}, {"error": error}, status="failed")
    assert span["status"] == {"code": 2, "message": "no number"}
    assert span["attributes"]["error.type"] == "ValueError"
    (event,) = span["events"]
    assert (event["name"], event["timeUnixNano"]) == ("exception", span["endTimeUnixNano"])
    assert event["attributes"] == {f"exception.{name}": value for name, value in error.items()}
    for result in ({"error": "no number"}, {"error": {"message": "no number"}}):
        span = described("agent:tool_call", {}, result, status="failed")
        assert span["events"][0]["attributes"] == {"exception.message": "no number"}
    for result in (None, {}, {"error": 7}, {"error": {"type": 7}}):
        with case(result):
            span = described("agent:tool_call", {}, result, status="failed")
            assert (span["status"], "events" in span) == ({"code": 2}, False)
    cancelled = described("agent:tool_call", {}, {"error": error}, status="cancelled")
    assert (cancelled["status"], "events" in cancelled) == ({"code": 0}, False)


def test_a_span_without_its_times_has_the_nearest_ones() -> None:
    active = described("step", {}, status="active", finished_at=None)
    assert active["startTimeUnixNano"] == active["endTimeUnixNano"]
    skipped = described("step", {}, status="cancelled", started_at=None)
    assert skipped["startTimeUnixNano"] == skipped["endTimeUnixNano"] == "1767272400000000000"


def test_sensitive_values_become_their_labels_in_a_trace() -> None:
    secret = {"$sensitive": "string", "labels": ["contact_information"], "value": "hidden@x.org"}
    for schema_name in ("agent:llm_call", "agent:tool_call", "agent:run", "step"):
        payload = {"prompt": secret, "tool": secret, "input": secret, "model": secret}
        result = {"response": secret, "output": secret, "error": {"message": secret}}
        run = AgentInstanceAnswer("r1", "active")
        span = AgentSpanAnswer(
            "s1",
            "failed",
            "r1",
            schema_name,
            payload=msgspec.Raw(msgspec.json.encode(payload)),
            result_payload=msgspec.Raw(msgspec.json.encode(result)),
        )
        content = otlp(run, [span])
        assert b"hidden@x.org" not in content
        assert b"[contact_information]" in content


def test_odd_payloads_have_a_span_all_the_same() -> None:
    deep = b'{"input":' * 3_000 + b"1" + b"}" * 3_000
    for payload in (b"null", b"[1]", b'"text"', deep, b'{"model": {"a": 1}, "messages": 7}'):
        with case(payload[:20]):
            span = AgentSpanAnswer(
                "s1", "complete", "r1", "agent:llm_call", payload=msgspec.Raw(payload)
            )
            _, spans = trace_of(otlp(AgentInstanceAnswer("r1", "pending"), [span]))
            assert len(spans) == 2
    numbers = {"temperature": 2**70, "max_tokens": -(2**63), "top_p": True}
    attributes = described("agent:llm_call", numbers)["attributes"]
    assert attributes["gen_ai.request.temperature"] == str(2**70)
    assert attributes["gen_ai.request.max_tokens"] == -(2**63)
    assert attributes["gen_ai.request.top_p"] is True


async def test_the_page_of_a_run_is_one_file(site: Site) -> None:
    run_id = await site.api.start()
    hostile = "</script><script>alert(1)</script><!--"
    span = await site.api.created(run_id, payload={"input": hostile})
    page = (await exported(site, run_id, "html")).decode()
    # Nothing is loaded from anywhere.
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?!data:)", page)
    assert "{{" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    scripts = dict(re.findall(r"<script type=\"([^\"]*)\"[^>]*>(.*?)</script>", page, re.DOTALL))
    assert list(scripts) == ["application/json", "module"]
    assert page.count("<script") == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    for name, text in (("script", scripts["module"]), ("style", styles[0])):
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    # Its data are the answers of the endpoints that the page reads.
    paths = msgspec.json.decode(scripts["application/json"])["paths"]
    assert paths.pop("/-/about")["database"] == "runs.db"
    assert set(paths) == {
        f"/-/runs/{run_id}",
        f"/-/runs/{run_id}/skeleton",
        f"/-/runs/{run_id}/usage",
        f"/-/spans/{span['id']}",
    }
    for path, content in paths.items():
        assert content == await site.json(path)
    assert site.path not in page
