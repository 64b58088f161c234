"""A file in a folder that may not be written, such as that of another user."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from support.commands import REPOSITORY
from support.local_api import opened

from prefactor_core.local.read_only import connect

WAIT = 60


class Shown:
    """A process that shows a file and may write to no folder."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def look(self) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def shown(path: Path) -> Generator[Shown]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "support.nobody", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), f"{REPOSITORY}/tests"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Shown(process)
        process.communicate(timeout=WAIT)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate(timeout=WAIT)


@pytest.fixture
def folder() -> Generator[Path]:
    """A folder that everybody may read; those of pytest are for their owner alone."""
    with TemporaryDirectory() as made:
        folder = Path(made, "folder")
        folder.mkdir()
        Path(made).chmod(0o755)
        yield folder
        folder.chmod(0o755)


def close_to_writers(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o555)


def record(path: Path) -> None:
    """Add a run of agent a1 to the file."""

    async def start() -> None:
        async with opened(str(path)) as api:
            await api.start()

    anyio.run(start)


@contextmanager
def open_elsewhere(path: Path) -> Generator[None]:
    """While a process has the file open, its changes lie in the file beside it."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM account").fetchall()
        yield


def test_a_file_that_is_complete_is_shown(folder: Path) -> None:
    path = folder / "my runs%41?.db"
    record(path)
    close_to_writers(folder)
    with shown(path) as page:
        assert page.look() == {"runs": 1, "agents": 1}


def test_an_empty_file_of_changes_changes_nothing(folder: Path) -> None:
    path = folder / "runs.db"
    record(path)
    (folder / "runs.db-wal").touch()
    close_to_writers(folder)
    with shown(path) as page:
        assert page.look() == {"runs": 1, "agents": 1}


def test_a_file_is_shown_while_its_owner_writes(folder: Path) -> None:
    path = folder / "runs.db"
    record(path)
    with open_elsewhere(path):
        record(path)
        close_to_writers(folder)
        with shown(path) as page:
            assert page.look() == {"runs": 2, "agents": 1}
            record(path)
            assert page.look() == {"runs": 3, "agents": 1}


def test_runs_are_shown_that_its_owner_begins_to_write_later(folder: Path) -> None:
    path = folder / "runs.db"
    record(path)
    close_to_writers(folder)
    with shown(path) as page:
        assert page.look()["runs"] == 1
        folder.chmod(0o755)  # as only its owner may write there
        with open_elsewhere(path):
            folder.chmod(0o555)
            record(path)
            assert page.look()["runs"] == 2


def test_changes_that_cannot_be_read_there_are_an_error_that_says_what_to_do(folder: Path) -> None:
    living, path = folder.parent / "living.db", folder / "runs.db"
    record(living)
    with open_elsewhere(living):
        record(living)
        for suffix in ("", "-wal"):
            shutil.copy(f"{living}{suffix}", f"{path}{suffix}")
    close_to_writers(folder)
    with shown(path) as page:
        assert page.look() == {
            "error": (
                f"cannot open the database '{path}': its newest changes are in 'runs.db-wal', and "
                f"to read them SQLite must write to the folder '{folder}', which it may not: copy "
                "'runs.db' and 'runs.db-wal' to a folder of your own"
            )
        }
    copies = shutil.copytree(folder, folder.parent / "copies")
    copies.chmod(0o755)
    with closing(connect(str(copies / "runs.db"))) as db:
        assert db.execute("SELECT count(*) FROM agent_instances").fetchone()[0] == 2
