"""The answers that a local Prefactor keeps for retries: for a day, and bounded in number."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from prefactor_core.local.faults import Faults
from prefactor_core.local.idempotency import KEPT_SECONDS, MOST_KEPT, IdempotentCalls
from prefactor_core.local.requests import StartBody
from prefactor_core.local.store import Store


class Calls:
    """Calls with keys of their own. ``answered`` counts those that were done."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.answered = 0
        self._calls = IdempotentCalls(store, Faults())

    def call(self, key: str) -> bytes:
        def act() -> dict[str, object]:
            self.answered += 1
            return {"number": self.answered}

        return self._calls.run("start", StartBody(), key, act)

    def call_each(self, begin: str) -> list[bytes]:
        return [self.call(f"{begin}-{number}") for number in range(200)]

    @property
    def kept(self) -> int:
        return len(self.store.all("SELECT key FROM idempotency_keys"))


@pytest.fixture
def calls() -> Generator[Calls]:
    with closing(Store(":memory:")) as store:
        yield Calls(store)


def make_older(calls: Calls, *, seconds: int = 0, newer: int = 0) -> None:
    """Make all answers older than they are; then there is one more."""
    calls.call("one more")
    with calls.store.transaction():
        old = "key != 'one more'"
        calls.store.one(f"UPDATE idempotency_keys SET used_at = used_at - {seconds} WHERE {old}")
        calls.store.one(f"UPDATE idempotency_keys SET rowid = rowid + {newer} WHERE NOT {old}")


@pytest.mark.parametrize(
    "age",
    [{"seconds": KEPT_SECONDS - 600}, {"newer": MOST_KEPT - 1000}],
    ids=["seconds", "newer"],
)
def test_a_retry_gets_the_first_answer_for_a_day_and_a_million_calls(
    calls: Calls, age: dict[str, int]
) -> None:
    first = calls.call_each("first")
    make_older(calls, **age)
    calls.call_each("later")
    assert calls.call_each("first") == first
    assert calls.answered == calls.kept == 401


@pytest.mark.parametrize(
    "age",
    [{"seconds": KEPT_SECONDS + 600}, {"newer": MOST_KEPT + 1000}],
    ids=["seconds", "newer"],
)
def test_older_answers_are_forgotten_a_few_with_a_call(calls: Calls, age: dict[str, int]) -> None:
    calls.call_each("first")
    make_older(calls, **age)
    most = 0
    for number in range(400):
        before = calls.kept
        calls.call(f"later-{number}")
        most = max(most, before - calls.kept)
    assert 0 < most < 200
    assert calls.kept == 401
    assert [calls.call(f"later-{number}") for number in (0, 399)] == [
        b'{"number":202}',
        b'{"number":601}',
    ]


def test_a_file_of_an_earlier_version_keeps_its_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "prefactor.db")
    with closing(Store(path)) as store:
        first = Calls(store).call_each("first")
    with closing(sqlite3.connect(path)) as before:
        before.execute("ALTER TABLE idempotency_keys DROP COLUMN used_at")
        before.execute("ALTER TABLE agent_spans DROP COLUMN start_given")
        before.execute("ALTER TABLE agent_instances DROP COLUMN start_given")
        before.execute("ALTER TABLE agent_instances DROP COLUMN flags")
        before.execute("PRAGMA user_version = 2")
    with closing(Store(path)) as store:
        calls = Calls(store)
        calls.call_each("later")
        assert calls.call_each("first") == first
        assert calls.kept == 400
