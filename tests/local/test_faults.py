"""Faults: the local Prefactor makes exactly the errors that are asked for, and counts them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from support.cases import case
from support.harness import AGENT, make_config, stored_run
from support.local_api import (
    REGISTRATION,
    Api,
    calling,
    create,
    invalid,
    item,
    opened,
    refused,
    span_of,
)
from support.server import serve_local_prefactor

from prefactor_core import PrefactorUnreachableError, PrefactorValueError, open_prefactor
from prefactor_core.client.connection import open_api
from prefactor_core.local import Faults, LocalPrefactor, open_local_prefactor
from prefactor_core.operations.identifiers import generate_related


@asynccontextmanager
async def faulty(**options: Any) -> AsyncGenerator[tuple[LocalPrefactor, Api]]:
    """A local Prefactor, and a client of it."""
    async with open_local_prefactor(":memory:", **options) as app, calling(app) as api:
        yield app, api


# --- the wait


@pytest.mark.virtual_time
async def test_every_answer_comes_after_the_answering_time() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        app.faults.answering_time = 2.5
        for failure_rate in (0.0, 1.0):
            app.faults.failure_rate = failure_rate
            started = anyio.current_time()
            with anyio.fail_after(60):
                await api.create(run)
            assert anyio.current_time() - started == pytest.approx(2.5)


@pytest.mark.virtual_time
async def test_a_call_takes_effect_even_if_its_caller_does_not_wait_for_the_answer() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        app.faults.answering_time = math.inf
        with anyio.move_on_after(1000) as scope:
            await api.create(run)
        assert scope.cancelled_caught
        app.faults.answering_time = 0.0
        assert len(await api.spans(run)) == 1


# --- failures


async def test_a_failure_is_answered_instead_of_done() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        app.faults.failure_rate = 1.0
        answer = await api.create(run)
        refused(answer, 503, "unavailable")
        assert "retry-after" not in answer.headers
        assert answer.json().keys() == {"status", "code", "message"}
        refused(await api.get("ping"), 503, "unavailable")
        app.faults.failure_rate = 0.0
        assert await api.spans(run) == []
        assert app.refusals == {"unavailable": 2}


async def test_a_failure_has_one_of_several_statuses() -> None:
    for statuses in [{429, 500, 503}, (503, 429, 500)]:
        with case(statuses):
            async with faulty(faults=Faults(failure_rate=1, failure_status=statuses)) as (_, api):
                answers = [await api.get("ping") for _ in range(50)]
                codes = {answer.status_code: answer.json()["code"] for answer in answers}
                assert codes == {429: "rate_limited", 500: "unavailable", 503: "unavailable"}


async def test_a_failure_asks_for_a_wait() -> None:
    for wait, header, milliseconds in [(0, "0", 0), (2, "2", 2000), (0.25, "1", 250)]:
        with case(wait, header, milliseconds):
            faults = Faults(failure_rate=1, failure_status=429, retry_after=wait)
            async with faulty(faults=faults) as (_, api):
                answer = await api.get("ping")
                refused(answer, 429, "rate_limited")
                assert answer.headers["Retry-After"] == header
                assert answer.json()["retry_after_ms"] == milliseconds


async def statuses_of(faults: Faults) -> list[int]:
    async with opened(":memory:", faults=faults) as api:
        return [(await api.get("ping")).status_code for _ in range(200)]


async def test_a_rate_is_the_part_that_fails_and_the_seed_says_which() -> None:
    one = await statuses_of(Faults(failure_rate=0.3, seed=1))
    assert 40 < one.count(503) < 80
    assert one.count(503) + one.count(200) == 200
    assert await statuses_of(Faults(failure_rate=0.3, seed=1)) == one
    assert await statuses_of(Faults(failure_rate=0.3, seed=2)) != one


async def test_a_read_only_prefactor_fails_new_writes_and_answers_reads_and_replays() -> None:
    async with faulty(faults=Faults(failure_status=500)) as (app, api):
        run = await api.start()
        span = await api.created(run, idempotency_key="create-1")
        app.faults.read_only = True
        assert await api.created(run, idempotency_key="create-1") == span
        assert await api.spans(run) == [span]
        for key in ("create-2", None):
            refused(await api.create(run, idempotency_key=key), 500, "unavailable")
        refused(await api.post("agent", {"details": {"name": "An agent"}}), 500, "unavailable")
        known, new = create(run, "bulk-key-1"), create(run, "bulk-key-2")
        refused(await api.post("bulk", {"items": [known]}), 500, "unavailable")
        app.faults.read_only = False
        outputs = (await api.post("bulk", {"items": [known]})).json()["outputs"]
        app.faults.read_only = True
        assert (await api.post("bulk", {"items": [known]})).json()["outputs"] == outputs
        refused(await api.post("bulk", {"items": [known, new]}), 500, "unavailable")
        assert len(await api.spans(run)) == 2


async def test_a_gateway_answers_failures_with_a_page_of_its_own() -> None:
    for status, title in [(413, HTTPStatus(413).phrase), (502, "Bad Gateway"), (599, "")]:
        with case(status, title):
            faults = Faults(gateway=True, failure_rate=1, failure_status=status, retry_after=1.5)
            async with faulty(faults=faults) as (app, api):
                answer = await api.get("ping")
                assert answer.status_code == status
                assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
                assert answer.headers["Retry-After"] == "2"
                assert f"<h1>{f'{status} {title}'.strip()}</h1>" in answer.text
                assert app.refusals == {"gateway": 1}


async def test_a_gateway_answers_what_it_lets_through_is_too_large_or_is_not_written() -> None:
    async with faulty(faults=Faults(gateway=True)) as (app, api):
        run = await api.start()
        refused(await api.get("nothing"), 404, "not_found")
        app.faults.read_only = True
        assert "<h1>503 Service Unavailable</h1>" in (await api.create(run)).text
        app.faults.max_body_bytes = 10
        answer = await api.create(run)
        assert (answer.status_code, answer.headers["Content-Type"]) == (
            413,
            "text/html; charset=utf-8",
        )


# --- dropped connections

# In this process the client gets the error itself; from a server it gets a part of an answer.
DROPPED = (ConnectionResetError, httpx.RemoteProtocolError)


async def test_of_the_dropped_connections_half_lost_the_call_and_half_its_answer() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        app.faults.drop_rate = 1.0
        for _ in range(100):
            with pytest.raises(DROPPED):
                await api.create(run)
        app.faults.drop_rate = 0.0
        assert 35 < (await api.instance(run))["span_counts"]["total"] < 65


async def test_a_call_whose_answer_was_lost_is_replayed() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        app.faults.drop_rate = 1.0
        for _ in range(20):
            with pytest.raises(DROPPED):
                await api.post("bulk", {"items": [create(run, "create-1")]})
        app.faults.drop_rate = 0.0
        assert len(await api.spans(run)) == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("max_batch_operations", [1, 3])
async def test_a_run_is_recorded_once_through_all_faults_at_once(max_batch_operations: int) -> None:
    faults = Faults(
        answering_time=0.5,
        failure_rate=0.3,
        failure_status=(429, 503),
        retry_after=0.25,
        drop_rate=0.3,
    )
    config = make_config(
        queue={"max_retries": 50, "max_batch_operations": max_batch_operations},
        http={"max_retries": 50},
        registration_timeout=600.0,
    )
    config.drain_timeout = 600.0
    async with open_local_prefactor(":memory:", faults=faults) as app:
        with anyio.fail_after(3600):
            async with (
                open_prefactor(config, asgi_app=app) as client,
                client.agent_instance(**AGENT) as instance,
            ):
                for n in range(20):
                    async with instance.span("agent:llm", payload={"n": n}):
                        pass
        assert client.statistics().lost == 0
        assert app.refusals.keys() == {"rate_limited", "unavailable"}
        faults.answering_time = faults.failure_rate = faults.drop_rate = 0.0
        run = await stored_run(app)
        assert run.status == "complete"
        assert sorted(span.payload["n"] for span in run.spans.values()) == list(range(20))
        assert {span.status for span in run.spans.values()} == {"complete"}


# --- an API that lacks something


async def test_a_prefactor_without_bulk_answers_as_on_a_path_that_it_does_not_know() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        body = {"items": [create(run, "create-1")]}
        unknown = (await api.post("nothing", body)).json()
        app.faults.bulk = False
        answer = await api.post("bulk", body)
        refused(answer, 404, "not_found")
        assert answer.json() == {**unknown, "message": "POST /api/v1/bulk: Not Found"}
        assert await api.spans(run) == []
        app.faults.bulk = True
        assert (await api.post("bulk", body)).status_code == 200


async def test_a_bulk_that_does_not_know_a_type_says_so_of_the_item() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        app.faults.bulk_types = {"agent_spans/create"}
        finish = item("agent_instances/finish", "finish-1", agent_instance_id=run)
        items = [create(run, "create-1"), finish]
        outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
        assert outputs["create-1"]["status"] == "success"
        assert outputs["finish-1"]["code"] == "validation_errors"
        assert outputs["finish-1"]["errors"].keys() == {"_type"}
        assert (await api.instance(run))["status"] == "active"


async def test_a_prefactor_that_makes_its_ids_itself_refuses_given_ones() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        given = generate_related(run)
        app.faults.given_ids = False
        invalid(await api.post("agent_instance/register", {**REGISTRATION, "id": given}), "id")
        invalid(await api.create(run, id=given), "id")
        items = [create(run, "create-1"), create(run, "create-2", id=given)]
        outputs = (await api.post("bulk", {"items": items})).json()["outputs"]
        assert outputs["create-2"]["errors"].keys() == {"id"}
        await api.created(await api.register(id=None), id=None)
        (stored,) = await api.spans(run)
        assert stored == outputs["create-1"]["details"]


async def test_what_was_given_while_ids_were_taken_is_replayed() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        given = {"id": generate_related(run), "idempotency_key": "create-1"}
        first = await api.created(run, **given)
        app.faults.given_ids = False
        assert await api.created(run, **given) == first


# --- large bodies


async def test_a_body_beyond_the_limit_is_refused_and_one_within_is_taken() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        body = msgspec.json.encode({"details": span_of(run)})
        app.faults.max_body_bytes = len(body)
        assert (await api.post("agent_spans", body)).status_code == 200
        refused(await api.post("agent_spans", body + b" "), 413, "payload_too_large")
        assert len(await api.spans(run)) == 1


async def test_a_body_that_comes_in_pieces_is_measured_whole() -> None:
    async with faulty() as (app, api):
        run = await api.start()
        body = msgspec.json.encode({"details": span_of(run)})

        async def pieces() -> AsyncIterator[bytes]:
            for place in range(0, len(body), 10):
                yield body[place : place + 10]

        for limit, status in ((len(body), 200), (len(body) - 1, 413)):
            app.faults.max_body_bytes = limit
            answer = await api.http.post("agent_spans", content=pieces())
            assert answer.status_code == status
        assert len(await api.spans(run)) == 1


# --- counted errors


async def test_every_refusal_is_counted_by_its_code_also_inside_a_bulk() -> None:
    async with faulty(api_token="right") as (app, api):
        assert app.refusals == Counter()
        await api.get("ping")
        api.http.headers["Authorization"] = "Bearer right"
        run = await api.start()
        await api.created(run)
        assert app.refusals == {"bad_authtoken": 1}
        await api.post(f"agent_instance/{run}/start", {})
        await api.get("nothing")
        await api.get("agent_instance/i0")
        await api.create(run, parent_span_id="nobody")
        items = [create(run, "create-1"), create(run, "create-2", parent_span_id="nobody")]
        assert (await api.post("bulk", {"items": items})).status_code == 200
        await api.post("bulk", {"items": []})
        assert app.refusals == {
            "bad_authtoken": 1,
            "invalid_action": 1,
            "not_found": 2,
            "validation_errors": 3,
        }


async def test_refusals_of_a_file_are_counted_too(tmp_path: Path) -> None:
    async with (
        open_local_prefactor(str(tmp_path / "prefactor.db")) as app,
        calling(app) as api,
    ):
        await api.post("bulk", {"items": [create("i0", "create-1")]})
        assert app.refusals == {"not_found": 1}


# --- over a real connection


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def url(tmp_path: Path, faults: Faults, capfd: pytest.CaptureFixture[str]) -> Generator[str]:
    """The address of a server with ``faults``, which prints nothing."""
    path = tmp_path / "prefactor.db"
    with serve_local_prefactor(path, api_token="right", agents=("a1",), faults=faults) as url:
        yield url
    assert capfd.readouterr() == ("", "")


@asynccontextmanager
async def calling_at(url: str) -> AsyncGenerator[Api]:
    headers = {"Authorization": "Bearer right"}
    with anyio.fail_after(20):
        async with httpx.AsyncClient(base_url=f"{url}/api/v1/", headers=headers) as http:
            yield Api(http)


async def test_a_dropped_connection_is_broken_and_the_next_one_works(
    url: str, faults: Faults
) -> None:
    async with calling_at(url) as api:
        run = await api.start()
        faults.drop_rate = 1.0
        for _ in range(20):
            with pytest.raises(httpx.RemoteProtocolError):
                await api.create(run)
        faults.drop_rate = 0.0
        assert 0 < len(await api.spans(run)) < 20


async def test_a_dropped_connection_is_an_api_that_cannot_be_reached(
    url: str, faults: Faults
) -> None:
    config = make_config(http={"api_url": url, "api_token": "right"}).http_config
    async with open_api(config) as api:
        faults.drop_rate = 1.0
        with anyio.fail_after(20):
            for _ in range(5):
                with pytest.raises(PrefactorUnreachableError):
                    await api.ping()
        faults.drop_rate = 0.0
        await api.ping()


@pytest.mark.parametrize(
    ("fault", "status"), [({"max_body_bytes": 1000}, 413), ({"failure_rate": 1.0}, 503)]
)
async def test_the_sender_of_a_large_body_reads_why_it_was_not_taken(
    url: str, faults: Faults, fault: dict[str, Any], status: int
) -> None:
    async with calling_at(url) as api:
        run = await api.start()
        for name, value in fault.items():
            setattr(faults, name, value)
        large = {"text": "x" * 5_000_000}
        assert (await api.create(run, payload=large)).status_code == status
        faults.max_body_bytes, faults.failure_rate = None, 0.0
        await api.created(run, payload=large)


# --- values


WRONG_FAULTS = [
    ({"answering_time": -1}, "answering_time must be a number, 0 or more, got -1"),
    ({"answering_time": math.nan}, "answering_time must be a number, 0 or more, got nan"),
    ({"answering_time": "1"}, "answering_time must be a number, 0 or more, got '1'"),
    ({"failure_rate": 1.1}, "failure_rate must be a number, between 0 and 1, got 1.1"),
    ({"failure_rate": True}, "failure_rate must be a number, between 0 and 1, got True"),
    ({"drop_rate": -0.1}, "drop_rate must be a number, between 0 and 1, got -0.1"),
    ({"failure_status": 200}, "failure_status must be between 400 and 599, got 200"),
    ({"failure_status": {503, 600}}, "failure_status must be between 400 and 599, got 600"),
    ({"failure_status": "503"}, "failure_status must be between 400 and 599, got '503'"),
    ({"failure_status": ()}, "failure_status must hold at least one status, got none"),
    ({"retry_after": -1}, "retry_after must be a number, between 0 and 86400, got -1"),
    ({"retry_after": math.inf}, "retry_after must be a number, between 0 and 86400, got inf"),
    ({"read_only": 1}, "read_only must be True or False, got 1"),
    ({"gateway": "nginx"}, "gateway must be True or False, got 'nginx'"),
    ({"bulk": 0}, "bulk must be True or False, got 0"),
    ({"given_ids": None}, "given_ids must be True or False, got None"),
    (
        {"bulk_types": "agent_spans/create"},
        "bulk_types must be a collection of strings or None, got 'agent_spans/create'",
    ),
    ({"bulk_types": [1]}, "bulk_types must be a collection of strings or None, got list"),
    ({"bulk_types": 1}, "bulk_types must be a collection of strings or None, got 1"),
    ({"max_body_bytes": -1}, "max_body_bytes must be a whole number, 0 or more, got -1"),
    ({"max_body_bytes": 1.5}, "max_body_bytes must be a whole number, 0 or more, got 1.5"),
    ({"seed": "s"}, "seed must be a whole number, got 's'"),
]


def test_a_fault_that_cannot_be_is_a_value_error() -> None:
    for fields, message in WRONG_FAULTS:
        with case(fields, message):
            with pytest.raises(PrefactorValueError) as caught:
                Faults(**fields)
            assert str(caught.value) == message


def test_the_ends_of_the_bounds_are_taken() -> None:
    Faults(answering_time=math.inf, failure_rate=1, drop_rate=1.0, failure_status=[400, 599])
    Faults(retry_after=86400, bulk_types=(), max_body_bytes=0, seed=-1)
