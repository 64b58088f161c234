"""PFIDs and idempotency keys.

A PFID, the id of everything in the API, is 160 bits as 32 characters of Crockford's base32 in
lower case: 48 bits of milliseconds since 1970 in 10 characters, 30 bits of the account's partition
in 6, and 80 random bits in 16. The order of the text is the order of time.
"""

from __future__ import annotations

import os
import re
from time import time_ns as _time_ns
from typing import Final, TypeGuard

from prefactor_core.exceptions import PrefactorValueError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PFID = re.compile(r"[0-7][0-9abcdefghjkmnpqrstvwxyz]{31}")
_BEGINNING = re.compile(r"[0-7][0-9abcdefghjkmnpqrstvwxyz]{3,31}")
_PARTITION = slice(10, 16)
_NO_PARTITION = "000000"
_MAX_KEY_LENGTH = 64

PARTITION_BITS = 30
MAX_PARTITION = (1 << PARTITION_BITS) - 1


# The last 16 characters, which are random, of the next ids. One call pops each, so that no two
# threads get the same; 257 are drawn at a time, because a call of the system costs much.
_randoms: list[str] = []
_SIXTEEN: Final = re.compile(".{16}")
# A random byte becomes a random character: 256 is a multiple of 32.
_TO_CHARACTERS: Final = bytes(ord(_ALPHABET[byte % 32]) for byte in range(256))


def _draw_randoms() -> str:
    """Draw random texts, and return one: other threads may take all others at once."""
    characters = os.urandom(257 * 16).translate(_TO_CHARACTERS).decode()
    drawn: list[str] = _SIXTEEN.findall(characters)
    own = drawn.pop()
    _randoms.extend(drawn)
    return own


# A forked child must not repeat the ids of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_randoms.clear)


# The time of the last id, as text: in one millisecond there is time for many spans.
_last_time = 0, "0" * 10


def _text(number: int, characters: int) -> str:
    return "".join([_ALPHABET[number >> 5 * place & 31] for place in reversed(range(characters))])


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
    return generate_related("0" * _PARTITION.start + _text(partition, 6), milliseconds)


def generate_related(pfid: str, milliseconds: int | None = None) -> str:
    """Return a new PFID of the partition of ``pfid``, which must be a PFID (:func:`is_pfid`).

    ``milliseconds`` since 1970 defaults to now.
    """
    global _last_time
    ms = _time_ns() // 1_000_000 if milliseconds is None else milliseconds
    last, text = _last_time
    if ms != last:
        text = _text(ms, _PARTITION.start)
        _last_time = ms, text
    try:
        random = _randoms.pop()
    except IndexError:
        random = _draw_randoms()
    return f"{text}{pfid[_PARTITION]}{random}"


def with_partition_of(pfid: str, other: str) -> str:
    """Return ``other`` with the partition of ``pfid``; both are PFIDs."""
    return other[: _PARTITION.start] + pfid[_PARTITION] + other[_PARTITION.stop :]


def without_partition(pfid: str) -> str:
    """Return the part of a PFID that is the same in any partition."""
    return pfid[: _PARTITION.start] + pfid[_PARTITION.stop :]


def is_pfid(text: object) -> TypeGuard[str]:
    """Whether ``text`` has the form of a PFID."""
    return isinstance(text, str) and _PFID.fullmatch(text) is not None


def is_beginning(text: str) -> bool:
    """Whether a PFID can begin with ``text``, which has 4 characters at least."""
    return _BEGINNING.fullmatch(text) is not None


def is_provisional(pfid: str) -> bool:
    """Whether a PFID was made without knowing the account's partition: its own is 0."""
    return pfid[_PARTITION] == _NO_PARTITION


def partition_of(pfid: str) -> int:
    """Return the partition of a PFID."""
    return _number(pfid[_PARTITION])


def milliseconds_of(pfid: str) -> int:
    """Return the time of a PFID, in milliseconds since 1970."""
    return _number(pfid[: _PARTITION.start])


def _number(text: str) -> int:
    number = 0
    for character in text:
        number = number << 5 | _ALPHABET.index(character)
    return number


def idempotency_key(pfid: str, step: str) -> str:
    """Return the key of a step (``create``, ``start``, ``finish``) in the life of ``pfid``.

    It is made of both, so that every attempt sends the same key, also from another process. The
    API accepts keys of 8 to 64 characters.
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
