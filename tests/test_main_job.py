"""The main job as a user runs it: the example agent, and the command that shows its tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest
from harness import StoredRun, stored_runs
from local_api import opened
from server import serve_local_prefactor

from prefactor_core.identifiers import generate_related
from prefactor_core.local import open_local_prefactor

REPOSITORY = Path(__file__).parent.parent
EXAMPLE = REPOSITORY / "examples" / "agent_e2e.py"
KILL_SWITCH = REPOSITORY / "examples" / "kill_switch.py"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFACTOR_")}
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=cwd,
        env={**inherited, **environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


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


def unordered(shape: tuple[object, ...]) -> object:
    """A shape without the order of siblings: some of them run at the same time."""
    name, status, children = shape
    assert isinstance(children, list)
    return name, status, sorted(map(unordered, children), key=repr)


def test_the_example_stores_the_same_tree_on_both_backends(tmp_path: Path) -> None:
    for backend in ("asyncio", "trio"):
        result = run(EXAMPLE, "--backend", backend, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "recorded agent instance" in result.stdout
        assert result.stderr == ""
    on_asyncio, on_trio = runs_in(tmp_path / "prefactor.db")
    assert on_asyncio.status == on_trio.status == "complete"
    (one,), (other,) = on_asyncio.roots, on_trio.roots
    assert unordered(one.shape) == unordered(other.shape)
    statuses = [span.status for span in on_asyncio.spans.values()]
    assert (statuses.count("failed"), statuses.count("cancelled")) == (1, 2)
    research = next(s for s in on_trio.spans.values() if s.payload == {"tool": "research"})
    assert {"tool": "check_sources"} in [child.payload for child in research.children]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_demo_prints_the_tree_that_was_stored(tmp_path: Path, backend: str) -> None:
    result = run("-m", "prefactor_core", "demo", "--backend", backend, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for line in (
        "recorded at local:prefactor.db",
        "agent:run  complete  ",
        '"arguments":{"value":"twenty-two"}} → {"error":{"type":"ValueError"',
        "agent:retrieval  cancelled  a second opinion\n",
        "height of Olympus Mons → 2 documents\n",
        "small-1: Write the answer → Olympus Mons, by 13 km\n",
    ):
        assert line in result.stdout


def test_the_newest_run_of_an_agent_is_shown(tmp_path: Path) -> None:
    for _ in range(2):
        run(EXAMPLE, cwd=tmp_path)
    result = run("-m", "prefactor_core", "show", "research", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    newest = runs_in(tmp_path / "prefactor.db")[-1]
    assert f"agent instance {newest.id}  complete" in result.stdout
    result = run("-m", "prefactor_core", "show", "nobody", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "Error: agent 'nobody' has no run at local:prefactor.db\n"


@pytest.mark.parametrize("command", [("show", "research"), ("terminate", "0" * 32)])
def test_to_look_at_a_database_that_is_not_there_does_not_make_one(
    tmp_path: Path, command: tuple[str, str]
) -> None:
    result = run("-m", "prefactor_core", *command, "--api-url", "local:typo.db", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == ("Error: there is no database 'typo.db': nothing was recorded there\n")
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
    assert head.rstrip().endswith(' ms  "over budget"')
    assert span.rstrip() == "└── agent:llm  active"


async def test_a_run_is_terminated_without_a_reason_of_ones_own(tmp_path: Path) -> None:
    async with opened(str(tmp_path / "runs.db")) as api:
        instance_id = await api.start()
    where = ("--api-url", "local:runs.db")
    result = run("-m", "prefactor_core", "terminate", instance_id, *where, cwd=tmp_path)
    assert result.stdout == (
        f"agent instance {instance_id} is terminated: terminated from the command line\n"
    )


async def test_a_run_that_cannot_be_terminated_is_one_clear_line(tmp_path: Path) -> None:
    async with opened(str(tmp_path / "prefactor.db")) as api:
        pending, active = await api.register(), await api.start()
    unknown = generate_related(active)
    for arguments, said in [
        ([pending], "409 invalid_action: an agent instance that is pending cannot become"),
        ([unknown], f"404 not_found: agent instance '{unknown}' not found"),
        ([active, "--reason", ""], "(reason: is required)"),
        ([f"{active}/finish?"], f"'{active}/finish?' is not the id of an agent instance"),
        (["research"], "'research' is not the id of an agent instance"),
    ]:
        result = run("-m", "prefactor_core", "terminate", *arguments, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert said in line
    async with opened(str(tmp_path / "prefactor.db")) as api:
        assert (await api.instance(pending))["status"] == "pending"
        assert (await api.instance(active))["status"] == "active"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_environments_api_is_used_over_http(tmp_path: Path, api_url: str, backend: str) -> None:
    environment = {"PREFACTOR_API_URL": api_url + "/", "PREFACTOR_API_TOKEN": "right"}
    result = run("-m", "prefactor_core", "demo", "--backend", backend, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert "agent:run  complete" in result.stdout
    assert not (tmp_path / "prefactor.db").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"PREFACTOR_API_TOKEN": "wr0ng"}, "401 bad_authtoken"),
        ({"PREFACTOR_API_TOKEN": ""}, "api_token is required"),
        ({"PREFACTOR_AGENT_ID": "stranger"}, "agent 'stranger' not found"),
        ({"PREFACTOR_API_URL": "prefactor.db"}, "must begin with https://, http:// or local:"),
        ({"PREFACTOR_API_URL": "local:no/such/folder/x.db"}, "cannot open the database"),
    ],
    ids=["token", "no token", "agent", "url", "path"],
)
@pytest.mark.parametrize("command", [[str(EXAMPLE)], ["-m", "prefactor_core", "demo"]])
def test_what_is_configured_wrongly_is_one_clear_line(
    tmp_path: Path, api_url: str, wrong: dict[str, str], said: str, command: list[str]
) -> None:
    environment = {"PREFACTOR_API_URL": api_url, "PREFACTOR_API_TOKEN": "right", **wrong}
    result = run(*command, cwd=tmp_path, **environment)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
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
