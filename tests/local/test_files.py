"""The file of a local Prefactor: its mode, and the locks that other processes hold on it."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import anyio
import pytest
from support.harness import AGENT, make_config, stored_run
from support.local_api import calling, opened, refused
from support.old_files import downgrade

from prefactor_core import PrefactorValueError, open_prefactor
from prefactor_core.local import open_local_prefactor
from prefactor_core.local.store import Store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "prefactor.db")


@contextmanager
def locked(path: str) -> Generator[sqlite3.Connection]:
    """Lock the file like a process that writes to it: until the block is left, or a COMMIT."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def make(path: str) -> None:
    Store(path).close()


def wait_until_nobody_has_it_open(path: str) -> None:
    make(path)
    with closing(sqlite3.connect(path)) as alone:
        for _ in range(3000):
            # SQLite refuses this while another connection is open.
            with suppress(sqlite3.OperationalError):
                assert alone.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
                return
            time.sleep(0.01)
    raise AssertionError("it is still open")


# --- opening


@pytest.mark.parametrize("agents", [None, ["a1", "a2"]])
async def test_a_file_that_is_up_to_date_is_opened_without_a_lock(
    path: str, agents: list[str] | None
) -> None:
    with anyio.fail_after(60):
        async with opened(path, agents=agents) as api:
            run = await api.register()
        with locked(path):
            async with opened(path, agents=agents, opening_timeout=0) as api:
                assert (await api.instance(run))["status"] == "pending"


@pytest.mark.parametrize("version", [None, 1, 4], ids=["new", "first", "old"])
def test_a_file_that_has_to_be_made_or_upgraded_waits_for_a_lock(
    path: str, version: int | None
) -> None:
    if version:
        make(path)
        downgrade(path, version)
    with locked(path) as other:
        # Longer than a call waits.
        freed = threading.Timer(0.6, other.execute, ["COMMIT"])
        freed.start()
        try:
            Store(path, opening_timeout=30).close()
        finally:
            freed.join()


async def test_agents_that_are_new_to_a_file_wait_for_a_lock(path: str) -> None:
    make(path)
    with locked(path) as other:
        freed = threading.Timer(0.6, other.execute, ["COMMIT"])
        freed.start()
        try:
            with anyio.fail_after(60):
                async with opened(path, agents=["a1"], opening_timeout=30) as api:
                    await api.register()
        finally:
            freed.join()


async def test_a_client_waits_for_its_file_as_long_as_for_a_registration(path: str) -> None:
    client = open_prefactor(
        make_config(http={"api_url": f"local:{path}"}, registration_timeout=0.1)
    )
    with locked(path), anyio.fail_after(60):
        with pytest.raises(PrefactorValueError, match="cannot open the database .* is locked"):
            await client.initialize()


async def test_a_task_cancelled_while_it_opens_a_file_does_not_wait_for_the_file(path: str) -> None:
    with anyio.fail_after(60):
        with locked(path):
            with anyio.move_on_after(0.05) as scope:
                async with open_local_prefactor(path, opening_timeout=30):
                    pass
            assert scope.cancelled_caught
        # The thread goes on, makes the file, and closes it.
        wait_until_nobody_has_it_open(path)


OPEN_AT_ONCE = """
import os, sqlite3, sys, traceback
from prefactor_core.local.store import Store, is_busy

def write(store, id):
    for attempts_left in reversed(range(100)):
        try:
            with store.transaction():
                row = {"id": id, "name": "", "inserted_at": "", "updated_at": ""}
                store.insert("agents", row)
            return
        except sqlite3.OperationalError as error:
            if not attempts_left or not is_busy(error):
                raise

def open_one(path, gate):
    os.read(gate, 1)
    try:
        store = Store(path)
        for number in range(5):
            write(store, f"{os.getpid()}-{number}")
        store.close()
        Store(path, opening_timeout=10).close()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

for number in range(10):
    gate, begin = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            os.close(begin)
            open_one(f"{number}.db", gate)
        children.append(child)
    os.close(gate)
    os.close(begin)  # now
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_that_make_one_file_at_once_all_open_it(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", OPEN_AT_ONCE], cwd=tmp_path, check=True, timeout=300
    )
    for path in tmp_path.glob("*.db"):
        with closing(Store(str(path))) as store:
            assert len(store.all("SELECT * FROM account")) == 1
            assert len(store.all("SELECT * FROM agents")) == 40


# --- a fork of the process that has the file open

FORKED = """
import os, sqlite3, sys, threading, time
from contextlib import closing
from prefactor_core.local.store import Store

def write(store, id):
    with store.transaction():
        store.insert("agents", {"id": id, "name": "", "inserted_at": "", "updated_at": ""})

def keep_writing():
    while not stop.is_set():
        write(store, f"parent {next(numbers)}")

def fork(number):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with closing(Store(store.path, lock_timeout=5)) as own:
            os.write(opened, b"1")
            os.read(go_on, 1)  # the parent has closed its file by now
            write(own, f"child {number}")
        code = 0
    finally:
        os._exit(code)

stop, numbers = threading.Event(), iter(range(10**9))
store = Store("runs.db")
may_close, opened = os.pipe()
go_on, goes_on = os.pipe()
threads = [threading.Thread(target=keep_writing) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for number in range(20):
    children.append(fork(number))
    assert os.read(may_close, 1) == b"1"
write(store, "after the forks")
stop.set()
for thread in threads:
    thread.join()
store.close()
os.write(goes_on, b"1" * 20)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 20
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_opens_the_file_of_its_parent_and_each_has_its_own_locks(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], cwd=tmp_path, check=True, timeout=300
    )
    with closing(Store(str(tmp_path / "runs.db"))) as store:
        found = [row["id"] for row in store.all("SELECT id FROM agents")]
    assert {f"child {number}" for number in range(20)} <= set(found)
    assert found.count("after the forks") == 1


def write_agent(store: Store) -> None:
    with store.transaction():
        store.insert("agents", {"id": "a", "name": "", "inserted_at": "", "updated_at": ""})


def test_a_file_that_rested_is_opened_again_also_if_it_is_locked_just_then(path: str) -> None:
    with closing(Store(path)) as store, ThreadPoolExecutor() as threads:
        assert store.rest(0)
        store.wake()
        # For itself alone: not even the settings of a connection can be made.
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            writing = threads.submit(write_agent, store)
            with pytest.raises(TimeoutError):
                writing.result(0.2)
            other.execute("COMMIT")
        writing.result(60)
        assert store.rest(0)
        store.wake()
        assert len(store.all("SELECT * FROM agents")) == 1
    assert store.rest(0)
    store.wake()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.one("SELECT * FROM agents")


def test_a_file_in_a_transaction_does_not_rest_and_another_thread_does_not_wait_for_ever(
    path: str,
) -> None:
    with closing(Store(path)) as store, ThreadPoolExecutor() as threads:
        with store.transaction():
            assert not threads.submit(store.rest, 0.01).result(20)
            threads.submit(store.wake).result(20)
            write_agent(store)
        assert len(store.all("SELECT * FROM agents")) == 1


def test_a_database_in_memory_needs_no_working_directory(tmp_path: Path) -> None:
    code = (
        "import os\nfrom prefactor_core.local.store import Store\n"
        "os.makedirs('gone')\nos.chdir('gone')\nos.rmdir('../gone')\nStore(':memory:').close()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


# --- a lock while it is used


async def test_a_lock_is_an_outage_and_one_line_in_the_log_for_all_of_it(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="prefactor_core.local")
    with anyio.fail_after(60):
        async with opened(path, lock_timeout=0.05) as api:
            run = await api.start()
            with locked(path):
                for _ in range(3):
                    refused(await api.create(run), 503, "storage_unavailable")
                    await api.instance(run)  # reads go on
            await api.created(run)
            await api.created(run)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "the local database failed: database is locked"),
        ("INFO", "the local database works again"),
    ]


async def test_another_failure_is_one_warning_for_all_of_it(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="prefactor_core.local")
    with anyio.fail_after(60):
        async with opened(path) as api:
            run = await api.start()
            with closing(sqlite3.connect(path)) as other:
                other.execute("ALTER TABLE agent_spans RENAME TO moved")
                for _ in range(3):
                    refused(await api.create(run), 503, "storage_unavailable")
                other.execute("ALTER TABLE moved RENAME TO agent_spans")
            await api.created(run)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the local database failed: no such table: agent_spans"),
        ("INFO", "the local database works again"),
    ]


async def test_a_client_keeps_what_it_records_while_its_file_is_locked(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(path)
    config = make_config(http={"api_url": f"local:{path}"}, queue={"max_retries": 1})
    with anyio.fail_after(60):
        async with open_prefactor(config) as client, client.agent_instance(**AGENT) as instance:
            with instance.span("agent:tool"):
                pass
            await client.flush()
            with locked(path):
                with instance.span("agent:llm"):
                    pass
                with anyio.move_on_after(0.5):
                    await client.flush()
                assert client.statistics().pending == 1
        assert client.statistics().lost == 0
        async with open_local_prefactor(path) as app:
            assert len((await stored_run(app)).spans) == 2
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    # The client warns, too, if the outage was long enough.
    assert len(warnings) <= 1, caplog.text


@pytest.mark.in_process(reason="a server goes on with the call of a client that left")
async def test_a_call_whose_caller_is_gone_before_it_began_is_not_made(path: str) -> None:
    with anyio.fail_after(60):
        async with open_local_prefactor(path) as app, calling(app) as api:
            run = await api.start()
            with locked(path):
                async with anyio.create_task_group() as group:
                    # The first one waits for the lock, the others for the first one.
                    for _ in range(5):
                        group.start_soon(api.create, run)
                    await anyio.sleep(0.05)
                    group.cancel_scope.cancel()
            assert len(await api.spans(run)) <= 1


async def test_its_thread_ends_when_a_file_is_closed(path: str) -> None:
    with anyio.fail_after(60):
        before = set(threading.enumerate())
        async with open_local_prefactor(path):
            (thread,) = set(threading.enumerate()) - before
            assert thread.daemon
        thread.join(4)  # without the wake it would end after five seconds
        assert not thread.is_alive()


# --- transactions


def test_a_commit_that_fails_undoes_what_was_written(path: str) -> None:
    with closing(Store(path)) as store:
        with pytest.raises(sqlite3.IntegrityError):
            with store.transaction():
                store.one("PRAGMA defer_foreign_keys = ON")
                store.insert(
                    "agent_spans",
                    {
                        "id": "s1",
                        "agent_instance_id": "nobody",
                        "schema_name": "agent:llm",
                        "status": "active",
                        "payload": "{}",
                        "inserted_at": "",
                        "updated_at": "",
                    },
                )
        with store.transaction():
            assert store.all("SELECT * FROM agent_spans") == []


# --- who may read it


@contextmanager
def umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.mark.skipif(os.name != "posix", reason="this system has no modes")
@pytest.mark.parametrize("mask", [0, 0o077], ids=oct)
def test_a_new_file_is_for_its_owner_alone(tmp_path: Path, path: str, mask: int) -> None:
    with umask(mask), closing(Store(path)):
        found = modes(tmp_path)
    assert found == dict.fromkeys(["prefactor.db", "prefactor.db-wal", "prefactor.db-shm"], 0o600)


@pytest.mark.skipif(os.name != "posix", reason="this system has no modes")
def test_a_file_that_is_made_through_a_link_is_for_its_owner_alone(
    tmp_path: Path, path: str
) -> None:
    Path(path).symlink_to(tmp_path / "there.db")
    with umask(0), closing(Store(path)):
        assert modes(tmp_path)["there.db"] == 0o600


@pytest.mark.skipif(os.name != "posix", reason="this system has no modes")
def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path, path: str) -> None:
    Path(path).touch()
    Path(path).chmod(0o640)
    make(path)
    assert modes(tmp_path) == {"prefactor.db": 0o640}
    make(path)
    assert modes(tmp_path) == {"prefactor.db": 0o640}
