"""Ownership: which relay reads which shard. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from hashlib import blake2b

from prefactor_core.relay.keys import SHARDS


def owners(relays: Collection[str]) -> list[str]:
    """The relay among ``relays`` that is to read each shard: every relay finds the same one.

    Rendezvous hashing: when a relay comes or goes, few shards change hands between the others. But
    none gets more than its equal share, rounded up.
    """
    share = -(-SHARDS // len(relays))
    counts: Counter[str] = Counter()
    found: list[str] = []
    for shard in range(SHARDS):
        free = [relay for relay in relays if counts[relay] < share]
        owner = max(free, key=lambda relay: (_weight(shard, relay), relay))
        counts[owner] += 1
        found.append(owner)
    return found


def shards_of(relay: str, relays: Collection[str]) -> set[int]:
    """The shards that ``relay`` is to read, one of the live ``relays``."""
    return {shard for shard, owner in enumerate(owners(relays)) if owner == relay}


def _weight(shard: int, relay: str) -> bytes:
    return blake2b(f"{shard} {relay}".encode(), digest_size=8).digest()
