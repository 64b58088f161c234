"""The main job as a user runs it: the example agent, and the command that shows its tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest
from support.commands import REPOSITORY, run, run_here, run_in_terminal
from support.harness import StoredRun, stored_runs
from support.local_api import opened
from support.server import serve_local_prefactor

from prefactor_core import SchemaRegistry, open_prefactor_sync
from prefactor_core.local import open_local_prefactor
from prefactor_core.operations.identifiers import generate_related

EXAMPLE = REPOSITORY / "examples" / "agent_e2e.py"
KILL_SWITCH = REPOSITORY / "examples" / "kill_switch.py"


@pytest.fixture
def api_url(tmp_path: Path) -> Generator[str]:
    with serve_local_prefactor(
        tmp_path / "served.db", api_token="right", agents=("research",)
    ) as url:
        yield url


def runs_in(path: Path, agent_id: str = "research") -> list[StoredRun]:
    async def read() -> list[StoredRun]:
        async with open_local_prefactor(str(path)) as app:
            return await stored_runs(app, agent_id)

    return anyio.run(read)


TREE = (
    "agent:run",
    "complete",
    [
        ("agent:llm_call", "complete", []),
        (
            "agent:tool_call",  # research
            "complete",
            [
                ("agent:retrieval", "complete", []),
                ("agent:retrieval", "complete", []),
                ("agent:tool_call", "failed", []),  # convert_units
                ("agent:tool_call", "complete", []),  # convert_units
                ("agent:tool_call", "complete", []),  # check_sources
            ],
        ),
        ("agent:tool_call", "cancelled", []),  # slow_archive
        ("agent:retrieval", "cancelled", []),
        ("agent:llm_call", "complete", []),
    ],
)


def test_the_example_stores_the_same_tree_on_both_backends(tmp_path: Path) -> None:
    for backend in ("asyncio", "trio"):
        result = run(EXAMPLE, "--backend", backend, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "recorded agent instance" in result.stdout
        assert result.stderr == ""
    on_asyncio, on_trio = runs_in(tmp_path / "prefactor.db")
    for stored in (on_asyncio, on_trio):
        assert stored.status == "complete"
        (root,) = stored.roots
        assert root.shape == TREE
        research = next(s for s in root.children if s.payload == {"tool": "research"})
        assert {"tool": "check_sources"} in [child.payload for child in research.children]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_demo_prints_the_tree_that_was_stored(tmp_path: Path, backend: str) -> None:
    code, shown, errors = run_here("demo", "--backend", backend, cwd=tmp_path)
    assert code == 0, errors
    for line in (
        "recorded at local:prefactor.db",
        "agent:run  complete  ",
        "could not convert string to float: 'twenty-two'  convert_units(value: twenty-two)\n",
        "agent:retrieval  cancelled  a second opinion\n",
        "height of Olympus Mons → 2 documents\n",
        "small-1: Write the answer → Olympus Mons, by 13 km\n",
    ):
        assert line in shown


def test_the_newest_run_of_an_agent_is_shown(tmp_path: Path) -> None:
    for _ in range(2):
        run_here("demo", cwd=tmp_path)
    code, shown, errors = run_here("show", "research", cwd=tmp_path)
    assert code == 0, errors
    newest = runs_in(tmp_path / "prefactor.db")[-1]
    assert f"agent instance {newest.id}  complete" in shown
    code, _, errors = run_here("show", "nobody", cwd=tmp_path)
    assert (code, errors) == (1, "Error: there is no agent 'nobody' at local:prefactor.db\n")


@pytest.mark.parametrize("command", [("show", "research"), ("terminate", "0" * 32)])
def test_to_look_at_a_database_that_is_not_there_does_not_make_one(
    tmp_path: Path, command: tuple[str, str]
) -> None:
    said = "Error: there is no database 'typo.db': nothing was recorded there\n"
    assert run_here(*command, "--api-url", "local:typo.db", cwd=tmp_path) == (1, "", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_agent_that_another_process_stops_cleans_up_and_says_why(
    tmp_path: Path, backend: str
) -> None:
    result = run(KILL_SWITCH, "--backend", backend, cwd=tmp_path)
    reason = "it searches in circles"
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("Prefactor has terminated agent instance ")
    assert result.stderr.endswith(f": {reason}\n")
    assert "Traceback" not in result.stderr
    cleaned, head, first, *_, last = (line.rstrip() for line in result.stdout.splitlines())
    assert cleaned == "the agent cleans up"
    assert "  terminated  " in head
    assert head.endswith(f'"{reason}"')
    assert first.startswith("├── agent:tool  complete  ")
    assert last.endswith("  put everything back")
    (stored,) = runs_in(tmp_path / "prefactor.db", "search")
    assert (stored.status, stored.termination_reason) == ("terminated", reason)
    assert {span.status for span in stored.spans.values()} <= {"complete", "cancelled"}


async def test_a_run_is_terminated_while_another_process_records_it(tmp_path: Path) -> None:
    async with opened(str(tmp_path / "prefactor.db")) as api:
        instance_id = await api.start()
        command = ("-m", "prefactor_core", "terminate", instance_id, "--reason", "over budget")
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"agent instance {instance_id} is terminated: over budget\n"
        created = await api.create(instance_id)
    assert created.json()["control"] == {"terminate": True, "reason": "over budget"}
    result = run("-m", "prefactor_core", "show", "a1", cwd=tmp_path)
    (head, span) = result.stdout.splitlines()
    assert head.startswith(f"agent instance {instance_id}  terminated  ")
    assert head.rstrip().endswith('s  "over budget"')
    assert span.rstrip() == "└── agent:llm  active"


def test_a_run_is_terminated_without_a_reason_of_ones_own(tmp_path: Path) -> None:
    async def start() -> str:
        async with opened(str(tmp_path / "runs.db")) as api:
            return await api.start()

    instance_id = anyio.run(start)
    where = ("--api-url", "local:runs.db")
    _, shown, _ = run_here("terminate", instance_id, *where, cwd=tmp_path)
    assert shown == (
        f"agent instance {instance_id} is terminated: terminated from the command line\n"
    )


def test_a_run_that_cannot_be_terminated_is_one_clear_line(tmp_path: Path) -> None:
    async def start() -> tuple[str, str]:
        async with opened(str(tmp_path / "prefactor.db")) as api:
            ended, active = await api.start(), await api.start()
            await api.terminate(ended, "r")
            return ended, active

    async def status_of(instance_id: str) -> object:
        async with opened(str(tmp_path / "prefactor.db")) as api:
            return (await api.instance(instance_id))["status"]

    ended, active = anyio.run(start)
    unknown = generate_related(active)
    cases: list[tuple[list[str], str]] = [
        ([ended], "409 invalid_action: an agent instance that is terminated cannot become"),
        ([unknown], f"404 not_found: agent instance '{unknown}' not found"),
        ([active, "--reason", ""], "(reason: is required)"),
        ([f"{active}/finish?"], f"there is no agent '{active}/finish?' at local:prefactor.db"),
        (["research"], "there is no agent 'research' at local:prefactor.db"),
    ]
    for arguments, said in cases:
        code, shown, errors = run_here("terminate", *arguments, cwd=tmp_path)
        assert (code, shown) == (1, "")
        (line,) = errors.splitlines()
        assert line.startswith("Error: ")
        assert said in line
    assert anyio.run(status_of, active) == "active"


# --- what the terminal takes

HOSTILE = "Größe → ☃ 日本 \x1b[2J\x9b1A\u202e\r\n\x07"


def tree_in(path: Path, *, deep: int = 0, wide: int = 0, size: int = 0) -> None:
    """A run of the agent ``research``: spans below one another, and many side by side."""
    registry = SchemaRegistry()
    registry.register("agent:tool", {"type": "object"})
    registry.register(HOSTILE, {"type": "object"})
    with (
        open_prefactor_sync(
            api_url=f"local:{path}", schema_registry=registry, drain_timeout=60
        ) as client,
        client.agent_instance("research", {"name": "An agent"}) as instance,
        ExitStack() as spans,
    ):
        with instance.span(HOSTILE, payload={HOSTILE: HOSTILE}):
            pass
        for n in range(wide):
            with instance.span("agent:tool", payload={"wide": n, "text": "x" * size}):
                pass
        for n in range(deep):
            spans.enter_context(instance.span("agent:tool", payload={"deep": n}))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8", "utf-16"])
def test_what_the_terminal_has_no_characters_for_is_shown_all_the_same(
    tmp_path: Path, encoding: str
) -> None:
    tree_in(tmp_path / "prefactor.db")
    for command in ["show", "research"], ["demo"], ["show", "nöbody\udcff☃"], ["show", "☃"]:
        code, shown, errors = run_here(*command, cwd=tmp_path, encoding=encoding)
        if command[-1] in ("research", "demo"):
            assert (code, errors) == (0, "")
            assert all(line.isprintable() for line in shown.splitlines())
            assert "agent instance 0" in shown
        else:
            assert (code, shown) == (1, "")
            assert errors.startswith("Error: ")
        if command[-1] == "research":
            _, span = shown.splitlines()
            assert {"utf-8": "Größe → ☃ 日本", "ascii": r"Gr\xf6\xdfe -> \u2603 \u65e5"}.get(
                encoding, "[2J"
            ) in span
            assert span.startswith("└── " if encoding.startswith("utf") else ("`-- ", "└── "))


def test_a_pipe_gets_all_however_deep_and_long(tmp_path: Path) -> None:
    tree_in(tmp_path / "prefactor.db", deep=150, wide=2, size=20_000)
    code, shown, errors = run_here("show", "research", cwd=tmp_path)
    assert (code, errors) == (0, "")
    lines = shown.splitlines()
    assert [line.rpartition(" ")[2] for line in lines[-150:]] == [
        f'{{"deep":{n}}}' for n in range(150)
    ]
    assert ["x" * 20_000 in line for line in lines[2:4]] == [True, True]
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_gets_every_span_cut_at_its_width(tmp_path: Path, encoding: str) -> None:
    tree_in(tmp_path / "prefactor.db", deep=40, wide=100, size=20_000)
    code, text, errors = run_in_terminal("show", "research", cwd=tmp_path, encoding=encoding)
    assert (code, errors) == (0, "")
    lines = text.splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 1 + 1 + 100 + 40
    cut = "..." if encoding == "ascii" else "…"
    for line in lines[2:102]:
        assert line.endswith(cut)
        assert len(line) in (80, 80 + len(cut) - 1)
    for depth, line in enumerate(lines[102:]):
        assert line[4 * depth + 4 :].startswith("agent:tool  complete  ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of POSIX")
def test_nobody_to_show_it_to_is_no_error(tmp_path: Path) -> None:
    tree_in(tmp_path / "prefactor.db")
    shown = subprocess.run(
        ["sh", "-c", 'exec "$0" -m prefactor_core show research >&-', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (0, b"")


def test_who_reads_only_the_head_gets_no_error(tmp_path: Path) -> None:
    tree_in(tmp_path / "prefactor.db", wide=100, size=20_000)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "prefactor_core", "show", "research"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"agent instance ")
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert errors == b""


def test_only_what_is_shown_is_asked_for(tmp_path: Path) -> None:
    path, requests = tmp_path / "served.db", list[str]()

    async def register() -> str:
        async with opened(str(path)) as api:
            for _ in range(249):
                await api.register(agent_id="research")
            await anyio.sleep(0.002)  # ids that are made within one millisecond are in no order
            instance_id = await api.register(agent_id="research")
            for _ in range(120):
                await api.created(instance_id)
            return instance_id

    newest = anyio.run(register)
    served = {"api_token": "right", "agents": ("research",), "requests": requests}
    with serve_local_prefactor(path, **served) as url:  # type: ignore[arg-type]
        environment = {"PREFACTOR_API_URL": url, "PREFACTOR_API_TOKEN": "right"}
        _, shown, _ = run_here("show", "research", cwd=tmp_path, **environment)
    assert shown.startswith(f"agent instance {newest}  pending\n")
    assert shown.count("agent:llm") == 120
    paths = [request.partition("?")[0].rpartition("/")[2] for request in requests]
    assert paths == ["agent_instance", "agent_spans", "agent_spans"]
    assert "page_size%5D=1&" in requests[0]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_environments_api_is_used_over_http(tmp_path: Path, api_url: str, backend: str) -> None:
    environment = {"PREFACTOR_API_URL": api_url + "/", "PREFACTOR_API_TOKEN": "right"}
    code, shown, errors = run_here("demo", "--backend", backend, cwd=tmp_path, **environment)
    assert code == 0, errors
    assert "agent:run  complete" in shown
    assert not (tmp_path / "prefactor.db").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"PREFACTOR_API_TOKEN": "wr0ng"}, "401 bad_authtoken"),
        ({"PREFACTOR_API_TOKEN": ""}, "no API token was given"),
        ({"PREFACTOR_AGENT_ID": "stranger"}, "agent 'stranger' not found"),
        ({"PREFACTOR_API_URL": "prefactor.db"}, "must begin with https://, http://, local:"),
        ({"PREFACTOR_API_URL": "local:no/such/folder/x.db"}, "there is no folder 'no/such/folder'"),
    ],
    ids=["token", "no token", "agent", "url", "path"],
)
def test_what_is_configured_wrongly_is_one_clear_line(
    tmp_path: Path, api_url: str, wrong: dict[str, str], said: str
) -> None:
    environment = {"PREFACTOR_API_URL": api_url, "PREFACTOR_API_TOKEN": "right", **wrong}
    example = run(EXAMPLE, cwd=tmp_path, **environment)
    for code, shown, errors in (
        (example.returncode, example.stdout, example.stderr),
        run_here("demo", cwd=tmp_path, **environment),
    ):
        assert (code, shown) == (1, "")
        (line,) = errors.splitlines()
        assert said in line
        assert "wr0ng" not in line


def test_without_the_extra_the_way_to_it_is_named(tmp_path: Path) -> None:
    # Where the packages of the extra are not to be found: only the bare dependencies are.
    code = (
        "import sys; sys.modules['starlette'] = sys.modules['rich'] = None\n"
        "import anyio, prefactor_core\n"
        "async def main():\n"
        "    async with prefactor_core.open_prefactor(api_url='local:x.db'): pass\n"
        "try: anyio.run(main)\n"
        "except prefactor_core.PrefactorCoreError as error: print(error)\n"
        "import prefactor_core.__main__"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == 1
    assert "pip install '.[local]'" in result.stdout
    assert "pip install '.[local]'" in result.stderr
    assert "Traceback" not in result.stderr
