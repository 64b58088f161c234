"""The partition of the account: found out at the start, later, or by another relay."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.redis_server import RedisServerProcess, redis_server
from support.relay_entries import beginning, span_of, write
from support.relay_runs import RUNS, WHOLE, record, recording, stored
from support.relayed import ServedApi, lag, leftovers, served_api
from support.relays import a_relay, relaying, until

from prefactor_core import PrefactorValueError
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


@pytest.mark.parametrize(("fault", "level"), [(401, logging.ERROR), (503, logging.WARNING)])
async def test_a_relay_without_a_first_answer_shows_an_outage_with_its_reason(
    redis: RedisServerProcess,
    api: ServedApi,
    caplog: pytest.LogCaptureFixture,
    fault: int,
    level: int,
) -> None:
    api.faulty.faults = {"generate": fault}
    async with relaying(redis.url, api.url) as relay:
        await until(lambda: len(api.faulty.calls) > 2)
        waiting = relay.statistics()
        assert waiting.outage_since is not None
        assert str(fault) in str(waiting.last_error)
        api.faulty.faults = {}
        await until(lambda: len(relay.statistics().shards) == SHARDS)
        well = relay.statistics()
        assert (well.outage_since, well.last_error) == (None, None)
    said = [each for each in caplog.records if "delivers nothing until" in each.getMessage()]
    assert [each.levelno for each in said] == [level]


async def test_keys_that_a_relay_for_another_api_took_are_free_when_they_are_deleted(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Path
) -> None:
    with served_api(tmp_path / "other.db") as other:
        async with relaying(redis.url, other.url):
            await until(lambda: redis.cli("HGET", KEYS.config, "partition"))
    with pytest.raises(PrefactorValueError, match=f"delete the key {KEYS.config}$"):
        async with a_relay(redis.url, api.url):
            pytest.fail("it opened")
    redis.cli("DEL", KEYS.config)
    async with relaying(redis.url, api.url):
        await until(lambda: redis.cli("HGET", KEYS.config, "partition"))
        async with recording(redis.url) as client:
            recorded = await record(client)
        await until(lambda: not lag(redis))
    assert {run.id for run in await stored(api)} == set(recorded)


async def test_a_server_that_keeps_nothing_on_its_disk_is_one_warning(
    api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server("--appendonly", "no") as redis:
        async with a_relay(redis.url, api.url):
            pass
    (warning,) = [each.getMessage() for each in caplog.records if each.name.endswith("relay")]
    assert warning.startswith(f"{redis.url} has appendonly no: ")


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
