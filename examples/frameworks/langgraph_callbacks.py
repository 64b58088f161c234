"""LangGraph: a callback handler records each node, model and tool of a graph.

    pip install '.[local]' langgraph
    python examples/frameworks/langgraph_callbacks.py

LangChain and LangGraph call a handler when a step begins and again when it ends, and name each step
and its parent by a UUID. So ``begin()`` opens a span without a block, and ``end()`` ends it,
perhaps in another thread: nodes that are no coroutines run in one.

``run_inline`` has an asynchronous graph call the handler in the task of the step. ``raise_error``
lets an error of the handler reach the graph: there is one, ``PrefactorTerminatedError``, when
Prefactor has terminated the run. No other error leaves a span. The handler is no
``AsyncCallbackHandler``: LangChain swallows the errors of such a one in a synchronous ``invoke()``.

(Prefactor's own adapter is on PyPI, as prefactor-langchain.)

It records in memory and prints what was stored. An application says ``open_prefactor()`` in place
of ``recording.open()``.

It leaves this tree::

    complete
    agent:run complete
      langgraph:node complete
        agent:llm_call complete
      langgraph:node complete
        agent:tool_call complete
      langgraph:node complete
        agent:tool_call failed
      langgraph:node complete
        agent:llm_call complete
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict
from uuid import UUID

import anyio
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.outputs import LLMResult as ModelAnswer
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph

from prefactor_core import AgentInstanceHandle, SpanContext
from prefactor_core.span_types import (
    AgentRun,
    AgentRunResult,
    LLMCall,
    LLMResult,
    ToolCall,
    ToolResult,
    standard_types,
)
from prefactor_core.testing import open_recording

# --- the handler


class PrefactorCallbacks(BaseCallbackHandler):
    """Records the steps of a graph as spans of ``instance``."""

    run_inline = True
    raise_error = True

    def __init__(self, instance: AgentInstanceHandle) -> None:
        self._instance = instance
        self._open: dict[UUID, SpanContext[Any]] = {}

    def _begin(
        self, step: Any, run_id: UUID, parent_run_id: UUID | None, payload: Any = None
    ) -> None:
        parent = None if parent_run_id is None else self._open.get(parent_run_id)
        span = self._instance.span(step, None if parent is None else parent.id, payload)
        self._open[run_id] = span.begin()

    def _end(self, run_id: UUID, result: Any = None, error: BaseException | None = None) -> None:
        span = self._open.pop(run_id, None)
        if span is not None:
            span.end(result=result, error=error)

    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        if parent_run_id is None:
            self._begin(AgentRun(input=inputs), run_id, None)
        else:
            payload = {"name": kwargs.get("name"), "input": inputs}
            self._begin("langgraph:node", run_id, parent_run_id, payload)

    def on_chain_end(
        self, outputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        result = {"output": outputs} if parent_run_id else AgentRunResult(output=outputs)
        self._end(run_id, result)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        model = (metadata or {}).get("ls_model_name") or serialized["name"]
        asked: Any = convert_to_openai_messages(messages[0])
        self._begin(LLMCall(model=model, messages=asked), run_id, parent_run_id)

    def on_llm_end(self, response: ModelAnswer, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, LLMResult(response=response.generations[0][0].text))

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._begin(ToolCall(tool=serialized["name"], arguments=inputs), run_id, parent_run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, ToolResult(output=output))

    def _failed(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error=error)

    on_chain_error = on_llm_error = on_tool_error = _failed


# --- the graph


class State(TypedDict, total=False):
    question: str
    found: Annotated[list[str], lambda left, right: left + right]
    answer: str


model = FakeListChatModel(responses=["Look up both.", "K2, by 95 m."])


@tool
def height(mountain: str) -> int:
    """The height of a mountain in metres."""
    return {"K2": 8611}[mountain]


async def plan(state: State, config: RunnableConfig) -> State:
    await model.ainvoke(state["question"], config)
    return {}


def look_up(state: State, config: RunnableConfig) -> State:
    """A node that is no coroutine: LangGraph runs it in a thread."""
    return {"found": [f"K2: {height.invoke({'mountain': 'K2'}, config)}"]}


async def look_up_another(state: State, config: RunnableConfig) -> State:
    try:
        await height.ainvoke({"mountain": "Olympus Mons"}, config)
    except KeyError:
        return {"found": ["Olympus Mons: unknown"]}
    return {}


async def conclude(state: State, config: RunnableConfig) -> State:
    answer = await model.ainvoke("; ".join(state["found"]), config)
    return {"answer": str(answer.content)}


steps = StateGraph(State)
steps.add_sequence([plan, look_up, look_up_another, conclude])
steps.add_edge(START, "plan")
steps.add_edge("conclude", END)
graph = steps.compile()


async def main() -> None:
    registry = standard_types()
    registry.register("langgraph:node", {"type": "object"})
    with open_recording() as recording:
        async with recording.open(schema_registry=registry) as client:
            async with client.agent_instance("langgraph", {"name": "Graph"}) as instance:
                callbacks: list[Any] = [PrefactorCallbacks(instance)]
                await graph.ainvoke({"question": "Which is higher?"}, {"callbacks": callbacks})
        print(recording.run.outline)


if __name__ == "__main__":
    anyio.run(main)
