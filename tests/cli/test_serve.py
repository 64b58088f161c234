"""``serve`` and ``demo``: a server of a database file, which ends when it is asked to."""

from __future__ import annotations

import socket
from pathlib import Path

import anyio
import httpx
import pytest
from support.commands import REPOSITORY, run, run_here, run_in_terminal
from support.local_api import REGISTRATION, opened
from support.serving import serving

SLOW_AGENT = REPOSITORY / "examples" / "slow_agent.py"
SERVE = ("-m", "prefactor_core", "serve", "--port", "0")
SLOW = ("-m", "prefactor_core", "demo", "--slow", "--serve")


def test_the_server_prints_one_link_and_records_into_the_file(tmp_path: Path) -> None:
    with serving(*SERVE, cwd=tmp_path) as server:
        url = server.url()
        with httpx.Client(base_url=f"{url}api/v1/", timeout=30) as http:
            made = http.post("agent_instance/register", json=REGISTRATION)
            assert made.status_code == 200
            assert http.get("agent_instance", params={"agent_id": "a1"}).json()["summaries"]
        assert server.stop() == 0
        assert server.rest() == []
    code, shown, errors = run_here("show", "a1", cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert made.json()["details"]["id"] in shown


def test_another_process_records_into_the_file_that_is_served(tmp_path: Path) -> None:
    with serving(*SERVE, "--db", "runs.db", cwd=tmp_path) as server:
        url = server.url()
        code, _, errors = run_here("demo", "--api-url", "local:runs.db", cwd=tmp_path)
        assert (code, errors) == (0, "")
        code, shown, errors = run_here("show", "research", "--api-url", url, cwd=tmp_path)
        assert (code, errors) == (0, "")
        assert "agent:run  complete" in shown


def test_an_agent_and_the_commands_need_no_token_for_a_server_on_this_machine(
    tmp_path: Path,
) -> None:
    with serving(*SERVE, "--db", "runs.db", cwd=tmp_path) as server:
        address = ("--api-url", server.url())
        code, _, errors = run_here("demo", *address, cwd=tmp_path)
        assert (code, errors) == (0, "")
        code, shown, errors = run_here("tree", "research", *address, cwd=tmp_path)
        assert (code, errors) == (0, "")
        assert "agent:run  complete" in shown


def test_runs_that_ended_days_ago_are_deleted_where_that_is_asked_for(tmp_path: Path) -> None:
    async def record() -> tuple[str, str]:
        async with opened(str(tmp_path / "prefactor.db")) as api:
            ended, active = await api.start(), await api.start()
            await api.done(f"agent_instance/{ended}/finish", {})
            return ended, active

    ended, active = anyio.run(record)
    with serving(*SERVE, "--keep", "0.00000001", cwd=tmp_path) as server:
        with httpx.Client(base_url=f"{server.url()}api/v1/agent_instance/", timeout=30) as http:
            while http.get(ended).status_code == 200:
                pass
            assert http.get(ended).status_code == 404
            assert http.get(active).status_code == 200
        assert server.stop() == 0
        assert server.rest() == []
    code, _, errors = run_here("serve", "--keep", "0", cwd=tmp_path)
    assert code == 2
    assert "--keep" in errors


def test_a_port_in_use_and_a_missing_host_are_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, shown, errors = run_here("serve", "--port", str(port), cwd=tmp_path)
    assert (code, shown) == (1, "")
    assert errors == (
        f"Error: cannot listen on port {port} of 127.0.0.1: it is in use: choose another by "
        "--port, or any free one by --port 0\n"
    )
    token = ("--token", "a secret")
    code, _, errors = run_here("serve", "--host", "no.such.host.invalid", *token, cwd=tmp_path)
    assert code == 1
    assert errors.startswith("Error: cannot find the host 'no.such.host.invalid'")
    assert len(errors.splitlines()) == 1
    assert "secret" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "prefactor.db").write_text("no database, but long enough to look like a file" * 9)
    code, shown, errors = run_here("serve", "--port", "0", cwd=tmp_path)
    assert (code, shown) == (1, "")
    assert errors == "Error: cannot open the database 'prefactor.db': file is not a database\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "box.example"])
def test_an_address_that_other_machines_reach_needs_a_token(tmp_path: Path, host: str) -> None:
    code, shown, errors = run_here("serve", "--host", host, cwd=tmp_path)
    assert (code, shown) == (1, "")
    assert f"other machines reach the host {host!r}" in errors
    assert "PREFACTOR_SERVE_TOKEN" in errors
    code, _, errors = run_here("serve", "--token", " ", cwd=tmp_path)
    assert (code, errors) == (1, "Error: the token must be a text that is not empty\n")


def test_a_server_with_a_token_asks_for_it_and_does_not_print_it(tmp_path: Path) -> None:
    command = (*SERVE, "--host", "0.0.0.0")
    with serving(*command, cwd=tmp_path, PREFACTOR_SERVE_TOKEN="a secret") as server:
        line = server.line("http://127.0.0.1:")
        url = line.split()[3]
        with httpx.Client(base_url=url, timeout=30) as http:
            assert http.get("api/v1/ping").status_code == 401
            given = {"Authorization": "Bearer a secret"}
            assert http.get("api/v1/ping", headers=given).status_code == 200
            assert http.post("-/login", json={"token": "a secret"}).status_code == 204
            assert http.get("api/v1/ping").status_code == 200
        assert server.stop() == 0
        assert "a secret" not in line + "".join(server.rest())


def test_the_demo_serves_its_run_on_a_terminal_only(tmp_path: Path) -> None:
    code, shown, errors = run_here("demo", cwd=tmp_path)
    assert (code, errors) == (0, "")
    *_, last = shown.splitlines()
    assert last.startswith("To see it in a browser: python -m prefactor_core view prefactor.db 0")
    # On a terminal too, if it is told not to.
    code, shown, errors = run_in_terminal("demo", "--no-serve", cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert "To see it in a browser" in shown
    with serving("-m", "prefactor_core", "demo", "--serve", cwd=tmp_path) as server:
        tree, url = server.line("agent instance "), server.url()
        base, _, run_id = url.rpartition("/runs/")
        assert run_id in tree
        answer = httpx.get(f"{base}/api/v1/agent_instance/{run_id}", timeout=30)
        assert answer.json()["details"]["status"] == "complete"
        assert server.stop() == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_slow_demo_is_stopped_by_the_page_and_goes_on_serving(
    tmp_path: Path, backend: str
) -> None:
    # In the file that the README's first command leaves, and as the same agent, too.
    as_agent = ["--agent-id", "mine"] if backend == "trio" else []
    assert run_here("demo", "--no-serve", *as_agent, cwd=tmp_path)[0] == 0
    with serving(*SLOW, "--backend", backend, *as_agent, cwd=tmp_path) as server:
        base, _, run_id = server.url().rpartition("/runs/")
        run = f"{base}/api/v1/agent_instance/{run_id}"
        with httpx.Client(timeout=30, headers={"Origin": base}) as http:
            stopped = http.post(f"{run}/terminate", json={"reason": "seen enough"})
            while stopped.status_code in (404, 409):  # not registered, not started
                stopped = http.post(f"{run}/terminate", json={"reason": "seen enough"})
            assert stopped.status_code == 200, stopped.text
            said = server.line("terminated")
            assert (
                said == f"the Prefactor API has terminated agent instance {run_id}: seen enough\n"
            )
            assert http.get(run).json()["details"]["status"] == "terminated"
        assert server.stop() == 0
        assert server.rest() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_slow_demo_that_is_interrupted_ends_its_run_as_cancelled(
    tmp_path: Path, backend: str
) -> None:
    with serving(*SLOW, "--backend", backend, cwd=tmp_path) as server:
        run_id = server.url().rpartition("/")[2]
        assert server.stop() == 0
        assert server.rest() == []
    _, shown, _ = run_here("show", "trip-planner", cwd=tmp_path)
    assert f"agent instance {run_id}  cancelled" in shown


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_slow_agent_records_a_run_with_all_that_a_page_shows(
    tmp_path: Path, backend: str
) -> None:
    result = run(SLOW_AGENT, "--backend", backend, "--pace", "0.01", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    _, shown, _ = run_here("show", "trip-planner", cwd=tmp_path)
    lines = shown.splitlines()
    assert lines[0].split()[3] == "complete"
    for kind, status, least in (
        ("llm_call", "complete", 5),
        ("tool_call", "complete", 6),
        ("tool_call", "failed", 1),
        ("tool_call", "cancelled", 1),
        ("retrieval", "complete", 1),
        ("run", "complete", 2),
    ):
        assert sum(f"agent:{kind}  {status}  " in line for line in lines) >= least


def test_what_the_demo_cannot_serve_is_one_clear_line(tmp_path: Path) -> None:
    address = ("--api-url", "https://api.example")
    code, shown, errors = run_here("demo", "--serve", *address, cwd=tmp_path)
    assert (code, shown) == (2, "")
    assert "it needs --api-url local:PATH" in errors.splitlines()[-1]


def test_an_event_loop_that_is_not_installed_is_named_with_the_way_to_it(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['trio'] = None\n"
        "sys.argv = ['-m', 'demo', '--backend', 'trio']\n"
        "runpy.run_module('prefactor_core', run_name='__main__')"
    )
    result = run("-c", code, cwd=tmp_path)
    said = "Error: trio is not installed: pip install trio\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", said)
