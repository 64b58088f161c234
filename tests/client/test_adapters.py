"""What adapters do that were written for prefactor-core 0.5.3: its private names, its ways.

The adapters here are this file's own, and use the names as the vendor's do. ``just compat`` runs
the vendor's.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import math
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from support.harness import (
    AGENT,
    FaultyApi,
    StoredRun,
    make_config,
    make_registry,
    open_faulty_api,
    stored_run,
    stored_runs,
    terminate,
)

import prefactor_core
from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    PrefactorTelemetryFailureError,
    PrefactorTerminatedError,
    PrefactorTypeError,
    PrefactorValueError,
    SchemaRegistry,
    Statistics,
    open_prefactor,
    warn_missing_adaptor_config,
)
from prefactor_core.exceptions.outcome import outcome_of

ENTRY = "prefactor-testing@0.3.0"
REASON = "over budget"
Step = Callable[[], Awaitable[object]]


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


async def in_a_task(step: Step) -> None:
    """Do ``step`` in a task of its own."""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)


def in_a_new_thread(function: Callable[[], None]) -> None:
    """Call ``function`` in a thread that has nothing of this context."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


class Adapter:
    """Records a framework's hooks on a client, or on a run, as the vendor's middleware does."""

    def __init__(
        self,
        client: Any = None,
        instance: AgentInstanceHandle | None = None,
        owns_client: bool = False,
    ) -> None:
        owner: Any = client if instance is None else instance
        if not owns_client and instance is None and not client._initialized:
            raise ValueError("the client is not open")
        named = owner if hasattr(owner, "_initialized") else owner._client
        was_named = named._sdk_header_entry == ENTRY
        named._set_sdk_header_entry(ENTRY)
        if not was_named and instance is not None:
            warn_missing_adaptor_config(instance.id, "adapter", "Adapter.create_client(config)")
        self.client, self.instance = client, instance
        self._owns_client = owns_client
        self._termination_event: Any = None
        self._blocks: list[Any] = []

    async def ensure_initialized(self) -> AgentInstanceHandle:
        if self.instance is not None:
            return self.instance
        if self._owns_client and not self.client._initialized:
            await self.client.initialize()
        if self.client._config.schema_registry is None:
            self.client._config.schema_registry = make_registry()
        version = self.client._config.schema_registry.to_agent_schema_version("adapter-1")
        self.instance = await self.client.create_agent_instance(
            agent_id=AGENT["agent_id"],
            agent_version=AGENT["agent_version"],
            agent_schema_version=None,
            external_schema_version_id=version["external_identifier"],
            environment_id=None,
        )
        await self.instance.start()
        monitor = self.client._termination_monitor
        if monitor is not None:
            self._termination_event = monitor.get_termination_event
        return self.instance

    def raise_if_terminated(self) -> None:
        if self._termination_event is not None and self._termination_event().is_set():
            raise PrefactorTerminatedError(self.client._termination_monitor.termination_reason)

    async def before(self, name: str) -> None:
        self.raise_if_terminated()
        instance = await self.ensure_initialized()
        block = instance.span(name)
        span = await block.__aenter__()
        await span.start({"at": "before"})
        self._blocks.append((block, span))

    async def after(self, error: bool = False) -> None:
        block, span = self._blocks.pop()
        await (span.fail({"at": "after"}) if error else span.complete({"at": "after"}))
        await block.__aexit__(None, None, None)

    async def close(self) -> None:
        if self.instance is not None:
            await self.instance.finish()
        if self._owns_client:
            await self.client.close()


class Handler:
    """Asks at every step of a graph whether the run was terminated, by way of the run's client."""

    def __init__(self, instance: AgentInstanceHandle) -> None:
        self.instance = instance

    async def on_step(self) -> None:
        monitor = getattr(self.instance._client, "_termination_monitor", None)
        if monitor is not None and monitor.get_termination_event().is_set():
            raise PrefactorTerminatedError(monitor.termination_reason)
        async with self.instance.span("agent:tool"):
            pass


async def hear_of_termination(
    api: FaultyApi, client: PrefactorCoreClient, run: AgentInstanceHandle
) -> None:
    """Return when the API has terminated ``run`` and the client knows."""
    with run.span("agent:llm"):
        pass
    await client.flush()
    await terminate(api, run.id, REASON)
    heard = anyio.Event()
    run.on_terminate(lambda reason: heard.set())
    for _ in range(2):  # their answers tell
        with run.span("agent:llm"):
            pass
    with anyio.fail_after(5):
        await heard.wait()


async def started_run(client: PrefactorCoreClient) -> AgentInstanceHandle:
    run = await client.create_agent_instance(**AGENT)
    await run.start()
    return run


# --- The whole way of an adapter


async def test_an_adapter_opens_records_and_closes_in_three_tasks(api: FaultyApi) -> None:
    adapter = Adapter(PrefactorCoreClient(make_config(), asgi_app=api), owns_client=True)

    async def record() -> None:
        await in_a_task(lambda: adapter.before("agent:run"))
        await adapter.before("agent:tool")
        await adapter.after(error=True)
        await in_a_task(adapter.after)

    assert not adapter.client._initialized
    for step in (adapter.ensure_initialized, record, adapter.close):
        await in_a_task(step)
    assert not adapter.client._initialized
    assert (await stored_run(api)).shape == (
        "complete",
        [("agent:run", "complete", []), ("agent:tool", "failed", [])],
    )
    assert {call.headers["x-prefactor-sdk"].split()[0] for call in api.calls} == {ENTRY}
    assert adapter.client.statistics().lost == 0


def test_hooks_in_threads_have_the_loop_record_for_them() -> None:
    """As middleware does in synchronous code: spans by id, from outside of the loop."""

    async def main() -> StoredRun:
        async with open_faulty_api() as api:
            async with PrefactorCoreClient(make_config(), asgi_app=api) as client:
                run = await started_run(client)
                loop = asyncio.get_running_loop()

                async def emit(parent_span_id: str) -> None:
                    async with run.span("agent:llm", parent_span_id=parent_span_id) as span:
                        await span.start({})
                        await span.complete({})

                def agent() -> None:
                    create = run.create_span(
                        schema_name="agent:run", payload={}, parent_span_id=None
                    )
                    span_id = asyncio.run_coroutine_threadsafe(create, loop).result(5)
                    asyncio.run_coroutine_threadsafe(emit(span_id), loop).result(5)
                    finish = run.finish_span(span_id, result_payload={"outputs": []})
                    asyncio.run_coroutine_threadsafe(finish, loop).result(5)

                await asyncio.to_thread(agent)
                await run.finish()
            assert client.statistics().lost == 0
            return await stored_run(api)

    assert asyncio.run(main()).shape == (
        "complete",
        [("agent:run", "complete", [("agent:llm", "complete", [])])],
    )


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_a_block_is_entered_in_one_loop_and_left_in_another(
    api: FaultyApi, other: str
) -> None:
    adapter = Adapter(PrefactorCoreClient(make_config(), asgi_app=api), owns_client=True)
    await adapter.ensure_initialized()

    async def elsewhere() -> None:
        await adapter.before("agent:tool")
        await adapter.after()
        await adapter.after()

    await adapter.before("agent:run")
    await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=other))
    await adapter.close()
    assert (await stored_run(api)).shape == (
        "complete",
        [("agent:run", "complete", [("agent:tool", "complete", [])])],
    )
    assert adapter.client.statistics().lost == 0


async def test_an_adapter_gives_an_open_client_its_span_types(api: FaultyApi) -> None:
    config = make_config()
    config.schema_registry = None
    async with PrefactorCoreClient(config, asgi_app=api) as client:
        adapter = Adapter(client)
        await adapter.before("agent:tool")
        await adapter.after()
        await adapter.close()
    (call,) = (call for call in api.operations if call.name == "register")
    registered = call.body["agent_schema_version"]
    assert registered["external_identifier"] == "adapter-1"
    assert isinstance(client._config.schema_registry, SchemaRegistry)
    assert client.config.schema_registry is client._config.schema_registry


# --- Whether the client is open


async def test_a_client_is_open_from_the_opening_of_its_scope_to_the_end(api: FaultyApi) -> None:
    client: Any = open_prefactor(make_config(), asgi_app=api)
    assert (client.is_open, client._initialized) == (False, False)
    async with client:
        assert (client.is_open, client._initialized) == (True, True)
    assert (client.is_open, client._initialized) == (False, False)
    await client.initialize()
    assert (client.is_open, client._initialized) == (True, True)
    await client.close()
    assert (client.is_open, client._initialized) == (False, False)


async def test_a_disabled_client_is_open_like_any_other() -> None:
    client: Any = open_prefactor(enabled=False)
    assert not client.is_open
    async with client:
        assert client._initialized
        assert not client._termination_monitor.get_termination_event().is_set()
        adapter = Adapter(client)
        await adapter.before("agent:tool")
        await adapter.after()
        await adapter.close()
    assert not client.is_open


async def test_a_client_that_is_not_open_is_refused_by_an_adapter() -> None:
    with pytest.raises(ValueError, match="not open"):
        Adapter(PrefactorCoreClient(make_config()))


async def test_a_run_is_not_taken_for_a_client(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        run = await client.create_agent_instance(**AGENT)
        assert not hasattr(run, "_initialized")
        assert hasattr(client, "_initialized")


# --- The name of the adapter


async def test_an_adapter_names_itself_on_a_client_that_is_open(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        first = await started_run(client)
        await client.flush()
        before = len(api.calls)
        client.set_sdk_header_entry(ENTRY)
        assert (client.sdk_header_entry, client.config.sdk_header_entry) == (ENTRY, None)
        await client.create_agent_instance(
            "tested-agent", {"name": "Tested agent", "external_identifier": "v2"}
        )
        await first.finish()
    ours = f"prefactor-core@{prefactor_core.__version__}"
    assert {call.headers["x-prefactor-sdk"] for call in api.calls[:before]} == {ours}
    assert {call.headers["x-prefactor-sdk"] for call in api.calls[before:]} == {f"{ENTRY} {ours}"}
    assert [
        call.body["agent_version"]["runtime_environment"]["agent_sdk"]
        for call in api.operations
        if call.name == "register"
    ] == [[], [ENTRY]]


async def test_the_name_of_a_client_stays_its_own_and_can_be_taken_back() -> None:
    config = make_config(sdk_header_entry="a@1")
    client: Any = PrefactorCoreClient(config)
    other: Any = PrefactorCoreClient(config)
    client._set_sdk_header_entry(f" {ENTRY} ")
    assert (client._sdk_header_entry, other._sdk_header_entry) == (ENTRY, "a@1")
    for nothing in (None, ""):
        client._set_sdk_header_entry(ENTRY)
        client._set_sdk_header_entry(nothing)
        assert client.sdk_header_entry is None
    with pytest.raises(PrefactorValueError, match="entry must be package@version"):
        client.set_sdk_header_entry("langchain")
    assert client.sdk_header_entry is None


async def test_a_run_that_was_registered_without_the_adapters_name_is_one_warning(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        run = await client.create_agent_instance(**AGENT)
        for _ in range(2):
            Adapter(instance=run)
        assert client.sdk_header_entry == ENTRY
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"agent instance {run.id!r} was registered before the 'adapter' could name itself on the "
        "client: make the client by Adapter.create_client(config), and the agent instance after "
        "that"
    )


# --- Terminations


async def test_a_client_without_runs_was_not_terminated(api: FaultyApi) -> None:
    client: Any = open_prefactor(make_config(), asgi_app=api)
    for change in (client.initialize, client.close):
        assert (client.termination.reason, client.termination.instance_id) == (None, None)
        assert not client._termination_monitor.get_termination_event().is_set()
        await change()


async def test_a_client_tells_of_the_run_of_the_context(api: FaultyApi) -> None:
    with anyio.fail_after(10):
        async with open_prefactor(make_config(), asgi_app=api) as client:
            told: dict[str, tuple[str | None, str | None]] = {}

            async def agent(name: str, is_terminated: bool) -> None:
                run = await started_run(client)
                if is_terminated:
                    await hear_of_termination(api, client, run)
                arrived.append(run)
                if len(arrived) == 2:
                    both.set()
                await both.wait()
                assert client.termination.instance_id == run.id
                told[name] = client.termination.reason, run.terminated

            arrived: list[AgentInstanceHandle] = []
            both = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent, "stopped", True)
                tasks.start_soon(agent, "going on", False)
    assert told == {"stopped": (REASON, REASON), "going on": (None, None)}


async def test_without_a_run_in_the_context_the_last_one_counts(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        first = await started_run(client)
        last = await started_run(client)

        def ask() -> None:
            told.append(client.termination.instance_id)

        told: list[str | None] = []
        in_a_new_thread(ask)
        await last.finish()
        in_a_new_thread(ask)
        await first.finish()
        in_a_new_thread(ask)
        assert told == [last.id, first.id, None]


async def test_a_run_of_another_client_in_the_context_does_not_count(api: FaultyApi) -> None:
    async with (
        open_prefactor(make_config(), asgi_app=api) as outer,
        open_prefactor(make_config(), asgi_app=api) as inner,
    ):
        run, other = await started_run(outer), await started_run(inner)
        assert outer.termination.instance_id == run.id
        assert inner.termination.instance_id == other.id


async def test_an_adapter_asks_about_its_own_run_also_from_threads_without_a_context(
    api: FaultyApi,
) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        adapters = [Adapter(client), Adapter(client)]
        for adapter in adapters:  # each starts its run in a task that then ends
            await in_a_task(adapter.ensure_initialized)
        stopped, other = adapters
        assert stopped.instance is not None
        in_a_new_thread(stopped.raise_if_terminated)
        await hear_of_termination(api, client, stopped.instance)
        with pytest.raises(PrefactorTerminatedError):
            in_a_new_thread(stopped.raise_if_terminated)
        in_a_new_thread(other.raise_if_terminated)


@pytest.mark.parametrize("stopped", [0, 1])
async def test_a_termination_stops_the_graph_of_its_run_and_no_other(
    api: FaultyApi, stopped: int
) -> None:
    """A callback handler has its run, wherever the graph goes on: also beside other runs."""
    steps = [0, 0]
    ended: list[BaseException | None] = [None, None]

    async def graph(number: int, handler: Handler) -> None:
        try:
            for _ in range(5):
                await handler.on_step()
                steps[number] += 1
        except PrefactorTerminatedError as error:
            ended[number] = error

    async with open_prefactor(make_config(), asgi_app=api) as client:
        runs = [await started_run(client), await started_run(client)]
        await hear_of_termination(api, client, runs[stopped])
        async with anyio.create_task_group() as tasks:
            for number, run in enumerate(runs):
                tasks.start_soon(graph, number, Handler(run))
        for run in runs:
            await run.finish()
    expected = [5, 5]
    expected[stopped] = 0
    assert steps == expected
    error = ended[stopped]
    assert isinstance(error, PrefactorTerminatedError)
    assert error.reason == REASON
    assert ended[1 - stopped] is None
    by_id = {run.id: run for run in await stored_runs(api)}
    assert [by_id[run.id].status for run in runs].count("terminated") == 1
    assert all(no_span_is_open(run) for run in by_id.values())


def langchains_run_coros() -> Callable[[Any], None]:
    """As LangChain runs the coroutines of an asynchronous handler in a synchronous call."""
    namespace: dict[str, Any] = {"__name__": "langchain_core.callbacks.manager"}
    code = """
def _run_coros(coroutine):
    try:
        coroutine.send(None)
    except StopIteration:
        pass
    except Exception as error:
        pass  # "Error in callback coroutine"
"""
    exec(code, namespace)
    run_coros: Callable[[Any], None] = namespace["_run_coros"]
    return run_coros


async def test_a_termination_reaches_a_synchronous_graph_that_swallows_every_exception(
    api: FaultyApi,
) -> None:
    run_coros = langchains_run_coros()

    def graph(run: AgentInstanceHandle) -> None:
        run_coros(Handler(run).on_step())

    async with open_prefactor(make_config(), asgi_app=api) as client:
        run = await started_run(client)
        await anyio.to_thread.run_sync(graph, run)
        await hear_of_termination(api, client, run)
        with pytest.raises(BaseExceptionGroup) as stopped:
            await anyio.to_thread.run_sync(graph, run)
        (error,) = stopped.value.exceptions
        assert isinstance(error, PrefactorTerminatedError)
        assert error.reason == REASON
        assert outcome_of(stopped.value) == "cancelled"
        with pytest.raises(PrefactorTerminatedError, match=REASON):  # as before
            await Handler(run).on_step()
        await run.finish()
    assert no_span_is_open(await stored_run(api))


async def test_the_scope_of_a_run_raises_the_error_and_not_the_group(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:

        def work() -> None:
            with client.agent_instance(**AGENT) as run:
                anyio.from_thread.run(hear_of_termination, api, client, run)
                langchains_run_coros()(Handler(run).on_step())
                raise AssertionError("the graph went on")

        with pytest.raises(PrefactorTerminatedError, match=REASON):
            await anyio.to_thread.run_sync(work)
    assert no_span_is_open(await stored_run(api))


def no_span_is_open(run: StoredRun) -> bool:
    return {span.status for span in run.spans.values()} <= {"complete", "failed", "cancelled"}


async def test_the_client_of_a_run_is_the_client_but_for_its_termination(api: FaultyApi) -> None:
    async with open_prefactor(make_config(), asgi_app=api) as client:
        run: Any = await client.create_agent_instance(**AGENT)
        assert run.client is client
        assert run._client._initialized is True
        assert run._client._config is client.config
        run._client._set_sdk_header_entry(ENTRY)
        assert run._client._sdk_header_entry == client.sdk_header_entry == ENTRY
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = run._client.no_such_name
        for copied in (copy.copy, copy.deepcopy):
            with pytest.raises(PrefactorTypeError, match="neither copied nor pickled"):
                copied(run._client)


# --- Errors


def test_adapters_raise_our_errors_with_the_arguments_of_theirs() -> None:
    unknown = PrefactorTerminatedError(None)
    assert (unknown.reason, unknown.instance_id) == (None, None)
    assert str(unknown) == "Prefactor has terminated agent instance"
    assert str(PrefactorTerminatedError()) == str(unknown)
    known = PrefactorTerminatedError(REASON)
    assert (known.reason, str(known)) == (
        REASON,
        f"Prefactor has terminated agent instance: {REASON}",
    )
    cause = ValueError("refused")
    failure = PrefactorTelemetryFailureError(
        "failed for good", cause=cause, operation_type="CREATE_SPAN", dropped_operations=3
    )
    assert str(failure) == "failed for good"
    assert (failure.cause, failure.operation_type) == (cause, "CREATE_SPAN")
    assert (failure.dropped_operations, failure.statistics) == (3, None)
    assert PrefactorTelemetryFailureError("failed", cause=cause).dropped_operations == 0


def test_our_own_failure_has_the_balance_and_counts_by_it() -> None:
    balance = Statistics(
        accepted=4,
        delivered=2,
        pending=0,
        pending_bytes=0,
        open_bytes=0,
        in_flight=0,
        dropped={"refused": 2},
        requests=1,
        retries=0,
        merged=0,
        last_error=None,
        outage_since=None,
    )
    failure = PrefactorTelemetryFailureError("lost", balance)
    assert (failure.statistics, failure.dropped_operations) == (balance, 2)
    assert (failure.cause, failure.operation_type) == (None, None)


# --- Configurations


class HttpConfig:
    """As the official package's dataclass: its attributes, and more."""

    def __init__(self, api_url: str, api_token: str) -> None:
        self.api_url, self.api_token = api_url, api_token
        self.request_timeout = 12.0
        self.of_the_official_package_only = True


def test_the_configuration_of_the_official_package_is_taken_by_its_attributes() -> None:
    config = PrefactorCoreConfig(
        http_config=HttpConfig("http://prefactor.invalid", "token"),  # type: ignore[arg-type]
        schema_registry=make_registry(),
        termination_poll_interval=math.inf,
    )
    client: Any = PrefactorCoreClient(config, sdk_header_entry=ENTRY)
    assert client._config.http_config.request_timeout == 12.0
    assert client._sdk_header_entry == ENTRY


def test_the_adapters_names_are_what_they_call() -> None:
    """The signatures that the vendor's adapters rely on."""
    parameters = inspect.signature(warn_missing_adaptor_config).parameters
    assert list(parameters) == ["instance_id", "adaptor_name", "create_client_call"]
    assert "sdk_header_entry" in inspect.signature(PrefactorCoreClient).parameters
