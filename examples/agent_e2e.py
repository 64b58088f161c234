"""A research agent, recorded from end to end.

    python examples/agent_e2e.py --backend trio

It has three levels of spans: siblings that run at the same time, a tool that fails and is called
again, a step that is skipped, one that takes too long and is cancelled, and a check that names
its parent.

It records into the database file prefactor.db, without an account. With PREFACTOR_API_URL and
PREFACTOR_API_TOKEN in the environment it records to that API; PREFACTOR_AGENT_ID names the
agent. ``python -m prefactor_core demo`` runs the same, and shows what was stored.
"""

from __future__ import annotations

import argparse
import os
import sys

import anyio

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreError,
    SpanContext,
    open_prefactor,
)
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    Document,
    LLMCall,
    LLMResult,
    Retrieval,
    RetrievalResult,
    TokenUsage,
    ToolCall,
    ToolResult,
)


async def call_llm(instance: AgentInstanceHandle, prompt: str, response: str) -> str:
    """A span that starts and ends with its block."""
    async with instance.span(LLMCall(model="small-1", prompt=prompt)) as span:
        await anyio.sleep(0.02)  # the model thinks
        usage = TokenUsage(prompt_tokens=len(prompt), completion_tokens=len(response))
        span.set_result(LLMResult(response=response, finish_reason="stop", token_usage=usage))
    return response


async def retrieve(instance: AgentInstanceHandle, query: str) -> None:
    """A span by its three steps: enter, start, complete."""
    async with instance.span(Retrieval(query=query)) as span:
        await span.start()
        await anyio.sleep(0.01)
        parts = [Document(text=f"{query}, part {n}") for n in (1, 2)]
        await span.complete(RetrievalResult(documents=parts))


def convert_units(instance: AgentInstanceHandle, value: str) -> float:
    """A tool in synchronous code: plain ``with``. It fails on a text that is not a number."""
    with instance.span(ToolCall(tool="convert_units", arguments={"value": value})) as span:
        metres = float(value) * 1000
        span.set_result(ToolResult(output=metres))
        return metres


async def research(instance: AgentInstanceHandle) -> SpanContext[ToolResult]:
    async with instance.span(ToolCall(tool="research")) as span:
        # Tasks that are started inside a span open their spans below it.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(retrieve, instance, "height of Olympus Mons")
            tasks.start_soon(retrieve, instance, "height of Mount Everest")
        try:
            convert_units(instance, "twenty-two")  # recorded as failed, with its error
        except ValueError:
            convert_units(instance, "22")
    return span


async def answer(instance: AgentInstanceHandle, question: str) -> None:
    async with instance.span(AgentRun(input=question)) as run:
        await call_llm(instance, f"Plan: {question}", "look both up, compare")
        researched = await research(instance)

        with anyio.move_on_after(0.05):  # the tool is too slow: recorded as cancelled
            async with instance.span(ToolCall(tool="slow_archive")):
                await anyio.sleep_forever()

        async with instance.span(Retrieval(query="a second opinion")) as step:
            await step.cancel()  # the step is not needed: recorded as one that never began

        # The parent is named, since it is not the innermost open span; so is the span type.
        check = {"tool": "check_sources"}
        async with instance.span("agent:tool_call", researched.id, payload=check) as span:
            span.set_result({"output": 4})

        text = await call_llm(instance, "Write the answer", "Olympus Mons, by 13 km")
        run.set_result(AgentRunResult(output=text))


async def run_agent(api_url: str | None, agent_id: str) -> str:
    """Run the agent once, and give the id of the recorded agent instance."""
    async with open_prefactor(api_url=api_url) as client:
        async with client.agent_instance(
            agent_id=agent_id,
            agent_version={"name": "Research agent", "external_identifier": "v1.0.0"},
            # By default a refused run goes on unrecorded. This one has no other purpose.
            on_refused="raise",
        ) as instance:
            await answer(instance, "Which mountain is higher?")
    return instance.id


def default_api_url() -> str:
    """The API of the environment, or else a database file here."""
    return os.environ.get("PREFACTOR_API_URL") or "local:prefactor.db"


def main() -> None:
    parser = argparse.ArgumentParser(description="A research agent, recorded from end to end.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--api-url", default=default_api_url())
    parser.add_argument("--agent-id", default=os.environ.get("PREFACTOR_AGENT_ID", "research"))
    options = parser.parse_args()
    try:
        instance_id = anyio.run(
            run_agent, options.api_url, options.agent_id, backend=options.backend
        )
    except PrefactorCoreError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"recorded agent instance {instance_id} at {options.api_url}")


if __name__ == "__main__":
    main()
