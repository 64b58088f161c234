"""The long way of a payload: any value as values of JSON, field by field. Pure."""

from __future__ import annotations

from prefactor_core.payloads.kinds import kind_of
from prefactor_core.payloads.payload_walk import Walk
from prefactor_core.payloads.truncation import TooLargeError


def plain(value: object, limit: int, lost: set[str] | None = None) -> object:
    """Return ``value`` as dicts with strings as keys, lists, strings, numbers, booleans and None.

    The outcome shares nothing with ``value`` that can change; two parts of it may be one object.
    Markers replace containers more than 32 levels deep, containers that hold themselves, values
    that cannot be read, and parts that alone exceed ``limit`` bytes of JSON even with all strings
    cut to 64 characters. The reasons for markers are added to ``lost``.

    Raises :class:`TooLargeError` if there would be several times ``limit`` bytes of JSON, or parts
    without number; :class:`RecursionError` if the stack has no room for another call; and no
    other :class:`Exception`.
    """
    found: set[str] = set()
    try:
        tree = Walk(kind_of, limit, found, natively=True).run(value)
    except TooLargeError:
        # Perhaps it fits with cut strings, or without some part.
        found.clear()
        tree = Walk(kind_of, limit, found, natively=False).run(value)
    if lost is not None:
        lost |= found
    return tree
