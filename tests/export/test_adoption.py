"""Adoption: what dead processes left in a folder is delivered by the next client that has it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.dying import dying
from support.harness import (
    AGENT,
    Call,
    FaultyApi,
    make_config,
    open_faulty_api,
    stored_run,
    stored_runs,
)
from support.journal_files import start

from prefactor_core import PrefactorCoreClient, PrefactorValidationError, open_prefactor
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import VERSION, Kind, encode, frame
from prefactor_core.operations.identifiers import generate

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


@asynccontextmanager
async def adopting(
    folder: Path, api: FaultyApi, seconds: float = 5.0, **options: Any
) -> AsyncGenerator[PrefactorCoreClient]:
    """A client that has ``folder``; the block begins when it has had time to adopt."""
    config = make_config(journal=folder, **options)
    with anyio.fail_after(10_000):
        async with open_prefactor(config, asgi_app=api) as client:
            await anyio.sleep(seconds)
            yield client


async def die_in_a_span(folder: Path, api: FaultyApi, spans: int = 0, **options: Any) -> None:
    """Die in a span of a run, after others that are not delivered."""
    async with dying(folder, api, **options) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        api.away = True
        for n in range(spans):
            with instance.span("agent:tool", payload={"n": n}):
                pass
        instance.span("agent:run").__enter__()
    api.away = False


def left(folder: Path) -> list[str]:
    """The files in the journals, without the locks."""
    return sorted(file.name for file in folder.glob("*/*") if file.name != "lock")


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/0*.log"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*/*")}


def the_file(folder: Path) -> Path:
    (file,) = folder.glob("*/*.log")
    return file


def warnings(caplog: pytest.LogCaptureFixture, part: str = "") -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and part in record.getMessage()
    ]


async def test_the_next_client_delivers_what_a_dead_one_left_and_ends_what_was_open(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    await die_in_a_span(folder, api, spans=3)
    caplog.clear()
    async with adopting(folder, api) as client:
        pass
    run = await stored_run(api)
    tools = [("agent:tool", "complete", [])] * 3
    assert run.shape == ("failed", [*tools, ("agent:run", "failed", [])])
    assert run.named("agent:run").result["error"]["type"] == "process_died"
    assert left(folder) == []
    assert warnings(caplog) == []
    # What the dead client recorded is not the living one's: three spans, and two ends.
    statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered, statistics.adopted) == (0, 0, 5)
    (said,) = [text for text in caplog.messages if text.startswith("delivered ")]
    assert said.startswith(f"delivered 5 operations that process {os.getpid()} on ")
    assert said.endswith(", with the ends of 1 spans and 1 runs that it left open")


async def test_a_process_that_dies_later_is_adopted_by_a_client_that_lives(
    folder: Path, api: FaultyApi
) -> None:
    async with adopting(folder, api):
        await die_in_a_span(folder, api)
        await anyio.sleep(40.0)
        assert (await stored_run(api)).status == "failed"


async def test_several_dead_journals_are_delivered_one_after_another(
    folder: Path, api: FaultyApi
) -> None:
    for n in range(4):
        await die_in_a_span(folder, api, spans=n)
    async with adopting(folder, api):
        pass
    runs = await stored_runs(api)
    assert [(run.status, len(run.spans)) for run in runs] == [("failed", n + 1) for n in range(4)]
    assert left(folder) == []


async def test_a_run_that_was_refused_to_its_caller_does_not_keep_a_journal_from_its_end(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        api.faults["register"] = 422
        with pytest.raises(PrefactorValidationError):
            await client.create_agent_instance(**AGENT)
        api.faults.clear()
    caplog.clear()
    async with adopting(folder, api):
        pass
    run = await stored_run(api)
    assert run.status == "failed"
    assert left(folder) == []
    assert caplog.messages == []


async def test_a_child_of_a_dropped_span_keeps_its_place_over_many_files(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    queue = {"report_after": math.inf, "max_pending_operations": 3}
    async with dying(folder, api, journal_max_bytes=1_000_000, queue=queue) as client:
        instance = await client.create_agent_instance(**AGENT)
        outer, dropped = instance.span("agent:run").__enter__(), instance.span("agent:tool")
        await outer.start()
        await client.flush()
        api.away = True
        for _ in range(3):
            with instance.span("agent:tool"):
                pass
        dropped.__enter__()
        await dropped.start()
        assert client.statistics().dropped == {"full": 1}
        child = instance.span("agent:llm").__enter__()
        api.away = False
        for _ in range(100):
            await client.flush()
            with instance.span("agent:tool", payload={"text": "x" * 9_000}):
                pass
        await client.flush()
    assert "000001.log" not in left(folder)
    caplog.clear()
    async with adopting(folder, api):
        pass
    run = await stored_run(api)
    assert (run.named("agent:llm").id, run.named("agent:llm").parent_id) == (child.id, outer.id)
    assert warnings(caplog) == []


async def test_a_run_that_a_full_buffer_dropped_does_not_keep_a_journal_from_its_end(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with dying(folder, api, queue={"max_pending_operations": 5}) as client:
        api.away = True
        instance = await client.create_agent_instance(**AGENT)
        for _ in range(5):
            with instance.span("agent:tool"):
                pass
        dropped = await client.create_agent_instance(**AGENT)
        await dropped.start()
        await dropped.finish()
        assert client.statistics().dropped["full"] > 0
    api.away = False
    caplog.clear()
    async with adopting(folder, api):
        pass
    assert (await stored_run(api)).status == "failed"
    assert left(folder) == ["refused.log"]
    assert warnings(caplog, "left alone") == []


async def test_a_run_without_its_registration_does_not_keep_a_journal_from_its_end(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    await die_in_a_span(folder, api, spans=1)
    (file,) = segments(folder)
    # As if the disk had been full when the run was registered.
    unknown = start(generate(0))
    file.write_bytes(file.read_bytes() + frame(10_000, Kind.OPERATION, encode(unknown)))
    caplog.clear()
    async with adopting(folder, api):
        pass
    assert (await stored_run(api)).status == "failed"
    assert left(folder) == ["refused.log"]
    assert warnings(caplog, "left alone") == []


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_operations_of_another_account_are_left_alone_with_one_warning(
    folder: Path, api: FaultyApi, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    await die_in_a_span(folder, api, spans=2)
    (dead,) = await stored_runs(api)

    def refuse(call: Call) -> int | None:
        return status if dead.id in f"{call.path} {call.body}" else None

    for _ in range(2):
        caplog.clear()
        api.faults = {"agent_spans": refuse}
        async with adopting(folder, api, seconds=0.0, drain_timeout=60.0) as client:
            async with client.agent_instance(**AGENT) as instance:
                for _ in range(100):
                    async with instance.span("agent:tool"):
                        await anyio.sleep(1.0)
        assert client.statistics().lost == 0
        (warning,) = warnings(caplog, "is left alone")
        assert str(status) in warning
        # If it was refused several times in a row, that looked like an outage for a moment.
        assert len(warnings(caplog)) <= 2
        assert left(folder) != []
        assert "refused.log" not in left(folder)
    api.faults.clear()
    async with adopting(folder, api):
        pass
    assert [run.status for run in await stored_runs(api)] == ["failed", "complete", "complete"]
    assert left(folder) == []


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_client_with_a_wrong_token_leaves_all_to_the_next_one_with_one_line(
    folder: Path, api: FaultyApi, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await die_in_a_span(folder, api, spans=2)
    caplog.clear()
    api.faults["*"] = status
    async with adopting(folder, api, seconds=1_000.0, drain_timeout=600.0):
        began = anyio.current_time()
    assert anyio.current_time() - began < 5.0
    assert len(warnings(caplog)) == 1
    assert "refused.log" not in left(folder)
    api.faults.clear()
    async with adopting(folder, api):
        pass
    assert [run.status for run in await stored_runs(api)] == ["failed", "failed"]
    assert left(folder) == []


async def test_a_journal_of_another_api_is_left_as_it_is(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"api_url": "http://another.invalid"}
    await die_in_a_span(folder, api, http=other)
    before = bytes_of(folder)
    caplog.clear()
    async with adopting(folder, api):
        pass
    assert bytes_of(folder) == before
    assert warnings(caplog) == []
    async with adopting(folder, api, http=other):
        pass
    assert left(folder) == []


async def test_a_journal_of_a_living_process_is_left_as_it_is(folder: Path, api: FaultyApi) -> None:
    async with open_prefactor(make_config(journal=folder), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                async with adopting(folder, api, seconds=100.0):
                    # Who adopts a journal begins another file in it.
                    assert left(folder) == ["000001.log", "000001.log"]
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])


async def test_a_journal_of_a_later_version_is_left_as_it_is_with_one_warning(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    await die_in_a_span(folder, api)
    file = the_file(folder)
    body = b'{"version":%d,"api_url":"http://prefactor.invalid","new":1}' % (VERSION + 1)
    file.write_bytes(frame(1, Kind.HEADER, body) + frame(2, Kind.BEAT, b"1"))
    before = bytes_of(folder)
    caplog.clear()
    async with adopting(folder, api, seconds=100.0):
        pass
    assert bytes_of(folder) == before
    (warning,) = warnings(caplog)
    assert "update prefactor_core" in warning


async def test_a_journal_that_is_not_readable_at_all_is_left_with_one_warning(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    await die_in_a_span(folder, api)
    file = the_file(folder)
    file.write_bytes(bytes(10_000))
    before = bytes_of(folder)
    caplog.clear()
    async with adopting(folder, api, seconds=200.0):
        pass
    assert bytes_of(folder) == before
    assert len(warnings(caplog)) == 1


async def test_closing_goes_on_with_an_adoption_while_the_api_answers(
    folder: Path, api: FaultyApi
) -> None:
    await die_in_a_span(folder, api, spans=50)
    queue = {"max_batch_operations": 5}
    async with adopting(folder, api, seconds=0.0, queue=queue, drain_timeout=60.0):
        pass
    assert (await stored_run(api)).status == "failed"
    assert left(folder) == []


async def test_closing_ends_an_adoption_at_once_while_the_api_is_away(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    await die_in_a_span(folder, api, spans=5)
    api.away = True
    async with adopting(folder, api, drain_timeout=600.0):
        began = anyio.current_time()
    assert anyio.current_time() - began < 5.0
    assert left(folder) != []
    assert "delivered" not in caplog.text
    api.away = False
    async with adopting(folder, api):
        pass
    assert (await stored_run(api)).status == "failed"


async def test_an_api_that_hangs_keeps_nobody_from_closing(folder: Path, api: FaultyApi) -> None:
    await die_in_a_span(folder, api, spans=5)
    api.hanging = True
    async with adopting(folder, api, drain_timeout=2.0):
        began = anyio.current_time()
    assert anyio.current_time() - began <= 2.1
    api.hanging = False
    async with adopting(folder, api):
        pass
    assert (await stored_run(api)).status == "failed"


async def test_one_outage_has_one_warning_although_an_adoption_waits_as_well(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    for _ in range(2):
        await die_in_a_span(folder, api, spans=20)
    caplog.clear()
    api.away = True
    async with adopting(folder, api, seconds=0.0, drain_timeout=600.0) as client:
        async with client.agent_instance(**AGENT) as instance:
            for _ in range(20):
                async with instance.span("agent:tool"):
                    await anyio.sleep(10.0)
        assert len(warnings(caplog)) == 1
        api.away = False
        await client.flush()
        await anyio.sleep(100.0)
    assert len(warnings(caplog)) == 1
    assert len([text for text in caplog.messages if "accepts operations again" in text]) == 1
    assert [run.status for run in await stored_runs(api)] == ["failed", "failed", "complete"]
    assert left(folder) == []


async def test_an_adoption_that_is_cancelled_natively_releases_the_lock_and_is_taken_up_again(
    folder: Path, api: FaultyApi, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        return  # trio cancels no single task
    await die_in_a_span(folder, api, spans=5)
    api.hanging = True
    async with adopting(folder, api, drain_timeout=100.0):
        assert list(filter(None, JournalDirectory(folder).abandoned())) == []
        own = asyncio.current_task()
        for task in asyncio.all_tasks() - {own}:
            if task.get_name().startswith("prefactor-core-worker"):
                task.cancel()
        await anyio.sleep(0.001)
        (hold,) = filter(None, JournalDirectory(folder).abandoned())
        hold.release()
        api.hanging = False
        await anyio.sleep(100.0)
        assert (await stored_run(api)).status == "failed"
    assert left(folder) == []
