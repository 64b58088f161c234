"""A script that forks, in a process of its own: pytest is not forked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

SYSTEM = '''
import os, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of fork() with threads


def wait_for(child):
    """The exit code of a child, in a time."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "the child hangs"
'''

CLIENT = '''
sys.path.insert(0, {tests!r})
sys.modules["click"] = None  # for httpx's command line, which takes a third of the start

import anyio
from support.harness import AGENT, make_config, open_faulty_api, stored_run, stored_runs
from prefactor_core import (
    ClientNotInitializedError, ClientScopeError, InMemoryQueue, open_prefactor
)

TOOL = ("agent:tool", "complete", [])
# Operations stay in memory until a flush, or until the scope ends.
HELD = {{"batch_window": 3600.0}}


def record(instance, name="agent:tool"):
    with instance.span(name):
        pass


def record_in_threads(instance, each=50):
    threads = [
        threading.Thread(target=lambda: [record(instance) for _ in range(each)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


async def record_run():
    """Record a run in threads, with an API and a client of this process."""
    async with open_faulty_api() as api:
        async with open_prefactor(make_config(), asgi_app=api) as client:
            async with client.agent_instance(**AGENT) as instance:
                record_in_threads(instance)
        assert (await stored_run(api)).shape == ("complete", [TOOL] * 200)
        assert not api.app.refusals
    assert client.statistics().lost == 0


def refused(function, *args):
    try:
        function(*args)
    except ClientScopeError as error:
        assert "forked" in str(error) and "open one of your own" in str(error), error
    else:
        raise AssertionError("not refused")


def refused_async(function, *args):
    """An await of the parent's body goes on in the child without a loop: by hand."""
    coroutine = function(*args)
    refused(coroutine.send, None)
'''


def run(script: str, tmp_path: Path) -> None:
    """Run the script; it and its children succeed and print nothing."""
    run_without_client(CLIENT.format(tests=str(Path(__file__).parents[1])) + script, tmp_path)


def run_without_client(script: str, tmp_path: Path) -> None:
    """Run a script that needs no client and no API: it begins in half the time."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SYSTEM + script],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stderr == ""
    assert (result.returncode, result.stdout) == (0, "")
