"""A payload becomes JSON bytes, once, at the call. Pure; never raises.

Later changes of the caller's objects cannot reach what was captured, and nothing of the
caller's is changed. What JSON cannot hold degrades field by field.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from typing import Final, cast

from msgspec import Raw
from msgspec.json import Encoder

EMPTY: Final = Raw(b"{}")

_MAX_DEPTH: Final = 32
_MAX_REPR: Final = 1_000


def capture(payload: object) -> Raw:
    """The JSON of ``payload``, always an object: anything else becomes ``{"value": …}``.

    NaN and infinity become null; what has no JSON form becomes its ``repr``, cut at 1,000
    characters; a circular or too deep value (more than 32 levels) becomes a marker.
    """
    try:
        captured = _encoder.encode(payload)
    except Exception:
        # Keys that are no text, lone surrogates, cycles, objects that raise when looked at:
        # walk the value and keep all of it that can be kept.
        captured = _encoder.encode(_plain(payload, ()))
    return Raw(captured if captured.startswith(b"{") else b'{"value":' + captured + b"}")


def fields_of(data: object) -> dict[str, object]:
    """``data`` as the fields of an object: a mapping's own, else one called ``value``."""
    if not isinstance(data, Mapping):
        return {"value": data}
    try:
        return dict(cast("Mapping[str, object]", data))
    except Exception:
        return {"value": _describe(cast("object", data))}


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
        text = repr(value)
    except Exception:
        return f"<unprintable {type(value).__qualname__}>"
    return text if len(text) <= _MAX_REPR else text[:_MAX_REPR] + "… [truncated]"


def _plain(value: object, around: tuple[object, ...]) -> object:
    """``value`` made of what JSON has, as far as that is possible."""
    try:
        return _plainer(value, around)
    except Exception:
        return _utf8(_describe(value))


def _plainer(value: object, around: tuple[object, ...]) -> object:
    if isinstance(value, str):
        return _utf8(value)
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        _encoder.encode(value)  # raises if JSON cannot hold it
        return value
    if len(around) == _MAX_DEPTH:
        return "<too deep>"
    if any(value is outer for outer in around):
        return "<circular>"
    around = (*around, cast("object", value))
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {_plain_key(key): _plain(item, around) for key, item in items}
    return [_plain(item, around) for item in cast("Iterable[object]", value)]


def _plain_key(key: object) -> str:
    return _utf8(key if isinstance(key, str) else _describe(key))


def _utf8(text: str) -> str:
    """``text`` with a question mark for every lone surrogate."""
    return text.encode("utf-8", "replace").decode()


_encoder = Encoder(enc_hook=_describe)
