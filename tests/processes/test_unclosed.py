"""Programs that end without closing their client: what they deliver, and what they log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, atexit, gc, os, sys, threading
sys.modules["click"] = None  # for httpx's command line, which takes a third of the start
import anyio
from support.harness import AGENT, FaultyApi, make_config
from prefactor_core import *
from prefactor_core.local.app import MEMORY, LocalPrefactor
from prefactor_core.local.store import Store

backend, hanging = sys.argv[1], sys.argv[2] == "hanging"
api = FaultyApi(LocalPrefactor(Store(MEMORY)))
config = make_config(drain_timeout=float(sys.argv[3]), queue={"batch_window": 0})

async def record(client):
    # Two operations are delivered; of a third one, that depends.
    instance = await client.create_agent_instance(**AGENT)
    with instance.span("agent:run"):
        pass
    await client.flush()
    if hanging:
        api.hanging = True
        with instance.span("agent:run"):
            pass
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

async def opened():
    client = open_prefactor(config, asgi_app=api)
    await client.initialize()
    await record(client)

async def in_a_block():
    async with open_prefactor(config, asgi_app=api) as client:
        await record(client)
        if backend == "asyncio":
            asyncio.get_running_loop().stop()
        ready.set()
        await anyio.sleep_forever()

def say(what):
    print(what, file=sys.stderr, flush=True)

ready = threading.Event()
loop = asyncio.new_event_loop()
"""

NEVER_CLOSED = (
    "1 of 4 Prefactor operations were not delivered (1 never closed); the client was not closed "
    "before its event loop or the program ended: use 'async with', or call close()"
)

WAYS = {
    "its loop is closed": "loop.run_until_complete(opened()); loop.close()",
    "its loop runs step by step": """
loop.run_until_complete(opened())
for _ in range(3):
    loop.run_until_complete(asyncio.sleep(0))
""",
    "its loop is stopped in the block": "task = loop.create_task(in_a_block()); loop.run_forever()",
    "its loop is stopped and closed": """
task = loop.create_task(in_a_block())
loop.run_forever()
loop.close()
""",
    "a daemon thread runs it": """
loop.close()
run = lambda: anyio.run(in_a_block, backend="trio")
backend = "trio"
threading.Thread(target=run, daemon=True).start()
ready.wait()
""",
    "a daemon thread runs it on asyncio": """
loop.close()
run = lambda: anyio.run(in_a_block, backend="asyncio")
backend = "daemon"
threading.Thread(target=run, daemon=True).start()
ready.wait()
""",
}


@contextmanager
def started(
    code: str, hanging: bool, drain_timeout: float = 30
) -> Generator[subprocess.Popen[str]]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    # Python 3.12 and later warn of any fork beside a thread.
    forks = "ignore:This process:DeprecationWarning"
    arguments = ["asyncio", "hanging" if hanging else "answering", str(drain_timeout)]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-W", forks, "-c", PROGRAM + code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(code: str, hanging: bool, drain_timeout: float = 30) -> tuple[int, list[str]]:
    """The exit code of a program, and what it said."""
    with started(code, hanging, drain_timeout) as process:
        _, errors = process.communicate(timeout=25)
        return process.returncode, errors.splitlines()


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_ends_with_an_open_client_logs_the_loss_once(way: str) -> None:
    code = WAYS[way] + "\nsay('end')\nsys.exit(3)"
    assert run(code, hanging=True) == (3, ["end", NEVER_CLOSED])


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_ends_with_an_open_client_and_no_loss_logs_nothing(way: str) -> None:
    assert run(WAYS[way] + "\nsay('end')", hanging=False) == (0, ["end"])


def test_a_client_that_is_collected_unclosed_logs_the_loss() -> None:
    code = """
async def begin():
    client = open_prefactor(config, asgi_app=api)
    await client.__aenter__()  # and nobody leaves it
    await record(client)

loop.close()
asyncio.run(begin())
gc.collect()
say("collected")
"""
    assert run(code, hanging=True) == (0, [NEVER_CLOSED, "collected"])


def test_the_next_client_logs_the_loss_with_a_loop_that_was_closed() -> None:
    code = """
loop.run_until_complete(opened())
loop.close()
say("closed")

async def another():
    async with open_prefactor(config, asgi_app=api):
        say("opened")

asyncio.run(another())
"""
    assert run(code, hanging=True) == (0, ["closed", NEVER_CLOSED, "opened"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_logs_nothing_about_its_parents_client() -> None:
    code = """
loop.run_until_complete(opened())
child = os.fork()
if not child:
    sys.exit()  # with all that an interpreter does at its end
os.waitpid(child, 0)
say("end")
"""
    assert run(code, hanging=True) == (0, ["end", NEVER_CLOSED])


# --- without a loop ---

SYNC = """
loop.close()
atexit.register(lambda: say(client.statistics().delivered))
client = open_prefactor_sync(config, asgi_app=api)
client.__enter__()
instance = client.create_agent_instance(**AGENT)
with instance.span("agent:run"):
    pass
if hanging:
    client.flush()
    app = api.app

    async def hang(*_):
        os.write(1, b"hanging\\n")  # in one piece, beside another thread that prints
        await anyio.sleep_forever()

    api.app = hang
    with instance.span("agent:run"):
        pass
"""

ENDS = {
    "by itself": (0, ""),
    "by sys.exit": (3, "sys.exit(3)"),
    "as another thread exits": (
        0,
        "other = threading.Thread(target=sys.exit); other.start(); other.join()",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_synchronous_client_that_is_never_left_delivers_as_the_program_ends(end: str) -> None:
    code, statement = ENDS[end]
    status = "atexit.register(lambda: say(api.operations[-1].body['status']))"
    # The registration, the start of the run, the span, and the end of the run.
    assert run(status + SYNC + statement, hanging=False) == (code, ["4", "cancelled"])


LOST = "2 of 5 Prefactor operations were not delivered (2 drain_timeout); no answer came in time"


def test_a_synchronous_client_that_is_never_left_logs_the_loss_of_its_drain() -> None:
    assert run(SYNC, hanging=True, drain_timeout=0.2) == (0, [LOST, "3"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT for one process")
def test_ctrl_c_at_the_end_of_the_program_breaks_the_drain_off() -> None:
    code = SYNC + "os.write(1, b'end\\n')"
    with started(code, hanging=True) as process:
        assert process.stdout is not None
        lines = {process.stdout.readline(), process.stdout.readline()}
        assert lines == {"hanging\n", "end\n"}
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                continue
    # The first one may come before the handlers of the interpreter's end do, which finish the run.
    assert process.returncode in (0, 1, -signal.SIGINT)
    balances = [
        line for line in errors.splitlines() if "Prefactor operations were not deliv" in line
    ]
    assert len(balances) == 1
    assert balances[0] == LOST or "1 of 4" in balances[0]


def test_leaving_does_not_wait_for_a_thread_that_is_stuck() -> None:
    code = """
loop.close()

async def block(*_):
    threading.Event().wait()

with open_prefactor_sync(config, asgi_app=api) as client:
    instance = client.create_agent_instance(**AGENT)
    client.flush()
    api.app = block
say("left")
"""
    code, said = run(code, hanging=False, drain_timeout=0)
    assert (code, said[1]) == (0, "left")
    assert "is abandoned: it is in" in said[0]
    assert said[2].startswith("2 of 3 Prefactor operations were not delivered (2 never closed)")
    assert len(said) == 3
