"""Runs that end otherwise than meant: terminated by the API, or left by an agent that is dead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.agent_process import agent_process
from support.harness import AGENT, StoredRun, stored_runs, terminate
from support.redis_server import RedisServerProcess
from support.relay_agent import OPERATIONS, RUNS, STEPS, agent_id
from support.relay_runs import recording, stored
from support.relayed import ServedApi, lag, leftovers, written
from support.relays import relaying, until

from prefactor_core import PrefactorTerminatedError
from prefactor_core.local import open_local_prefactor


async def test_a_run_that_the_api_terminates_ends_in_its_agent_with_the_reason(
    redis: RedisServerProcess, api: ServedApi
) -> None:
    async with relaying(redis.url, api.url, poll_interval=0.1) as relay:
        async with recording(redis.url, termination_poll_interval=1.0) as client:
            with pytest.raises(PrefactorTerminatedError, match="over budget"), anyio.fail_after(60):
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"):
                        await until(lambda: not lag(redis) and relay.statistics().delivered)
                        async with open_local_prefactor(str(api.path)) as app:
                            (run,) = await stored_runs(app)
                            await terminate(app, run.id)
                        await anyio.sleep_forever()
        assert relay.statistics().terminated == 1
        await until(lambda: not leftovers(redis))
    (run,) = await stored(api)
    assert (run.status, run.termination_reason) == ("terminated", "over budget")


async def test_the_runs_of_a_killed_agent_are_ended_as_failed_children_first(
    redis: RedisServerProcess, api: ServedApi, anyio_backend: Any, tmp_path: Path
) -> None:
    async with relaying(redis.url, api.url) as relay:
        with agent_process(redis.url, anyio_backend[0], tmp_path / "agent.log") as agent:
            # Half of the steps end within a span.
            agent.go_on(STEPS // 2 + RUNS)
            await until(lambda: relay.statistics().delivered > 20 * RUNS and not lag(redis))
            agent.kill()
        await until(lambda: not lag(redis))
    left = await all_stored(api)
    assert {run.status for run in left} == {"active"}
    opened = {span.id for run in left for span in run.spans.values() if span.status == "active"}
    assert opened
    # Another relay than that which saw them begin; no agent lives, and none is waited for.
    async with relaying(redis.url, api.url, bury_after=0.5) as relay:
        await until(lambda: not leftovers(redis))
        # Twice, if the machine is so slow that a lease is lost meanwhile.
        assert relay.statistics().buried >= RUNS
    runs = await all_stored(api)
    assert {run.status for run in runs} == {"failed"}
    for run in runs:
        assert all(span.status == "complete" or span.id in opened for span in run.spans.values())
    calls = [call for call in api.faulty.operations if call.name == "finish" and call.status == 200]
    places = {call.path.split("/")[-2]: place for place, call in enumerate(calls)}
    for run in runs:
        for id in run.spans.keys() & opened:
            span = run.spans[id]
            assert span.status == "failed"
            assert span.result["error"]["type"] == "agent_gone"
            assert places[id] < places[run.id]
            assert span.parent_id not in opened or places[id] < places[span.parent_id]


async def test_an_agent_that_resumes_after_relays_have_ended_its_runs_is_told_and_loses_no_more(
    redis: RedisServerProcess, api: ServedApi, anyio_backend: Any, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    async with relaying(redis.url, api.url, bury_after=7.0) as relay:
        with agent_process(redis.url, anyio_backend[0], log) as agent:
            agent.go_on(STEPS // 2)
            delivered = 0
            while not delivered or delivered < relay.statistics().delivered:
                delivered = relay.statistics().delivered
                await anyio.sleep(2)  # it is at rest when nothing comes any more
            agent.pause()
            await until(lambda: relay.statistics().buried == RUNS and not lag(redis))
            before = len(written(redis).run_of)
            agent.resume()
            await until(lambda: "relays heard nothing of this agent for long" in log.read_text())
            agent.go_on(STEPS)
            statistics = await anyio.to_thread.run_sync(agent.end)
        await until(lambda: not lag(redis))
        # Redis may have got something before the agent was told; a relay has kept that aside.
        late = len(written(redis).run_of) - before
        assert relay.statistics().refused <= late
    assert statistics["dropped"] == {"run_ended": OPERATIONS - statistics["delivered"]}
    assert log.read_text().count("relays heard nothing of this agent") <= 2
    assert {run.status for run in await all_stored(api)} == {"failed"}


async def all_stored(api: ServedApi) -> list[StoredRun]:
    async with open_local_prefactor(str(api.path)) as app:
        return [run for number in range(RUNS) for run in await stored_runs(app, agent_id(number))]
