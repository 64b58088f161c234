"""A program that runs again has the same versions; one that has changed has others."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

from prefactor_core import build_runtime_environment

PROGRAM = '''
import anyio
from msgspec import Struct
from prefactor_core import SchemaRegistry, SpanParams, open_prefactor

registry = SchemaRegistry()


class Answer(Struct):
    response: str


@registry.span_type("agent:ask")
class Ask(Struct, SpanParams[Answer]):
    """What
    is asked."""

    prompt: str


async def main() -> None:
    async with open_prefactor(api_url="local:runs.db", schema_registry=registry) as client:
        async with client.agent_instance("my-agent", {"name": "My agent"}) as instance:
            async with instance.span(Ask(prompt="Hello")) as span:
                span.set_result(Answer("Hi there"))


anyio.run(main)
'''
CHANGED = PROGRAM.replace("prompt: str\n", "prompt: str\n    model: str = 'small-1'\n")
NAMED = PROGRAM.replace('"name": "My agent"', '"name": "My agent", "external_identifier": "v1"')
BY_AN_ADAPTER = NAMED.replace("=registry", "=registry, sdk_header_entry='adapter@2'")


def run(program: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=folder, check=True)


def stored(folder: Path) -> dict[str, int]:
    """How many runs there are, and versions of each kind."""
    connection = sqlite3.connect(folder / "runs.db")
    try:
        (runs,) = connection.execute(
            "SELECT count(*) FROM agent_instances WHERE status = 'complete'"
        ).fetchone()
        kinds = connection.execute("SELECT kind, count(*) FROM agent_versions GROUP BY kind")
        return {"runs": runs, **dict(kinds.fetchall())}
    finally:
        connection.close()


def test_two_runs_of_a_program_have_one_version_of_the_agent_and_of_its_span_types(
    tmp_path: Path,
) -> None:
    run(PROGRAM, tmp_path)
    run(PROGRAM, tmp_path)
    assert stored(tmp_path) == {"runs": 2, "agent_version": 1, "agent_schema_version": 1}


def test_a_changed_struct_makes_a_second_version_of_the_span_types(tmp_path: Path) -> None:
    run(PROGRAM, tmp_path)
    run(CHANGED, tmp_path)
    run(PROGRAM, tmp_path)
    assert stored(tmp_path) == {"runs": 3, "agent_version": 1, "agent_schema_version": 2}


def test_what_it_runs_on_may_change_under_the_same_name(tmp_path: Path) -> None:
    assert build_runtime_environment() != build_runtime_environment("adapter@2")
    run(NAMED, tmp_path)
    run(BY_AN_ADAPTER, tmp_path)
    assert stored(tmp_path) == {"runs": 2, "agent_version": 1, "agent_schema_version": 1}
