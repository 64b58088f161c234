"""A payload becomes bounded, redacted JSON bytes, once, at the call. Pure; never raises.

Later changes of the caller's objects cannot reach what was captured, and nothing of the
caller's is changed. What JSON cannot hold degrades field by field.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, cast

import msgspec
from msgspec import Raw

from prefactor_core.error_description import ErrorDescription
from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.jsonable import (
    TooLargeError,
    describe,
    full_type_name,
    items_of,
    named_fields,
    plain,
)
from prefactor_core.log import log
from prefactor_core.timebox import Timebox
from prefactor_core.truncation import check_object, encode_within, fit, truncated, unshared

__all__ = [
    "EMPTY",
    "Capture",
    "capture",
    "fields_of",
    "merge",
    "truncated",
]

logger = logging.getLogger("prefactor_core.capture")

EMPTY: Final = Raw(b"{}")
_NULL: Final = Raw(b"null")

_UNREADABLE: Final = Raw(b'{"$unreadable":{}}')
_MIN_BYTES: Final = 1_024
_MEASURED: Final = 8
_MAX_FIELDS: Final = 100_000
_MAX_COPIED: Final = 1_000_000

Redact = Callable[[dict[str, object]], Mapping[str, object]]
"""Gives what is recorded of a payload, which it gets as decoded JSON, its own to change."""


class Capture:
    """Makes the JSON of payloads, by one configuration.

    ``max_payload_bytes``: the most that one payload may have, at least 1,024. Of a larger one
    the largest strings are cut, and end with the number of characters that are missing; if
    that is not enough, ``{"$truncated": {"bytes": …}}`` stands for all of it.
    ``redact``: is given each payload, as a dict decoded from JSON that is nobody else's, and
    gives what may be seen of it, in JSON or not. It runs before anything else can see the
    payload, and before anything is cut. Where it raises, or gives no mapping,
    ``{"$withheld": …}`` stands for the payload, and the first time one warning is logged.
    ``enabled``: False keeps nothing of any payload, and of results the type of an error.

    Raises :class:`PrefactorValueError` for values that cannot be right.
    """

    def __init__(
        self,
        *,
        max_payload_bytes: int = 1_000_000,
        redact: Redact | None = None,
        enabled: bool = True,
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
        self._redact = redact
        self.enabled = enabled
        self._warned = False

    def __call__(self, payload: object) -> Raw:
        """The JSON of ``payload``, always an object: anything else becomes ``{"value": …}``."""
        if not self.enabled:
            return EMPTY
        if self._redact is None:
            try:
                encoded = encode_within(payload, self._limit)
                # A broken Raw in it would break the whole request.
                if not encoded.isascii():
                    encoded.decode()
                check_object(encoded)
                return Raw(encoded)
            except Exception:
                pass
        try:
            return self._carefully(payload)
        except Exception:
            return _UNREADABLE  # there was no stack or memory left to look at it

    def result(self, fields: Mapping[str, object]) -> Raw:
        """As a call, for what a span resulted in: that it failed, and how, is always kept."""
        if self.enabled:
            return self(fields)
        error = fields.get("error")
        if isinstance(error, ErrorDescription):
            return Raw(encode_within({"error": {"type": error["type"]}}, self._limit))
        return EMPTY

    def item(self, value: object, room: int) -> Raw | None:
        """The JSON of one of several values that are to be recorded together; None if it has more
        than ``room`` bytes.

        It is as the value is now. ``redact`` sees it later, with the others. Only without one, and
        where there is room for half a payload, its largest strings are cut to make it fit.
        """
        try:
            encoded = encode_within(value, room)
            if not encoded.isascii():
                encoded.decode()
            return msgspec.json.decode(encoded, type=Raw)
        except Exception:
            pass
        try:
            tree = plain(value, self._limit)
            if self._redact is not None or room < self._limit / 2:
                return Raw(encode_within(tree, room))
            return Raw(fit({"": tree}, room)[len(b'{"":') : -len(b"}")])
        except Exception:
            return None  # too large, or there was no stack or memory left to look at it

    def with_fields(self, payload: Raw, result: Raw, names: Collection[str]) -> Raw:
        """``payload`` with those fields of ``result`` among ``names`` that it has not, or as null,
        and that do not make it larger than one payload may be."""
        try:
            fields = msgspec.json.decode(payload, type=dict[str, Raw])
            found = msgspec.json.decode(result, type=dict[str, Raw])
        except msgspec.DecodeError:
            return payload  # there is a Raw in it that is no JSON
        for name in names:
            if name in found and fields.get(name, _NULL) == _NULL:
                more = fields | {name: found[name]}
                encoded = msgspec.json.encode(more)
                if len(encoded) <= self._limit:
                    fields, payload = more, Raw(encoded)
        return payload

    def _carefully(self, payload: object) -> Raw:
        try:
            if self._redact is None:
                return Raw(fit(_object(plain(payload, self._limit)), self._limit))
            redacted = self._redacted(self._redact, payload)
            try:
                encoded = encode_within(redacted, self._limit)
                encoded.decode()
                check_object(encoded)
                return Raw(encoded)
            except Exception:
                return Raw(fit(_object(plain(redacted, self._limit)), self._limit))
        except TooLargeError:
            return self._too_large(payload)

    def _redacted(self, redact: Redact, payload: object) -> object:
        try:
            decoded = msgspec.json.decode(encode_within(payload, self._limit))
        except Exception:
            decoded = unshared(plain(payload, self._limit))
        try:
            redacted: object = redact(_object(decoded))
            # A dict: what only looks like a mapping may look different the next time.
            if isinstance(redacted, Mapping):
                return dict(cast("Mapping[object, object]", redacted))
            problem = f"gave a {type(redacted).__qualname__}, which is no mapping"
        except Exception as error:
            # Not its message: that may well be of the payload.
            problem = f"raised {full_type_name(type(error))}"
        if not self._warned:
            self._warned = True
            log(
                logger,
                logging.WARNING,
                "redact %s: the payload is withheld, and so is every further one like it",
                problem,
            )
        return {"$withheld": f"redact {problem}"}

    def _too_large(self, payload: object) -> Raw:
        most = self._limit * _MEASURED
        try:
            return truncated(len(encode_within(payload, most)))
        except BufferError:
            return truncated(most, at_least=True)
        except Exception:
            return truncated(self._limit, at_least=True)


def _object(tree: object) -> dict[str, object]:
    return cast("dict[str, object]", tree) if isinstance(tree, dict) else {"value": tree}


def merge(fields: dict[str, object], data: object) -> None:
    """Put what :func:`fields_of` finds in ``data`` into ``fields``; later keys win."""
    try:
        if type(data) is dict:
            fields.update(data)  # pyright: ignore[reportUnknownArgumentType]
        else:
            fields.update(fields_of(data))
    except Exception:  # keys that raise when they are compared
        fields["value"] = describe(data, Timebox())  # pyright: ignore[reportUnknownArgumentType]


def fields_of(data: object, name: str = "value") -> dict[str, object]:
    """``data`` as the fields of an object: its own, if it has any, else one called ``name``.

    Fields have mappings, structs, dataclasses and models of pydantic.
    """
    if type(data) is dict:
        return data.copy()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if issubclass(type(data), msgspec.Struct):
        # Most of what comes here: none of the questions below has to be asked.
        with suppress(Exception):
            if isinstance(fields := _copied(data), dict):
                return cast("dict[str, object]", fields)
    timebox = Timebox()
    try:
        if issubclass(type(data), Mapping):
            found = items_of(cast("Mapping[object, object]", data), timebox, _MAX_FIELDS)
            return cast("dict[str, object]", found)
        if (fields := named_fields(data, timebox, _copied)) is not None:
            return fields
    except Exception:
        return {name: describe(data, timebox)}
    return {name: data}


def _copied(value: object) -> object:
    # By way of JSON, which ends where it gets too large: values that share parts can be small
    # in memory and endless as a tree.
    return msgspec.json.decode(encode_within(value, _MAX_COPIED))


capture = Capture()
