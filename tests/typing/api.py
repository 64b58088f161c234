"""The public API as type checkers see it: checked, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_type

from httpx import Headers

from prefactor_core import (
    AgentInstanceHandle,
    HttpClientConfig,
    InMemoryQueue,
    Operation,
    OperationType,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    PrefactorRateLimitError,
    PrefactorValidationError,
    Queue,
    QueueConfig,
    SchemaRegistry,
    Sensitive,
    Span,
    SpanContext,
    SpanContextStack,
    Statistics,
    SyncPrefactorClient,
    TaskExecutor,
    build_runtime_environment,
    current_span,
    generate_idempotency_key,
    open_prefactor,
    open_prefactor_sync,
    sensitive,
    traced,
    validate_idempotency_key,
)
from prefactor_core.schema_registry.type_schema import Fields
from prefactor_core.span_types import LLMResult
from prefactor_core.testing import RecordedRun, RecordedSpan, Recording, open_recording


@dataclass
class OfficialConfig:
    """Has the attributes of the official package's HttpClientConfig."""

    api_url: str
    api_token: str
    request_timeout: float = 30.0
    connect_timeout: float = 10.0
    max_retries: int = 3
    initial_retry_delay: float = 1.0
    max_retry_delay: float = 60.0
    retry_multiplier: float = 2.0
    retry_on_status_codes: tuple[int, ...] = (429,)


def configurations() -> None:
    http = HttpClientConfig(api_url="local:x.db")
    config = PrefactorCoreConfig(http_config=http)
    PrefactorCoreConfig(http_config={"api_url": "local:x.db"}, queue_config={"num_workers": 2})
    PrefactorCoreConfig(http_config=OfficialConfig("https://x.test", "token"))
    assert_type(config.http_config, HttpClientConfig)
    assert_type(config.queue_config, QueueConfig)
    assert_type(PrefactorCoreConfig.from_env(), PrefactorCoreConfig)
    PrefactorCoreConfig(enabled=False)
    PrefactorCoreClient(config, sdk_header_entry="prefactor-langchain@0.3.0")
    open_prefactor(config, sdk_header_entry="prefactor-langchain@0.3.0", validate_token=True)
    assert_type(build_runtime_environment("prefactor-langchain@0.3.0"), dict[str, object])
    assert_type(validate_idempotency_key(generate_idempotency_key()), str)
    PrefactorCoreConfig(http_config=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def scopes(queue: Queue[Operation], registry: SchemaRegistry) -> None:
    async with open_prefactor(schema_registry=registry, queue=queue) as client:
        assert_type(client, PrefactorCoreClient)
        assert_type(client.statistics(), Statistics)
        assert_type(client.is_open, bool)
        client.set_sdk_header_entry("prefactor-langchain@0.3.0")
        assert_type(client.sdk_header_entry, str | None)
        assert_type(client.termination.reason, str | None)
        async with client.agent_instance("agent", {"name": "Agent"}) as instance:
            assert_type(instance, AgentInstanceHandle)
            assert_type(instance.id, str)
            async with instance.span("agent:llm", payload={"n": 1}) as span:
                assert_type(span, SpanContext)
                await span.start({"n": 1}, started_at=datetime.now(UTC))
                span.set_result({"n": [1, 2]})
                await span.complete({"n": sensitive(1, "minors_data")}, timestamp=datetime.now(UTC))
                await span.cancel(timestamp=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            with instance.span("agent:tool") as same:
                assert_type(same, SpanContext)
            begun = instance.span("agent:tool").begin()
            assert_type(begun, SpanContext)
            begun.end("failed", {"n": 1}, error=ValueError(), timestamp=datetime.now(UTC))
            begun.end("done")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            begun.end(error="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            assert_type(await instance.create_span("agent:tool"), str)
            await instance.finish_span("…", {"n": 1}, status="failed")
            client.finish_span_nowait("…", LLMResult(response="Hi"), status="cancelled")
            await instance.record_quality("accuracy", {"score": 1})
            await client.record_quality(instance.id, "accuracy")
            await instance.finish("failed", timestamp=datetime.now(UTC))
            await instance.finish("done")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        handle = await client.create_agent_instance("agent", {"name": "Agent"})
        await client.create_agent_instance(
            agent_version={"name": "Agent"},
            environment_id="…",
            purpose="smoke_test",
            external_identifier="…",
        )
        client.agent_instance(agent_version={}, parent={"traceparent": "…"})
        client.agent_instance(agent_version={}, parent=[(b"traceparent", b"x")])
        client.agent_instance(agent_version={}, parent=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        client.inject({})
        client.inject(Headers())
        client.inject(())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        client.inject({"n": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
        client.agent_instance(agent_version={}, parent=client.inject({}))  # type: ignore[func-returns-value]
        client.agent_instance(agent_version={}, purpose="eval")
        client.agent_instance(agent_version={}, purpose="test")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(handle, AgentInstanceHandle)
        assert_type(client.span_manager.get_span("…"), Span)


async def without_a_block() -> None:
    client = open_prefactor(api_url="local:x.db")
    await client.initialize()
    await client.close()


async def as_in_0_5_3(client: PrefactorCoreClient, registry: SchemaRegistry) -> None:
    run = await client.create_agent_instance({"name": "Agent"}, None, "agent")
    assert_type(run, AgentInstanceHandle)
    await client.create_agent_instance({"name": "Agent"}, agent_id="agent", purpose="eval")
    await client.create_agent_instance({"name": "Agent"}, "agent")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await client.create_agent_instance("agent", "agent")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await run.start(datetime.now(UTC))
    span = client.span(run.id, "agent:llm", None, {"n": 1})
    assert_type(span, SpanContext)
    await span.start({"n": 1}, datetime.now(UTC))
    await span.complete({"n": 1}, datetime.now(UTC))
    await run.finish("complete", datetime.now(UTC))
    registry.register(schema_name="agent:llm", schema={})
    registry.register_result(schema_name="agent:llm", result_schema={})


async def the_other_way() -> None:
    with open_prefactor():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    async with open_prefactor_sync():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


def endpoint(client: PrefactorCoreClient) -> None:
    with client.agent_instance("agent", {"name": "Agent"}) as instance:
        assert_type(instance, AgentInstanceHandle)


def marks() -> None:
    assert_type(sensitive("Ada", "personal_identifiers", "minors_data"), Sensitive)
    sensitive("Ada", "personal")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sensitive(None, "minors_data")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def synchronous(registry: SchemaRegistry) -> None:
    with open_prefactor_sync(api_url="local:x.db", schema_registry=registry) as client:
        assert_type(client, SyncPrefactorClient)
        assert_type(client.core, PrefactorCoreClient)
        assert_type(client.create_agent_instance("agent", {"name": "Agent"}), AgentInstanceHandle)
        with client.agent_instance("agent", {}, instance_id="…") as instance:
            assert_type(instance, AgentInstanceHandle)
            with instance.span("agent:llm", payload={"n": 1}) as span:
                assert_type(span, SpanContext)
                span.complete_nowait({"n": 1})
            assert_type(instance.create_span_nowait("agent:tool"), str)
        with client.span(instance.id, "agent:llm", parent_span_id="…") as span:
            assert_type(span, SpanContext)
        assert_type(client.create_span(instance.id, "agent:tool", payload={"n": 1}), str)
        assert_type(client.statistics(), Statistics)
        assert_type(client.flush(1.5), bool)
        assert_type(current_span(), SpanContext[Mapping[str, object] | Fields] | None)
        client.finish_span("…", {"n": 1}, timestamp=datetime.now(UTC))
        client.record_quality(instance.id, "accuracy", {"score": 1})
        client.inject({})
        client.inject(Headers())
        client.create_agent_instance(agent_version={}, purpose="live", parent={b"baggage": b"x"})
        client.create_agent_instance(agent_version={}, purpose="test")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        client.create_agent_instance(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        client.agent_instance("agent", {}, id="…")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        client.agent_instance("agent", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        client.create_span(instance)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
        client.span(instance.id, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        client.finish_span()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        client.statistics(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    opened = open_prefactor_sync(api_url="local:x.db").open()
    assert_type(opened, SyncPrefactorClient)
    opened.close()
    opened.open("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    open_prefactor_sync(drain_timeout="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@traced("agent:tool", exclude=("limit",))
async def search(query: str, limit: int = 3) -> list[str]:
    return [query] * limit


@traced("agent:tool", capture_result=False)
def count(text: str) -> int:
    return len(text)


@traced("agent:llm", reduce="".join)
async def astream(prompt: str) -> AsyncGenerator[str, int]:
    yield prompt


@traced("agent:llm", reduce=len)
def stream(prompt: str) -> Generator[str, int, bool]:
    yield prompt
    return True


class Tools:
    @traced("agent:tool")
    def method(self, text: str) -> int:
        return len(text)

    @classmethod
    @traced("agent:tool")
    def of_the_class(cls, text: str) -> int:
        return len(text)

    @staticmethod
    @traced("agent:tool")
    def static(text: str) -> int:
        return len(text)


async def decorated(instance: AgentInstanceHandle) -> None:
    assert_type(await search("x", limit=2), list[str])
    assert_type(count("x"), int)
    assert_type(astream("x"), AsyncGenerator[str, int])
    assert_type(stream("x"), Generator[str, int, bool])
    assert_type(Tools().method("x"), int)
    assert_type(Tools.of_the_class("x"), int)
    assert_type(Tools.static("x"), int)
    assert_type(instance.traced("agent:tool")(count)("x"), int)
    search(3)  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    count()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Tools().method(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    traced("agent:tool", reduce=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    traced("agent:tool")(3)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def operations(operation: Operation) -> None:
    assert_type(operation.type, OperationType)
    assert_type(SpanContextStack.peek(), str | None)


async def executors() -> None:
    async def handle(item: int) -> None: ...

    async def wrong(item: str) -> None: ...

    queue = InMemoryQueue[int]()
    async with TaskExecutor(queue, handle) as executor:
        assert_type(executor, TaskExecutor[int])
    TaskExecutor(queue, wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def errors(refused: PrefactorValidationError, limited: PrefactorRateLimitError) -> None:
    assert_type(refused.errors, dict[str, str])
    assert_type(limited.retry_after, float | None)
    assert_type(limited.status_code, int | None)


async def recordings(prefactor: Recording, registry: SchemaRegistry) -> None:
    async with prefactor.open(schema_registry=registry, max_payload_bytes=2000) as client:
        assert_type(client, PrefactorCoreClient)
    prefactor.open(api_url="local:x.db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with prefactor.open_sync(enabled=False) as synchronous_client:
        assert_type(synchronous_client, SyncPrefactorClient)
    with prefactor.capture() as captured:
        assert_type(captured, Recording)
    prefactor.capture("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with open_recording() as recording:
        assert_type(recording, Recording)
        assert_type(recording.runs, list[RecordedRun])
        assert_type(recording.run.outline, str)
        assert_type(recording.run.finished_at, datetime | None)
        assert_type(recording.run.roots, list[RecordedSpan])
        span = recording.run.named("agent:llm")
        assert_type(span, RecordedSpan)
        assert_type(span.children, list[RecordedSpan])
        assert_type(span.payload, dict[str, Any])
        assert_type(span.result, dict[str, Any] | None)
