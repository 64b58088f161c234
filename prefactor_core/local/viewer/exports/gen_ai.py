"""The name and attributes of a span in OpenTelemetry's conventions for generative AI. Pure.

The table in ``span_types`` says which field becomes which attribute. A sensitive value becomes its
labels: other systems do not know that it must be hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import msgspec

from prefactor_core.api.answers import AgentSpanAnswer
from prefactor_core.schema_registry.sensitive import hidden

Fields = dict[str, object]
"""Decoded JSON of a payload, or of a part of it."""

# By the part of a span type's name after the last colon: agent:llm_call, langchain:llm.
_OPERATIONS: Final = {
    **dict.fromkeys(("llm_call", "llm"), "chat"),
    **dict.fromkeys(("tool_call", "tool"), "execute_tool"),
    **dict.fromkeys(("retrieval", "retriever"), "retrieval"),
    **dict.fromkeys(("run", "agent"), "invoke_agent"),
}

# The attribute that stands in the name of a span, after the operation.
_SUBJECTS: Final = {
    "chat": "gen_ai.request.model",
    "execute_tool": "gen_ai.tool.name",
    "retrieval": "gen_ai.data_source.id",
    "invoke_agent": "gen_ai.agent.name",
}

_OF_PAYLOAD: Final = {
    "chat": {
        "model": "gen_ai.request.model",
        "provider": "gen_ai.provider.name",
        "temperature": "gen_ai.request.temperature",
        "top_p": "gen_ai.request.top_p",
        "max_tokens": "gen_ai.request.max_tokens",
        "tools": "gen_ai.tool.definitions",
    },
    "execute_tool": {
        "tool": "gen_ai.tool.name",
        "call_id": "gen_ai.tool.call.id",
        "arguments": "gen_ai.tool.call.arguments",
    },
    "retrieval": {
        "query": "gen_ai.retrieval.query.text",
        "source": "gen_ai.data_source.id",
        "top_k": "gen_ai.request.top_k",
    },
    "invoke_agent": {
        "agent": "gen_ai.agent.name",
        "conversation_id": "gen_ai.conversation.id",
    },
}

_OF_RESULT: Final = {
    "chat": {
        "model": "gen_ai.response.model",
        "response_id": "gen_ai.response.id",
        "time_to_first_token": "gen_ai.response.time_to_first_chunk",
    },
    "execute_tool": {"output": "gen_ai.tool.call.result"},
    "retrieval": {"documents": "gen_ai.retrieval.documents"},
    "invoke_agent": {},
}

_OF_USAGE: Final = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}


class Described:
    """A span in the terms of OpenTelemetry.

    ``attributes``: decoded JSON by name. ``error``: the type, message and stacktrace that the
    result of a failed span has, each under the attribute of an ``exception`` event.
    """

    def __init__(self, span: AgentSpanAnswer) -> None:
        payload, result = _fields(span.payload), _fields(span.result_payload)
        operation = _OPERATIONS.get(span.schema_name.rpartition(":")[2])
        self.is_model_call = operation == "chat"
        self.error = _error(result) if span.status == "failed" else {}
        self.attributes: Fields = {}
        self.name = span.schema_name
        if operation is not None:
            self._describe(operation, payload, result)
            subject = self.attributes.get(_SUBJECTS[operation])
            self.name = f"{operation} {subject}" if isinstance(subject, str) else operation
        if "exception.type" in self.error:
            self.attributes["error.type"] = self.error["exception.type"]
        self.attributes |= {
            "prefactor.span.id": span.id,
            "prefactor.span.type": span.schema_name,
            "prefactor.span.status": span.status,
            "prefactor.span.payload": _text(payload),
        }
        if result:
            self.attributes["prefactor.span.result_payload"] = _text(result)
        if span.flags:
            self.attributes["prefactor.span.flags"] = span.flags

    def _describe(self, operation: str, payload: Fields, result: Fields) -> None:
        self.attributes["gen_ai.operation.name"] = operation
        self._add(_OF_PAYLOAD[operation], payload)
        self._add(_OF_RESULT[operation], result)
        if operation == "invoke_agent":
            self._add_messages("gen_ai.input.messages", _message("user", payload.get("input")))
            output = _message("assistant", result.get("output"))
            self._add_messages("gen_ai.output.messages", output)
        if operation == "chat":
            self._describe_call(payload, result)

    def _describe_call(self, payload: Fields, result: Fields) -> None:
        self._add(_OF_USAGE, _part(payload, "token_usage") | _part(result, "token_usage"))
        if "system" in payload:
            parts = [{"type": "text", "content": payload["system"]}]
            self.attributes["gen_ai.system_instructions"] = _text(parts)
        asked = _messages(payload.get("messages")) or _message("user", payload.get("prompt"))
        self._add_messages("gen_ai.input.messages", asked)
        finish_reason = result.get("finish_reason")
        answered = _message("assistant", result.get("response"), result.get("tool_calls"))
        for message in answered:
            message["finish_reason"] = finish_reason or "stop"
        self._add_messages("gen_ai.output.messages", answered)
        if finish_reason is not None:
            self.attributes["gen_ai.response.finish_reasons"] = [finish_reason]

    def _add(self, names: Mapping[str, str], fields: Fields) -> None:
        for name, attribute in names.items():
            value = fields.get(name)
            # The conventions have structured values as JSON text.
            if isinstance(value, dict | list):
                value = _text(cast("object", value))
            if value is not None:
                self.attributes[attribute] = value

    def _add_messages(self, attribute: str, messages: list[Fields]) -> None:
        if messages:
            self.attributes[attribute] = _text(messages)


def _fields(payload: msgspec.Raw) -> Fields:
    try:
        decoded = hidden(msgspec.json.decode(payload))
    except (msgspec.DecodeError, RecursionError):
        return {}  # nested too deep
    return cast("Fields", decoded) if isinstance(decoded, dict) else {}


def _part(fields: Fields, name: str) -> Fields:
    part = fields.get(name)
    return cast("Fields", part) if isinstance(part, dict) else {}


def _error(result: Fields) -> Fields:
    error = result.get("error")
    if isinstance(error, str):
        return {"exception.message": error}
    fields = _part(result, "error")
    known = {
        "exception.type": fields.get("type") or fields.get("error_type"),
        "exception.message": fields.get("message"),
        "exception.stacktrace": fields.get("stacktrace"),
    }
    return {name: value for name, value in known.items() if isinstance(value, str)}


def _messages(value: object) -> list[Fields]:
    """Messages of a chat, as most APIs have them, in the form of the conventions."""
    if not isinstance(value, list):
        return []
    messages: list[Fields] = []
    for each in cast("list[object]", value):
        if isinstance(each, dict):
            fields = cast("Fields", each)
            role = str(fields.get("role", "user"))
            messages += _message(role, fields.get("content"), fields.get("tool_calls"))
    return messages


def _message(role: str, content: object, tool_calls: object = None) -> list[Fields]:
    """One message, or none without content."""
    parts: list[Fields] = []
    if content is not None:
        text = content if isinstance(content, str) else _text(content)
        parts.append({"type": "text", "content": text})
    if isinstance(tool_calls, list):
        for each in cast("list[object]", tool_calls):
            call = cast("Fields", each) if isinstance(each, dict) else {}
            function = _part(call, "function") or call
            parts.append(
                {
                    "type": "tool_call",
                    "id": call.get("id"),
                    "name": function.get("name"),
                    "arguments": function.get("arguments"),
                }
            )
    return [{"role": role, "parts": parts}] if parts else []


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
