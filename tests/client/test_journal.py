"""A client with a journal: what the files hold, what they never hold, and when they are full."""

from __future__ import annotations

import logging
import math
import shutil
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.harness import (
    AGENT,
    TOKEN,
    FaultyApi,
    make_config,
    on_create_of,
    open_faulty_api,
    recording,
    stored_run,
    stored_runs,
)
from support.interruptions import in_the_middle
from support.journal_writing import room_in_files

from prefactor_core import AgentInstanceHandle, PrefactorCoreClient, open_prefactor
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.reader import JournalReader

LARGE = "x" * 10_000
LEAST = 1_000_000


def client_of(folder: Path, api: FaultyApi, **options: Any) -> PrefactorCoreClient:
    return open_prefactor(make_config(journal=folder, **options), asgi_app=api)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def pending_in(folder: Path) -> int:
    """The number of operations in the journals of a folder."""
    found = 0
    for path in JournalDirectory(folder).journals():
        reader = JournalReader(path)
        for _ in reader.scan():
            pass
        found += sum(reader.unsettled.values())
    return found


def record(run: AgentInstanceHandle, payload: object = "what is it?") -> None:
    with run.span("agent:llm", payload={"prompt": payload}) as span:
        span.set_result({"answer": "it is that"})


# What is in the files.


async def test_a_folder_is_empty_after_everything_was_delivered(tmp_path: Path) -> None:
    async with recording(journal=tmp_path) as r:
        for _ in range(20):
            record(r.instance)
        assert r.client.statistics().journal_bytes > 5_000
        await r.client.flush()
    assert files_in(tmp_path) == []
    assert len(r.run.spans) == 20
    statistics = r.client.statistics()
    assert (statistics.pending, statistics.unjournaled, statistics.journal_bytes) == (0, 0, 0)


async def test_what_is_recorded_is_in_a_file_when_the_call_returns(tmp_path: Path) -> None:
    async with recording(journal=tmp_path, queue={"batch_window": 3600}) as r:
        await r.client.flush()
        assert pending_in(tmp_path) == 0
        for number in range(1, 20):
            record(r.instance)
            assert pending_in(tmp_path) == number


@pytest.mark.virtual_time
async def test_what_is_left_is_pending_and_no_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_faulty_api() as api:
        api.away = True
        with anyio.fail_after(100):
            async with client_of(tmp_path, api, drain_timeout=1, raise_on_loss=True) as client:
                async with client.agent_instance(**AGENT) as run:
                    record(run)
        statistics = client.statistics()
        assert (statistics.pending, statistics.lost, statistics.accepted) == (4, 0, 4)
        assert pending_in(tmp_path) == 4
        assert "4 of 4 Prefactor operations are left in the journal" in caplog.text
        api.away = False
        async with client_of(tmp_path, api):
            pass
        stored = await stored_run(api)
    assert (stored.status, len(stored.spans)) == ("complete", 1)
    assert files_in(tmp_path) == []


@pytest.mark.virtual_time
async def test_what_fails_while_a_client_closes_is_left_with_what_depends_on_it(
    tmp_path: Path,
) -> None:
    """Without a journal it would be given up, and the finish of its run sent without it."""
    async with open_faulty_api() as api:
        with anyio.fail_after(1000):
            async with client_of(tmp_path, api, drain_timeout=60) as client:
                async with client.agent_instance(**AGENT) as run:
                    record(run)
                    await client.flush()
                    api.faults["agent_spans"] = on_create_of("agent:llm", 500)
                    api.faults["bulk"] = [500] * 1000
                    with run.span("agent:llm"):
                        pass
        statistics = client.statistics()
        assert (statistics.pending, statistics.lost) == (2, 0)
        assert (await stored_run(api)).status == "active"
        api.faults.clear()
        async with client_of(tmp_path, api):
            pass
        stored = await stored_run(api)
    assert (stored.status, len(stored.spans)) == ("complete", 2)
    assert files_in(tmp_path) == []


@pytest.mark.virtual_time
async def test_no_token_and_nothing_that_is_redacted_is_in_any_file(tmp_path: Path) -> None:
    async with open_faulty_api() as api:
        refusal = 400, {}, f'{{"code": "no {TOKEN}"}}'.encode()
        api.faults["agent_spans"] = on_create_of("agent:llm", refusal)
        with anyio.fail_after(100):
            async with client_of(tmp_path, api, drain_timeout=1) as client:
                async with client.agent_instance(**AGENT) as run:
                    with run.span("agent:llm", payload={"api_key": "sk-secret", "n": 1}) as span:
                        span.set_result({"password": "sk-secret"})
                    for _ in range(20):
                        await anyio.sleep(1)
                        with run.span("agent:tool"):
                            pass
                    assert client.statistics().dropped == {"refused": 1}
                    api.away = True
                    with run.span("agent:llm", payload={"api_key": "sk-secret", "n": 2}) as span:
                        span.set_result({"password": "sk-secret"})
    written = everything_in(tmp_path)
    assert b"[redacted]" in written
    assert b"refused" in written
    assert b"sk-secret" not in written
    assert TOKEN.encode() not in written


@pytest.mark.parametrize("journal_sync", ["process", "disk"])
async def test_threads_record_into_a_journal(journal_sync: str, tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(50):
            record(r.instance)

    async with recording(journal=tmp_path, journal_sync=journal_sync) as r:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await r.client.flush()
            await anyio.to_thread.run_sync(threads[0].join, 0.01)
    assert len(r.run.spans) == 200
    assert files_in(tmp_path) == []


async def test_two_clients_have_a_folder_in_common(tmp_path: Path) -> None:
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with client_of(tmp_path, api) as first, client_of(tmp_path, api) as second:
                async with first.agent_instance(**AGENT) as one:
                    async with second.agent_instance(**AGENT) as two:
                        for _ in range(20):
                            record(one)
                            record(two)
                        assert len(JournalDirectory(tmp_path).journals()) == 2
            runs = await stored_runs(api)
            assert not api.app.refusals  # type: ignore[attr-defined]
    assert [len(run.spans) for run in runs] == [20, 20]
    assert files_in(tmp_path) == []


# Full files.


async def fill(client: PrefactorCoreClient, run: AgentInstanceHandle) -> int:
    """Record until a span is dropped; return how many were not."""
    count = 0
    while "full" not in client.statistics().dropped:
        record(run, LARGE)
        count += 1
        assert count < 500
    return count - 1


async def test_full_files_drop_new_spans_until_they_are_settled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(20):
        async with open_faulty_api() as api:
            async with client_of(tmp_path, api, journal_max_bytes=LEAST) as client:
                async with client.agent_instance(**AGENT) as run:
                    await client.flush()
                    api.hanging = False
                    count = await fill(client, run)
                    statistics = client.statistics()
                    assert 80 < count < 110
                    assert LEAST <= statistics.journal_bytes < LEAST + 40_000
                    assert (statistics.dropped, statistics.unjournaled) == ({"full": 1}, 0)
                    assert statistics.accepted == (
                        statistics.delivered + statistics.pending + statistics.lost
                    )
                    await client.flush()
                    assert client.statistics().journal_bytes < LEAST
                    for _ in range(10):
                        record(run)
            assert len((await stored_run(api)).spans) == count + 10
    assert client.statistics().dropped == {"full": 1}
    assert "journal_max_bytes is reached" in caplog.text
    assert files_in(tmp_path) == []


async def test_full_files_grow_no_further_in_an_outage(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        async with open_faulty_api() as api:
            async with client_of(
                tmp_path, api, journal_max_bytes=LEAST, drain_timeout=0.01
            ) as client:
                async with client.agent_instance(**AGENT) as run:
                    await client.flush()
                    api.away = True
                    for _ in range(1_000):
                        record(run, LARGE)
                    assert client.statistics().dropped["full"] > 800
                    assert client.statistics().journal_bytes < LEAST + 40_000


@pytest.mark.virtual_time
async def test_full_files_let_new_spans_wait(tmp_path: Path) -> None:
    async with open_faulty_api() as api:
        options: dict[str, Any] = {"journal_max_bytes": LEAST, "queue": {"when_full": "wait"}}
        with anyio.fail_after(1_000):
            async with client_of(tmp_path, api, **options) as client:
                async with client.agent_instance(**AGENT) as run:
                    await client.flush()
                    api.away = True
                    count = 0

                    async def record_all() -> None:
                        nonlocal count
                        for _ in range(150):
                            async with run.span("agent:llm", payload={"prompt": LARGE}):
                                pass
                            count += 1

                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(record_all)
                        await anyio.sleep(60)
                        assert 80 < count < 110
                        assert client.statistics().lost == 0
                        api.away = False
                    assert count == 150
        assert len((await stored_run(api)).spans) == 150
    assert client.statistics().lost == 0
    assert files_in(tmp_path) == []


async def test_no_span_waits_for_room_that_open_spans_alone_have_filled(tmp_path: Path) -> None:
    queue = {"when_full": "wait", "report_after": math.inf}
    with anyio.fail_after(20):
        async with open_faulty_api() as api:
            async with client_of(tmp_path, api, journal_max_bytes=LEAST, queue=queue) as client:
                async with client.agent_instance(**AGENT) as run:
                    await run.start()
                    await client.flush()
                    async with AsyncExitStack() as spans:
                        for _ in range(150):
                            span = run.span("agent:llm", payload={"prompt": LARGE})
                            await spans.enter_async_context(span)
            assert len((await stored_run(api)).spans) == 150
    assert client.statistics().lost == 0


# Files that cannot be written.


async def test_a_full_disk_is_no_matter_to_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with recording(journal=tmp_path) as r:
        record(r.instance)
        with room_in_files(100):
            for _ in range(20):
                record(r.instance)
            await r.client.flush()
    assert len(r.run.spans) == 21
    statistics = r.client.statistics()
    assert statistics.unjournaled == 21  # with the finish of the run
    assert statistics.accepted == statistics.delivered
    assert len([line for line in caplog.messages if "in memory only" in line]) == 1
    assert files_in(tmp_path) == []


async def test_a_folder_that_vanishes_is_no_matter_to_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "journals"
    async with recording(journal=folder) as r:
        record(r.instance)
        await r.client.flush()
        shutil.rmtree(folder)
        for _ in range(20):
            record(r.instance)
        await r.client.flush()
        record(r.instance)
    assert len(r.run.spans) == 22
    assert len([line for line in caplog.messages if "in memory only" in line]) == 1
    assert not folder.exists()


async def test_what_a_vanished_journal_had_is_no_longer_left_for_anybody(tmp_path: Path) -> None:
    folder = tmp_path / "journals"
    with anyio.fail_after(10):
        async with open_faulty_api() as api:
            async with client_of(folder, api, drain_timeout=0.01) as client:
                async with client.agent_instance(**AGENT) as run:
                    await client.flush()
                    api.away = True
                    record(run)
                    shutil.rmtree(folder)
    statistics = client.statistics()
    assert (statistics.pending, statistics.dropped) == (0, {"drain_timeout": 2})


async def test_a_folder_that_cannot_be_made_is_no_matter_to_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with room_in_files(0):
        (tmp_path / "file").touch()
        async with recording(journal=tmp_path / "file" / "journals") as r:
            record(r.instance)
    assert len(r.run.spans) == 1
    assert "what this client records is in memory only" in caplog.text


@pytest.mark.parametrize("journal_sync", ["process", "disk"])
async def test_flush_and_exit_work_in_both_modes(
    journal_sync: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "prefactor_core")
    async with recording(journal=tmp_path, journal_sync=journal_sync) as r:
        for _ in range(5):
            record(r.instance)
            await r.client.flush()
    assert caplog.messages == []
    assert files_in(tmp_path) == []


# Interruptions.


class Alarm(BaseException):
    """What a signal handler raises."""


def sound() -> None:
    raise Alarm


def a_block(run: AgentInstanceHandle) -> None:
    record(run)


def a_block_in_a_block(run: AgentInstanceHandle) -> None:
    with run.span("agent:run"), run.span("agent:llm", payload={"prompt": "?"}) as span:
        span.set_result({"answer": "!"})


def a_block_that_is_skipped(run: AgentInstanceHandle) -> None:
    with run.span("agent:llm", payload={"prompt": "?"}) as span:
        span.cancel_nowait()


@pytest.mark.parametrize("step", [a_block, a_block_in_a_block, a_block_that_is_skipped])
async def test_a_step_that_is_interrupted_anywhere_leaves_nothing_in_the_journal(
    step: Callable[[AgentInstanceHandle], None], tmp_path: Path
) -> None:
    def agent() -> int:
        at, goes_on = 0, True
        while goes_on:
            at += 1
            try:
                with in_the_middle(at, sound):
                    step(r.instance)
                goes_on = False
            except Alarm:
                pass
            with r.instance.span("agent:tool"):
                pass
            # Nothing is open: a reader must find the same.
            [path] = JournalDirectory(tmp_path).journals()
            reader = JournalReader(path)
            for _ in reader.scan():
                pass
            assert [*reader.state.open_spans()] == []
            keys = [key for entry in reader.entries() for key in entry.keys]
            assert len(keys) == len(set(keys))
        return at

    async with recording(journal=tmp_path) as r:
        assert copy_context().run(agent) > 50
        statistics = r.client.statistics()
        assert statistics.pending == pending_in(tmp_path)
    assert not r.api.app.refusals  # type: ignore[attr-defined]
    assert files_in(tmp_path) == []
