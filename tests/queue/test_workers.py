"""Workers: tasks that outlive the body of their scope, on virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest

from prefactor_core.queue.workers import Workers

virtual_time = pytest.mark.virtual_time


class Service:
    """Items that workers serve until it is closed and empty; what went on, with its time.

    ``seconds``: for each item. ``errors``: raised instead, one by one.
    """

    def __init__(
        self, *items: int, seconds: float = 1.0, errors: list[Exception] | None = None
    ) -> None:
        self.items = list(items)
        self.seconds = seconds
        self.errors = errors or []
        self.done: list[int] = []
        self.calls: list[tuple[float, int]] = []
        self.closed = anyio.Event()

    async def serve(self, number: int) -> None:
        self.calls.append((anyio.current_time(), number))
        while True:
            if self.errors:
                raise self.errors.pop(0)
            if self.items:
                await anyio.sleep(self.seconds)
                self.done.append(self.items.pop(0))
            elif self.closed.is_set():
                return
            else:
                await self.closed.wait()

    async def close(self) -> None:
        self.closed.set()

    def workers(self, *, count: int = 1, drain_timeout: float = 60.0) -> Workers:
        jobs = [partial(self.serve, number) for number in range(count)]
        return Workers(jobs, self.close, drain_timeout=drain_timeout)


@virtual_time
async def test_each_worker_serves_with_its_number_until_what_it_serves_is_closed() -> None:
    service = Service()
    async with service.workers(count=3):
        assert not service.closed.is_set()
    assert sorted(number for _, number in service.calls) == [0, 1, 2]
    assert service.closed.is_set()


@virtual_time
async def test_what_is_left_when_the_body_ends_is_still_served() -> None:
    service = Service(1, 2, 3)
    before = anyio.current_time()
    async with service.workers():
        assert service.done == []
    assert service.done == [1, 2, 3]
    assert anyio.current_time() - before == pytest.approx(3)


class Connection:
    """What jobs need: it serves until it is cancelled. ``ended``: when, by the clock."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    async def serve(self) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            self.ended.append(anyio.current_time())

    def workers(self, service: Service, *, drain_timeout: float = 60.0) -> Workers:
        jobs = [partial(service.serve, 0)]
        background = [self.serve, self.serve]
        return Workers(jobs, service.close, drain_timeout=drain_timeout, background=background)


@virtual_time
@pytest.mark.parametrize(("drain_timeout", "seconds"), [(60.0, 3.0), (2.5, 2.5)])
async def test_jobs_in_the_background_end_with_the_others(
    drain_timeout: float, seconds: float
) -> None:
    service, connection = Service(1, 2, 3), Connection()
    before = anyio.current_time()
    async with connection.workers(service, drain_timeout=drain_timeout):
        pass
    assert [end - before for end in connection.ended] == pytest.approx([seconds, seconds])
    assert len(service.done) == int(seconds)


@virtual_time
@pytest.mark.parametrize(
    "make_error",
    [lambda: RuntimeError("a bug"), lambda: KeyError("a bug"), lambda: RecursionError("a bug")],
    ids=["RuntimeError", "KeyError", "RecursionError"],
)
async def test_a_worker_survives_what_it_did_not_expect_and_serves_again_after_a_while(
    make_error: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(1, 2, errors=[make_error(), make_error()])
    async with service.workers():
        pass
    assert service.done == [1, 2]
    times = [time for time, _ in service.calls]
    first, second = (after - before for before, after in pairwise(times))
    assert 0.75 <= first <= 1.25
    assert 1.5 <= second <= 2.5
    records = [r for r in caplog.records if r.name == "prefactor_core.queue.workers"]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    assert "an unexpected error" in records[0].getMessage()
    assert records[0].exc_info is not None  # a bug of ours deserves its traceback


@virtual_time
async def test_a_worker_that_fails_for_ever_lets_the_loop_and_the_clock_go_on() -> None:
    calls = 0

    async def serve() -> None:
        nonlocal calls
        calls += 1
        raise OSError("the disk is gone")

    async def close() -> None: ...

    before = anyio.current_time()
    async with Workers([serve], close, drain_timeout=30):
        # On virtual time this ends only if the worker waits and does not spin.
        await anyio.sleep(10)
    assert 2 <= calls <= 10
    assert anyio.current_time() - before == pytest.approx(40)


@virtual_time
@pytest.mark.parametrize("cancelled", [False, True], ids=["in peace", "under a cancellation"])
async def test_the_drain_takes_no_longer_than_its_time_out(cancelled: bool) -> None:
    service = Service(1, 2, seconds=4)
    before = anyio.current_time()
    with anyio.CancelScope() as outer:
        async with service.workers(drain_timeout=5):
            if cancelled:
                outer.cancel()
                await anyio.sleep_forever()
    assert outer.cancelled_caught == cancelled
    assert service.done == [1]
    assert anyio.current_time() - before == pytest.approx(5)


@virtual_time
async def test_a_cancellation_from_outside_reaches_the_body_and_not_the_workers() -> None:
    service = Service(1, 2, 3)
    with anyio.CancelScope() as outer:
        async with service.workers():
            outer.cancel()
            await anyio.sleep_forever()
    assert outer.cancelled_caught
    assert service.done == [1, 2, 3]
    assert len(service.calls) == 1


@virtual_time
@pytest.mark.parametrize("cancelled", [False, True], ids=["in peace", "under a cancellation"])
async def test_the_bodys_exception_leaves_as_the_same_object(cancelled: bool) -> None:
    error = ValueError("mine")
    service = Service(1)
    with pytest.raises(ValueError, match="mine") as caught, anyio.CancelScope() as outer:
        async with service.workers():
            if cancelled:
                outer.cancel()
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert service.done == [1]


@virtual_time
async def test_what_cannot_be_closed_is_served_until_the_drain_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(1)

    async def close() -> None:
        raise OSError("cannot be closed")

    before = anyio.current_time()
    async with Workers([partial(service.serve, 0)], close, drain_timeout=5):
        pass
    assert service.done == [1]
    assert anyio.current_time() - before == pytest.approx(5)
    assert "a queue could not be closed" in caplog.text


@virtual_time
@pytest.mark.parametrize("when", ["in the body", "in the drain"])
async def test_a_cancellation_that_a_job_has_kept_and_raises_again_ends_no_worker(
    when: str,
) -> None:
    kept: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except BaseException as error:
            kept.append(error)
            raise
    service = Service(1, 2)

    async def serve() -> None:
        if when == "in the drain":
            await service.closed.wait()
        if kept:
            raise kept.pop()
        await service.serve(0)

    with anyio.fail_after(20):
        async with Workers([serve], service.close, drain_timeout=5):
            await anyio.sleep(10)
            assert service.done == ([1, 2] if when == "in the body" else [])
    assert service.done == [1, 2]


@virtual_time
async def test_workers_do_not_inherit_the_context_of_the_body() -> None:
    variable = ContextVar("variable", default="outside")
    variable.set("inside the block")
    seen: list[str] = []

    async def serve() -> None:
        seen.append(variable.get())

    async def close() -> None: ...

    async with Workers([serve], close, drain_timeout=1):
        pass
    # Once as the scope opens, once more for the drain.
    assert seen == ["outside"] * 2


@virtual_time
async def test_workers_are_entered_once() -> None:
    workers = Service().workers()
    async with workers:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await workers.__aenter__()


def cancel_workers() -> None:
    for task in asyncio.all_tasks():
        if task.get_name().startswith("prefactor-core-worker"):
            task.cancel()


@pytest.mark.parametrize("when", ["in the body", "in the drain"])
def test_a_worker_that_was_cancelled_natively_is_called_again_for_the_drain(when: str) -> None:
    async def main() -> None:
        service = Service(1, 2, 3, seconds=0.001)

        async def close() -> None:
            await service.close()
            if when == "in the drain":
                cancel_workers()

        with anyio.fail_after(5):
            async with Workers([partial(service.serve, 0)], close, drain_timeout=5):
                await anyio.lowlevel.checkpoint()
                if when == "in the body":
                    cancel_workers()
        assert service.done == [1, 2, 3]
        assert [number for _, number in service.calls] == [0, 0]

    asyncio.run(main())


@pytest.mark.parametrize("when", ["in the body", "in the drain"])
def test_a_job_in_the_background_that_was_cancelled_natively_serves_the_drain(when: str) -> None:
    async def main() -> None:
        service, connection = Service(1, seconds=0.2), Connection()

        async def close() -> None:
            await service.close()
            if when == "in the drain":
                cancel_workers()

        background = [connection.serve]
        with anyio.fail_after(5):
            async with Workers(
                [partial(service.serve, 0)], close, drain_timeout=5, background=background
            ):
                await anyio.lowlevel.checkpoint()
                if when == "in the body":
                    cancel_workers()
        assert service.done == [1]
        assert len(connection.ended) == 2  # the cancelled one, and the one for the drain
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_what_always_raises_a_cancellation_ends_with_the_scope() -> None:
    async def main() -> None:
        async def serve() -> None:
            raise asyncio.CancelledError

        async def close() -> None: ...

        with anyio.fail_after(5):
            async with Workers([serve, serve], close, drain_timeout=1):
                await anyio.lowlevel.checkpoint()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
