"""Quick start: a client, a run, and spans inside it.

    python examples/quick_start.py

One client lives as long as the program records. One run stands for one task of the agent. Each
step is a span. A span opened inside another one becomes its child. It ends with its block:
``complete``, ``failed`` if the block raises, ``cancelled`` if the block is cancelled.

A span can be opened by its typed parameters, here ``LLMCall``, or by the name of its type with a
payload, here ``"agent:lookup"``. A type checker knows the fields of the first; the second takes
any mapping.

The program records in memory, and nothing is kept. To keep the run and look at it::

    PREFACTOR_API_URL=local:runs.db python examples/quick_start.py
    python -m prefactor_core tree quick-start --api-url local:runs.db

``show`` cuts the lines to the width of a terminal, writes whole lines into a pipe, and escapes
characters that the terminal does not have.

It leaves this tree::

    complete
    agent:run complete
      agent:llm_call complete
      agent:lookup failed
      agent:llm_call complete
"""

from __future__ import annotations

import os
import sys

import anyio

from prefactor_core import AgentInstanceHandle, open_prefactor
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    LLMCall,
    LLMResult,
    TokenUsage,
    standard_types,
)

API_URL = os.environ.get("PREFACTOR_API_URL") or "local::memory:"

registry = standard_types()
registry.register("agent:lookup", {"type": "object", "properties": {"word": {"type": "string"}}})


async def ask_model(instance: AgentInstanceHandle, prompt: str, answer: str) -> str:
    async with instance.span(LLMCall(model="small-1", prompt=prompt)) as span:
        await anyio.sleep(0.01)  # the model works
        usage = TokenUsage(prompt_tokens=len(prompt), completion_tokens=len(answer))
        span.set_result(LLMResult(response=answer, token_usage=usage))
    return answer


def look_up(instance: AgentInstanceHandle, word: str) -> str:
    """Synchronous code writes ``with``. The error is recorded, and goes on as it is."""
    with instance.span("agent:lookup", payload={"word": word}):
        raise LookupError(f"no entry for {word!r}")


async def translate(instance: AgentInstanceHandle, word: str) -> str:
    async with instance.span(AgentRun(input=word)) as run:
        text = await ask_model(instance, f"Translate {word!r}", "Gipfel")
        try:
            text = look_up(instance, text)
        except LookupError:
            text = await ask_model(instance, f"Check {text!r}", text)
        run.set_result(AgentRunResult(output=text))
    return text


async def main() -> None:
    async with open_prefactor(api_url=API_URL, schema_registry=registry) as client:
        async with client.agent_instance("quick-start", {"name": "Quick start"}) as instance:
            print("the agent answers:", await translate(instance, "summit"))
    # The block is left: all of it is delivered, or counted as dropped.
    statistics = client.statistics()
    print(f"{statistics.delivered} of {statistics.accepted} operations delivered")
    assert statistics.lost == 0


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
