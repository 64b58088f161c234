"""The scope for programs without a loop: the same promises, on a thread that ends with it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from support.harness import AGENT, FaultyApi, make_config

from prefactor_core import (
    AgentInstanceHandle,
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    PrefactorCoreError,
    PrefactorTelemetryFailureError,
    PrefactorTerminatedError,
    PrefactorUnreachableError,
    PrefactorValidationError,
    PrefactorValueError,
    SpanContext,
    SyncPrefactorClient,
    current_instance,
    current_span,
    open_prefactor_sync,
    traced,
)
from prefactor_core.client import loop_thread
from prefactor_core.local.app import MEMORY, LocalPrefactor
from prefactor_core.local.store import Store
from prefactor_core.testing import Recording, open_recording

if TYPE_CHECKING:
    from _typeshed import TraceFunction

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
CTRL_C = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT for one process")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Generator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        assert thread.name != "prefactor-core"
        thread.join(20)  # the thread of a local database, which is ending
        assert not thread.is_alive(), thread


@pytest.fixture
def recording() -> Generator[Recording]:
    with open_recording() as recording:
        yield recording


@pytest.fixture
def api() -> Generator[FaultyApi]:
    store = Store(MEMORY)
    yield FaultyApi(LocalPrefactor(store))
    store.close()


def open_at(api: FaultyApi, **options: Any) -> SyncPrefactorClient:
    return open_prefactor_sync(make_config(**options), asgi_app=api)


def run_agent(instance: AgentInstanceHandle) -> None:
    with instance.span("agent:run", payload={"question": "?"}) as run:
        assert current_span() is run
        assert current_instance() is instance
        with instance.span("agent:llm") as llm:
            llm.start_nowait({"prompt": "?"})
            llm.complete_nowait({"response": "!"})
        with pytest.raises(ConnectionError), instance.span("agent:tool"):
            raise ConnectionError("no route")
        with instance.span("agent:retrieval") as skipped:
            skipped.cancel_nowait()
        with instance.span("agent:tool") as failed:
            failed.fail_nowait({"reason": "it rains"})
        traced("agent:llm")(lambda: "!")()
        run.set_result({"answer": "!"})


OUTLINE = """
agent:run complete
  agent:llm complete
  agent:tool failed
  agent:retrieval cancelled
  agent:tool failed
  agent:llm complete"""


def test_a_program_without_a_loop_is_recorded_with_all_its_steps(recording: Recording) -> None:
    with recording.open_sync() as client:
        with client.agent_instance(**AGENT) as instance:
            run_agent(instance)
        assert client.flush(10) is True
        assert recording.run.outline == "complete" + OUTLINE
    assert (recording.run.id, recording.run.agent_id) == (instance.id, AGENT["agent_id"])
    run = recording.run.named("agent:run")
    assert (run.payload, run.result) == ({"question": "?"}, {"answer": "!"})
    assert run.children[0].payload == {"prompt": "?"}
    assert client.statistics().delivered == client.statistics().accepted > 0
    assert client.statistics().pending == 0


def test_a_run_goes_in_steps_too(recording: Recording) -> None:
    with recording.open_sync() as client:
        instance = client.create_agent_instance(**AGENT)
        instance.start_nowait()
        outer = client.create_span(instance.id, "agent:run", payload={"n": 1})
        inner = instance.create_span_nowait("agent:tool")
        instance.finish_span_nowait(inner, {"hits": 3})
        client.finish_span(outer, {"n": 2})
        with client.span(instance.id, "agent:llm", parent_span_id=outer):
            pass
        instance.finish_nowait("failed")
        assert current_instance() is None
    run = recording.run
    assert run.outline == (
        "failed\nagent:run complete\n  agent:tool complete\n  agent:llm complete"
    )
    assert (run.named("agent:run").payload, run.named("agent:run").result) == ({"n": 1}, {"n": 2})
    assert run.named("agent:tool").result == {"hits": 3}


def test_open_spans_and_runs_end_with_the_scope(recording: Recording) -> None:
    with recording.open_sync() as client:
        client.create_agent_instance(**AGENT)
        instance = client.create_agent_instance(**AGENT)
        client.create_span(instance.id, "agent:run")
    assert [run.outline for run in recording.runs] == [
        "cancelled",
        "complete\nagent:run cancelled",
    ]


def test_open_and_close_take_the_place_of_the_block(recording: Recording) -> None:
    client = recording.open_sync()
    client.close()  # it is not open
    for _ in range(2):
        assert not client.is_open
        assert client.open() is client
        assert client.is_open
        with pytest.raises(ClientAlreadyInitializedError):
            client.open()
        with client.agent_instance(**AGENT) as instance:
            run_agent(instance)
        opened = client.create_agent_instance(**AGENT)
        opened.create_span_nowait("agent:run")
        closing = threading.Thread(target=client.close)
        closing.start()
        closing.join(20)
        client.close()
        assert current_instance() is None
        with pytest.raises(ClientNotInitializedError):
            client.create_agent_instance(**AGENT)
    left_open = "complete\nagent:run cancelled"
    assert [run.outline for run in recording.runs] == ["complete" + OUTLINE, left_open] * 2


def test_a_disabled_client_opens_and_closes_by_calls(recording: Recording) -> None:
    client = recording.open_sync(enabled=False).open()
    with client.agent_instance(**AGENT) as instance:
        run_agent(instance)
    client.close()
    client.close()
    assert recording.runs == []


def test_threads_record_into_one_run_and_into_their_own_at_once(recording: Recording) -> None:
    barrier = threading.Barrier(8)

    def work(client: SyncPrefactorClient, shared: AgentInstanceHandle) -> None:
        barrier.wait(10)
        with client.agent_instance("own", {"name": "Own"}) as own:
            for _ in range(50):
                with shared.span("agent:run"), own.span("agent:run"), shared.span("agent:tool"):
                    pass
            assert client.flush(20) is True

    with recording.open_sync() as client, client.agent_instance(**AGENT) as shared:
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(work, client, shared) for _ in range(8)]:
                future.result(30)
    assert client.statistics().lost == client.statistics().pending == 0
    first, *others = recording.runs
    assert first.outline == "complete" + "\nagent:run complete\n  agent:tool complete" * 400
    assert [run.outline for run in others] == ["complete" + "\nagent:run complete" * 50] * 8


def test_the_bodys_exception_leaves_every_scope_as_the_same_object(recording: Recording) -> None:
    cause, context = KeyError("cause"), OSError("context")
    error = ValueError("mine")
    error.__cause__, error.__context__ = cause, context
    with pytest.raises(ValueError, match="mine") as caught:
        with recording.open_sync() as client, client.agent_instance(**AGENT) as instance:
            with instance.span("agent:run"):
                raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, context)
    assert recording.run.outline == "failed\nagent:run failed"


def test_a_client_that_fails_to_open_raises_and_leaves_no_thread(tmp_path: Path) -> None:
    client = open_prefactor_sync(api_url=f"local:{tmp_path}/not/there/x.db")
    for _ in range(2):
        with pytest.raises(PrefactorValueError, match="x.db") as caught:
            client.__enter__()
        assert caught.value.__context__ is None or isinstance(caught.value.__context__, Exception)
        assert "prefactor-core" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_url": "nonsense"}, "api_url must begin with"),
        ({"api_url": "local:x.db", "drain_timeout": -1}, "drain_timeout must be"),
        (
            {"api_url": "local:x.db", "cancel_on_signals": (signal.SIGTERM,)},
            "cancel_on_signals cancels the block of 'async with'",
        ),
        (
            {"enabled": False, "cancel_on_signals": (signal.SIGTERM,)},
            "cancel_on_signals cancels the block of 'async with'",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_opened(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrefactorValueError, match=message):
        open_prefactor_sync(**options)


def test_a_run_that_the_api_refuses_raises_its_error_and_the_next_one_is_recorded(
    api: FaultyApi,
) -> None:
    api.faults["register"] = [422] * 4  # each is tried without the environment, too
    with open_at(api) as client:
        with pytest.raises(PrefactorValidationError, match="no") as caught:
            client.create_agent_instance(**AGENT)
        assert caught.value.status_code == 422
        with pytest.raises(PrefactorValidationError):
            with client.agent_instance(**AGENT, on_refused="raise"):
                pytest.fail("the body must not run")
        with client.agent_instance(**AGENT):
            pass
    assert api.names() == ["register", "start", "finish"]


async def test_async_with_instead_of_with_says_which_to_use(recording: Recording) -> None:
    client = recording.open_sync()
    with pytest.raises(ClientScopeError, match=r"'with'.* open_prefactor\(\)"):
        async with client:
            pytest.fail("the body must not run")


def test_misuse_of_a_run_is_a_clear_error(recording: Recording) -> None:
    with recording.open_sync() as client:
        scope = client.agent_instance(**AGENT)
        with scope:
            pass
        with pytest.raises(PrefactorCoreError, match="once only"):
            scope.__enter__()
        with pytest.raises(PrefactorValueError, match="agent_id"):
            client.create_agent_instance("", {})


@pytest.mark.parametrize("raises", [False, True], ids=["returned", "raised"])
def test_a_loss_is_an_error_if_it_is_asked_for_and_the_body_raised_none(
    api: FaultyApi, raises: bool
) -> None:
    expected = ValueError if raises else PrefactorTelemetryFailureError
    with pytest.raises(expected) as caught:
        with open_at(api, drain_timeout=0, raise_on_loss=True) as client:
            with client.agent_instance(**AGENT):
                api.hanging = True
            if raises:
                raise ValueError("mine")
    assert caught.value.__context__ is None
    assert client.statistics().lost > 0


def test_an_api_that_hangs_holds_up_no_span_and_leaving_for_the_drain_timeout(
    api: FaultyApi,
) -> None:
    with open_at(api, drain_timeout=0.5) as client, client.agent_instance(**AGENT) as instance:
        api.hanging = True
        for _ in range(100):
            with instance.span("agent:tool"):
                pass
        assert client.flush(0.01) is False
        assert client.flush(0) is False
        assert client.statistics().pending > 100
        before = time.monotonic()
    assert 0.5 <= time.monotonic() - before < 60
    assert client.statistics().dropped == {"drain_timeout": client.statistics().lost}
    assert client.statistics().pending == 0


def test_the_scope_does_not_wait_for_a_registration_in_another_thread(api: FaultyApi) -> None:
    asked, app = threading.Event(), api.app

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await anyio.sleep_forever()

    api.app = hang
    with ThreadPoolExecutor(1) as pool:
        with open_at(api, drain_timeout=0.1, registration_timeout=60) as client:
            registering = pool.submit(client.create_agent_instance, **AGENT)
            assert asked.wait(10)
            before = time.monotonic()
        assert time.monotonic() - before < 30
        with pytest.raises(ClientNotInitializedError, match="closed"):
            registering.result(60)
    api.app = app


# --- the kill switch ---


def stop(recording: Recording, client: SyncPrefactorClient, instance: AgentInstanceHandle) -> None:
    """Stop the run, and wait until the client knows."""
    assert client.flush(10)  # it must have begun
    recording.terminate(instance.id, "enough")
    terminated = threading.Event()
    instance.on_terminate(lambda reason: terminated.set())
    with instance.span("agent:last"):
        pass
    assert terminated.wait(10)


def test_after_the_kill_switch_the_next_span_and_check_raise(recording: Recording) -> None:
    with pytest.raises(PrefactorTerminatedError) as caught:
        with recording.open_sync() as client, client.agent_instance(**AGENT) as instance:
            instance.check()
            stop(recording, client, instance)
            assert instance.terminated == "enough"
            for stopped in (
                instance.check,
                lambda: instance.span("agent:tool"),
                lambda: client.create_span(instance.id, "agent:tool"),
                lambda: instance.create_span_nowait("agent:tool"),
            ):
                with pytest.raises(PrefactorTerminatedError, match="enough"):
                    stopped()
            with instance.span("agent:tool"):
                pytest.fail("the body must not run")
    assert (caught.value.reason, caught.value.instance_id) == ("enough", instance.id)
    assert caught.value.__context__ is None
    assert recording.run.status == "terminated"


def test_a_stopped_run_without_a_further_span_raises_at_the_end_of_its_block(
    recording: Recording,
) -> None:
    with recording.open_sync() as client:
        with pytest.raises(PrefactorTerminatedError, match="enough") as caught:
            with client.agent_instance(**AGENT) as instance:
                stop(recording, client, instance)
        assert caught.value.__context__ is None
        with client.agent_instance(**AGENT):  # another run goes on
            pass
    assert [run.status for run in recording.runs] == ["terminated", "complete"]


def test_an_error_of_a_stopped_run_is_the_context_of_the_terminated_error(
    recording: Recording,
) -> None:
    error = ValueError("mine")
    with recording.open_sync() as client:
        with pytest.raises(PrefactorTerminatedError) as caught:
            with client.agent_instance(**AGENT) as instance:
                stop(recording, client, instance)
                raise error
    assert caught.value.__context__ is error


def test_a_call_that_waits_for_the_clients_thread_is_refused_in_it(
    recording: Recording,
) -> None:
    errors: list[Exception] = []

    def note_error(function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    with recording.open_sync() as client, pytest.raises(PrefactorTerminatedError):
        with client.agent_instance(**AGENT) as instance:
            instance.on_terminate(lambda reason: note_error(client.flush))
            instance.on_terminate(lambda reason: note_error(client.close))
            stop(recording, client, instance)
    assert [type(error) for error in errors] == [ClientScopeError, ClientScopeError]


# --- opening, closing ---


def test_a_client_can_be_opened_again_but_not_while_it_is_open(recording: Recording) -> None:
    client = recording.open_sync()
    for _ in range(2):
        with client as same:
            assert same is client
            with pytest.raises(ClientAlreadyInitializedError), client:
                pytest.fail("the body must not run")
            with client.agent_instance(**AGENT):
                pass
    assert [run.status for run in recording.runs] == ["complete", "complete"]


@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
def test_use_outside_of_the_scope_is_a_clear_error(recording: Recording, enabled: bool) -> None:
    client = recording.open_sync(enabled=enabled)

    def check() -> None:
        for call in (
            lambda: client.create_agent_instance(**AGENT),
            lambda: client.agent_instance(**AGENT).__enter__(),
            lambda: client.create_span("0" * 32, "agent:run"),
            lambda: client.finish_span("0" * 32),
            lambda: client.span("0" * 32, "agent:run"),
            client.flush,
        ):
            with pytest.raises(ClientNotInitializedError, match="not open, or closed"):
                call()
        assert client.statistics().pending == 0

    check()
    with client, client.agent_instance(**AGENT) as instance:
        pass
    check()
    with pytest.raises(ClientNotInitializedError):
        instance.span("agent:run")


async def test_a_scope_may_be_opened_where_an_event_loop_runs(recording: Recording) -> None:
    with recording.open_sync() as client, client.agent_instance(**AGENT) as instance:
        run_agent(instance)
        await anyio.lowlevel.checkpoint()
        assert client.flush(10)
    assert recording.run.outline == "complete" + OUTLINE


def test_the_thread_is_gone_when_the_block_is_left(recording: Recording) -> None:
    for _ in range(20):
        with recording.open_sync():
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("prefactor-core") == 1
        assert "prefactor-core" not in [thread.name for thread in threading.enumerate()]


def test_a_span_of_a_closed_client_is_refused(recording: Recording) -> None:
    with recording.open_sync() as client, client.agent_instance(**AGENT) as instance:
        span = instance.span("agent:run")
        assert isinstance(span, SpanContext)
    with pytest.raises(ClientNotInitializedError, match="closed since"), span:
        pytest.fail("the body must not run")


# --- whole programs ---

PROGRAM = """
import os, signal, sys, threading, time
import anyio
from support.harness import AGENT, FaultyApi, make_config
from prefactor_core import *
from prefactor_core.local.app import MEMORY, LocalPrefactor
from prefactor_core.local.store import Store

def say(word):
    print(word, flush=True)

"""


def start(code: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    # Of Python 3.12 and later, which cannot know what the child does.
    forks = "ignore:This process:DeprecationWarning"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", forks, "-c", PROGRAM + code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str) -> tuple[int, list[str], str]:
    """Exit status, lines of output, and what was said on stderr."""
    with start(code) as process:
        try:
            output, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output.splitlines(), errors


INTERRUPTED = {
    "in the body": """
with open_prefactor_sync(make_config(), asgi_app=api) as client:
    try:
        with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            say("ready")
            threading.Event().wait()
    except KeyboardInterrupt:
        say(instance.ended)
say(api.operations[-1].body["status"])
say(client.statistics().lost)
""",
    "while registering": """
api.app = hang
began = time.monotonic()
try:
    config = make_config(registration_timeout=60, drain_timeout=0)
    with open_prefactor_sync(config, asgi_app=api) as client:
        try:
            client.create_agent_instance(**AGENT)
        finally:
            assert not given_up.is_set()  # a worker sends it, as long as the scope lasts
except KeyboardInterrupt:
    say(time.monotonic() - began < 10)
say([thread.name for thread in threading.enumerate()])
say(given_up.is_set())
# A run that was registered and is cancelled: its start and its end.
say(client.statistics().dropped)
""",
    "while draining": """
try:
    with open_prefactor_sync(make_config(drain_timeout=60), asgi_app=api) as client:
        with client.agent_instance(**AGENT) as instance:
            api.app = hang
except KeyboardInterrupt:
    say(f"out {client.statistics().dropped} {client.statistics().pending}")
    say([thread.name for thread in threading.enumerate()])
api.app = app
with client, client.agent_instance(**AGENT):  # it can be opened again
    pass
say(client.statistics().lost)
say(client.statistics().delivered)
""",
}
SAID = {
    "in the body": ["True", "cancelled", "0"],
    "while registering": ["True", "['MainThread']", "True", "{'drain_timeout': 3}"],
    "while draining": ["out {'drain_timeout': 2} 0", "['MainThread']", "0", "3"],
}
LOST = {"in the body": 0, "while registering": 3, "while draining": 2}


@CTRL_C
@pytest.mark.parametrize("when", INTERRUPTED)
def test_ctrl_c_goes_on_from_the_scope(when: str) -> None:
    code = f"""
app = LocalPrefactor(Store(MEMORY))
api = FaultyApi(app)
draining = {when == "while draining"}

async def hang(scope, receive, send):
    while draining and client.is_open:
        await anyio.sleep(0.01)  # before, the main thread may still be in the block
    say("ready")
    try:
        await anyio.sleep_forever()
    finally:
        given_up.set()

given_up = threading.Event()
"""
    with start(code + INTERRUPTED[when]) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    lost = LOST[when]
    loss = f"{lost} of 3 Prefactor operations were not delivered ({lost} drain_timeout)"
    said = f"{loss}; no answer came in time\n" if lost else ""
    assert (process.returncode, errors) == (0, said)
    assert output.splitlines() == SAID[when]


def interrupt(call: Callable[[], object], line: int) -> bool:
    """Make the call, and interrupt it as Ctrl-C does, before the given one of the lines that it
    executes in loop_thread.py; return whether it has so many."""
    left, before = line, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        nonlocal left
        if frame.f_code.co_filename != loop_thread.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        assert left == 0
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_of_opening_leaves_nothing_open(recording: Recording) -> None:
    for line in itertools.count(1):
        client = recording.open_sync()
        interrupted = interrupt(client.open, line)
        threads = [each for each in threading.enumerate() if each.name == "prefactor-core"]
        if not interrupted:
            client.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert not client.is_open
        if not interrupted:
            break
    assert line > 5


def test_ctrl_c_at_any_line_of_closing_ends_the_thread_and_accounts_for_all(
    api: FaultyApi,
) -> None:
    closed_by_ctrl_c = 0
    for line in itertools.count(1):
        api.hanging = False
        client = open_at(api, drain_timeout=0).open()
        with client.agent_instance(**AGENT):
            client.flush()
            api.hanging = True
        interrupted = interrupt(client.close, line)
        if client.is_open:  # as if it had not been called
            assert line <= 4  # before its first statement that changes something
            client.close()
        elif interrupted:
            closed_by_ctrl_c += 1
        assert "prefactor-core" not in [thread.name for thread in threading.enumerate()]
        assert (client.statistics().pending, client.statistics().lost) == (0, 1)
        if not interrupted:
            break
    assert closed_by_ctrl_c > 5


@FORK
@pytest.mark.parametrize("leave", ["pass", "sys.exit()"])
def test_a_fork_leaves_the_block_at_once_and_only_the_parent_records(leave: str) -> None:
    code = f"""
app = LocalPrefactor(Store(MEMORY))
with open_prefactor_sync(make_config(), asgi_app=app) as client:
    with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
        child = os.fork()
        if not child:
            {leave}
        else:
            assert os.waitpid(child, 0)[1] == 0
if child:
    say(client.statistics().delivered)
    say(client.statistics().lost)
"""
    # The registration of a run, its start, a span, the end of the run.
    assert run(code) == (0, ["4", "0"], "")


@FORK
def test_a_fork_gets_an_error_for_its_parents_client_and_opens_its_own() -> None:
    code = """
app = LocalPrefactor(Store(MEMORY))
with open_prefactor_sync(make_config(), asgi_app=app) as client:
    with client.agent_instance(**AGENT) as instance, instance.span("agent:run") as span:
        child = os.fork()
        if not child:
            for call in (
                lambda: client.create_agent_instance(**AGENT),
                lambda: client.create_span(instance.id, "agent:run"),
                lambda: client.flush(),
                lambda: instance.span("agent:run"),
            ):
                try:
                    call()
                except ClientScopeError as error:
                    assert "forked" in str(error), error
                else:
                    raise AssertionError(call)
            span.set_result({"n": 1})
            own = open_prefactor_sync(make_config(), asgi_app=LocalPrefactor(Store(MEMORY)))
            with own, own.agent_instance(**AGENT) as mine, mine.span("agent:run"):
                assert current_span() is not span
            say(own.statistics().delivered)
        else:
            assert os.waitpid(child, 0)[1] == 0
if not child:
    with client, client.agent_instance(**AGENT):  # the fork has let go of it
        pass
    say("child")
else:
    say("parent")
"""
    status, output, errors = run(code)
    assert (status, sorted(output), errors) == (0, ["4", "child", "parent"], "")


@FORK
def test_multiprocessing_by_fork_is_not_held_up() -> None:
    code = """
import multiprocessing

def work(number):
    with open_prefactor_sync(make_config(), asgi_app=LocalPrefactor(Store(MEMORY))) as client:
        with client.agent_instance(**AGENT):
            pass
    return client.statistics().delivered + number

with open_prefactor_sync(make_config(), asgi_app=LocalPrefactor(Store(MEMORY))) as client:
    with client.agent_instance(**AGENT):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            say(pool.map_async(work, range(4)).get(20))
            pool.close()
            pool.join()
        process = multiprocessing.get_context("fork").Process(target=sys.exit)
        process.start()
        process.join(20)
        say(process.exitcode)
say(client.statistics().lost)
"""
    assert run(code) == (0, ["[3, 4, 5, 6]", "0", "0"], "")


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "client.create_agent_instance(**AGENT)"])
def test_a_scope_that_is_never_left_does_not_keep_the_program_from_ending(end: str) -> None:
    code = f"""
client = open_prefactor_sync(make_config(), asgi_app=LocalPrefactor(Store(MEMORY)))
client.__enter__()
{end}
"""
    assert run(code) == (0, [], "")


def test_a_whole_program_prints_nothing(tmp_path: Path) -> None:
    code = f"""
with open_prefactor_sync(
    api_url={f"local:{tmp_path}/runs.db"!r}, schema_registry=SchemaRegistry()
) as client:
    with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
        pass
say(client.statistics().delivered)
"""
    assert run(code) == (0, ["4"], "")


def test_an_unreachable_api_lets_the_program_go_on(api: FaultyApi) -> None:
    api.away = True
    with open_at(api, registration_timeout=0.1, drain_timeout=0) as client:
        with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
            pass
    assert client.statistics().lost > 0
    assert PrefactorUnreachableError.__name__ in str(client.statistics().last_error)
