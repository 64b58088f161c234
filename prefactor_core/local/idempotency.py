"""One effect for each idempotency key (API.md section 5). Synchronous."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from prefactor_core.local.faults import Faults, ReadOnly
from prefactor_core.local.refusal import Refusal
from prefactor_core.local.requests import check_key
from prefactor_core.local.store import Store


class Once:
    """Does each call in one transaction; and one that has a key, once."""

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
                row = {"key": key, "request": request, "answer": answer.decode()}
                self._store.insert("idempotency_keys", row)
            return answer
