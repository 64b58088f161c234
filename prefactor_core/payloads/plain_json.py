"""The short way of most payloads: msgspec encodes plain values as they are. Pure.

Plain are scalars, lists, tuples, sets, msgspec structs, and dicts with strings as keys.
"""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

from msgspec import Struct, UnsetType
from msgspec.json import Encoder
from msgspec.structs import astuple

from prefactor_core.payloads.redaction import LONGEST_KEPT, MOST_KEPT, NAMING, VALUES, KeyRedactor
from prefactor_core.payloads.truncation import BUFFERS, encode_within

MOST_PLACES: Final = 30_000
"""The most containers of one payload that are looked at."""

_MOST_ITEMS: Final = 100_000
# The number of containers after which circles are looked for.
_FEW: Final = 256

_SCALARS: Final = frozenset(
    {str, int, float, bool, NoneType, datetime, date, time, timedelta, UUID, Decimal}
)
_NAMES: Final = frozenset({str})
_LISTS: Final = frozenset({list, tuple, set, frozenset})
# Only in fields: in a list, bytes may be the name of a name and value pair.
_IN_FIELDS: Final = frozenset({*_SCALARS, bytes, bytearray, UnsetType})

_BUFFER, *_LARGER = BUFFERS
_encode_into = Encoder().encode_into


class PlainEncoder:
    """Encodes a value that is certainly plain and has no name that ``redact_keys`` hides."""

    def __init__(self, redact_keys: KeyRedactor) -> None:
        self._redact_keys = redact_keys
        self._are_shown = redact_keys.shown.issuperset
        self._shown_structs: set[type] = set()

    def encode(self, places: list[Any], limit: int, most: int = MOST_PLACES) -> bytes | None:
        """Return the JSON of a value, or None if a quick look cannot vouch for it.

        ``places``: a list of the value alone; its containers are added to the list, up to
        ``most``. Raises :class:`BufferError` if the JSON has more than ``limit`` bytes, and any
        :class:`Exception` for a value that changes meanwhile, is nested too deep, or has keys with
        code of their own.
        """
        # The hot path of recording: each call in here is made twice for each span (values() too).
        are_shown = self._are_shown
        left = _FEW
        for place in places:  # the list grows meanwhile
            cls = type(place)
            if cls is dict:
                # Also a key of a subclass of str has the text of the name that it equals.
                if not are_shown(place) and not self._shows(place):
                    return None
                for name in place:
                    if type(place[name]) not in _IN_FIELDS:
                        places += (place[name],)
                        left -= 1
            elif cls in _LISTS:
                size = len(place)
                if size > _MOST_ITEMS:
                    return None
                if size == 2 and self._redact_keys.may_be_a_secret_name(next(iter(place))):
                    return None
                if not _SCALARS.issuperset(map(type, place)):
                    places += [part for part in place if type(part) not in _SCALARS]
                    left -= size
            elif cls in self._shown_structs or self._shows_struct(cls):
                for part in astuple(place):
                    if type(part) not in _IN_FIELDS:
                        places += (part,)
                        left -= 1
            elif issubclass(cls, Enum):
                places += (place._value_,)
                left -= 1
            elif cls not in _IN_FIELDS:
                return None
            if left < 0:
                left = most - len(places)
                # There may be a circle.
                if left < 0 or len(set(map(id, places))) < len(places):
                    return None
        if limit > _BUFFER:
            # The first step of encode_within(), without the call.
            buffer = bytearray(_BUFFER)
            _view = memoryview(buffer)
            try:
                _encode_into(places[0], buffer)
                return bytes(buffer)
            except BufferError:
                pass
        return encode_within(places[0], limit, _LARGER)

    def _shows(self, fields: Mapping[Any, object]) -> bool:
        """Whether all keys are strings that may be shown. Many or long keys are not judged."""
        redact_keys = self._redact_keys
        if not _NAMES.issuperset(map(type, fields)):
            return False
        if not VALUES.isdisjoint(fields) and redact_keys.names_a_secret(fields):
            return False
        if len(fields) > MOST_KEPT or max(map(len, fields)) > LONGEST_KEPT:
            return redact_keys.hides_nothing
        return not any(map(redact_keys.hides, fields))

    def _shows_struct(self, cls: type[Any]) -> bool:
        """Whether all names of this struct may be shown, and none names another's value."""
        if not issubclass(cls, Struct) or cls.__struct_config__.array_like:
            return False
        names = {*cls.__struct_encode_fields__, cls.__struct_config__.tag_field or ""}
        if any(map(self._redact_keys.hides, names)) or not (
            names.isdisjoint(VALUES) or names.isdisjoint(NAMING)
        ):
            return False
        if len(self._shown_structs) >= MOST_KEPT:
            self._shown_structs.clear()
        self._shown_structs.add(cls)
        return True


plain_encoder: Final = PlainEncoder(KeyRedactor((), ""))
"""Hides no name."""
