"""Idempotency keys: a call with a key takes effect once. Synchronous."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from prefactor_core.local.errors import ApiError
from prefactor_core.local.faults import Faults, ReadOnly
from prefactor_core.local.requests import check_key
from prefactor_core.local.store import Store

KEPT_SECONDS: Final = 24 * 60 * 60
MOST_KEPT: Final = 1_000_000
_FORGET_EVERY: Final = 64
"""Calls with a key between two clean-ups. A clean-up forgets at most twice as many keys, so that
the time of a write is bounded."""


class IdempotentCalls:
    """Runs each call in one transaction, and a call with a key only once.

    A key and its answer are known for a day, or until a million newer keys came. A client whose
    API went away sends its open requests again first when the API is back, so a million other
    calls cannot come between.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def run(
        self,
        call: str,
        body: Struct,
        key: str | None,
        act: Callable[[], Mapping[str, object]],
        *,
        checks_first: bool = False,
    ) -> bytes:
        """Call ``act`` and return its answer as JSON; a known key returns the first answer again.

        ``call`` distinguishes calls that have the same body. ``checks_first``: ``act`` raises
        :class:`ApiError` only before it writes, so that nothing has to be taken back inside of a
        greater transaction. Raises :class:`ApiError` (409) for a key that was used for another
        request.
        """
        check_key(key)
        try:
            request = hashlib.sha256(call.encode() + msgspec.json.encode(body)).hexdigest()
            with self._store.transaction(part=not checks_first):
                return self._run(request, key, act)
        except RecursionError:
            # The body could just be decoded; writing or showing it takes a little more depth.
            raise ApiError(400, "bad_request", "the body is nested too deep") from None

    def _run(self, request: str, key: str | None, act: Callable[[], Mapping[str, object]]) -> bytes:
        if key is not None:
            known = self._store.one("SELECT * FROM idempotency_keys WHERE key = ?", key)
            if known is not None:
                if known["request"] != request:
                    raise ApiError(
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
