"""A disabled client: the same program runs unchanged, and nothing is recorded, sent or kept."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import AGENT, make_config

from prefactor_core import (
    AgentInstanceHandle,
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    HttpClientConfig,
    InstanceNotFoundError,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    PrefactorValueError,
    SchemaRegistry,
    SpanContextStack,
    current_instance,
    current_span,
    open_prefactor,
    open_prefactor_sync,
    traced,
)
from prefactor_core.agent.disabled_span import DisabledSpan
from prefactor_core.operations import identifiers
from prefactor_core.testing import Recording, open_recording

ZERO = {
    "accepted": 0,
    "delivered": 0,
    "pending": 0,
    "pending_bytes": 0,
    "open_bytes": 0,
    "in_flight": 0,
    "dropped": {},
    "requests": 0,
    "retries": 0,
    "merged": 0,
    "last_error": None,
    "outage_since": None,
    "assumed": (),
    "journal_bytes": 0,
    "unjournaled": 0,
    "adopted": 0,
    "degraded": {},
}


@pytest.fixture
def recording() -> Generator[Recording]:
    with open_recording() as recording:
        yield recording


def open_off(**options: Any) -> PrefactorCoreClient:
    return open_prefactor(enabled=False, schema_registry=SchemaRegistry(), **options)


def all_zero(client: PrefactorCoreClient) -> bool:
    statistics = client.statistics()
    return {name: getattr(statistics, name) for name in statistics.__struct_fields__} == ZERO


# --- one program, both ways ---


@traced("agent:tool", exclude=("key",))
async def search(query: str, key: str = "") -> list[str]:
    await anyio.lowlevel.checkpoint()
    span = current_span()
    assert span is not None
    span.set_result({"asked": query})
    return [query] * 2


@traced("agent:tool")
def divide(a: float, b: float) -> float:
    return a / b


@traced("agent:llm", reduce="".join)
async def astream(text: str) -> AsyncGenerator[str]:
    for word in text.split():
        await search(word)
        yield word


@traced("agent:llm", reduce=len)
def stream(text: str) -> Generator[str, str, int]:
    got = 0
    for word in text.split():
        got += bool((yield word))
    return got


See = Callable[..., None]
"""Takes values that must be the same both ways."""


def said(call: Callable[[], object]) -> str:
    """What a call raises, by type."""
    try:
        return f"gave a {type(call()).__name__}"
    except Exception as error:
        return type(error).__name__


async def in_steps(client: PrefactorCoreClient, see: See) -> None:
    instance = await client.create_agent_instance(**AGENT)
    see(identifiers.is_pfid(instance.id), instance.ended, instance.terminated)
    async with instance.span("agent:run") as span:  # the run begins with it
        see(current_span() is span)
    await instance.start()
    await instance.start()
    see(current_instance() is instance)
    outer = await instance.create_span("agent:run", payload={"n": 1})
    inner = await client.create_span(instance.id, "agent:tool", parent_span_id=outer)
    nowait = client.create_span_nowait(instance.id, "agent:tool")
    see([identifiers.is_pfid(one) for one in (outer, inner, nowait)])
    client.finish_span_nowait(nowait)
    await client.finish_span(inner, {"hits": 3})
    await instance.finish_span(outer)
    with client.span(instance.id, "agent:llm", span_id=identifiers.generate_related(instance.id)):
        pass
    instances, spans = client.instance_manager, client.span_manager
    see(instances.get(instance.id).agent_id, len(instances.open_instances()))
    managed = spans.prepare(instance.id, "agent:tool", payload={"n": 1})
    spans.update_payload(managed, {"n": 2})
    see(spans.get_span(managed).id == managed, spans.start(managed, {"n": 3}) == managed)
    spans.finish(managed, {"n": 4}, "failed")
    spans.cancel_unstarted(spans.create(instance.id, "agent:tool"))
    reasons: list[str] = []
    instance.on_terminate(reasons.append)
    instance.check()
    instance.finish_nowait("cancelled")
    await instance.finish()
    see(instance.ended, reasons, repr(instance).endswith("cancelled>"), current_instance())


async def in_blocks(client: PrefactorCoreClient, see: See) -> None:
    async with client.agent_instance(**AGENT) as instance:
        see(current_instance() is instance)
        async with instance.span("agent:run", payload={"question": "?"}) as span:
            see(identifiers.is_pfid(span.id), span.id == span.id)
            await span.start({"question": "!"})
            with instance.span("agent:tool") as inner:
                see(current_span() is inner)
                inner.start_nowait()
                inner.set_result({"n": 1})
                inner.complete_nowait({"n": 2})
                inner.fail_nowait()
                inner.cancel_nowait()
            see(current_span() is span)
            async with instance.span("agent:tool", parent_span_id=span.id) as skipped:
                await skipped.cancel()
            async with instance.span("agent:tool") as failed:
                await failed.fail({"reason": "rain"})
            await span.complete({"answer": "!"})
            await span.finish()
        see(await search("x", key="secret"), divide(6, 3), said(lambda: divide(1, 0)))
        see([word async for word in astream("a b c")])
        generator = stream("d e")
        see(next(generator), generator.send("yes"), said(lambda: generator.send("")))
        see(instance.traced("agent:tool")(len)("four"))
        await client.flush()

        results: list[str] = []

        def in_a_thread() -> None:
            with instance.span("agent:tool") as span:
                results.append(f"{current_span() is span}")

        await anyio.to_thread.run_sync(in_a_thread)
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join(10)
        see(results)

        with anyio.move_on_after(0.01) as scope:
            async with instance.span("agent:tool"):
                await anyio.sleep_forever()
        see(scope.cancelled_caught)
        SpanContextStack.push("0" * 32)
        see(SpanContextStack.pop())


async def misuse(client: PrefactorCoreClient, see: See) -> None:
    error = ValueError("mine")
    error.__cause__ = cause = KeyError("cause")
    try:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                raise error
    except ValueError as caught:
        see(caught is error, error.__cause__ is cause, error.__context__)
    see(instance.ended)
    scope = client.agent_instance(**AGENT)
    async with scope as instance:
        own = client.create_span_nowait(instance.id, "agent:run")
        for call in (
            lambda: client.span("no id", "agent:run"),
            lambda: client.instance_manager.get("0" * 32),
            lambda: client.span_manager.finish(own, None, "done"),  # type: ignore[arg-type]
            lambda: instance.finish_nowait("done"),  # type: ignore[arg-type]
            lambda: instance.traced(""),
            lambda: instance.traced("x", reduce=len)(len),
        ):
            see(said(call))
    for wait in (
        scope.__aenter__,
        client.__aenter__,
        lambda: client.create_agent_instance("", {}),
        lambda: client.create_agent_instance("a", {"name": {1, object()}}),
        lambda: client.create_agent_instance("a", 3),  # type: ignore[arg-type]
        lambda: client.create_agent_instance(**AGENT, instance_id="no id"),
    ):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            await wait()
        see(raised.type)


PARTS = (in_steps, in_blocks, misuse)


@pytest.mark.parametrize("part", PARTS)
async def test_a_program_gives_and_raises_the_same_where_everything_is_switched_off(
    recording: Recording, part: Callable[[PrefactorCoreClient, See], Awaitable[None]]
) -> None:
    came: list[list[object]] = []
    for enabled in (True, False):
        with anyio.fail_after(20):
            async with recording.open(enabled=enabled) as client:
                came.append([])
                await part(client, lambda *seen: came[-1].append(seen))
    assert came[0] == came[1]
    assert all_zero(client)
    # Only the first round was recorded.
    assert len(recording.runs) == {in_steps: 1, in_blocks: 1, misuse: 2}[part]


def sync_program(client: Any) -> list[object]:
    came: list[object] = []
    with client, client.agent_instance(**AGENT) as instance:
        came += [current_instance() is instance, instance.records is client.core.config.enabled]
        with instance.span("agent:run", payload={"n": 1}) as span:
            came += [current_span() is span, identifiers.is_pfid(span.id)]
            span.set_result({"n": 2})
        span_id = client.create_span(instance.id, "agent:tool")
        client.finish_span(span_id, {"n": 1})
        instance.finish_span_nowait(instance.create_span_nowait("agent:tool"))
        came += [divide(6, 3), list(stream("a b")), client.flush(10), client.flush()]

        def register() -> None:
            own = client.create_agent_instance(**AGENT)
            own.start_nowait()
            own.finish_nowait()
            came.append(own.ended)

        thread = threading.Thread(target=register)
        thread.start()
        thread.join(10)
        came.append(said(lambda: client.create_agent_instance("", {})))
    came += [instance.ended, said(client.flush), client.statistics().pending]
    with pytest.raises(ValueError, match="mine"):
        with client, client.agent_instance(**AGENT):
            raise ValueError("mine")
    return came


@pytest.mark.parametrize("where", ["without a loop", "on asyncio", "on trio"])
def test_a_synchronous_program_gives_and_raises_the_same_too(
    recording: Recording, where: str
) -> None:
    async def run() -> list[object]:
        return sync_program(recording.open_sync(enabled=enabled))

    came: list[list[object]] = []
    for enabled in (True, False):
        if where == "without a loop":
            came.append(sync_program(recording.open_sync(enabled=enabled)))
        else:
            came.append(anyio.run(run, backend=where.removeprefix("on ")))
    assert came[0] == came[1]
    assert len(recording.runs) == 3


# --- the switch ---


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("URL", "TOKEN"):
        monkeypatch.delenv(f"PREFACTOR_API_{name}", raising=False)
    monkeypatch.delenv("PREFACTOR_ENABLED", raising=False)
    return monkeypatch


def test_where_it_is_off_no_address_is_needed(env: pytest.MonkeyPatch) -> None:
    open_prefactor(enabled=False)
    open_prefactor_sync(enabled=False)
    open_prefactor(PrefactorCoreConfig(enabled=False))
    open_prefactor(api_url="http://no.token", enabled=False)
    env.setenv("PREFACTOR_ENABLED", "0")
    open_prefactor()
    open_prefactor(PrefactorCoreConfig())
    open_prefactor(api_url="http://no.token")
    for enabled in ("", "1"):
        env.setenv("PREFACTOR_ENABLED", enabled)
        with pytest.raises(PrefactorValueError, match="nothing says which Prefactor"):
            open_prefactor()
        with pytest.raises(PrefactorValueError, match="http_config must be"):
            PrefactorCoreConfig()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("entry", ["block", "initialize", "sync"])
def test_nothing_is_opened_where_it_is_off(tmp_path: Path, backend: str, entry: str) -> None:
    """In a program of its own, in which every further import, socket and thread shows."""
    code = f"""
import os, sys, threading
import anyio
from prefactor_core import *

sys.modules["starlette"] = sys.modules["sqlite3"] = sys.modules["httpx"] = None

def opened(event, args):
    if event in ("open", "socket.__new__", "socket.connect", "sqlite3.connect") and watching:
        if not str(args[0]).endswith((".py", ".pyc")):  # of an import
            found.append((event, args[0]))

found, watching = [], False
sys.addaudithook(opened)

def tasks():
    if {backend!r} == "asyncio":
        import asyncio
        return len(asyncio.all_tasks())
    import trio
    return trio.lowlevel.current_statistics().tasks_living

async def work(client):
    before, threads = tasks(), threading.active_count()
    async with client.agent_instance("a", {{"name": "A"}}) as instance:
        async with instance.span("agent:run"):
            await client.flush()
    assert tasks() == before
    assert threading.active_count() == threads

async def main():
    global watching
    client = open_prefactor(api_url="local:x.db", schema_registry=SchemaRegistry())
    before, threads = tasks(), threading.active_count()
    watching = True
    if {entry!r} == "block":
        async with client:
            assert (tasks(), threading.active_count()) == (before, threads)
            await work(client)
    else:
        await client.initialize()
        assert (tasks(), threading.active_count()) == (before, threads)
        await work(client)
        await client.close()
    watching = False

def sync():
    global watching
    client = open_prefactor_sync(api_url="local:x.db", schema_registry=SchemaRegistry())
    watching = True
    with client, client.agent_instance("a", {{"name": "A"}}) as instance:
        with instance.span("agent:run"):
            client.flush()
        assert threading.active_count() == 1
    watching = False

sync() if {entry!r} == "sync" else anyio.run(main, backend={backend!r})
assert found == [], found
assert os.listdir() == []
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "PREFACTOR_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


async def test_where_it_is_off_no_server_gets_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        http = HttpClientConfig(f"http://127.0.0.1:{server.getsockname()[1]}", "token")
        config = PrefactorCoreConfig(
            http_config=http, schema_registry=SchemaRegistry(), enabled=False
        )
        async with open_prefactor(config) as client:
            async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
                pass
        with pytest.raises(BlockingIOError):
            server.accept()


# --- side by side ---


async def test_one_client_is_on_and_another_off(recording: Recording) -> None:
    async with recording.open() as on, open_off() as off:
        async with on.agent_instance(**AGENT) as mine, off.agent_instance(**AGENT) as other:
            async with other.span("agent:run") as disabled:
                assert current_span() is disabled
                async with mine.span("agent:run") as recorded:
                    assert current_span() is recorded
                    async with other.span("agent:llm"):
                        # One that is recorded goes before it.
                        assert current_span() is recorded
                assert current_span() is disabled
            assert isinstance(current_span(), DisabledSpan)
        assert current_span() is None
    assert all_zero(off)
    assert recording.run.outline == "complete\nagent:run complete"


async def test_the_current_span_of_a_run_that_is_off_takes_a_result() -> None:
    async with open_off() as client:
        assert current_span() is None
        async with client.agent_instance(**AGENT):
            for _ in range(2):
                span = current_span()
                assert span is not None
                span.set_result({"n": 1})
                assert repr(span) == "<SpanContext disabled>"
        assert current_span() is None


# --- the scope ---


async def test_use_outside_of_the_scope_stays_an_error() -> None:
    client = open_off()

    async def check(instance: AgentInstanceHandle | None = None) -> None:
        for call in (
            lambda: client.span("0" * 32, "agent:run"),
            lambda: client.span_manager,
            lambda: client.instance_manager,
            lambda: client.create_span_nowait("0" * 32, "agent:run"),
            lambda: instance.span("agent:run") if instance else client.span_manager,
        ):
            with pytest.raises(ClientNotInitializedError, match="not open"):
                call()
        with pytest.raises(ClientNotInitializedError):
            await client.create_agent_instance(**AGENT)
        with pytest.raises(ClientNotInitializedError):
            await client.flush()

    await check()
    async with client, client.agent_instance(**AGENT) as instance:
        with pytest.raises(InstanceNotFoundError):
            client.span("no id", "agent:run")
    await check(instance)


async def test_it_is_opened_and_closed_by_calls_in_any_task() -> None:
    client = open_off()
    for _ in range(2):
        await client.close()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.initialize)
        with pytest.raises(ClientAlreadyInitializedError):
            await client.initialize()
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.close)
        assert instance.ended


async def test_open_runs_end_with_the_scope() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_off() as client:
            begun = await client.create_agent_instance(**AGENT)
            await begun.start()
            idle = await client.create_agent_instance(**AGENT)
            raise ValueError("mine")
    assert repr(begun).endswith(" failed>")
    assert repr(idle).endswith(" cancelled>")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
async def test_a_signal_cancels_the_body_all_the_same(recording: Recording, enabled: bool) -> None:
    with anyio.fail_after(10):
        async with recording.open(enabled=enabled, cancel_on_signals=(signal.SIGTERM,)) as client:
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()
    assert client.stopped_by is signal.SIGTERM


async def test_a_cancelled_body_goes_on_being_cancelled() -> None:
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        async with open_off() as client, client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                scope.cancel()
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert repr(instance).endswith(" cancelled>")


async def test_a_custom_queue_and_raise_on_loss_change_nothing() -> None:
    config = make_config(enabled=False, raise_on_loss=True, queue={"when_full": "wait"})
    async with open_prefactor(config) as client:
        async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            pass
    assert all_zero(client)


async def test_nothing_of_a_run_or_a_span_is_kept() -> None:
    async with open_off() as client:

        async def work() -> None:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run", payload={"n": 1}) as span:
                    span.set_result({"n": span.id})
                await instance.finish_span(await instance.create_span("agent:tool"))
                spans = client.span_manager
                spans.finish(spans.create(instance.id, "agent:tool"), {"n": 1})
                await search("x")
            other = await client.create_agent_instance(**AGENT)
            await other.create_span("agent:run")
            await other.finish()

        async def count() -> int:
            for _ in range(50):
                await work()
            gc.collect()
            return len(gc.get_objects())

        await count()
        before = await count()
        assert await count() - before < 50
        assert not client.instance_manager.open_instances()
        assert SpanContextStack.is_empty()


async def test_a_chain_of_tasks_each_started_in_a_span_keeps_no_span() -> None:
    async def go_on(left: int) -> None:
        async with client.span(identifiers.generate(0), "agent:tool"):
            if left:
                tasks.start_soon(go_on, left - 1)
            else:
                gc.collect()
                kept.append(sum(type(each) is DisabledSpan for each in gc.get_objects()))

    kept: list[int] = []
    async with open_prefactor(enabled=False) as client:
        for length in (3, 30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on, length)
    assert kept[1] <= kept[0]
