"""The short way of most payloads: plain values go to msgspec as they are. Pure.

Plain are scalars, lists, tuples, sets, msgspec structs, and dicts with texts as keys.
"""

# Values of any type come here, and nothing is known of them.
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
"""No more containers of one payload are looked at."""

_MOST_ITEMS: Final = 100_000
# So many containers may be in a circle before that is looked for.
_FEW: Final = 256

_SCALARS: Final = frozenset(
    {str, int, float, bool, NoneType, datetime, date, time, timedelta, UUID, Decimal}
)
_NAMES: Final = frozenset({str})
_LISTS: Final = frozenset({list, tuple, set, frozenset})
# In a list, bytes may be the name of a pair.
_IN_FIELDS: Final = frozenset({*_SCALARS, bytes, bytearray, UnsetType})

_BUFFER, *_LARGER = BUFFERS
_encode_into = Encoder().encode_into


class PlainEncoder:
    """Encodes what is certain to be plain and to have no name that ``redact_keys`` hides."""

    def __init__(self, redact_keys: KeyRedactor) -> None:
        self._redact_keys = redact_keys
        self._are_shown = redact_keys.shown.issuperset
        self._shown_structs: set[type] = set()

    def encode(self, places: list[Any], limit: int, most: int = MOST_PLACES) -> bytes | None:
        """The JSON of a value, or None if a quick look cannot vouch for the value.

        ``places``: a list of the value alone; the containers inside of it are added, up to
        ``most``. Raises :class:`BufferError` if the JSON has more than ``limit`` bytes, and any
        :class:`Exception` for a value that changes meanwhile, is nested too deep, or has keys with
        code of their own.
        """
        # The hot path of recording: each call in here is made twice for each span (values() too).
        are_shown = self._are_shown
        left = _FEW
        for place in places:  # which grows meanwhile
            cls = type(place)
            if cls is dict:
                # What equals a name that is shown has its text, also of a subclass of str.
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
                # There may be a circle, or no end.
                if left < 0 or len(set(map(id, places))) < len(places):
                    return None
        if limit > _BUFFER:
            # As encode_within() does it, without the call.
            buffer = bytearray(_BUFFER)
            _view = memoryview(buffer)
            try:
                _encode_into(places[0], buffer)
                return bytes(buffer)
            except BufferError:
                pass
        return encode_within(places[0], limit, _LARGER)

    def _shows(self, fields: Mapping[Any, object]) -> bool:
        """Whether all keys are texts that are shown. Many or long ones are not judged here."""
        redact_keys = self._redact_keys
        if not _NAMES.issuperset(map(type, fields)):
            return False
        if not VALUES.isdisjoint(fields) and redact_keys.names_a_secret(fields):
            return False
        if len(fields) > MOST_KEPT or max(map(len, fields)) > LONGEST_KEPT:
            return redact_keys.hides_nothing
        return not any(map(redact_keys.hides, fields))

    def _shows_struct(self, cls: type[Any]) -> bool:
        """Whether a struct of this class has only names that are shown, and no pair among them."""
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
"""Knows of nothing that must be hidden."""
