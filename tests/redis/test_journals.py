"""A journal together with Redis: it keeps what Redis has not acknowledged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.commands import run
from support.harness import AGENT
from support.redis_contents import contents_of

from prefactor_core import open_prefactor
from prefactor_core.operations import CreateSpan, FinishAgentInstance, RegisterAgentInstance


async def leave_a_journal(url: str, folder: Path) -> None:
    """Record a run while no server is there."""
    async with open_prefactor(
        api_url=url, journal=folder, registration_timeout=0.1, drain_timeout=0.2
    ) as client:
        async with client.agent_instance(**AGENT) as run:
            with run.span("agent:tool", payload={"question": "which?"}):
                pass
    statistics = client.statistics()
    assert (statistics.pending, statistics.lost) == (4, 0)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def check_delivered(url: str) -> None:
    async with contents_of(url) as contents:
        registration, _, span, finish = await contents.operations()
    assert isinstance(registration, RegisterAgentInstance)
    assert isinstance(span, CreateSpan)
    assert bytes(span.payload) == b'{"question":"which?"}'
    assert isinstance(finish, FinishAgentInstance)


async def test_the_next_client_delivers_what_one_could_not(redis: Any, tmp_path: Path) -> None:
    redis.kill()
    with anyio.fail_after(60):
        await leave_a_journal(redis.url, tmp_path)
        redis.start()
        async with open_prefactor(api_url=redis.url, journal=tmp_path, drain_timeout=30) as client:
            pass
        assert client.statistics().adopted == 4
        await check_delivered(redis.url)
    assert files_in(tmp_path) == []


async def test_a_journal_of_another_prefix_is_left_alone(
    redis: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    redis.kill()
    with anyio.fail_after(60):
        await leave_a_journal(f"{redis.url}?prefix=one", tmp_path)
        redis.start()
        async with open_prefactor(api_url=f"{redis.url}?prefix=two", journal=tmp_path) as client:
            pass
        assert client.statistics().adopted == 0
        async with contents_of(f"{redis.url}?prefix=two") as contents:
            assert await contents.by_shard() == {}
    assert f"is for {redis.url}?db=0&prefix=one, and not for this client's API" in caplog.text


async def test_a_journal_is_empty_when_redis_has_everything(redis: Any, tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with open_prefactor(api_url=redis.url, journal=tmp_path) as client:
            async with client.agent_instance(**AGENT) as run:
                with run.span("agent:tool"):
                    pass
    assert files_in(tmp_path) == []


async def test_the_command_replays_a_journal_through_redis(redis: Any, tmp_path: Path) -> None:
    secret = "one-two-three"
    url = redis.url.replace("unix://", f"unix://agent:{secret}@")
    journals = tmp_path / "journals"
    redis.kill()
    with anyio.fail_after(60):
        await leave_a_journal(redis.url, journals)
        redis.start()
        redis.cli("ACL", "SETUSER", "agent", "on", f">{secret}", "~*", "+@all")
        command = ("-m", "prefactor_core", "journal", "replay", "journals")
        without = await anyio.to_thread.run_sync(lambda: run(*command, cwd=tmp_path))
        assert without.returncode == 1
        assert f"give --api-url {redis.url}?db=0&prefix=pf" in without.stdout
        replay = await anyio.to_thread.run_sync(
            lambda: run(*command, cwd=tmp_path, PREFACTOR_API_URL=url)
        )
        assert (replay.returncode, replay.stderr) == (0, "")
        assert f"4 operations delivered to {redis.url.replace('unix://', 'unix://agent@')}" in (
            replay.stdout
        )
        assert secret not in replay.stdout
        await check_delivered(redis.url)
