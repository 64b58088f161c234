"""validate_token: opening fails for a wrong token, but not for an unreachable API."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import pytest
from support.harness import AGENT, TOKEN, FaultyApi, make_config, open_faulty_api, stored_run

from prefactor_core import (
    ClientNotInitializedError,
    PrefactorAuthError,
    PrefactorCoreClient,
    open_prefactor,
    open_prefactor_sync,
)
from prefactor_core.testing import open_recording

Opening = Callable[[PrefactorCoreClient], Awaitable[None]]


@pytest.fixture
async def api() -> AsyncGenerator[FaultyApi]:
    async with open_faulty_api() as api:
        yield api


async def by_block(client: PrefactorCoreClient) -> None:
    async with client:
        await record(client)


async def by_calls(client: PrefactorCoreClient) -> None:
    await client.initialize()
    await record(client)
    await client.close()


each_way = pytest.mark.parametrize("use", [by_block, by_calls])


async def record(client: PrefactorCoreClient) -> None:
    async with client.agent_instance(**AGENT):
        pass


def checking(api: FaultyApi, **options: Any) -> PrefactorCoreClient:
    return open_prefactor(make_config(validate_token=True, **options), asgi_app=api)


def is_closed(client: PrefactorCoreClient) -> bool:
    with pytest.raises(ClientNotInitializedError):
        _ = client.instance_manager
    names = [task.name or "" for task in anyio.get_running_tasks()]
    return not any(name.startswith("prefactor") for name in names)


@each_way
async def test_a_token_that_the_api_takes_is_asked_about_once(
    api: FaultyApi, use: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(5):
        await use(checking(api))
    assert api.names() == ["ping", "register", "start", "finish"]
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@each_way
async def test_without_it_nothing_is_asked(api: FaultyApi, use: Opening) -> None:
    with anyio.fail_after(5):
        await use(open_prefactor(make_config(), asgi_app=api))
    assert "ping" not in api.names()


@each_way
@pytest.mark.parametrize("status", [401, 403])
async def test_a_wrong_token_leaves_the_opening_and_the_client_can_be_opened_again(
    api: FaultyApi, use: Opening, status: int
) -> None:
    api.faults["ping"] = [status]
    client = checking(api)
    with anyio.fail_after(5):
        with pytest.raises(PrefactorAuthError) as caught:
            await use(client)
        assert caught.value.status_code == status
        assert TOKEN not in str(caught.value)
        assert is_closed(client)
        assert api.calls[-1].name == "ping"
        await use(client)
    assert (await stored_run(api)).status == "complete"


def test_a_wrong_token_leaves_the_opening_of_a_synchronous_client() -> None:
    with open_recording() as recording:
        api = FaultyApi(recording._app, faults={"ping": [401]})
        client = open_prefactor_sync(make_config(validate_token=True), asgi_app=api)
        with pytest.raises(PrefactorAuthError), client:
            pytest.fail("the body must not run")
        with client, client.agent_instance(**AGENT):
            pass
        assert recording.run.status == "complete"


@pytest.mark.virtual_time
@each_way
@pytest.mark.parametrize(
    "fault",
    [
        ConnectionRefusedError("nobody is there"),
        404,
        429,
        500,
        503,
        (200, {}, b"<html>"),
        (401, {}, b"<html>of a gateway"),
        (403, {}, b"{}"),
    ],
)
async def test_an_api_that_cannot_say_is_no_reason_not_to_open(
    api: FaultyApi, use: Opening, fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults["ping"] = fault
    before = anyio.current_time()
    await use(checking(api))
    assert anyio.current_time() - before < 1
    assert (await stored_run(api)).status == "complete"
    (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert (record.name, record.levelno) == ("prefactor_core.client", logging.WARNING)
    assert record.getMessage().startswith("the API token could not be checked: ")
    assert TOKEN not in caplog.text


@pytest.mark.virtual_time
@each_way
async def test_an_api_that_does_not_answer_is_waited_for_as_for_a_registration(
    api: FaultyApi, use: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    api.hanging = True
    before = anyio.current_time()
    await use(checking(api, registration_timeout=3, drain_timeout=0))
    # Once for the token, once for the run.
    assert anyio.current_time() - before == pytest.approx(6, abs=0.5)
    assert "could not be checked: no answer within 3 s" in caplog.text


@pytest.mark.virtual_time
@each_way
async def test_an_opening_that_is_cancelled_meanwhile_ends_at_once(
    api: FaultyApi, use: Opening
) -> None:
    api.hanging = True
    client = checking(api)
    before = anyio.current_time()
    with anyio.move_on_after(2) as scope:
        await use(client)
    assert scope.cancelled_caught
    assert anyio.current_time() - before == pytest.approx(2, abs=0.01)
    assert is_closed(client)
    api.hanging = False
    await use(client)
    assert (await stored_run(api)).status == "complete"


@each_way
@pytest.mark.parametrize("cancelled", [False, True], ids=["refused", "cancelled"])
async def test_an_opening_that_fails_leaves_no_connection(use: Opening, cancelled: bool) -> None:
    hung_up = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if not cancelled:
                await stream.send(
                    b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 18\r\n\r\n{"status":"error"}'
                )
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
            hung_up.set()

    with anyio.fail_after(10):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, serve)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            url = f"http://127.0.0.1:{port}"
            client = open_prefactor(api_url=url, api_token=TOKEN, validate_token=True)
            with anyio.move_on_after(0.2 if cancelled else 5) as scope:
                with pytest.raises(PrefactorAuthError):
                    await use(client)
            assert scope.cancelled_caught == cancelled
            await hung_up.wait()
            assert is_closed(client)
            tasks.cancel_scope.cancel()


@each_way
async def test_switched_off_nothing_is_asked(api: FaultyApi, use: Opening) -> None:
    await use(checking(api, enabled=False))
    assert api.calls == []
