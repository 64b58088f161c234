"""Idempotency keys: one effect and one answer each, kept for a day, and bounded in number."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest
from support.cases import case
from support.local_api import WRITES, Api, everything, invalid, refused, write
from support.old_files import downgrade

from prefactor_core.local.faults import Faults
from prefactor_core.local.idempotency import KEPT_SECONDS, MOST_KEPT, IdempotentCalls
from prefactor_core.local.requests import StartBody
from prefactor_core.local.store import Store
from prefactor_core.operations.identifiers import generate_related


class Calls:
    """Calls, each with its key. ``answered`` counts the calls that took effect."""

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
    """Make all stored answers older, and add a new one."""
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
    downgrade(path, 2)
    with closing(Store(path)) as store:
        calls = Calls(store)
        calls.call_each("later")
        assert calls.call_each("first") == first
        assert calls.kept == 400


# --- calls


@pytest.mark.parametrize("name", WRITES)
async def test_the_same_call_with_the_same_key_gets_the_first_answer_and_no_second_effect(
    api: Api, name: str
) -> None:
    path, body, _ = await write(api, name)
    first = await api.post(path, {**body, "idempotency_key": "k"})
    state = await everything(api)
    again = await api.post(path, {**body, "idempotency_key": "k"})
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert await everything(api) == state


@pytest.mark.parametrize("name", WRITES)
async def test_another_call_with_the_same_key_is_refused(api: Api, name: str) -> None:
    path, body, change = await write(api, name)
    await api.done(path, {**body, "idempotency_key": "k"})
    state = await everything(api)
    other = await api.post(path, {**body, **change, "idempotency_key": "k"})
    refused(other, 409, "idempotency_key_reused")
    assert await everything(api) == state


@pytest.mark.parametrize("name", ["start", "finish", "terminate", "finish span"])
async def test_a_key_belongs_to_one_run_or_span(api: Api, name: str) -> None:
    (path, body, _), (other_path, _, _) = await write(api, name), await write(api, name)
    await api.done(path, {**body, "idempotency_key": "k"})
    other = await api.post(other_path, {**body, "idempotency_key": "k"})
    refused(other, 409, "idempotency_key_reused")


async def test_start_and_finish_do_not_share_a_key(api: Api) -> None:
    instance_id = await api.register()
    await api.done(f"agent_instance/{instance_id}/start", {"idempotency_key": "k"})
    finish = await api.post(f"agent_instance/{instance_id}/finish", {"idempotency_key": "k"})
    refused(finish, 409, "idempotency_key_reused")


@pytest.mark.parametrize("name", WRITES)
async def test_without_a_key_a_repeated_call_is_a_second_one(api: Api, name: str) -> None:
    path, body, _ = await write(api, name)
    first, again = await api.post(path, body), await api.post(path, body)
    if name in ("register", "create span"):
        assert again.json()["details"]["id"] != first.json()["details"]["id"]
    else:
        refused(again, 409, "invalid_action")


async def test_a_key_has_1_to_128_characters(api: Api) -> None:
    for name, letter in zip(WRITES, "abcdef", strict=True):
        for length in [0, 1, 128, 129]:
            with case(name, length):
                path, body, _ = await write(api, name)
                answer = await api.post(path, {**body, "idempotency_key": letter * length})
                if length in (1, 128):
                    assert answer.status_code == 200
                else:
                    invalid(answer, "idempotency_key")


@pytest.mark.parametrize(
    ("inside", "beside"), [("k", None), (None, "k"), ("k", "k")], ids=["inside", "beside", "both"]
)
async def test_the_key_of_a_span_stands_inside_its_details_or_beside_them(
    api: Api, inside: str | None, beside: str | None
) -> None:
    path, body, _ = await write(api, "create span")
    body["details"]["idempotency_key"] = inside
    first, again = [await api.post(path, {**body, "idempotency_key": beside}) for _ in range(2)]
    assert again.content == first.content
    assert len(await api.spans(body["details"]["agent_instance_id"])) == 1


async def test_two_keys_for_one_span_are_refused(api: Api) -> None:
    path, body, _ = await write(api, "create span")
    body["details"]["idempotency_key"] = "k1"
    invalid(await api.post(path, {**body, "idempotency_key": "k2"}), "idempotency_key")


@pytest.mark.parametrize("length", [0, 129])
async def test_a_key_inside_the_details_has_the_same_bounds(api: Api, length: int) -> None:
    answer = await api.create(await api.start(), idempotency_key="k" * length)
    invalid(answer, "idempotency_key")


async def test_an_error_is_not_kept_under_its_key(api: Api) -> None:
    instance_id = await api.start()
    parent_id = generate_related(instance_id)
    child = {"parent_span_id": parent_id, "idempotency_key": "k"}
    invalid(await api.create(instance_id, **child), "parent_span_id")
    await api.created(instance_id, id=parent_id)
    assert (await api.created(instance_id, **child))["parent_span_id"] == parent_id
