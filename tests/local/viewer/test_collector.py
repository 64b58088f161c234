"""The OTLP export at a collector: sent over HTTP, decoded by OpenTelemetry's own protobufs."""

from __future__ import annotations

import inspect
import re
from base64 import b64encode
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx
import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.cases import case
from support.harness import AGENT, FaultyApi, make_config, recording
from support.server import serving_app

from prefactor_core import sensitive, span_types
from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.client.connection import open_api
from prefactor_core.local.viewer.exports import gen_ai
from prefactor_core.local.viewer.exports.otlp import otlp
from prefactor_core.operations.trace_ids import span_id_of, trace_id_of
from prefactor_core.span_types import LLMCall, LLMResult, TokenUsage, ToolCall, standard_types

TYPES = {"application/json": "json", "application/x-protobuf": "protobuf"}
SECRET = "ada@example.org"
CONVENTIONS = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
Stored = list[tuple[AgentInstanceAnswer, list[AgentSpanAnswer]]]


class Collector:
    """The endpoint of an OpenTelemetry collector: what it is sent, decoded."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self.app = Starlette(routes=[Route("/v1/traces", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        media_type = request.headers["content-type"]
        content = await request.body()
        if TYPES[media_type] == "json":
            message = from_json(content)
        else:
            message = ExportTraceServiceRequest.FromString(content)
        self.requests.append((TYPES[media_type], message))
        return Response(ExportTraceServiceResponse().SerializeToString(), media_type=media_type)

    @asynccontextmanager
    async def opening(self) -> Any:
        yield self.app


def from_json(content: bytes) -> ExportTraceServiceRequest:
    """Decode OTLP's JSON: that of protobuf, except that ids are hexadecimal. Fields that OTLP does
    not have are errors."""
    request = msgspec.json.decode(content)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = b64encode(bytes.fromhex(span[name])).decode()
    return ParseDict(request, ExportTraceServiceRequest())


async def stored(api: FaultyApi) -> Stored:
    """The runs with their spans, as the API answers."""
    async with open_api(make_config().http_config, api.app) as http:
        runs = [run async for run in http.list_agent_instances("tested-agent")]
        return [
            (run, [span async for span in http.list_agent_spans(run.id)])
            for run in sorted(runs, key=lambda run: run.started_at or "")
        ]


async def recorded_runs() -> Stored:
    """A run with a model call, and the run that one of its tool calls caused."""
    async with recording(schema_registry=standard_types()) as r:
        with r.instance.span("agent:run", payload={"input": "Who?"}):
            call = LLMCall(
                model="small-1",
                provider="acme",
                prompt=sensitive(f"Write to {SECRET}", "contact_information"),
            )
            with r.instance.span(call) as llm:
                usage = TokenUsage(prompt_tokens=10, completion_tokens=2)
                llm.set_result(
                    LLMResult(response="Dear Ada", finish_reason="stop", token_usage=usage)
                )
            with r.instance.span(ToolCall(tool="delegate", call_id="c1")):
                headers: dict[str, str] = {}
                r.client.inject(headers)
                async with r.client.agent_instance(**AGENT, parent=headers) as other:
                    with pytest.raises(ValueError, match="no address"):
                        with other.span(ToolCall(tool="mail")):
                            raise ValueError("no address")
                    other.span("agent:run").cancel_nowait()
        await r.instance.finish()
        await r.client.flush()
        return await stored(r.api)


def spans_of(message: ExportTraceServiceRequest) -> list[Span]:
    (resource,) = message.resource_spans
    (scope,) = resource.scope_spans
    assert scope.scope.name == "prefactor_core"
    return list(scope.spans)


def attributes_of(span: Any) -> dict[str, Any]:
    found = {each.key: each.value for each in span.attributes}
    assert len(found) == len(span.attributes)
    return {key: getattr(value, value.WhichOneof("value")) for key, value in found.items()}


def nanoseconds(time: str | None) -> int:
    assert time is not None
    moment = datetime.fromisoformat(time)
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1_000


async def sent(runs: Stored) -> list[list[Span]]:
    """The spans of each run, as a collector decodes them: from JSON, and from protobuf."""
    collector = Collector()
    contents = [otlp(run, spans) for run, spans in runs]
    with serving_app(collector.opening()) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            for content in contents:
                for kind, body in (
                    ("application/json", content),
                    ("application/x-protobuf", from_json(content).SerializeToString()),
                ):
                    headers = {"content-type": kind}
                    answer = await http.post("/v1/traces", content=body, headers=headers)
                    assert answer.status_code == 200, answer.text
    kinds, messages = zip(*collector.requests, strict=True)
    assert kinds == ("json", "protobuf") * len(runs)
    assert messages[0::2] == messages[1::2]
    assert all(SECRET.encode() not in content for content in contents)
    return [spans_of(message) for message in messages[0::2]]


async def test_a_collector_joins_the_runs_of_two_processes_in_one_trace() -> None:
    runs = await recorded_runs()
    first, second = await sent(runs)
    (front, front_spans), (back, back_spans) = runs
    assert {span.trace_id.hex() for span in [*first, *second]} == {trace_id_of(front.id)}
    ids = {span.span_id.hex() for span in [*first, *second]}
    pfids = [front.id, back.id, *(span.id for span in [*front_spans, *back_spans])]
    assert ids == set(map(span_id_of, pfids))
    parents = {span.span_id.hex(): span.parent_span_id.hex() for span in [*first, *second]}
    (delegate,) = (span.id for span in front_spans if span.schema_name == "agent:tool_call")
    assert parents.pop(span_id_of(front.id)) == ""
    assert parents.pop(span_id_of(back.id)) == span_id_of(delegate)
    for run, spans in runs:
        for span in spans:
            assert parents.pop(span_id_of(span.id)) == span_id_of(span.parent_span_id or run.id)
    assert not parents
    caused_by = {
        name: value
        for name, value in attributes_of(second[0]).items()
        if name.startswith("prefactor.caused_by.")
    }
    assert caused_by == {
        "prefactor.caused_by.agent_instance.id": front.id,
        "prefactor.caused_by.span.id": delegate,
    }


async def test_a_collector_gets_times_kinds_statuses_and_the_attributes_of_the_conventions() -> (
    None
):
    runs = await recorded_runs()
    exported = await sent(runs)
    for (run, spans), (root, *others) in zip(runs, exported, strict=True):
        assert root.start_time_unix_nano == nanoseconds(run.started_at)
        assert (root.kind, root.status.code) == (Span.SPAN_KIND_INTERNAL, Status.STATUS_CODE_OK)
        by_id = {span_id_of(span.id): span for span in spans}
        for other in others:
            span = by_id[other.span_id.hex()]
            assert other.end_time_unix_nano == nanoseconds(span.finished_at)
            start = span.started_at or span.finished_at
            assert other.start_time_unix_nano == nanoseconds(start)
    by_name = {span.name: span for spans in exported for span in spans}
    call = by_name["chat small-1"]
    assert (call.kind, call.status.code) == (Span.SPAN_KIND_CLIENT, Status.STATUS_CODE_OK)
    attributes = attributes_of(call)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "acme"
    assert attributes["gen_ai.request.model"] == "small-1"
    assert attributes["gen_ai.usage.input_tokens"] == 10
    assert attributes["gen_ai.usage.output_tokens"] == 2
    reasons = attributes["gen_ai.response.finish_reasons"].values
    assert [reason.string_value for reason in reasons] == ["stop"]
    assert "[contact_information]" in attributes["gen_ai.input.messages"]
    assert "Dear Ada" in attributes["gen_ai.output.messages"]
    failed = by_name["execute_tool mail"]
    assert (failed.status.code, failed.status.message) == (Status.STATUS_CODE_ERROR, "no address")
    (event,) = failed.events
    assert (event.name, event.time_unix_nano) == ("exception", failed.end_time_unix_nano)
    assert attributes_of(event)["exception.type"] == "ValueError"
    assert attributes_of(failed)["error.type"] == "ValueError"
    names = {name for spans in exported for span in spans for name in attributes_of(span)}
    assert {name for name in names if name.startswith("gen_ai.")} <= CONVENTIONS
    skipped = next(span for span in exported[1] if span.name == "invoke_agent")
    assert skipped.status.code == Status.STATUS_CODE_UNSET
    assert attributes_of(skipped)["prefactor.span.status"] == "cancelled"


def test_the_names_of_the_export_and_of_the_docs_are_those_of_the_conventions() -> None:
    for module in (gen_ai, span_types):
        with case(module.__name__):
            names = set(re.findall(r"gen_ai(?:\.[a-z_]+)+", inspect.getsource(module)))
            assert len(names) > 20
            assert names <= CONVENTIONS
    operations = {operation.value for operation in gen_ai_attributes.GenAiOperationNameValues}
    assert {"chat", "execute_tool", "invoke_agent", "retrieval"} <= operations
