"""The client's scope: what leaves it, in which order it ends, and within which time."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import (
    AGENT,
    Call,
    FaultyApi,
    make_config,
    make_registry,
    open_faulty_api,
    stored_run,
    stored_runs,
)

from prefactor_core import (
    AgentInstanceHandle,
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    InMemoryQueue,
    InstanceNotFoundError,
    Operation,
    PrefactorApiError,
    PrefactorCoreClient,
    PrefactorTelemetryFailureError,
    PrefactorValueError,
    QueueClosedError,
    open_prefactor,
)
from prefactor_core.operations import identifiers
from prefactor_core.span_types import standard_types

PFID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


@pytest.mark.parametrize("cancelled", [False, True], ids=["alone", "under a cancellation"])
async def test_the_bodys_exception_leaves_every_scope_as_the_same_object(
    api: FaultyApi, cancelled: bool
) -> None:
    cause, context = KeyError("cause"), OSError("context")
    error = ValueError("mine")
    error.__cause__, error.__context__ = cause, context
    with anyio.fail_after(5), pytest.raises(ValueError, match="mine") as caught:
        with anyio.CancelScope() as outer:
            async with open_prefactor(make_config(), asgi_app=api) as client:
                async with client.agent_instance(**AGENT) as instance:
                    async with instance.span("agent:run"):
                        async with instance.span("agent:tool") as tool:
                            await tool.start()
                            if cancelled:
                                outer.cancel()
                            raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, context)
    assert (await stored_run(api)).shape == (
        "failed",
        [("agent:run", "failed", [("agent:tool", "failed", [])])],
    )


async def test_a_cancelled_body_is_recorded_and_its_cancellation_reaches_its_scope(
    api: FaultyApi,
) -> None:
    with anyio.fail_after(5), anyio.CancelScope() as outer:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    outer.cancel()
                    try:
                        await anyio.sleep_forever()
                    finally:
                        # What happens while the body unwinds is delivered too.
                        with instance.span("agent:tool"):
                            pass
    assert outer.cancelled_caught
    assert client.statistics().lost == 0
    assert (await stored_run(api)).shape == (
        "cancelled",
        [("agent:run", "cancelled", [("agent:tool", "complete", [])])],
    )


async def test_a_time_out_around_the_client_is_recorded_as_cancelled(api: FaultyApi) -> None:
    with anyio.fail_after(60), anyio.CancelScope() as scope:
        async with (
            open_prefactor(make_config(), asgi_app=api) as client,
            client.agent_instance(**AGENT),
        ):
            scope.deadline = anyio.current_time() + 0.01
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert (await stored_run(api)).status == "cancelled"


@pytest.mark.parametrize(
    ("error", "run_status", "span_status"),
    [
        (None, "complete", "cancelled"),
        (ValueError("mine"), "failed", "failed"),
        (KeyboardInterrupt(), "cancelled", "cancelled"),
    ],
    ids=["returned", "raised", "interrupted"],
)
async def test_open_spans_and_runs_end_with_the_scope_children_first(
    api: FaultyApi, error: BaseException | None, run_status: str, span_status: str
) -> None:
    with pytest.raises(type(error)) if error else nullcontext():
        # One by one: together, start and finish of a span would be one.
        config = make_config(queue={"max_batch_operations": 1})
        async with open_prefactor(config, asgi_app=api) as client:
            instance = await client.create_agent_instance(**AGENT)
            await instance.start()
            await instance.create_span("agent:run")
            await instance.create_span("agent:tool")
            await client.flush()
            if error is not None:
                raise error
    assert (await stored_run(api)).shape == (
        run_status,
        [("agent:run", span_status, [("agent:tool", span_status, [])])],
    )
    order = [
        call.body.get("details", {}).get("schema_name") or call.path.split("/")[-2:]
        for call in api.operations[-3:]
    ]
    run = await stored_run(api)
    assert order == [
        [run.named("agent:tool").id, "finish"],
        [run.named("agent:run").id, "finish"],
        [run.id, "finish"],
    ]
    assert instance.id == run.id


async def test_a_run_that_was_registered_and_never_started_ends_as_cancelled(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        await client.create_agent_instance(**AGENT)
    assert (await stored_run(api)).status == "cancelled"


async def test_a_run_whose_entering_is_cancelled_ends_as_cancelled(api: FaultyApi) -> None:
    registered, app = anyio.Event(), api.app

    async def cancel_after_register(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        if scope["path"].endswith("register"):
            registered.set()
            entering.cancel()

    api.app = cancel_after_register
    async with open_prefactor(make_config(), asgi_app=api) as client:
        with anyio.CancelScope() as entering:
            async with client.agent_instance(**AGENT):
                pytest.fail("the body must not run")
        assert registered.is_set()
    api.app = app
    assert (await stored_run(api)).status == "cancelled"


async def test_a_span_whose_creation_is_cancelled_is_no_parent(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            with anyio.fail_after(5), anyio.CancelScope() as scope:
                scope.cancel()
                while True:  # until the loop gets a turn
                    instance.finish_span_nowait(await instance.create_span("agent:tool"))
            async with instance.span("agent:llm"):
                pass
    *finished, cancelled, llm = (await stored_run(api)).roots
    assert all(span.shape == ("agent:tool", "complete", []) for span in finished)
    assert cancelled.shape == ("agent:tool", "cancelled", [])
    assert llm.shape == ("agent:llm", "complete", [])


async def test_a_log_handler_that_raises_ends_neither_the_agent_nor_delivery(
    api: FaultyApi,
) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("handler")

    handler = Raising()
    loggers = [logging.getLogger(f"prefactor_core.{name}") for name in ("queue", "export")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.faults["agent_spans"] = [422, ConnectionResetError()]
                for _ in range(2):
                    async with instance.span("agent:tool"):
                        pass
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert client.statistics().pending == 0
    assert (await stored_run(api)).status == "complete"


@pytest.mark.virtual_time
async def test_a_queue_that_cannot_be_closed_is_drained_at_once_all_the_same(
    api: FaultyApi,
) -> None:
    class Unclosable(InMemoryQueue[Operation]):
        async def close(self, num_waiters: int = 1) -> None:
            await super().close(num_waiters)
            raise OSError("close")

    config = make_config(queue={"batch_window": 3600.0})
    with pytest.raises(ValueError, match="mine"):
        async with open_prefactor(config, queue=Unclosable(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT):
                await anyio.sleep(1)
            before = anyio.current_time()
            raise ValueError("mine")
    assert anyio.current_time() == before
    assert client.statistics().lost == 0


async def test_two_tasks_cannot_open_one_client_at_once(tmp_path: Path) -> None:
    client = open_prefactor(make_config(http={"api_url": f"local:{tmp_path}/x.db"}))
    outcomes: list[str] = []

    async def open_and_close() -> None:
        try:
            async with client:
                outcomes.append("opened")
        except ClientAlreadyInitializedError:
            outcomes.append("refused")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_and_close)
            tasks.start_soon(open_and_close)
    assert sorted(outcomes) == ["opened", "refused"]


async def test_a_span_that_is_entered_after_its_client_closed_is_a_clear_error(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            span = instance.span("agent:run")
    with pytest.raises(ClientNotInitializedError, match="closed since"):
        async with span:
            pytest.fail("the body must not run")


async def test_start_and_finish_of_a_run_take_effect_once(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await instance.start()
        await instance.finish("failed")
        await instance.finish()
        await instance.start()
    assert api.names() == ["register", "start", "finish"]
    assert (await stored_run(api)).status == "failed"


async def test_the_scope_of_a_run_can_be_entered_once(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        scope = client.agent_instance(**AGENT)
        async with scope as instance:
            assert repr(instance) == f"<AgentInstanceHandle {instance.id} active>"
        with pytest.raises(Exception, match="once only"):
            await scope.__aenter__()


@pytest.mark.virtual_time
@pytest.mark.parametrize("cancelled", [False, True], ids=["in peace", "under a cancellation"])
@pytest.mark.parametrize("trouble", ["away", "hanging"])
async def test_leaving_takes_at_most_the_drain_timeout_and_reports_the_loss(
    api: FaultyApi, caplog: pytest.LogCaptureFixture, trouble: str, cancelled: bool
) -> None:
    config = make_config(drain_timeout=7.0, http={"request_timeout": 60.0})
    with anyio.CancelScope() as outer:
        async with open_prefactor(config, asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                setattr(api, trouble, True)
                before = anyio.current_time()
                for _ in range(10):
                    async with instance.span("agent:tool"):
                        pass
                assert anyio.current_time() == before
                if cancelled:
                    outer.cancel()
                before = anyio.current_time()
    assert anyio.current_time() - before == pytest.approx(7.0, abs=0.01)
    statistics = client.statistics()
    assert statistics.accepted == statistics.delivered + statistics.lost
    assert statistics.pending == 0
    assert statistics.dropped == {"drain_timeout": statistics.lost}
    assert statistics.lost >= 10
    last = [record for record in caplog.records if record.name == "prefactor_core.client"]
    assert [record.levelno for record in last] == [logging.WARNING]
    balance = f"{statistics.lost} of {statistics.accepted} Prefactor operations"
    assert balance in last[0].getMessage()


async def test_a_drain_timeout_of_zero_skips_the_drain(api: FaultyApi) -> None:
    api.hanging = True
    with anyio.fail_after(9):  # less than the drain takes by default
        async with open_prefactor(make_config(drain_timeout=0), asgi_app=api) as client:
            client.span_manager.create(PFID, "agent:run")
    assert client.statistics().dropped == {"drain_timeout": 2}


async def test_an_agent_at_work_is_not_held_up_by_an_api_that_hangs(api: FaultyApi) -> None:
    async with open_prefactor(make_config(drain_timeout=0), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            api.hanging = True
            turns = 0

            async def count_turns() -> None:
                nonlocal turns
                while True:
                    await anyio.lowlevel.checkpoint()
                    turns += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(count_turns)
                for _ in range(100):
                    async with instance.span("agent:tool"):
                        pass
                tasks.cancel_scope.cancel()
            # One turn of the loop for each span, and not one more for its delivery.
            assert turns <= 110


async def test_workers_take_turns_while_an_agent_records_in_a_tight_loop(api: FaultyApi) -> None:
    async with open_prefactor(make_config(queue={"batch_window": 0}), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            for _ in range(300):
                async with instance.span("agent:tool"):
                    pass
            assert client.statistics().delivered > 0


async def test_a_client_is_initialized_once_at_a_time_and_can_be_opened_again(
    api: FaultyApi,
) -> None:
    client = PrefactorCoreClient(make_config(), asgi_app=api)
    for _ in range(2):
        with pytest.raises(ClientNotInitializedError, match="not open"):
            client.span(PFID, "agent:run")
        await client.close()
        await client.initialize()
        with pytest.raises(ClientAlreadyInitializedError, match="Client is already initialized"):
            await client.initialize()
        async with client.agent_instance(**AGENT):
            pass
        await client.close()
        await client.close()
        assert client.statistics().delivered == 3
    assert [run.status for run in await stored_runs(api)] == ["complete"] * 2


async def test_use_outside_of_the_scope_is_a_clear_error(api: FaultyApi) -> None:
    client = open_prefactor(make_config(), asgi_app=api)
    for _ in range(2):
        with pytest.raises(ClientNotInitializedError, match="open_prefactor"):
            client.span(PFID, "agent:run")
        for call in (
            lambda: client.create_agent_instance("agent", {}),
            lambda: client.create_span(PFID, "agent:run"),
            lambda: client.finish_span(PFID),
        ):
            with pytest.raises(ClientNotInitializedError, match="open_prefactor"):
                await call()
        async with client:
            pass


async def test_a_span_that_outlives_its_client_changes_nothing(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            span = instance.span("agent:run")
            await span.start()
    await span.complete({"too": "late"})
    await instance.finish()
    with pytest.raises(ClientNotInitializedError):
        instance.span("agent:tool")
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "cancelled", [])])


async def test_leaving_in_another_task_is_a_readable_error(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:

        async def leave() -> None:
            for leaving in (client.close(), client.__aexit__(None, None, None)):
                with pytest.raises(ClientScopeError, match="left by the task that entered it"):
                    await leaving

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
        async with client.agent_instance(**AGENT):
            pass
    assert (await stored_run(api)).status == "complete"


async def test_any_task_may_use_the_client(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:

        async def run() -> None:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run"):
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(run)
    shape = ("complete", [("agent:run", "complete", [])])
    assert [run.shape for run in await stored_runs(api)] == [shape] * 4


async def test_two_clients_nest_and_each_keeps_its_own_tree(api: FaultyApi) -> None:
    async with open_faulty_api() as other_api:
        async with (
            open_prefactor(make_config(), asgi_app=api) as outer,
            open_prefactor(make_config(), asgi_app=other_api) as inner,
            outer.agent_instance(**AGENT) as one,
            inner.agent_instance(**AGENT) as two,
        ):
            with one.span("agent:run"), two.span("agent:run"):
                with one.span("agent:tool"), two.span("agent:llm"):
                    pass
                with one.span("agent:tool"):
                    pass
        tool = ("agent:tool", "complete", [])
        llm = ("agent:llm", "complete", [])
        assert (await stored_run(api)).shape == (
            "complete",
            [("agent:run", "complete", [tool, tool])],
        )
        assert (await stored_run(other_api)).shape == (
            "complete",
            [("agent:run", "complete", [llm])],
        )


async def test_a_custom_queue_carries_everything_in_order(api: FaultyApi) -> None:
    class CountingQueue(InMemoryQueue[Operation]):
        count = 0

        def put_nowait(self, item: Operation) -> None:
            self.count += 1
            super().put_nowait(item)

        def __len__(self) -> int:
            return self.size()

    queue = CountingQueue()
    async with open_prefactor(make_config(), queue=queue, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            pass
    assert queue.count == 4
    assert api.names() == ["register", "start", "agent_spans", "finish"]
    with pytest.raises(QueueClosedError, match="make a client with a new one"):
        await client.initialize()


async def test_a_queue_that_takes_nothing_costs_the_agent_nothing(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    class FullQueue(InMemoryQueue[Operation]):
        def put_nowait(self, item: Operation) -> None:
            raise BufferError("full")

    async with open_prefactor(make_config(), queue=FullQueue(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            pass
    assert client.statistics().dropped == {"queue": 4}
    assert client.statistics().last_error == "BufferError: full"
    warnings = [r for r in caplog.records if r.name == "prefactor_core.export.loss_report"]
    (warning,) = (record.getMessage() for record in warnings)
    assert "BufferError: full" in warning


async def test_the_span_types_come_from_the_registry_under_a_name_that_follows_from_them(
    api: FaultyApi,
) -> None:
    for _ in range(2):
        async with open_prefactor(make_config(), asgi_app=api) as client:
            for external_id in (None, "schema-7"):
                await client.create_agent_instance(**AGENT, external_schema_version_id=external_id)
    versions = [c.body["agent_schema_version"] for c in api.calls if c.name == "register"]
    names = [version["external_identifier"] for version in versions]
    assert names[0] == names[2]
    assert names[0].startswith("auto-tested-agent-")
    assert names[1] == names[3] == "schema-7"
    assert [t["name"] for t in versions[0]["span_type_schemas"]] == make_registry().list_schemas()


async def test_given_span_types_go_before_the_registry(api: FaultyApi) -> None:
    given = {"span_schemas": {"agent:own": {"type": "object"}}}
    async with open_prefactor(make_config(), asgi_app=api) as client:
        await client.create_agent_instance(
            **AGENT, agent_schema_version=given, external_schema_version_id="own"
        )
    assert api.calls[0].body["agent_schema_version"] == {**given, "external_identifier": "own"}
    assert "external_identifier" not in given


def test_a_registry_goes_before_that_of_the_config_and_none_keeps_it() -> None:
    config, other = make_config(), make_registry()
    assert open_prefactor(config, schema_registry=other).config.schema_registry is other
    kept = open_prefactor(config, schema_registry=None).config.schema_registry
    assert kept is config.schema_registry is not None


async def test_without_a_registry_a_run_has_the_standard_types_unless_it_brings_its_own(
    api: FaultyApi,
) -> None:
    own = {"external_identifier": "v1", "span_schemas": {"agent:own": {"type": "object"}}}
    async with open_prefactor(make_config(schema_registry=None), asgi_app=api) as client:
        assert client.config.schema_registry is None
        for version in (None, None, own):
            await client.create_agent_instance(**AGENT, agent_schema_version=version)
    first, second, third = (
        call.body["agent_schema_version"] for call in api.operations if call.name == "register"
    )
    types = standard_types().to_agent_schema_version(first["external_identifier"])
    assert first == second == types
    assert first["external_identifier"].startswith("auto-tested-agent-")
    assert third == own


async def test_an_option_that_no_run_has_is_named(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        misspelled: dict[str, Any] = {"name": "My agent"}
        with pytest.raises(PrefactorValueError, match="no option 'name' of a run: use agent_id"):
            async with client.agent_instance(**AGENT, **misspelled):
                pytest.fail("it was entered")
    assert api.calls == []


async def test_an_option_that_no_client_has_is_named_beside_those_that_there_are() -> None:
    misspelled: dict[str, Any] = {"url": "local:x.db"}
    with pytest.raises(PrefactorValueError, match="no option 'url' here: use api_url, api_token,"):
        open_prefactor(**misspelled)


async def test_the_scope_of_a_run_says_how_to_come_to_the_run(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        instance: Any = client.agent_instance(**AGENT)
        with pytest.raises(AttributeError, match=r"'span': enter it, by 'with .* instance\.span"):
            instance.span("agent:tool")
        with pytest.raises(AttributeError, match="no attribute 'spam'$"):
            instance.spam()
    assert api.calls == []


async def test_a_handle_for_an_unknown_run_is_a_clear_error(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        with pytest.raises(InstanceNotFoundError, match=PFID):
            AgentInstanceHandle(PFID, client)
        with pytest.raises(PrefactorValueError, match="agent_id"):
            await client.create_agent_instance("", {})


@pytest.mark.virtual_time
async def test_registering_is_tried_again_while_the_api_is_away(api: FaultyApi) -> None:
    api.faults["register"] = [ConnectionRefusedError(), (503, {"Retry-After": "3"}, None), 429]
    async with open_prefactor(make_config(registration_timeout=60), asgi_app=api) as client:
        async with client.agent_instance(**AGENT):
            pass
    registers = [call for call in api.calls if call.name == "register"]
    assert len({call.body["idempotency_key"] for call in registers}) == 1
    waits = [b.time - a.time for a, b in pairwise(registers)]
    assert 0.075 <= waits[0] <= 0.125
    assert 3.0 <= waits[1] <= 3.3
    assert 0.3 <= waits[2] <= 0.55, waits
    assert [run.status for run in await stored_runs(api)] == ["complete"]


@pytest.mark.virtual_time
@pytest.mark.parametrize("trouble", ["away", "hanging"])
async def test_a_run_that_cannot_be_registered_in_time_goes_on_and_is_registered_later(
    api: FaultyApi, trouble: str
) -> None:
    setattr(api, trouble, True)
    config = make_config(
        registration_timeout=5.0,
        drain_timeout=120.0,
        http={"max_retries": 100, "request_timeout": 30.0},
    )
    async with open_prefactor(config, asgi_app=api) as client:
        before = anyio.current_time()
        async with client.agent_instance(**AGENT) as instance:
            assert anyio.current_time() - before == pytest.approx(5.0, abs=0.01)
            provisional = instance.id
            assert identifiers.is_pfid(provisional)
            async with instance.span("agent:run") as span:
                await anyio.sleep(300)
                async with instance.span("agent:tool", parent_span_id=span.id):
                    setattr(api, trouble, False)
                    await anyio.sleep(300)
                assert instance.id != provisional
    assert client.statistics().lost == 0
    run = await stored_run(api)
    assert run.shape == (
        "complete",
        [("agent:run", "complete", [("agent:tool", "complete", [])])],
    )
    assert (run.id, run.named("agent:run").id) == (instance.id, span.id)
    keys = {call.body["idempotency_key"] for call in api.calls if call.name == "register"}
    assert len(keys) == 1


@pytest.mark.virtual_time
async def test_an_id_for_a_span_of_a_run_that_is_not_registered_yet_gets_its_partition(
    api: FaultyApi,
) -> None:
    api.away = True
    own = identifiers.generate(7)
    config = make_config(registration_timeout=5.0, drain_timeout=120.0)
    async with open_prefactor(config, asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with client.span(instance.id, "agent:run", span_id=own) as span:
                pass
            api.away = False
    run = await stored_run(api)
    assert identifiers.partition_of(run.named("agent:run").id) == identifiers.partition_of(run.id)
    assert run.named("agent:run").id == span.id == identifiers.with_partition_of(run.id, own)


@pytest.mark.virtual_time
async def test_while_the_api_is_known_to_be_away_no_run_waits_to_be_registered(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(drain_timeout=120), asgi_app=api) as client:
        async with client.agent_instance(**AGENT):
            await anyio.sleep(1)
            api.away = True
            await client.create_span((await client.create_agent_instance(**AGENT)).id, "agent:run")
            await anyio.sleep(60)
            before = anyio.current_time()
            async with client.agent_instance(**AGENT) as instance, instance.span("agent:tool"):
                pass
            assert anyio.current_time() == before
            api.away = False
    assert client.statistics().lost == 0
    assert [run.status for run in await stored_runs(api)] == ["complete"] * 3


@pytest.mark.virtual_time
async def test_a_run_whose_later_registration_is_refused_is_dropped_whole_and_counted(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(call: Call) -> object:
        attempts.append(call)
        if len(attempts) <= 4:
            return ConnectionRefusedError()
        return 422 if call.body.get("purpose") == "eval" else None

    attempts: list[Call] = []
    api.faults["register"] = fail
    async with open_prefactor(make_config(registration_timeout=60), asgi_app=api) as client:
        async with (
            client.agent_instance(**AGENT, purpose="eval") as instance,
            instance.span("agent:run") as span,
        ):
            await span.start()
            await anyio.sleep(60)
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:tool"):
            pass
    statistics = client.statistics()
    # The registration, the run's start and finish, and the span's.
    assert (statistics.dropped, statistics.delivered) == ({"refused": 5}, 4)
    assert (await stored_run(api)).shape == ("complete", [("agent:tool", "complete", [])])
    assert api.names() == ["register", "start", "agent_spans", "finish"]
    (warning,) = (r for r in caplog.records if "are dropped (refused)" in r.getMessage())
    assert "REGISTER_AGENT_INSTANCE" in warning.getMessage()


@pytest.mark.virtual_time
async def test_a_registration_that_the_api_refuses_raises_at_once(api: FaultyApi) -> None:
    # A version that is refused as invalid is tried without the environment, too.
    for status, calls in {400: 2, 401: 1, 403: 1, 404: 1, 422: 2}.items():
        api.faults["register"] = status
        api.calls.clear()
        async with open_prefactor(make_config(), asgi_app=api) as client:
            before = anyio.current_time()
            with pytest.raises(PrefactorApiError) as caught:
                await client.create_agent_instance(**AGENT)
            assert anyio.current_time() == before, status
        assert caught.value.status_code == status
        assert len(api.calls) == calls, status


async def test_an_outer_cancellation_ends_a_registration(api: FaultyApi) -> None:
    api.hanging = True
    async with open_prefactor(make_config(drain_timeout=0.05), asgi_app=api) as client:
        with anyio.fail_after(5), anyio.move_on_after(0.01) as scope:
            await client.create_agent_instance(**AGENT)
        assert scope.cancelled_caught


async def test_a_given_instance_id_is_used(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        first = await client.create_agent_instance(**AGENT)
        own = identifiers.generate_related(first.id)
        second = await client.create_agent_instance(**AGENT, instance_id=own)
        assert second.id == own


async def test_a_loss_raises_only_after_the_database_was_closed(tmp_path: Path) -> None:
    config = make_config(
        http={"api_url": f"local:{tmp_path}/x.db"},
        queue={"max_pending_operations": 1},
        raise_on_loss=True,
    )
    with pytest.raises(PrefactorTelemetryFailureError) as caught:
        async with open_prefactor(config) as client:
            async with client.agent_instance(**AGENT) as instance:
                with instance.span("agent:tool"), instance.span("agent:tool"):
                    pass
    # The files beside it are gone with the last connection.
    assert [path.name async for path in anyio.Path(tmp_path).iterdir()] == ["x.db"]
    assert caught.value.dropped_operations > 0


async def test_no_task_stream_or_connection_is_left_behind(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        async with client.agent_instance(**AGENT):
            pass
    del client
    gc.collect()  # an unclosed stream would warn here, and a warning is an error


@pytest.mark.parametrize("enabled", [True, False])
async def test_with_instead_of_async_with_says_which_to_use(api: FaultyApi, enabled: bool) -> None:
    client = open_prefactor(make_config(enabled=enabled), asgi_app=api)
    with pytest.raises(ClientScopeError, match="'async with'.* open_prefactor_sync"):
        with client:
            pytest.fail("the body must not run")
    async with client:
        pass
