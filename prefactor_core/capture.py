"""A payload becomes JSON bytes, once, at the call. Pure; never raises.

Later changes of the caller's objects cannot reach what was captured, and nothing of the
caller's is changed. What JSON cannot hold degrades field by field.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Final, cast

import msgspec
from msgspec import Raw
from msgspec.json import Encoder

EMPTY: Final = Raw(b"{}")

_MAX_DEPTH: Final = 32
_MAX_VALUES: Final = 100_000
_MAX_REPR: Final = 1_000


def capture(payload: object) -> Raw:
    """The JSON of ``payload``, always an object: anything else becomes ``{"value": …}``.

    NaN and infinity become null; what has no JSON form becomes its ``repr``, cut at 1,000
    characters. A payload that cannot be encoded as it is (it is circular, say, or too deep)
    is cut at 32 levels and 100,000 values; what is cut, and what is circular, becomes a marker.
    """
    try:
        captured = _encoder.encode(payload)
    except Exception:
        # Keys that are no text, lone surrogates, cycles, objects that raise when looked at:
        # walk the value and keep all of it that can be kept.
        captured = _encoder.encode(_Walk().plain(payload, ()))
    return Raw(captured if captured.startswith(b"{") else b'{"value":' + captured + b"}")


def merge(fields: dict[str, object], data: object) -> None:
    """Put what :func:`fields_of` finds in ``data`` into ``fields``; later keys win."""
    try:
        fields.update(fields_of(data))
    except Exception:  # keys that raise when they are compared
        fields["value"] = _describe(data)


def fields_of(data: object) -> dict[str, object]:
    """``data`` as the fields of an object: a mapping's own, else one called ``value``."""
    try:
        return dict(cast("Mapping[str, object]", data)) if _is_mapping(data) else {"value": data}
    except Exception:
        return {"value": _describe(data)}


def _is_mapping(data: object) -> bool:
    return isinstance(data, Mapping)


def describe_error(error: BaseException) -> dict[str, object]:
    """What a failed span keeps of an exception: type, message and stacktrace, as text."""
    cls = type(error)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    try:
        message = str(error)
    except Exception:
        message = "<unprintable>"
    try:
        stacktrace = "".join(traceback.format_exception(error))
    except Exception:
        stacktrace = "<unprintable>"
    return {"type": name, "message": message, "stacktrace": stacktrace}


def _describe(value: object) -> str:
    try:
        # A repr may be of a subclass of str, with methods of its own.
        text = str.__str__(repr(value))
        return text if len(text) <= _MAX_REPR else text[:_MAX_REPR] + "… [truncated]"
    except Exception:
        return f"<unprintable {type.__getattribute__(type(value), '__qualname__')}>"


def _degrade(value: object) -> object:
    """What takes the place of a value whose type the encoder does not know."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    return _describe(value)


class _Walk:
    """Makes one payload of what JSON has, as far as that is possible."""

    def __init__(self) -> None:
        # Values that share parts can be small in memory and endless as a tree.
        self._left = _MAX_VALUES

    def plain(self, value: object, around: tuple[object, ...]) -> object:
        """``value``, which is inside of the containers ``around``."""
        self._left -= 1
        if self._left < 0:
            return "<too large>"
        try:
            return self._plain(value, around)
        except Exception:
            return _utf8(_describe(value))

    def _plain(self, value: object, around: tuple[object, ...]) -> object:
        if isinstance(value, str):
            return _utf8(value)
        if not isinstance(value, Mapping | list | tuple | set | frozenset):
            # Encoded once and kept: what can be looked at once may not bear a second look.
            return Raw(_encoder.encode(value))
        if len(around) == _MAX_DEPTH:
            return "<too deep>"
        if any(value is outer for outer in around):
            return "<circular>"
        around = (*around, cast("object", value))
        if isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value).items()
            return {_plain_key(key): self.plain(item, around) for key, item in items}
        return [self.plain(item, around) for item in cast("Iterable[object]", value)]


def _plain_key(key: object) -> str:
    if isinstance(key, str):
        return _utf8(key)
    try:
        (text,) = msgspec.json.decode(_encoder.encode({key: None}), type=dict[str, None])
    except Exception:
        return _utf8(_describe(key))
    return text


def _utf8(text: str) -> str:
    """``text`` with a question mark for every lone surrogate."""
    return text.encode("utf-8", "replace").decode()


_encoder = Encoder(enc_hook=_degrade)
