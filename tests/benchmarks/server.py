"""The server of the benchmarks: it takes the requests of all systems, and counts.

``python -m benchmarks.server`` listens on two ports of the loopback interface, prints them as
one JSON line (``{"api": port, "control": port}``), and ends when its standard input does.

The control port takes ``POST /control`` with a :class:`Settings` and answers :class:`Counts`
before the change. The control port stays open while the API is down: then nothing listens on
the API's port, and its connections are reset.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import msgspec
from msgspec import UNSET, Struct, UnsetType

from benchmarks.wire import (
    NOW,
    BulkAnswer,
    BulkCall,
    BulkItem,
    FinishCall,
    InstanceDetails,
    RegisterCall,
    SpanCreate,
    SpanCreateCall,
    SpanDetails,
    Success,
    VersionDetails,
    make_id,
    otlp_span_ids,
)

_TERMINAL = frozenset({"complete", "failed", "cancelled"})
_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_PING = b'{"status":"success","details":{"token_type":"account"}}'


class Settings(Struct):
    """The settings that the control port takes; a field that is left out does not change.

    ``delay``: seconds from the end of a request to its answer. ``reset``: reset the counters.
    ``listening``: whether the API's port takes connections. ``hanging``: whether the API takes
    requests and answers none. ``failure_rate``: the part of the requests (0 to 1) that is
    answered 503 without effect.
    """

    delay: float | UnsetType = UNSET
    reset: bool = False
    listening: bool | UnsetType = UNSET
    hanging: bool | UnsetType = UNSET
    failure_rate: float | UnsetType = UNSET


class Counts(Struct):
    """The counters since the last reset. ``refused``: requests answered with an error."""

    requests: int
    bulk_items: int
    created: int
    finished: int
    delivered: int
    refused: int


class RefusedError(Exception):
    """A request that the server refuses."""


class Counters:
    """Counts requests, and spans by their ids: a repeated id counts once."""

    def __init__(self) -> None:
        self.requests = 0
        self.bulk_items = 0
        self.refused = 0
        self.created: set[str | bytes] = set()
        self.finished: set[str | bytes] = set()
        self.ids_by_key: dict[str, str] = {}

    def counts(self) -> Counts:
        return Counts(
            requests=self.requests,
            bulk_items=self.bulk_items,
            created=len(self.created),
            finished=len(self.finished),
            delivered=len(self.created & self.finished),
            refused=self.refused,
        )


class Api:
    """Answers requests one by one; the only state is ids and counters."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._last_number = 100
        self._encode = msgspec.json.Encoder().encode
        self._bulk = msgspec.json.Decoder(BulkCall).decode
        self._create = msgspec.json.Decoder(SpanCreateCall).decode
        self._finish = msgspec.json.Decoder(FinishCall).decode
        self._register = msgspec.json.Decoder(RegisterCall).decode

    def answer(self, method: str, path: str, body: bytes) -> tuple[str, bytes]:
        """Content type and body. Raises :class:`RefusedError` or ``msgspec.DecodeError``."""
        self.counters.requests += 1
        path = path.partition("?")[0]
        if path == "/v1/traces":
            ids = set(otlp_span_ids(body))
            self.counters.created |= ids
            self.counters.finished |= ids
            return _PROTOBUF, b""
        return _JSON, self._answer(method, path.removeprefix("/api/v1/").split("/"), body)

    def _answer(self, method: str, words: list[str], body: bytes) -> bytes:
        match method, words:
            case "POST", ["bulk"]:
                items = self._bulk(body).items
                self.counters.bulk_items += len(items)
                outputs = {item.idempotency_key or "": self._item(item) for item in items}
                return self._encode(BulkAnswer(outputs))
            case "POST", ["agent_spans"]:
                call = self._create(body)
                key = call.idempotency_key or call.details.idempotency_key
                return self._encode(self._create_span(call.details, key))
            case "POST", ["agent_spans", span_id, "finish"]:
                return self._encode(self._finish_span(span_id, self._finish(body)))
            case "POST", ["agent_instance", "register"]:
                return self._encode(self._register_instance(self._register(body).id))
            case "POST", ["agent_instance", instance_id, "start" | "record_quality"]:
                return self._encode(_instance(instance_id, "active"))
            case "POST", ["agent_instance", instance_id, "finish"]:
                return self._encode(_instance(instance_id, "complete"))
            case "GET", ["agent_instance", instance_id]:
                return self._encode(_instance(instance_id, "active"))
            case "POST", ["pfid", "generate"]:
                return self._encode({"status": "success", "pfids": [self._new_id()]})
            case "GET", ["ping"]:
                return _PING
            case _:
                raise RefusedError(f"no call {method} {'/'.join(words)}")

    def _item(self, item: BulkItem) -> Success:
        if item.idempotency_key is None:
            raise RefusedError("an item of a bulk request has no idempotency_key")
        match item.type:
            case "agent_spans/create":
                return self._create_span(item.details or item, item.idempotency_key)
            case "agent_spans/finish":
                finish = FinishCall(item.status, item.result_payload, item.timestamp)
                return self._finish_span(item.agent_span_id, finish)
            case "agent_instances/register":
                return self._register_instance(item.id)
            case "agent_instances/start" | "agent_instances/record_quality":
                return _instance(item.agent_instance_id, "active")
            case "agent_instances/finish":
                return _instance(item.agent_instance_id, item.status)
            case other:
                raise RefusedError(f"no items of type {other!r}")

    def _create_span(self, span: SpanCreate, key: str | None) -> Success:
        span_id = span.id
        if span_id is None:
            # The same key again is the same span.
            span_id = self.counters.ids_by_key.get(key or "") or self._new_id()
            if key is not None:
                self.counters.ids_by_key[key] = span_id
        self.counters.created.add(span_id)
        if span.status in _TERMINAL:
            self.counters.finished.add(span_id)
        return Success(
            SpanDetails(
                id=span_id,
                agent_instance_id=span.agent_instance_id,
                schema_name=span.schema_name,
                status=span.status,
                parent_span_id=span.parent_span_id,
                payload=span.payload,
                result_payload=span.result_payload,
                started_at=span.started_at or NOW,
                finished_at=span.finished_at,
            )
        )

    def _finish_span(self, span_id: str, finish: FinishCall) -> Success:
        self.counters.finished.add(span_id)
        return Success(
            SpanDetails(
                id=span_id,
                agent_instance_id=make_id(100),
                schema_name="agent:llm",
                status=finish.status or "complete",
                result_payload=finish.result_payload,
                finished_at=finish.timestamp or NOW,
            )
        )

    def _register_instance(self, instance_id: str | None) -> Success:
        answer = _instance(instance_id or self._new_id(), "pending")
        answer.agent_version = VersionDetails(make_id(3), "agent_version")
        answer.agent_schema_version = VersionDetails(make_id(6), "agent_schema_version")
        return answer

    def _new_id(self) -> str:
        self._last_number += 1
        return make_id(self._last_number)


def _instance(instance_id: str, status: str) -> Success:
    return Success(
        InstanceDetails(
            instance_id,
            status,
            started_at=None if status == "pending" else NOW,
            finished_at=NOW if status in _TERMINAL else None,
        )
    )


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive and Content-Length, and nothing else of it."""

    def __init__(self, server: Server, answer: Callable[[str, str, bytes], bytes]) -> None:
        self._server = server
        self._answer = answer
        self._received = bytearray()
        self._size: int | None = None
        self._head: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does not inherit from asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            if self._size is None and not self._read_head():
                return
            if len(self._received) < (size := self._size or 0):
                return
            body = bytes(self._received[:size])
            del self._received[:size]
            self._size = None
            if self._server.hanging:
                return
            content = self._answer(self._head[0], self._head[1], body)
            if delay := self._server.delay:
                asyncio.get_running_loop().call_later(delay, self._write, content)
            else:
                self._write(content)

    def _read_head(self) -> bool:
        """Read a request's head; False if it is not complete yet."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._received[:end].decode("latin-1")
        del self._received[: end + 4]
        self._head = head.partition("\r\n")[0].split(" ")
        before, found, after = head.lower().partition("\r\ncontent-length:")
        self._size = int(after.partition("\r\n")[0]) if found else 0
        return bool(before)

    def _write(self, content: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(content)


class Server:
    """The API's port and the control port."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.hanging = False
        self._failure_rate = 0.0
        self._random = random.Random(11)
        self.connections: set[asyncio.Transport] = set()
        self._api = Api()
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._listening: asyncio.Future[None] | None = None
        self._settings = msgspec.json.Decoder(Settings).decode

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set."""
        await self._listen()
        # A server of its own: its answers are not delayed, and its connections not reset.
        control = await asyncio.get_running_loop().create_server(
            lambda: Connection(Server(), self._answer_control), "127.0.0.1", 0
        )
        ports = {"api": self._port, "control": control.sockets[0].getsockname()[1]}
        sys.stdout.write(msgspec.json.encode(ports).decode() + "\n")
        sys.stdout.flush()
        async with control:
            await stop.wait()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: Connection(self, self._answer_api), "127.0.0.1", self._port, backlog=1024
            )
            self._port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._reset_connections()

    def _reset_connections(self) -> None:
        for transport in list(self.connections):
            transport.abort()

    def _answer_api(self, method: str, path: str, body: bytes) -> bytes:
        if self._random.random() < self._failure_rate:
            self._api.counters.refused += 1
            answer = {"status": "error", "code": "unavailable", "message": "try again"}
            return _response(503, _JSON, msgspec.json.encode(answer))
        try:
            return _response(200, *self._api.answer(method, path, body))
        except (RefusedError, msgspec.DecodeError, ValueError) as error:
            self._api.counters.refused += 1
            answer = {"status": "error", "code": "bad_request", "message": str(error)}
            return _response(400, _JSON, msgspec.json.encode(answer))

    def _answer_control(self, method: str, path: str, body: bytes) -> bytes:
        settings = self._settings(body or b"{}")
        counts = self._api.counters.counts()
        if settings.delay is not UNSET:
            self.delay = settings.delay
        if settings.hanging is not UNSET:
            self.hanging = settings.hanging
            if not self.hanging:
                self._reset_connections()
        if settings.failure_rate is not UNSET:
            self._failure_rate = settings.failure_rate
        if settings.reset:
            self._api.counters = Counters()
        if settings.listening is True:
            self._listening = asyncio.ensure_future(self._listen())
        elif settings.listening is False:
            self._stop_listening()
        return _response(200, _JSON, msgspec.json.encode(counts))


def _response(status: int, kind: str, body: bytes) -> bytes:
    reason = HTTPStatus(status).phrase
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def _main() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    await Server().serve(stop)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:  # Windows and PyPy have none
        asyncio.run(_main())
    else:
        uvloop.run(_main())
