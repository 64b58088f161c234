"""An agent that performs a script, and says in a file what it has recorded; it may be killed."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct
from support.crash_points import KillingApi, Points
from support.crash_scripts import Away, Both, Crash, Flush, Life, Pause, Quality, Run, Span, Step
from support.harness import AGENT, FaultyApi, make_config, make_registry

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorCoreClient,
    SchemaRegistry,
    open_prefactor,
)
from prefactor_core.local import open_local_prefactor
from prefactor_core.local.faults import Faults
from prefactor_core.operations.identifiers import generate

DATABASE, JOURNALS = "prefactor.db", "journals"
MOST_BYTES = 20_000
"""The largest body of a request that the API takes."""
QUALITIES = [f"quality-{number}" for number in range(20)]


class PlannedError(Exception):
    """The error of a span or run that fails."""


class Fact(Struct, tag=True):
    """What the agent records. ``done``: whether the recording call has returned."""

    done: bool


class Registered(Fact):
    run: str


class Finished(Fact):
    run: str
    status: str


class Opened(Fact):
    """``parent``: the name of the innermost span; None for a root. ``payload``: that of a large
    span has no text here; an earlier one may be stored if the recording was not done."""

    span: str
    run: str
    kind: str
    parent: str | None
    payload: dict[str, Any]


class Ended(Fact):
    span: str
    status: str


class Rated(Fact):
    run: str
    name: str


AnyFact = Registered | Finished | Opened | Ended | Rated


class Agent:
    """Performs one life of a crash, in ``folder``."""

    def __init__(self, crash: Crash, place: int, folder: Path) -> None:
        self._crash = crash
        self._life = crash.lives[place] if place < len(crash.lives) else Life()
        self._place = place
        self._folder = folder
        self._facts = os.open(folder / f"{place}.facts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = itertools.count()
        self._ratings = itertools.count()
        self._api: FaultyApi
        self._client: PrefactorCoreClient

    def live(self) -> None:
        """Perform the life, unless it ends before."""
        logging.basicConfig(level=logging.WARNING)
        points = Points(self._life.kill, str(self._folder / f"{self._place}.death"))
        points.watch(Agent.note.__code__)
        anyio.run(self._live, points, backend=self._crash.backend)

    async def _live(self, points: Points) -> None:
        crash, life = self._crash, self._life
        faults = Faults(given_ids=crash.given_ids, bulk=crash.has_bulk, max_body_bytes=MOST_BYTES)
        config = make_config(
            http={"max_retry_delay": 0.05, "max_retries": 50},
            queue={
                "retry_delay_base": 0.01,
                "batch_window": 0.002,
                "max_batch_operations": crash.most,
                "report_after": 0.0 if crash.report_at_once else math.inf,
            },
            registration_timeout=0.05 if life.is_away else 5.0,
            drain_timeout=15.0,
            journal=self._folder / JOURNALS,
            journal_sync=crash.sync,
            journal_max_bytes=1_000_000,  # the least: a file for each 250,000
            schema_registry=_registry(),
        )
        async with open_local_prefactor(str(self._folder / DATABASE), faults=faults) as app:
            self._api = FaultyApi(app, faults={"agent_spans": _refuse}, away=life.is_away)
            async with open_prefactor(config, asgi_app=KillingApi(self._api, points)) as client:
                self._client = client
                async with anyio.create_task_group() as tasks:
                    for number, run in enumerate(life.runs):
                        if life.together:
                            tasks.start_soon(self._run, number, run)
                        else:
                            await self._run(number, run)
                if life.is_away and not life.runs:
                    await anyio.sleep(0.02)
                self._api.away = False

    async def _run(self, number: int, run: Run) -> None:
        name = f"agent-{self._place}-{number}"
        agent = {**AGENT, "agent_id": name}
        work = _Work(self, name)
        # Spans that end with the run have its error, if there is one.
        work.end_of_left = "failed" if (run.form, run.end) == ("scope", "failed") else "cancelled"
        if run.form == "scope":
            scope = self._client.agent_instance(**agent)
            try:
                with anyio.CancelScope() as cancelling:
                    self.note(Registered(False, name))
                    async with scope as handle:
                        self.note(Registered(True, name))
                        await work.perform(handle, run.steps)
                        work.note_end(run.end, done=False)
                        if run.end == "failed":
                            raise PlannedError
                        if run.end == "cancelled":
                            cancelling.cancel()
                            await anyio.sleep_forever()
            except PlannedError:
                pass
            work.note_end(run.end, done=True)
        else:
            with self.noting(Registered(True, name)):
                handle = await self._client.create_agent_instance(**agent)
            await handle.start()
            await work.perform(handle, run.steps)
            work.note_end(run.end, done=False)
            await handle.finish(run.end)
            work.note_end(run.end, done=True)

    @contextmanager
    def noting(self, fact: AnyFact) -> Generator[None]:
        fact.done = False
        self.note(fact)
        yield
        fact.done = True
        self.note(fact)

    def note(self, fact: AnyFact) -> None:
        os.write(self._facts, msgspec.json.encode(fact) + b"\n")


class _Work:
    """One task of a run. ``open``: the names of its open spans, innermost last."""

    def __init__(self, agent: Agent, run: str, open: tuple[str, ...] = ()) -> None:
        self._agent = agent
        self._run = run
        self._open = [*open]
        # Those that end with the run, and how.
        self._left: list[str] = []
        self.end_of_left = "cancelled"

    def note_end(self, status: str, *, done: bool) -> None:
        for span in self._left:
            self._agent.note(Ended(done, span, self.end_of_left))
        self._agent.note(Finished(done, self._run, status))

    async def perform(self, run: AgentInstanceHandle, steps: tuple[Step, ...]) -> None:
        agent = self._agent
        for step in steps:
            match step:
                case Span(form="thread"):
                    opened = self._opened(step)
                    await anyio.to_thread.run_sync(self._in_thread, run, step, opened)
                case Span():
                    await self._span(run, step)
                case Quality():
                    name = QUALITIES[next(agent._ratings) % len(QUALITIES)]
                    with agent.noting(Rated(True, self._run, name)):
                        await run.record_quality(name, {"name": name})
                case Pause():
                    await anyio.sleep(0.002)
                case Flush():
                    with anyio.move_on_after(0.3):
                        await agent._client.flush()
                case Away(over=over):
                    agent._api.away = not over
                case Both(first, second):
                    async with anyio.create_task_group() as tasks:
                        for inner in (first, second):
                            work = _Work(agent, self._run, tuple(self._open))
                            work._left = self._left
                            tasks.start_soon(work.perform, run, inner)

    def _opened(self, step: Span) -> Opened:
        name = f"span-{self._agent._place}-{next(self._agent._numbers)}"
        payload: dict[str, Any] = {"name": name}
        if step.kind == "refused":
            payload["refused"] = True
        parent = self._open[-1] if self._open else None
        return Opened(True, name, self._run, step.kind, parent, payload)

    def _in_thread(self, run: AgentInstanceHandle, step: Span, opened: Opened) -> None:
        agent, status = self._agent, "failed" if step.end == "failed" else "complete"
        opened.done = False
        agent.note(opened)
        try:
            with _make(run, opened) as span:
                opened.done = True
                agent.note(opened)
                span.set_result({"name": opened.span})
                agent.note(Ended(False, opened.span, status))
                if status == "failed":
                    raise PlannedError
        except PlannedError:
            pass
        agent.note(Ended(True, opened.span, status))

    async def _span(self, run: AgentInstanceHandle, step: Span) -> None:
        agent, opened = self._agent, self._opened(step)
        name, end, id = opened.span, step.end, ""
        span = _make(run, opened)
        if step.form == "created":
            with agent.noting(opened):
                id = await run.create_span(name, *_parent(opened), payload=_payload(opened))
        elif step.form == "started":
            with agent.noting(opened):
                await span.start()
        elif step.form == "with":
            with agent.noting(opened):
                span.__enter__()
        else:
            with agent.noting(opened):
                await span.__aenter__()
        self._open.append(name)
        if step.kind == "late" and step.form in ("with", "async with"):
            with agent.noting(_with_late_payload(opened)):
                await span.start({"name": name, "late": True})
        await self.perform(run, step.steps)
        if step.form in ("with", "async with"):
            await self._leave(step, span, name)
        elif end == "left":
            self._left.append(name)
            return
        elif step.form == "created":
            with agent.noting(Ended(True, name, "complete")):
                await run.finish_span(id, {"name": name})
        elif end == "complete":
            with agent.noting(Ended(True, name, "complete")):
                await span.complete({"name": name})
        elif end == "failed":
            with agent.noting(Ended(True, name, "failed")):
                await span.fail({"name": name})
        else:
            with agent.noting(Ended(True, name, "cancelled")):
                await span.cancel()
        self._open.remove(name)

    async def _leave(self, step: Span, span: Any, name: str) -> None:
        """Leave the block of a span."""
        agent, end = self._agent, step.end
        status = "complete" if end == "left" else "cancelled" if end == "skipped" else end
        error: BaseException | None = None
        if status == "complete":
            span.set_result({"name": name})
        with agent.noting(Ended(True, name, status)):
            if end == "skipped":
                await span.cancel()
            if status == "failed":
                error = PlannedError()
            elif status == "cancelled":
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    try:
                        await anyio.sleep_forever()
                    except anyio.get_cancelled_exc_class() as cancelled:
                        error = cancelled
                        raise
            kind = None if error is None else type(error)
            if step.form == "with":
                span.__exit__(kind, error, None)
            else:
                await span.__aexit__(kind, error, None)


def _with_late_payload(opened: Opened) -> Opened:
    payload = {"name": opened.span, "late": True}
    return msgspec.structs.replace(opened, payload=payload)


def _parent(opened: Opened) -> tuple[str, ...]:
    """The id of a parent that the API does not know, for a span that is to have one."""
    return (generate(0),) if opened.kind == "orphan" else ()


def _payload(opened: Opened) -> dict[str, Any]:
    text = {"text": "x" * 2 * MOST_BYTES} if opened.kind == "large" else {}
    return {**opened.payload, **text}


def _make(run: AgentInstanceHandle, opened: Opened) -> Any:
    return run.span(opened.span, *_parent(opened), payload=_payload(opened))


def _registry() -> SchemaRegistry:
    registry = make_registry()
    for name in QUALITIES:
        registry.register_quality_schema(name, {"type": "object"})
    return registry


def _refuse(call: Any) -> int | None:
    """The status of the answer to a call that creates a span; None for that of the API."""
    return 422 if "refused" in call.body["details"]["payload"] else None
