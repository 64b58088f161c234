"""The known bugs of the system that this one replaces, each as the behaviour that stands now.

The number in a docstring is the bug's; the bug itself is what the sentence denies.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import (
    AGENT,
    make_config,
    open_faulty_api,
    recording,
    stored_run,
    stored_runs,
)

from prefactor_core import (
    InMemoryQueue,
    Operation,
    PrefactorCoreClient,
    QueueClosedError,
    SchemaRegistry,
    SpanContextStack,
    SpanNotFoundError,
    TaskExecutor,
    open_prefactor,
)
from prefactor_core.operations import identifiers


def offset(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    assert time.tzinfo is not None
    return time


async def test_an_exception_inside_a_span_fails_it() -> None:
    """B01"""
    async with recording() as r:
        with pytest.raises(ZeroDivisionError):
            async with r.instance.span("agent:tool"):
                _ = 1 / 0
    assert r.run.named("agent:tool").status == "failed"


@pytest.mark.virtual_time
async def test_a_failing_api_does_not_replace_the_agents_exception() -> None:
    """B02"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=1), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.faults["*"] = 500
                with pytest.raises(ZeroDivisionError):
                    async with instance.span("agent:tool"):
                        _ = 1 / 0


async def test_every_time_that_is_sent_has_an_offset() -> None:
    """B03"""
    async with recording() as r:
        async with r.instance.span("agent:tool"):
            pass
    sent = [call.body for call in r.api.operations if call.name != "register"]
    names = ("timestamp", "started_at", "finished_at")
    times = [
        fields[name]
        for body in sent
        for fields in [body.get("details", body)]
        for name in names
        if name in fields
    ]
    assert len(times) == 4
    assert sorted(map(offset, times)) == [offset(time) for time in times]


@pytest.mark.virtual_time
@pytest.mark.parametrize("trouble", ["away", "hanging"])
async def test_starting_a_span_neither_raises_nor_waits_whatever_the_api_does(
    trouble: str,
) -> None:
    """B04, B05"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=1), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                setattr(api, trouble, True)
                before = anyio.current_time()
                async with instance.span("agent:tool") as span:
                    await span.start({"a": 1})
                    await span.complete({"b": 2})
                assert anyio.current_time() == before


async def test_a_runs_finish_never_overtakes_its_start_or_its_spans() -> None:
    """B06"""
    async with open_faulty_api() as api:
        queue: dict[str, object] = {"num_workers": 20, "max_batch_operations": 1}
        async with open_prefactor(make_config(queue=queue), asgi_app=api) as client:
            for _ in range(10):
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"), instance.span("agent:tool") as tool:
                        await tool.start()
        for run in await stored_runs(api):
            calls = [
                call
                for call in api.calls
                if run.id in call.path
                or (
                    call.name == "agent_spans"
                    and call.body["details"]["agent_instance_id"] == run.id
                )
                or any(id in call.path for id in run.spans)
            ]
            names = [call.name for call in calls]
            assert names[:3] == ["start", "agent_spans", "agent_spans"]
            # The finish of a span may have been sent with its start.
            assert names[3:] in [["finish"] * count for count in (1, 2, 3)]
            assert run.id in calls[-1].path


@pytest.mark.virtual_time
@pytest.mark.parametrize("max_retries", [0, 1, 2])
async def test_max_retries_counts_the_attempts_after_the_first(max_retries: int) -> None:
    """B07, B08"""
    attempts = 0

    async def handle(item: str) -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError(item)

    queue = InMemoryQueue[str]()
    await queue.put("item")
    async with TaskExecutor(queue, handler=handle, max_retries=max_retries, drain_timeout=60):
        pass
    assert attempts == max_retries + 1


@pytest.mark.virtual_time
async def test_the_first_wait_is_a_tenth_of_retry_delay_base() -> None:
    """B09"""
    async with open_faulty_api() as api:
        config = make_config(queue={"retry_delay_base": 100.0}, drain_timeout=1000)
        async with open_prefactor(config, asgi_app=api) as client:
            api.faults["start"] = [ConnectionResetError()]
            async with client.agent_instance(**AGENT):
                await anyio.sleep(200)
        first, second = (call.time for call in api.calls if call.name == "start")
        assert 7.5 <= second - first <= 12.6


async def test_a_finished_span_is_forgotten() -> None:
    """B10"""
    async with recording() as r:
        async with r.instance.span("agent:tool") as span:
            assert r.client.span_manager.get_span(span.id).schema_name == "agent:tool"
        with pytest.raises(SpanNotFoundError):
            r.client.span_manager.get_span(span.id)


async def test_a_child_of_a_span_that_has_not_started_gets_a_parent_that_the_api_knows() -> None:
    """B11"""
    async with recording() as r:
        async with r.instance.span("agent:run") as parent:
            async with r.instance.span("agent:tool") as child:
                await child.start()
            await parent.start()
    assert r.run.named("agent:tool").parent_id == parent.id


async def test_spans_finished_out_of_order_are_nobodys_parent() -> None:
    """B12"""
    async with recording() as r:
        first = await r.instance.create_span("agent:run")
        second = await r.instance.create_span("agent:llm")
        await r.instance.finish_span(first)
        await r.instance.finish_span(second)
        async with r.instance.span("agent:tool"):
            pass
    assert r.run.named("agent:tool").parent_id is None


async def test_a_span_finished_in_another_task_leaves_its_creators_stack() -> None:
    """B13"""
    async with recording() as r:
        span_id = await r.instance.create_span("agent:run")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.instance.finish_span, span_id)
        assert SpanContextStack.is_empty()


@pytest.mark.virtual_time
async def test_a_span_create_that_is_sent_again_is_stored_once() -> None:
    """B14"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.lost_answers = 2
                async with instance.span("agent:tool"):
                    pass
        assert len((await stored_run(api)).spans) == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_permanent_answer_is_asked_for_once_more_by_bulk_and_not_again(
    status: int,
) -> None:
    """B15"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT):
                api.faults["finish"] = status
                await anyio.sleep(1)  # the start goes alone, and then the finish
            await anyio.sleep(60)
        # Bulk tells a refusal of this one from a refusal of everything.
        assert [call.name for call in api.calls] == ["register", "start", "finish", "bulk"]
        assert [item.name for item in api.calls[-1].items] == ["finish"]
    assert client.statistics().dropped == {"refused": 1}


@pytest.mark.virtual_time
async def test_what_a_scope_leaves_behind_is_bounded_in_time_counted_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B16, B29"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=3), asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            api.hanging = True
            await instance.start()
            before = anyio.current_time()
        assert anyio.current_time() - before == pytest.approx(3, abs=0.01)
        assert client.statistics().dropped == {"drain_timeout": 2}
        assert "2 of 3 Prefactor operations were not delivered (2 drain_timeout)" in caplog.text


async def test_a_client_can_be_used_again_after_it_was_closed() -> None:
    """B17"""
    async with open_faulty_api() as api:
        client = PrefactorCoreClient(make_config(), asgi_app=api)
        for _ in range(2):
            async with client, client.agent_instance(**AGENT):
                pass
        assert [run.status for run in await stored_runs(api)] == ["complete", "complete"]


async def test_a_queue_that_is_falsy_while_empty_is_used() -> None:
    """B18"""

    class SizedQueue(InMemoryQueue[Operation]):
        used = False

        def put_nowait(self, item: Operation) -> None:
            self.used = True
            super().put_nowait(item)

        def __len__(self) -> int:
            return self.size()

    queue = SizedQueue()
    assert not queue
    async with open_faulty_api() as api:
        async with PrefactorCoreClient(make_config(), queue, asgi_app=api) as client:
            async with client.agent_instance(**AGENT):
                pass
    assert queue.used


def test_the_stack_that_is_handed_out_is_nobody_elses() -> None:
    """B19"""
    SpanContextStack.get_stack().append("leak")
    assert SpanContextStack.get_stack() == []


@pytest.mark.virtual_time
async def test_a_queue_that_raises_for_ever_does_not_spin_the_loop() -> None:
    """B20"""

    class BrokenQueue(InMemoryQueue[str]):
        async def get(self) -> str:
            raise OSError("broken")

    async with TaskExecutor(BrokenQueue(), anyio.sleep_forever, drain_timeout=5):  # type: ignore[arg-type]
        await anyio.sleep(5)  # on virtual time: only if nothing spins


async def test_closing_wakes_every_waiter() -> None:
    """B21"""
    queue = InMemoryQueue[str]()

    async def wait() -> None:
        with pytest.raises(QueueClosedError):
            await queue.get()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await queue.close()


async def test_the_size_counts_items_and_no_sentinels() -> None:
    """B22"""
    queue = InMemoryQueue[str]()
    await queue.close(num_waiters=3)
    assert queue.size() == 0


@pytest.mark.virtual_time
async def test_a_finish_that_fails_first_is_delivered_later() -> None:
    """B23"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            api.faults["finish"] = [503]
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:tool") as span:
                    await span.start()
                    await span.complete()
        assert (await stored_run(api)).shape == ("complete", [("agent:tool", "complete", [])])


async def test_a_given_instance_id_is_used() -> None:
    """B24"""
    async with recording() as r:
        own = identifiers.generate_related(r.instance.id)
        other = await r.client.create_agent_instance(**AGENT, instance_id=own)
        assert other.id == own


@pytest.mark.virtual_time
async def test_the_times_are_those_of_the_agent_and_not_of_delivery() -> None:
    """B25"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.faults["agent_spans"] = [503] * 3
                async with instance.span("agent:tool"):
                    pass
                left = datetime.now(UTC)
        span = (await stored_run(api)).named("agent:tool")
        assert span.started_at is not None
        assert span.finished_at is not None
        assert offset(span.started_at) <= offset(span.finished_at) <= left


@pytest.mark.parametrize("payload", [{"a": object()}, {"a": {1, 2}}, {(1, 2): 3}, {"a": b"\xff"}])
async def test_a_payload_that_is_no_json_is_recorded_as_far_as_it_goes(payload: Any) -> None:
    """B26"""
    async with recording() as r:
        async with r.instance.span("agent:tool", payload={"ok": 1, **payload}) as span:
            await span.complete({"ok": 2, **payload})
    stored = r.run.named("agent:tool")
    assert (stored.payload["ok"], stored.result["ok"]) == (1, 2)
    assert len(stored.payload) == len(stored.result) == 2


async def test_a_second_finish_is_not_sent() -> None:
    """B27"""
    async with recording() as r:
        async with r.instance.span("agent:tool") as span:
            await span.complete()
            await span.fail()
            await span.finish()
        await r.instance.finish()
        await r.instance.finish()
    assert r.api.names() == ["register", "start", "agent_spans", "finish"]


async def test_an_unknown_span_is_a_span_not_found_error() -> None:
    """B28"""
    async with recording() as r:
        with pytest.raises(SpanNotFoundError, match="unknown"):
            await r.client.finish_span("unknown")


def test_what_a_registry_gives_out_is_a_copy() -> None:
    """B30"""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    registry = SchemaRegistry()
    registry.register("agent:tool", schema)
    registry.to_agent_schema_version("v1")["span_schemas"]["agent:tool"]["properties"].clear()
    schema["properties"] = {}
    assert registry.get("agent:tool") == {
        "type": "object",
        "properties": {"a": {"type": "string"}},
    }


def test_a_registry_finds_types_however_they_were_registered() -> None:
    """B31"""
    registry = SchemaRegistry()
    registry.register_type("agent:tool", {"type": "object"})
    assert registry.get("agent:tool") == {"type": "object"}
    assert registry.list_schemas() == ["agent:tool"]
    assert registry.has_schema("agent:tool")


async def test_a_cancelled_span_is_recorded_as_cancelled() -> None:
    """B32"""
    async with recording() as r:
        with anyio.CancelScope() as scope:
            async with r.instance.span("agent:tool"):
                scope.deadline = anyio.current_time() + 0.001
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert r.run.named("agent:tool").status == "cancelled"


async def test_it_runs_on_this_backend() -> None:
    """B33: asyncio and trio, and by an option uvloop."""
    async with recording() as r:
        async with r.instance.span("agent:tool"):
            await anyio.lowlevel.checkpoint()
    assert r.run.shape == ("complete", [("agent:tool", "complete", [])])


@pytest.mark.virtual_time
async def test_closing_waits_without_spinning() -> None:
    """B34: on virtual time, a loop that spins would never come to the end of the wait."""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=1000), asgi_app=api) as client:
            async with client.agent_instance(**AGENT):
                api.hanging = True


async def test_the_same_span_types_are_the_same_schema_version_on_every_run() -> None:
    """B35"""
    async with open_faulty_api() as api:
        for _ in range(2):
            async with open_prefactor(make_config(), asgi_app=api) as client:
                await client.create_agent_instance(**AGENT)
        first, second = (
            call.body["agent_schema_version"] for call in api.calls if call.name == "register"
        )
        assert first == second


@pytest.mark.virtual_time
async def test_a_time_out_is_tried_again() -> None:
    """B36"""

    async with open_faulty_api() as api:
        config = make_config(http={"request_timeout": 2.0}, drain_timeout=60)
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            api.hanging = True
            await instance.start()
            await anyio.sleep(3)
            api.hanging = False
        assert client.statistics().retries >= 1
        assert (await stored_run(api)).status == "complete"


async def test_nan_and_infinity_become_null() -> None:
    """B37"""
    async with recording() as r:
        async with r.instance.span("agent:tool", payload={"score": math.nan}) as span:
            span.set_result({"score": -math.inf})
    stored = r.run.named("agent:tool")
    assert (stored.payload, stored.result) == ({"score": None}, {"score": None})


@pytest.mark.virtual_time
async def test_a_span_whose_start_the_api_did_not_take_is_not_posted_again_as_another() -> None:
    """B38"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.faults["agent_spans"] = [503]
                async with instance.span("agent:tool") as span:
                    await span.start({"prompt": "Hello"})
        creates = [c.body["details"] for c in api.operations if c.name == "agent_spans"]
        assert len(creates) == 2
        assert creates[0] == creates[1]
        assert creates[0]["payload"] == {"prompt": "Hello"}


@pytest.mark.virtual_time
async def test_a_span_that_the_api_refused_is_off_the_stack_when_it_is_left() -> None:
    """B39"""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.faults["agent_spans"] = [422]
                async with instance.span("agent:run") as span:
                    await span.start()
                async with instance.span("agent:tool"):
                    pass
        assert (await stored_run(api)).named("agent:tool").parent_id is None


def test_every_bug_has_its_test() -> None:
    documented = {
        number
        for name, value in globals().items()
        if name.startswith("test_") and value.__doc__
        for number in value.__doc__.split(":")[0].split(", ")
    }
    assert documented == {f"B{number:02}" for number in range(1, 40)}
