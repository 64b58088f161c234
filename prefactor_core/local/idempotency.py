"""One effect for each idempotency key (API.md section 5). Synchronous."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from prefactor_core.local.faults import Faults, ReadOnly
from prefactor_core.local.refusal import Refusal
from prefactor_core.local.requests import check_key
from prefactor_core.local.store import Store

KEPT_SECONDS: Final = 24 * 60 * 60
MOST_KEPT: Final = 1_000_000
_FORGET_EVERY: Final = 64
"""Calls with a key. Each time, at most twice as many are forgotten: a write costs bounded time."""


class Once:
    """Does each call in one transaction; and one that has a key, once.

    A key and its answer are known for a day, but not for longer than until a million newer ones
    came. A client tries again what was on its way when its API went away: it does that first
    when the API is back, and no million of other calls can come before.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def __call__(
        self, call: str, body: Struct, key: str | None, act: Callable[[], Mapping[str, object]]
    ) -> bytes:
        """The JSON of what ``act`` answers, or the first answer again if the key was used for
        the same before. ``call`` tells the calls apart that have the same body."""
        check_key(key)
        try:
            return self._do(call, body, key, act)
        except RecursionError:
            # It could be read, just so; what is written or shown of it takes a little more.
            raise Refusal(400, "bad_request", "the body is nested too deep") from None

    def _do(
        self, call: str, body: Struct, key: str | None, act: Callable[[], Mapping[str, object]]
    ) -> bytes:
        request = hashlib.sha256(call.encode() + msgspec.json.encode(body)).hexdigest()
        with self._store.transaction():
            if key is not None:
                known = self._store.one("SELECT * FROM idempotency_keys WHERE key = ?", key)
                if known is not None:
                    if known["request"] != request:
                        raise Refusal(
                            409, "idempotency_key_reused", f"{key!r} was used for another request"
                        )
                    return bytes(known["answer"], "utf-8")
            if self._faults.read_only:
                raise ReadOnly
            answer = msgspec.json.encode(act())
            if key is not None:
                self._remember(key, request, answer)
            return answer

    def _remember(self, key: str, request: str, answer: bytes) -> None:
        now = int(time.time())
        row = {"key": key, "request": request, "answer": answer.decode(), "used_at": now}
        newest = self._store.insert("idempotency_keys", row)
        if newest % _FORGET_EVERY == 0:
            self._store.delete_oldest(
                "idempotency_keys",
                2 * _FORGET_EVERY,
                "used_at < ? OR rowid <= ?",
                now - KEPT_SECONDS,
                newest - MOST_KEPT,
            )
