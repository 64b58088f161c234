"""Contents of Redis, agents and moments that are not as they should be."""

from __future__ import annotations

import itertools
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from support.harness import AGENT, Call, make_registry
from support.redis_server import RedisServerProcess
from support.relay_entries import beginning, runs_of_one_shard, span_of, write
from support.relay_runs import RUNS, WHOLE, all_is_there, record, recording, stored
from support.relayed import ServedApi, lag, served_api
from support.relays import WAIT, a_relay, relaying, until

from prefactor_core import PrefactorTerminatedError, PrefactorValueError, open_prefactor
from prefactor_core.client.connection import open_api
from prefactor_core.config import HttpClientConfig
from prefactor_core.local import Faults
from prefactor_core.operations import (
    identifiers,
)
from prefactor_core.relay.keys import GROUP, SHARDS, Keys, shard_of

KEYS = Keys("pf")


async def statuses(api: ServedApi) -> dict[str, str]:
    return {identifiers.without_partition(run.id): run.status for run in await stored(api)}


async def test_an_entry_with_an_id_that_is_none_goes_aside_and_does_not_hold_its_shard_up(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with relaying(redis.url, api.url):
        for number in range(40):
            write(redis, "a", *beginning(f"!{number:02}" + "!" * 29))
        async with recording(redis.url) as client:
            await record(client)
        await until(lambda: not lag(redis))
    assert [run.shape for run in await stored(api)] == [WHOLE] * RUNS
    ((_, fields), *others) = redis.cli("XRANGE", KEYS.refused, "-", "+")
    assert len(others) == 39
    assert "unreadable" in fields
    assert "not expected" not in caplog.text


async def test_entries_that_another_consumer_has_read_are_delivered_in_their_place(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with recording(redis.url) as client:
        await record(client)
    for stream in map(KEYS.operations, range(SHARDS)):
        redis.cli("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        how = ("COUNT", 1, "STREAMS", stream, ">")
        redis.cli("XREADGROUP", "GROUP", GROUP, "somebody", *how)
    async with relaying(redis.url, api.url):
        await all_is_there(api, redis, RUNS)


async def test_a_consumer_that_is_deleted_takes_no_entries_with_it(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url):
        await until(lambda: redis.cli("XLEN", KEYS.operations(0)) == 0)
        for stream in map(KEYS.operations, range(SHARDS)):
            await until(lambda stream=stream: redis.cli("EXISTS", stream))  # type: ignore[misc]
            # Nobody knows of the entry: it was read, and not by the relay.
            redis.cli("XGROUP", "SETID", stream, GROUP, "9999999999999-0")
        async with recording(redis.url) as client:
            await record(client)
        await all_is_there(api, redis, RUNS)


async def test_a_server_that_loses_its_data_is_used_as_a_new_one(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            await record(client)
            await until(lambda: not client.statistics().pending and not lag(redis))
            config = redis.cli("HGETALL", KEYS.config)
            redis.cli("FLUSHALL")
            await until(lambda: redis.cli("EXISTS", KEYS.config))
            assert redis.cli("HGETALL", KEYS.config) == config
            await record(client)
        await all_is_there(api, redis, 2 * RUNS)


async def test_what_is_kept_of_a_run_and_cannot_be_read_is_forgotten(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in range(SHARDS):
        redis.cli("HSET", f"pf:run:lacking-{shard}", "started", "1")
        redis.cli("HSET", f"pf:run:odd-{shard}", "instance_id", "x", "span:y", "sesame")
        redis.cli("SADD", KEYS.runs(shard), f"pf:run:lacking-{shard}", f"pf:run:odd-{shard}")
    async with relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            await record(client)
        await all_is_there(api, redis, RUNS)
    assert "cannot be read, and is forgotten" in caplog.text
    assert "sesame" not in caplog.text


@pytest.mark.parametrize("partition", ["many", "-1", str(2**30)])
async def test_a_partition_that_is_none_is_an_error_of_the_opening(
    redis: RedisServerProcess, api: ServedApi, partition: str
) -> None:
    redis.cli("HSET", KEYS.config, "partition", partition)
    with pytest.raises(PrefactorValueError, match="is no partition"):
        async with a_relay(redis.url, api.url):
            pass


async def test_a_relay_holds_so_many_bytes_of_a_shard_and_no_more(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    run = identifiers.generate(0)
    async with relaying(redis.url, api.url) as relay:
        await until(lambda: len(relay.statistics().shards) == SHARDS)
        api.faulty.away = True
        write(redis, "a", *beginning(run))
        for _ in range(40):
            write(redis, "a", span_of(run, 900_000))
        calls = len(api.faulty.calls)
        await until(lambda: len(api.faulty.calls) > calls + 20)
        assert relay.statistics().pending < 15
        api.faulty.away = False
        await until(lambda: not lag(redis))
    assert len(api.faulty.names()) >= 42


async def test_a_slow_answer_of_the_api_does_not_hold_a_termination_up(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url, poll_interval=0.1):
        await until(lambda: redis.cli("HGET", KEYS.config, "partition"))
        async with open_prefactor(api_url=redis.url, schema_registry=make_registry()) as client:
            with pytest.raises(PrefactorTerminatedError, match="enough"):
                async with client.agent_instance(**AGENT) as instance:
                    await until(lambda: not client.statistics().pending and not lag(redis))
                    calls = len(api.faulty.calls)
                    api.faulty.held = frozenset({"bulk", "agent_spans"})
                    with instance.span("agent:run"), instance.span("agent:llm"):
                        pass
                    await until(
                        lambda: any(call.method == "POST" for call in api.faulty.calls[calls:])
                    )
                    async with open_api(HttpClientConfig(api.url)) as other:
                        await other.terminate_agent_instance(instance.id, "enough")
                    await anyio.sleep(WAIT)
                    pytest.fail("it was not told")
            api.faulty.held = frozenset()
        await until(lambda: not lag(redis))


async def test_runs_of_agents_that_are_gone_end_and_no_others(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    gone, of_two, mute, busy = runs_of_one_shard(4)
    beats = itertools.count(1)
    async with relaying(redis.url, api.url, bury_after=7.0) as relay:
        write(redis, "gone", *beginning(gone), span_of(gone))
        write(redis, "one", *beginning(of_two))
        write(redis, "other", span_of(of_two))
        write(redis, "mute", *beginning(mute))
        write(redis, "busy", *beginning(busy))
        with anyio.fail_after(2 * WAIT):
            while not relay.statistics().buried:
                # One agent of the run lives, and says nothing; and the shard is never idle.
                redis.cli("HSET", KEYS.agents, "one", next(beats))
                for _ in range(40):
                    write(redis, "busy", span_of(busy))
                write(redis, "mute", span_of(mute))
                await until(lambda: redis.cli("XLEN", KEYS.operations(shard_of(busy))) < 20)
        await until(lambda: not lag(redis))
        assert relay.statistics().buried == 1
        assert await statuses(api) == {
            identifiers.without_partition(gone): "failed",
            **dict.fromkeys(map(identifiers.without_partition, (of_two, mute, busy)), "active"),
        }


async def test_what_one_relay_has_delivered_another_does_not_send_in_another_form(
    redis: RedisServerProcess, tmp_path: Path
) -> None:
    run = identifiers.generate(0)
    first = span_of(run)
    second = replace(span_of(run, 1_000), parent_span_id=first.span_id)
    with served_api(tmp_path / "prefactor.db", Faults(given_ids=False)) as api:

        def second_only(call: Call) -> int | None:
            return 503 if len(call.body["details"]["payload"]["text"]) else None

        api.faulty.faults = {"agent_spans": second_only}
        write(redis, "a", *beginning(run), first, second)
        async with relaying(redis.url, api.url):
            await until(lambda: redis.cli("HLEN", KEYS.done(shard_of(run))))
            await until(lambda: "agent_spans" in api.faulty.names())
            # The next step has written it down.
            await until(lambda: redis.cli("KEYS", KEYS.run(run)))
            await anyio.sleep(0.5)
        api.faulty.faults = {}
        async with relaying(redis.url, api.url):
            await until(lambda: not lag(redis))
            await until(lambda: not redis.cli("EXISTS", KEYS.done(shard_of(run))))
        assert redis.cli("XLEN", KEYS.refused) == 0
        (found,) = await stored(api)
        child = "agent:run", "active", []
        assert found.shape == ("active", [("agent:run", "active", [child])])
