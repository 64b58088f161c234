"""Runs at which the API fails while it takes others: they hold no other run up."""

from __future__ import annotations

import pytest
from support.harness import Call
from support.redis_server import RedisServerProcess
from support.relay_entries import beginning, runs_of_one_shard, span_of, write
from support.relay_runs import stored
from support.relayed import ServedApi, lag
from support.relays import relaying, until

from prefactor_core.config import QueueConfig
from prefactor_core.operations.identifiers import without_partition
from prefactor_core.relay.keys import SHARDS, Keys

KEYS = Keys("pf")
QUEUE = QueueConfig(retry_delay_base=0.02, max_batch_operations=50)
SMALL_BATCHES = QueueConfig(retry_delay_base=0.02, max_batch_operations=50, max_batch_bytes=10_000)
AHEAD = 4 * QUEUE.max_batch_operations
"""Operations that a relay reads ahead in a shard."""
ENTRY = 20
"""Operations in an entry; four of these are read together."""


def flood(redis: RedisServerProcess, run: str, operations: int, size: int = 0) -> None:
    """Write more operations of a run."""
    for _ in range(operations // ENTRY):
        write(redis, "a", *(span_of(run, size) for _ in range(ENTRY)))


def spans_in(api: ServedApi) -> int:
    return api.faulty.names().count("agent_spans")


@pytest.mark.parametrize(
    ("bad_runs", "size", "queue"),
    [(1, 0, QUEUE), (3, 0, QUEUE), (3, 1_000, SMALL_BATCHES)],
    ids=["one", "three", "three-with-large-entries"],
)
async def test_runs_that_fill_the_shard_and_cannot_be_registered_hold_no_other_run_up(
    redis: RedisServerProcess, api: ServedApi, bad_runs: int, size: int, queue: QueueConfig
) -> None:
    *bad, good = runs_of_one_shard(bad_runs + 1)

    def fails(call: Call) -> int | None:
        id = without_partition(call.body.get("id") or "0" * 32)
        return 500 if id in map(without_partition, bad) else None

    api.faulty.faults = {"register": fails}
    async with relaying(redis.url, api.url, queue_config=queue) as relay:
        await until(lambda: len(relay.statistics().shards) == SHARDS)
        for run in bad:
            # The registrations are in entries with other operations.
            write(redis, "a", *beginning(run), *(span_of(run, size) for _ in range(ENTRY)))
            flood(redis, run, 2 * AHEAD - ENTRY, size)
        # Nothing else is there: it could be an outage, in which nothing is given up.
        await until(lambda: relay.statistics().outage_since is not None)
        calls = len(api.faulty.calls)
        await until(lambda: len(api.faulty.calls) > calls + 10)
        assert relay.statistics().refused == 0
        assert relay.statistics().pending < AHEAD + 4 * ENTRY
        write(redis, "a", *beginning(good), span_of(good))
        await until(lambda: spans_in(api) == 1)
        # Others are accepted again and again meanwhile: the runs are given up.
        spans = 1
        while relay.statistics().refused < bad_runs * (2 + 2 * AHEAD):
            write(redis, "a", span_of(good))
            spans += 1
            await until(lambda: spans_in(api) == spans)  # noqa: B023
        await until(lambda: not lag(redis))
    (run,) = await stored(api)
    assert run.shape == ("active", [("agent:run", "active", [])] * spans)
    assert redis.cli("XLEN", KEYS.refused) == bad_runs * (2 + 2 * AHEAD)
    ((_, first),) = redis.cli("XRANGE", KEYS.refused, "-", "+", "COUNT", 1)
    aside = dict(zip(first[::2], first[1::2], strict=True))
    assert aside["reason"] == "retries_exhausted"
    assert "500" in aside["error"]


async def test_a_run_that_was_passed_over_is_whole_when_the_api_takes_it(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    bad, good = runs_of_one_shard(2)
    gone = without_partition(bad)
    api.faulty.faults = {
        "register": lambda call: 500 if without_partition(call.body["id"]) == gone else None
    }
    async with relaying(redis.url, api.url, queue_config=QUEUE) as relay:
        await until(lambda: len(relay.statistics().shards) == SHARDS)
        write(redis, "a", *beginning(bad))
        # Both runs are in the entries after the first ones.
        flood(redis, bad, AHEAD)
        write(redis, "a", span_of(bad), *beginning(good), span_of(bad), span_of(good))
        await until(lambda: spans_in(api) == 1)
        assert redis.cli("XLEN", KEYS.refused) == 0
        api.faulty.faults = {}
        await until(lambda: not lag(redis))
    shapes = {len(run.roots): run.shape for run in await stored(api)}
    span = "agent:run", "active", []
    assert shapes == {
        1: ("active", [span]),
        AHEAD + 2: ("active", [span] * (AHEAD + 2)),
    }
    assert redis.cli("XLEN", KEYS.refused) == 0


async def test_nothing_of_many_runs_is_given_up_in_an_outage_and_all_arrive_after_it(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    runs = runs_of_one_shard(12)
    api.faulty.faults = {"*": 500, "generate": None}
    async with relaying(redis.url, api.url, queue_config=QUEUE) as relay:
        await until(lambda: len(relay.statistics().shards) == SHARDS)
        for run in runs:
            write(redis, "a", *beginning(run))
            flood(redis, run, 40)
        calls = len(api.faulty.calls)
        await until(lambda: len(api.faulty.calls) > calls + 4 * len(runs))
        assert relay.statistics().pending < AHEAD + 4 * ENTRY
        api.faulty.faults = {}
        await until(lambda: not lag(redis))
        assert relay.statistics().refused == 0
    assert [len(run.roots) for run in await stored(api)] == [40] * len(runs)
