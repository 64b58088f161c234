"""A client that sends through a real Redis server: what relays find there."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.harness import AGENT
from support.redis_contents import contents_of

from prefactor_core import (
    PrefactorAuthError,
    PrefactorTerminatedError,
    open_prefactor,
    open_prefactor_sync,
)
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
)
from prefactor_core.operations.identifiers import generate, partition_of, without_partition

PARTITION = 12_345
AGENT_LOGGERS = "prefactor_core"


def shape_of(operations: list[Operation]) -> list[str]:
    """The order in which a relay gets the operations of a run."""
    return [op.schema_name if isinstance(op, CreateSpan) else op.type.name for op in operations]


def messages_with(caplog: pytest.LogCaptureFixture, text: str) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records]
    return [(level, message) for level, message in found if text in message]


async def until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not await condition():  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def test_a_run_is_in_one_shard_in_its_order(redis: Any) -> None:
    with anyio.fail_after(30):
        async with open_prefactor(api_url=redis.url) as client:
            async with client.agent_instance(**AGENT) as run:
                async with run.span("agent:run"):
                    for number in range(30):
                        with run.span(f"agent:{number}", payload={"number": number}) as span:
                            span.set_result({"answer": number})
                await client.flush()
                async with contents_of(redis.url) as contents:
                    (agent,) = await contents.agents()
            statistics = client.statistics()
        assert (statistics.accepted, statistics.pending) == (35, 1)
    async with contents_of(redis.url) as contents:
        operations = await contents.operations()
        spans = [f"agent:{number}" for number in range(30)]
        begin, end = ["REGISTER_AGENT_INSTANCE", "START_AGENT_INSTANCE"], ["FINISH_AGENT_INSTANCE"]
        # The root was reported by its first child, and both operations met in one entry.
        assert shape_of(operations) == [*begin, "agent:run", *spans, *end]
        assert await contents.agents() == {}
        ((shard, _),) = (await contents.by_shard()).items()
        assert {entry.agent for entry in await contents.entries(shard)} == {agent.decode()}
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered, statistics.lost) == (35, 35, 0)


async def test_runs_get_the_partition_that_a_relay_wrote_down(redis: Any) -> None:
    async with contents_of(redis.url) as contents:
        async with open_prefactor(api_url=redis.url) as client:
            async with client.agent_instance(**AGENT) as early:
                assert partition_of(early.id) == 0
                await contents.do("HSET", contents.keys.config, "partition", PARTITION)
                async with client.agent_instance(**AGENT) as run:
                    assert partition_of(run.id) == PARTITION
                    with run.span("agent:tool") as span:
                        assert partition_of(span.id) == PARTITION
                with early.span("agent:tool"):
                    pass
        found = await contents.by_shard()
    by_run: dict[str, list[Operation]] = {}
    for operations in found.values():
        for operation in operations:
            by_run.setdefault(without_partition(operation.instance_id), []).append(operation)
    steps = ["REGISTER_AGENT_INSTANCE", "START_AGENT_INSTANCE", "agent:tool"]
    steps.append("FINISH_AGENT_INSTANCE")
    assert [shape_of(operations) for operations in by_run.values()] == [steps, steps]
    # The entry has the registration as it was recorded: its key stands for one body.
    registration, start, *_ = by_run[without_partition(run.id)]
    assert isinstance(registration, RegisterAgentInstance)
    assert (partition_of(registration.instance_id), start.instance_id) == (0, run.id)


async def test_a_partition_that_is_no_number_is_passed_over(redis: Any) -> None:
    async with contents_of(redis.url) as contents:
        await contents.do("HSET", contents.keys.config, "partition", "many")
        async with open_prefactor(api_url=redis.url) as client:
            async with client.agent_instance(**AGENT) as run:
                assert partition_of(run.id) == 0
        assert client.statistics().lost == 0


async def test_an_id_that_the_caller_chose_stays(redis: Any) -> None:
    chosen = generate(99)
    async with contents_of(redis.url) as contents:
        await contents.do("HSET", contents.keys.config, "partition", PARTITION)
        async with open_prefactor(api_url=redis.url) as client:
            async with client.agent_instance(**AGENT, instance_id=chosen) as run:
                assert run.id == chosen


async def test_a_server_that_comes_late_gets_everything_in_order(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AGENT_LOGGERS)
    redis.kill()
    with anyio.fail_after(60):
        async with open_prefactor(
            api_url=redis.url, registration_timeout=0.3, drain_timeout=30
        ) as client:
            async with client.agent_instance(**AGENT) as run:
                assert partition_of(run.id) == 0
                for number in range(10):
                    with run.span(f"agent:{number}"):
                        pass
                await anyio.sleep(0.5)
                redis.start()
                async with contents_of(redis.url) as contents:
                    await contents.do("HSET", contents.keys.config, "partition", PARTITION)
                await client.flush()
                with run.span("agent:10"):
                    pass
                assert partition_of(run.id) == PARTITION
    async with contents_of(redis.url) as contents:
        operations = await contents.operations()
    begin, end = ["REGISTER_AGENT_INSTANCE", "START_AGENT_INSTANCE"], ["FINISH_AGENT_INSTANCE"]
    assert shape_of(operations) == [*begin, *(f"agent:{n}" for n in range(11)), *end]
    assert client.statistics().lost == 0
    ((level, began),) = messages_with(caplog, "does not take operations")
    assert level == logging.WARNING
    assert began.startswith("Redis does not take operations")
    ((_, ended),) = messages_with(caplog, "accepts operations again")
    assert ended.startswith("Redis accepts operations again")
    assert messages_with(caplog, "unexpected error") == []


async def test_a_server_that_was_killed_and_restarted_gets_the_rest(redis: Any) -> None:
    with anyio.fail_after(60):
        async with open_prefactor(api_url=redis.url, drain_timeout=30) as client:
            async with client.agent_instance(**AGENT) as run:
                for number in range(100):
                    with run.span(f"agent:{number}"):
                        pass
                    if number % 10 == 0:
                        await client.flush()
                    if number == 40:
                        redis.kill()
                        threading.Timer(0.7, redis.start).start()
    async with contents_of(redis.url) as contents:
        operations = await contents.operations()
    begin, end = operations[:2], operations[-1]
    assert shape_of(begin) == ["REGISTER_AGENT_INSTANCE", "START_AGENT_INSTANCE"]
    assert isinstance(end, FinishAgentInstance)
    # A span that was a probe in the outage may come after its siblings, as with an API.
    assert {*shape_of(operations[2:-1])} == {f"agent:{number}" for number in range(100)}
    assert client.statistics().lost == 0


async def test_a_full_server_is_busy_and_loses_nothing(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AGENT_LOGGERS)
    async with contents_of(redis.url) as contents:
        with anyio.fail_after(60):
            async with open_prefactor(api_url=redis.url, drain_timeout=30) as client:
                async with client.agent_instance(**AGENT) as run:
                    await client.flush()
                    await contents.do("CONFIG", "SET", "maxmemory", 1)
                    for number in range(50):
                        with run.span(f"agent:{number}", payload={"text": "hidden"}):
                            pass

                    async def is_reported() -> bool:
                        return bool(messages_with(caplog, "does not take operations"))

                    await until(is_reported)
                    # The heartbeat goes on: relays must not take the agent for dead.
                    before = await contents.agents()

                    async def beats() -> bool:
                        return await contents.agents() != before

                    await until(beats)
                    await contents.do("CONFIG", "SET", "maxmemory", 0)
        operations = await contents.operations()
    assert shape_of(operations)[2:-1] == [f"agent:{number}" for number in range(50)]
    assert client.statistics().lost == 0
    ((level, message),) = messages_with(caplog, "does not take operations")
    assert level == logging.WARNING
    assert "the memory of the server is full (maxmemory)" in message
    assert "hidden" not in caplog.text


async def test_a_server_that_is_full_again_and_again_is_one_outage(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AGENT_LOGGERS)
    async with contents_of(redis.url) as contents:
        with anyio.fail_after(60):
            async with open_prefactor(
                api_url=redis.url,
                registration_timeout=0.2,
                queue_config={"retry_delay_base": 0.02},
                drain_timeout=30,
            ) as client:
                for _ in range(4):
                    await contents.do("CONFIG", "SET", "maxmemory", 1)
                    retries = client.statistics().retries
                    async with client.agent_instance(**AGENT) as run:
                        with run.span("agent:tool"):
                            pass

                    async def has_failed(retries: int = retries) -> bool:
                        return client.statistics().retries > retries + 6

                    await until(has_failed)
                    await contents.do("CONFIG", "SET", "maxmemory", 0)
                    await client.flush()
    assert client.statistics().lost == 0
    assert len(messages_with(caplog, "does not take operations")) == 1
    ((_, ended),) = messages_with(caplog, "accepts operations again")
    assert ended == caplog.records[-1].getMessage()


async def test_a_wrong_password_keeps_the_operations_and_says_so_once(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AGENT_LOGGERS)
    url = redis.url.replace("unix://", "unix://agent:one-two-three@")
    async with contents_of(redis.url) as contents:
        await contents.do("ACL", "SETUSER", "agent", "on", ">another", "~*", "+@all")
        with anyio.fail_after(60):
            async with open_prefactor(api_url=url, drain_timeout=30) as client:
                async with client.agent_instance(**AGENT) as run:
                    with run.span("agent:tool"):
                        pass

                    async def is_reported() -> bool:
                        return bool(messages_with(caplog, "does not take operations"))

                    await until(is_reported)
                    await contents.do("ACL", "SETUSER", "agent", ">one-two-three")
        assert len(await contents.operations()) == 4
    assert client.statistics().lost == 0
    ((level, message),) = messages_with(caplog, "does not take operations")
    assert level == logging.ERROR
    assert "one-two-three" not in caplog.text
    assert "invalid username-password pair" in message


async def test_a_password_can_be_checked_at_the_opening(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(30):
        url = redis.url.replace("unix://", "unix://nobody:one-two-three@")
        with pytest.raises(PrefactorAuthError) as info:
            async with open_prefactor(api_url=url, validate_token=True):
                raise AssertionError("opened")
        assert "one-two-three" not in f"{info.value} {caplog.text}"
        async with open_prefactor(api_url=redis.url, validate_token=True):
            pass
        assert messages_with(caplog, "could not be checked") == []
        redis.kill()
        async with open_prefactor(api_url=redis.url, validate_token=True):
            pass
    ((level, message),) = messages_with(caplog, "could not be checked")
    assert level == logging.WARNING
    assert message.startswith("the password of Redis could not be checked: PING at unix://")


async def test_a_command_that_the_acl_forbids_keeps_the_operations(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = redis.url.replace("unix://", "unix://agent:one@")
    async with contents_of(redis.url) as contents:
        await contents.do(
            "ACL", "SETUSER", "agent", "on", ">one", "~*", "+@all", "-xadd", "-evalsha"
        )
        with anyio.fail_after(60):
            async with open_prefactor(api_url=url, drain_timeout=30) as client:
                async with client.agent_instance(**AGENT):

                    async def is_reported() -> bool:
                        return bool(messages_with(caplog, "does not take operations"))

                    await until(is_reported)
                    await contents.do("ACL", "SETUSER", "agent", "+xadd")
        assert len(await contents.operations()) == 3
    assert client.statistics().lost == 0
    ((level, _),) = messages_with(caplog, "does not take operations")
    assert level == logging.ERROR
    ((level, _),) = messages_with(caplog, "relays may take this agent for dead")
    assert level == logging.WARNING


async def test_a_termination_reaches_the_run(redis: Any) -> None:
    with anyio.fail_after(30):
        async with contents_of(redis.url) as contents:
            async with open_prefactor(api_url=redis.url) as client:
                async with client.agent_instance(**AGENT) as other:
                    with pytest.raises(PrefactorTerminatedError, match="too expensive"):
                        async with client.agent_instance(**AGENT) as run:
                            await contents.do("SET", contents.keys.stop(run.id), "too expensive")
                            await anyio.sleep_forever()
                    assert not other.terminated


async def test_an_agent_learns_that_relays_have_ended_its_runs_and_goes_on(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AGENT_LOGGERS)
    with anyio.fail_after(30):
        async with contents_of(redis.url) as contents:
            async with open_prefactor(api_url=redis.url) as client:
                async with (
                    client.agent_instance(**AGENT) as other,
                    client.agent_instance(**AGENT) as one,
                    client.agent_instance(**AGENT) as two,
                ):
                    await client.flush()
                    first, second = (contents.keys.buried(run.id) for run in (one, two))
                    await contents.do("MSET", first, 1, second, 1)

                    async def is_known() -> bool:
                        return bool(messages_with(caplog, "have ended agent instance"))

                    await until(is_known)
                    for run in (other, one, two):
                        with run.span("agent:tool"):
                            pass
                    await anyio.sleep(0.6)  # it asks again
                    assert one.terminated is None
                    assert (other.recorded, one.recorded, two.recorded) == (True, False, False)
            shards = (await contents.by_shard()).values()
    of_one = [op for operations in shards for op in operations if op.instance_id == one.id]
    assert shape_of(of_one) == ["REGISTER_AGENT_INSTANCE", "START_AGENT_INSTANCE"]
    ((level, message),) = messages_with(caplog, "have ended agent instance")
    assert level == logging.WARNING
    assert f"have ended agent instance {one.id} and 1 more as failed" in message
    statistics = client.statistics()
    # A span and the finish of each.
    assert dict(statistics.dropped) == {"run_ended": 4}
    assert statistics.accepted == statistics.delivered + 4


async def test_no_termination_is_asked_for_without_an_interval(redis: Any) -> None:
    with anyio.fail_after(30):
        async with contents_of(redis.url) as contents:
            async with open_prefactor(
                api_url=redis.url, termination_poll_interval=math.inf
            ) as client:
                async with client.agent_instance(**AGENT) as run:
                    await contents.do("SET", contents.keys.stop(run.id), "")
                    await anyio.sleep(1.2)
                    assert not run.terminated
            statistics: bytes = await contents.do("INFO", "commandstats")
    assert b"cmdstat_mget" not in statistics


async def test_the_log_says_once_that_no_relay_is_alive(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AGENT_LOGGERS)
    async with contents_of(redis.url) as contents:
        with anyio.fail_after(60):
            async with open_prefactor(api_url=redis.url):

                async def is_missed() -> bool:
                    return bool(messages_with(caplog, "no relay is alive"))

                await until(is_missed)
                await contents.do("ZADD", contents.keys.relays, 1, "relay")

                async def is_back() -> bool:
                    return bool(messages_with(caplog, "a relay is alive"))

                await until(is_back)
    ((level, _),) = messages_with(caplog, "no relay is alive")
    assert level == logging.WARNING
    ((level, _),) = messages_with(caplog, "a relay is alive")
    assert level == logging.INFO


async def test_a_server_that_may_throw_operations_away_is_an_error(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with contents_of(redis.url) as contents:
        await contents.do("CONFIG", "SET", "maxmemory", "100mb")
        await contents.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

        async def is_reported() -> bool:
            return bool(messages_with(caplog, "throws operations away"))

        async with open_prefactor(api_url=redis.url):
            await until(is_reported)
        ((level, message),) = messages_with(caplog, "throws operations away")
        assert level == logging.ERROR
        assert "its maxmemory-policy is allkeys-lru, and must be noeviction" in message
        assert "no relay" not in message


async def test_the_exception_of_the_block_leaves_as_itself(redis: Any) -> None:
    error = KeyError("mine")
    with anyio.fail_after(30), pytest.raises(KeyError) as info:
        async with open_prefactor(api_url=redis.url) as client:
            async with client.agent_instance(**AGENT):
                raise error
    assert info.value is error
    async with contents_of(redis.url) as contents:
        finish = (await contents.operations())[-1]
    assert isinstance(finish, FinishAgentInstance)
    assert finish.status == "failed"


async def test_a_drain_without_a_server_ends_in_time_and_counts_the_loss(redis: Any) -> None:
    redis.kill()
    with anyio.fail_after(20):
        async with open_prefactor(
            api_url=redis.url, registration_timeout=0.2, drain_timeout=0.5
        ) as client:
            async with client.agent_instance(**AGENT):
                pass
    assert dict(client.statistics().dropped) == {"drain_timeout": 3}


async def test_clients_with_prefixes_share_a_server(redis: Any) -> None:
    with anyio.fail_after(30):
        for prefix in ("one", "two"):
            async with open_prefactor(api_url=f"{redis.url}?prefix={prefix}") as client:
                async with client.agent_instance(**AGENT) as run:
                    with run.span(f"agent:{prefix}"):
                        pass
    for prefix in ("one", "two"):
        async with contents_of(f"{redis.url}?prefix={prefix}") as contents:
            assert shape_of(await contents.operations())[2] == f"agent:{prefix}"


async def test_a_synchronous_client_sends_through_redis(redis: Any) -> None:
    def record() -> None:
        with open_prefactor_sync(api_url=redis.url) as client:
            with client.agent_instance(**AGENT) as run:
                with run.span("agent:tool"):
                    pass

    with anyio.fail_after(30):
        await anyio.to_thread.run_sync(record)
    async with contents_of(redis.url) as contents:
        operations = await contents.operations()
    assert isinstance(operations[1], StartAgentInstance)
    assert shape_of(operations)[2:] == ["agent:tool", "FINISH_AGENT_INSTANCE"]
