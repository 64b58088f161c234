"""Entry: one batch of operations in a stream, and its form there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.operations import Operation

_VERSION: Final = b"1"
_entry_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])
_decoder: Final = msgspec.json.Decoder[Operation](Operation)
_encoder: Final = msgspec.json.Encoder()


class EntryUnreadableError(PrefactorCoreError):
    """An entry of a stream that this version cannot read."""


class Entry(Struct, frozen=True):
    """Operations that one agent wrote together.

    ``id``: the entry's id in its stream. ``agent``: the name under which the agent's heartbeats
    are.
    """

    id: str
    agent: str
    operations: list[Operation]


def encode(agent: str, operations: Sequence[Operation]) -> list[bytes]:
    """The fields of an entry, alternating names and values. ``operations`` are of one shard."""
    return [b"version", _VERSION, b"agent", agent.encode(), b"ops", _encoder.encode(operations)]


def decode(id: str, fields: Mapping[bytes, bytes]) -> Entry:
    """Read an entry. Raises :class:`EntryUnreadableError`, which shows no payload."""
    version = fields.get(b"version", b"")
    if version != _VERSION:
        raise EntryUnreadableError(
            f"entry {id} has the form {version[:20]!r}, and this relay reads {_VERSION!r}: "
            "update the relays before the agents"
        )
    try:
        agent = fields[b"agent"].decode()
        # The payloads of an operation are views of the bytes that it is read from. Each has its own
        # copy, so that an operation that waits does not hold its whole entry in memory.
        raws = _entry_decoder.decode(fields[b"ops"])
        return Entry(id, agent, [_decoder.decode(raw.copy()) for raw in raws])
    except (KeyError, UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise EntryUnreadableError(f"entry {id} cannot be read: {type(error).__name__}") from None


def milliseconds_of_entry(id: str) -> int:
    """The time of an entry by its id, in milliseconds since 1970, by the server's clock."""
    return int(id.partition("-")[0])
