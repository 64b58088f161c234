"""Forks: what a child does with the client of its parent, and with one of its own.

Each test is a script in a process of its own: pytest is not forked.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.forks import needs_fork, run

pytestmark = needs_fork

BODY = """
import asyncio

async def main():
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(queue=HELD), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:run") as span:
                    span.start_nowait()
                    record(instance)
                    requests = len(api.calls)
                    child = os.fork()
                    if child == 0:
                        try:
                            IN_CHILD
                        finally:
                            assert len(api.calls) == requests
                    assert wait_for(child) == 3
                    record(instance)
                    await client.flush()
                    assert client.statistics().pending == 0
        (span,) = (await stored_run(api)).roots
        assert span.shape == ("agent:run", "complete", [TOOL] * 2)
        names = api.names()
        assert (names.count("agent_spans"), names.count("finish")) == (3, 2), names
        assert not api.app.refusals
    assert client.statistics().lost == 0

parent = os.getpid()
asyncio.run(main())
sys.exit(0 if os.getpid() == parent else 3)
"""


@pytest.mark.parametrize("leave", ["os._exit(3)", "sys.exit(3)", "return"])
def test_a_child_that_leaves_the_body_sends_and_logs_nothing(leave: str, tmp_path: Path) -> None:
    run(BODY.replace("IN_CHILD", leave), tmp_path)


def test_a_child_that_exits_does_not_drain(tmp_path: Path) -> None:
    script = """
import asyncio

async def main():
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=3600), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                api.away = True
                record(instance)
                child = os.fork()
                if child == 0:
                    sys.exit(3)
                assert wait_for(child) == 3
                api.away = False
        assert (await stored_run(api)).shape == ("complete", [TOOL])

asyncio.run(main())
"""
    run(script, tmp_path)


def test_a_worker_that_was_about_to_send_sends_nothing_in_the_child(tmp_path: Path) -> None:
    script = """
import asyncio

async def main():
    global api
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(queue={"batch_window": 0.0}), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                await client.flush()
                record(instance)
                requests = len(api.calls)
                child = os.fork()
                if child == 0:
                    return requests
                assert wait_for(child) == 3
        assert (await stored_run(api)).shape == ("complete", [TOOL])

requests = asyncio.run(main())
if requests is not None:
    sys.exit(3 if len(api.calls) == requests else 4)
"""
    run(script, tmp_path)


def test_the_parents_client_is_refused_in_the_child(tmp_path: Path) -> None:
    in_child = """
                            refused(instance.span, "agent:tool")
                            refused(client.span, instance.id, "agent:tool")
                            refused(client.create_span_nowait, instance.id, "agent:tool")
                            refused(client.finish_span_nowait, span.id)
                            refused(instance.finish_nowait)
                            refused(waiting.start_nowait)
                            refused(before.__enter__)
                            refused(before.start_nowait)
                            refused(before.complete_nowait)
                            refused_async(late.__aenter__)
                            refused_async(client.create_agent_instance, *AGENT.values())
                            refused_async(client.agent_instance(**AGENT).__aenter__)
                            refused_async(client.flush)
                            refused_async(client.create_span, instance.id, "agent:tool")
                            refused_async(instance.finish)
                            refused_async(waiting.start)
                            client.statistics()
                            repr((instance, span, before, client))
                            span.set_result({"n": 1})
                            span.complete_nowait({"n": 2})
                            os._exit(3)
    """.strip()
    script = BODY.replace("IN_CHILD", in_child).replace(
        "                    requests =",
        """                    before, late = instance.span("agent:llm"), instance.span("agent:llm")
                    waiting = await client.create_agent_instance(**AGENT)
                    requests =""",
    )
    script = script.replace("queue=HELD", 'queue=HELD | {"when_full": "wait"}')
    with_spans = "[run for run in await stored_runs(api) if run.spans][0]"
    script = script.replace("(await stored_run(api))", with_spans)
    script = script.replace("(3, 2)", "(3, 3)")
    run(script, tmp_path)


def test_leaving_the_parents_scopes_is_silent_in_the_child(tmp_path: Path) -> None:
    script = """
import asyncio

async def main():
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(queue=HELD), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                with instance.span("agent:run") as outer, instance.span("agent:llm") as inner:
                    inner.set_result({"n": 1})
                    child = os.fork()
                    if child == 0:
                        inner.__exit__(ValueError, ValueError("no"), None)
                        outer.__exit__(None, None, None)
                        os._exit(3)
                    assert wait_for(child) == 3
        (span,) = (await stored_run(api)).roots
        assert span.shape == ("agent:run", "complete", [("agent:llm", "complete", [])])

asyncio.run(main())
"""
    run(script, tmp_path)


def test_a_lock_that_another_thread_held_does_not_stop_the_child(tmp_path: Path) -> None:
    in_child = """
                            span.complete_nowait()
                            refused(instance.span, "agent:tool")
                            refused(before.__enter__)
                            refused_async(late.__aenter__)
                            asyncio.run(record_run())
                            os._exit(3)
    """.strip()
    script = BODY.replace("IN_CHILD", in_child)
    script = script.replace(
        "                    requests =",
        """                    before, late = instance.span("agent:llm"), instance.span("agent:llm")
                    held, go_on = threading.Event(), threading.Event()

                    def hold():
                        with client.span_manager.recorder._lock:
                            held.set()
                            assert go_on.wait(20)

                    holder = threading.Thread(target=hold)
                    holder.start()
                    assert held.wait(20)
                    requests =""",
    ).replace(
        "                    assert wait_for",
        """                    go_on.set()
                    holder.join(20)
                    assert wait_for""",
    )
    script = script.replace("queue=HELD", 'queue=HELD | {"when_full": "wait"}')
    run(script, tmp_path)


def test_a_child_forked_while_threads_record_has_a_client_of_its_own(tmp_path: Path) -> None:
    script = """
import asyncio

async def main():
    # The threads record before, during and after each fork, and no more than this.
    about_to_fork = threading.Barrier(5)

    def work():
        for _ in range(5):
            about_to_fork.wait(60)
            for _ in range(100):
                record(instance)

    async with open_faulty_api() as api:
        async with open_prefactor(make_config(drain_timeout=60), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                threads = [threading.Thread(target=work) for _ in range(4)]
                for thread in threads:
                    thread.start()
                children = []
                for number in range(5):
                    about_to_fork.wait(60)
                    await anyio.sleep(0.001 * number)
                    child = os.fork()
                    if child == 0:
                        refused(instance.span, "agent:tool")
                        asyncio.run(record_run())
                        os._exit(3)
                    children.append(child)
                for thread in threads:
                    thread.join(60)
                assert [wait_for(child) for child in children] == [3] * 5
        stored = await stored_run(api)
        assert all(span.shape == TOOL for span in stored.roots)
        assert client.statistics().lost == 0
        assert api.names().count("agent_spans") == len(stored.spans) == 5 * 4 * 100
        assert not api.app.refusals

asyncio.run(main())
"""
    run(script, tmp_path)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_child_forked_between_two_runs_of_the_loop_records_with_its_own_client(
    backend: str, tmp_path: Path
) -> None:
    script = f"""
anyio.run(record_run, backend={backend!r})
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        anyio.run(record_run, backend={backend!r})
        sys.exit(3)
    children.append(child)
anyio.run(record_run, backend={backend!r})
assert [wait_for(child) for child in children] == [3] * 3
"""
    run(script, tmp_path)


def test_a_multiprocessing_child_that_is_left_records_with_its_own_client(
    tmp_path: Path,
) -> None:
    script = """
import asyncio, multiprocessing

def work(instance):
    refused(instance.span, "agent:tool")
    asyncio.run(record_run())

async def main():
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                record(instance)
                context = multiprocessing.get_context("fork")
                processes = [context.Process(target=work, args=[instance]) for _ in range(3)]
                for process in processes:
                    process.start()
                record(instance)
                for process in processes:
                    process.join(20)
                assert [process.exitcode for process in processes] == [0] * 3
        assert (await stored_run(api)).shape == ("complete", [TOOL] * 2)
        assert api.names().count("agent_spans") == 2

asyncio.run(main())
"""
    run(script, tmp_path)


REOPENED = """
import asyncio

async def main():
    async with open_faulty_api() as api:
        client = open_prefactor(make_config(queue=HELD), asgi_app=api, QUEUE)
        OPEN
        instance = await client.create_agent_instance(**AGENT)
        record(instance)
        child = os.fork()
        if child == 0:
            asyncio.run(again(client))
            os._exit(3)
        assert wait_for(child) == 3
        record(instance)
        await instance.finish()
        CLOSE
        assert (await stored_run(api)).shape == ("complete", [TOOL] * 2)

async def again(client):
    IN_CHILD

asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["with", "initialize", "both"])
def test_the_same_client_can_be_opened_again_in_the_child(way: str, tmp_path: Path) -> None:
    opened = {"with": "await client.__aenter__()"}.get(way, "await client.initialize()")
    closed = {"with": "await client.__aexit__(None, None, None)"}.get(way, "await client.close()")
    again = """
    with anyio.fail_after(20):
        OPEN
        instance = await client.create_agent_instance(**AGENT)
        record_in_threads(instance)
        await instance.finish()
        assert client.statistics().accepted == 203
        await client.close()
    assert client.statistics().delivered == 203, client.statistics()
    assert client.statistics().lost == 0
    """
    again = again.replace("OPEN", "await client.__aenter__()" if way == "both" else opened)
    script = REOPENED.replace("IN_CHILD", again.strip()).replace("QUEUE", "")
    run(script.replace("OPEN", opened).replace("CLOSE", closed), tmp_path)


def test_a_client_with_a_queue_of_its_own_is_not_opened_again_in_the_child(
    tmp_path: Path,
) -> None:
    again = """
    try:
        await client.__aenter__()
    except ClientScopeError as error:
        assert "make a client with a queue of its own" in str(error)
    else:
        raise AssertionError("it was opened")
    """
    script = REOPENED.replace("IN_CHILD", again.strip())
    script = script.replace("QUEUE", "queue=InMemoryQueue()")
    script = script.replace("OPEN", "await client.__aenter__()")
    run(script.replace("CLOSE", "await client.__aexit__(None, None, None)"), tmp_path)


def test_closing_the_parents_client_in_the_child_does_nothing(tmp_path: Path) -> None:
    again = """
    await client.close()
    await client.close()
    try:
        await client.flush()
    except ClientNotInitializedError:
        pass
    else:
        raise AssertionError("it is open")
    """
    script = REOPENED.replace("IN_CHILD", again.strip()).replace("QUEUE", "")
    script = script.replace("OPEN", "await client.initialize()")
    run(script.replace("CLOSE", "await client.close()"), tmp_path)


def test_a_child_ends_nothing_that_its_parent_had_left_to_end(tmp_path: Path) -> None:
    """Also where another thread of the parent has recorded something at that moment, for ever."""
    script = """
import asyncio
from support.interruptions import in_the_middle

def sound():
    raise KeyboardInterrupt

async def main():
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                at = 0
                while instance.recorder.interrupted is None:
                    at += 1
                    span = instance.span("agent:tool").__enter__()
                    try:
                        with in_the_middle(at, sound):
                            span.complete_nowait()
                    except KeyboardInterrupt:
                        pass
                locked, over = threading.Event(), threading.Event()

                def hold():
                    with instance.recorder.event_loop.lock:
                        locked.set()
                        over.wait(60)

                thread = threading.Thread(target=hold)
                thread.start()
                locked.wait(60)
                child = os.fork()
                if child == 0:
                    span.complete_nowait()
                    os._exit(3)
                assert wait_for(child) == 3
                over.set()
                thread.join(60)
        run = await stored_run(api)
        assert {span.status for span in run.spans.values()} <= {"complete", "cancelled"}
        assert not api.app.refusals
    assert client.statistics().lost == 0

asyncio.run(main())
"""
    run(script, tmp_path)
