"""What fails around a relay, and what comes of it: nothing that Redis had acknowledged is lost."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import msgspec
import pytest
from support.harness import AGENT, make_config, make_registry
from support.redis_proxy import redis_proxy
from support.redis_server import RedisServerProcess, redis_server
from support.relay_entries import beginning, span_of, write
from support.relay_runs import RUNS, WHOLE, all_is_there, record, recording, stored
from support.relayed import ServedApi, lag, leftovers, problems, served_api, written
from support.relays import relay_on, relay_processes, relaying, until

from prefactor_core import open_prefactor
from prefactor_core.operations import identifiers
from prefactor_core.operations.identifiers import without_partition
from prefactor_core.relay.keys import GROUP, SHARDS, Keys, shard_of

KEYS = Keys("pf")


async def test_what_is_recorded_before_a_relay_lives_is_delivered_when_one_does(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with recording(redis.url) as client:
        await record(client)
    assert client.statistics().delivered == client.statistics().accepted
    assert lag(redis)
    async with relaying(redis.url, api.url):
        await all_is_there(api, redis, RUNS)


async def test_a_server_killed_and_restarted_has_all_that_it_acknowledged(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url) as relay:
        async with recording(redis.url) as client:
            await record(client)
            redis.kill()
            await record(client)
            # Both have met it, and neither has lost anything.
            await until(lambda: client.statistics().outage_since is not None)
            assert client.statistics().lost == 0
            redis.start()
            await record(client)
        assert client.statistics().delivered == client.statistics().accepted
        await all_is_there(api, redis, 3 * RUNS)
        await until(lambda: len(relay.statistics().shards) == SHARDS)


async def test_a_server_killed_again_and_again_changes_nothing(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url), relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            for _ in range(4):
                await record(client)
                redis.restart()
        await all_is_there(api, redis, 4 * RUNS)


async def test_a_full_server_is_busy_and_a_relay_makes_room(
    api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server("--maxmemory", "4mb") as redis:
        text = "x" * 300_000
        async with recording(redis.url, registration_timeout=0.1) as client:
            # 10 MB: more than there is room for.
            for _ in range(3):
                await record(client, text=text)
            await until(lambda: client.statistics().outage_since is not None)
            statistics = client.statistics()
            assert (statistics.lost, statistics.pending > 0) == (0, True)
            async with relaying(redis.url, api.url):
                await until(lambda: not client.statistics().pending)
                await until(lambda: not lag(redis))
        assert client.statistics().delivered == client.statistics().accepted
        assert lag(redis) == 0
        assert problems(api, redis) == []
        assert [run.shape for run in await stored(api)] == [WHOLE] * 3 * RUNS
    assert text[:100] not in caplog.text


async def test_a_stream_that_is_deleted_takes_its_entries_with_it_and_no_later_ones(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            await record(client)
            await until(lambda: client.statistics().pending == 0 and not lag(redis))
            for shard in range(SHARDS):
                redis.cli("DEL", KEYS.operations(shard))
            await record(client)
        await all_is_there(api, redis, 2 * RUNS)


async def test_entries_of_a_stream_that_is_deleted_are_gone_and_the_next_ones_are_not(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url) as relay:
        await until(lambda: relay.statistics().shards)
        api.faulty.away = True
        async with recording(redis.url) as client:
            first = await record(client)
            await until(lambda: client.statistics().pending == 0)
            await until(lambda: relay.statistics().pending)
            for shard in range(SHARDS):
                redis.cli("DEL", KEYS.operations(shard))
            await record(client)
        api.faulty.away = False
        await until(lambda: not lag(redis))
        await until(lambda: not relay.statistics().pending)
    # A relay may have had them in its memory; then they are delivered all the same.
    gone = frozenset(map(without_partition, first))
    # The API knows no run whose registration is gone, and refuses what is left of it.
    assert problems(api, redis, gone=gone, refuses=True) == []
    shapes = {without_partition(run.id): run.shape for run in await stored(api)}
    assert [shape for id, shape in shapes.items() if id not in gone] == [WHOLE] * RUNS


async def test_a_group_that_is_destroyed_is_made_again_and_all_entries_are_read_again(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url) as relay:
        async with recording(redis.url) as client:
            await record(client)
            await until(lambda: not client.statistics().pending and not lag(redis))
            api.faulty.away = True
            await record(client)
            await until(lambda: not client.statistics().pending)
            await until(lambda: relay.statistics().pending)
            for shard in range(SHARDS):
                if redis.cli("EXISTS", KEYS.operations(shard)):
                    redis.cli("XGROUP", "DESTROY", KEYS.operations(shard), GROUP)
            await record(client)
        api.faulty.away = False
        await all_is_there(api, redis, 3 * RUNS)


async def test_a_server_that_has_forgotten_all_scripts_gets_them_again(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            await record(client)
            redis.cli("SCRIPT", "FLUSH")
            await record(client)
        await all_is_there(api, redis, 2 * RUNS)


async def test_a_paused_server_delays_and_loses_nothing(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with (
        relaying(redis.url, api.url, lease=1.0),
        relaying(redis.url, api.url, lease=1.0),
    ):
        async with recording(redis.url) as client:
            await record(client)
            redis.pause()
            await record(client)
            # Longer than the lease.
            await anyio.sleep(1.5)
            redis.resume()
            await record(client)
        await all_is_there(api, redis, 3 * RUNS)


async def test_an_outage_of_the_api_has_no_end_for_the_relay_and_none_of_it_reaches_agents(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url) as relay:
        await until(lambda: relay.statistics().shards)
        api.faulty.away = True
        async with recording(redis.url) as client:
            await record(client)
        assert client.statistics().delivered == client.statistics().accepted
        assert client.statistics().retries == 0
        # More often than an operation may fail by itself.
        await until(lambda: relay.statistics().outage_since is not None)
        calls = len(api.faulty.calls)
        await until(lambda: len(api.faulty.calls) > calls + 10)
        statistics = relay.statistics()
        assert (statistics.delivered, statistics.refused) == (0, 0)
        assert statistics.pending > 0
        api.faulty.away = False
        await all_is_there(api, redis, RUNS)
        assert relay.statistics().outage_since is None


async def test_a_relay_that_starts_in_an_outage_of_the_api_waits_for_its_end(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    api.faulty.away = True
    async with relaying(redis.url, api.url):
        async with recording(redis.url) as client:
            await record(client)
        await until(lambda: len(api.faulty.calls) > 2)
        api.faulty.away = False
        await all_is_there(api, redis, RUNS)


async def test_lost_answers_of_the_api_change_nothing(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url) as relay:
        await until(lambda: relay.statistics().shards)
        api.faulty.lost_answers = 10
        async with recording(redis.url) as client:
            await record(client)
        await all_is_there(api, redis, RUNS)
    assert api.faulty.lost_answers == 0


async def test_a_relay_that_ends_and_one_that_begins_hand_over_in_the_middle(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with recording(redis.url) as client:
        for _ in range(3):
            async with relaying(redis.url, api.url) as relay:
                await record(client)
                await until(lambda: relay.statistics().delivered)
            # It leaves nothing behind that another would have to wait for.
            assert not any(redis.cli("EXISTS", KEYS.lease(shard)) for shard in range(SHARDS))
            assert not redis.cli("EXISTS", KEYS.relays)
        await record(client)
    async with relaying(redis.url, api.url):
        await all_is_there(api, redis, 4 * RUNS)


async def test_a_relay_paused_for_longer_than_its_lease_does_no_harm_when_it_goes_on(
    redis: RedisServerProcess, api: ServedApi, anyio_backend: Any, tmp_path: Any
) -> None:
    command = relay_on(anyio_backend[0], redis.url, api.url)
    with relay_processes(command, 2, tmp_path) as relays:
        await until(lambda: len(owners(redis)) == 2)
        paused = relays.alive[0]
        async with recording(redis.url) as client:
            # It is paused with requests on their way.
            api.faulty.away = True
            await record(client)
            await until(lambda: api.faulty.calls)
            paused.pause()
            api.faulty.away = False
            await record(client)
            await until(lambda: owners(redis) == {"relay-1"})
            await until(lambda: not client.statistics().pending and not lag(redis))
            await record(client)
            await until(lambda: not client.statistics().pending and not lag(redis))
            paused.resume()
            await until(lambda: len(owners(redis)) == 2)
            await record(client)
        await all_is_there(api, redis, 4 * RUNS)
        relays.stop()


def owners(redis: RedisServerProcess) -> set[str]:
    """The names of the relays that have a lease."""
    holders = redis.cli("MGET", *map(KEYS.lease, range(SHARDS)))
    return {holder.partition("/")[0] for holder in holders if holder is not None}


async def test_an_operation_that_the_api_refuses_goes_aside_and_the_rest_goes_on(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    registry = make_registry()
    registry.register_type("agent:refused", {"type": "object"})
    api.faulty.faults = {
        "agent_spans": lambda call: (
            422 if call.body["details"]["schema_name"] == "agent:refused" else None
        )
    }
    config = make_config(http={"api_url": redis.url, "api_token": ""}, schema_registry=registry)
    async with relaying(redis.url, api.url) as relay:
        async with open_prefactor(config) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    async with instance.span("agent:refused", payload={"secret": "sesame"}):
                        pass
                    async with instance.span("agent:tool"):
                        pass
        await until(lambda: not lag(redis))
        assert relay.statistics().refused == 1
    (run,) = await stored(api)
    assert run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:tool", "complete", [])])],
    )
    ((_, fields),) = redis.cli("XRANGE", KEYS.refused, "-", "+")
    aside = dict(zip(fields[::2], fields[1::2], strict=True))
    assert set(aside) == {"op", "reason", "error", "agent", "shard"}
    assert '"agent:refused"' in aside["op"]
    assert aside["shard"] == str(shard_of(run.id))
    assert "sesame" not in aside["error"]


async def test_an_operation_is_set_aside_once_if_the_answer_of_redis_is_lost(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    run = identifiers.generate(0)
    api.faulty.faults = {"agent_spans": 422}
    async with redis_proxy(redis) as proxy:
        async with relaying(proxy.url, api.url) as relay:
            await until(lambda: len(relay.statistics().shards) == SHARDS)
            proxy.marker, proxy.left = KEYS.refused.encode(), 3
            write(redis, "a", *beginning(run), *(span_of(run) for _ in range(3)))
            await until(lambda: not lag(redis))
            assert relay.statistics().refused == 3
        assert proxy.left < 3
    assert redis.cli("XLEN", KEYS.refused) == 3


async def test_an_api_that_refuses_given_ids_of_runs_registers_them_under_its_own(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    no = {"status": "error", "code": "invalid_value", "message": "no"}
    body = {"status": "error", "code": "validation_errors", "message": "no", "errors": {"id": no}}
    refusal = 422, {}, msgspec.json.encode(body)
    api.faulty.faults = {"register": lambda call: refusal if call.body.get("id") else None}
    async with relaying(redis.url, api.url) as relay:
        async with recording(redis.url) as client:
            ids = await record(client)
        await until(lambda: not lag(redis))
        assert relay.statistics().refused == 0
    runs = await stored(api)
    assert [run.shape for run in runs] == [WHOLE] * RUNS
    assert not {run.id for run in runs} & set(ids)
    assert leftovers(redis) == []


async def test_an_entry_that_cannot_be_read_goes_aside_whole_and_the_rest_goes_on(
    redis: RedisServerProcess, api: ServedApi, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in range(SHARDS):
        stream = KEYS.operations(shard)
        redis.cli(
            "XADD", stream, "*", "version", "1", "agent", "a", "ops", '[{"secret": "sesame"}]'
        )
        redis.cli("XADD", stream, "*", "version", "99", "agent", "a", "ops", "sesame")
        redis.cli("XADD", stream, "*", "anything", "sesame")
    with caplog.at_level(logging.DEBUG):
        async with relaying(redis.url, api.url):
            async with recording(redis.url) as client:
                await record(client)
            await until(lambda: not lag(redis))
    assert [run.shape for run in await stored(api)] == [WHOLE] * RUNS
    assert redis.cli("XLEN", KEYS.refused) == 3 * SHARDS
    assert "sesame" not in caplog.text


async def test_two_accounts_on_one_server_never_meet(
    redis: RedisServerProcess, api: ServedApi, tmp_path: Any
) -> None:
    with served_api(tmp_path / "other.db") as other:
        urls = [redis.url, f"{redis.url}?prefix=other", f"{redis.url}?db=1"]
        async with relaying(urls[0], api.url), relaying(urls[1], other.url):
            for number, url in enumerate(urls):
                async with recording(url) as client:
                    await record(client, n=number)
            await until(lambda: not lag(redis) and not lag(redis, "other"))
            await until(lambda: not leftovers(redis) and not leftovers(redis, "other"))
        for served, number in ((api, 0), (other, 1)):
            runs = await stored(served)
            assert [run.shape for run in runs] == [WHOLE] * RUNS
            assert {run.named("agent:llm").payload["n"] for run in runs} == {number}
        assert len(written(redis, "other").runs) == RUNS
