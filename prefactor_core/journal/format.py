"""The format of a journal's files: records to bytes, and back. Pure.

A file is a sequence of records, each with a head of 17 bytes (little endian) and a body of JSON:

====== ====== ===================================================================
bytes  type   meaning
====== ====== ===================================================================
4      u32    the length of the body
4      u32    CRC-32 of the body, which begins with the sequence number and kind
8      u64    the sequence number: one more for each record, over all files
1      u8     the :class:`Kind`
====== ====== ===================================================================

A head has bytes of zero, which JSON never has. So a damaged record hides none of those after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct as Layout
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

import msgspec
from msgspec import Raw, Struct

from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import Operation

VERSION: Final = 1
"""The version of the format. A file of a later one is not read, and not changed."""

HEAD: Final = Layout("<IIQB")
PRIME: Final = 4_294_967_291
"""The largest one below 2**32, for the seeds of the CRCs."""

NONE: Final = Raw(b"null")
"""In place of a result, or of an operation, that is not there."""


class Kind(IntEnum):
    """The kinds of record; their bodies are the classes below, :class:`Operation` for the first.

    At most 15: the seed of a CRC has four bits for them.
    """

    HEADER = 1
    OPERATION = 2
    OPENED = 3
    CREATED = 4
    DISCARDED = 5
    SENDING = 6
    SETTLED = 7
    REFUSED = 8
    IDENTIFIED = 9
    OPEN_RUN = 10
    OPEN_SPAN = 11
    BEAT = 12
    CLOSED = 13


class Header(Struct, frozen=True, kw_only=True):
    """The first record of each file.

    ``api_url``: the API that the operations are for, without a user's name or password.
    ``host``, ``process``: where it was written, for people.
    """

    version: int
    api_url: str
    host: str
    process: int
    sdk: str


class Opened(Struct, frozen=True, array_like=True, gc=False):
    """A span was opened; no operation of it is recorded so far."""

    span_id: str
    instance_id: str
    schema_name: str
    parent_span_id: str | None
    created_at: int
    payload: Raw


class Created(Struct, frozen=True, array_like=True, gc=False):
    """The create of a span is recorded: with the fields of its :class:`Opened`, in the same file,
    and these. ``result_payload``: :data:`NONE` without one."""

    span_id: str
    parent_span_id: str | None
    timestamp: int
    status: SpanStatus
    finished_at: int | None
    result_payload: Raw


class Discarded(Struct, frozen=True, array_like=True, gc=False):
    """An opened span is not recorded. Its children hang on ``parent_span_id``."""

    span_id: str
    parent_span_id: str | None


class Form(Struct, frozen=True, array_like=True, gc=False):
    """How operations stand in a request.

    ``sequences``: those of the operations that are one item, oldest first. ``given_id``: whether
    the item asks for the span's id. ``operation``: the item, if it is not what the operations say,
    else :data:`NONE`.
    """

    sequences: tuple[int, ...]
    given_id: bool
    operation: Raw


class Refused(Struct, frozen=True, array_like=True, gc=False):
    """An operation is never delivered, and settled by that. The file of refused operations has it,
    as an :class:`Aside`, unless its caller knows of it.

    ``sequence``: 0 in the state at the beginning of a file. ``span_id``: the span that is lost with
    its create; its children hang on ``parent_span_id``. Without one and ``loses_run``, the run is
    lost with its registration.
    """

    sequence: int
    reason: str
    instance_id: str
    span_id: str | None
    parent_span_id: str | None
    loses_run: bool


class Identified(Struct, frozen=True, array_like=True, gc=False):
    """The API's id of a run, or of a span of the run, where it differs from the recorded one."""

    instance_id: str
    span_id: str | None
    api_id: str


class OpenRun(Struct, frozen=True, array_like=True, gc=False):
    """A run of this journal that has not ended, in the state at the beginning of a file."""

    instance_id: str
    status: InstanceStatus
    started_at: int | None


class OpenSpan(Struct, frozen=True, array_like=True, gc=False):
    """A span with a recorded create and no end, in the state at the beginning of a file.

    ``started_at``: None if the span was created as one that never started: it can only be
    cancelled.
    """

    span_id: str
    instance_id: str
    started_at: int | None


class Aside(Struct, frozen=True, kw_only=True):
    """An operation that the API refuses, in the file of those.

    ``reason``: as in ``statistics().dropped``. ``error``: the API's answer, if there was one.
    ``at``: when, in nanoseconds since 1970. ``operation``: with the API's ids, if they were known.
    """

    reason: str
    error: str | None
    at: int
    operation: Operation


Record: TypeAlias = tuple[int, int, bytes]
"""The sequence number, the :class:`Kind` as a number, and the body. Not a class: they are many."""


class Damage(NamedTuple):
    """Bytes that are no record. ``is_tail``: nothing follows them: the writer died, or the disk was
    full."""

    start: int
    end: int
    is_tail: bool


class JournalVersionError(PrefactorCoreError):
    """A file was written in a later version of the format. It is left as it is."""


class _Version(Struct):
    version: int


def check_version(header: bytes) -> None:
    """Raise :class:`JournalVersionError` for the body of a header of a later version.

    Later versions keep the head of records, and this field.
    """
    version = _decode_version(header).version
    if version > VERSION:
        raise JournalVersionError(
            f"the journal is of version {version} of the format, and this version of "
            f"prefactor_core reads up to {VERSION}: update prefactor_core"
        )


def seed(sequence: int, kind: int) -> int:
    """The value that the CRC of a record begins with. No two heads that differ in one bit have the
    same one: the modulus is a prime."""
    return (sequence << 4 | kind) % PRIME


def frame(sequence: int, kind: Kind, body: bytes) -> bytes:
    """The bytes of one record."""
    return HEAD.pack(len(body), crc32(body, seed(sequence, kind)), sequence, kind) + body


def records(data: bytes, *, is_checked: bool = False) -> Iterator[Record | Damage]:
    """The records of a file in their order, and the damaged parts between them.

    ``is_checked``: the file was read before and has no damage: its CRCs are not computed again.
    """
    size, head_size, unpack = len(data), HEAD.size, HEAD.unpack_from
    place, last = 0, len(data) - HEAD.size
    damaged_from: int | None = None
    while place <= last:
        length, crc, sequence, kind = unpack(data, place)
        start = place + head_size
        end = start + length
        body = data[start:end]
        # The kind, because zeros are no record, and a larger one would run into the number.
        if is_checked or (
            crc32(body, (sequence << 4 | kind) % PRIME) == crc and 0 < kind < 16 and end <= size
        ):
            if damaged_from is not None:
                yield Damage(damaged_from, place, is_tail=False)
                damaged_from = None
            yield sequence, kind, body
            place = end
        else:
            if damaged_from is None:
                damaged_from = place
            next_kind = _KIND.search(data, start)
            place = size if next_kind is None else next_kind.start() - head_size + 1
    if damaged_from is None and place < size:
        damaged_from = place
    if damaged_from is not None:
        yield Damage(damaged_from, size, is_tail=True)


_KIND: Final = re.compile(rb"[\x01-\x0f](?<=\x00{3}.)[\[{\d]", re.DOTALL)
"""The kind of a record and the first byte of its body. The three bytes before them are zero: no
journal has 2**40 records."""

encode: Final = msgspec.json.Encoder().encode
"""The JSON of a body, or of an operation."""

DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError)
"""The errors of a decoder for a body that is not of its kind."""

decode_operation: Final = msgspec.json.Decoder(Operation).decode
_decode_version: Final = msgspec.json.Decoder(_Version).decode
