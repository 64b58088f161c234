"""Programs with Redis as their api_url: what they import, and when they fork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.forks import needs_fork, run_without_client

START = """
import logging, sys, threading
import anyio
from prefactor_core import open_prefactor

AGENT = {"agent_id": "a", "agent_version": {"name": "A", "external_identifier": "1"}}
URL = %r

logging.disable()  # no relay is alive
"""


def check(tmp_path: Path, url: str, script: str) -> None:
    done = run("-c", START % url + script, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_client_of_redis_is_imported_in_a_thread_at_the_opening(
    redis: Any, tmp_path: Path, backend: str
) -> None:
    script = """
from importlib.abc import MetaPathFinder

threads = []


class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "coredis":
            threads.append(threading.current_thread().name)


sys.meta_path.insert(0, Finder())


async def main():
    client = open_prefactor(api_url=URL)
    assert threads == []
    async with client:
        assert threads == ["prefactor-import"], threads
        async with client.agent_instance(**AGENT):
            pass
    assert threads == ["prefactor-import"], threads


anyio.run(main, backend=%r)
"""
    check(tmp_path, redis.url, script % backend)


def test_without_the_extra_the_opening_says_how_to_get_it(tmp_path: Path) -> None:
    script = """
from prefactor_core import PrefactorValueError

sys.modules["coredis"] = None


async def main():
    try:
        async with open_prefactor(api_url=URL):
            raise AssertionError("opened")
    except PrefactorValueError as error:
        assert "needs the extra 'redis'" in str(error), error


anyio.run(main)
"""
    check(tmp_path, "redis://127.0.0.1:9", script)


def test_an_unusable_certificate_is_an_error_of_the_opening(tmp_path: Path) -> None:
    script = """
from prefactor_core import PrefactorValueError


async def main():
    try:
        async with open_prefactor(api_url=URL):
            raise AssertionError("opened")
    except PrefactorValueError as error:
        assert "a file for TLS with rediss://127.0.0.1:9 is unusable" in str(error), error


anyio.run(main)
"""
    check(tmp_path, "rediss://127.0.0.1:9?ssl_ca_certs=missing.pem", script)


@pytest.mark.parametrize("way", ["capture", "off", "app"])
def test_a_client_that_sends_nothing_knows_no_redis(tmp_path: Path, way: str) -> None:
    script = f"""
from prefactor_core.local import open_local_prefactor
from prefactor_core.testing import open_recording


async def record(**options):
    async with open_prefactor(api_url=URL, **options) as client:
        async with client.agent_instance(**AGENT) as run:
            with run.span("agent:tool"):
                pass
    assert client.statistics().lost == 0


async def main():
    if {way!r} == "capture":
        with open_recording() as recording, recording.capture():
            await record()
            assert len(recording.runs) == 1
    elif {way!r} == "off":
        await record(enabled=False)
    else:
        async with open_local_prefactor(":memory:") as app:
            await record(asgi_app=app)
    assert "coredis" not in sys.modules
    assert "prefactor_core.relay" not in sys.modules


anyio.run(main)
"""
    check(tmp_path, "redis://127.0.0.1:9", script)


@needs_fork
def test_a_forked_child_has_a_client_of_its_own(redis: Any, tmp_path: Path) -> None:
    run_without_client(
        START % redis.url
        + """
warnings.simplefilter("ignore", ResourceWarning)  # the parent's connection, in the child


async def record():
    async with open_prefactor(api_url=URL) as client:
        async with client.agent_instance(**AGENT) as run:
            with run.span("agent:tool"):
                pass
    assert client.statistics().delivered == 4 and not client.statistics().lost


def in_child():
    try:
        anyio.run(record)
    except BaseException as error:
        print(repr(error))
        os._exit(1)
    os._exit(0)


async def main():
    async with open_prefactor(api_url=URL) as client:
        async with client.agent_instance(**AGENT) as run:
            await client.flush()
            child = os.fork()
            if not child:
                threading.Thread(target=in_child).start()
                threading.Event().wait()
            assert wait_for(child) == 0
            with run.span("agent:tool"):
                pass
    assert client.statistics().delivered == 4 and not client.statistics().lost


anyio.run(main)
""",
        tmp_path,
    )
    entries = [redis.cli("XRANGE", f"{{pf:{shard}}}:ops", "-", "+") for shard in range(16)]
    agents = {fields[3] for found in entries for _, fields in found}
    assert len(agents) == 2


@needs_fork
def test_a_forked_child_that_goes_on_leaves_the_connection_to_its_parent(
    redis: Any, tmp_path: Path
) -> None:
    run_without_client(
        START % redis.url
        + """
parent = os.getpid()


async def main():
    async with open_prefactor(api_url=URL) as client:
        async with client.agent_instance(**AGENT) as run:
            await client.flush()
            await anyio.sleep(0.2)  # the first heartbeat is over
            child = os.fork()
            if not child:
                return
            assert wait_for(child) == 0
            with run.span("agent:tool"):
                pass
            with anyio.fail_after(20):
                await client.flush()
    assert client.statistics().delivered == 4 and not client.statistics().lost


anyio.run(main)
if os.getpid() != parent:
    os._exit(0)
""",
        tmp_path,
    )


def test_commands_that_read_runs_ask_for_the_address_of_the_api(tmp_path: Path) -> None:
    done = run("-m", "prefactor_core", "runs", cwd=tmp_path, PREFACTOR_API_URL="redis://:pw@host")
    assert done.returncode != 0
    assert "a relay's Redis holds no runs to read: give the API's address" in done.stderr
    assert "pw" not in done.stderr
