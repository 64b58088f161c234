"""Faults: errors of a server, made on purpose to test its clients."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Final, TypeGuard

import anyio
from msgspec import Struct
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.local.errors import ApiError

_DAY: Final = 24 * 60 * 60


class Faults(Struct, kw_only=True):
    """The faults of a local Prefactor; none by default. Fields may change while it runs.

    ``answering_time``: seconds between the effect of a call and its answer; ``math.inf``: never.
    ``failure_rate``: the share of requests (0 to 1) that have no effect and are answered
    ``failure_status``, or one of several, each 400 to 599; ``retry_after``: the seconds that these
    answers ask to wait, up to a day (the header in whole seconds, rounded up).
    ``read_only``: every new write fails like this, while reads, and writes whose idempotency key
    is known, are answered, as by a database in maintenance behind a cache. A bulk request with a
    new write fails whole.
    ``gateway``: failures, and errors for large bodies, are a gateway's page in HTML in place of
    the API's error; ``LocalPrefactor.refusals`` counts them as ``gateway``.
    ``drop_rate``: the share of requests whose connection breaks: one half before the call takes
    effect, the other half after it, so that only the answer is lost.
    ``bulk``: whether POST bulk exists; ``bulk_types``: the types of items that it knows, None for
    all.
    ``given_ids``: whether a caller may choose the id of a run or a span.
    ``max_body_bytes``: the largest body that is taken; a larger one is answered 413.
    ``seed``: the same seed and the same requests have the same faults. Read once, at the start.

    Raises :class:`PrefactorValueError` for a value out of its bounds; later assignments are not
    checked.
    """

    answering_time: float = 0.0
    failure_rate: float = 0.0
    failure_status: int | Collection[int] = 503
    retry_after: float | None = None
    read_only: bool = False
    gateway: bool = False
    drop_rate: float = 0.0
    bulk: bool = True
    bulk_types: Collection[str] | None = None
    given_ids: bool = True
    max_body_bytes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("answering_time", _is_number(self.answering_time), "a number, 0 or more")
        for name in ("failure_rate", "drop_rate"):
            self._check(name, _is_number(getattr(self, name), 1), "a number, between 0 and 1")
        wait, size, types = self.retry_after, self.max_body_bytes, self.bulk_types
        is_wait = wait is None or _is_number(wait, _DAY)
        self._check("retry_after", is_wait, f"a number, between 0 and {_DAY}")
        for name in ("read_only", "gateway", "bulk", "given_ids"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        is_size = size is None or (_is_whole(size) and size >= 0)
        self._check("max_body_bytes", is_size, "a whole number, 0 or more")
        self._check("seed", _is_whole(self.seed), "a whole number")
        are_types = types is None or (
            _is_collection(types) and all(isinstance(t, str) for t in types)
        )
        self._check("bulk_types", are_types, "a collection of strings or None")
        self._check_statuses()

    def _check(self, name: str, is_right: bool, what: str) -> None:
        if not is_right:
            value = in_message(getattr(self, name))
            raise PrefactorValueError(f"{name} must be {what}, got {value}")

    def _check_statuses(self) -> None:
        given: object = self.failure_status
        statuses = list(given) if _is_collection(given) else [given]
        if not statuses:
            raise PrefactorValueError("failure_status must hold at least one status, got none")
        for status in statuses:
            if not isinstance(status, int) or not 400 <= status <= 599:
                raise PrefactorValueError(
                    f"failure_status must be between 400 and 599, got {in_message(status)}"
                )


class ReadOnly(Exception):  # noqa: N818 - the fault of this name
    """A new write while ``Faults.read_only``; answered by :meth:`FaultMiddleware.failure`."""


class FaultMiddleware:
    """ASGI middleware around ``app`` with those ``faults`` that any server can have.

    ``refusals`` counts the errors of this middleware by their code.
    """

    def __init__(self, app: ASGIApp, faults: Faults, refusals: Counter[str]) -> None:
        self._app = app
        self._faults = faults
        self._refusals = refusals
        self._random = random.Random(faults.seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        faults = self._faults
        most = faults.max_body_bytes
        dropped = self._happens(faults.drop_rate)
        done = not dropped or self._happens(0.5)
        failed = not dropped and self._happens(faults.failure_rate)

        async def send_late(message: Message) -> None:
            if message["type"] == "http.response.start" and faults.answering_time:
                await anyio.sleep(faults.answering_time)
            await send(message)

        # Always read the whole body: not every client looks for an answer while it sends.
        messages, size = await _read(receive, most)

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        if done:
            app = self._app
            if failed:
                app = self.failure()
            elif most is not None and size > most:
                message = f"the body has {size} bytes, at most {most} are taken"
                app = self._error(413, "payload_too_large", message)
            await app(scope, replay, _discard if dropped else send_late)
        if dropped:
            await _break_connection(send_late)

    def failure(self) -> Response:
        """The answer to a request that fails without effect."""
        statuses, wait = self._faults.failure_status, self._faults.retry_after
        status = statuses if isinstance(statuses, int) else self._random.choice(sorted(statuses))
        code = "rate_limited" if status == 429 else "unavailable"
        message = "this server has faults: try again"
        if wait is None:
            return self._error(status, code, message)
        headers = {"Retry-After": str(math.ceil(wait))}
        return self._error(status, code, message, headers, retry_after_ms=round(wait * 1000))

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate

    def _error(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> Response:
        if self._faults.gateway:
            self._refusals["gateway"] += 1
            return HTMLResponse(_page(status), status, headers=headers)
        self._refusals[code] += 1
        body = {**ApiError(status, code, message).body(), **more}
        return JSONResponse(body, status, headers=headers)


def _page(status: int) -> str:
    known = status in HTTPStatus.__members__.values()
    title = f"{status} {HTTPStatus(status).phrase}" if known else str(status)
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"


async def _read(receive: Receive, most: int | None) -> tuple[list[Message], int]:
    """The messages of a request and the bytes of its body; messages beyond ``most`` bytes are
    not kept."""
    messages: list[Message] = []
    size = 0
    more = True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if most is None or size <= most:
            messages.append(message)
    return messages, size


async def _break_connection(send: Send) -> None:
    # Without the start of an answer, the server would answer 500. As the rest never comes, the
    # server must close the connection.
    headers = [(b"content-length", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    raise ConnectionResetError("the connection is dropped: this server has faults")


async def _discard(message: Message) -> None:
    """Lose an answer."""


def _is_number(value: object, most: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_collection(value: object) -> TypeGuard[Collection[object]]:
    return isinstance(value, Collection) and not isinstance(value, str | bytes)
