"""A server on loopback that answers as OpenAI's chat completions and as Gemini do, for one
question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUESTION = "How high is K2?"


@contextmanager
def fake_model() -> Iterator[str]:
    """The base URL of a server that asks for the tool ``height``, and answers with its result.

    A question with the word "again" asks for the tool without an end.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    messages = body["messages"]
    question = " ".join(str(each.get("content")) for each in messages if each["role"] == "user")
    mountain = "Olymp" if "Olymp" in question else "K2"
    if messages[-1]["role"] == "tool" and "again" not in question:
        message = {"role": "assistant", "content": "8611 m"}
    else:
        arguments = json.dumps({"mountain": mountain})
        call = {"name": "height", "arguments": arguments}
        call = {"id": f"call-{len(messages)}", "type": "function", "function": call, "index": 0}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    reason = "tool_calls" if message["content"] is None else "stop"
    return {
        "id": "answer-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
    }


def _chunks(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    (choice,) = answer["choices"]
    base = {**answer, "object": "chat.completion.chunk", "usage": None}
    yield {**base, "choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]}
    yield {
        **base,
        "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}],
    }
    yield {**base, "choices": [], "usage": answer["usage"]}


def _gemini_answer(body: dict[str, Any]) -> dict[str, Any]:
    """The same, as Gemini says it. The body has no name of a model."""
    messages = [_gemini_message(content) for content in body["contents"]]
    answer = _answer({"messages": messages, "model": "small-1"})
    message = answer["choices"][0]["message"]
    part: dict[str, Any] = {"text": message["content"]}
    for call in message.get("tool_calls", ()):
        function = call["function"]
        arguments = json.loads(function["arguments"])
        part = {"functionCall": {"id": call["id"], "name": function["name"], "args": arguments}}
    return {
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": answer["usage"]["prompt_tokens"],
            "candidatesTokenCount": answer["usage"]["completion_tokens"],
            "totalTokenCount": answer["usage"]["total_tokens"],
        },
        "modelVersion": answer["model"],
        "responseId": answer["id"],
    }


def _gemini_message(content: dict[str, Any]) -> dict[str, Any]:
    (part,) = content["parts"]
    if "functionResponse" in part:
        return {"role": "tool", "content": json.dumps(part["functionResponse"]["response"])}
    return {"role": content["role"], "content": part.get("text")}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = _gemini_answer(body) if "contents" in body else _answer(body)
        if body.get("stream"):
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in _chunks(answer)]
            kind, content = "text/event-stream", "".join([*lines, "data: [DONE]\n\n"])
        else:
            kind, content = "application/json", json.dumps(answer)
        encoded = content.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_values: object) -> None: ...
