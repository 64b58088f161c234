"""PFIDs and idempotency keys. Pure.

A PFID, the id of everything in the API, is 160 bits as 32 characters of Crockford's base32 in
lower case: 48 bits of milliseconds since 1970 in 10 characters, 30 bits of the account's partition
in 6, and 80 random bits in 16. The order of the text is the order of time.
"""

from __future__ import annotations

import os
import re
import struct
from operator import itemgetter
from time import time_ns as _time_ns
from typing import Final, TypeGuard

from prefactor_core.exceptions import PrefactorValueError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two characters, which are ten bits, at a time.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_PFID = re.compile(r"[0-7][0-9abcdefghjkmnpqrstvwxyz]{31}")
_PARTITION = slice(10, 16)
_MAX_KEY_LENGTH = 64

PARTITION_BITS = 30
MAX_PARTITION = (1 << PARTITION_BITS) - 1


# Random numbers of 80 bits for the next ids. Each is taken by one call, so that no two threads get
# the same; 257 are drawn at a time, because a call of the system costs as much as the rest.
_numbers: list[int] = []
_EIGHTY_BITS: Final = struct.Struct("10s")


def _draw_numbers() -> int:
    """One for the caller, since other threads may take all others at once."""
    drawn = _EIGHTY_BITS.iter_unpack(os.urandom(257 * _EIGHTY_BITS.size))
    numbers = map(int.from_bytes, map(itemgetter(0), drawn))
    mine = next(numbers)
    _numbers.extend(numbers)
    return mine


# A forked child must not repeat the ids of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_numbers.clear)


# The time of the last id, as text: in one millisecond there is time for many spans.
_last_time = 0, "0" * 10


def _time_text(ms: int) -> str:
    pairs = _PAIRS
    return (
        f"{pairs[ms >> 40]}{pairs[ms >> 30 & 1023]}{pairs[ms >> 20 & 1023]}"
        f"{pairs[ms >> 10 & 1023]}{pairs[ms & 1023]}"
    )


def generate(partition: int, milliseconds: int | None = None) -> str:
    """Return a new PFID of the given partition (0 to 2**30 - 1).

    ``milliseconds`` since 1970 defaults to now.
    """
    if not 0 <= partition <= MAX_PARTITION:
        raise PrefactorValueError(
            f"partition must be between 0 and {MAX_PARTITION}, got {partition}"
        )
    if milliseconds is not None and not 0 <= milliseconds < 1 << 48:
        raise PrefactorValueError(
            f"milliseconds must be between 0 and 2**48 - 1, got {milliseconds}"
        )
    pairs = [_PAIRS[partition >> shift & 1023] for shift in (20, 10, 0)]
    return generate_related(f"{'0' * _PARTITION.start}{''.join(pairs)}", milliseconds)


def generate_related(pfid: str, milliseconds: int | None = None) -> str:
    """Return a new PFID of the partition of ``pfid``, which must be a PFID (:func:`is_pfid`).

    ``milliseconds`` since 1970 defaults to now.
    """
    global _last_time
    ms = _time_ns() // 1_000_000 if milliseconds is None else milliseconds
    last, text = _last_time
    if ms != last:
        text = _time_text(ms)
        _last_time = ms, text
    try:
        random = _numbers.pop()
    except IndexError:
        random = _draw_numbers()
    # Written out: this is done for every span.
    pairs = _PAIRS
    return (
        f"{text}{pfid[_PARTITION]}"
        f"{pairs[random >> 70]}{pairs[random >> 60 & 1023]}"
        f"{pairs[random >> 50 & 1023]}{pairs[random >> 40 & 1023]}"
        f"{pairs[random >> 30 & 1023]}{pairs[random >> 20 & 1023]}"
        f"{pairs[random >> 10 & 1023]}{pairs[random & 1023]}"
    )


def with_partition_of(pfid: str, other: str) -> str:
    """Return ``other`` with the partition of ``pfid``; both are PFIDs."""
    return other[: _PARTITION.start] + pfid[_PARTITION] + other[_PARTITION.stop :]


def without_partition(pfid: str) -> str:
    """Return the part of a PFID that is the same in any partition."""
    return pfid[: _PARTITION.start] + pfid[_PARTITION.stop :]


def is_pfid(text: object) -> TypeGuard[str]:
    """Whether ``text`` has the form of a PFID."""
    return isinstance(text, str) and _PFID.fullmatch(text) is not None


def partition_of(pfid: str) -> int:
    """Return the partition of a PFID."""
    number = 0
    for character in pfid[_PARTITION]:
        number = number << 5 | _ALPHABET.index(character)
    return number


def idempotency_key(pfid: str, step: str) -> str:
    """Return the key of a step (``create``, ``start``, ``finish``) in the life of ``pfid``.

    It is made of both, so that every attempt sends the same key, also from another process. The
    API takes keys of 8 to 64 characters.
    """
    return f"{pfid}-{step}"


def generate_idempotency_key() -> str:
    """Return a new idempotency key for a call of your own: the text of a random UUID."""
    import uuid  # here: it takes milliseconds to import, and nothing else here needs it

    return str(uuid.uuid4())


def validate_idempotency_key(key: str) -> str:
    """Return ``key`` if it is a valid idempotency key, of 1 to 64 characters.

    Raises :class:`~prefactor_core.PrefactorValueError` otherwise.
    """
    if not isinstance(key, str):
        raise PrefactorValueError(f"Idempotency key must be a string, got {type(key).__qualname__}")
    if not key:
        raise PrefactorValueError("Idempotency key must not be empty")
    if len(key) > _MAX_KEY_LENGTH:
        raise PrefactorValueError(
            f"Idempotency key must be at most {_MAX_KEY_LENGTH} characters, got {len(key)}"
        )
    return key
