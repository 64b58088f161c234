"""Ownership: which relay reads which shard. Pure."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

from prefactor_core.relay.keys import SHARDS


def owner_of(shard: int, relays: Collection[str]) -> str:
    """The relay among ``relays`` that is to read a shard: every relay finds the same one.

    Rendezvous hashing: when a relay comes or goes, only the shards that it gains or loses change
    hands.
    """
    return max(relays, key=lambda relay: (_weight(shard, relay), relay))


def shards_of(relay: str, relays: Collection[str]) -> set[int]:
    """The shards that ``relay`` is to read, one of the live ``relays``."""
    return {shard for shard in range(SHARDS) if owner_of(shard, relays) == relay}


def _weight(shard: int, relay: str) -> bytes:
    return blake2b(f"{shard} {relay}".encode(), digest_size=8).digest()
