"""``view``: the pages of a database file, which it does not change."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest
from support.commands import run_here
from support.local_api import opened
from support.serving import serving

from prefactor_core.operations.identifiers import generate

VIEW = ("-m", "prefactor_core", "view", "--no-open")


@pytest.fixture
def run_id(tmp_path: Path) -> str:
    """A run in the file ``runs.db``."""

    async def start() -> str:
        async with opened(str(tmp_path / "runs.db")) as api:
            return await api.start()

    return anyio.run(start)


def test_a_run_is_shown_and_the_file_is_not_changed(tmp_path: Path, run_id: str) -> None:
    before = (tmp_path / "runs.db").read_bytes()
    with serving(*VIEW, "runs.db", run_id, cwd=tmp_path) as server:
        url = server.url()
        base, _, last = url.rpartition("/runs/")
        assert last == run_id
        with httpx.Client(base_url=base, timeout=30) as http:
            assert http.get(f"/runs/{run_id}").status_code == 200
            assert http.get(f"/-/runs/{run_id}").json()["run"]["id"] == run_id
            assert http.get("/-/about").json()["read_only"] is True
            path = f"/api/v1/agent_instance/{run_id}/terminate"
            refused = http.post(path, json={"reason": "r"})
            assert (refused.status_code, refused.json()["code"]) == (405, "read_only")
            stored = http.get(f"/api/v1/agent_instance/{run_id}").json()["details"]
            assert stored["status"] == "active"
        assert server.stop() == 0
        assert server.rest() == []
    assert (tmp_path / "runs.db").read_bytes() == before


def test_a_run_is_named_by_the_beginning_of_its_id_or_by_its_agent(
    tmp_path: Path, run_id: str
) -> None:
    for words, page in {"": "", run_id[:14]: f"runs/{run_id}", "a1": f"runs/{run_id}"}.items():
        with serving(*VIEW, "runs.db", words, cwd=tmp_path) as server:
            assert server.url().split("/", 3)[3] == page
    code, shown, errors = run_here("view", "runs.db", "nobody", cwd=tmp_path)
    assert (code, shown) == (1, "")
    assert errors.startswith("Error: there is no agent 'nobody' at local:runs.db")


def test_a_file_that_cannot_be_shown_is_one_clear_line(tmp_path: Path, run_id: str) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.execute("PRAGMA user_version = 1")
    (tmp_path / "text.db").write_text("no database, but long enough to look like a file" * 9)
    for name, said in (
        ("missing.db", "there is no such file"),
        ("old.db", "python -m prefactor_core serve --db FILE"),
        ("text.db", "file is not a database"),
    ):
        code, shown, errors = run_here("view", name, generate(1), cwd=tmp_path)
        assert (code, shown) == (1, "")
        (line,) = errors.splitlines()
        assert line.startswith(f"Error: cannot open the database '{name}': ")
        assert said in line
    assert {path.name for path in tmp_path.glob("missing*")} == set()
