"""Playing a program of :mod:`schedules` against a strict API in memory, with a model beside it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
from support.harness import FaultyApi, make_config
from support.schedule_model import Boom, Here, ModelRun, ModelSpan, Place, leaves_of, outcome_seen
from support.schedules import (
    Cancel,
    Catch,
    Checkpoint,
    Finally,
    FinishSpan,
    Interrupt,
    Open,
    Program,
    Raise,
    Run,
    Scope,
    Sleep,
    Spawn,
    Step,
    Steps,
    Terminate,
)
from support.virtual_time import virtual_time

from prefactor_core import (
    PrefactorCoreClient,
    PrefactorCoreError,
    PrefactorTerminatedError,
    SpanContext,
    SpanNotFoundError,
    Statistics,
    current_span,
    open_prefactor,
    traced,
)
from prefactor_core.local import Faults
from prefactor_core.local.app import MEMORY, LocalPrefactor
from prefactor_core.local.store import Store
from prefactor_core.testing import RecordedRun, RecordedSpan, Recording

SAFETY = 100_000.0
"""Seconds, longer than any program takes."""


def is_cancellation(error: BaseException | None) -> bool:
    return isinstance(error, anyio.get_cancelled_exc_class())


class Block:
    """``with block:`` is the innermost block in a scope of the library: it sees first how the body
    ends.

    ``end`` gets that. :meth:`left` gets the exception that then leaves the scope, which must be the
    same object, with the same causes, at the same time. ``instead``: the exceptions that may
    replace it.
    """

    def __init__(
        self, play: Play, place: Place, end: Callable[[BaseException | None], object]
    ) -> None:
        self._play = play
        self._place = place
        self._end = end
        self.ended_at: float | None = None
        self.error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended_at = anyio.current_time()
        self.error = error
        if error is not None:
            self.causes = error.__cause__, error.__context__
            self._play.check_cause(error, self._place)
        self._end(error)

    def left(
        self,
        error: BaseException | None,
        *,
        within: float = 0.0,
        instead: tuple[type[BaseException], ...] = (),
    ) -> None:
        if self.ended_at is not None and anyio.current_time() - self.ended_at > within:
            self._play.wrong.append(f"leaving took {anyio.current_time() - self.ended_at} s")
        if error is not None:
            self._play.check_cause(error, self._place)
        if isinstance(error, instead):
            return
        if self.error is not None and error is not self.error:
            self._play.wrong.append(f"{self.error!r} was left as {error!r}")
        elif error is not None and self.error is error:
            if self.causes != (error.__cause__, error.__context__):
                self._play.wrong.append(f"the causes of {error!r} were changed")
        elif isinstance(error, Boom):
            self._play.wrong.append(f"{error!r} came out of nothing")


class Play:
    """One playing of ``program`` on ``backend``.

    ``wrong``: what was found to be wrong on the way. ``turns``: how often the loop has turned
    while it lasted.
    """

    client: PrefactorCoreClient
    statistics: Statistics | None = None

    def __init__(self, program: Program, backend: str) -> None:
        self.program = program
        self.wrong: list[str] = []
        self.turns = 0
        self._backend = backend
        self._interrupt = program.interrupt
        if self._interrupt is not None and backend != "asyncio":
            self._interrupt = replace(self._interrupt, native=False)
        self._native = self._interrupt is not None and self._interrupt.native
        self._runs: list[ModelRun] = []
        self._spans: list[ModelSpan] = []
        self._outer: anyio.CancelScope | None = None
        self._task: asyncio.Task[None] | None = None
        # Whether a native cancellation was made, and whether in the drain.
        self._interrupted = False
        self._draining = False
        self._cut = False

    def perform(self) -> list[str]:
        """Play it; what is wrong."""
        options = virtual_time(self._backend, self._turn)
        anyio.run(self._main, backend=self._backend, backend_options=options)
        return self.wrong

    # From outside of the program.

    def _turn(self) -> None:
        if self._outer is None:
            return
        if self._interrupt == Interrupt("turns", self.turns, native=self._native):
            self._cancel()
        self.turns += 1

    def _cancel(self) -> None:
        if self._outer is None:
            return
        if self._task is None:
            self._outer.cancel()
        elif self._task.cancel():
            self._interrupted = True
            self._cut = self._draining

    async def _main(self) -> None:
        service = self.program.service
        faults = Faults(answering_time=service.answering_time, bulk=service.bulk)
        with anyio.fail_after(SAFETY), closing(Store(MEMORY)) as store:
            self._recording = Recording(store)
            self._app = LocalPrefactor(store, faults=faults)
            self._api = FaultyApi(self._app)
            before = self._tasks()
            if self._native:
                self._task = asyncio.create_task(self._whole())
                await asyncio.wait([self._task])
                self._task.result()
            else:
                await self._whole()
            if self._tasks() != before:
                self.wrong.append("a task is left behind")
            self._compare(self._recording.runs)

    def _tasks(self) -> object:
        if self._backend == "asyncio":
            return asyncio.all_tasks()
        import trio

        return trio.lowlevel.current_statistics().tasks_living

    async def _whole(self) -> None:
        """The program, and what leaves it."""
        try:
            with anyio.CancelScope() as self._outer:
                if self._interrupt is not None and self._interrupt.after == "seconds":
                    self._outer.deadline = anyio.current_time() + self._interrupt.at
                await self._client(self._outer)
        except BaseException as error:
            known = (Boom, PrefactorTerminatedError)
            if self._interrupted:
                known = (*known, asyncio.CancelledError)
            for leaf in leaves_of(error):
                if not isinstance(leaf, known):
                    self.wrong.append(f"the program was left by {leaf!r}")
                    raise
        finally:
            self._outer = None

    async def _client(self, outer: anyio.CancelScope) -> None:
        service = self.program.service
        config = make_config(
            queue={
                "batch_window": service.batch_window,
                "max_batch_operations": service.max_batch_operations,
                "num_workers": service.num_workers,
            },
            drain_timeout=service.drain_timeout,
            termination_poll_interval=service.poll_interval,
        )
        place = Place(None, (outer,), Here())
        block = Block(self, place, self._body_ended)
        client = open_prefactor(config, asgi_app=self._api)
        left: BaseException | None = None
        try:
            async with client:
                self.client = client
                with block:
                    await self._play(self.program.body, place)
        except BaseException as error:
            left = error
            raise
        finally:
            self._draining = False
            self.statistics = client.statistics()
            cancelled = (asyncio.CancelledError,) if self._cut else ()
            block.left(left, within=service.drain_timeout, instead=cancelled)
            if self._cut and not isinstance(left, asyncio.CancelledError):
                self.wrong.append(f"a cancellation in the drain became {left!r}")
            if block.ended_at is not None:
                took = anyio.current_time() - block.ended_at
                self._cut = self._cut or took >= service.drain_timeout
                if took >= service.drain_timeout and service.is_done_in_time:
                    self.wrong.append(f"the drain took all of {took} s")

    def _body_ended(self, error: BaseException | None) -> None:
        """The client's body has: what is open ends, and the drain begins."""
        status = outcome_seen(error)
        for run in self._runs:
            if run.status == "active":
                self._end_spans(run, "failed" if status == "failed" else "cancelled", error)
                run.status = status
        self._draining = True
        if self._interrupt is not None and self._interrupt.after == "drain":
            assert self._outer is not None
            if self._task is None:
                self._outer.deadline = anyio.current_time() + self._interrupt.at
            else:
                asyncio.get_running_loop().call_later(self._interrupt.at, self._cancel)

    def _end_spans(self, run: ModelRun, status: str, error: BaseException | None = None) -> None:
        for span in self._spans:
            if span.run is run:
                span.end(status, error)

    def check_cause(self, error: BaseException, place: Place) -> None:
        """A cancellation has a scope around it that was cancelled, a termination its run."""
        stops = [
            run.handle.id
            for run in self._runs
            if run.handle and run.stopped_at is not None and run.knows
        ]
        for leaf in leaves_of(error):
            if isinstance(leaf, PrefactorTerminatedError):
                if leaf.instance_id not in stops:
                    self.wrong.append(f"{leaf!r} of a run that was not stopped")
            elif is_cancellation(leaf):
                if not (self._interrupted or any(scope.cancel_called for scope in place.scopes)):
                    self.wrong.append(f"{leaf!r} outside of its scope")
            elif not isinstance(leaf, Boom | GeneratorExit):
                self.wrong.append(f"{leaf!r} came from somewhere")

    def _check_stops(self) -> None:
        """A stopped run learns of it by the next poll, and by the answer to a span."""
        service, now = self.program.service, anyio.current_time()
        if service.answering_time > 1:
            return  # it may be an outage
        for run in self._runs:
            if run.stopped_at is None or run.knows or run.ended:
                continue
            polled = service.poll_interval + len(self._runs) * service.answering_time
            if now > run.stopped_at + 2 * polled:
                self.wrong.append(f"run {run.number} was stopped, and no poll tells")
            answered = 2 * service.batch_window if service.answering_time == 0 else math.inf
            if run.answered_at is not None and now > run.answered_at + answered:
                self.wrong.append(f"run {run.number} was stopped, and no answer tells")

    # The steps.

    async def _play(self, steps: Steps, place: Place) -> None:
        for step in steps:
            await self._step(step, place)

    async def _step(self, step: Step, place: Place) -> None:
        match step:
            case Sleep() | Checkpoint():
                cancelled = place.cancelled
                if isinstance(step, Sleep):
                    await anyio.sleep(step.seconds)
                else:
                    await anyio.lowlevel.checkpoint()
                if cancelled:
                    self.wrong.append(f"a cancellation did not reach {step}")
                self._check_stops()
            case Raise():
                raise Boom
            case Cancel(scope):
                scopes = [s for s in place.scopes if isinstance(s, anyio.CancelScope)]
                scopes[-1 - scope % len(scopes)].cancel()
            case Terminate(run):
                self._terminate(run)
            case FinishSpan(span):
                await self._finish_span(span)
            case Open():
                await self._open(step, place)
            case Run():
                await self._run(step, place)
            case Catch(body):
                try:
                    await self._play(body, place)
                except* (Boom, PrefactorTerminatedError):
                    pass
            case Scope(body, seconds, shield):
                with anyio.move_on_after(seconds, shield=shield) as scope:
                    await self._play(body, place.inside(scope))
            case Finally(body, cleanup, shield):
                try:
                    await self._play(body, place)
                finally:
                    with anyio.CancelScope(shield=shield) as scope:
                        await self._play(cleanup, place.inside(scope))
            case Spawn(tasks, body):
                async with anyio.create_task_group() as group:
                    inside = place.inside(group.cancel_scope)
                    for steps in tasks:
                        there = Place(place.run, inside.scopes, place.here.copy())
                        group.start_soon(self._play, steps, there)
                    await self._play(body, inside)

    def _terminate(self, number: int) -> None:
        runs = [run for run in self._runs if run.handle is not None]
        if runs:
            run = runs[-1 - number % len(runs)]
            assert run.handle is not None
            # Refused if the API does not know of it yet, or knows that it has ended.
            with suppress(PrefactorCoreError):
                self._recording.terminate(run.handle.id, "enough")
                run.stopped_at = anyio.current_time()

    async def _finish_span(self, number: int) -> None:
        spans = [span for span in self._spans if span.id is not None]
        if spans:
            span = spans[-1 - number % len(spans)]
            assert span.id is not None
            was_open = span.open
            span.end("complete", by="another")
            try:
                await self.client.finish_span(span.id(), {"by": "another"})
            except SpanNotFoundError:
                if was_open:
                    self.wrong.append(f"no open span {span.number}")

    # Runs.

    async def _run(self, step: Run, place: Place) -> None:
        run = ModelRun(len(self._runs), step.form)
        self._runs.append(run)
        agent = {"agent_id": run.agent_id, "agent_version": {"name": run.agent_id}}
        if step.form == "scope":
            await self._run_scope(run, agent, step.body, place)
            return
        deadline = max(anyio.current_time(), place.deadline)
        try:
            run.handle = await self.client.create_agent_instance(**agent)
        finally:
            if anyio.current_time() > deadline:
                self.wrong.append("a cancellation did not reach a registration")
        inside = self._begun(run, place)
        await run.handle.start()
        if step.form == "left to the client":
            await self._play(step.body, inside)
            return
        try:
            await self._play(step.body, inside)
        except BaseException as error:
            self._end_run(run, error, by_hand=True)
            run.handle.finish_nowait(outcome_seen(error))
            raise
        self._end_run(run, None, by_hand=True)
        await run.handle.finish()

    async def _run_scope(
        self, run: ModelRun, agent: dict[str, Any], body: Steps, place: Place
    ) -> None:
        block = Block(self, place.inside(run), lambda error: self._end_run(run, error))
        left: BaseException | None = None
        try:
            async with self.client.agent_instance(**agent) as run.handle:
                inside = self._begun(run, place).inside(run)
                with block:
                    await self._play(body, inside)
        except BaseException as error:
            left = error
            raise
        finally:
            self._run_left(run, place, block, left)

    def _begun(self, run: ModelRun, place: Place) -> Place:
        run.status = "active"
        place.here.runs.append(run)
        return Place(run, place.scopes, place.here)

    def _end_run(
        self, run: ModelRun, error: BaseException | None, *, by_hand: bool = False
    ) -> None:
        stopped = run.knows and not by_hand
        status = "cancelled" if stopped else outcome_seen(error)
        failed = status == "failed" and not by_hand
        self._end_spans(run, "failed" if failed else "cancelled", error)
        run.status = status

    def _run_left(
        self, run: ModelRun, place: Place, block: Block, left: BaseException | None
    ) -> None:
        if block.ended_at is None:
            return
        if not run.knows:
            block.left(left)
            return
        # A cancellation from outside goes first, and what it came with.
        block.left(left, instead=(PrefactorTerminatedError, anyio.get_cancelled_exc_class()))
        if left is None:
            self.wrong.append("a run that was stopped was left in peace")
        outside = is_cancellation(left)
        if is_cancellation(block.error) and not self._interrupted and outside != place.cancelled:
            self.wrong.append(f"{block.error!r} was left as {left!r}")

    # Spans.

    async def _open(self, step: Open, place: Place) -> None:
        run = place.here.innermost_run if step.form.startswith("traced") else place.run
        if run is None or run.ended:
            await self._play(step.body, place)
            return
        span = ModelSpan(len(self._spans), run, place.here.innermost_span(run))
        below = [other for other in self._spans if other.run is run and other.id is not None]
        parent_id = None
        if step.below is not None and below and not step.form.startswith("traced"):
            span.parent = below[-1 - step.below % len(below)]
            assert span.parent.id is not None
            parent_id = span.parent.id()
        self._spans.append(span)
        span.may_open = not run.takes_no_spans
        try:
            if step.form == "created":
                await self._created(step, span, parent_id, place)
            elif step.form.startswith("traced"):
                await self._traced(step, span, place)
            else:
                await self._with_context(step, span, parent_id, place)
        except PrefactorTerminatedError:
            if span.status is None and span.may_open:
                self.wrong.append(f"span {span.number} was not opened")
            raise

    def _opened(self, span: ModelSpan, place: Place, id: Callable[[], str] | None = None) -> None:
        span.status, span.id = "open", id
        place.here.spans += (span,)
        if not span.may_open:
            self.wrong.append(f"span {span.number} was opened in a run that was stopped")

    async def _created(
        self, step: Open, span: ModelSpan, parent_id: str | None, place: Place
    ) -> None:
        handle = span.run.handle
        assert handle is not None
        try:
            id = await handle.create_span(span.name, parent_id, {"n": span.number})
        except anyio.get_cancelled_exc_class():
            self._opened(span, place)
            span.end("cancelled")
            raise
        self._opened(span, place, lambda: id)
        await self._play(step.body, place)
        if step.end is not None:
            was_open = span.open
            span.end("complete", end=span.number)
            try:
                await handle.finish_span(id, {"end": span.number})
            except SpanNotFoundError:
                if was_open:
                    self.wrong.append(f"no open span {span.number}")

    async def _with_context(
        self, step: Open, span: ModelSpan, parent_id: str | None, place: Place
    ) -> None:
        assert span.run.handle is not None
        payload = {"n": span.number}
        if step.form == "started":
            payload = {"n": -1}
        context = span.run.handle.span(span.name, parent_id, payload)
        if step.form == "by hand":
            self._opened(span, place, lambda: context.id)
            await context.start()
            await self._in_span(step, span, context, place)
            return
        block = Block(self, place, lambda error: span.end(outcome_seen(error), error))
        left: BaseException | None = None
        try:
            if step.form == "with":
                with context, block:
                    self._opened(span, place, lambda: context.id)
                    await self._in_span(step, span, context, place)
            else:
                async with context:
                    with block:
                        self._opened(span, place, lambda: context.id)
                        if step.form == "started":
                            await context.start({"n": span.number})
                        await self._in_span(step, span, context, place)
        except BaseException as error:
            left = error
            raise
        finally:
            block.left(left)

    async def _in_span(
        self, step: Open, span: ModelSpan, context: SpanContext, place: Place
    ) -> None:
        context.set_result({"of": span.number})
        if span.open:
            span.result["of"] = span.number
        if step.early:
            await self._end(step, span, context)
        await self._play(step.body, place)
        await self._end(step, span, context)

    async def _end(self, step: Open, span: ModelSpan, context: SpanContext) -> None:
        match step.end:
            case "complete":
                span.end("complete", end=span.number)
                await context.complete({"end": span.number})
            case "fail":
                span.end("failed", end=span.number)
                await context.fail({"end": span.number})
            case "cancel":
                span.end("cancelled")
                await context.cancel()
            case None:
                pass

    async def _traced(self, step: Open, span: ModelSpan, place: Place) -> None:
        def opened(place: Place) -> None:
            context = current_span()
            assert context is not None
            self._opened(span, place, lambda: context.id)

        block = Block(self, place, lambda error: span.end(outcome_seen(error), error, **result))
        result: dict[str, object] = {}

        @traced(span.name)
        def function(n: int) -> int:
            with block:
                opened(place)
                if step.end == "fail":
                    raise Boom
                result["result"] = n
            return n

        @traced(span.name)
        async def coroutine(n: int) -> int:
            with block:
                opened(place)
                await self._play(step.body, place)
                result["result"] = n
            return n

        @traced(span.name)
        async def generator(n: int) -> Any:
            there = Place(place.run, place.scopes, Here(place.here.spans, place.here.runs))
            result["items"] = []
            with block:
                opened(there)
                await self._play(step.body[::2], there)
                result["items"] = [n]
                yield n
                if step.end == "fail":
                    raise Boom

        left: BaseException | None = None
        try:
            if step.form == "traced":
                await coroutine(span.number)
            elif step.form == "traced, synchronous":
                function(span.number)
            else:
                async with aclosing(generator(span.number)) as items:
                    async for _ in items:
                        await self._play(step.body[1::2], place)
                        if step.end == "cancel":
                            break
        except BaseException as error:
            left = error
            raise
        finally:
            if step.form != "traced, a generator":
                block.left(left)

    # What was stored, and what was to be.

    def _compare(self, stored: list[RecordedRun]) -> None:
        stopped = [run for run in self._runs if run.stopped_at is not None]
        self._compare_statistics(len(stopped))
        self._compare_order(stored)
        runs = {run.agent_id: run for run in stored}
        spans = {span.payload["n"]: (run, span) for run in stored for span in run.spans}
        if len(spans) != sum(len(run.spans) for run in stored):
            self.wrong.append("a span was stored twice")
        for run in self._runs:
            self._compare_run(run, runs.pop(run.agent_id, None))
        for span in self._spans:
            if span.status is not None:
                self._compare_span(span, spans.pop(span.number, None))
        for what in (*runs, *spans):
            self.wrong.append(f"{what} was stored, and never was")

    def _compare_statistics(self, stopped: int) -> None:
        statistics = self.statistics
        if statistics is None:
            self.wrong.append("the client was not left")
            return
        if statistics.pending or statistics.in_flight:
            self.wrong.append(f"something is pending: {statistics}")
        if statistics.accepted != statistics.delivered + statistics.lost:
            self.wrong.append(f"no balance: {statistics}")
        refused = Counter(self._app.refusals)
        if not self.program.service.bulk:
            del refused["not_found"]
        # A finish that is refused in bulk is sent alone, to hear why.
        at_least, at_most = (0 if self._cut else stopped), 2 * stopped
        if not at_least <= refused.total() <= at_most or set(refused) - {"invalid_action"}:
            self.wrong.append(f"{refused} was refused, {stopped} runs were stopped")
        if set(statistics.dropped) - ({"drain_timeout"} if self._cut else set()):
            self.wrong.append(f"{statistics.dropped} was dropped")

    def _compare_order(self, stored: list[RecordedRun]) -> None:
        """The start of a run is its first operation, and its finish the last."""
        run_of = {span.id: run.id for run in stored for span in run.spans}
        done: set[str] = set()
        ended: set[str] = set()
        for call in self._api.operations:
            if call.method != "POST" or call.status != 200:
                continue
            if call.body["idempotency_key"] in done:
                continue
            if call.name == "agent_spans":
                run_id = call.body["details"]["agent_instance_id"]
            elif "agent_spans" in call.path:
                run_id = run_of[call.path.split("/")[-2]]
            else:
                run_id = call.path.split("/")[-2]
                if call.name == "finish":
                    ended.add(run_id)
                    continue
            done.add(call.body["idempotency_key"])
            if run_id in ended:
                self.wrong.append(f"{call.name} came after the finish of its run")

    def _compare_run(self, run: ModelRun, stored: RecordedRun | None) -> None:
        if run.status is None:
            # Cancelled on the way in, perhaps before anything was recorded.
            expected = {None, "cancelled"}
        else:
            expected = {run.status if run.stopped_at is None else "terminated"}
        if self._cut:
            expected |= {None, "pending", "active"}
        if (stored and stored.status) not in expected:
            self.wrong.append(
                f"run {run.number} is {stored and stored.status}, not one of {expected}"
            )

    def _compare_span(
        self, span: ModelSpan, found: tuple[RecordedRun, RecordedSpan] | None
    ) -> None:
        if found is None:
            if not self._cut:
                self.wrong.append(f"span {span.number} was not stored")
            return
        run, stored = found
        by_id = {other.id: other for other in run.spans}
        parent = by_id[stored.parent_id] if stored.parent_id else None
        result = stored.result or {}
        if "error" in result:
            result["error"] = result["error"]["type"].split(".")[-1]
        is_so = {
            "run": run.agent_id,
            "name": stored.schema_name,
            "parent": parent and parent.payload["n"],
            "status": stored.status,
            "result": result,
        }
        must_be = {
            "run": span.run.agent_id,
            "name": span.name,
            "parent": span.parent and span.parent.number,
            "status": span.status,
            "result": span.result,
        }
        if self._cut and stored.status in ("pending", "active"):
            must_be |= {"status": stored.status, "result": {}}
        if is_so != must_be:
            self.wrong.append(f"span {span.number} is {is_so}, not {must_be}")
