"""Files that several clients and processes have open at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from support.cases import case
from support.local_api import REGISTRATION, everything, opened, refused

from prefactor_core import PrefactorValueError
from prefactor_core.local import open_local_prefactor
from prefactor_core.local.requests import FinishInstanceBody, RegisterBody, parse_body
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store
from prefactor_core.operations.identifiers import partition_of


async def test_what_was_stored_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    async with opened(path) as api:
        instance_id = await api.start()
        body = {"idempotency_key": "k", "payload": {"text": "Größe \U0001f680", "n": [1.5, None]}}
        span = await api.created(instance_id, **body)
        stored = await everything(api)
    async with opened(path) as api:
        assert await everything(api) == stored
        assert await api.created(instance_id, **body) == span
        assert partition_of(await api.register()) == partition_of(instance_id)


async def test_one_file_can_be_opened_twice(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    async with opened(path) as one, opened(path) as other:
        instance_id = await one.start()
        parent = await other.created(instance_id, idempotency_key="k")
        assert await one.created(instance_id, idempotency_key="k") == parent
        child = await one.created(instance_id, parent_span_id=parent["id"])
        spans = sorted([parent, child], key=lambda span: str(span["id"]))
        assert await other.spans(instance_id) == await one.spans(instance_id) == spans


async def test_memory_is_not_shared() -> None:
    async with opened(":memory:") as one, opened(":memory:") as other:
        instance_id = await one.register()
        refused(await other.get(f"agent_instance/{instance_id}"), 404, "not_found")


_RECORD = """
import sqlite3, sys
from prefactor_core.local.requests import CreateSpanBody, RegisterBody, SpanDetails
from prefactor_core.local.service import Service
from prefactor_core.local.store import Store, is_busy

path, instance_id = sys.argv[1:]
store = Store(path)
service = Service(store)

def record():
    # Like a client, try again while the others hold the lock.
    for attempts_left in reversed(range(100)):
        try:
            service.create_span(CreateSpanBody(details=SpanDetails(
                agent_instance_id=instance_id, schema_name="agent:llm", status="active",
                payload={})))
            return
        except sqlite3.OperationalError as error:
            if not attempts_left or not is_busy(error):
                raise

for _ in range(50):
    record()
store.close()
"""


@pytest.fixture
def file_store(tmp_path: Path) -> Generator[Store]:
    store = Store(str(tmp_path / "prefactor.db"))
    yield store
    store.close()


@contextmanager
def another_process_at(path: str) -> Generator[sqlite3.Connection]:
    """A connection that this thread shares with the thread of a timer."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield other
    other.close()


def registered(service: Service) -> str:
    body = parse_body(msgspec.json.encode(REGISTRATION), RegisterBody)
    return str(msgspec.json.decode(service.register(body))["details"]["id"])


def test_processes_record_into_one_file_at_once(file_store: Store) -> None:
    service = Service(file_store)
    instance_id = registered(service)
    command = [sys.executable, "-c", _RECORD, file_store.path, instance_id]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    stored = msgspec.json.decode(service.get_instance(instance_id))["details"]
    assert stored["span_counts"]["total"] == 150


def finish_while_another_writes(service: Service, instance_id: str, path: str) -> str | None:
    """The status of the run after the call; None if the call did not wait for the other process."""
    with another_process_at(path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE agent_instances SET status = 'active'")
        written = threading.Timer(0.05, other.execute, ["COMMIT"])
        written.start()
        try:
            finished = service.finish_instance(instance_id, FinishInstanceBody(status="failed"))
        except sqlite3.OperationalError:
            return None
        finally:
            written.join()
    return str(msgspec.json.decode(finished)["details"]["status"])


def test_a_call_waits_for_what_another_process_writes(file_store: Store) -> None:
    service = Service(file_store)
    instance_id = registered(service)
    # On a busy machine the other process may take longer than a call waits.
    attempts = (
        finish_while_another_writes(service, instance_id, file_store.path) for _ in range(50)
    )
    assert next(filter(None, attempts), None) == "failed"


def test_what_is_stored_can_be_read_while_another_process_writes(file_store: Store) -> None:
    service = Service(file_store)
    instance_id = registered(service)
    with another_process_at(file_store.path) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE agent_instances SET status = 'active'")
        stored = msgspec.json.decode(service.get_instance(instance_id))["details"]
        other.execute("COMMIT")
    assert stored["status"] == "pending"


def test_a_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    with another_process_at(path) as other:
        other.execute("BEGIN IMMEDIATE")
        made = threading.Timer(0.2, other.execute, ["COMMIT"])
        made.start()
        try:
            Store(path).close()
        finally:
            made.join()


async def test_a_path_that_can_be_no_database_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Dear diary, today I was taken for a database. " * 50)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE account (name TEXT)")
    other.close()
    for name in [".", "missing/prefactor.db", "notes.txt", "other.db", "nul\0.db", "long" * 100]:
        with case(name), pytest.raises(PrefactorValueError, match="cannot open the database"):
            async with open_local_prefactor(f"{tmp_path}/{name}"):
                pass
