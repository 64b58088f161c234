"""Sessions of LiveKit under prefactor-livekit, which records by this checkout's prefactor_core:
text turns, without audio or a room. Arguments: the URL of the API, and names of scenarios
(default: all).

Prints one line of JSON: the id of each scenario's run. Nothing may be written to stderr, except by
a scenario that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from livekit.agents import (
    Agent,
    AgentSession,
    APIConnectOptions,
    APIStatusError,
    function_tool,
    llm,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS
from livekit.agents.voice.agent_session import SessionConnectOptions
from prefactor_http.config import HttpClientConfig
from prefactor_livekit import PrefactorLiveKitSession, register_livekit_schemas

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    PrefactorTerminatedError,
    SchemaRegistry,
)

URL = sys.argv[1]
AGENT = "compat-livekit"
SCENARIOS: dict[str, Callable[[], Awaitable[str]]] = {}


reached = asyncio.Event()
"""Set when the model waits."""


def scenario(function: Callable[[], Awaitable[str]]) -> Callable[[], Awaitable[str]]:
    """Register a scenario: a coroutine function that returns the id of its run."""
    SCENARIOS[function.__name__] = function
    return function


class Answer(llm.LLMStream):
    """Asks for the tool first, answers when the tool did; or does as the question says."""

    async def _run(self) -> None:
        question = ""
        for item in self._chat_ctx.items:
            if item.type == "message" and item.role == "user":
                question, asked = item.text_content or "", False
            elif item.type == "function_call_output":
                asked = True
        if "fail" in question:
            raise APIStatusError("no model", status_code=400, retryable=False)
        if "wait" in question:
            reached.set()
            await asyncio.sleep(60)
        mountain = "Olymp" if "Olymp" in question else "K2"
        arguments = json.dumps({"mountain": mountain})
        call = llm.FunctionToolCall(name="height", arguments=arguments, call_id="call-1")
        self._say(
            llm.ChoiceDelta(role="assistant", content="8611 m")
            if asked
            else llm.ChoiceDelta(role="assistant", tool_calls=[call])
        )
        usage = llm.CompletionUsage(completion_tokens=5, prompt_tokens=11, total_tokens=16)
        self._event_ch.send_nowait(llm.ChatChunk(id="chunk", usage=usage))

    def _say(self, delta: llm.ChoiceDelta) -> None:
        self._event_ch.send_nowait(llm.ChatChunk(id="chunk", delta=delta))


class Model(llm.LLM):
    def chat(self, *, chat_ctx: Any, tools: Any = None, conn_options: Any = None, **_: Any) -> Any:
        options = conn_options or DEFAULT_API_CONNECT_OPTIONS
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=options)


class Guide(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You know mountains.")

    @function_tool
    async def height(self, mountain: str) -> str:
        """The height of a mountain in metres."""
        if mountain == "Olymp":
            raise ValueError("unknown mountain Olymp")
        return "8611"


def new_session(most_errors: int = 3) -> AgentSession[Any]:
    options = SessionConnectOptions(
        llm_conn_options=APIConnectOptions(max_retry=0), max_unrecoverable_errors=most_errors
    )
    return AgentSession(llm=Model(), conn_options=options)


def from_config() -> PrefactorLiveKitSession:
    return PrefactorLiveKitSession.from_config(
        api_url=URL, api_token="token-of-compat", agent_id=AGENT, agent_name="Compat"
    )


def check(client: PrefactorCoreClient | None) -> None:
    """Raise unless everything that was recorded has been delivered."""
    assert client is not None
    statistics = client.statistics()
    if client.is_open or statistics.lost or statistics.pending or statistics.last_error:
        raise AssertionError(str(statistics))


async def ask(session: AgentSession[Any], question: str = "How high is K2?") -> None:
    await session.run(user_input=question)


@contextlib.asynccontextmanager
async def traced(
    session: AgentSession[Any],
) -> AsyncIterator[tuple[PrefactorLiveKitSession, AgentInstanceHandle]]:
    """Start ``session`` under a wrapper with a client of its own; close the wrapper, then it."""
    wrapper = from_config()
    client = wrapper._client
    run = await wrapper.ensure_initialized()
    await wrapper.start(session=session, agent=Guide())
    try:
        yield wrapper, run
    finally:
        await wrapper.close()
        await session.aclose()
        check(client)


@scenario
async def session_with_a_tool() -> str:
    async with traced(session := new_session()) as (_, run):
        await ask(session)
    return run.id


@scenario
async def session_of_three_turns() -> str:
    async with traced(session := new_session()) as (_, run):
        for _ in range(3):
            await ask(session)
    return run.id


@scenario
async def tool_that_fails() -> str:
    async with traced(session := new_session()) as (_, run):
        await ask(session, "How high is Olymp?")
    return run.id


@scenario
async def model_that_fails_once() -> str:
    async with traced(session := new_session()) as (_, run):
        with contextlib.suppress(Exception):
            await ask(session, "fail")
        await ask(session)
    return run.id


@scenario
async def session_that_ends_by_an_error() -> str:
    """The wrapper ends its spans, its run and its client by itself."""
    session, wrapper = new_session(most_errors=0), from_config()
    client = wrapper._client
    run = await wrapper.ensure_initialized()
    await wrapper.start(session=session, agent=Guide())
    with contextlib.suppress(Exception):
        await ask(session, "fail")
    assert wrapper._event_worker_task is not None
    await wrapper._event_worker_task
    await session.aclose()
    check(client)
    return run.id


@scenario
async def session_that_is_interrupted() -> str:
    async with traced(session := new_session()) as (_, run):
        reached.clear()
        speech = session.generate_reply(user_input="wait")
        await reached.wait()
        await session.interrupt()
        await speech
        await ask(session)
    return run.id


@scenario
async def session_that_is_closed_before_its_wrapper() -> str:
    session, wrapper = new_session(), from_config()
    client = wrapper._client
    run = await wrapper.ensure_initialized()
    await wrapper.start(session=session, agent=Guide())
    await ask(session)
    await session.aclose()
    await wrapper.close()
    check(client)
    return run.id


@scenario
async def wrapper_on_an_open_client() -> str:
    """It gives the client, which has none, the span types of its tools."""
    http = HttpClientConfig(api_url=URL, api_token="token-of-compat")
    client = PrefactorLiveKitSession.create_client(PrefactorCoreConfig(http_config=http))
    await client.initialize()
    schema = {"type": "object", "properties": {"mountain": {"type": "string"}}}
    wrapper = PrefactorLiveKitSession(
        client=client,
        agent_id=AGENT,
        agent_name="Compat",
        tool_schemas={"height": {"span_type": "height", "input_schema": schema}},
    )
    session = new_session()
    run = await wrapper.ensure_initialized()
    await wrapper.start(session=session, agent=Guide())
    await ask(session)
    await wrapper.close()
    await session.aclose()
    await client.close()
    check(client)
    return run.id


@contextlib.asynccontextmanager
async def shared_run() -> AsyncIterator[AgentInstanceHandle]:
    registry = SchemaRegistry()
    register_livekit_schemas(registry)
    http = HttpClientConfig(api_url=URL, api_token="token-of-compat")
    config = PrefactorCoreConfig(http_config=http, schema_registry=registry)
    client = PrefactorLiveKitSession.create_client(config)
    await client.initialize()
    run = await client.create_agent_instance(
        agent_id=AGENT, agent_version={"name": "Compat", "external_identifier": "shared"}
    )
    await run.start()
    try:
        yield run
    finally:
        await run.finish()
        await client.close()
        check(client)


async def one_session(run: AgentInstanceHandle) -> None:
    """A session on a run that goes on."""
    wrapper, session = PrefactorLiveKitSession(instance=run), new_session()
    await wrapper.start(session=session, agent=Guide())
    wrapper._loop = asyncio.get_running_loop()
    await ask(session)
    await wrapper.close()
    await session.aclose()


@scenario
async def two_sessions_at_once_on_one_run() -> str:
    async with shared_run() as run:
        await asyncio.gather(one_session(run), one_session(run))
    return run.id


@scenario
async def session_in_a_second_loop() -> str:
    """The client is open here; the session runs in the event loop of another thread."""
    async with shared_run() as run:
        await asyncio.to_thread(asyncio.run, one_session(run))
    return run.id


@scenario
async def opened_used_and_closed_in_three_tasks() -> str:
    session, wrapper = new_session(), from_config()
    client = wrapper._client
    run = await asyncio.create_task(wrapper.ensure_initialized())
    await asyncio.create_task(wrapper.start(session=session, agent=Guide()))
    await asyncio.create_task(ask(session))
    await asyncio.create_task(wrapper.close())
    await session.aclose()
    check(client)
    return run.id


@scenario
async def session_that_an_operator_stops() -> str:
    """The wrapper knows nothing of terminations: the program ends its session by a callback."""
    async with traced(session := new_session()) as (_, run):
        stopped, closed = asyncio.Event(), asyncio.Event()
        session.on("close", lambda event: closed.set())
        await ask(session)
        await asyncio.to_thread(terminate, run.id)
        run.on_terminate(lambda reason: stopped.set())
        await ask(session)  # the answers to its spans tell
        await stopped.wait()
        session.shutdown(drain=False)
        await closed.wait()
    return run.id


def terminate(run: str) -> None:
    """Terminate ``run``, as an operator does: as soon as it is active."""
    url = f"{URL}/api/v1/agent_instance/{run}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        status = json.load(answer)["details"]["status"]
    if status == "pending":
        time.sleep(0.05)
        terminate(run)
    elif status == "active":
        body = json.dumps({"reason": "enough"}).encode()
        request = urllib.request.Request(
            f"{url}/terminate", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()


def never_closed() -> str:
    """The loop ends with the wrapper open, and spans in it."""

    async def main() -> str:
        session, wrapper = new_session(), from_config()
        run = await wrapper.ensure_initialized()
        await wrapper.start(session=session, agent=Guide())
        await ask(session)
        await session.drain()
        kept.append(wrapper)
        return run.id

    kept: list[Any] = []
    return asyncio.run(main())


class Expected(logging.Filter):
    """Drops what is to be logged: terminations, and the steps that a terminated run refuses.

    ``terminations``: how many runs were logged as terminated.
    """

    terminations = 0

    def filter(self, record: logging.LogRecord) -> bool:
        is_termination = record.getMessage().startswith("the Prefactor API has terminated")
        self.terminations += is_termination
        error = record.exc_info[1] if record.exc_info else None
        return not is_termination and not isinstance(error, PrefactorTerminatedError)


def main(names: list[str]) -> None:
    logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
    expected = Expected()
    logging.getLogger().handlers[0].addFilter(expected)
    # What LiveKit says of errors of the user's own.
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    report = {}
    for name, function in SCENARIOS.items():
        if not names or name in names:
            try:
                report[name] = asyncio.run(asyncio.wait_for(function(), 120))
            except BaseException as error:
                error.add_note(f"in {name}")
                raise
    if not names or "never_closed" in names:
        report["never_closed"] = never_closed()
    report["terminations logged"] = str(expected.terminations)
    print(json.dumps(report))


main(sys.argv[2:])
