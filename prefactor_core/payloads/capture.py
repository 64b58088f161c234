"""A payload becomes bounded, redacted JSON bytes, once, at the call. Never raises.

Later changes of the caller's objects do not reach the captured bytes, and the caller's objects
are not changed. A field that JSON cannot hold degrades alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, suppress
from threading import RLock
from typing import Final, cast

import msgspec
from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from prefactor_core.exceptions import PrefactorValueError, in_message, type_in_message
from prefactor_core.exceptions.log import log
from prefactor_core.payloads.error_description import ErrorDescription
from prefactor_core.payloads.markers import full_type_name
from prefactor_core.payloads.plain_json import PlainEncoder, plain_encoder
from prefactor_core.payloads.redaction import KeyRedactor, Redact
from prefactor_core.payloads.truncation import (
    TooLargeError,
    encode_within,
    fit,
    truncated,
    unshared,
)

__all__ = ["EMPTY", "Capture", "fields_of", "truncated"]

logger = logging.getLogger("prefactor_core.payloads.capture")

EMPTY: Final = Raw(b"{}")
_NULL: Final = Raw(b"null")

_UNREADABLE: Final = Raw(b'{"$unreadable":{}}')
_BRACE: Final = ord("{")
_encode = Encoder().encode
_decode_fields = Decoder(dict[str, object]).decode
_decode_raw_fields = Decoder(dict[str, Raw]).decode
_MIN_BYTES: Final = 1_024
_MEASURED: Final = 8
_MAX_COPIED: Final = 1_000_000


class Capture:
    """Makes the JSON of payloads, by one configuration.

    ``max_payload_bytes``: the limit for one payload, at least 1,024. In a larger payload the
    largest strings are cut, and each ends with the number of missing characters; if that is not
    enough, ``{"$truncated": {"bytes": …}}`` replaces the largest lists and objects, or in the end
    the payload.
    ``redact``: takes each payload, a dict decoded from JSON that it may change, and returns the
    part that may be seen. It runs before any other code sees the payload, and before anything is
    cut. If it raises, or returns no mapping, ``{"$withheld": …}`` replaces the payload.
    ``enabled``: False keeps no payload, and of a result only the type of an error.
    ``degraded``: counts the payloads that lost something, by reason; see
    :class:`~prefactor_core.Statistics`.

    Raises :class:`PrefactorValueError` for an invalid value.
    """

    def __init__(
        self,
        *,
        max_payload_bytes: int = 1_000_000,
        redact: Redact | None = None,
        enabled: bool = True,
        degraded: dict[str, int] | None = None,
    ) -> None:
        if not isinstance(max_payload_bytes, int) or max_payload_bytes < _MIN_BYTES:
            raise PrefactorValueError(
                "max_payload_bytes must be a whole number >= 1024, got "
                f"{in_message(max_payload_bytes)}"
            )
        if redact is not None and not callable(redact):
            raise PrefactorValueError(
                "redact must be a function that takes a payload and returns one, got "
                f"{in_message(redact)}"
            )
        self.max_payload_bytes = self._limit = max_payload_bytes
        self._redact_keys = redact if isinstance(redact, KeyRedactor) else None
        # Imported by the first client: the long way takes milliseconds to import, and no recording
        # should wait for it.
        from prefactor_core.payloads.jsonable import plain

        self._plain = plain
        # A function of the user's, which has to see each payload whole.
        self._redact_all = None if isinstance(redact, KeyRedactor) else redact
        # The short way of a plain payload that has nothing to hide.
        self._encode_plain: Callable[[list[object], int], bytes | None] = plain_encoder.encode
        if self._redact_all is not None:
            self._encode_plain = _never
        elif self._redact_keys is not None:
            self._encode_plain = PlainEncoder(self._redact_keys).encode
        self.enabled = enabled
        self._degraded: dict[str, int] = {} if degraded is None else degraded
        self._problem = ""
        # Reentrant: a signal handler or a finaliser may record while it is held.
        self._lock = RLock()

    def __call__(self, payload: object) -> Raw:
        """Return the JSON of ``payload``, always an object: others become ``{"value": …}``."""
        if not self.enabled:
            return EMPTY
        try:
            encoded = self._encode_plain([payload], self._limit)
            if encoded is not None and encoded[0] == _BRACE:
                return Raw(encoded)
        except Exception:
            pass  # too large, or changed meanwhile by another thread
        try:
            return self._carefully(payload)
        except Exception:
            self.count({"unreadable"})
            return _UNREADABLE  # no stack or memory left

    def result(self, result: object) -> Raw:
        """Return the JSON of a result. The type of an error is kept even with ``enabled=False``."""
        if self.enabled:
            return self(result)
        error = result.get("error") if type(result) is dict else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(error, ErrorDescription):
            return Raw(encode_within({"error": {"type": error["type"]}}, self._limit))
        return EMPTY

    def item(self, value: object, room: int) -> Raw | None:
        """Return the JSON of one of several values that are recorded together, as the value is
        now; None if the JSON has more than ``room`` bytes.

        A ``redact`` function of the user's sees it later, with the others. Without such a
        function, and with room for half a payload, its largest strings are cut to make it fit.
        """
        lost: set[str] = set()
        may_cut = self._redact_all is None and room >= self._limit / 2
        try:
            with suppress(BufferError) if may_cut else nullcontext():
                if (encoded := self._encode_plain([value], room)) is not None:
                    return Raw(encoded)
            tree = self._redacted_by_key(self._plain(value, self._limit, lost))
            if not may_cut:
                return Raw(encode_within(tree, room))
            return Raw(fit({"": tree}, room, lost)[len(b'{"":') : -len(b"}")])
        except Exception:
            return None  # too large, or no stack or memory left
        finally:
            if lost:
                self.count(lost)

    def with_fields(self, payload: Raw, result: Raw, names: Collection[str]) -> Raw:
        """Return ``payload``, completed by the fields ``names`` of ``result``: those that are
        missing or null in ``payload``, as long as the limit of one payload allows."""
        try:
            fields, found = _decode_raw_fields(payload), _decode_raw_fields(result)
        except msgspec.DecodeError:
            return payload  # a Raw of the user's in it is no JSON
        for name in names:
            if name in found and fields.get(name, _NULL) == _NULL:
                more = fields | {name: found[name]}
                encoded = _encode(more)
                if len(encoded) <= self._limit:
                    fields, payload = more, Raw(encoded)
        return payload

    def merge(self, fields: dict[str, object], data: object) -> None:
        """Add the fields of ``data`` (:func:`fields_of`) to ``fields``; later keys win."""
        try:
            fields |= data if type(data) is dict else self.fields_of(data)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        except Exception:  # keys that raise when they are compared
            try:
                fields["value"] = self._plain(data, _MAX_COPIED)  # pyright: ignore[reportUnknownArgumentType]
            except Exception:
                fields["value"] = data  # too large: the final capture says so

    def fields_of(self, data: object, name: str = "value") -> dict[str, object]:
        """Call the function of this name, and count what is lost."""
        lost: set[str] = set()
        fields = fields_of(data, name, lost)
        if lost:
            self.count(lost)
        return fields

    def _carefully(self, payload: object) -> Raw:
        lost: set[str] = set()
        try:
            tree = _object(self._redacted_by_key(self._plain(payload, self._limit, lost)))
            if self._redact_all is not None:
                redacted = self._redacted(self._redact_all, tree, lost)
                tree = _object(self._plain(redacted, self._limit, lost))
            return Raw(fit(tree, self._limit, lost))
        except TooLargeError:
            lost.add("truncated")
            return self._too_large(payload)
        finally:
            if lost:
                self.count(lost)

    def _redacted_by_key(self, tree: object) -> object:
        if self._redact_keys is None or not isinstance(tree, (dict, list)):
            return tree
        # Inside of an object: a list may be a pair of a name and a secret.
        return self._redact_keys({"": tree})[""]

    def _redacted(
        self, redact: Redact, tree: dict[str, object], lost: set[str]
    ) -> dict[object, object]:
        try:
            decoded = _decode_fields(encode_within(tree, self._limit))
        except Exception:
            decoded = cast("dict[str, object]", unshared(tree))
        try:
            redacted: object = redact(decoded)
            # Copied: a mapping with code of its own may look different the next time.
            if isinstance(redacted, Mapping):
                return dict(cast("Mapping[object, object]", redacted))
            problem = f"gave {type_in_message(redacted)}, which is no mapping"
        except Exception as error:
            # Without the message, which may quote the payload.
            problem = f"raised {full_type_name(type(error))}"
        lost.add("withheld")
        self._problem = problem
        return {"$withheld": f"redact {problem}"}

    def _too_large(self, payload: object) -> Raw:
        most = self._limit * _MEASURED
        try:
            if (encoded := plain_encoder.encode([payload], most)) is not None:
                return truncated(len(encoded))
        except BufferError:
            return truncated(most, at_least=True)
        except Exception:
            pass  # too deep to be encoded
        return truncated(self._limit, at_least=True)

    def count(self, lost: Collection[str]) -> None:
        """Count a payload that lost something; log the first time, the second, the fourth and so
        on."""
        for reason in lost:
            with self._lock:
                times = self._degraded[reason] = self._degraded.get(reason, 0) + 1
            if times & (times - 1) == 0:
                message = _MESSAGES[reason].format(limit=self._limit, problem=self._problem)
                log(logger, logging.WARNING, "%s (payload no. %d)", message, times)


_MESSAGES: Final = {
    "slow": "code of a value in a payload (its repr, model_dump or the like) took too long: "
    "a marker is recorded in its place",
    "unreadable": "a value in a payload could not be read: a marker is recorded in its place",
    "too_deep": "a payload has more than 32 levels: what is deeper is not recorded",
    "truncated": "a payload has more than max_payload_bytes, {limit} bytes: it is recorded shorter",
    "withheld": "redact {problem}: the payload is withheld, and so is every further one like it",
}


def _never(places: list[object], limit: int) -> None:
    return None


def _object(tree: object) -> dict[str, object]:
    return cast("dict[str, object]", tree) if isinstance(tree, dict) else {"value": tree}


def fields_of(data: object, name: str = "value", lost: set[str] | None = None) -> dict[str, object]:
    """Return the fields of ``data``; a value without fields becomes the field ``name``.

    Mappings, structs, dataclasses, attrs classes and pydantic models have fields. The reasons why
    something is missing in them are added to ``lost``.
    """
    if type(data) is dict:
        return data.copy()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    cls = type(data)
    if issubclass(cls, Struct):
        # Copied by way of JSON, which stops at a limit: values that share parts can be small in
        # memory and endless as a tree.
        try:
            if (encoded := plain_encoder.encode([data], _MAX_COPIED)) is not None:
                return _decode_fields(encoded)
        except Exception:
            pass
    from prefactor_core.payloads.jsonable import plain
    from prefactor_core.payloads.kinds import has_fields

    if not has_fields(cls):
        return {name: data}
    try:
        found = plain(data, _MAX_COPIED, lost)
    except TooLargeError:
        return {name: data}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {name: found}
