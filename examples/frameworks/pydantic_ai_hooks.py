"""pydantic-ai: hooks record each model request and tool call of an agent.

    pip install '.[local]' pydantic-ai-slim
    python examples/frameworks/pydantic_ai_hooks.py

pydantic-ai wraps hooks around each step: a hook has a block, so an ordinary span fits, with its
error or cancellation. It is the current span inside, and the spans of the steps nest of themselves,
also those of tools that run at the same time.

One ``Hooks`` object serves every run: each hook asks ``current_instance()`` for the run of the
calling task.

It records in memory, asks a model that knows its answers, and prints what was stored. An
application says ``open_prefactor()`` in place of ``recording.open()``.

It leaves this tree::

    complete
    agent:run complete
      agent:llm_call complete
      agent:tool_call complete
      agent:tool_call failed
      agent:llm_call complete
"""

from __future__ import annotations

from typing import Any

import anyio
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.capabilities import Hooks
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from prefactor_core import AgentInstanceHandle, current_instance
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    LLMCall,
    LLMResult,
    TokenUsage,
    ToolCall,
    ToolResult,
    standard_types,
)
from prefactor_core.testing import open_recording

# --- the hooks

hooks: Hooks[Any] = Hooks()
ROLES = {"system-prompt": "system", "user-prompt": "user", "text": "assistant"}


def run_of_this_task() -> AgentInstanceHandle:
    instance = current_instance()
    assert instance is not None, "run the agent inside of client.agent_instance()"
    return instance


@hooks.on.run
async def record_run(ctx: Any, *, handler: Any) -> Any:
    async with run_of_this_task().span(AgentRun(input=ctx.prompt)) as span:
        result = await handler()
        span.set_result(AgentRunResult(output=result.output))
    return result


@hooks.on.model_request
async def record_model_request(ctx: Any, *, request_context: Any, handler: Any) -> ModelResponse:
    messages = [
        {"role": ROLES.get(part.part_kind, "tool"), "content": str(part.content)}
        for message in request_context.messages
        for part in message.parts
        if hasattr(part, "content")
    ]
    call = LLMCall(model=request_context.model.model_name, messages=messages)
    async with run_of_this_task().span(call) as span:
        response: ModelResponse = await handler(request_context)
        usage = response.usage
        result = LLMResult(
            response=response.text,
            tool_calls=[{"name": call.tool_name} for call in response.tool_calls],
            finish_reason=response.finish_reason,
            token_usage=TokenUsage(
                prompt_tokens=usage.input_tokens, completion_tokens=usage.output_tokens
            ),
        )
        span.set_result(result)
    return response


@hooks.on.tool_execute
async def record_tool(
    ctx: Any, *, call: ToolCallPart, tool_def: Any, args: dict[str, Any], handler: Any
) -> Any:
    step = ToolCall(tool=call.tool_name, arguments=args, call_id=call.tool_call_id)
    async with run_of_this_task().span(step) as span:
        output = await handler(args)
        span.set_result(ToolResult(output=output))
    return output


# --- an agent, and a model that knows its answers


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Ask for two tools at once, then answer."""
    if len(messages) == 1:
        mountains = ("K2", "Olympus Mons")
        return ModelResponse(parts=[ToolCallPart("height", {"mountain": m}) for m in mountains])
    return ModelResponse(parts=[TextPart("K2 is 8611 m high.")])


agent = Agent(FunctionModel(answer, model_name="small-1"), capabilities=[hooks])


@agent.tool_plain
async def height(mountain: str) -> int:
    """The height of a mountain in metres."""
    if mountain != "K2":
        await anyio.sleep(0.01)
        raise ModelRetry(f"{mountain} is unknown")
    return 8611


async def main() -> None:
    with open_recording() as recording:
        async with recording.open(schema_registry=standard_types()) as client:
            async with client.agent_instance("pydantic-ai", {"name": "Guide"}):
                await agent.run("Which is higher, K2 or Olympus Mons?")
        print(recording.run.outline)


if __name__ == "__main__":
    anyio.run(main)
