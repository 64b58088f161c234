"""A strict API in memory that does with each request what a test wants, and looks at its bodies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import anyio
import msgspec

from prefactor_core.api.client import AsgiMessage
from prefactor_core.local import Faults
from prefactor_core.local.app import MEMORY, LocalPrefactor
from prefactor_core.local.errors import ApiError, invalid
from prefactor_core.local.store import Store

Item = dict[str, Any]

ORPHAN, REFUSED, LARGE = "orphan", "refused", "large"
"""The fates of spans, and ``REFUSED`` that of runs. The payload names them: the API refuses the
parent, everything, or the payload."""


class WilfulApi:
    """An ASGI application in front of a local Prefactor.

    ``weather``: what every request gets: "fine", "away", or a status. ``plans``: what the next
    requests get in fine weather, oldest first: "lose" the answer, "break" the connection before
    anything is done, do a "part" of a bulk and break, 502 for what is "done", or "hold": until
    :meth:`release`.

    ``spans`` and ``runs``: what the API calls them, by the key of the create without its suffix,
    and by external identifier. ``wrong``: what a correct client never does.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store = store
        self.faults = faults
        self._app = LocalPrefactor(store, faults=faults)
        self.weather: str | int = "fine"
        self.plans: list[str] = []
        self.spans: dict[str, str] = {}
        self.runs: dict[str, str] = {}
        self.wrong: list[str] = []
        self.refusals: Counter[str] = Counter()
        self._released = anyio.Event()
        # The body of each key, as long as it may have had an effect.
        self._bodies: dict[str, Item] = {}

    def release(self) -> None:
        """Go on with the requests that are held."""
        self._released.set()
        self._released = anyio.Event()

    def forget_keys(self) -> None:
        """Forget which calls were made, but those that make an id, or have no other protection."""
        with self.store.transaction():
            kinds = ["-start", "-finish", *["-create"] * self.faults.given_ids]
            where = " OR ".join("key LIKE ?" for _ in kinds)
            values = [f"%{kind}" for kind in kinds]
            self.store.delete_oldest("idempotency_keys", 1_000_000, where, *values)

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self.weather == "away":
            raise ConnectionRefusedError("nobody is there")
        body: Item = msgspec.json.decode(content) if content else {}
        is_bulk = scope["path"].endswith("/bulk")
        items = body["items"] if is_bulk else [_as_item(scope["path"], body)] if body else []
        for item in items:
            self._look_at(item)
        if isinstance(self.weather, int):
            error = ApiError(self.weather, "unavailable", "not now")
            await _answer(send, error.status, msgspec.json.encode(error.body()))
            return
        plan = self.plans.pop(0) if self.plans and items else ""
        if plan == "break":
            raise ConnectionResetError("before it was done")
        if plan == "hold":
            await self._released.wait()
        if plan == "part" and is_bulk:
            items = items[: len(items) // 2]
        status, answer = await self._do(scope, body, items, is_bulk=is_bulk)
        if plan in ("lose", "part"):
            raise ConnectionResetError("the answer is lost")
        if plan == "done":
            await _answer(send, 502, b"<html>")
        else:
            for item in items:
                self._answered(item, status, answer, is_bulk=is_bulk)
            await _answer(send, status, answer)

    def _look_at(self, item: Item) -> None:
        key = item["idempotency_key"]
        if self._bodies.setdefault(key, item) != item:
            self.wrong.append(f"{key} has two bodies: {self._bodies[key]} and {item}")

    def _answered(self, item: Item, status: int, answer: bytes, *, is_bulk: bool) -> None:
        """A client may change what was refused, or was not reached in its request."""
        key = item["idempotency_key"]
        if is_bulk:
            output = msgspec.json.decode(answer)["outputs"].get(key) if status == 200 else None
            is_done = output is not None and output["status"] == "success"
        else:
            is_done = status == 200
        if not is_done and not self._is_known(key):
            del self._bodies[key]

    def _is_known(self, key: str) -> bool:
        return self.store.one("SELECT 1 FROM idempotency_keys WHERE key = ?", key) is not None

    async def _do(
        self, scope: AsgiMessage, content: Item, items: list[Item], *, is_bulk: bool
    ) -> tuple[int, bytes]:
        if not is_bulk:
            error = self._refusal_of(items[0]) if items else None
            if error is not None:
                self.refusals[error.code] += 1
                return error.status, msgspec.json.encode(error.body())
            status, answer = await self._ask(scope, content)
            if status == 200:
                self._note(items[0], msgspec.json.decode(answer))
            return status, answer
        done: list[Item] = []
        refusal: tuple[str, ApiError] | None = None
        for item in items:
            error = self._refusal_of(item)
            if error is not None:
                self.refusals[error.code] += 1
                refusal = item["idempotency_key"], error
                break
            done.append(item)
        outputs: dict[str, Any] = {}
        if done:
            status, answer = await self._ask(scope, {"items": done})
            if status != 200:
                return status, answer
            outputs = msgspec.json.decode(answer)["outputs"]
            for item in done:
                output = outputs.get(item["idempotency_key"], {})
                if output.get("status") == "success":
                    self._note(item, output)
        if refusal is not None and len(outputs) == len(done):
            outputs[refusal[0]] = refusal[1].body()
        return 200, msgspec.json.encode({"status": "success", "outputs": outputs})

    def _refusal_of(self, item: Item) -> ApiError | None:
        if str(item.get("external_identifier", "")).startswith(REFUSED):
            return invalid("purpose", "no such run is wanted")
        details = item.get("details", {})
        fate = details.get("payload", {}).get("fate")
        if fate == REFUSED:
            return invalid("payload", "is not wanted")
        if fate == ORPHAN and details.get("parent_span_id") is not None:
            return invalid("parent_span_id", "is unknown")
        if fate == LARGE:
            return ApiError(413, "payload_too_large", "too large")
        return None

    def _note(self, item: Item, output: Item) -> None:
        details, key = output["details"], item["idempotency_key"]
        if "external_identifier" in item:
            known, name = self.runs, item["external_identifier"]
        elif "details" in item:
            known, name = self.spans, key.removesuffix("-create")
        else:
            return
        if known.setdefault(name, details["id"]) != details["id"]:
            self.wrong.append(f"{name} was made twice")

    async def _ask(self, scope: AsgiMessage, content: Item) -> tuple[int, bytes]:
        status, answer = 0, b""

        async def replay() -> AsgiMessage:
            body = msgspec.json.encode(content)
            return {"type": "http.request", "body": body, "more_body": False}

        async def note(message: AsgiMessage) -> None:
            nonlocal status, answer
            if message["type"] == "http.response.start":
                status = message["status"]
            answer += message.get("body", b"")

        await self._app(scope, replay, note)
        if status >= 400:
            self.refusals[msgspec.json.decode(answer)["code"]] += 1
        return status, answer


def _as_item(path: str, body: Item) -> Item:
    """The call of one operation, as the item of a bulk that does the same."""
    match path.removeprefix("/api/v1/").split("/"):
        case ["agent_spans"]:
            return {"_type": "agent_spans/create", **body}
        case ["agent_spans", id, call]:
            return {"_type": f"agent_spans/{call}", **body, "agent_span_id": id}
        case ["agent_instance", "register"]:
            return {"_type": "agent_instances/register", **body}
        case ["agent_instance", id, call]:
            return {"_type": f"agent_instances/{call}", **body, "agent_instance_id": id}
        case _:
            raise AssertionError(path)


async def _answer(send: Any, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def wilful_api(faults: Faults) -> Iterator[WilfulApi]:
    """Open one; without a thread, so that virtual time can wait for it."""
    with closing(Store(MEMORY)) as store:
        yield WilfulApi(store, faults)
