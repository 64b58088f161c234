"""OpenAI Agents: hooks record each agent, model call and tool call of a run.

    pip install '.[local]' openai-agents
    python examples/frameworks/openai_agents_hooks.py

``RunHooks`` has a method for the begin of a step and another one for its end. Both are awaited in
the run's tasks, those of parallel tools in tasks of their own: ``begin()`` and ``end()`` need no
block around the step. The hooks of a tool have its call id, so that parallel calls of one tool are
told apart.

One hooks object records one ``Runner.run()``. A step that raises has no end hook: its span ends
with the run, ``failed`` with the error that leaves the block of ``agent_instance()``.

When Prefactor terminates the run, that block is cancelled, and the agent in it. A trace processor
could not stop the agent: the SDK swallows what it raises.

It records in memory, asks a model that knows its answers, and prints what was stored. An
application says ``open_prefactor()`` in place of ``recording.open()``.

It leaves this tree::

    complete
    agent:run complete
      agent:llm_call complete
      agent:tool_call complete
      agent:tool_call complete
      agent:llm_call complete
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from agents import Agent, Model, ModelResponse, RunHooks, Runner, Usage, function_tool
from agents import set_tracing_disabled as set_openai_tracing_disabled
from agents.tool_context import ToolContext
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from prefactor_core import AgentInstanceHandle, SpanContext
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


class PrefactorHooks(RunHooks[None]):
    """Records one ``Runner.run()`` as spans of ``instance``."""

    def __init__(self, instance: AgentInstanceHandle, question: object) -> None:
        self._instance = instance
        self._question = question
        self._agent: SpanContext[Any] | None = None
        self._open: dict[object, SpanContext[Any]] = {}

    def _begin(self, key: object, step: Any) -> None:
        parent_id = None if self._agent is None else self._agent.id
        self._open[key] = self._instance.span(step, parent_id).begin()

    async def on_agent_start(self, context: Any, agent: Agent[None]) -> None:
        step = AgentRun(agent=agent.name, input=self._question)
        self._agent = self._instance.span(step).begin()

    async def on_agent_end(self, context: Any, agent: Agent[None], output: Any) -> None:
        if self._agent is not None:
            self._agent.end(result=AgentRunResult(output=output))

    async def on_handoff(
        self, context: Any, from_agent: Agent[None], to_agent: Agent[None]
    ) -> None:
        if self._agent is not None:  # the agent that hands off has no end hook
            self._agent.end(result=AgentRunResult(output=f"handed off to {to_agent.name}"))

    async def on_llm_start(
        self, context: Any, agent: Agent[None], system_prompt: str | None, input_items: list[Any]
    ) -> None:
        call = LLMCall(model=str(agent.model), system=system_prompt, messages=input_items)
        self._begin("llm", call)

    async def on_llm_end(self, context: Any, agent: Agent[None], response: ModelResponse) -> None:
        items = [item.model_dump() for item in response.output]
        usage = response.usage
        result = LLMResult(
            response="".join(
                part["text"] for item in items for part in item.get("content") or () if part
            ),
            tool_calls=[item for item in items if item["type"] == "function_call"],
            token_usage=TokenUsage(
                prompt_tokens=usage.input_tokens, completion_tokens=usage.output_tokens
            ),
        )
        self._open.pop("llm").end(result=result)

    async def on_tool_start(self, context: Any, agent: Agent[None], tool: Any) -> None:
        assert isinstance(context, ToolContext)
        arguments = json.loads(context.tool_arguments or "{}")
        call = ToolCall(tool=tool.name, arguments=arguments, call_id=context.tool_call_id)
        self._begin(context.tool_call_id, call)

    async def on_tool_end(self, context: Any, agent: Agent[None], tool: Any, result: Any) -> None:
        self._open.pop(context.tool_call_id).end(result=ToolResult(output=result))


# --- an agent, and a model that knows its answers


@function_tool
async def height(mountain: str) -> int:
    """The height of a mountain in metres."""
    return {"K2": 8611, "Lhotse": 8516}[mountain]


class FakeModel(Model):
    """Asks for two tools at once, then answers."""

    def __init__(self) -> None:
        self._answers = iter(
            [
                [self._call("call-1", "K2"), self._call("call-2", "Lhotse")],
                [self._text("K2, by 95 m.")],
            ]
        )

    def _call(self, call_id: str, mountain: str) -> ResponseFunctionToolCall:
        return ResponseFunctionToolCall(
            type="function_call",
            call_id=call_id,
            name="height",
            arguments=json.dumps({"mountain": mountain}),
        )

    def _text(self, text: str) -> ResponseOutputMessage:
        content = ResponseOutputText(type="output_text", text=text, annotations=[])
        return ResponseOutputMessage(
            id="1", type="message", role="assistant", status="completed", content=[content]
        )

    def __str__(self) -> str:
        return "small-1"

    async def get_response(self, *arguments: Any, **options: Any) -> ModelResponse:
        usage = Usage(requests=1, input_tokens=11, output_tokens=5, total_tokens=16)
        return ModelResponse(output=[*next(self._answers)], usage=usage, response_id=None)

    def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


async def main() -> None:
    set_openai_tracing_disabled(True)  # it would ask for a key
    agent = Agent[None](name="Guide", instructions="Be brief.", model=FakeModel(), tools=[height])
    question = "Which is higher, K2 or Lhotse?"
    with open_recording() as recording:
        async with recording.open(schema_registry=standard_types()) as client:
            async with client.agent_instance("openai-agents", {"name": "Guide"}) as instance:
                await Runner.run(agent, question, hooks=PrefactorHooks(instance, question))
        print(recording.run.outline)


if __name__ == "__main__":
    anyio.run(main)
