"""The names that the keys of a mapping get in JSON. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from base64 import b64encode
from collections import Counter
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

from prefactor_core.payloads.markers import type_name

Items: TypeAlias = tuple[tuple[Any, Any], ...]
"""Keys and values."""

BYTES: Final = (bytes, bytearray, memoryview)
_LONGEST_NAME: Final = 100
_SEPARATORS: Final = b"-_.: /"


@cache
def str_types() -> tuple[type, ...]:
    """Return the types that become strings in JSON, and so can be names."""
    from pathlib import PurePath  # here: it takes milliseconds to import

    return (date, time, timedelta, UUID, Decimal, PurePath)


def distinct(names: list[str], items: Items) -> list[str]:
    """Return distinct names: a key that is a string keeps its name, equal names of other keys get
    the types of the keys."""
    times = Counter(names)
    numbers: Counter[str] = Counter()
    texts = [type(key) is str and key == name for name, (key, _) in zip(names, items, strict=True)]
    taken = {name for name, is_text in zip(names, texts, strict=True) if is_text}
    taken |= {name for name in names if times[name] == 1}
    distinct: list[str] = []
    for name, is_text, (key, _) in zip(names, texts, items, strict=True):
        found = name
        if times[name] > 1 and not is_text:
            typed = found = f"{name} ({type_name(type(cast('object', key)))})"
            while found in taken:
                numbers[typed] += 1
                found = f"{typed} {numbers[typed] + 1}"
            taken.add(found)
        distinct.append(found)
    return distinct


def name_of_bytes(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return b64encode(key).decode()


def as_a_name(part: object) -> object:
    """Return bytes that look like a name, as of a header in ASGI, as a string."""
    if not issubclass(type(part), BYTES):
        return part
    view = memoryview(cast("bytes", part))
    if view.nbytes > _LONGEST_NAME:
        return part
    name = view.tobytes()
    is_name = name.isascii() and name.translate(None, _SEPARATORS).isalnum()
    return name.decode() if is_name else part
