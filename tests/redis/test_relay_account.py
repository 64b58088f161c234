"""The partition of the account: found out at the start, later, or by another relay."""

from __future__ import annotations

import logging

import pytest
from support.redis_server import RedisServerProcess
from support.relay_entries import beginning, span_of, write
from support.relay_runs import RUNS, WHOLE, record, recording, stored
from support.relayed import ServedApi, lag, leftovers
from support.relays import relaying, until

from prefactor_core.operations import identifiers
from prefactor_core.operations.identifiers import partition_of
from prefactor_core.relay.keys import SHARDS, Keys, shard_of

KEYS = Keys("pf")


async def test_a_partition_that_the_api_did_not_tell_is_found_out_later_and_agents_get_it(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    api.faulty.faults = {"generate": 404}
    async with relaying(redis.url, api.url), relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            (before, *_) = await record(client)
            assert partition_of(before) == 0
            await until(lambda: not lag(redis))
            assert redis.cli("HGET", KEYS.config, "partition") is None
            api.faulty.faults = {}
            await until(lambda: redis.cli("HGET", KEYS.config, "partition"))
            (after, *_) = await record(client)
        await until(lambda: not lag(redis))
    runs = await stored(api)
    assert [run.shape for run in runs] == [WHOLE] * 2 * RUNS
    assert partition_of(after) == partition_of(runs[0].id) != 0
    assert after in {run.id for run in runs}
    assert leftovers(redis) == []


async def test_a_run_that_began_before_goes_on_under_the_id_that_the_api_gave_it(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    api.faulty.faults = {"generate": 404}
    provisional = identifiers.generate(0)
    async with relaying(redis.url, api.url):
        write(redis, "a", *beginning(provisional))
        await until(lambda: "start" in api.faulty.names() and not lag(redis))
        api.faulty.faults = {}
        await until(lambda: redis.cli("HGET", KEYS.config, "partition"))
        partition = redis.cli("HGET", KEYS.config, "partition")
        # The agent has asked after its registration was read, and before the run had ended.
        final = identifiers.with_partition_of(identifiers.generate(int(partition)), provisional)
        write(redis, "a", span_of(final))
        await until(lambda: not lag(redis))
    async with relaying(redis.url, api.url):
        write(redis, "a", span_of(provisional), span_of(final))
        await until(lambda: not lag(redis))
    (run,) = await stored(api)
    assert run.shape == ("active", [("agent:run", "active", [])] * 3)
    assert redis.cli("XLEN", KEYS.refused) == 0


async def test_a_relay_that_gains_a_shard_learns_what_the_one_before_knew(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    api.faulty.faults = {"generate": 404}
    async with relaying(redis.url, api.url) as ignorant:
        await until(lambda: len(ignorant.statistics().shards) == SHARDS)
        # It asks again, and gets no answer for now.
        api.faulty.held = frozenset({"generate"})
        await until(lambda: any(call.status == 0 for call in api.faulty.calls))
        redis.cli("HSET", KEYS.config, "partition", 12_345)
        async with relaying(redis.url, api.url) as other:
            await until(lambda: other.statistics().shards)
            run = identifiers.generate(0)
            while shard_of(run) not in other.statistics().shards:
                run = identifiers.generate(0)
            write(redis, "a", *beginning(run))
            await until(lambda: "start" in api.faulty.names() and not lag(redis))
        await until(lambda: len(ignorant.statistics().shards) == SHARDS)
        write(redis, "a", span_of(run))
        await until(lambda: not lag(redis))
        api.faulty.held = frozenset()
    assert redis.cli("XLEN", KEYS.refused) == 0
    assert "agent_spans" in api.faulty.names()
