"""Numbers, times, bytes and raw JSON as values of JSON. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from base64 import b64encode
from datetime import datetime, time, timedelta
from typing import Any, Final

import msgspec

from prefactor_core.payloads.markers import type_name
from prefactor_core.payloads.payload_walk import Around, Later, Walk

_MOST_RAW: Final = 4
"""Raw JSON larger than so many payloads is not decoded to be cut."""


def number(number: int) -> int:
    if number.bit_length() > 64:
        int.__repr__(number)  # raises for more digits than Python writes (4,300)
    return number


def binary(walk: Walk, value: Any, around: Around) -> object:
    view = memoryview(value)
    if view.nbytes > walk.limit:
        walk.lose("truncated")
        return f"<{view.nbytes} bytes>"
    return walk.text(b64encode(view.tobytes()).decode())


def duration(walk: Walk, value: timedelta, around: Around) -> object:
    # By timedelta's own attributes: a subclass, as that of pandas, may have others.
    own: Any = timedelta
    parts = (getattr(own, name).__get__(value) for name in ("days", "seconds", "microseconds"))
    return msgspec.to_builtins(timedelta(*parts))


def moment(walk: Walk, value: datetime, around: Around) -> object:
    cls = type(value)
    if cls is datetime:
        return msgspec.to_builtins(value)
    if type_name(cls) == "NaTType":
        return None  # a missing moment of pandas
    return datetime.isoformat(value)


def time_of_day(walk: Walk, value: time, around: Around) -> object:
    return msgspec.to_builtins(value) if type(value) is time else time.isoformat(value)


def null(walk: Walk, value: object, around: Around) -> object:
    return None


def raw_json(walk: Walk, value: msgspec.Raw, around: Around) -> object:
    size = memoryview(value).nbytes
    if size > _MOST_RAW * walk.limit:
        walk.lose("truncated")
        return f"<{size} bytes>"
    return walk.plain(msgspec.json.decode(value), (*around, value))


class AsInteger(Later):
    """A number of another package that is whole."""

    __slots__ = ()

    def ask(self) -> object:
        return int(self.value)

    def then(self, given: int) -> object:
        return number(given)


class AsReal(Later):
    """Any other number of another package."""

    __slots__ = ()

    def ask(self) -> object:
        return float(self.value)

    def then(self, given: float) -> object:
        return given
