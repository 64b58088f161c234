"""otlp: a run as a trace, in the JSON that OpenTelemetry collectors take at ``/v1/traces``. Pure.

The run is the root span; spans without a parent are its children. Ids are hashes of the PFIDs, so
that a run has the same ids each time it is exported. A run that another step caused is a span of
that step's trace: ``client.inject()`` has sent it the same hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias, cast

import msgspec
from msgspec import Raw

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.config._version import __version__
from prefactor_core.local.viewer.exports.gen_ai import Described
from prefactor_core.operations.cause import Cause, cause_in
from prefactor_core.operations.trace_ids import span_id_of, trace_id_of

Json: TypeAlias = dict[str, object]

_INTERNAL, _CLIENT = 1, 3  # kinds of a span: within the program; a request to another one
_UNSET, _OK, _ERROR = 0, 1, 2  # codes of a status

_STATUS_CODES: Final = {"complete": _OK, "failed": _ERROR, "terminated": _ERROR}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER: Final = _EPOCH.isoformat()

_MOST_INT: Final = 2**63


def otlp(instance: AgentInstanceAnswer, spans: Iterable[AgentSpanAnswer]) -> bytes:
    """An ``ExportTraceServiceRequest`` as JSON.

    A span that has not ended, or never started, gets the nearest time that is known: OpenTelemetry
    has only spans with both times. Its real status is the attribute ``prefactor.span.status``.
    """
    spans = list(spans)
    times = [time for time in (instance.started_at, instance.finished_at) if time is not None]
    times += [time for span in spans for time in (span.started_at, span.finished_at) if time]
    # The times of the API sort as text.
    first, last = min(times, default=_NEVER), max(times, default=_NEVER)
    cause = _cause(spans)
    trace_id = trace_id_of(instance.id) if cause is None else cause.trace_id
    encoded = [_encoded(trace_id, _run_span(instance, cause, first, last))]
    encoded += (_encoded(trace_id, _span(span, instance, last)) for span in spans)
    resource = {"service.name": instance.agent_id or "prefactor"}
    request = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [
                    {
                        "scope": {"name": "prefactor_core", "version": __version__},
                        "spans": encoded,
                    }
                ],
            }
        ]
    }
    return msgspec.json.encode(request)


def _encoded(trace_id: str, span: Json) -> Raw:
    # One by one: in a thread, encoding all of them at once would hold up all other threads.
    return Raw(msgspec.json.encode({"traceId": trace_id, **span}))


def _cause(spans: Iterable[AgentSpanAnswer]) -> Cause | None:
    """The cause of a run: every span without a parent that it recorded names it."""
    named = (cause_in(span.payload) for span in spans if span.parent_span_id is None)
    return next((cause for cause in named if cause is not None), None)


def _run_span(instance: AgentInstanceAnswer, cause: Cause | None, first: str, last: str) -> Json:
    attributes: Json = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": instance.agent_id,
        "prefactor.agent_instance.id": instance.id,
        "prefactor.agent_instance.status": instance.status,
        "prefactor.agent_instance.termination_reason": instance.termination_reason,
        "prefactor.agent_instance.flags": instance.flags or None,
    }
    for name, payload in instance.quality_payloads.items():
        attributes[f"prefactor.quality.{name}"] = bytes(payload).decode()
    if cause is not None:
        attributes["prefactor.caused_by.agent_instance.id"] = cause.run_id
        attributes["prefactor.caused_by.span.id"] = cause.span_id
    return {
        "spanId": span_id_of(instance.id),
        **({} if cause is None else {"parentSpanId": cause.parent_id}),
        "name": f"invoke_agent {instance.agent_id}" if instance.agent_id else "invoke_agent",
        "kind": _INTERNAL,
        "startTimeUnixNano": _nanoseconds(instance.started_at or first),
        "endTimeUnixNano": _nanoseconds(instance.finished_at or last),
        "attributes": _attributes(attributes),
        "status": _status(instance.status, instance.termination_reason),
    }


def _span(span: AgentSpanAnswer, instance: AgentInstanceAnswer, last: str) -> Json:
    described = Described(span)
    end = span.finished_at or last
    answer: Json = {
        "spanId": span_id_of(span.id),
        "parentSpanId": span_id_of(span.parent_span_id or instance.id),
        "name": described.name,
        "kind": _CLIENT if described.is_model_call else _INTERNAL,
        "startTimeUnixNano": _nanoseconds(span.started_at or end),
        "endTimeUnixNano": _nanoseconds(end),
        "attributes": _attributes(described.attributes),
        "status": _status(span.status, described.error.get("exception.message")),
    }
    if described.error:
        answer["events"] = [
            {
                "timeUnixNano": _nanoseconds(end),
                "name": "exception",
                "attributes": _attributes(described.error),
            }
        ]
    return answer


def _status(status: str, message: object) -> Json:
    code = _STATUS_CODES.get(status, _UNSET)
    return {"code": code, "message": message} if code == _ERROR and message else {"code": code}


def _attributes(attributes: Mapping[str, object]) -> list[Json]:
    return [
        {"key": name, "value": _value(value)}
        for name, value in attributes.items()
        if value is not None
    ]


def _value(value: object) -> Json:
    """An ``AnyValue``; a value of any other type as its JSON text."""
    match value:
        case bool():
            return {"boolValue": value}
        case int() if -_MOST_INT <= value < _MOST_INT:
            return {"intValue": str(value)}  # a 64-bit number is a string in this JSON
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case list():
            return {
                "arrayValue": {"values": [_value(each) for each in cast("list[object]", value)]}
            }
        case _:
            return {"stringValue": msgspec.json.encode(value).decode()}


def _nanoseconds(time: str) -> str:
    since = datetime.fromisoformat(time) - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return str(max(0, microseconds) * 1_000)
