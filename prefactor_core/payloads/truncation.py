"""JSON within a limit of bytes: the largest strings are cut first, then the largest containers
are left out, and all say so. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from msgspec import Raw
from msgspec.json import Encoder

from prefactor_core.payloads.markers import utf8

SHORT: Final = 64
"""Bytes that are kept of a string, at least."""

# The sizes of buffers, tried in this order: most payloads fit into the smallest.
BUFFERS: Final = (2_048, 65_536, 1_000_000, 16_000_000)
# The encoder reserves room for the longest number before it writes a short one.
_RESERVE: Final = 64
_MARKER: Final = len('{"$truncated":{"more_than_bytes":16000000}}')
_CONTAINERS: Final[tuple[type[Any], ...]] = (dict, list)


class TooLargeError(Exception):
    """A value that cannot be made to fit by cutting strings."""


def truncated(raw_size: int, *, at_least: bool = False) -> Raw:
    """Return the marker for a payload of ``raw_size`` bytes that does not fit with cut strings.

    ``at_least``: the size was counted no further than ``raw_size``.
    """
    return Raw(
        b'{"$truncated":{"%s":%d}}' % (b"more_than_bytes" if at_least else b"bytes", raw_size)
    )


def encode_within(value: object, limit: int, buffers: Sequence[int] = BUFFERS) -> bytes:
    """Return the JSON of ``value``; raise :class:`BufferError` if it exceeds ``limit`` bytes.

    It takes no time or memory for more than ``limit`` bytes: values that share parts can be small
    in memory and endless as JSON. Errors of msgspec are raised on; a :class:`msgspec.Raw` is
    written as it is, also if it is no JSON.
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
    # A bytearray cannot grow while a view of it exists: the encoder stops at its end.
    view = memoryview(buffer)
    _encoder.encode_into(value, buffer)
    del view
    return bytes(buffer)


def fit(tree: dict[str, object], limit: int, lost: set[str] | None = None) -> bytes:
    """Return the JSON of ``tree``, cut to at most ``limit`` bytes.

    ``tree`` has only values of JSON, and is not changed. Strings of more than 64 characters are
    cut, the largest first and all to about the same size; each ends with the number of missing
    characters. If that is not enough, markers replace the largest containers, at any depth.
    ``truncated`` is added to ``lost`` then. Raises :class:`TooLargeError` if there are too many
    fields.
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
        own = cast("dict[str, object]", unshared(tree))
        _without_largest(own, _least(own), limit)
    try:
        return encode_within(own, limit)
    except (BufferError, UnicodeError):
        return _cut(own, limit)


def _without_largest(tree: Any, least: Any, limit: int) -> None:
    """Replace the largest parts of a container, in the order of size, until the rest fits.

    ``least``: the same tree with all strings as short as they may become. A part is a container
    whose own largest parts go first; if it cannot be made small enough, a marker replaces it.
    """
    keys: Iterable[Any] = cast("Any", tree) if isinstance(tree, dict) else range(len(tree))
    sizes = {key: len(_encoder.encode({str(key): least[key]})) for key in keys}
    room = limit - sum(sizes.values())
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        if room >= 0:
            return
        part = cast("object", tree[key])
        size = len(_encoder.encode(least[key]))
        if size <= _MARKER:
            continue
        marker = _marker_for(part, size)  # as it is now, with all its parts
        if size + room >= _MARKER and isinstance(part, _CONTAINERS):
            try:
                _without_largest(part, least[key], size + room - len("{}"))
            except TooLargeError:
                pass
            else:
                return
        tree[key] = marker
        room += size - len(_encoder.encode(marker))
    if room < 0:
        raise TooLargeError


def _marker_for(part: object, least: int) -> object:
    """Return the marker for a part of at least ``least`` bytes, with its size if that is found."""
    try:
        return {"$truncated": {"bytes": len(encode_within(part, BUFFERS[-1]))}}
    except BufferError:
        return {"$truncated": {"more_than_bytes": BUFFERS[-1]}}
    except UnicodeError:  # large strings still have their lone surrogates
        return {"$truncated": {"more_than_bytes": least}}


def _least(tree: object) -> object:
    """Return ``tree`` with all strings as short as they may become."""
    if isinstance(tree, dict):
        fields = cast("dict[str, object]", tree)
        return {key: _least(item) for key, item in fields.items()}
    if isinstance(tree, list):
        return [_least(item) for item in cast("list[object]", tree)]
    return utf8(tree[:SHORT]) if isinstance(tree, str) else tree


def unshared(tree: object) -> object:
    """Copy a tree of dicts and lists, so that no container is in it twice."""
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
    # First by characters, each of which takes at least a byte: then little more is encoded for
    # measuring than is kept, however large the strings are.
    level = _level([len(text) for *_, text in places], room)
    heads = [utf8(text[:level]) for *_, text in places]
    sizes = [_size(head) for head in heads]
    level = _level(sizes, room)
    if level < SHORT:
        raise TooLargeError
    for (place, key, text), head, size in zip(places, heads, sizes, strict=True):
        whole = len(head) == len(text) and size <= level
        # Not more than was counted: where all heads fit, the level is the size of the largest.
        place[key] = head if whole else _shortened(head, len(text), min(level, size))
    return encode_within(tree, limit)


def _long_texts(tree: object) -> list[tuple[dict[object, object], object, str]]:
    """Return each string that may be cut: its dict or list, its key in there, its text."""
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
    """Return the size to which all larger strings must be cut, so that all fit into ``room``."""
    left = len(sizes)
    for size in sorted(sizes):
        if size * left > room:
            return room // left
        room -= size
        left -= 1
    return max(sizes, default=0)


def _shortened(head: str, length: int, room: int) -> str:
    """Return as much of ``head``, the beginning of ``length`` characters, as fits, and a marker."""
    room -= _size(_marker(length))
    kept = 0
    # By halves: that is exact to the character, also where JSON escapes many, and encodes about
    # twice as much as is kept.
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
    """Return the bytes of ``text`` in JSON, without its quotes."""
    return len(_encoder.encode(text)) - 2


_encoder = Encoder()
