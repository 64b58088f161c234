"""Typed spans as type checkers see them: checked, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from typing import TypedDict, assert_type

from msgspec import Struct
from pydantic import BaseModel

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    SchemaRegistry,
    SpanContext,
    SpanParams,
    SpanType,
    SyncPrefactorClient,
    span,
    traced,
)
from prefactor_core.schema_registry.type_schema import Fields
from prefactor_core.span_types import (
    AgentRun,
    Document,
    LLMCall,
    LLMResult,
    Retrieval,
    ToolCall,
    ToolResult,
)

registry = SchemaRegistry()


class Answer(Struct):
    response: str


class Other(Struct):
    n: int


@registry.span_type("agent:ask", template="{{prompt}} → {{response}}")
class Ask(Struct, SpanParams[Answer]):
    prompt: str


@registry.span_type("agent:search")
@dataclass
class Search(SpanParams[Answer]):
    query: str


class Plain(Struct):
    prompt: str


class Model(BaseModel):
    prompt: str


class AskModel(BaseModel, SpanParams[Answer]):
    prompt: str


class Step(TypedDict):
    prompt: str


class Done(TypedDict):
    response: str


step = registry.register_type("agent:step", params=Step, result=Done)
plain = registry.register_type("agent:plain", params=Plain, result_schema={"type": "object"})


def registered() -> None:
    model = registry.register_type("agent:model", params=Model, result=Model)
    assert_type(model, SpanType[Model, Model])
    assert_type(step, SpanType[Step, Done])
    assert_type(plain, SpanType[Plain, Mapping[str, object]])
    assert_type(registry.register_type("agent:x", {"type": "object"}), None)
    assert_type(Ask("Hello"), Ask)
    registry.register_type("agent:x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    registry.register_type("agent:x", params=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    registry.span_type("agent:x")(3)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


async def of_a_class_that_says_its_result(instance: AgentInstanceHandle) -> None:
    async with instance.span(Ask(prompt="Hello"), parent_span_id="…") as span:
        assert_type(span, SpanContext[Answer])
        span.set_result(Answer(response="Hi"))
        await span.complete(Answer(response="Hi"))
        await span.fail({"reason": "away"})
        span.set_result(Other(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        span.set_result({"response": "Hi"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Ask(promt="Hello")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with instance.span(Search("Olympus")) as search:
        assert_type(search, SpanContext[Answer])


async def of_any_other_class(client: PrefactorCoreClient, instance: AgentInstanceHandle) -> None:
    async with instance.span(Plain("Hello")) as span:
        assert_type(span, SpanContext[Mapping[str, object] | Fields])
        span.set_result(Answer("Hi"))
        span.set_result({"response": "Hi"})
        span.set_result(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with instance.span(Model(prompt="Hello")) as model:
        assert_type(model, SpanContext[Mapping[str, object] | Fields])
        model.set_result(Model(prompt="Hello"))
    assert_type(client.span(instance.id, AskModel(prompt="Hello")), SpanContext[Answer])
    assert_type(client.span(instance.id, Ask("Hello")), SpanContext[Answer])
    with instance.span("agent:ask", payload=Plain("Hello")) as named:
        named.start_nowait(Plain("Hello"))
    assert_type(await instance.create_span(Ask("Hello")), str)
    instance.span(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    instance.span(Ask("Hello"), payload={})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def in_synchronous_code(client: SyncPrefactorClient, instance: AgentInstanceHandle) -> None:
    assert_type(client.span(instance.id, Ask("Hello")), SpanContext[Answer])
    assert_type(client.span(instance.id, "agent:ask", payload={"n": 1}), SpanContext)


@traced
async def bare(query: str, limit: int = 3) -> list[str]:
    return [query] * limit


@traced()
def with_parentheses(text: str) -> int:
    return len(text)


@traced(exclude=("key",))
def with_options(text: str, key: str) -> int:
    return len(text)


@traced(LLMCall, model="small-1", capture_result=False)
async def model(prompt: str) -> LLMResult:
    return LLMResult(response=prompt)


@traced(LLMCall, model="small-1", reduce="".join)
async def model_stream(prompt: str) -> AsyncGenerator[str]:
    yield prompt


@traced(ToolCall)
def tool(call_id: str) -> Generator[str, int, bool]:
    yield call_id
    return True


@traced(Retrieval, source="atlas")
def retrieval(query: str) -> list[Document]:
    return [Document(text=query)]


class Agent:
    @traced(AgentRun)
    def run(self, question: str) -> str:
        return question

    @traced
    def bare(self, n: int) -> int:
        return n

    @classmethod
    @traced
    def of_the_class(cls, n: int) -> int:
        return n

    @staticmethod
    @traced
    def static(n: int) -> int:
        return n


async def decorated(instance: AgentInstanceHandle) -> None:
    assert_type(await bare("x", limit=2), list[str])
    assert_type(with_parentheses("x"), int)
    assert_type(with_options("x", key="k"), int)
    assert_type(await model("x"), LLMResult)
    assert_type(model_stream("x"), AsyncGenerator[str])
    assert_type(tool("c"), Generator[str, int, bool])
    assert_type(retrieval("q"), list[Document])
    assert_type(Agent().run("q"), str)
    assert_type(Agent().bare(1), int)
    assert_type(Agent.of_the_class(1), int)
    assert_type(Agent.static(1), int)
    assert_type(instance.traced(with_parentheses)("x"), int)
    assert_type(instance.traced()(with_parentheses)("x"), int)
    assert_type(instance.traced(ToolCall, tool="t")(with_parentheses)("x"), int)
    bare(3)  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    model()  # type: ignore[call-arg, unused-coroutine]  # pyright: ignore[reportCallIssue]
    Agent().bare("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    traced(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    traced("agent:tool", model="m")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    traced(LLMCall, exclude=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def of_the_current_run() -> None:
    async with span(LLMCall(model="small-1", prompt="Hello"), parent_span_id="…") as call:
        assert_type(call, SpanContext[LLMResult])
        call.set_result(LLMResult(response="Hi"))
        call.set_result({"response": "Hi"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with span("agent:own", payload={"n": 1}) as own:
        assert_type(own, SpanContext)
    with span(Plain("Hello")) as other:
        assert_type(other, SpanContext[Mapping[str, object] | Fields])
    span(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def without_a_block(instance: AgentInstanceHandle) -> None:
    begun = instance.span(LLMCall(model="small-1"), parent_span_id="…").begin()
    assert_type(begun, SpanContext[LLMResult])
    begun.end("complete", LLMResult(response="Hi"))
    begun.end("failed", {"reason": "away"}, error=ValueError())
    begun.end(result=ToolResult(output=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(instance.span(step({"prompt": "Hello"})).begin(), SpanContext[Done])
    assert_type(instance.span("agent:own").begin(), SpanContext)
    assert_type(span(ToolCall(tool="t")).begin(), SpanContext[ToolResult])
    assert_type(await instance.create_span(LLMCall(model="small-1")), str)
    await instance.finish_span("…", LLMResult(response="Hi"), status="complete")


async def of_a_span_type(instance: AgentInstanceHandle) -> None:
    async with instance.span(step({"prompt": "Hello"})) as span:
        assert_type(span, SpanContext[Done])
        span.set_result({"response": "Hi"})
        span.set_result({"respons": "Hi"})  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]
    instance.span(step({"promt": "Hello"}))  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]


async def of_a_name(instance: AgentInstanceHandle) -> None:
    async with instance.span("agent:ask") as span:
        assert_type(span, SpanContext)
        assert_type(span, SpanContext[Mapping[str, object]])
        span.set_result({"response": "Hi"})
        span.set_result(Answer("Hi"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
