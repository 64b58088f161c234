"""Agents and graphs of LangChain and LangGraph under prefactor-langchain, which records by this
checkout's prefactor_core. Arguments: the URL of the API, and names of scenarios (default: all).

Prints one line of JSON: the id of each scenario's run, and what it noted. Nothing may be written to
stderr, except by a scenario that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import operator
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, ToolRetryMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, RetryPolicy, Send, interrupt
from prefactor_http.config import HttpClientConfig
from prefactor_langchain import (
    PrefactorCallbackHandler,
    PrefactorMiddleware,
    register_langchain_schemas,
)

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorCoreConfig,
    PrefactorTerminatedError,
    QueueConfig,
    SchemaRegistry,
    open_prefactor_sync,
)

URL = sys.argv[1]
AGENT = "compat-adapter-langchain"
QUESTION = {"messages": [{"role": "user", "content": "How high is K2?"}]}
Notes = dict[str, str]
SCENARIOS: dict[str, Callable[[], Awaitable[Notes]]] = {}


def scenario(function: Callable[[], Awaitable[str | Notes]]) -> Callable[[], Awaitable[Notes]]:
    """Register a scenario: a coroutine function that returns the id of its run, or ids by name."""
    name = function.__name__

    async def call() -> Notes:
        found = await function()
        return {name: found} if isinstance(found, str) else found

    SCENARIOS[name] = call
    return call


# --- Models, tools and agents


class Model(BaseChatModel):
    """Gives one of its answers for each call, raises it if it is an exception, and streams it word
    by word."""

    answers: list[Any]

    @property
    def _llm_type(self) -> str:
        return "fake"

    def bind_tools(self, tools: Any, **_options: Any) -> Any:
        return self

    def _generate(self, *_: Any, **_options: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next())])

    def _stream(self, *_: Any, **_options: Any) -> Iterator[ChatGenerationChunk]:
        answer = self._next()
        for word in answer.content.split() or [""]:
            chunk = AIMessageChunk(content=word, tool_calls=answer.tool_calls)
            yield ChatGenerationChunk(message=chunk)

    def _next(self) -> AIMessage:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, AIMessage)
        return answer


def model(*answers: Any) -> Model:
    return Model(answers=[*answers])


def calls(*mountains: str, tool: str = "height") -> AIMessage:
    usage = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
    asked = [
        {"name": tool, "args": {"mountain": name}, "id": f"call-{number}-{name}"}
        for number, name in enumerate(mountains)
    ]
    return AIMessage(content="", tool_calls=asked, usage_metadata=usage)


def answer(text: str = "8611 m") -> AIMessage:
    return AIMessage(content=text)


@tool
def height(mountain: str) -> str:
    """The height of a mountain in metres."""
    if mountain == "Olymp":
        raise ValueError("unknown mountain Olymp")
    return "8611"


def agent(middleware: list[Any], *answers: Any, tools: Any = (height,), **options: Any) -> Any:
    return create_agent(model(*answers), tools=[*tools], middleware=middleware, **options)


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


def config(registry: SchemaRegistry | None) -> PrefactorCoreConfig:
    http = HttpClientConfig(api_url=URL, api_token="token-of-compat")
    return PrefactorCoreConfig(
        http_config=http,
        schema_registry=registry,
        queue_config=QueueConfig(batch_window=0.01),
    )


def check(client: PrefactorCoreClient) -> None:
    """Raise unless everything that was recorded has been delivered."""
    statistics = client.statistics()
    if statistics.lost or statistics.pending or statistics.last_error:
        raise AssertionError(str(statistics))


# --- The middleware


class KeptError(Exception):
    """What a user's code raises."""


@contextlib.asynccontextmanager
async def middleware() -> AsyncIterator[tuple[PrefactorMiddleware, AgentInstanceHandle]]:
    """Middleware that opens and closes a client of its own, and its run."""
    made = PrefactorMiddleware.from_config(
        api_url=URL, api_token="token-of-compat", agent_id=AGENT, agent_name="Compat"
    )
    client = made._client
    run = await made.ensure_initialized()
    try:
        yield made, run
    finally:
        try:
            await made.close()
        except PrefactorTerminatedError:
            # Closed all the same. It tells of spans of threads that came after the termination.
            if run.terminated is None:
                raise
        assert client is not None
        check(client)


async def cancelled_at(reached: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
    """Run ``work`` until ``reached``, and cancel it there."""
    task = asyncio.create_task(work)
    await reached.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def ask(middleware: list[Any], *answers: Any, **options: Any) -> None:
    """Have an agent answer, also if it raises what a tool or a model raises."""
    with contextlib.suppress(ValueError):
        await agent(middleware, *answers, **options).ainvoke(QUESTION)


@scenario
async def agent_with_a_tool() -> str:
    async with middleware() as (made, run):
        await ask([made], calls("K2"), answer())
    return run.id


@scenario
async def agent_whose_tool_fails() -> str:
    async with middleware() as (made, run):
        await ask([made], calls("Olymp"))
    return run.id


@scenario
async def agent_whose_model_fails() -> str:
    async with middleware() as (made, run):
        await ask([made], ValueError("no model"))
    return run.id


@scenario
async def agent_with_two_tools_at_once() -> str:
    async with middleware() as (made, run):
        await ask([made], calls("K2", "Eiger"), answer())
    return run.id


@scenario
async def agent_that_retries_its_model() -> str:
    async with middleware() as (made, run):
        retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.001, jitter=False)
        await ask([retry, made], ValueError("once"), ValueError("twice"), answer())
    return run.id


@scenario
async def agent_that_retries_its_tool() -> str:
    tries = []

    @tool
    def height(mountain: str) -> str:
        """The height of a mountain in metres."""
        tries.append(mountain)
        if len(tries) < 3:
            raise ValueError("not yet")
        return "8611"

    async with middleware() as (made, run):
        retry = ToolRetryMiddleware(max_retries=2, initial_delay=0.001, jitter=False)
        await ask([retry, made], calls("K2"), answer(), tools=[height])
    return run.id


@scenario
async def agent_that_streams() -> str:
    async with middleware() as (made, run):
        streaming = agent([made], calls("K2"), answer("It is 8611 metres high"))
        async for _ in streaming.astream(QUESTION, stream_mode=["updates", "messages"]):
            pass
    return run.id


@scenario
async def stream_that_is_left_early() -> str:
    async with middleware() as (made, run):
        stream = agent([made], calls("K2"), answer()).astream(QUESTION)
        async for _ in stream:
            break
        await stream.aclose()
    return run.id


@scenario
async def agent_that_is_interrupted_and_resumed() -> str:
    @tool
    def height(mountain: str) -> str:
        """The height of a mountain in metres."""
        return str(interrupt({"allowed": mountain}))

    async with middleware() as (made, run):
        asking = agent([made], calls("K2"), answer(), tools=[height], checkpointer=InMemorySaver())
        thread: RunnableConfig = {"configurable": {"thread_id": "1"}}
        await asking.ainvoke(QUESTION, thread)
        await asking.ainvoke(Command(resume="8611"), thread)
    return run.id


@scenario
async def agent_in_a_thread() -> str:
    async with middleware() as (made, run):
        await asyncio.to_thread(agent([made], calls("K2"), answer()).invoke, QUESTION)
    return run.id


@scenario
async def agent_in_a_pool_without_a_context() -> str:
    async with middleware() as (made, run):
        async with run.span("workflow:step") as step:
            await step.start({})
            made.set_parent_span(step.id)
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(1) as pool:
                asking = agent([made], calls("K2"), answer())
                await loop.run_in_executor(pool, asking.invoke, QUESTION)
    return run.id


@scenario
async def agent_in_a_thread_whose_tool_fails() -> str:
    async with middleware() as (made, run):
        with contextlib.suppress(ValueError):
            await asyncio.to_thread(agent([made], calls("Olymp")).invoke, QUESTION)
    return run.id


@scenario
async def agent_that_streams_in_a_thread() -> str:
    async with middleware() as (made, run):
        streaming = agent([made], calls("K2"), answer())
        await asyncio.to_thread(lambda: list(streaming.stream(QUESTION)))
    return run.id


@scenario
async def agent_that_is_cancelled() -> str:
    reached = asyncio.Event()

    @tool
    async def height(mountain: str) -> str:
        """The height of a mountain in metres."""
        reached.set()
        await asyncio.sleep(60)
        return "8611"

    async with middleware() as (made, run):
        asking = agent([made], calls("K2"), tools=[height])
        await cancelled_at(reached, asking.ainvoke(QUESTION))
    return run.id


@scenario
async def agent_below_a_span_of_the_program() -> str:
    async with middleware() as (made, run):
        async with run.span("workflow:step") as step:
            await step.start({})
            await ask([made], calls("K2"), answer())
    return run.id


@scenario
async def agents_one_after_another() -> str:
    async with middleware() as (made, run):
        for _ in range(3):
            await ask([made], calls("K2"), answer())
    return run.id


@scenario
async def agent_of_an_agent() -> str:
    """Each has its own middleware, on one run."""
    async with middleware() as (made, run):
        below = PrefactorMiddleware(instance=run)

        @tool
        async def height(mountain: str) -> str:
            """The height of a mountain in metres."""
            await ask([below], answer("8611"), tools=[])
            return "8611"

        await ask([made], calls("K2"), answer(), tools=[height])
    return run.id


@scenario
async def middleware_on_an_open_client() -> str:
    """It gives the client, which has none, the span types of its tools."""
    client = PrefactorMiddleware.create_client(config(None))
    await client.initialize()
    schema = {"type": "object", "properties": {"mountain": {"type": "string"}}}
    made = PrefactorMiddleware(
        client=client,
        agent_id=AGENT,
        agent_name="Compat",
        tool_schemas={"height": {"span_type": "height", "input_schema": schema}},
    )
    await ask([made], calls("K2"), answer())
    assert made._instance is not None
    run = made._instance.id
    await made.close()
    await client.close()
    check(client)
    return run


@scenario
async def opened_used_and_closed_in_three_tasks() -> str:
    made = PrefactorMiddleware.from_config(
        api_url=URL, api_token="token-of-compat", agent_id=AGENT, agent_name="Compat"
    )
    client = made._client
    run = await asyncio.create_task(made.ensure_initialized())
    await asyncio.create_task(ask([made], calls("K2"), answer()))
    await asyncio.create_task(made.close())
    assert client is not None
    check(client)
    return run.id


@scenario
async def agents_in_a_second_loop() -> str:
    """The client is open here; the agent runs in the event loop of another thread."""
    async with middleware() as (_, run):
        here = PrefactorMiddleware(instance=run)
        await ask([here], calls("K2"), answer())
        there = PrefactorMiddleware(instance=run)
        await asyncio.to_thread(asyncio.run, ask([there], calls("K2"), answer()))
    return run.id


@scenario
async def agent_that_an_operator_stops() -> Notes:
    async with middleware() as (made, run):

        @tool
        async def height(mountain: str) -> str:
            """The height of a mountain in metres."""
            await asyncio.to_thread(terminate, run.id)
            return "8611"

        return await stopped("agent_that_an_operator_stops", made, run, height)


@scenario
async def agent_in_a_thread_that_an_operator_stops() -> Notes:
    async with middleware() as (made, run):

        @tool
        def height(mountain: str) -> str:
            """The height of a mountain in metres."""
            terminate(run.id)
            return "8611"

        return await stopped("agent_in_a_thread_that_an_operator_stops", made, run, height)


async def stopped(
    name: str, made: PrefactorMiddleware, run: AgentInstanceHandle, tool: Any
) -> Notes:
    """The signal comes in the background: the agent goes on, until a hook raises."""
    looping = agent([made], *[calls("K2") for _ in range(500)], tools=[tool])
    ask = looping.ainvoke
    if "thread" in name:

        async def ask(*args: Any) -> Any:
            return await asyncio.to_thread(looping.invoke, *args)

    try:
        await ask(QUESTION, {"recursion_limit": 10_000})
    except PrefactorTerminatedError as error:
        return {name: run.id, f"{name}, error": str(error.reason)}
    return {name: run.id, f"{name}, error": "none"}


@scenario
async def two_agents_of_one_client_of_which_one_is_stopped() -> Notes:
    client = PrefactorMiddleware.create_client(config(langchain_types()[0]))
    await client.initialize()

    def made() -> PrefactorMiddleware:
        return PrefactorMiddleware(client=client, agent_id=AGENT, agent_name="Compat")

    stopping, going_on = made(), made()
    runs = [await made.ensure_initialized() for made in (stopping, going_on)]

    @tool
    async def height(mountain: str) -> str:
        """The height of a mountain in metres."""
        await asyncio.to_thread(terminate, runs[0].id)
        return "8611"

    notes = await stopped("stopped agent", stopping, runs[0], height)
    await ask([going_on], calls("K2"), answer())
    for each in (stopping, going_on):
        await each.close()
    await client.close()
    check(client)
    return {**notes, "agent beside a stopped one": runs[1].id}


# --- The callback handler


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    seen: Annotated[list[str], operator.add]


def langchain_types() -> tuple[SchemaRegistry, dict[str, str]]:
    registry = SchemaRegistry()
    return registry, register_langchain_schemas(registry)


@contextlib.asynccontextmanager
async def handler() -> AsyncIterator[tuple[PrefactorCallbackHandler, AgentInstanceHandle]]:
    """A callback handler on a run of a client of its own."""
    registry, span_types = langchain_types()
    client = PrefactorCallbackHandler.create_client(config(registry))
    await client.initialize()
    run = await started(client)
    try:
        yield PrefactorCallbackHandler(instance=run, tool_span_types=span_types), run
    finally:
        await run.finish()
        await client.close()
        check(client)


async def started(client: PrefactorCoreClient) -> AgentInstanceHandle:
    run = await client.create_agent_instance(
        agent_id=AGENT, agent_version={"name": "Compat", "external_identifier": "graph"}
    )
    await run.start()
    return run


def with_handler(made: PrefactorCallbackHandler, **options: Any) -> Any:
    return {"callbacks": [made], **options}


def node(name: str, *answers: Any) -> Callable[[State], Awaitable[dict[str, Any]]]:
    """A node that asks a model for each of ``answers``."""
    asked = model(*answers)

    async def run(state: State) -> dict[str, Any]:
        for _ in answers:
            await asked.ainvoke([HumanMessage("How high is K2?")])
        return {"seen": [name]}

    return run


async def one_call(state: State) -> dict[str, Any]:
    """A node that asks a model of its own."""
    return await node("one call", answer())(state)


def graph(*edges: tuple[str, str], **nodes: Any) -> Any:
    built = StateGraph(State)
    for name, function in nodes.items():
        built.add_node(name, function)
    for begin, end in edges:
        built.add_edge(begin, end)
    return built


NOTHING: State = {"messages": [], "seen": []}


@scenario
async def graph_of_two_nodes() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=node("a", answer()), b=node("b", answer()))
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_of_parallel_nodes() -> str:
    async with handler() as (made, run):
        names = ["b", "c", "d"]
        built = graph(
            (START, "a"),
            *[("a", name) for name in names],
            *[(name, "e") for name in names],
            **{name: node(name, answer()) for name in ["a", *names, "e"]},
        )
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_that_sends_to_nodes() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), a=node("a"), b=one_call)
        built.add_conditional_edges("a", lambda state: [Send("b", NOTHING) for _ in range(5)])
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_with_a_condition() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), a=node("a"), b=node("b"), c=node("c", answer()))
        built.add_conditional_edges("a", lambda state: "c", ["b", "c"])
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_in_a_graph() -> str:
    async with handler() as (made, run):
        inner = graph((START, "x"), ("x", "y"), x=node("x", answer()), y=node("y", answer()))
        built = graph((START, "a"), ("a", "b"), a=inner.compile(), b=node("b", answer()))
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_with_an_agent_as_a_node() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), a=agent([], calls("K2"), answer()))
        state = {**QUESTION, "seen": []}
        await built.compile().ainvoke(state, with_handler(made))
    return run.id


@scenario
async def graph_whose_node_fails() -> str:
    async def fail(state: State) -> dict[str, Any]:
        await model(answer()).ainvoke([HumanMessage("Before the error")])
        raise KeptError("mine")

    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=fail, b=node("b"))
        with contextlib.suppress(KeptError):
            await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_whose_parallel_node_fails() -> str:
    async def fail(state: State) -> dict[str, Any]:
        raise KeptError("mine")

    async def wait(state: State) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async with handler() as (made, run):
        built = graph((START, "a"), (START, "b"), a=fail, b=wait)
        with contextlib.suppress(KeptError):
            await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_that_retries_a_node() -> str:
    tries = []

    async def flaky(state: State) -> dict[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return {"seen": ["a"]}

    async with handler() as (made, run):
        built = graph()
        policy = RetryPolicy(initial_interval=0.001, jitter=False, max_attempts=3)
        built.add_node("a", flaky, retry_policy=policy)
        built.add_edge(START, "a")
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def model_with_a_fallback() -> str:
    chain = model(ValueError("no model")).with_fallbacks([model(answer())])

    async def run_chain(state: State) -> dict[str, Any]:
        await chain.ainvoke([HumanMessage("How high is K2?")])
        return {}

    async with handler() as (made, run):
        await graph((START, "a"), a=run_chain).compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_that_is_interrupted_and_resumed() -> str:
    async def pause(state: State) -> dict[str, Any]:
        return {"seen": [interrupt("may I?")]}

    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=pause, b=node("b", answer()))
        compiled = built.compile(checkpointer=InMemorySaver())
        options = with_handler(made, configurable={"thread_id": "1"})
        await compiled.ainvoke(NOTHING, options)
        await compiled.ainvoke(Command(resume="yes"), options)
    return run.id


@scenario
async def graph_that_streams() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=node("a", answer()), b=node("b", answer()))
        modes = ["updates", "messages", "values"]
        async for _ in built.compile().astream(NOTHING, with_handler(made), stream_mode=modes):
            pass
    return run.id


@scenario
async def graph_that_streams_events() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=node("a", answer()), b=node("b", answer()))
        async for _ in built.compile().astream_events(NOTHING, with_handler(made), version="v2"):
            pass
    return run.id


@scenario
async def graph_whose_stream_is_left_early() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=node("a", answer()), b=node("b", answer()))
        stream = built.compile().astream(NOTHING, with_handler(made))
        async for _ in stream:
            break
        await stream.aclose()
    return run.id


@scenario
async def graph_that_is_cancelled() -> str:
    reached = asyncio.Event()

    async def wait(state: State) -> dict[str, Any]:
        reached.set()
        await asyncio.sleep(60)
        return {}

    async with handler() as (made, run):
        built = graph((START, "a"), a=wait).compile()
        await cancelled_at(reached, built.ainvoke(NOTHING, with_handler(made)))
    return run.id


def synchronous(name: str) -> Callable[[State], dict[str, Any]]:
    def run(state: State) -> dict[str, Any]:
        model(answer()).invoke([HumanMessage("How high is K2?")])
        return {"seen": [name]}

    return run


@scenario
async def graph_of_synchronous_nodes() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=synchronous("a"), b=synchronous("b"))
        await built.compile().ainvoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_in_a_thread() -> str:
    """LangChain runs the handler's coroutines in loops of its own."""
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=synchronous("a"), b=synchronous("b"))
        await asyncio.to_thread(built.compile().invoke, NOTHING, with_handler(made))
    return run.id


@scenario
async def graph_that_blocks_the_loop_of_its_client() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), ("a", "b"), a=synchronous("a"), b=synchronous("b"))
        built.compile().invoke(NOTHING, with_handler(made))
    return run.id


@scenario
async def graphs_in_other_loops() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), a=one_call).compile()

        def once() -> None:
            asyncio.run(built.ainvoke(NOTHING, with_handler(made)))

        threads = [threading.Thread(target=once) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    return run.id


@scenario
async def a_batch_of_graphs() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), a=one_call).compile()
        await built.abatch([NOTHING] * 10, with_handler(made))
    return run.id


@scenario
async def a_hundred_graphs_at_once() -> str:
    async with handler() as (made, run):
        built = graph((START, "a"), a=one_call).compile()
        await asyncio.gather(*[built.ainvoke(NOTHING, with_handler(made)) for _ in range(100)])
    return run.id


@scenario
async def tool_that_fails_under_a_handler() -> str:
    async with handler() as (made, run):
        with contextlib.suppress(ValueError):
            await agent([], calls("Olymp")).ainvoke(QUESTION, with_handler(made))
    return run.id


class Looping:
    """A graph of one node that goes back to itself, 400 times or until ``is_enough``."""

    def __init__(self) -> None:
        self.steps = 0
        self.is_going, self.is_enough = asyncio.Event(), asyncio.Event()

    def next(self, state: State) -> str:
        return END if self.steps > 400 or self.is_enough.is_set() else "a"

    async def step(self, state: State) -> dict[str, Any]:
        self.steps += 1
        if self.steps == 3:
            self.is_going.set()
        await asyncio.sleep(0.005)
        return {"seen": ["a"]}

    async def go(self, run: AgentInstanceHandle) -> str:
        """How it ended: a reason if the run was terminated."""
        built = graph((START, "a"), a=self.step)
        built.add_conditional_edges("a", self.next, ["a", END])
        options = with_handler(PrefactorCallbackHandler(run), recursion_limit=10_000)
        try:
            await built.compile().ainvoke(NOTHING, options)
        except PrefactorTerminatedError as error:
            return f"stopped: {error.reason}"
        return "went on to its end"


@scenario
async def graph_that_an_operator_stops() -> Notes:
    looping = Looping()
    async with handler() as (_, run):
        going = asyncio.create_task(looping.go(run))
        await looping.is_going.wait()
        await asyncio.to_thread(terminate, run.id)
        end = await going
    name = "graph_that_an_operator_stops"
    return {name: run.id, f"{name}, end": end}


def looping_without_await(run: AgentInstanceHandle) -> str:
    """How a synchronous graph that goes back to itself ended: it asks an operator to stop it."""
    steps = []

    def step(state: State) -> dict[str, Any]:
        steps.append(1)
        if len(steps) == 3:
            terminate(run.id)
        time.sleep(0.005)
        return {"seen": ["a"]}

    built = graph((START, "a"), a=step)
    built.add_conditional_edges("a", lambda state: END if len(steps) > 400 else "a", ["a", END])
    options = with_handler(PrefactorCallbackHandler(run), recursion_limit=10_000)
    built.compile().invoke(NOTHING, options)
    return "went on to its end"


@scenario
async def graph_in_a_thread_that_an_operator_stops() -> Notes:
    async with handler() as (_, run):
        try:
            end = await asyncio.to_thread(looping_without_await, run)
        except* PrefactorTerminatedError as group:
            (error,) = group.exceptions
            end = f"stopped: {error.reason}"
    name = "graph_in_a_thread_that_an_operator_stops"
    return {name: run.id, f"{name}, end": end}


@scenario
async def graph_without_a_loop_that_an_operator_stops() -> Notes:
    """The scope of the run raises the error itself."""

    def work() -> Notes:
        name = "graph_without_a_loop_that_an_operator_stops"
        with open_prefactor_sync(config(langchain_types()[0])) as client:
            try:
                with client.agent_instance(AGENT, {"name": "Compat"}) as run:
                    end = looping_without_await(run)
            except PrefactorTerminatedError as error:
                end = f"stopped: {error.reason}"
        return {name: run.id, f"{name}, end": end}

    return await asyncio.to_thread(work)


@scenario
async def two_graphs_of_which_one_is_stopped() -> Notes:
    """Both runs are started in one task: the context alone does not tell them apart."""
    registry, _ = langchain_types()
    client = PrefactorCallbackHandler.create_client(config(registry))
    await client.initialize()
    graphs = [Looping(), Looping()]
    runs = [await started(client) for _ in graphs]
    going = [asyncio.create_task(each.go(run)) for each, run in zip(graphs, runs, strict=True)]
    for each in graphs:
        await each.is_going.wait()
    await asyncio.to_thread(terminate, runs[0].id)
    ends = [await going[0]]
    graphs[1].is_enough.set()
    ends.append(await going[1])
    for run in runs:
        await run.finish()
    await client.close()
    check(client)
    return {
        "stopped graph": runs[0].id,
        "graph beside a stopped one": runs[1].id,
        "stopped graph, end": ends[0],
        "graph beside a stopped one, end": ends[1],
    }


def never_closed() -> str:
    """The loop ends with the middleware open, and spans in it."""

    async def main() -> str:
        made = PrefactorMiddleware.from_config(
            api_url=URL, api_token="token-of-compat", agent_id=AGENT, agent_name="Compat"
        )
        run = await made.ensure_initialized()
        await ask([made], calls("K2"), answer())
        await made.abefore_agent(QUESTION, None)
        kept.append(made)
        return run.id

    kept: list[Any] = []
    return asyncio.run(main())


class Expected(logging.Filter):
    """Drops what is to be logged: errors of the user's code, and terminations.

    ``terminations``: how many runs were logged as terminated.
    """

    terminations = 0

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        self.terminations += message.startswith("the Prefactor API has terminated")
        return not message.startswith(
            (
                "Model call failed",
                "Tool call failed",
                "the Prefactor API has terminated",
                "Error in PrefactorCallbackHandler.on_chain_start callback: PrefactorTerminated",
            )
        )


def main(names: list[str]) -> None:
    logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
    expected = Expected()
    logging.getLogger().handlers[0].addFilter(expected)
    report: Notes = {}
    for name, function in SCENARIOS.items():
        if not names or name in names:
            try:
                report |= asyncio.run(asyncio.wait_for(function(), 120))
            except BaseException as error:
                raise RuntimeError(f"in {name}: {error!r}") from error
    if not names or "never_closed" in names:
        report["never_closed"] = never_closed()
    report["terminations logged"] = str(expected.terminations)
    print(json.dumps(report))


main(sys.argv[2:])
