"""Who reads a shard: keys, owners."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from prefactor_core.operations import identifiers
from prefactor_core.relay.keys import SHARDS, Keys, shard_of
from prefactor_core.relay.ownership import owners, shards_of

names = st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8)


@given(names)
def test_every_shard_has_one_owner_on_which_all_relays_agree(relays: set[str]) -> None:
    owned = [shard for relay in relays for shard in shards_of(relay, relays)]
    assert sorted(owned) == list(range(SHARDS))


@given(names)
def test_no_relay_has_more_than_its_share(relays: set[str]) -> None:
    share = -(-SHARDS // len(relays))
    assert max(len(shards_of(relay, relays)) for relay in relays) == share


def test_few_shards_change_hands_between_the_relays_that_stay() -> None:
    moved = 0
    for number in range(100):
        relays = [f"host-{number}-{relay}" for relay in "abcd"]
        before, after = owners(relays[:3]), owners(relays)
        moved += sum(a not in (b, relays[3]) for a, b in zip(after, before, strict=True))
    assert moved / 100 < 3  # of 16; a plain modulo moves 8


@given(st.integers(0, identifiers.MAX_PARTITION), st.integers(0, (1 << 48) - 1))
def test_a_run_keeps_its_shard_when_its_id_becomes_final(partition: int, time: int) -> None:
    provisional = identifiers.generate(0, time)
    final = identifiers.with_partition_of(identifiers.generate(partition), provisional)
    assert shard_of(provisional) == shard_of(final) in range(SHARDS)
    keys = Keys("pf")
    assert keys.run(provisional) == keys.run(final)
    assert keys.stop(provisional) == keys.stop(final)


def test_runs_are_spread_over_all_shards() -> None:
    counts = Counter(shard_of(identifiers.generate(7)) for _ in range(3200))
    assert set(counts) == set(range(SHARDS))
    assert max(counts.values()) < 300


def test_accounts_share_no_key() -> None:
    run = identifiers.generate(1)

    def all_keys(prefix: str) -> set[str]:
        keys = Keys(prefix)
        shards = range(SHARDS)
        return {
            *(keys.agents, keys.relays, keys.config, keys.refused, keys.run(run), keys.stop(run)),
            *(key(shard) for shard in shards for key in (keys.operations, keys.lease, keys.runs)),
        }

    assert len(all_keys("pf")) == 6 + 3 * SHARDS
    assert not all_keys("pf") & all_keys("pf2")
