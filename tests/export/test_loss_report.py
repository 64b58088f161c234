"""LossReport: one line when a loss begins, one a minute while it goes on, one when it is over."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus
from support.harness import AGENT, make_config, open_faulty_api

from prefactor_core import open_prefactor
from prefactor_core.export.counters import Counters
from prefactor_core.export.loss_report import LossReport
from prefactor_core.queue.event_loop import EventLoop

WEEK = 7 * 24 * 3_600.0

virtual_time = pytest.mark.virtual_time


class Losses:
    """A report that is served, and the counters that it counts by."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.counters = Counters()
        self.event_loop = EventLoop.here()
        self.report = LossReport(self.counters, self.event_loop)
        self._caplog = caplog
        self._read = 0

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        await self.report.serve()

    def drop(self, reason: str = "refused", count: int = 1, detail: str | None = None) -> None:
        for _ in range(count):
            self.counters.drop(reason, 1, 0)
            self.report.dropped(reason, detail)

    def said(self) -> list[str]:
        """The lines since the last time, each with its level."""
        records = self._caplog.records[self._read :]
        self._read += len(records)
        return [f"{record.levelname} {record.getMessage()}" for record in records]


@asynccontextmanager
async def served(caplog: pytest.LogCaptureFixture) -> AsyncGenerator[Losses]:
    caplog.set_level(logging.INFO, "prefactor_core")
    losses = Losses(caplog)
    async with anyio.create_task_group() as tasks:
        await tasks.start(losses.serve)
        yield losses
        losses.report.close()


BEGINS = (
    "WARNING Prefactor: operations are dropped (refused): the Prefactor API refuses them. "
    "More of it is counted, and said once a minute"
)
OVER = "INFO Prefactor: no longer: operations are dropped (refused)"


def more(count: int, what: str = "operations are dropped (refused)") -> str:
    return f"WARNING Prefactor: {what}: {count} more in the last 60 s"


# An episode


@virtual_time
async def test_a_loss_is_said_when_it_begins_and_then_once_a_minute_with_the_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(caplog) as losses:
        losses.drop(count=100)
        assert losses.said() == [BEGINS]
        await anyio.sleep(61)
        assert losses.said() == [more(99)]  # the others of the moment in which it began
        for count in (1, 2, 3):
            losses.drop(count=count)
            await anyio.sleep(58)
            assert losses.said() == []
            await anyio.sleep(2)
            assert losses.said() == [more(count)]


@virtual_time
async def test_a_loss_is_said_to_be_over_once_a_minute_has_passed_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(caplog) as losses:
        losses.drop(count=2)
        await anyio.sleep(61)
        assert losses.said() == [BEGINS, more(1)]
        await anyio.sleep(60)
        assert losses.said() == [OVER]
        await anyio.sleep(600)
        assert losses.said() == []


@virtual_time
async def test_a_single_drop_is_said_twice(caplog: pytest.LogCaptureFixture) -> None:
    async with served(caplog) as losses:
        losses.drop()
        await anyio.sleep(600)
        assert losses.said() == [BEGINS, OVER]


@virtual_time
async def test_a_loss_a_week_later_is_a_new_one(caplog: pytest.LogCaptureFixture) -> None:
    async with served(caplog) as losses:
        for _ in range(3):
            losses.drop(count=3)
            await anyio.sleep(61)
            assert losses.said() == [BEGINS, more(2)]
            await anyio.sleep(WEEK)
            assert losses.said() == [OVER]


@virtual_time
async def test_a_relay_says_where_its_refused_operations_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(caplog) as losses:
        report = LossReport(losses.counters, losses.event_loop, "kept aside for `relay refused`")
        report.dropped("refused", "it is given up")
        (said,) = losses.said()
    assert "operations are kept aside for `relay refused` (refused): it is given up." in said


@virtual_time
async def test_each_reason_has_an_episode_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    async with served(caplog) as losses:
        losses.drop("refused", 2)
        await anyio.sleep(30)
        losses.drop("full", 3)
        full = losses.said()[-1]
        assert "max_pending_operations, max_pending_bytes or journal_max_bytes is reached" in full
        await anyio.sleep(31)
        assert losses.said() == [more(1), more(2, "operations are dropped (full)")]
        losses.drop("full")
        await anyio.sleep(60)
        assert losses.said() == [OVER, more(1, "operations are dropped (full)")]


@virtual_time
async def test_the_line_says_which_operation_and_why_where_that_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(caplog) as losses:
        losses.drop("retries_exhausted", detail="FINISH_SPAN of run is given up: 500")
        (line,) = losses.said()
        assert "(retries_exhausted): FINISH_SPAN of run is given up: 500." in line
        losses.drop("of a kind that nobody knows")
        (line,) = losses.said()
        assert "of a kind that nobody knows" in line


@virtual_time
async def test_spans_without_their_parent_are_said_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    what = "spans are kept without the parent that they were given"
    async with served(caplog) as losses:
        for number in range(3):
            losses.report.kept_without_parent(f"CREATE_SPAN of {number}")
        (line,) = losses.said()
        assert line.startswith(f"WARNING Prefactor: {what}: CREATE_SPAN of 0.")
        await anyio.sleep(61)
        assert losses.said() == [more(2, what)]
        await anyio.sleep(60)
        assert losses.said() == [f"INFO Prefactor: no longer: {what}"]


# Other threads


async def test_a_loss_in_other_threads_is_said_once_by_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = Losses(caplog)

    def drop() -> None:
        for _ in range(100):
            with losses.event_loop.lock:
                losses.counters.drop_new("full")
                losses.report.dropped_in_any_thread("full")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(anyio.to_thread.run_sync, drop)
    await anyio.wait_all_tasks_blocked()
    assert len(losses.said()) == 1


@virtual_time
async def test_all_of_a_burst_is_counted_also_what_was_lost_before_its_first_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(caplog) as losses:
        for _ in range(100):
            losses.counters.drop_new("full")
            losses.report.dropped_in_any_thread("full")
        assert losses.said() == []
        await anyio.sleep(61)
        begins, minute = losses.said()
        assert "(full)" in begins
        assert minute == more(99, "operations are dropped (full)")


# The end


@virtual_time
async def test_a_loss_that_begins_in_the_drain_is_still_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(caplog) as losses:
        losses.report.close()
        await anyio.wait_all_tasks_blocked()
        losses.drop(count=2)
        assert losses.said() == [BEGINS]
    assert losses.said() == []


@virtual_time
async def test_closing_waits_for_no_minute(caplog: pytest.LogCaptureFixture) -> None:
    before = anyio.current_time()
    async with served(caplog) as losses:
        losses.drop(count=2)
        await anyio.sleep(1)
    assert anyio.current_time() - before == pytest.approx(1)
    assert losses.said() == [BEGINS]


@virtual_time
async def test_a_worker_that_takes_over_goes_on_with_the_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The worker before it was cancelled by somebody: it may have been in the middle of a pause.
    caplog.set_level(logging.INFO, "prefactor_core")
    losses = Losses(caplog)
    for when in (0, 30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(losses.report.serve)
            await anyio.sleep(when)
            losses.drop()
            await anyio.sleep(10)
            tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(losses.report.serve)
        await anyio.sleep(61)
        assert losses.said() == [BEGINS, more(1)]
        await anyio.sleep(61)
        assert losses.said() == [OVER]
        losses.report.close()


# In a client


@virtual_time
async def test_a_client_that_is_full_says_so_each_time_that_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core.export.loss_report")
    queue: dict[str, Any] = {"max_pending_operations": 10}
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(queue=queue), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            await instance.start()
            for _ in range(2):
                for _ in range(30):
                    async with instance.span("agent:llm"):
                        pass
                await client.flush()
                await anyio.sleep(WEEK)
            await instance.finish()
    said = [r.levelname for r in caplog.records if r.name.endswith("loss_report")]
    assert said == ["WARNING", "WARNING", "INFO"] * 2
    assert client.statistics().dropped.keys() == {"full"}
