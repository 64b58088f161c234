"""The commands that show stored runs: ``runs``, ``tree``, ``span``, ``export``."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import anyio
import pytest
from support.commands import REPOSITORY, run_here, run_in_terminal
from support.local_api import Api, opened
from support.server import serve_local_prefactor

from prefactor_core import sensitive
from prefactor_core.operations.identifiers import generate_related

NOON = "2026-01-01T12:00:00Z"
SOON = "2026-01-01T12:00:01.500000Z"
FAILED = {"error": {"type": "Lost", "message": "gone", "stacktrace": "Traceback\n  in f"}}


@asynccontextmanager
async def writing(folder: Path) -> AsyncGenerator[Api]:
    async with opened(str(folder / "prefactor.db")) as api:
        yield api


def record(folder: Path) -> list[str]:
    """Three runs of two agents: complete with a failed span, terminated, active; oldest first."""

    async def make() -> list[str]:
        async with writing(folder) as api:
            first = await api.register()
            second = generate_related(first, (1 << 47) + 1)
            third = generate_related(first, (1 << 47) + 2)
            await api.register(id=second, agent_id="a2")
            await api.register(id=third)
            for id in (first, second, third):
                await api.done(f"agent_instance/{id}/start", {"timestamp": NOON})
            times = {"started_at": NOON, "finished_at": SOON}
            details = {"status": "failed", "payload": {"n": 1}, "result_payload": FAILED, **times}
            await api.created(first, **details)
            await api.done(f"agent_instance/{first}/finish", {"timestamp": SOON})
            await api.terminate(second, "over budget")
            return [first, second, third]

    return anyio.run(make)


def test_all_runs_are_listed_newest_first(tmp_path: Path) -> None:
    first, second, third = record(tmp_path)
    code, shown, errors = run_here("runs", cwd=tmp_path)
    assert (code, errors) == (0, "")
    head, *lines = shown.splitlines()
    assert head.split() == ["run", "status", "started", "took", "spans", "failed", "agent"]
    words = [line.split() for line in lines]
    assert words[0] == [third, "active", NOON, "0", "a1"]
    assert words[1][:3] == [second, "terminated", NOON]
    assert words[1][-3:] == ["a2", '"over', 'budget"']
    assert words[2] == [first, "complete", NOON, "1.50", "s", "1", "1", "a1"]


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (("--agent", "a1"), [2, 0]),
        (("--status", "complete"), [0]),
        (("--status", "complete", "--status", "active"), [2, 0]),
        (("--agent", "a2", "--status", "complete"), []),
        (("--limit", "2"), [2, 1]),
        (("--limit", "1", "--status", "terminated"), [1]),
    ],
)
def test_runs_are_listed_by_agent_status_and_number(
    tmp_path: Path, options: tuple[str, ...], places: list[int]
) -> None:
    ids = record(tmp_path)
    code, shown, errors = run_here("runs", "--json", *options, cwd=tmp_path)
    assert (code, errors) == (0, "")
    listed = json.loads(shown)
    assert [each["id"] for each in listed] == [ids[place] for place in places]
    if not places:
        _, shown, _ = run_here("runs", *options, cwd=tmp_path)
        assert shown == "there is no such run at local:prefactor.db\n"


def test_a_run_as_json_has_the_fields_of_the_api(tmp_path: Path) -> None:
    first, *_ = record(tmp_path)

    async def stored() -> tuple[Any, Any]:
        async with writing(tmp_path) as api:
            return await api.instance(first), await api.spans(first, summaries=True)

    instance, spans = anyio.run(stored)
    _, shown, _ = run_here("tree", first, "--json", cwd=tmp_path)
    document = json.loads(shown)
    assert document["agent_instance"].items() <= instance.items()
    (span,) = document["agent_spans"]
    assert span.items() <= spans[0].items()
    _, shown, _ = run_here("span", span["id"], "--json", cwd=tmp_path)
    assert json.loads(shown) == span


@pytest.mark.parametrize("command", [("runs",), ("tree", "a1"), ("span", "0" * 32)])
def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = "Error: there is no database 'typo.db': nothing was recorded there\n"
    assert run_here(*command, "--api-url", "local:typo.db", cwd=tmp_path) == (1, "", said)
    assert list(tmp_path.iterdir()) == []


def test_a_narrow_terminal_gets_two_lines_for_a_run(tmp_path: Path) -> None:
    _, _, third = record(tmp_path)
    for encoding in ("utf-8", "ascii"):
        code, shown, errors = run_in_terminal("runs", cwd=tmp_path, columns=44, encoding=encoding)
        assert (code, errors) == (0, "")
        lines = shown.splitlines()
        assert len(lines) == 6
        assert lines[:2] == [third, f"  active  {NOON}  a1"]
        assert all(len(line) <= 44 for line in lines)
        assert lines[3].endswith("..." if encoding == "ascii" else "…")


def test_a_run_is_terminated_by_the_name_of_its_agent(tmp_path: Path) -> None:
    *_, third = record(tmp_path)
    code, shown, errors = run_here("terminate", "a1", "--json", cwd=tmp_path)
    assert (code, errors) == (0, "")
    stopped = json.loads(shown)
    assert (stopped["id"], stopped["status"]) == (third, "terminated")


# --- one span


def test_a_span_is_shown_whole_its_error_first(tmp_path: Path) -> None:
    async def make() -> str:
        async with writing(tmp_path) as api:
            instance_id = await api.start()
            marked = {"$sensitive": "string", "labels": ["minors_data"], "value": "Ada"}
            created = await api.created(
                instance_id,
                status="failed",
                payload={"text": "x" * 5_000, "big": 2**70, "who": marked},
                result_payload={**FAILED, "found": 2},
                started_at=NOON,
                finished_at=SOON,
                sensitive_encoding=True,
            )
            return str(created["id"])

    id = anyio.run(make)
    assert sensitive("Ada", "minors_data").labels == ("minors_data",)
    code, shown, errors = run_here("span", id, cwd=tmp_path)
    assert (code, errors) == (0, "")
    lines = shown.splitlines()
    assert lines[0] == "agent:llm  failed  1.50 s"
    assert lines[1] == f"span     {id}"
    begin = lines.index("error")
    assert lines[begin:] == [
        "error",
        "  Lost: gone",
        "  Traceback",
        "    in f",
        "input",
        "  {",
        f'    "text": "{"x" * 5_000}",',
        f'    "big": {2**70},',
        '    "who": "[minors_data]"',
        "  }",
        "result",
        "  {",
        '    "found": 2',
        "  }",
    ]
    assert "Ada" not in shown


def test_a_terminal_cuts_nothing_of_a_span(tmp_path: Path) -> None:
    async def make() -> str:
        async with writing(tmp_path) as api:
            created = await api.created(await api.start(), payload={"text": "Y" * 300})
            return str(created["id"])

    id = anyio.run(make)
    code, shown, errors = run_in_terminal("span", id, cwd=tmp_path, columns=40)
    assert (code, errors) == (0, "")
    assert shown.count("Y") == 300


# --- exports


def test_an_export_is_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    first, *_ = record(tmp_path)
    code, shown, errors = run_here("export", first, "-o", "run.json", cwd=tmp_path)
    assert (code, shown, errors) == (0, "", "")
    written = tmp_path / "run.json"
    if sys.platform != "win32":
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
    _, shown, _ = run_here("tree", first, "--json", cwd=tmp_path)
    assert json.loads(written.read_bytes()) == json.loads(shown)


def test_an_export_is_json_for_programs_too(tmp_path: Path) -> None:
    first, *_ = record(tmp_path)
    exported = run_here("export", first, cwd=tmp_path)
    assert exported[0] == 0
    for words in (("--json",), ("--json", "--format", "json")):
        assert run_here("export", first, *words, cwd=tmp_path) == exported
    for name in ("otlp", "html"):
        code, shown, errors = run_here("export", first, "--json", "--format", name, cwd=tmp_path)
        assert (code, shown) == (2, "")
        assert f"--json and --format {name} are two formats: give one" in errors


def test_a_run_is_exported_as_a_trace(tmp_path: Path) -> None:
    record(tmp_path)
    code, shown, errors = run_here("export", "a2", "--format", "otlp", cwd=tmp_path)
    assert (code, errors) == (0, "")
    (resource,) = json.loads(shown)["resourceSpans"]
    assert len(resource["scopeSpans"][0]["spans"]) == 1


def test_a_run_of_a_file_or_a_service_is_exported_as_a_page(tmp_path: Path) -> None:
    first, *_ = record(tmp_path)
    path = tmp_path / "prefactor.db"
    for name in ("file", "service"):
        with serve_local_prefactor(path, api_token="right", agents=()) as url:
            environment = {"PREFACTOR_API_URL": url, "PREFACTOR_API_TOKEN": "right"}
            command = ("export", first, "--format", "html", "-o", f"{name}.html")
            code, shown, errors = run_here(
                *command, cwd=tmp_path, **(environment if name == "service" else {})
            )
        assert (code, shown, errors) == (0, "", "")
        page = (tmp_path / f"{name}.html").read_text("utf-8")
        embedded = page.partition('<script type="application/json" id="data">')[2]
        paths = json.loads(embedded.partition("</script>")[0])["paths"]
        assert paths[f"/-/runs/{first}"]["run"]["spans"]["failed"] == 1
        database = {"file": "prefactor.db", "service": "127.0.0.1"}[name]
        assert paths["/-/about"]["database"] == database


def test_a_page_does_not_go_to_a_terminal(tmp_path: Path) -> None:
    record(tmp_path)
    code, shown, errors = run_in_terminal("export", "a1", "--format", "html", cwd=tmp_path)
    assert (code, shown) == (2, "")
    assert errors.endswith("Error: a page is for a browser: give a file, -o FILE\n")


def test_an_export_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    first, *_ = record(tmp_path)
    code, shown, errors = run_here("export", first, "-o", "no/such.json", cwd=tmp_path)
    assert (code, shown) == (1, "")
    assert errors == "Error: 'no/such.json' cannot be written: No such file or directory\n"


# --- what goes on


@contextmanager
def following(*command: str, cwd: Path) -> Generator[tuple[subprocess.Popen[str], IO[str]]]:
    """A command in a process of its own, and its output."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "prefactor_core", *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def line_of(output: IO[str]) -> Any:
    return json.loads(output.readline())


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal of POSIX")
def test_runs_are_followed_until_ctrl_c(tmp_path: Path) -> None:
    ids = record(tmp_path)

    async def finish_and_register() -> str:
        async with writing(tmp_path) as api:
            await api.done(f"agent_instance/{ids[2]}/finish", {})
            return await api.register(id=generate_related(ids[0], (1 << 47) + 3))

    with following("runs", "--follow", "--json", cwd=tmp_path) as (process, output):
        assert [line_of(output)["id"] for _ in ids] == ids
        new = anyio.run(finish_and_register)
        changes = [line_of(output) for _ in range(2)]
        assert [(each["id"], each["status"]) for each in changes] == [
            (ids[2], "complete"),
            (new, "pending"),
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_tree_is_followed_until_its_run_ends(tmp_path: Path) -> None:
    *_, id = record(tmp_path)

    async def act(end: bool) -> str:
        async with writing(tmp_path) as api:
            if end:
                await api.done(f"agent_instance/{id}/finish", {})
                return id
            return str((await api.created(id))["id"])

    with following("tree", id, "--follow", "--json", cwd=tmp_path) as (process, output):
        assert line_of(output)["agent_instance"]["status"] == "active"
        span_id = anyio.run(act, False)
        assert line_of(output)["agent_span"]["id"] == span_id
        anyio.run(act, True)
        assert line_of(output)["agent_instance"]["status"] == "complete"
        assert output.read() == ""
        assert process.wait(30) == 0


def test_a_tree_that_is_followed_to_its_end_stays_on_the_terminal(tmp_path: Path) -> None:
    first, *_ = record(tmp_path)
    code, shown, errors = run_in_terminal("tree", first, "--follow", cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert shown.splitlines()[-2:] == [
        f"agent instance {first}  complete  1.50 s",
        '└── agent:llm  failed  1.50 s  Lost: gone  {"n":1}',
    ]


def test_who_looks_at_a_terminated_run_is_not_the_agent_that_hears_of_it(tmp_path: Path) -> None:
    path, requests = tmp_path / "prefactor.db", list[str]()
    _, second, _ = record(tmp_path)
    headers: list[str] = []
    with serve_local_prefactor(
        path, api_token="right", agents=(), requests=requests, headers=headers
    ) as url:
        environment = {"PREFACTOR_API_URL": url, "PREFACTOR_API_TOKEN": "right"}
        code, _, errors = run_here("tree", second, cwd=tmp_path, **environment)
    assert (code, errors) == (0, "")
    assert "authorization" in headers
    assert "x-prefactor-sdk" not in headers
