"""Replay: a journal is sent in the form it was sent in, under the same keys, and once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from threading import RLock
from typing import Any

import anyio
import msgspec
import pytest
from support.dying import dying
from support.harness import (
    AGENT,
    Call,
    FaultyApi,
    make_config,
    open_faulty_api,
    stored_run,
    stored_runs,
)

from prefactor_core import open_prefactor
from prefactor_core.api.client import AsgiMessage
from prefactor_core.client.connection import open_api
from prefactor_core.export.api_limits import ApiLimits
from prefactor_core.export.circuit_breaker import CircuitBreaker
from prefactor_core.export.counters import Counters
from prefactor_core.export.replay import Replay
from prefactor_core.journal.adopted import AdoptedJournal
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import VERSION, Header
from prefactor_core.journal.reader import asides
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.local import Faults
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, identifiers
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.queue.retry_policy import Backoff

pytestmark = pytest.mark.virtual_time

FOREVER = 10_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


def refusal_in(folder: Path) -> tuple[str, str]:
    """The reason and the error of the one operation that was refused."""
    (journal,) = folder.glob("*.journal")
    ((_, aside),) = asides(journal)
    return aside.reason, str(aside.error)


async def adopt(folder: Path, api: FaultyApi, **options: Any) -> None:
    """Let a client have ``folder`` until everything is delivered."""
    config = make_config(journal=folder, **options)
    with anyio.fail_after(FOREVER):
        async with open_prefactor(config, asgi_app=api):
            await anyio.sleep(1_000.0)


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*/*") if file.name != "lock")


def bodies(api: FaultyApi, name: str) -> list[Any]:
    """The bodies of the calls of this name, without what only bulk has."""
    return [
        {field: value for field, value in call.body.items() if field != "_type"}
        for call in api.operations
        if call.name == name
    ]


def conflict(code: str) -> Callable[[Call], object]:
    """A fault, alone or in bulk."""
    body = msgspec.json.encode({"status": "error", "code": code, "message": "no"})
    return lambda call: 409 if "_type" in call.body else (409, {}, body)


async def test_a_start_that_was_sent_is_not_merged_with_its_finish(
    folder: Path, api: FaultyApi
) -> None:
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        span = instance.span("agent:run", payload={"n": 1})
        span.__enter__()
        span.start_nowait()
        api.lost_answers = 1
        await anyio.sleep(0.15)
        api.away = True
        span.complete_nowait()
    api.away = False
    await adopt(folder, api)
    sent, again = bodies(api, "agent_spans")
    assert sent == again
    assert sent["details"]["status"] == "active"
    run = await stored_run(api)
    assert run.shape == ("failed", [("agent:run", "complete", [])])
    assert api.app.refusals == {}
    assert left(folder) == []


async def test_a_start_and_a_finish_that_were_one_item_are_one_again(
    folder: Path, api: FaultyApi
) -> None:
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        span = instance.span("agent:run")
        span.__enter__()
        span.start_nowait()
        span.complete_nowait()
        api.lost_answers = 1
        await anyio.sleep(0.15)
    await adopt(folder, api)
    sent, again = bodies(api, "agent_spans")
    assert sent == again
    assert sent["details"]["status"] == "complete"
    assert (await stored_run(api)).shape == ("failed", [("agent:run", "complete", [])])
    assert api.app.refusals == {}


async def test_what_was_sent_without_a_part_keeps_that_form(folder: Path, api: FaultyApi) -> None:
    def refuse(call: Call) -> int | None:
        if "text" in call.body["details"]["payload"]:
            return 413
        api.lost_answers = 1
        shrunk.set()
        return None

    shrunk = anyio.Event()
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        api.faults["agent_spans"] = refuse
        with instance.span("agent:run", payload={"text": "x" * 1_000}):
            pass
        with anyio.fail_after(FOREVER):
            await shrunk.wait()
    api.faults.clear()
    api.lost_answers = 0
    before = len(bodies(api, "agent_spans"))
    await adopt(folder, api)
    assert bodies(api, "agent_spans")[before:] == [bodies(api, "agent_spans")[before - 1]]
    assert "$truncated" in (await stored_run(api)).named("agent:run").payload
    assert api.app.refusals == {}
    assert left(folder) == []


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_provisional_run_gets_its_id_in_the_replay(
    folder: Path, api: FaultyApi, arrives: bool
) -> None:
    api.away = not arrives
    api.lost_answers = 1
    async with dying(folder, api, registration_timeout=0.05) as client:
        instance = await client.create_agent_instance(**AGENT)
        api.away = True
        with instance.span("agent:run"), instance.span("agent:tool"):
            pass
        instance.span("agent:llm").__enter__()
    api.away, api.lost_answers = False, 0
    await adopt(folder, api)
    tree = [("agent:run", "complete", [("agent:tool", "complete", [])])]
    run = await stored_run(api)
    assert run.shape == ("failed", [*tree, ("agent:llm", "failed", [])])
    assert left(folder) == []


async def test_ids_that_the_api_made_are_known_to_the_next_process(folder: Path) -> None:
    async with open_faulty_api(faults=Faults(given_ids=False)) as api:
        async with dying(folder, api) as client:
            instance = await client.create_agent_instance(**AGENT)
            outer = instance.span("agent:run")
            outer.__enter__()
            outer.start_nowait()
            await client.flush()
            api.away = True
            with instance.span("agent:tool"):
                pass
            instance.span("agent:llm").__enter__()
        api.away = False
        await adopt(folder, api)
        run = await stored_run(api)
    below = [("agent:tool", "complete", []), ("agent:llm", "failed", [])]
    assert run.shape == ("failed", [("agent:run", "failed", below)])
    assert left(folder) == []


async def test_children_of_a_refused_span_hang_on_its_parent_in_the_next_process_too(
    folder: Path, api: FaultyApi
) -> None:
    def refuse(call: Call) -> int | None:
        return 422 if call.body["details"]["schema_name"] == "agent:tool" else None

    api.faults["agent_spans"] = refuse
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        outer, refused = instance.span("agent:run"), instance.span("agent:tool")
        outer.__enter__()
        refused.__enter__()
        refused.start_nowait()
        await client.flush()
        assert client.statistics().dropped == {"refused": 1}
        api.away = True
        with instance.span("agent:llm"):
            pass
    api.away = False
    await adopt(folder, api)
    run = await stored_run(api)
    assert run.shape == ("failed", [("agent:run", "failed", [("agent:llm", "complete", [])])])
    assert left(folder) == ["refused.log"]
    reason, error = refusal_in(folder)
    assert reason == "refused"
    assert "422" in error


async def die_without_the_answer(folder: Path, api: FaultyApi) -> None:
    """Die after a span was sent, and stored, and before the answer."""
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        with instance.span("agent:run"):
            pass
        api.lost_answers = 1
        await anyio.sleep(0.15)


async def test_what_the_api_has_although_it_forgot_the_key_is_settled(
    folder: Path, api: FaultyApi
) -> None:
    await die_without_the_answer(folder, api)
    api.faults["agent_spans"] = conflict("already_exists")
    await adopt(folder, api)
    assert (await stored_run(api)).shape == ("failed", [("agent:run", "complete", [])])
    assert left(folder) == []


async def test_a_key_that_the_api_knows_with_another_body_is_refused_aloud(
    folder: Path, api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    await die_without_the_answer(folder, api)
    caplog.clear()
    api.faults["agent_spans"] = conflict("idempotency_key_reused")
    await adopt(folder, api)
    assert any("idempotency_key_reused" in text for text in caplog.messages)
    assert left(folder) == ["refused.log"]
    assert "idempotency_key_reused" in refusal_in(folder)[1]


async def test_an_outage_while_a_journal_is_sent_refuses_nothing(
    folder: Path, api: FaultyApi
) -> None:
    async with dying(folder, api) as client:
        instance = await client.create_agent_instance(**AGENT)
        await instance.start()
        await client.flush()
        api.away = True
        for _ in range(20):
            with instance.span("agent:tool"):
                pass
    api.away = False
    api.faults["*"] = [None, *[503, 500, 429, (502, {}, b"<html>"), ConnectionResetError()] * 3]
    await adopt(folder, api, queue={"max_batch_operations": 5})
    assert left(folder) == []
    assert len((await stored_run(api)).spans) == 20


async def test_runs_of_a_living_client_and_of_a_dead_one_are_counted_apart(
    folder: Path, api: FaultyApi
) -> None:
    async with dying(folder, api) as client:
        api.away = True
        instance = await client.create_agent_instance(**AGENT)
        for _ in range(10):
            with instance.span("agent:tool"):
                pass
    api.away = False
    async with open_prefactor(make_config(journal=folder), asgi_app=api) as client:
        async with client.agent_instance(**AGENT) as instance:
            async with instance.span("agent:run"):
                pass
        await client.flush()
        await anyio.sleep(10.0)
        statistics = client.statistics()
    assert (statistics.accepted, statistics.delivered, statistics.pending) == (4, 4, 0)
    assert [len(run.spans) for run in await stored_runs(api)] == [10, 1]


class Accepting:
    """An API that accepts everything in bulk, and calls ``at_each`` at each request."""

    def __init__(self, at_each: Callable[[], object]) -> None:
        self._at_each = at_each

    async def __call__(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        content = b""
        while (message := await receive()).get("more_body"):
            content += message["body"]
        content += message.get("body", b"")
        self._at_each()
        outputs = {
            item["idempotency_key"]: {"status": "success", "details": {"id": item["details"]["id"]}}
            for item in msgspec.json.decode(content)["items"]
        }
        body = msgspec.json.encode({"status": "success", "outputs": outputs})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def write_journal(folder: Path, spans: int) -> None:
    """Leave a journal of so many spans."""
    directory = JournalDirectory(folder)
    directory.open()
    header = Header(version=VERSION, api_url="http://prefactor.invalid", host="", process=0, sdk="")
    writer = JournalWriter(directory.create(), header, RLock(), lambda _: None, max_bytes=1 << 40)
    run = identifiers.generate(1)
    for n in range(spans):
        span_id = identifiers.generate(1)
        writer.append(
            CreateSpan(
                timestamp=n,
                idempotency_key=f"{span_id}-create",
                instance_id=run,
                span_id=span_id,
                schema_name="agent:tool",
                status=SpanStatus.COMPLETE,
                payload=msgspec.Raw(b'{"n":%d}' % n),
                finished_at=n,
            )
        )
    writer.abandon()


async def test_a_journal_of_any_length_is_sent_with_a_few_requests_worth_of_it_in_memory(
    folder: Path,
) -> None:
    spans = 50_000
    write_journal(folder, spans)
    config = make_config()
    held: list[int] = []
    accepting = Accepting(lambda: held.append(replay.counters.pending))
    (hold,) = filter(None, JournalDirectory(folder).abandoned())
    event_loop = EventLoop.here()
    journal = AdoptedJournal(hold, event_loop)
    for _ in journal.read():
        pass
    async with open_api(config.http_config, accepting) as connection:
        queue = config.queue_config
        limits = ApiLimits(Counters(), queue.max_batch_bytes)
        breaker = CircuitBreaker(Backoff())
        replay = Replay(connection, journal, breaker, limits, queue, event_loop)
        with anyio.fail_after(100):
            await replay.run()
    assert replay.counters.delivered == spans
    assert max(held) <= 2 * queue.max_batch_operations
    assert left(folder) == []
