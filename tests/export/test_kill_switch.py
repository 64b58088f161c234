"""The kill switch: a run that the API terminates stops, and everything else goes on."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from support.harness import (
    AGENT,
    Answer,
    Call,
    FaultyApi,
    StoredRun,
    make_config,
    open_faulty_api,
    stored_run,
    stored_runs,
    terminate,
)
from support.virtual_time import VirtualTimeLoop

from prefactor_core import (
    AgentInstanceHandle,
    InMemoryQueue,
    Operation,
    PrefactorCoreClient,
    PrefactorTerminatedError,
    PrefactorValueError,
    open_prefactor,
)
from prefactor_core.agent.instance import context_runs
from prefactor_core.export.termination import NO_REASON, Termination
from prefactor_core.operations import StartAgentInstance
from prefactor_core.operations.identifiers import generate, partition_of

pytestmark = pytest.mark.virtual_time

REASON = "over budget"
POLL = 5.0
# The ways in which the client learns of it, and the options for each.
WAYS: dict[str, dict[str, Any]] = {
    "in bulk": {},
    "by single calls": {"queue": {"max_batch_operations": 1}},
    "by the poll": {"termination_poll_interval": POLL},
}


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


@asynccontextmanager
async def opened(api: FaultyApi, **options: Any) -> AsyncGenerator[PrefactorCoreClient]:
    """A client that loses nothing, and counts everything."""
    with anyio.fail_after(1000):
        client = open_prefactor(make_config(**options), asgi_app=api)
        try:
            async with client:
                yield client
        finally:
            statistics = client.statistics()
            assert (statistics.lost, statistics.pending) == (0, 0)
            assert statistics.accepted == statistics.delivered
            assert statistics.last_error is None


async def kill(api: FaultyApi, client: PrefactorCoreClient, instance: AgentInstanceHandle) -> None:
    """Terminate the run; the client learns of it with its next span, or by polling."""
    await client.flush()
    await terminate(api, instance.id, REASON)


def record(instance: AgentInstanceHandle) -> None:
    """Two spans, whose answers tell: more than one operation goes in bulk."""
    for _ in range(2):
        with instance.span("agent:llm"):
            pass


async def hear(api: FaultyApi, client: PrefactorCoreClient, instance: AgentInstanceHandle) -> None:
    """Return when the run was terminated and the client knows, as a body that did not notice."""
    await kill(api, client, instance)
    record(instance)
    heard = anyio.Event()
    instance.on_terminate(lambda reason: heard.set())
    with anyio.CancelScope(shield=True):
        await heard.wait()


def assert_terminated(run: StoredRun) -> None:
    assert (run.status, run.termination_reason) == ("terminated", REASON)
    assert {span.status for span in run.spans.values()} <= {"complete", "failed", "cancelled"}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The scope.


@pytest.mark.parametrize("way", WAYS)
async def test_a_terminated_run_is_cancelled_and_one_error_says_why(
    api: FaultyApi, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    async with opened(api, **WAYS[way]) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                instance.on_terminate(seen.append)
                async with instance.span("agent:run") as span:
                    await span.start()
                    await kill(api, client, instance)
                    assert instance.terminated is None
                    if way != "by the poll":
                        record(instance)
                    try:
                        await anyio.sleep_forever()
                    finally:
                        seen.append("finally")
        assert instance.terminated == REASON
    error = caught.value
    assert (error.reason, error.instance_id) == (REASON, instance.id)
    assert str(error) == f"Prefactor has terminated agent instance {instance.id}: {REASON}"
    # Nothing but the cancellation was before it, which nobody has to read.
    assert error.__suppress_context__
    assert seen == [REASON, "finally"]
    run = await stored_run(api)
    assert_terminated(run)
    assert run.named("agent:run").status == "cancelled"
    assert bool([call for call in api.calls if call.items]) == (way != "by single calls")
    assert bool(polls(api)) == (way == "by the poll")
    assert warnings(caplog) == [
        f"the Prefactor API has terminated agent instance {instance.id}: {REASON}"
    ]


async def test_an_api_without_bulk_stops_a_run_as_well() -> None:
    async with open_faulty_api() as api:
        api.faults["bulk"] = 404
        client = open_prefactor(make_config(), asgi_app=api)
        with anyio.fail_after(100), pytest.raises(PrefactorTerminatedError):
            async with client, client.agent_instance(**AGENT) as instance:
                record(instance)
                await kill(api, client, instance)
                record(instance)
                await anyio.sleep_forever()
        assert client.statistics().lost == 0
        assert_terminated(await stored_run(api))


async def test_a_poll_hears_of_a_termination_within_its_interval(api: FaultyApi) -> None:
    async with opened(api, termination_poll_interval=POLL) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                before = anyio.current_time()
                await anyio.sleep_forever()
        assert 0 < anyio.current_time() - before <= POLL


async def test_all_tasks_of_the_body_are_cancelled(api: FaultyApi) -> None:
    unwound: list[int] = []

    async def work(instance: AgentInstanceHandle, number: int) -> None:
        async with instance.span("agent:tool") as span:
            await span.start()
            try:
                await anyio.sleep_forever()
            finally:
                unwound.append(number)

    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"), anyio.create_task_group() as tasks:
                    async with anyio.create_task_group() as inner:
                        for number in range(3):
                            tasks.start_soon(work, instance, number)
                            inner.start_soon(work, instance, 3 + number)
                        await kill(api, client, instance)
                        record(instance)
    assert sorted(unwound) == list(range(6))
    run = await stored_run(api)
    assert_terminated(run)
    (root,) = (root for root in run.roots if root.name == "agent:run")
    tools = [("agent:tool", "cancelled", [])] * 6
    assert [child.shape for child in root.children if child.name == "agent:tool"] == tools
    assert root.status == "cancelled"


async def test_a_body_that_swallows_the_cancellation_does_not_hide_the_termination(
    api: FaultyApi,
) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                record(instance)
                with suppress(BaseException):
                    await anyio.sleep_forever()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(20)
        assert caught.value.reason == REASON
        # Nothing of the cancellation is left.
        await anyio.sleep(1)
    assert_terminated(await stored_run(api))


async def test_an_error_of_a_body_that_unwinds_is_the_context(api: FaultyApi) -> None:
    error = ValueError("mine")
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run") as span:
                    await span.start()
                    await kill(api, client, instance)
                    record(instance)
                    try:
                        await anyio.sleep_forever()
                    finally:
                        raise error
    assert caught.value.__context__ is error
    assert not caught.value.__suppress_context__
    run = await stored_run(api)
    assert_terminated(run)
    # What the step did is what is recorded of it.
    assert run.named("agent:run").result["error"]["message"] == "mine"


async def test_spans_that_no_block_ends_are_cancelled_also_if_the_body_raises(
    api: FaultyApi,
) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await instance.create_span("agent:run")
                await hear(api, client, instance)
                raise ValueError("mine")
    run = await stored_run(api)
    assert_terminated(run)
    assert run.named("agent:run").status == "cancelled"
    assert run.named("agent:run").result is None


async def test_errors_that_tasks_raise_while_they_unwind_are_the_context(api: FaultyApi) -> None:
    error = ValueError("mine")

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.sleep_forever)
                    tasks.start_soon(fail)
                    await kill(api, client, instance)
                    record(instance)
                    await anyio.sleep_forever()
    context = caught.value.__context__
    assert isinstance(context, BaseExceptionGroup)
    assert error in context.exceptions
    assert_terminated(await stored_run(api))


@pytest.mark.parametrize("with_error", [False, True])
async def test_a_group_with_cancellations_leaves_nothing_of_them(
    api: FaultyApi, with_error: bool
) -> None:
    error = ValueError("mine")
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                await hear(api, client, instance)
                with pytest.raises(anyio.get_cancelled_exc_class()) as cancelled:
                    await anyio.sleep_forever()
                parts = [cancelled.value, error] if with_error else [cancelled.value]
                raise BaseExceptionGroup("by hand", parts)
        assert caught.value.__suppress_context__ is not with_error
        await anyio.sleep(1)
    assert_terminated(await stored_run(api))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_program_goes_before_the_termination(
    api: FaultyApi, kind: type[BaseException]
) -> None:
    stop = kind()
    with pytest.raises(kind) as caught:
        async with opened(api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await hear(api, client, instance)
                try:
                    await anyio.sleep_forever()
                finally:
                    raise stop
    assert caught.value is stop
    assert_terminated(await stored_run(api))


async def test_a_shield_of_the_body_is_respected(api: FaultyApi) -> None:
    done = False
    async with opened(api, termination_poll_interval=POLL) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                with anyio.CancelScope(shield=True):
                    await kill(api, client, instance)
                    await anyio.sleep(10 * POLL)
                    assert instance.terminated == REASON
                    async with instance.span("agent:tool") as span:
                        await span.complete()
                    done = True
                await anyio.lowlevel.checkpoint()
                pytest.fail("the cancellation was lost")
    assert done
    run = await stored_run(api)
    assert_terminated(run)
    assert run.named("agent:tool").status == "complete"


async def test_a_body_that_reaches_no_checkpoint_any_more_ends_as_terminated(
    api: FaultyApi,
) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                await hear(api, client, instance)
        assert caught.value.__context__ is None
        # The cancellation that nobody took is gone, too.
        await anyio.sleep(1)
    assert_terminated(await stored_run(api))


async def test_a_body_may_ask_where_it_reaches_no_checkpoint(api: FaultyApi) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as instance:
                instance.check()
                await hear(api, client, instance)
                with pytest.raises(PrefactorTerminatedError) as checked:
                    instance.check()
                raise checked.value
    assert caught.value is checked.value
    assert caught.value.instance_id == instance.id


async def test_a_run_that_is_terminated_as_it_starts_leaves_no_scope_behind(
    api: FaultyApi,
) -> None:
    class Queue(InMemoryQueue[Operation]):
        def put_nowait(self, item: Operation) -> None:
            super().put_nowait(item)
            if isinstance(item, StartAgentInstance):
                client.instance_manager.identity(item.instance_id).terminate(REASON)

    client = open_prefactor(make_config(), asgi_app=api, queue=Queue())
    async with client:
        with anyio.CancelScope() as outer:
            with pytest.raises(PrefactorTerminatedError):
                async with client.agent_instance(**AGENT):
                    pytest.fail("the body is entered")
            await anyio.sleep(1)
        assert not outer.cancelled_caught
    # Only the client thinks that it is terminated.
    assert (await stored_run(api)).status == "cancelled"
    assert client.statistics().lost == 0


async def test_what_happens_while_the_body_unwinds_is_recorded(api: FaultyApi) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                record(instance)
                try:
                    await anyio.sleep_forever()
                finally:
                    with instance.span("agent:tool", payload={"tool": "clean up"}) as span:
                        span.set_result({"cleaned": True})
    run = await stored_run(api)
    assert_terminated(run)
    assert run.named("agent:tool").result == {"cleaned": True}


async def test_a_run_that_is_terminated_before_its_start_was_sent_stops_and_loses_nothing(
    api: FaultyApi,
) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError, match=REASON):
            async with client.agent_instance(**AGENT) as instance:
                await terminate(api, instance.id, REASON)
                await anyio.sleep(5)  # long before a poll: the answer to the start tells
                pytest.fail("it went on")
    assert_terminated(await stored_run(api))


async def test_no_span_begins_after_a_terminated_run_was_left(api: FaultyApi) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await hear(api, client, instance)
        with pytest.raises(PrefactorTerminatedError) as caught:
            instance.span("agent:tool")
        assert caught.value.reason == REASON
        with pytest.raises(PrefactorTerminatedError):
            instance.check()


@pytest.mark.parametrize("way", WAYS)
async def test_a_run_that_has_ended_does_not_hear_of_a_late_termination(
    api: FaultyApi, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str] = []
    async with opened(api, **WAYS[way]) as client:
        async with client.agent_instance(**AGENT) as instance:
            instance.on_terminate(reasons.append)
            await client.flush()
            record(instance)
            await terminate(api, instance.id)
        await client.flush()
        await anyio.sleep(2 * POLL)
        instance.on_terminate(reasons.append)
        instance.check()
        assert (instance.terminated, reasons) == (None, [])
    assert_terminated(await stored_run(api))
    assert warnings(caplog) == []


async def test_a_callback_that_cannot_be_called_is_an_error_at_once(api: FaultyApi) -> None:
    async with opened(api) as client, client.agent_instance(**AGENT) as instance:
        for wrong in (5, None, "print", []):
            with pytest.raises(PrefactorValueError, match="callback must be a function of the re"):
                instance.on_terminate(wrong)  # type: ignore[arg-type]


# Several runs.


async def test_another_run_of_the_client_goes_on(api: FaultyApi) -> None:
    async def go_on() -> None:
        async with client.agent_instance(**AGENT) as other:
            running.set()
            await stopped.wait()
            async with other.span("agent:tool"):
                await anyio.sleep(1)
            assert other.terminated is None

    running, stopped = anyio.Event(), anyio.Event()
    async with opened(api) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            await running.wait()
            with pytest.raises(PrefactorTerminatedError):
                async with client.agent_instance(**AGENT) as instance:
                    await kill(api, client, instance)
                    record(instance)
                    await anyio.sleep_forever()
            stopped.set()
    other, terminated = sorted(await stored_runs(api), key=lambda run: run.status)
    assert other.shape == ("complete", [("agent:tool", "complete", [])])
    assert_terminated(terminated)


async def test_the_termination_of_an_inner_run_cancels_what_it_passes_through(
    api: FaultyApi,
) -> None:
    with pytest.raises(PrefactorTerminatedError) as caught:
        async with opened(api) as client, client.agent_instance(**AGENT) as outer:
            bystander = await client.create_agent_instance(**AGENT)
            await bystander.start()
            async with outer.span("agent:run"):
                async with client.agent_instance(**AGENT) as inner:
                    await kill(api, client, inner)
                    record(inner)
                    await anyio.sleep_forever()
    assert caught.value.instance_id == inner.id
    runs = {run.id: run for run in await stored_runs(api)}
    assert_terminated(runs[inner.id])
    assert runs[outer.id].shape == ("cancelled", [("agent:run", "cancelled", [])])
    assert runs[bystander.id].status == "cancelled"


async def test_an_agent_goes_on_after_a_run_inside_its_own_was_terminated(api: FaultyApi) -> None:
    async with opened(api) as client, client.agent_instance(**AGENT) as outer:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as inner:
                await hear(api, client, inner)
        async with outer.span("agent:tool"):
            await anyio.sleep(1)
    runs = {run.id: run for run in await stored_runs(api)}
    assert_terminated(runs[inner.id])
    assert runs[outer.id].shape == ("complete", [("agent:tool", "complete", [])])


@pytest.mark.parametrize("both", [False, True])
async def test_the_termination_of_an_outer_run_cancels_those_inside(
    api: FaultyApi, both: bool
) -> None:
    async with opened(api) as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            async with client.agent_instance(**AGENT) as outer:
                async with client.agent_instance(**AGENT) as inner:
                    if both:
                        await hear(api, client, inner)
                    await hear(api, client, outer)
                    await anyio.sleep_forever()
    assert caught.value.instance_id == outer.id
    runs = {run.id: run for run in await stored_runs(api)}
    assert_terminated(runs[outer.id])
    assert runs[inner.id].status == ("terminated" if both else "cancelled")


@pytest.mark.parametrize("terminated", [False, True])
async def test_runs_of_one_task_may_overlap(api: FaultyApi, terminated: bool) -> None:
    async with opened(api) as client:
        with anyio.CancelScope() as around:
            first, second = (client.agent_instance(**AGENT) for _ in range(2))
            one = await first.__aenter__()
            two = await second.__aenter__()
            await client.flush()
            await first.__aexit__(None, None, None)
            assert (one.ended, two.ended) == (True, False)
            if terminated:
                await hear(api, client, two)
                # Without a scope of its own it is not cancelled, and can begin nothing.
                await anyio.sleep(1)
                with pytest.raises(PrefactorTerminatedError):
                    two.span("agent:tool")
                with pytest.raises(PrefactorTerminatedError):
                    await second.__aexit__(None, None, None)
            else:
                await second.__aexit__(None, None, None)
            await anyio.sleep(1)
        assert not around.cancelled_caught
    statuses = {run.id: run.status for run in await stored_runs(api)}
    assert statuses == {one.id: "complete", two.id: "terminated" if terminated else "complete"}


@pytest.mark.parametrize("by", ["close", "the block"])
async def test_a_client_may_be_closed_before_its_runs_are_left(api: FaultyApi, by: str) -> None:
    with anyio.CancelScope() as around:
        async with opened(api) as client:
            run = client.agent_instance(**AGENT)
            instance = await run.__aenter__()
            await instance.start()
            if by == "close":
                await client.close()
        await run.__aexit__(None, None, None)
        await anyio.sleep(1)
    assert not around.cancelled_caught
    assert (await stored_run(api)).status == "complete"


async def test_a_run_of_another_client_is_terminated_once_and_begins_no_more_spans(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(api) as owner, opened(api, termination_poll_interval=POLL) as client:
        instance = await owner.create_agent_instance(**AGENT)
        await instance.start()
        await kill(api, owner, instance)
        for _ in range(3):
            with client.span(instance.id, "agent:tool"):
                pass
        await client.flush()
        with pytest.raises(PrefactorTerminatedError) as caught:
            client.span(instance.id, "agent:tool")
        assert caught.value.reason == REASON
        await anyio.sleep(3 * POLL)
        # It is known: nobody asks again.
        assert [call for call in api.calls if call.method == "GET"] == []
    assert len(warnings(caplog)) == 1


# Cancellation from outside.


@pytest.mark.parametrize("first", ["the termination", "the outer scope"])
@pytest.mark.parametrize("unwinds", [False, True], ids=["at once", "while it unwinds"])
async def test_an_outer_cancellation_goes_before_the_termination(
    api: FaultyApi, first: str, unwinds: bool
) -> None:
    async with opened(api) as client:
        with anyio.CancelScope() as outer:
            async with client.agent_instance(**AGENT) as instance:
                if first == "the termination":
                    await hear(api, client, instance)
                else:
                    outer.cancel()
                try:
                    if unwinds:
                        await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        if first == "the termination":
                            outer.cancel()
                        else:
                            await hear(api, client, instance)
                await anyio.sleep_forever()
        assert outer.cancelled_caught
        await anyio.sleep(1)
    assert_terminated(await stored_run(api))


async def test_a_time_out_at_the_moment_of_the_termination_is_a_time_out(api: FaultyApi) -> None:
    async with opened(api) as client:
        with anyio.move_on_after(POLL) as outer:
            async with client.agent_instance(**AGENT) as instance:
                identity = client.instance_manager.identity(instance.id)
                async with anyio.create_task_group() as tasks:

                    async def throw_at_the_deadline() -> None:
                        with anyio.CancelScope(shield=True):
                            await anyio.sleep_until(outer.deadline)
                        identity.terminate(REASON)

                    tasks.start_soon(throw_at_the_deadline)
                    await anyio.sleep_forever()
        assert outer.cancelled_caught
        assert instance.terminated == REASON
    assert (await stored_run(api)).status == "cancelled"


def on_asyncio(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(1000):
            await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(bounded())


@pytest.mark.parametrize("order", ["cancel, terminate", "terminate, cancel"])
def test_a_native_cancellation_goes_before_the_termination(order: str) -> None:
    async def main() -> None:
        async def agent(started: asyncio.Event) -> None:
            async with client.agent_instance(**AGENT) as instance:
                started.set()
                async with instance.span("agent:run") as span:
                    await span.start()
                    await asyncio.Event().wait()

        async with open_faulty_api() as api, opened(api) as client:
            started = asyncio.Event()
            task = asyncio.create_task(agent(started))
            await started.wait()
            await asyncio.sleep(1)
            (instance,) = client.instance_manager.open_instances()
            for step in order.split(", "):
                if step == "cancel":
                    task.cancel()
                else:
                    client.instance_manager.identity(instance.id).terminate(REASON)
            await asyncio.wait([task])
            assert task.cancelled()
            await client.flush()
            assert (await stored_run(api)).shape == (
                "cancelled",
                [("agent:run", "cancelled", [])],
            )

    on_asyncio(main)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_native_time_out_around_a_terminated_run_is_whole(at_once: bool) -> None:
    async def main() -> None:
        async with open_faulty_api() as api, opened(api) as client:
            raised = TimeoutError if at_once else PrefactorTerminatedError
            with pytest.raises(raised):
                async with asyncio.timeout(10) as timeout:
                    async with client.agent_instance(**AGENT) as instance:
                        identity = client.instance_manager.identity(instance.id)
                        if at_once:
                            when = timeout.when()
                            assert when is not None
                            asyncio.get_running_loop().call_at(when, identity.terminate, REASON)
                        else:
                            identity.terminate(REASON)
                        await asyncio.Event().wait()
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(20)

    on_asyncio(main)


# Runs without a scope.


@pytest.mark.parametrize("way", WAYS)
async def test_a_run_without_a_scope_begins_no_more_spans(api: FaultyApi, way: str) -> None:
    async with opened(api, **WAYS[way]) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        open_id = await instance.create_span("agent:run")
        async with instance.span("agent:tool") as tool:
            await tool.start()
            await hear(api, client, instance)
            # It is cancelled by nobody.
            await anyio.sleep(1)
            for begin in (instance.span, instance.create_span):
                with pytest.raises(PrefactorTerminatedError) as caught:
                    begun = begin("agent:llm")
                    if isinstance(begun, Awaitable):
                        await begun
                assert (caught.value.reason, caught.value.instance_id) == (REASON, instance.id)
            with pytest.raises(PrefactorTerminatedError):
                client.span(instance.id, "agent:llm")
            with pytest.raises(PrefactorTerminatedError):
                instance.check()
            # What is open may still end as it does.
            tool.set_result({"hits": 3})
        await instance.finish_span(open_id)
        await instance.finish()
        assert instance.ended
    run = await stored_run(api)
    assert_terminated(run)
    assert (run.named("agent:tool").status, run.named("agent:tool").result) == (
        "complete",
        {"hits": 3},
    )
    assert run.named("agent:run").status == "complete"


async def test_a_client_without_a_block_stops_a_run_too(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    await client.initialize()
    with anyio.fail_after(100):
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                record(instance)
                await anyio.sleep_forever()
        handle = await client.create_agent_instance(**AGENT)
        await handle.start()
        await hear(api, client, handle)
        with pytest.raises(PrefactorTerminatedError):
            handle.span("agent:tool")
        await client.close()
    assert client.statistics().lost == 0
    for run in await stored_runs(api):
        assert_terminated(run)


# What the API says.


def answer(control: object, **details: object) -> Answer:
    body = {"status": "success", "details": details, "control": control}
    return 200, {}, msgspec.json.encode(body)


STOP = {"terminate": True, "reason": None}


def created(call: Call) -> Answer:
    details = call.body["details"]
    return answer(STOP, **details)


def of_run(call: Call) -> Answer:
    id = call.path.split("/")[-2]
    return answer(STOP, id=id, status="active")


def polled(call: Call) -> Answer | None:
    if call.method != "GET":
        return None
    return answer(None, id=call.name, status="terminated", termination_reason=None)


def registered(call: Call) -> Answer:
    return answer(STOP, id=generate(7), status="pending")


@pytest.mark.parametrize(
    ("key", "fault"),
    [("agent_spans", created), ("start", of_run), ("register", registered), ("*", polled)],
)
async def test_a_termination_without_a_reason_is_one(
    api: FaultyApi, key: str, fault: Callable[[Call], object]
) -> None:
    api.faults[key] = fault
    options: dict[str, Any] = {"queue": {"max_batch_operations": 1}}
    # What is not stored is not known when it ends.
    client = open_prefactor(make_config(termination_poll_interval=POLL, **options), asgi_app=api)
    with anyio.fail_after(100), pytest.raises(PrefactorTerminatedError) as caught:
        async with client, client.agent_instance(**AGENT) as instance:
            if key == "agent_spans":
                record(instance)
            await anyio.sleep_forever()
    assert caught.value.reason == NO_REASON


@pytest.mark.parametrize("control", [None, {}, {"terminate": False, "reason": REASON}])
async def test_an_answer_that_stops_nothing_stops_nothing(api: FaultyApi, control: object) -> None:
    api.faults["start"] = lambda call: answer(control, id="i", status="active")
    client = open_prefactor(make_config(queue={"max_batch_operations": 1}), asgi_app=api)
    async with client, client.agent_instance(**AGENT) as instance:
        await client.flush()
        await anyio.sleep(1)
        assert instance.terminated is None


# The poll.


def polls(api: FaultyApi) -> list[float]:
    return [call.time for call in api.calls if call.method == "GET"]


async def test_every_open_run_is_polled_at_the_interval(api: FaultyApi) -> None:
    async with opened(api, termination_poll_interval=POLL) as client:
        begin = anyio.current_time()
        async with client.agent_instance(**AGENT):
            handle = await client.create_agent_instance(**AGENT)
            await anyio.sleep(3.5 * POLL)
        await handle.finish()
        await anyio.sleep(2 * POLL)
        times = [time - begin for time in polls(api)]
    assert times == pytest.approx([POLL, POLL, 2 * POLL, 2 * POLL, 3 * POLL, 3 * POLL])


async def test_no_run_is_polled_if_that_is_turned_off(api: FaultyApi) -> None:
    async with opened(api, termination_poll_interval=math.inf) as client:
        async with client.agent_instance(**AGENT):
            await anyio.sleep(500)
    assert polls(api) == []


async def test_a_run_that_is_known_to_be_terminated_is_not_polled_again(api: FaultyApi) -> None:
    async with opened(api, termination_poll_interval=POLL) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(10 * POLL)
    assert len(polls(api)) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_may_not_read_polls_more_and_more_rarely_and_says_so_once(
    api: FaultyApi, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    api.faults["*"] = lambda call: status if call.method == "GET" else None
    async with opened(api, termination_poll_interval=POLL) as client:
        async with client.agent_instance(**AGENT), client.agent_instance(**AGENT):
            await anyio.sleep(10 * POLL)
        assert polls(api) == pytest.approx([5.0, 10.0, 20.0, 40.0], abs=0.1)
        assert client.statistics().assumed == ("no reading of runs",)
        (record_,) = (r for r in caplog.records if r.name.startswith("prefactor_core"))
        assert record_.levelno == logging.INFO
        assert "this token may not read runs" in record_.getMessage()
        # The answers to spans still tell.
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await hear(api, client, instance)


async def test_a_token_that_may_read_again_hears_of_a_termination_by_the_poll(
    api: FaultyApi,
) -> None:
    denials: list[object] = [403] * 3
    api.faults["*"] = lambda call: denials.pop() if call.method == "GET" and denials else None
    async with opened(api, termination_poll_interval=POLL) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                await anyio.sleep_forever()
        assert client.statistics().assumed == ()
    assert polls(api) == pytest.approx([5.0, 10.0, 20.0, 40.0], abs=0.1)


@pytest.mark.parametrize("fault", [404, 429, 500, (200, {}, b"?"), ConnectionResetError()])
async def test_a_poll_that_fails_is_tried_again_in_silence(
    api: FaultyApi, fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prefactor_core")
    failures = [fault, fault]
    api.faults["*"] = lambda call: failures.pop() if call.method == "GET" and failures else None
    async with opened(api, termination_poll_interval=POLL) as client:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await kill(api, client, instance)
                await anyio.sleep_forever()
    assert len(polls(api)) == 3
    assert len(caplog.records) - sum(r.name == "httpx" for r in caplog.records) == 1


async def test_a_poll_that_is_on_its_way_does_not_delay_the_exit(api: FaultyApi) -> None:
    async with opened(api, termination_poll_interval=POLL) as client:
        async with client.agent_instance(**AGENT):
            await client.flush()
            api.hanging = True
            await anyio.sleep(POLL + 1)
            api.hanging = False
            assert len(polls(api)) == 1
            begin = anyio.current_time()
    # No longer than a batch waits for its window.
    assert anyio.current_time() - begin < 1
    assert (await stored_run(api)).status == "complete"


async def test_no_run_is_polled_in_an_outage_but_after_its_end(api: FaultyApi) -> None:
    client = open_prefactor(make_config(termination_poll_interval=POLL), asgi_app=api)
    with anyio.fail_after(1000), pytest.raises(PrefactorTerminatedError):
        async with client, client.agent_instance(**AGENT) as instance:
            await kill(api, client, instance)
            api.away = True
            record(instance)
            # Until the outage is known as one.
            await anyio.sleep(2)
            before = len(polls(api))
            await anyio.sleep(10 * POLL)
            assert len(polls(api)) == before
            assert instance.terminated is None
            api.away = False
            await anyio.sleep_forever()
    statistics = client.statistics()
    assert (statistics.lost, statistics.pending) == (0, 0)
    assert statistics.accepted == statistics.delivered
    assert_terminated(await stored_run(api))


async def test_a_provisional_run_is_not_polled_and_is_terminated_by_its_final_id(
    api: FaultyApi,
) -> None:
    api.faults["register"] = [503] * 2
    config = make_config(termination_poll_interval=POLL, http={"max_retries": 0})
    client = open_prefactor(config, asgi_app=api)
    with anyio.fail_after(1000), pytest.raises(PrefactorTerminatedError) as caught:
        async with client, client.agent_instance(**AGENT) as instance:
            provisional = instance.id
            assert partition_of(provisional) == 0
            await client.flush()
            assert instance.id != provisional
            assert {call.name for call in api.calls if call.method == "GET"} <= {instance.id}
            await hear(api, client, instance)
            instance.check()
    assert caught.value.instance_id == instance.id
    assert_terminated(await stored_run(api))
    assert client.statistics().lost == 0


async def test_a_provisional_run_is_not_polled(api: FaultyApi) -> None:
    api.faults["register"] = 503
    config = make_config(termination_poll_interval=0.1, http={"max_retries": 0}, drain_timeout=1)
    async with open_prefactor(config, asgi_app=api) as client, client.agent_instance(**AGENT):
        await anyio.sleep(30)
    assert polls(api) == []


# The end of runs and their contexts.


async def test_nothing_of_a_terminated_run_is_kept(api: FaultyApi) -> None:
    async def stop_one() -> None:
        with pytest.raises(PrefactorTerminatedError):
            async with client.agent_instance(**AGENT) as instance:
                await hear(api, client, instance)

    def kept() -> int:
        gc.collect()
        return sum(type(each) is Termination for each in gc.get_objects())

    async with opened(api) as client:
        before = kept()
        for _ in range(3):
            await stop_one()
        await client.flush()
        await anyio.sleep(1)
        assert kept() == before


async def test_a_chain_of_tasks_each_started_in_the_run_before_keeps_no_run(api: FaultyApi) -> None:
    async def go_on(left: int) -> None:
        async with client.agent_instance(**AGENT):
            if left:
                tasks.start_soon(go_on, left - 1)
            else:
                kept.extend(context_runs.get())

    kept: list[AgentInstanceHandle] = []
    async with opened(api) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(go_on, 10)
    assert len(kept) <= 2  # its own, and that of the run which it was started in


@pytest.mark.parametrize("entry", ["block", "calls"])
async def test_a_callback_that_wants_to_exit_changes_no_balance_and_ends_no_loop(
    api: FaultyApi, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = open_prefactor(make_config(queue={"num_workers": 1}), asgi_app=api)
    await (client.initialize() if entry == "calls" else client.__aenter__())
    going_on = await client.create_agent_instance(**AGENT)
    instance = await client.create_agent_instance(**AGENT)
    await instance.start()
    instance.on_terminate(sys.exit)
    await kill(api, client, instance)
    # In one request, of which something is completed before the callback is called.
    record(going_on)
    record(instance)
    await client.flush()
    await client.close()
    statistics = client.statistics()
    assert (statistics.accepted, statistics.pending) == (statistics.delivered, 0)
    assert "a callback of on_terminate() raised" in warnings(caplog)
