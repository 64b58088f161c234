"""A payload becomes bounded, redacted JSON bytes, once, at the call. Pure; never raises.

Later changes of the caller's objects cannot reach what was captured, and nothing of the
caller's is changed. What JSON cannot hold degrades field by field.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from threading import RLock
from typing import Final, cast

import msgspec
from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.log import log
from prefactor_core.payloads.error_description import ErrorDescription
from prefactor_core.payloads.jsonable import plain
from prefactor_core.payloads.kinds import has_fields
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

__all__ = ["EMPTY", "Capture", "capture", "fields_of", "truncated"]

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

    ``max_payload_bytes``: the most that one payload may have, at least 1,024. Of a larger one
    the largest strings are cut, and end with the number of characters that are missing; if
    that is not enough, ``{"$truncated": {"bytes": …}}`` stands for all of it.
    ``redact``: is given each payload, as a dict decoded from JSON that is nobody else's, and
    gives what may be seen of it, in JSON or not. It runs before anything else can see the
    payload, and before anything is cut. Where it raises, or gives no mapping,
    ``{"$withheld": …}`` stands for the payload.
    ``enabled``: False keeps nothing of any payload, and of results the type of an error.
    ``degraded``: how many payloads lost something is counted here, by reason; see
    :class:`~prefactor_core.Statistics`.

    Raises :class:`PrefactorValueError` for values that cannot be right.
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
        # What has to see each payload whole.
        self._redact_all = None if isinstance(redact, KeyRedactor) else redact
        # The short way of what is plain, and has nothing to hide.
        self._encode_plain: Callable[[list[object], int], bytes | None] = plain_encoder.encode
        if self._redact_all is not None:
            self._encode_plain = _never
        elif self._redact_keys is not None:
            self._encode_plain = PlainEncoder(self._redact_keys).encode
        self.enabled = enabled
        self._degraded: dict[str, int] = {} if degraded is None else degraded
        self._problem = ""
        # A signal handler or a finaliser may record while it is held.
        self._lock = RLock()

    def __call__(self, payload: object) -> Raw:
        """The JSON of ``payload``, always an object: anything else becomes ``{"value": …}``."""
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
            return _UNREADABLE  # there was no stack or memory left to look at it

    def result(self, result: object) -> Raw:
        """As a call, for what a span resulted in: that it failed, and how, is always kept."""
        if self.enabled:
            return self(result)
        error = result.get("error") if type(result) is dict else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(error, ErrorDescription):
            return Raw(encode_within({"error": {"type": error["type"]}}, self._limit))
        return EMPTY

    def item(self, value: object, room: int) -> Raw | None:
        """The JSON of one of several values that are to be recorded together; None if it has more
        than ``room`` bytes.

        It is as the value is now. A ``redact`` of your own sees it later, with the others. Only
        without one, and where there is room for half a payload, its largest strings are cut to
        make it fit.
        """
        lost: set[str] = set()
        try:
            if (encoded := self._encode_plain([value], room)) is not None:
                return Raw(encoded)
            tree = self._redacted_by_key(plain(value, self._limit, lost))
            if self._redact_all is not None or room < self._limit / 2:
                return Raw(encode_within(tree, room))
            return Raw(fit({"": tree}, room, lost)[len(b'{"":') : -len(b"}")])
        except Exception:
            return None  # too large, or there was no stack or memory left to look at it
        finally:
            if lost:
                self.count(lost)

    def with_fields(self, payload: Raw, result: Raw, names: Collection[str]) -> Raw:
        """``payload`` with those fields of ``result`` among ``names`` that it has not, or as null,
        and that do not make it larger than one payload may be."""
        try:
            fields, found = _decode_raw_fields(payload), _decode_raw_fields(result)
        except msgspec.DecodeError:
            return payload  # there is a Raw in it that is no JSON
        for name in names:
            if name in found and fields.get(name, _NULL) == _NULL:
                more = fields | {name: found[name]}
                encoded = _encode(more)
                if len(encoded) <= self._limit:
                    fields, payload = more, Raw(encoded)
        return payload

    def merge(self, fields: dict[str, object], data: object) -> None:
        """Put what :func:`fields_of` finds in ``data`` into ``fields``; later keys win."""
        try:
            fields |= data if type(data) is dict else self.fields_of(data)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        except Exception:  # keys that raise when they are compared
            try:
                fields["value"] = plain(data, _MAX_COPIED)  # pyright: ignore[reportUnknownArgumentType]
            except Exception:
                fields["value"] = data  # too large, as will be found at the end

    def fields_of(self, data: object, name: str = "value") -> dict[str, object]:
        """As the function of this name; counts what is lost."""
        lost: set[str] = set()
        fields = fields_of(data, name, lost)
        if lost:
            self.count(lost)
        return fields

    def _carefully(self, payload: object) -> Raw:
        lost: set[str] = set()
        try:
            tree = _object(self._redacted_by_key(plain(payload, self._limit, lost)))
            if self._redact_all is not None:
                redacted = self._redacted(self._redact_all, tree, lost)
                tree = _object(plain(redacted, self._limit, lost))
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
        # A list is looked at as a part of an object, which may be a pair.
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
            # A dict: what only looks like a mapping may look different the next time.
            if isinstance(redacted, Mapping):
                return dict(cast("Mapping[object, object]", redacted))
            problem = f"gave a {type(redacted).__qualname__}, which is no mapping"
        except Exception as error:
            # Not its message: that may well be of the payload.
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
            pass  # it is too deep to be encoded
        return truncated(self._limit, at_least=True)

    def count(self, lost: Collection[str]) -> None:
        """Count a payload that lost something, and say so: the first time, the second, the fourth
        and so on."""
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
    """``data`` as the fields of an object: its own, if it has any, else one called ``name``.

    Fields have mappings, structs, dataclasses, classes of attrs and models of pydantic. ``lost``
    gets the reasons why something is not in them.
    """
    if type(data) is dict:
        return data.copy()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    cls = type(data)
    if issubclass(cls, Struct):
        # By way of JSON, which ends where it gets too large: values that share parts can be small
        # in memory and endless as a tree.
        try:
            if (encoded := plain_encoder.encode([data], _MAX_COPIED)) is not None:
                return _decode_fields(encoded)
        except Exception:
            pass
    if not has_fields(cls):
        return {name: data}
    try:
        found = plain(data, _MAX_COPIED, lost)
    except TooLargeError:
        return {name: data}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {name: found}


capture = Capture()
