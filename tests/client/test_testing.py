"""The test kit: the recorded runs, and the fixture in a fresh pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from collections.abc import Awaitable, Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import anyio
import pytest
from support.harness import AGENT

from prefactor_core import (
    AgentInstanceHandle,
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTerminatedError,
    PrefactorValueError,
    SchemaRegistry,
    open_prefactor,
    redact_keys,
)
from prefactor_core.span_types import ToolCall
from prefactor_core.testing import Recording, open_recording


async def record_tree(instance: AgentInstanceHandle) -> None:
    """A span of each status that a span can end with, and one that stays open until the end."""
    async with instance.span("agent:run", payload={"question": "?"}) as run:
        with pytest.raises(ConnectionError):
            async with instance.span("agent:llm"):
                raise ConnectionError("no route")
        async with instance.span("agent:tool") as tool:
            async with instance.span("agent:retrieval") as skipped:
                await skipped.cancel()
            await tool.complete({"hits": 3})
        async with instance.span("agent:llm"):
            pass
        run.set_result({"answer": "!"})
    await instance.create_span("agent:left_open")


OUTLINE = """\
complete
agent:run complete
  agent:llm failed
  agent:tool complete
    agent:retrieval cancelled
  agent:llm complete
agent:left_open cancelled"""


async def record_in(client: PrefactorCoreClient) -> None:
    async with client.agent_instance(**AGENT) as instance:
        await record_tree(instance)


async def record_run(recording: Recording, registry: SchemaRegistry | None = None) -> None:
    async with recording.open(schema_registry=registry) as client:
        await record_in(client)


async def test_a_run_is_seen_with_all_its_spans() -> None:
    before = datetime.now(UTC)
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            await record_tree(instance)
        run = recording.run
    after = datetime.now(UTC)
    assert run.outline == OUTLINE
    assert (run.id, run.agent_id) == (instance.id, AGENT["agent_id"])
    assert (run.status, run.termination_reason) == ("complete", None)
    assert run.started_at is not None
    assert run.finished_at is not None
    assert before <= run.started_at <= run.finished_at <= after

    first = run.named("agent:run")
    assert run.roots == [first, run.named("agent:left_open")]
    assert [span.schema_name for span in first.children] == ["agent:llm", "agent:tool", "agent:llm"]
    assert {span.parent_id for span in first.children} == {first.id}
    assert run.spans_named("agent:llm") == [first.children[0], first.children[2]]
    assert (first.payload, first.result) == ({"question": "?"}, {"answer": "!"})
    assert first.parent_id is None
    assert first.started_at is not None
    assert first.finished_at is not None
    assert run.started_at <= first.started_at < first.finished_at <= run.finished_at

    skipped = run.named("agent:retrieval")
    assert (skipped.payload, skipped.result, skipped.started_at) == ({}, None, None)


async def test_payloads_that_do_not_fit_their_schema_are_flagged() -> None:
    registry = SchemaRegistry()
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}}
    registry.register_type("agent:llm", schema, template="asked: {{prompt}}")
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open(schema_registry=registry) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:llm", payload={"prompt": "Hello"}):
                    pass
                await client.flush()
                assert recording.run.flags == []
                async with instance.span("agent:llm", payload={"prompt": 3}):
                    pass
                async with instance.span("agent:lllm"):
                    pass
        run = recording.run
    assert run.flags == [
        "agent:llm: payload.prompt: 3 is not of type 'string'",
        "agent:lllm: span type 'agent:lllm' is not registered; the nearest that is: 'agent:llm'",
    ]
    assert [span.summary for span in run.spans] == ["asked: Hello", "asked: 3", None]
    assert run.agent_version["name"] == "Tested agent"
    assert run.schema_version["span_type_schemas"][0]["params_schema"] == schema
    assert (run.purpose, run.external_identifier, run.quality) == ("live", None, {})


async def test_with_an_empty_registry_spans_of_any_name_fit() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        await record_run(recording, SchemaRegistry())
        assert recording.run.flags == []


async def test_without_a_registry_the_standard_types_are_compared() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            with instance.span(ToolCall(tool="search")), instance.span("agent:tool"):
                pass
        (flag,) = recording.run.flags
        assert flag.startswith("agent:tool: span type 'agent:tool' is not registered; the nearest")


async def test_after_a_flush_an_open_run_is_seen_as_far_as_it_got() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run") as span:
                await span.start({"step": 1})
                await client.flush()
                assert recording.run.outline == "active\nagent:run active"
                assert recording.run.finished_at is None
                assert recording.run.named("agent:run").payload == {"step": 1}
        assert recording.run.outline == "complete\nagent:run complete"


async def test_the_runs_of_several_clients_are_in_the_order_of_their_beginning() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        ids = list[str]()
        for agent_id in ("b", "a", "c"):
            async with recording.open() as client:
                async with client.agent_instance(agent_id, {"name": agent_id}) as instance:
                    ids.append(instance.id)
        assert [run.id for run in recording.runs] == ids
        assert [run.agent_id for run in recording.runs] == ["b", "a", "c"]


async def test_how_a_run_failed_is_seen() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        with pytest.raises(ConnectionError):
            async with recording.open() as client, client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:tool"):
                    raise ConnectionError("no route")
        assert recording.run.outline == "failed\nagent:tool failed"
        result = recording.run.named("agent:tool").result
    assert result is not None
    assert result["error"]["message"] == "no route"


async def test_a_run_that_is_nested_deeper_than_python_has_an_outline() -> None:
    depth = sys.getrecursionlimit() + 100
    with open_recording() as recording, anyio.fail_after(30):
        async with recording.open() as client, client.agent_instance(**AGENT) as instance:
            for _ in range(depth):
                await instance.create_span("s")
        lines = recording.run.outline.splitlines()
    assert lines == ["complete", *("  " * level + "s cancelled" for level in range(depth))]


async def test_two_recordings_know_nothing_of_each_other() -> None:
    with open_recording() as one, open_recording() as other, anyio.fail_after(10):
        await record_run(one)
        assert (len(one.runs), len(other.runs)) == (1, 0)


async def test_a_run_that_was_only_just_entered_can_be_terminated() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open() as client:
            with pytest.raises(PrefactorTerminatedError, match="over budget"):
                async with client.agent_instance(**AGENT) as instance:
                    recording.terminate(instance.id, "over budget")
                    async with instance.span("agent:tool"):
                        await anyio.sleep_forever()
        assert recording.run.outline == "terminated\nagent:tool cancelled"
        assert recording.run.termination_reason == "over budget"
        assert client.statistics().lost == 0


def test_a_run_of_synchronous_code_that_was_only_just_entered_can_be_terminated() -> None:
    with open_recording() as recording:
        with recording.open_sync() as client:
            with pytest.raises(PrefactorTerminatedError, match="over budget"):
                with client.agent_instance(**AGENT) as instance:
                    recording.terminate(instance.id, "over budget")
                    client.flush()
                    instance.check()
        assert recording.run.outline == "terminated"


async def in_tasks_of_their_own(*steps: Callable[[], Awaitable[object]]) -> None:
    """One after the other, as a plugin runs the set-up and the teardown of a fixture."""
    for step in steps:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)


async def test_a_block_may_be_entered_in_one_task_and_left_in_another() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        for options in ({}, {"enabled": False}):
            client = recording.open(**options)

            async def leave(client: PrefactorCoreClient = client) -> None:
                assert not await client.__aexit__(None, None, None)

            await in_tasks_of_their_own(client.__aenter__, partial(record_in, client), leave)
            with pytest.raises(ClientNotInitializedError):
                await record_in(client)
        assert recording.run.outline == OUTLINE


async def test_open_runs_end_as_the_block_ends() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        error = ConnectionError("no route")
        with pytest.raises(ConnectionError) as caught:
            async with recording.open(raise_on_loss=True) as client:
                instance = await client.create_agent_instance(**AGENT)
                await instance.create_span("agent:run")
                raise error
        assert caught.value is error
        assert recording.run.outline == "failed\nagent:run failed"


async def test_a_client_of_the_kit_is_opened_once_at_a_time() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        client = recording.open()
        for _ in range(2):
            async with client:
                with pytest.raises(ClientAlreadyInitializedError):
                    await client.__aenter__()
                await record_in(client)
        assert [run.outline for run in recording.runs] == [OUTLINE] * 2


async def test_a_client_takes_the_options_of_any_other() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open(redact=redact_keys("ssn")) as client:
            async with client.agent_instance(**AGENT) as instance:
                async with instance.span("agent:tool", payload={"ssn": "078-05-1120"}):
                    pass
        assert recording.run.named("agent:tool").payload == {"ssn": "[redacted]"}
        with pytest.raises(PrefactorValueError, match="api_url and api_token"):
            recording.open(http_config={})


async def test_asking_for_the_only_run_or_span_where_there_are_others_is_a_clear_error() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        with pytest.raises(AssertionError, match="one run was expected, 0 were recorded"):
            _ = recording.run
        await record_run(recording)
        names = "agent:run, agent:llm, agent:tool, agent:retrieval, agent:left_open$"
        with pytest.raises(AssertionError, match=f"(?m)'agent:llm' was expected, 2 .*: {names}"):
            recording.run.named("agent:llm")
        with pytest.raises(AssertionError, match=f"(?m)'agent:lllm' was expected, 0 .*: {names}"):
            recording.run.named("agent:lllm")
        assert recording.run.spans_named("agent:lllm") == []
        await record_run(recording)
        with pytest.raises(AssertionError, match="one run was expected, 2 were recorded"):
            _ = recording.run


async def test_what_was_recorded_is_short_in_a_message() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        async with recording.open() as client:
            for _ in range(12):
                async with client.agent_instance(**AGENT) as instance:
                    for number in range(200):
                        with instance.span(f"agent:{number}", payload={"text": "x" * 100}):
                            pass
        run = recording.runs[0]
        assert repr(run) == f"<RecordedRun {run.id} complete, 200 spans>"
        assert repr(run.spans[:2]) == (
            "[<RecordedSpan 'agent:0' complete>, <RecordedSpan 'agent:1' complete>]"
        )
        assert repr(recording) == "<Recording of 12 runs>"
        assert len(recording.outline.splitlines()) < 10 * 110
        assert "and 101 more spans\n\ncomplete\n" in recording.outline
        assert recording.outline.endswith("\n\nand 2 more runs")


async def test_the_error_for_a_missing_span_or_run_shows_the_tree() -> None:
    with open_recording() as recording, anyio.fail_after(10):
        with pytest.raises(AssertionError) as caught:
            _ = recording.run
        assert caught.value.__notes__ == ["no run was recorded"]
        await record_run(recording)
        with pytest.raises(AssertionError) as caught:
            recording.run.named("agent:lllm")
        assert caught.value.__notes__ == [OUTLINE]


def test_a_closed_recording_is_a_clear_error() -> None:
    with open_recording() as recording:
        assert recording.runs == []
    assert repr(recording) == "<Recording, closed>"
    with pytest.raises(PrefactorCoreError, match="closed"):
        _ = recording.runs


def test_clients_on_several_threads_record_while_another_thread_looks(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def record(recording: Recording) -> None:
        with anyio.fail_after(120):
            async with recording.open() as client, client.agent_instance(**AGENT) as instance:
                for _ in range(100):
                    with instance.span("agent:run"), instance.span("agent:tool"):
                        pass
                    await client.flush()

    with open_recording() as recording, ThreadPoolExecutor(4) as pool:
        threads = [
            pool.submit(anyio.run, record, recording, backend=anyio_backend_name) for _ in range(4)
        ]
        for _ in range(1_000):
            _ = recording.runs
            if not futures.wait(threads, 0.002).not_done:
                break
        for thread in threads:
            thread.result()
        assert [run.outline for run in recording.runs] == [
            "complete" + "\nagent:run complete\n  agent:tool complete" * 100
        ] * 4
    # Nothing had to be tried again.
    assert caplog.messages == []


TESTS = """
import threading

import anyio
import pytest

async def run_agent(recording):
    async with recording.open() as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span("agent:llm"):
                pass

def check(recording):
    assert recording.run.outline == "complete\\nagent:llm complete"

def test_synchronous(prefactor):
    anyio.run(run_agent, prefactor)
    check(prefactor)

def test_on_another_thread(prefactor):
    thread = threading.Thread(target=anyio.run, args=(run_agent, prefactor))
    thread.start()
    thread.join(10)
    check(prefactor)

@pytest.mark.anyio
async def test_asynchronous(prefactor):
    await run_agent(prefactor)
    check(prefactor)
"""


def test_the_fixture_gives_each_test_a_recording_of_its_own_and_a_failure_shows_its_tree(
    pytester: pytest.Pytester,
) -> None:
    failing = """
def test_with(prefactor):
    anyio.run(run_agent, prefactor)
    assert prefactor.run.flags == ["none"]

def test_without():
    assert 1 == 2
"""
    pytester.makepyfile(TESTS + failing)
    result = pytester.runpytest_subprocess("-W", "error", timeout=60)
    result.assert_outcomes(passed=4, failed=2)  # the asynchronous one on both backends
    result.stdout.fnmatch_lines(["*- prefactor -*", "complete", "agent:llm complete", "*"])
    assert result.stdout.str().count("- prefactor -") == 1


class Unittest(unittest.IsolatedAsyncioTestCase):
    """A test of unittest, whose steps are tasks of one loop."""

    __test__ = False  # it is run below

    async def asyncSetUp(self) -> None:
        self.recording = self.enterContext(open_recording())
        self.client = await self.enterAsyncContext(self.recording.open())
        self.enterContext(self.recording.capture())
        self.application = open_prefactor()
        await self.application.initialize()
        self.addAsyncCleanup(self.application.close)

    async def runTest(self) -> None:  # noqa: N802
        for client in (self.client, self.application):
            await record_in(client)
            await client.flush()
        assert [run.outline for run in self.recording.runs] == [OUTLINE] * 2


def test_it_goes_with_asynchronous_tests_of_unittest() -> None:
    result = unittest.TestResult()
    Unittest().run(result)
    assert (result.errors, result.failures, result.testsRun) == ([], [], 1)


def test_without_the_extra_the_fixture_names_the_way_to_it_and_nothing_else_fails(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest("import sys; sys.modules['starlette'] = None")
    pytester.makepyfile("def test_with(prefactor): pass\ndef test_without(): pass")
    result = pytester.runpytest_subprocess(timeout=60)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E *ImportError: *'local'*: pip install '.[[]local[]]'*"])


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout.strip()


def test_the_kit_reads_nothing_of_the_environment() -> None:
    code = (
        "import anyio\n"
        "from prefactor_core.testing import open_recording\n"
        "async def main():\n"
        "    with open_recording() as recording:\n"
        "        async with recording.open() as client:\n"
        "            async with client.agent_instance('my-agent', {'name': 'My agent'}): pass\n"
        "        print(recording.run.status)\n"
        "anyio.run(main)"
    )
    wrong = {"PREFACTOR_API_URL": "nonsense", "PREFACTOR_API_TOKEN": "line\nbreak"}
    assert run_python(code, **wrong, PREFACTOR_ENABLED="0") == "complete"


@pytest.mark.parametrize(
    ("module", "needless"),
    [
        ("prefactor_core.testing", ["pytest", "rich", "click", "trio"]),
        ("prefactor_core.pytest_plugin", ["httpx", "starlette", "sqlite3", "rich", "trio"]),
    ],
)
def test_importing_the_kit_or_its_plugin_imports_no_more_than_it_needs(
    module: str, needless: list[str]
) -> None:
    code = f"import sys, {module}; print([m for m in {needless} if m in sys.modules])"
    assert run_python(code) == "[]"
