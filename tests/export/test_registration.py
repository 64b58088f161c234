"""What a run is registered with: who its agent is, what it is for, and what it runs on."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import msgspec
import pytest
from support.harness import (
    AGENT,
    TOKEN,
    Call,
    FaultyApi,
    make_config,
    make_registry,
    open_faulty_api,
    stored_run,
    stored_runs,
)

from prefactor_core import (
    ClientNotInitializedError,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorCoreClient,
    PrefactorTelemetryFailureError,
    PrefactorValidationError,
    PrefactorValueError,
    Statistics,
    __version__,
    build_runtime_environment,
    current_span,
    open_prefactor,
    open_prefactor_sync,
)
from prefactor_core.api.client import AsgiApp, AsgiMessage
from prefactor_core.operations.identifiers import generate_related, is_pfid, partition_of
from prefactor_core.schema_registry.schema_version import content_hash
from prefactor_core.testing import open_recording

VERSION = AGENT["agent_version"]
SAID = {
    "environment_id": "environment-1",
    "purpose": "smoke_test",
    "external_identifier": "ticket-1",
}


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


def as_a_deployment(app: AsgiApp) -> AsgiApp:
    """The API, for a token that stands for the tested agent."""

    async def answer(scope: AsgiMessage, receive: Any, send: Any) -> None:
        content = (await receive())["body"]
        if scope["path"].endswith("/register"):
            body = msgspec.json.decode(content)
            assert "agent_id" not in body
            content = msgspec.json.encode({**body, "agent_id": AGENT["agent_id"]})

        async def replay() -> AsgiMessage:
            return {"type": "http.request", "body": content, "more_body": False}

        await app(scope, replay, send)

    return answer


def registrations(api: FaultyApi) -> list[Call]:
    return [call for call in api.operations if call.name == "register"]


def opened(api: AsgiApp, **options: Any) -> PrefactorCoreClient:
    return open_prefactor(make_config(**options), asgi_app=api)


# --- who the agent is ---


async def test_a_token_that_stands_for_an_agent_needs_no_agent_id() -> None:
    async with open_faulty_api() as api:
        api.app = as_a_deployment(behind := api.app)
        async with opened(api) as client:
            async with client.agent_instance(agent_version=VERSION) as instance:
                assert client.instance_manager.get(instance.id).agent_id is None
                async with instance.span("agent:run"):
                    pass
        assert (await stored_run(behind)).shape == ("complete", [("agent:run", "complete", [])])
    assert client.statistics().lost == 0


@pytest.mark.virtual_time
async def test_a_run_without_agent_id_is_registered_after_an_outage() -> None:
    async with open_faulty_api() as api:
        api.app = as_a_deployment(behind := api.app)
        api.away = True
        async with opened(api, registration_timeout=1, drain_timeout=120) as client:
            async with client.agent_instance(agent_version=VERSION, **SAID) as instance:
                assert is_pfid(instance.id)
                assert partition_of(instance.id) == 0
                api.away = False
        assert (await stored_run(behind)).id == instance.id
    assert SAID.items() <= registrations(api)[-1].body.items()
    assert client.statistics().lost == 0


async def test_without_agent_id_span_types_are_identified_by_their_content(api: FaultyApi) -> None:
    api.app = as_a_deployment(api.app)
    async with opened(api) as client:
        await client.create_agent_instance(agent_version=VERSION)
    (call,) = registrations(api)
    types = make_registry().to_agent_schema_version("")
    assert call.body["agent_schema_version"]["external_identifier"] == f"auto-{content_hash(types)}"


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agent_id": "a"}, "agent_version is required: pass agent_version={'name': "),
        ({}, "agent_version is required"),
        ({"agent_id": ""}, "agent_id must be the id of an agent, got ''"),
        # As the official package has it.
        ({"agent_id": VERSION, "agent_version": {}}, "give agent_version= by name"),
        ({"agent_version": ["v1"]}, r"agent_version must be a mapping, got list"),
        (
            {"agent_version": VERSION, "purpose": "test"},
            "purpose must be one of 'live', 'smoke_test', 'eval', got 'test'",
        ),
        ({"agent_version": VERSION, "purpose": ["live"]}, "purpose must be one of"),
        (
            {"agent_version": VERSION, "environment_id": " "},
            "environment_id must be a text that is not empty, got ' '",
        ),
        (
            {"agent_version": VERSION, "external_identifier": 7},
            "external_identifier must be a text that is not empty, got 7",
        ),
        (
            {"agent_version": VERSION, "external_identifier": "\ud800"},
            "external_identifier must be a text without lone surrogates",
        ),
    ],
)
async def test_what_cannot_be_registered_is_a_clear_error(
    api: FaultyApi, enabled: bool, arguments: dict[str, Any], message: str
) -> None:
    async with opened(api, enabled=enabled) as client:
        with pytest.raises(PrefactorValueError, match=message):
            await client.create_agent_instance(**arguments)
        with pytest.raises(PrefactorValueError, match=message):
            async with client.agent_instance(**arguments):
                pytest.fail("the body must not run")
    assert api.calls == []


async def test_switched_off_a_run_is_registered_with_all_of_it_nowhere() -> None:
    async with open_prefactor(enabled=False, schema_registry=make_registry()) as client:
        async with client.agent_instance(agent_version=VERSION, **SAID) as instance:
            assert client.instance_manager.get(instance.id).agent_id is None


# --- what the run is for ---


async def test_what_a_run_is_for_is_sent_if_it_is_given(api: FaultyApi) -> None:
    async with opened(api) as client:
        await client.create_agent_instance(**AGENT, **SAID)
        async with client.agent_instance(**AGENT, purpose="eval"):
            pass
        await client.create_agent_instance(**AGENT)
    first, second, third = (call.body for call in registrations(api))
    assert SAID.items() <= first.items()
    assert (second["purpose"], SAID.keys() & second) == ("eval", {"purpose"})
    assert not SAID.keys() & third.keys()


def test_a_synchronous_client_says_it_too() -> None:
    with open_recording() as recording:
        calls = FaultyApi(recording._app)
        with open_prefactor_sync(make_config(), asgi_app=calls) as client:
            with client.agent_instance(**AGENT, **SAID):
                pass
            client.create_agent_instance(**AGENT, purpose="live")
    first, second = (call.body for call in registrations(calls))
    assert SAID.items() <= first.items()
    assert second["purpose"] == "live"


# --- what it runs on ---


@asynccontextmanager
async def api_with_a_version(**version: object) -> AsyncGenerator[FaultyApi]:
    """The API, where the tested agent's version was stored as ``version``, without more."""
    async with open_faulty_api() as api:
        body = {**AGENT, "agent_version": version, "agent_schema_version": {}}
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/agent_instance/register",
            "query_string": b"",
            "headers": [],
        }
        status, _, answer = await api._ask(scope, msgspec.json.encode(body))
        assert status == 200, answer
        yield api


async def test_a_run_says_what_it_runs_on(api: FaultyApi) -> None:
    version = dict(VERSION)
    async with opened(api, sdk_header_entry="prefactor-langchain@0.3.0") as client:
        await client.create_agent_instance("tested-agent", version)
    (call,) = registrations(api)
    environment = build_runtime_environment("prefactor-langchain@0.3.0")
    assert call.body["agent_version"] == {**VERSION, "runtime_environment": environment}
    assert version == VERSION  # the caller's own is as it was


@pytest.mark.parametrize("own", [{"os": "plan9"}, None])
async def test_what_the_caller_says_that_it_runs_on_stands(api: FaultyApi, own: object) -> None:
    async with opened(api) as client:
        await client.create_agent_instance("tested-agent", {**VERSION, "runtime_environment": own})
    (call,) = registrations(api)
    assert call.body["agent_version"]["runtime_environment"] == own


async def test_a_version_that_is_stored_with_another_one_is_registered_as_it_was() -> None:
    async with api_with_a_version(**VERSION, runtime_environment={"os": "plan9"}) as api:
        async with opened(api) as client:
            async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
                pass
            # What was found out once need not be found out again.
            await client.create_agent_instance(**AGENT)
        assert [call.status for call in registrations(api)] == [422, 200, 200]
        bodies = [call.body for call in registrations(api)]
        assert "runtime_environment" in bodies[0]["agent_version"]
        assert [body["agent_version"] for body in bodies[1:]] == [VERSION] * 2
        assert len({body["idempotency_key"] for body in bodies}) == 3
        assert all(len(body["idempotency_key"]) <= 64 for body in bodies)
        assert instance.id in [run.id for run in await stored_runs(api)]
    assert client.statistics().lost == 0


@pytest.mark.parametrize(
    ("status", "error"), [(422, PrefactorValidationError), (409, PrefactorConflictError)]
)
async def test_a_version_that_is_refused_both_ways_raises_the_second_error(
    api: FaultyApi, status: int, error: type[Exception]
) -> None:
    def refuse(call: Call) -> object:
        which = "with" if "runtime_environment" in call.body["agent_version"] else "without"
        answer = {"status": "error", "code": which, "message": "no"}
        return status, {}, msgspec.json.encode(answer)

    api.faults["register"] = refuse
    async with opened(api) as client:
        for count in (2, 4):
            with pytest.raises(error, match="without"):
                await client.create_agent_instance(**AGENT)
            # It was not the environment: it is added to the next run, too.
            assert len(registrations(api)) == count


@pytest.mark.parametrize("status", [422, 409])
async def test_a_version_to_which_nothing_was_added_is_not_tried_again(
    api: FaultyApi, status: int
) -> None:
    api.faults["register"] = status
    async with opened(api) as client:
        with pytest.raises((PrefactorValidationError, PrefactorConflictError)):
            await client.create_agent_instance(
                "tested-agent", {**VERSION, "runtime_environment": None}
            )
    assert len(registrations(api)) == 1


@pytest.mark.virtual_time
async def test_a_run_that_is_registered_later_is_tried_both_ways_too() -> None:
    async with api_with_a_version(**VERSION, runtime_environment={"os": "plan9"}) as api:
        api.away = True
        async with opened(api, registration_timeout=1, drain_timeout=120) as client:
            async with client.agent_instance(**AGENT) as instance, instance.span("agent:run"):
                pass
            api.away = False
        assert instance.id in [run.id for run in await stored_runs(api)]
        last = registrations(api)[-1]
        assert (last.status, last.body["agent_version"]) == (200, VERSION)
    assert client.statistics().lost == 0


@pytest.mark.virtual_time
async def test_a_second_attempt_whose_answer_is_lost_makes_one_run() -> None:
    async with api_with_a_version(**VERSION, runtime_environment={"os": "plan9"}) as api:

        def lose_what_is_done(call: Call) -> object:
            if "runtime_environment" not in call.body["agent_version"] and api.lost_answers < 1:
                api.lost_answers = 1
            return None

        api.faults["register"] = lose_what_is_done
        async with opened(api, registration_timeout=1, drain_timeout=120) as client:
            with anyio.fail_after(1.5):  # one budget for both
                instance = await client.create_agent_instance(**AGENT)
            await anyio.sleep(30)
            api.faults.clear()
            await instance.finish()
        assert [run.id for run in await stored_runs(api) if run.status == "complete"] == [
            instance.id
        ]
        assert len(await stored_runs(api)) == 2  # the other one stored the version
        keys = {
            call.body["idempotency_key"]
            for call in registrations(api)
            if "runtime_environment" not in call.body["agent_version"]
        }
        assert len(keys) == 1
    assert client.statistics().lost == 0


# --- who records ---


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_package_that_records_by_this_one_is_named_first(
    api: FaultyApi, enabled: bool
) -> None:
    config = make_config(sdk_header_entry=" prefactor-langchain@0.3.0 ", enabled=enabled)
    for client, entry in (
        (PrefactorCoreClient(config, asgi_app=api), "prefactor-langchain@0.3.0"),
        (PrefactorCoreClient(config, sdk_header_entry="a@1 b@2", asgi_app=api), "a@1 b@2"),
        (open_prefactor(config, sdk_header_entry="@c/d@3", asgi_app=api), "@c/d@3"),
    ):
        assert client.config.sdk_header_entry == entry
        async with client:
            await client.create_agent_instance("tested-agent", {"name": "Tested agent"})
        if enabled:
            sent = {call.headers["x-prefactor-sdk"] for call in api.calls}
            assert sent == {f"{entry} prefactor-core@{__version__}"}
            (call,) = registrations(api)
            assert call.body["agent_version"]["runtime_environment"]["agent_sdk"] == entry.split()
            api.calls.clear()
    assert config.sdk_header_entry == "prefactor-langchain@0.3.0"
    assert api.calls == []


def test_a_package_that_is_none_is_refused() -> None:
    with pytest.raises(PrefactorValueError, match="sdk_header_entry must be package@version"):
        PrefactorCoreClient(make_config(), sdk_header_entry="langchain")


# --- what becomes of a run that the API refuses ---


class Refused(NamedTuple):
    """What came of a run that was refused: the client's balance, and what was logged."""

    statistics: Statistics
    lines: list[tuple[int, str]]

    def errors(self) -> list[str]:
        return [line for level, line in self.lines if level == logging.ERROR]


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    ours = (record for record in caplog.records if record.name.startswith("prefactor_core"))
    return [(r.levelno, r.getMessage()) for r in ours if r.levelno > logging.INFO]


async def refused_by_asyncs(api: FaultyApi, caplog: pytest.LogCaptureFixture) -> Refused:
    async with opened(api) as client:
        async with client.agent_instance(**AGENT) as instance:
            reasons: list[str] = []
            instance.on_terminate(reasons.append)
            assert (instance.recorded, instance.records) == (False, True)
            assert is_pfid(instance.id)
            async with instance.span("agent:run", payload={"n": 1}) as span:
                assert current_span() is span
                with instance.span("agent:tool"):
                    pass
                span.set_result({"n": 2})
            await instance.record_quality("accuracy", {"score": 1})
            await client.flush()
            instance.check()
        assert (instance.ended, instance.terminated, reasons) == (True, None, [])
    return Refused(client.statistics(), lines_of(caplog))


def refused_by_syncs(api: FaultyApi, caplog: pytest.LogCaptureFixture) -> Refused:
    with open_prefactor_sync(make_config(), asgi_app=api) as client:
        with client.agent_instance(**AGENT) as instance:
            reasons: list[str] = []
            instance.on_terminate(reasons.append)
            assert (instance.recorded, instance.records) == (False, True)
            with instance.span("agent:run", payload={"n": 1}) as span:
                assert current_span() is span
                with instance.span("agent:tool"):
                    pass
                span.set_result({"n": 2})
            instance.record_quality_nowait("accuracy", {"score": 1})
            client.flush()
            instance.check()
        assert (instance.ended, instance.terminated, reasons) == (True, None, [])
    return Refused(client.statistics(), lines_of(caplog))


def assert_refused(refused: Refused, api: FaultyApi, status: int, advice: str) -> None:
    # The registration, the run's start and finish, two spans, and the quality. Started below
    # another span, a span is sent as it starts and as it ends, unless both are sent as one.
    assert refused.statistics.dropped.keys() == {"refused"}
    assert refused.statistics.accepted == refused.statistics.lost >= 6
    assert (refused.statistics.pending, refused.statistics.pending_bytes) == (0, 0)
    (error,) = refused.errors()
    for part in ("goes on unrecorded", "tested-agent", f"was answered {status}", advice):
        assert part in error
    assert TOKEN not in error
    # And one line at the end says how much it was.
    assert [line for _, line in refused.lines if line != error] == [
        refused.statistics.describe_loss()
    ]
    assert {call.name for call in api.operations} == {"register"}


ADVICE = {
    401: "Check the API token",
    403: "Check the API token",
    404: "Check agent_id",
    409: "external_identifier is unique for each agent",
    413: "Use on_refused='raise'",
    422: "Correct the arguments of agent_instance()",
}


@pytest.mark.parametrize(("status", "advice"), ADVICE.items())
async def test_the_block_of_a_refused_run_goes_on_unrecorded_and_says_so_once(
    api: FaultyApi, status: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults["*"] = status
    assert_refused(await refused_by_asyncs(api, caplog), api, status, advice)


@pytest.mark.parametrize(("status", "advice"), ADVICE.items())
def test_synchronous_code_goes_on_after_a_refusal_too(
    status: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_recording() as recording:
        api = FaultyApi(recording._app, faults={"*": status})
        assert_refused(refused_by_syncs(api, caplog), api, status, advice)


async def test_a_second_run_of_one_external_identifier_goes_on_unrecorded(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(api) as client:
        for recorded in (True, False):
            async with client.agent_instance(**AGENT, external_identifier="chat-1") as instance:
                assert instance.recorded is recorded
                with instance.span("agent:run"):
                    pass
    assert client.statistics().dropped == {"refused": 4}
    assert client.statistics().delivered == 4
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
    assert "leave it out, or use another for each run" in caplog.text


async def test_a_hundred_refused_runs_are_a_few_errors(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with client.agent_instance(**AGENT) as instance:
            assert not instance.recorded

    api.faults["*"] = 401
    async with opened(api) as client:
        for _ in range(50):
            await run()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(run)
    errors = [line for level, line in lines_of(caplog) if level == logging.ERROR]
    numbers = [int(line.partition("(number ")[2].partition(")")[0]) for line in errors]
    assert numbers == [1, 2, 4, 8, 16, 32, 64]
    assert client.statistics().dropped == {"refused": 300}
    assert len(lines_of(caplog)) == len(errors) + 1


async def test_a_refused_run_is_a_loss_that_raises_if_losses_do(api: FaultyApi) -> None:
    api.faults["*"] = 401
    done = False
    with pytest.raises(PrefactorTelemetryFailureError, match="3 refused.* 401") as caught:
        async with opened(api, raise_on_loss=True) as client:
            async with client.agent_instance(**AGENT):
                done = True
    assert done
    assert caught.value.dropped_operations == 3


@pytest.mark.parametrize("status", ADVICE)
async def test_the_configuration_or_the_call_says_that_a_refusal_is_raised(
    api: FaultyApi, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults["*"] = status
    async with opened(api, on_refused="raise") as client:
        with pytest.raises(PrefactorApiError) as caught:
            async with client.agent_instance(**AGENT):
                pytest.fail("the body must not run")
        async with client.agent_instance(**AGENT, on_refused="log") as instance:
            assert not instance.recorded
    assert caught.value.status_code == status
    async with opened(api) as client:
        with pytest.raises(PrefactorApiError):
            async with client.agent_instance(**AGENT, on_refused="raise"):
                pytest.fail("the body must not run")
        # The caller gets the error: no log line repeats it.
        assert (client.statistics().accepted, client.statistics().lost) == (0, 0)
    assert sum(level == logging.ERROR for level, _ in lines_of(caplog)) == 1


@pytest.mark.parametrize("status", ADVICE)
def test_synchronous_code_can_have_a_refusal_raised(status: int) -> None:
    with open_recording() as recording:
        api = FaultyApi(recording._app, faults={"*": status})
        with open_prefactor_sync(make_config(on_refused="raise"), asgi_app=api) as client:
            with pytest.raises(PrefactorApiError):
                with client.agent_instance(**AGENT):
                    pytest.fail("the body must not run")
            with client.agent_instance(**AGENT, on_refused="log") as instance:
                assert not instance.recorded
            # What has no scope hands its error to who can handle it.
            with pytest.raises(PrefactorApiError):
                client.create_agent_instance(**AGENT)


# --- what only looks like a refusal ---


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [200, 401, 403, 404, 409, 422])
async def test_a_run_that_a_gateway_refuses_is_recorded_when_the_api_is_back(
    api: FaultyApi, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults["*"] = status, {"content-type": "text/html"}, b"<html>Who are you?</html>"
    async with opened(api, registration_timeout=2, on_refused="raise", drain_timeout=60) as client:
        with anyio.fail_after(3):
            async with client.agent_instance(**AGENT) as instance:
                assert instance.recorded
                assert partition_of(instance.id) == 0
                with instance.span("agent:run"):
                    pass
        await anyio.sleep(30)
        assert (client.statistics().lost, client.statistics().pending) == (0, 4)
        api.faults.clear()
    assert (await stored_run(api)).shape == ("complete", [("agent:run", "complete", [])])
    assert (await stored_run(api)).id == instance.id
    assert (client.statistics().lost, client.statistics().delivered) == (0, 4)
    assert not any("unrecorded" in line for _, line in lines_of(caplog))


# --- what never gets as far as the API ---


async def test_an_id_that_an_open_run_has_is_refused_at_once(api: FaultyApi) -> None:
    async with opened(api) as client:
        async with client.agent_instance(**AGENT) as first:
            before = len(registrations(api))
            with pytest.raises(PrefactorConflictError, match="another agent instance of this"):
                async with client.agent_instance(**AGENT, instance_id=first.id):
                    pytest.fail("the body must not run")
            with pytest.raises(PrefactorConflictError):
                await client.create_agent_instance(**AGENT, instance_id=first.id)
            assert len(registrations(api)) == before
        assert first.recorded
    assert (await stored_run(api)).status == "complete"
    assert client.statistics().lost == 0


async def test_of_two_runs_that_ask_for_one_id_at_once_one_gets_it(api: FaultyApi) -> None:
    async def register() -> None:
        try:
            await client.create_agent_instance(**AGENT, instance_id=own)
        except PrefactorConflictError:
            outcomes.append("refused")
        else:
            outcomes.append("registered")

    outcomes: list[str] = []
    async with opened(api) as client:
        own = generate_related((await client.create_agent_instance(**AGENT)).id)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(register)
    assert sorted(outcomes) == ["refused", "refused", "registered"]
    assert len(await stored_runs(api)) == 2
    assert client.statistics().lost == 0


async def test_a_run_that_is_accepted_after_a_refusal_can_get_quality_after_its_end(
    api: FaultyApi,
) -> None:
    async with opened(api) as client:
        own = generate_related((await client.create_agent_instance(**AGENT)).id)
        api.faults["register"] = [403]
        with pytest.raises(PrefactorAuthError):
            await client.create_agent_instance(**AGENT, instance_id=own)
        judged = {
            "external_identifier": "judged",
            "span_schemas": {},
            "quality_schemas": [{"name": "accuracy", "schema": {}}],
        }
        instance = await client.create_agent_instance(
            **AGENT, agent_schema_version=judged, instance_id=own
        )
        await instance.finish()
        await client.flush()
        await instance.record_quality("accuracy", {"score": 1})
    assert client.statistics().lost == 0
    assert "record_quality" in api.names()


@pytest.mark.virtual_time
async def test_two_runs_that_the_api_calls_the_same_are_one_and_raise_nothing(
    api: FaultyApi,
) -> None:
    answers: list[bytes] = []

    async def app(scope: AsgiMessage, receive: Any, send: Any) -> None:
        async def note(message: AsgiMessage) -> None:
            if scope["path"].endswith("/register") and message["type"] == "http.response.body":
                answers.append(message["body"])
                message["body"] = answers[0]
            await send(message)

        await api(scope, receive, note)

    api.app.faults.bulk = False  # each registration is a request
    async with opened(app) as client:
        async with client.agent_instance(**AGENT) as first:
            async with client.agent_instance(**AGENT) as second:
                assert second.id == first.id
                with second.span("agent:run"):
                    pass
            with first.span("agent:run"):
                pass
        async with client.agent_instance(**AGENT) as third:
            assert third.id == first.id
    assert len(answers) == 3
    statistics = client.statistics()
    assert statistics.dropped["run_ended"] == 1
    assert (statistics.pending, statistics.pending_bytes, statistics.open_bytes) == (0, 0, 0)


@pytest.mark.virtual_time
@pytest.mark.parametrize("on_refused", ["log", "raise"])
async def test_a_run_for_which_there_is_no_room_goes_on_unrecorded(
    api: FaultyApi, on_refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.away = True
    options = {"on_refused": on_refused, "registration_timeout": 1, "drain_timeout": 60}
    async with opened(api, queue={"max_pending_operations": 2}, **options) as client:
        async with client.agent_instance(**AGENT) as first:
            assert first.recorded
            before = anyio.current_time()
            async with client.agent_instance(**AGENT) as second:
                assert not second.recorded
                with second.span("agent:run"):
                    pass
            assert anyio.current_time() == before  # there is nothing to wait for
            assert client.statistics().dropped["full"] >= 2
            api.away = False
    assert (await stored_run(api)).shape == ("complete", [])
    # Of the second run all of it, of the first nothing.
    statistics = client.statistics()
    assert (statistics.dropped, statistics.delivered) == ({"full": 4}, 3)
    assert sum("are dropped (full)" in line for _, line in lines_of(caplog)) == 1


# --- what becomes of a run for which nobody waits any more ---


@pytest.mark.virtual_time
async def test_a_run_whose_registration_is_cancelled_is_recorded_as_cancelled(
    api: FaultyApi,
) -> None:
    async with opened(api, drain_timeout=60) as client:
        api.hanging = True
        with anyio.move_on_after(0.5) as scope:
            async with client.agent_instance(**AGENT):
                pytest.fail("the body must not run")
        assert scope.cancelled_caught
        api.hanging = False
    assert [run.status for run in await stored_runs(api)] == ["cancelled"]
    assert client.statistics().lost == 0
    # It was never begun: its registration, a start, and its end.
    assert client.statistics().accepted == client.statistics().delivered == 3


@pytest.mark.virtual_time
@pytest.mark.parametrize("seconds", [10.0, math.inf])
async def test_a_caller_that_waits_for_a_registration_when_the_client_closes_returns_at_once(
    api: FaultyApi, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def register() -> None:
        with pytest.raises(ClientNotInitializedError):
            await client.create_agent_instance(**AGENT)

    api.hanging = True
    client = opened(api, registration_timeout=seconds, drain_timeout=1)
    await client.initialize()
    with anyio.fail_after(1.5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(register)
            await anyio.sleep(0.25)
            await client.close()
    # Its registration, a start, and its end.
    assert client.statistics().dropped == {"drain_timeout": 3}
    assert len(lines_of(caplog)) == 1  # the balance


async def test_a_run_that_is_being_registered_when_the_client_closes_is_cancelled(
    api: FaultyApi,
) -> None:
    asked, app = anyio.Event(), api.app

    async def answer_late(*arguments: Any) -> None:
        asked.set()
        while client.is_open:
            await anyio.lowlevel.checkpoint()
        await app(*arguments)

    async def register() -> None:
        with pytest.raises(ClientNotInitializedError):
            await client.create_agent_instance(**AGENT)

    api.app = answer_late
    client = opened(api)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, client:
            tasks.start_soon(register)
            await asked.wait()
    assert [run.status for run in await stored_runs(api)] == ["cancelled"]
    assert client.statistics().lost == 0


async def test_no_run_is_registered_once_the_client_closes(
    api: FaultyApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(api) as client:
        instances = client.instance_manager
    version = {"name": "x", "external_identifier": "1"}
    # As a thread does that had the manager in its hands before.
    with pytest.raises(ClientNotInitializedError):
        instances.register_nowait(AGENT["agent_id"], version, {})
    assert client.statistics().accepted == 0
    assert lines_of(caplog) == []


@pytest.mark.virtual_time
async def test_what_the_caller_changes_in_an_outage_is_registered_as_it_was(
    api: FaultyApi,
) -> None:
    version = {**VERSION, "tags": ["first"]}
    schemas: dict[str, Any] = {"external_identifier": "s1", "span_schemas": {"agent:run": {}}}
    api.away = True
    async with opened(api, registration_timeout=1, drain_timeout=60) as client:
        instance = await client.create_agent_instance("tested-agent", version, schemas)
        version["tags"] = {object()}  # what is no JSON any more
        schemas["span_schemas"].clear()
        api.away = False
        await client.flush()
        await instance.finish()
    assert client.statistics().pending_bytes == 0
    assert client.statistics().lost == 0
    body = registrations(api)[-1].body
    assert body["agent_version"]["tags"] == ["first"]
    assert body["agent_schema_version"]["span_schemas"] == {"agent:run": {}}
    assert len({call.body["idempotency_key"] for call in registrations(api)}) == 1
