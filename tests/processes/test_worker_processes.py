"""Programs of several processes, by spawn, fork and prefork: each process has its own client.

All record into one file. Each program is a process of its own: pytest is neither forked nor
imported by a spawned child.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from support.forks import needs_fork
from support.harness import stored_runs

from prefactor_core.local import open_local_prefactor

AGENT = """
import multiprocessing, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
sys.modules["click"] = None  # for httpx's command line, which takes a third of the start

import anyio
from prefactor_core import SchemaRegistry, open_prefactor, traced

registry = SchemaRegistry()
for name in ("agent:run", "agent:job"):
    registry.register(name, {"type": "object"})


def client_of():
    # A busy machine may take its time.
    waits = {"registration_timeout": 120, "drain_timeout": 120}
    return open_prefactor(api_url="local:runs.db", schema_registry=registry, **waits)


@traced("agent:job")
def work(number):
    return number * number


async def agent(number):
    async with client_of() as client:
        async with client.agent_instance("workers", {"name": "Workers"}) as instance:
            async with instance.span("agent:run", payload={"number": number}):
                answer = work(number)
    assert client.statistics().lost == 0
    return answer


def job(number):
    return anyio.run(agent, number, backend=sys.argv[1])
"""

POOL = """
async def main():
    # The parent records around its children, which know nothing of its client.
    async with client_of() as client:
        async with client.agent_instance("parent", {"name": "Parent"}) as instance:
            async with instance.span("agent:run") as span:
                span.set_result({"answers": await anyio.to_thread.run_sync(in_processes)})
    assert client.statistics().lost == 0


def in_processes():
    context = multiprocessing.get_context(METHOD)
    # A fork inherits where the signals of its parent go, and the trio of the child complains.
    with ProcessPoolExecutor(2, context, signal.set_wakeup_fd, (-1,)) as pool:
        return list(pool.map(job, range(2)))


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
"""

PREFORK = """
# A server that forks before it serves: the workers inherit a client that nobody has opened, and a
# pipe by which each says that it has served.
import prefactor_core.client.scope, prefactor_core.local.app  # once, before the fork
client = client_of()
served, serve_done = os.pipe()


async def serve(requests):
    async with client:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async with client.agent_instance("workers", {"name": "Workers"}) as instance:
                async with instance.span("agent:run", payload={"number": requests}):
                    work(requests)
            os.write(serve_done, b".")
            async for _ in signals:
                break
    assert client.statistics().lost == 0


def worker(number):
    status = 1
    try:
        anyio.run(serve, number, backend=sys.argv[1])
        status = 0
    finally:
        os._exit(status)


workers = []
for number in range(2):
    child = os.fork()
    if child == 0:
        worker(number)
    workers.append(child)
for child in workers:
    assert os.read(served, 1) == b"."
for child in workers:
    os.kill(child, signal.SIGTERM)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in workers] == [0] * 2
"""
QUIET = """
import warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of fork() with threads
"""

TREE = ("complete", [("agent:run", "complete", [("agent:job", "complete", [])])])


def run(program: str, backend: str, folder: Path) -> None:
    """Run a program, which must neither fail nor say anything."""
    script = folder / "program.py"
    script.write_text(program, "utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", script, backend],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def check_workers(folder: Path) -> None:
    async def check() -> None:
        async with open_local_prefactor(str(folder / "runs.db")) as app:
            runs = await stored_runs(app, "workers")
        assert [run.shape for run in runs] == [TREE] * 2
        spans = [run.named("agent:run") for run in runs]
        assert sorted(span.payload["number"] for span in spans) == [0, 1]

    anyio.run(check)


def check_parent(folder: Path) -> None:
    async def check() -> None:
        async with open_local_prefactor(str(folder / "runs.db")) as app:
            (parent,) = await stored_runs(app, "parent")
        assert parent.shape == ("complete", [("agent:run", "complete", [])])
        assert parent.named("agent:run").result == {"answers": [0, 1]}

    anyio.run(check)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_spawned_processes_record_each_its_own_run(backend: str, tmp_path: Path) -> None:
    run(AGENT + POOL.replace("METHOD", "'spawn'"), backend, tmp_path)
    check_workers(tmp_path)
    check_parent(tmp_path)


@needs_fork
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_forked_processes_record_each_its_own_run(backend: str, tmp_path: Path) -> None:
    run(QUIET + AGENT + POOL.replace("METHOD", "'fork'"), backend, tmp_path)
    check_workers(tmp_path)
    check_parent(tmp_path)


@needs_fork
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_workers_of_a_server_that_forks_before_it_serves_record(
    backend: str, tmp_path: Path
) -> None:
    run(AGENT + PREFORK, backend, tmp_path)
    check_workers(tmp_path)
