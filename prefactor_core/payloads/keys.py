"""The names that the keys of a mapping get in JSON. Pure."""

# Values of any type come here.
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from base64 import b64encode
from collections import Counter
from numbers import Integral
from typing import Any, Final, TypeAlias, cast

from prefactor_core.payloads.markers import shown, type_name
from prefactor_core.payloads.payload_walk import Around, Later, Walk

Items: TypeAlias = tuple[tuple[Any, Any], ...]
"""Keys and values."""

BYTES: Final = (bytes, bytearray, memoryview)
_LONGEST_NAME: Final = 100
_SEPARATORS: Final = b"-_.: /"


class Keys(Later):
    """The keys of a mapping, some of which have code of their own; ``value``: the items."""

    is_leaf = False
    __slots__ = ("_names",)

    def __init__(self, walk: Walk, value: Items, around: Around, names: list[str | None]) -> None:
        super().__init__(walk, value, around)
        self._names = names

    def ask(self) -> object:
        return [
            _shown_or_error(key) if name is None else name
            for name, (key, _) in zip(self._names, self.value, strict=True)
        ]

    def then(self, given: list[str | Exception]) -> object:
        names = [
            self.walk.failed(type(cast("object", key)), name)
            if isinstance(name, Exception)
            else name
            for name, (key, _) in zip(given, self.value, strict=True)
        ]
        return self.walk.object_of(names, self.value, self.around)

    def otherwise(self, error: Exception) -> object:
        return self.then([error if name is None else name for name in self._names])


def _shown_or_error(key: object) -> str | Exception:
    try:
        # A whole number of another package is one in JSON, too.
        return str(int(cast("Any", key))) if issubclass(type(key), Integral) else shown(key)
    except Exception as error:
        return error


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
