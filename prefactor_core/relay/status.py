"""The status of all relays of an account: what waits on the Redis server, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from msgspec import Struct

from prefactor_core.relay.entry import milliseconds_of_entry
from prefactor_core.relay.keys import GROUP, SHARDS, Keys
from prefactor_core.relay.server import RedisServer, Script

# One script: a consistent picture, in one round trip, and without the payloads of the first
# entries. A stream that no relay has seen has no group.
_READ_SHARDS: Final = Script("""
local shards = {}
for i = 1, #KEYS, 2 do
    local first = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
    local pending = redis.pcall('XPENDING', KEYS[i], ARGV[1])
    shards[#shards + 1] = {
        redis.call('XLEN', KEYS[i]),
        pending.err and 0 or pending[1],
        first and first[1] or false,
        redis.call('GET', KEYS[i + 1]),
    }
end
return {redis.call('TIME'), shards}
""")


class ShardStatus(Struct, frozen=True, kw_only=True):
    """One shard. ``waiting``: its entries that no relay has read; ``pending``: those that a relay
    has read, and that are not settled. ``owner``: the relay that reads it. ``age``: of its oldest
    entry, in seconds."""

    shard: int
    owner: str | None
    waiting: int
    pending: int
    age: float | None


class RelayPresence(Struct, frozen=True, kw_only=True):
    """A relay. ``name``: with an addition that no other relay of this name has. ``age``: of its
    last announcement, in seconds."""

    name: str
    age: float
    shards: list[int]


class RelaysStatus(Struct, frozen=True, kw_only=True):
    """All shards, relays and agents of one account, at one moment.

    ``api``, ``partition``: of the account, None as long as no relay has found them out.
    ``heartbeat_age``: of the oldest heartbeat of any agent, by the agent's own clock. ``refused``:
    how many operations are kept because the API refused them; ``refused_age``: of the oldest. Ages
    are in seconds, None if there is nothing to have one.
    """

    redis: str
    prefix: str
    api: str | None
    partition: str | None
    shards: list[ShardStatus]
    relays: list[RelayPresence]
    agents: int
    heartbeat_age: float | None
    refused: int
    refused_age: float | None


async def read_shards(server: RedisServer, keys: Keys) -> list[ShardStatus]:
    """Read what waits in each shard."""
    _, shards = await _read_shards(server, keys)
    return shards


async def read_status(server: RedisServer, keys: Keys) -> RelaysStatus:
    """Read the status of an account."""
    now, shards = await _read_shards(server, keys)
    api, partition, relays, heartbeats, refused, oldest_refused = await server.run_all(
        [
            ("HGET", keys.config, "api"),
            ("HGET", keys.config, "partition"),
            ("ZRANGE", keys.relays, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.agents),
            ("XLEN", keys.refused),
            ("XRANGE", keys.refused, "-", "+", "COUNT", 1),
        ]
    )
    beats = list(map(int, cast("Mapping[bytes, bytes]", heartbeats).values()))
    first_refused = [entry[0] for entry in cast("Sequence[Sequence[bytes]]", oldest_refused)]
    return RelaysStatus(
        redis=str(server.address),
        prefix=keys.prefix,
        api=_text_or_none(cast("bytes | None", api)),
        partition=_text_or_none(cast("bytes | None", partition)),
        shards=shards,
        relays=[
            RelayPresence(
                name=(name := member.decode(errors="replace")),
                age=_age(now, score),
                shards=[shard.shard for shard in shards if shard.owner == name],
            )
            for member, score in cast("Sequence[tuple[bytes, float]]", relays)
        ],
        agents=len(beats),
        heartbeat_age=_age(now, min(beats)) if beats else None,
        refused=cast("int", refused),
        refused_age=_age_of(now, first_refused[0]) if first_refused else None,
    )


async def _read_shards(server: RedisServer, keys: Keys) -> tuple[float, list[ShardStatus]]:
    """The time of the server, in milliseconds since 1970, and the shards."""
    names = [name(shard) for shard in range(SHARDS) for name in (keys.operations, keys.lease)]
    answer = await server.call(_READ_SHARDS, names, GROUP)
    (seconds, microseconds), rows = cast(
        "tuple[tuple[bytes, bytes], Sequence[tuple[int, int, bytes | None, bytes | None]]]", answer
    )
    now = int(seconds) * 1000 + int(microseconds) / 1000
    return now, [
        ShardStatus(
            shard=shard,
            owner=_text_or_none(owner),
            waiting=max(length - pending, 0),
            pending=pending,
            age=None if first is None else _age_of(now, first),
        )
        for shard, (length, pending, first, owner) in enumerate(rows)
    ]


def _age_of(now: float, id: bytes) -> float:
    return _age(now, milliseconds_of_entry(id.decode()))


def _age(now: float, time: float) -> float:
    """Seconds since ``time``; the clocks of two machines may differ."""
    return max(now - time, 0.0) / 1000


def _text_or_none(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
