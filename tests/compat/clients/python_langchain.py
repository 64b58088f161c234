"""An agent of LangChain with prefactor-langchain's middleware, and a graph with its callback
handler. Argument: the URL of the API. Prints one line of JSON: the ids of the runs, and the error
that ended the terminated one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import urllib.request
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from prefactor_http.config import HttpClientConfig
from prefactor_langchain import (
    PrefactorCallbackHandler,
    PrefactorMiddleware,
    register_langchain_schemas,
)

from prefactor_core import PrefactorCoreConfig, SchemaRegistry

URL = sys.argv[1]
QUESTION = {"messages": [{"role": "user", "content": "How high is K2?"}]}


class Model(GenericFakeChatModel):
    """Answers what it is given, and lets tools be bound."""

    def bind_tools(self, tools: Any, **_options: Any) -> Any:
        return self


@tool
def height(mountain: str) -> str:
    """The height of a mountain in metres."""
    if mountain != "K2":
        raise ValueError(f"unknown mountain {mountain}")
    return "8611"


def terminate(run: str) -> None:
    """Terminate ``run``, as an operator does."""
    request = urllib.request.Request(
        f"{URL}/api/v1/agent_instance/{run}/terminate",
        json.dumps({"reason": "enough"}).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def call(mountain: str) -> AIMessage:
    asked = {"name": "height", "args": {"mountain": mountain}, "id": f"call-{mountain}"}
    usage = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
    return AIMessage(content="", tool_calls=[asked], usage_metadata=usage)


def agent(mountain: str, *middleware: Any) -> Any:
    model = Model(messages=iter([call(mountain), AIMessage(content="8611 m")]))
    return create_agent(model, tools=[height], middleware=middleware)


async def with_middleware(mountain: str) -> str:
    middleware = PrefactorMiddleware.from_config(
        api_url=URL, api_token="token-of-compat", agent_id="compat-langchain", agent_name="Compat"
    )
    run = (await middleware.ensure_initialized()).id
    with contextlib.suppress(ValueError):
        await agent(mountain, middleware).ainvoke(QUESTION)
    await middleware.close()
    return str(run)


async def with_callbacks() -> str:
    registry = SchemaRegistry()
    span_types = register_langchain_schemas(registry)
    http = HttpClientConfig(api_url=URL, api_token="token-of-compat")
    config = PrefactorCoreConfig(http_config=http, schema_registry=registry)
    client = PrefactorCallbackHandler.create_client(config)
    await client.initialize()
    version = {"name": "Compat", "external_identifier": "graph"}
    run = await client.create_agent_instance(agent_id="compat-graph", agent_version=version)
    await run.start()
    handler = PrefactorCallbackHandler(instance=run, tool_span_types=span_types)
    await agent("K2").ainvoke(QUESTION, config={"callbacks": [handler]})
    await run.finish()
    await client.close()
    return str(run.id)


async def stopped_by_an_operator() -> dict[str, str]:
    middleware = PrefactorMiddleware.from_config(
        api_url=URL, api_token="token-of-compat", agent_id="compat-langchain", agent_name="Compat"
    )
    run = str((await middleware.ensure_initialized()).id)

    @tool
    async def height(mountain: str) -> str:
        """The height of a mountain in metres."""
        await asyncio.to_thread(terminate, run)
        return "8611"

    # The signal comes with the answer to the finish of the tool's span, in the background: ask on.
    model = Model(messages=iter([call("K2") for _ in range(200)]))
    error = "none"
    try:
        looping = create_agent(model, tools=[height], middleware=[middleware])
        await looping.ainvoke(QUESTION, config={"recursion_limit": 10_000})
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    await middleware.close()
    return {"terminated": run, "error": error}


async def main() -> None:
    report = {
        "run": await with_middleware("K2"),
        "failing": await with_middleware("Olymp"),
        "graph": await with_callbacks(),
        **await stopped_by_an_operator(),
    }
    print(json.dumps(report))


asyncio.run(main())
