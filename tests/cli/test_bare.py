"""The command line where only the bare package is installed: it reads from a service."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from subprocess import CompletedProcess

import anyio
import pytest
from support.commands import run, run_here
from support.local_api import opened
from support.server import serve_local_prefactor
from support.serving import serving_file

EXTRAS = ("click", "jsonschema", "liquid", "rich", "starlette", "uvicorn")


def bare(folder: Path, *command: str, **environment: str) -> CompletedProcess[str]:
    """A command in a process that cannot import what the extras install."""
    code = (
        "import runpy, sys\n"
        f"for name in {EXTRAS}: sys.modules[name] = None\n"
        f"sys.argv = ['-m', *{command!r}]\n"
        "runpy.run_module('prefactor_core', run_name='__main__')"
    )
    return run("-c", code, cwd=folder, **environment)


SEVERAL = """
import json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
for name in EXTRAS: sys.modules[name] = None
results = []
for command in COMMANDS:
    sys.argv = ["-m", *command]
    output, errors = (TextIOWrapper(BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = None
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            runpy.run_module("prefactor_core", run_name="__main__")
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # as the interpreter does it
                print(code, file=errors)
                code = 1
    results.append([code or 0, *(text.buffer.getvalue().decode() for text in (output, errors))])
print(json.dumps(results))
"""


def bare_in_turn(
    folder: Path, *commands: tuple[str, ...], **environment: str
) -> list[tuple[int, str, str]]:
    """The exit codes, outputs and errors of commands one after another in such a process."""
    code = SEVERAL.replace("EXTRAS", repr(EXTRAS)).replace("COMMANDS", repr(commands))
    result = run("-c", code, cwd=folder, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    return [(code, output, errors) for code, output, errors in json.loads(result.stdout)]


@pytest.fixture
def service(tmp_path: Path) -> Generator[dict[str, str]]:
    """A service with one run of agent a1, which has a failed span: how to reach it."""

    async def make() -> None:
        async with opened(str(tmp_path / "served.db")) as api:
            error = {"error": {"type": "Lost", "message": "gone"}}
            await api.created(
                await api.start(), status="failed", payload={"ü": 1}, result_payload=error
            )

    anyio.run(make)
    with serve_local_prefactor(tmp_path / "served.db", api_token="right", agents=()) as url:
        yield {"PREFACTOR_API_URL": url, "PREFACTOR_API_TOKEN": "right"}


def test_it_says_what_to_install(tmp_path: Path) -> None:
    first = bare(tmp_path)
    others = [("demo",), ("--help",), ("journal", "ls"), ("relay",)]
    for code, shown, errors in (
        (first.returncode, first.stdout, first.stderr),
        *bare_in_turn(tmp_path, *others),
    ):
        assert (code, shown) == (1, "")
        assert "pip install '.[local]'" in errors
        assert "'.[local,redis]' for the command relay" in errors
        assert "runs [--agent AGENT]" in errors
        assert "Traceback" not in errors


def test_it_shows_what_the_whole_command_line_shows(
    tmp_path: Path, service: dict[str, str]
) -> None:
    _, document, _ = run_here("tree", "a1", "--json", cwd=tmp_path, **service)
    span_id = json.loads(document)["agent_spans"][0]["id"]
    commands = (
        ("runs",),
        ("runs", "--status", "active", "--limit", "1", "--agent", "a1", "--json"),
        ("tree", "a1"),
        ("tree", "a1", "--json"),
        ("span", span_id),
        ("span", span_id[:9], "--run", "a1", "--json"),
        ("export", "a1"),
        ("export", "a1", "--json"),
        ("export", "a1", "--json", "--format", "json"),
    )
    results = bare_in_turn(tmp_path, *commands, **service)
    for command, result in zip(commands, results, strict=True):
        assert result == (0, _shown(tmp_path, command, service), "")
        assert result[1]


def _shown(folder: Path, command: tuple[str, ...], service: dict[str, str]) -> str:
    code, shown, _ = run_here(*command, cwd=folder, **service)
    assert code == 0
    return shown


def test_it_writes_an_export(tmp_path: Path, service: dict[str, str]) -> None:
    result = bare(tmp_path, "export", "a1", "-o", "run.json", **service)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(json.loads((tmp_path / "run.json").read_bytes())["agent_spans"]) == 1


def test_what_is_wrong_is_one_clear_line(tmp_path: Path, service: dict[str, str]) -> None:
    wrong = {**service, "PREFACTOR_API_TOKEN": "wr0ng"}
    for command, environment, said in (
        (("tree", "nobody"), service, "Error: there is no agent 'nobody' at http://"),
        (("runs",), wrong, "401 bad_authtoken"),
        (("runs", "--api-url", "local:served.db"), service, "needs the extra 'local'"),
    ):
        result = bare(tmp_path, *command, **environment)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert said in line
        assert "wr0ng" not in line


def test_a_server_on_this_machine_needs_no_token(tmp_path: Path) -> None:
    with serving_file(tmp_path / "runs.db") as url:
        code, _, errors = run_here("demo", "--api-url", url, cwd=tmp_path)
        assert (code, errors) == (0, "")
        result = bare(tmp_path, "tree", "research", "--api-url", url)
        assert (result.returncode, result.stderr) == (0, "")
        assert "agent:run  complete" in result.stdout


def test_without_an_address_it_asks_for_one(tmp_path: Path) -> None:
    result = bare(tmp_path, "runs")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("error: set PREFACTOR_API_URL, or give --api-url\n")
