"""JSON of at most so many bytes: the largest strings are cut first, and each says so. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from msgspec import Raw
from msgspec.json import Encoder

from prefactor_core.payloads.markers import utf8

SHORT: Final = 64
"""No string is cut to less than so many bytes."""

# A payload of usual size needs one buffer of the smallest size; larger ones are tried next.
BUFFERS: Final = (2_048, 65_536)
# The encoder takes room for the longest number there is before it writes a short one.
_RESERVE: Final = 64
_CONTAINERS: Final[tuple[type[Any], ...]] = (dict, list)


class TooLargeError(Exception):
    """A value that cannot be made to fit by cutting strings."""


def truncated(raw_size: int, *, at_least: bool = False) -> Raw:
    """What stands for a payload of ``raw_size`` bytes that cutting strings cannot make fit.

    With ``at_least``, ``raw_size`` is where the counting ended.
    """
    return Raw(
        b'{"$truncated":{"%s":%d}}' % (b"more_than_bytes" if at_least else b"bytes", raw_size)
    )


def encode_within(value: object, limit: int, buffers: Sequence[int] = BUFFERS) -> bytes:
    """The JSON of ``value``, if it has at most ``limit`` bytes; a :class:`BufferError` if not.

    Never takes time or memory for more than ``limit`` bytes: values that share parts can be
    small in memory and endless as JSON. Raises what msgspec raises for values it cannot encode;
    a :class:`msgspec.Raw` is written as it is, also if it is no JSON.
    """
    for size in buffers:
        if size >= limit:
            break
        try:
            return _encode_into(value, bytearray(size))
        except BufferError:
            pass
    encoded = _encode_into(value, bytearray(limit + _RESERVE))
    if len(encoded) > limit:
        raise BufferError
    return encoded


def _encode_into(value: object, buffer: bytearray) -> bytes:
    # While a view of it exists a bytearray cannot grow: the encoder stops at its end.
    view = memoryview(buffer)
    _encoder.encode_into(value, buffer)
    del view
    return bytes(buffer)


def fit(tree: dict[str, object], limit: int, lost: set[str] | None = None) -> bytes:
    """The JSON of ``tree``, cut to at most ``limit`` bytes.

    ``tree`` is of nothing but what JSON has, and is not changed. Strings of more than 64
    characters are cut, the largest first and all that are cut to about the same size; each
    ends with the number of characters that are missing. If that is not enough, a marker stands
    for the largest fields. ``truncated`` is added to ``lost`` then. Raises :class:`TooLargeError`
    if there are too many fields.
    """
    try:
        return encode_within(tree, limit)
    except (BufferError, UnicodeError):
        if lost is not None:
            lost.add("truncated")
    own = cast("dict[str, object]", unshared(tree))
    try:
        return _cut(own, limit)
    except TooLargeError:
        own = _without_largest(cast("dict[str, object]", unshared(tree)), limit)
    try:
        return encode_within(own, limit)
    except (BufferError, UnicodeError):
        return _cut(own, limit)


def _without_largest(tree: dict[str, object], limit: int) -> dict[str, object]:
    """Without the fields that are too large for all to fit, whichever comes first."""
    sizes = {name: len(_encoder.encode({name: _least(value)})) for name, value in tree.items()}
    room = limit - sum(sizes.values())
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if room >= 0:
            return tree
        marker = {"$truncated": {"bytes": len(_encoder.encode(tree[name]))}}
        saved = sizes[name] - len(_encoder.encode({name: marker}))
        if saved <= 0:
            break  # those that are left are as small
        tree[name] = marker
        room += saved
    if room < 0:
        raise TooLargeError
    return tree


def _least(tree: object) -> object:
    """``tree`` with all strings as short as they may become."""
    if isinstance(tree, dict):
        fields = cast("dict[str, object]", tree)
        return {key: _least(item) for key, item in fields.items()}
    if isinstance(tree, list):
        return [_least(item) for item in cast("list[object]", tree)]
    return tree[:SHORT] if isinstance(tree, str) else tree


def unshared(tree: object) -> object:
    """A copy of what has nothing but dicts and lists, in which no part is there twice."""
    if isinstance(tree, dict):
        fields = cast("dict[str, object]", tree)
        return {
            key: unshared(cast("object", item)) if isinstance(item, _CONTAINERS) else item
            for key, item in fields.items()
        }
    if isinstance(tree, list):
        items = cast("list[object]", tree)
        return [
            unshared(cast("object", item)) if isinstance(item, _CONTAINERS) else item
            for item in items
        ]
    return tree


def _cut(tree: dict[str, object], limit: int) -> bytes:
    places = _long_texts(tree)
    for place, key, _ in places:
        place[key] = ""
    try:
        room = limit - len(encode_within(tree, limit))
    except BufferError:
        raise TooLargeError from None
    # First by characters, of which none takes less than a byte: what is encoded to be
    # measured is then never much more than what is kept, however large the strings are.
    level = _level([len(text) for *_, text in places], room)
    heads = [utf8(text[:level]) for *_, text in places]
    sizes = [_size(head) for head in heads]
    level = _level(sizes, room)
    if level < SHORT:
        raise TooLargeError
    for (place, key, text), head, size in zip(places, heads, sizes, strict=True):
        whole = len(head) == len(text) and size <= level
        place[key] = head if whole else _shortened(head, len(text), level)
    return encode_within(tree, limit)


def _long_texts(tree: object) -> list[tuple[dict[object, object], object, str]]:
    """Each string that may be cut: the dict or list that holds it, its key there, its text."""
    found: list[tuple[dict[object, object], object, str]] = []
    waiting = [cast("dict[object, object]", tree)]
    while waiting:
        place = waiting.pop()
        items: Iterable[tuple[object, object]]
        items = place.items() if type(place) is dict else enumerate(place)
        for key, item in items:
            if isinstance(item, _CONTAINERS):
                waiting.append(cast("dict[object, object]", item))
            elif isinstance(item, str) and len(item) > SHORT:
                found.append((place, key, item))
    return found


def _level(sizes: list[int], room: int) -> int:
    """The size to which all larger ones must be cut, so that all fit into ``room``."""
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > room:
            return room // left
        room -= size
        left -= 1
    return max(sizes, default=0)


def _shortened(head: str, length: int, room: int) -> str:
    """As much of ``head``, the beginning of ``length`` characters, as fits; and the marker."""
    room -= _size(_marker(length))
    kept = 0
    # By halves: each step is right to the character, also where JSON escapes many, and
    # together they encode about twice what is kept.
    step = 1 << room.bit_length()
    while step:
        size = _size(head[kept : kept + step])
        if size <= room:
            kept = min(kept + step, len(head))
            room -= size
        step >>= 1
    return head[:kept] + _marker(length - kept)


def _marker(missing: int) -> str:
    return f"… [{missing} characters truncated]"


def _size(text: str) -> int:
    """The bytes of ``text`` in JSON, without its quotes."""
    return len(_encoder.encode(text)) - 2


_encoder = Encoder()
