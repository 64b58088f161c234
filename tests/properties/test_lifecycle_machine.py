"""A rule machine drives spans and a run, against a model and against what the API stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.examples import examples
from support.harness import AGENT, StoredRun, make_config, open_faulty_api, stored_run

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    PrefactorValueError,
    SpanContext,
    SpanContextStack,
    Statistics,
    open_prefactor,
)

T = TypeVar("T")

NAMES = st.sampled_from(["agent:run", "agent:llm", "agent:tool"])
PAYLOADS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=2)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
TIMES = st.none() | st.sampled_from([PAST + timedelta(hours=hour) for hour in range(3)])
OUTCOMES = {"complete": "complete", "fail": "failed", "finish": "complete"}


class Host:
    """One task on a loop in another thread, which has a client open and executes commands.

    All is done in one context, so that open spans stand around what comes later.
    """

    client: PrefactorCoreClient
    instance: AgentInstanceHandle

    def __init__(self, backend: str) -> None:
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal(backend))
        self._send, self._receive = anyio.create_memory_object_stream[Any](0)
        ready: Future[None] = Future()
        self._ended = self._portal.start_task_soon(self._serve, ready)
        ready.result(10)

    async def _serve(self, ready: Future[None]) -> tuple[Statistics, StoredRun]:
        async with open_faulty_api() as api:
            async with open_prefactor(make_config(drain_timeout=0.5), asgi_app=api) as self.client:
                self.instance = await self.client.create_agent_instance(**AGENT)
                ready.set_result(None)
                async with self._receive:
                    async for action, done in self._receive:
                        try:
                            done.set_result(await action())
                        except Exception as error:
                            done.set_exception(error)
            return self.client.statistics(), await stored_run(api)

    def do(self, action: Callable[[], Awaitable[T]]) -> T:
        done: Future[T] = Future()
        self._portal.call(self._send.send, (action, done))
        return done.result(10)

    def instance_status(self) -> str:
        return repr(self.instance).split()[-1].rstrip(">")

    def end(self) -> tuple[Statistics, StoredRun]:
        with self._stack:
            self._portal.call(self._send.aclose)
            return self._ended.result(10)


@dataclass(eq=False)
class ModelSpan:
    """The expected record of a span."""

    name: str
    parent: ModelSpan | None
    payload: dict[str, int]
    context: SpanContext
    status: str = "entered"
    skipped: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    # As far as they were given.
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.status not in ("entered", "active")

    def start(self) -> None:
        if self.status == "entered":
            self.know_parent()
            self.status = "active"

    def cannot_end(self, at: datetime | None) -> bool:
        """Whether that would be before its start; what is not given is later than all that is."""
        if at is None or self.ended:
            return False
        return self.started_at is None or at < self.started_at

    def know_parent(self) -> None:
        """Ancestors that are open become known first."""
        if self.parent is not None and not self.parent.ended:
            self.parent.start()

    def end(self, status: str, result: dict[str, Any] | None = None) -> None:
        if not self.ended:
            self.start()
            self.result.update(result or {})
            self.status = status


class Lifecycles(RuleBasedStateMachine):
    """Subclasses name the backend."""

    backend = "asyncio"
    spans = Bundle("spans")

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(self.backend)
        self.model: list[ModelSpan] = []
        self.run_status = "pending"

    def open(self, name: str, payload: dict[str, int], parent: ModelSpan | None) -> ModelSpan:
        async def enter() -> SpanContext:
            parent_id = None if parent is None else parent.context.id
            context = self.host.instance.span(name, parent_id, payload)
            return await context.__aenter__()

        if parent is None:
            parent = next((span for span in reversed(self.model) if not span.ended), None)
        span = ModelSpan(name, parent, dict(payload), self.host.do(enter))
        self.model.append(span)
        return span

    @precondition(lambda self: self.run_status in ("pending", "active"))
    @rule(target=spans, name=NAMES, payload=PAYLOADS)
    def open_in_context(self, name: str, payload: dict[str, int]) -> ModelSpan:
        return self.open(name, payload, None)

    @precondition(lambda self: self.run_status in ("pending", "active"))
    @rule(target=spans, name=NAMES, payload=PAYLOADS, parent=spans)
    def open_below(self, name: str, payload: dict[str, int], parent: ModelSpan) -> ModelSpan:
        return self.open(name, payload, parent)

    @rule(span=spans, payload=st.none() | PAYLOADS, at=TIMES)
    def start(self, span: ModelSpan, payload: dict[str, int] | None, at: datetime | None) -> None:
        self.host.do(lambda: span.context.start(payload, started_at=at))
        if span.status == "entered":
            span.started_at = at
            if payload is not None:
                span.payload = payload
        span.start()

    @rule(span=spans, data=PAYLOADS)
    def set_result(self, span: ModelSpan, data: dict[str, int]) -> None:
        span.context.set_result(data)
        if not span.ended:
            span.result.update(data)

    @rule(span=spans, way=st.sampled_from(["complete", "fail"]), result=PAYLOADS, at=TIMES)
    def end_with_result(
        self, span: ModelSpan, way: str, result: dict[str, int], at: datetime | None
    ) -> None:
        async def end() -> None:
            await getattr(span.context, way)(result, timestamp=at)

        if span.cannot_end(at):
            with pytest.raises(PrefactorValueError, match="before the start"):
                self.host.do(end)
            return
        self.host.do(end)
        if not span.ended:
            span.finished_at = at
        span.end(OUTCOMES[way], result)

    @rule(span=spans)
    def finish(self, span: ModelSpan) -> None:
        self.host.do(span.context.finish)
        span.end("complete")

    @rule(span=spans, at=TIMES)
    def cancel(self, span: ModelSpan, at: datetime | None) -> None:
        async def cancel() -> None:
            await span.context.cancel(timestamp=at)

        # What was skipped never began.
        if span.status == "active" and span.cannot_end(at):
            with pytest.raises(PrefactorValueError, match="before the start"):
                self.host.do(cancel)
            return
        self.host.do(cancel)
        if not span.ended:
            span.finished_at = at
        if span.status == "entered":
            span.know_parent()
            span.skipped = True
            span.status = "cancelled"
        span.end("cancelled")

    @rule(
        span=spans,
        error=st.sampled_from(
            [None, ValueError("boom"), asyncio.CancelledError(), GeneratorExit()]
        ),
    )
    def leave(self, span: ModelSpan, error: BaseException | None) -> None:
        async def leave() -> None:
            await span.context.__aexit__(type(error) if error else None, error, None)

        self.host.do(leave)
        if isinstance(error, ValueError):
            span.end("failed", {"error": "ValueError: boom"})
        else:
            span.end("complete" if error is None else "cancelled")

    @rule()
    def start_run(self) -> None:
        self.host.do(self.host.instance.start)
        if self.run_status == "pending":
            self.run_status = "active"

    @rule(status=st.sampled_from(["complete", "failed", "cancelled"]))
    def finish_run(self, status: Any) -> None:
        self.host.do(lambda: self.host.instance.finish(status))
        if self.run_status in ("pending", "active"):
            self.end_run(status)

    def end_run(self, status: str) -> None:
        for span in reversed(self.model):
            span.end("cancelled")
        self.run_status = status

    @invariant()
    def a_run_has_started_before_anything_of_it_is_stored(self) -> None:
        if self.run_status == "pending" and any(
            span.skipped or span.status != "entered" for span in self.model
        ):
            self.run_status = "active"
        assert self.host.instance_status() == self.run_status

    @invariant()
    def the_open_spans_are_those_of_the_model(self) -> None:
        async def stack() -> list[str]:
            return SpanContextStack.get_stack()

        assert self.host.do(stack) == [s.context.id for s in self.model if not s.ended]

    def teardown(self) -> None:
        statistics, run = self.host.end()
        if self.run_status in ("pending", "active"):
            began = self.run_status == "active" or self.model
            self.end_run("complete" if began else "cancelled")
        assert statistics.lost == 0, statistics
        assert run.status == self.run_status
        for model in self.model:
            span = run.spans[model.context.id]
            started, finished = (
                at and datetime.fromisoformat(at) for at in (span.started_at, span.finished_at)
            )
            assert model.started_at in (None, started)
            assert model.finished_at in (None, finished)
            assert finished
            assert not started or started <= finished
        stored = {
            span.id: (
                span.name,
                span.parent_id,
                span.status,
                span.started_at is None,
                span.payload,
                flat(span.result),
            )
            for span in run.spans.values()
        }
        assert stored == {
            span.context.id: (
                span.name,
                span.parent.context.id if span.parent else None,
                span.status,
                span.skipped,
                span.payload,
                span.result,
            )
            for span in self.model
        }


def flat(result: dict[str, Any] | None) -> dict[str, Any]:
    """A stored result, with its error in one line."""
    if result and "error" in result:
        error = result["error"]
        return {**result, "error": f"{error['type']}: {error['message']}"}
    return result or {}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_any_life_of_a_run_is_stored_as_the_model_has_it(backend: str) -> None:
    machine = type("LifecyclesOn", (Lifecycles,), {"backend": backend})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples(60), stateful_step_count=30)
    )
