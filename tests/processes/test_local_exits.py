"""A program that records into a local file ends when it wants to, however its loop ended."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from prefactor_core.local.store import Store

COMMON = """
import asyncio, os, signal, sys
from prefactor_core import SchemaRegistry, open_prefactor

AGENT = {"agent_id": "a", "agent_version": {"name": "A", "external_identifier": "v1"}}


def client_of():
    return open_prefactor(api_url="local:runs.db", schema_registry=SchemaRegistry(), enabled=True)


async def record(client):
    async with client.agent_instance(**AGENT) as instance:
        with instance.span("agent:llm"):
            pass
        await client.flush()
        await stop_here()


async def in_scope():
    async with client_of() as client:
        await record(client)


async def initialized():
    client = client_of()
    await client.initialize()
    kept.append(client)
    await record(client)


async def nowhere():
    pass


async def forever():
    await asyncio.Event().wait()


kept = []
stop_here = nowhere
loop = asyncio.new_event_loop()
"""

STOPPED_BY_A_SIGNAL = """
async def stop_here():
    os.kill(os.getpid(), signal.SIGTERM)
    await forever()

loop.add_signal_handler(signal.SIGTERM, loop.stop)
task = loop.create_task(in_scope())
loop.run_forever()
"""

SYSTEM_EXIT_IN_A_CALLBACK = """
async def stop_here():
    loop.call_soon(sys.exit, 3)
    await forever()

loop.run_until_complete(in_scope())
"""

NEVER_CLOSED = """
loop.run_until_complete(initialized())
"""

LEFT_IN_THE_MIDDLE = """
async def stop_here():
    reached.set_result(None)
    await forever()

reached = loop.create_future()
task = loop.create_task(in_scope())
loop.run_until_complete(reached)
"""


@pytest.mark.parametrize(
    ("program", "exit_code"),
    [
        (STOPPED_BY_A_SIGNAL, 0),
        (SYSTEM_EXIT_IN_A_CALLBACK, 3),
        (NEVER_CLOSED, 0),
        (LEFT_IN_THE_MIDDLE, 0),
    ],
    ids=["loop.stop", "SystemExit", "initialize", "run_until_complete"],
)
def test_a_program_whose_scope_is_not_left_ends(
    program: str, exit_code: int, tmp_path: Path
) -> None:
    # It is killed, and the test fails, if it does not end.
    ended = subprocess.run(
        [sys.executable, "-c", COMMON + program],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")},
        timeout=60,
        check=False,
    )
    assert ended.returncode == exit_code
    with closing(Store(str(tmp_path / "runs.db"))) as store:
        assert [row["schema_name"] for row in store.all("SELECT * FROM agent_spans")] == [
            "agent:llm"
        ]
        assert [row[0] for row in store.all("PRAGMA integrity_check")] == ["ok"]
