"""A rule machine: with a journal or without, an API that fails in every way, and a process that may
die at any moment; one model of what is recorded, and of what must be stored in the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.dying import Line, bury
from support.examples import examples
from support.harness import make_config
from support.stepping import Task, open_steps
from support.wilful import LARGE, ORPHAN, REFUSED, wilful_api

from prefactor_core import (
    AgentInstanceHandle,
    PrefactorApiError,
    PrefactorCoreClient,
    open_prefactor,
)
from prefactor_core.journal.reader import JournalReader, asides
from prefactor_core.local import Faults
from prefactor_core.operations import CreateSpan, RegisterAgentInstance
from prefactor_core.operations.identifiers import without_partition

T = TypeVar("T")

AGENT: dict[str, Any] = {
    "agent_id": "tested-agent",
    "agent_version": {"name": "Tested agent", "external_identifier": "v1"},
    "agent_schema_version": {
        "external_identifier": "judged",
        "span_schemas": {"agent:run": {"type": "object"}},
        "quality_schemas": [
            {"name": name, "schema": {"type": "object"}} for name in ("accuracy", "cost")
        ],
    },
}
PICKS = st.integers(0, 50)
FATES = st.sampled_from(["", "", "", "", ORPHAN, REFUSED, LARGE])
PLANS = st.sampled_from(["", "lose", "lose", "break", "part", "done", "hold"])
WEATHER = st.sampled_from(["fine", "fine", "away", 429, 401, 500, 503])

_ENDS = st.sampled_from(["complete", "failed", "cancelled"])
_OPENINGS = st.tuples(
    st.just("open_span"), PICKS, st.tuples(st.none() | PICKS, FATES, st.booleans())
)
ACTIONS: st.SearchStrategy[tuple[str, int, Any]] = st.one_of(
    _OPENINGS,
    _OPENINGS,
    st.tuples(st.just("start_span"), PICKS, st.none()),
    st.tuples(st.just("end_span"), PICKS, _ENDS | st.just("skip")),
    st.tuples(st.just("end_span"), PICKS, st.just("complete")),
    st.tuples(st.just("start_run"), PICKS, st.none()),
    st.tuples(st.just("finish_run"), st.integers(0, 1), _ENDS),
    st.tuples(
        st.just("tell_quality"),
        PICKS,
        st.tuples(
            st.sampled_from(["accuracy", "cost"]),
            st.none() | st.fixed_dictionaries({"score": st.integers(0, 9)}),
        ),
    ),
)

SEVERAL = st.lists(ACTIONS, min_size=2, max_size=8)


@dataclass(eq=False)
class ModelRun:
    """A run as it was recorded. ``status``: as it is, or as it ends if nothing else happens."""

    name: str
    handle: AgentInstanceHandle
    is_refused: bool
    status: str = "pending"
    quality: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class ModelSpan:
    """A span as it was recorded. ``id``: its recorded one."""

    id: str
    run: ModelRun
    parent: ModelSpan | None
    payload: dict[str, Any]
    fate: str
    status: str = "open"
    was_started: bool = False

    @property
    def is_lost(self) -> bool:
        return self.run.is_refused or self.fate == REFUSED

    def kept_parent(self) -> ModelSpan | None:
        if self.fate == ORPHAN:
            return None
        parent = self.parent
        while parent is not None and parent.is_lost:
            parent = parent.parent
        return parent


class JournalMachine(RuleBasedStateMachine):
    """Subclasses name the backend. No two clients live at once; each has the folder of the last."""

    backend = "asyncio"
    client: PrefactorCoreClient

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(
        has_journal=st.sampled_from([True, True, True, False]),
        given_ids=st.booleans(),
        bulk=st.sampled_from([None, None, [], ["agent_spans/create"]]),
        most=st.sampled_from([1, 3, 500]),
        workers=st.sampled_from([1, 3]),
    )
    def open_world(
        self,
        has_journal: bool,
        given_ids: bool,
        bulk: list[str] | None,
        most: int,
        workers: int,
    ) -> None:
        self.has_journal = has_journal
        self.queue = {"num_workers": workers, "max_batch_operations": most, "max_retries": 1_000}
        self.root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.deaths = 0
        faults = Faults(given_ids=given_ids, bulk_types=bulk)
        self.api = self.stack.enter_context(wilful_api(faults))
        self.steps = open_steps(self.backend)
        self.stack.callback(self.steps.close)
        self.runs: list[ModelRun] = []
        self.spans: list[ModelSpan] = []
        self.begun = 0
        self.open_client()

    # What the machine does its steps with.

    @property
    def folder(self) -> Path:
        return self.root / f"after {self.deaths} deaths"

    def do(self, step: Callable[[], T]) -> T:
        """Do what an agent does without waiting; with no span around it."""

        async def do() -> T:
            return Context().run(step)

        return self.steps.run(do)

    def open_runs(self) -> list[ModelRun]:
        return [run for run in self.runs if run.status in ("pending", "active")]

    def open_spans(self) -> list[ModelSpan]:
        return [span for span in self.spans if span.status == "open"]

    def start_with_parents(self, span: ModelSpan | None) -> None:
        while span is not None and span.status == "open" and not span.was_started:
            span.was_started = True
            span.run.status = "active"
            span = span.parent

    def end_all(self, run: str, unstarted: str, span: str, of: ModelRun | None = None) -> None:
        for opened in self.open_spans():
            if of is None or opened.run is of:
                self.start_with_parents(opened)
                opened.status = span
        for each in self.open_runs() if of is None else [of]:
            each.status = run if each.status == "active" else unstarted

    # Recording.

    @rule(refused=st.sampled_from([False, False, False, True]), raises=st.booleans())
    def begin_run(self, refused: bool, raises: bool) -> None:
        name = f"{REFUSED if refused else 'run'} {self.begun}"
        self.begun += 1

        async def register() -> AgentInstanceHandle | None:
            try:
                return await self.client.create_agent_instance(
                    **AGENT, external_identifier=name, on_refused="raise" if raises else "log"
                )
            except PrefactorApiError:
                assert raises
                return None

        handle = self.steps.run(register)
        if handle is not None:
            # A wrong token is a refusal, too.
            self.runs.append(ModelRun(name, handle, refused or not handle.recorded))

    @rule(actions=SEVERAL)
    def record(self, actions: list[tuple[str, int, Any]]) -> None:
        if not self.open_runs():
            self.begin_run(False, False)
        for name, pick, how in actions:
            getattr(self, name)(pick, how)

    @rule(actions=SEVERAL, seconds=st.sampled_from([0.0, 0.2, 2.0, 45.0]))
    def record_and_wait(self, actions: list[tuple[str, int, Any]], seconds: float) -> None:
        """The workers make requests."""
        self.record(actions)
        self.steps.run(lambda: anyio.sleep(seconds))

    @rule(actions=SEVERAL, plans=st.lists(PLANS, min_size=1, max_size=3))
    def record_and_fail(self, actions: list[tuple[str, int, Any]], plans: list[str]) -> None:
        """The next requests meet something else."""
        self.record(actions)
        self.api.plans = [*plans]
        self.steps.run(lambda: anyio.sleep(0.15))

    def start_run(self, pick: int, _: None) -> None:
        run = _pick(self.open_runs(), pick)
        if run is not None:
            self.do(run.handle.start_nowait)
            run.status = "active"

    def finish_run(self, pick: int, status: Any) -> None:
        run = _pick(self.open_runs(), pick)
        if run is not None:
            self.do(lambda: run.handle.finish_nowait(status))
            self.end_all(status, status, "cancelled", run)

    def open_span(self, pick: int, how: tuple[int | None, str, bool]) -> None:
        run, (above, fate, started) = _pick(self.open_runs(), pick), how
        if run is None:
            return
        others = [span for span in self.spans if span.run is run]
        parent = None if above is None else _pick(others, above)
        payload: dict[str, Any] = {"n": len(self.spans), "fate": fate, "text": "x" * 100}
        spans, parent_id = self.client.span_manager, None if parent is None else parent.id
        id = self.do(lambda: spans.prepare(run.handle.id, "agent:run", parent_id, payload))
        self.spans.append(ModelSpan(id, run, parent, payload, fate))
        if started:
            self.start_span(0, None)

    def start_span(self, pick: int, _: None) -> None:
        span = _pick(self.open_spans(), pick)
        if span is not None:
            self.do(lambda: self.client.span_manager.start(span.id))
            self.start_with_parents(span)

    def end_span(self, pick: int, way: Any) -> None:
        span, spans = _pick(self.open_spans(), pick), self.client.span_manager
        if span is None:
            return
        if way == "skip":
            self.do(lambda: spans.cancel_unstarted(span.id))
        else:
            self.do(lambda: spans.finish(span.id, {"n": span.payload["n"]}, way))
        self.start_with_parents(span)
        span.status = "cancelled" if way == "skip" else way

    def tell_quality(self, pick: int, how: tuple[str, Any]) -> None:
        run, (name, payload) = _pick(self.open_runs(), pick), how
        if run is not None:
            self.do(lambda: run.handle.record_quality_nowait(name, payload))
            run.quality[name] = payload

    # The API.

    @rule(weather=WEATHER, forgets=st.booleans(), releases=st.booleans())
    def change_api(self, weather: Any, forgets: bool, releases: bool) -> None:
        self.api.weather = weather
        if forgets:
            self.api.forget_keys()
        if releases:
            self.do(self.api.release)

    @rule()
    def flush_in_fine_weather(self) -> None:
        self.clear_up()

        async def flush() -> None:
            with anyio.fail_after(1000):
                await self.client.flush()

        self.steps.run(flush)
        statistics = self.client.statistics()
        if not self.open_spans():  # else one may have been reported while that took its time
            assert (statistics.pending, statistics.pending_bytes) == (0, 0)

    def clear_up(self) -> None:
        self.api.weather, self.api.plans = "fine", []
        self.do(self.api.release)

    # The life of processes. Each client adopts what the last one left.

    @rule(
        dies=st.sampled_from([True, True, False]),
        arrives=st.booleans(),
        torn=st.sampled_from([0, 0, 1, 10, 17, 30]),
    )
    def end_process(self, dies: bool, arrives: bool, torn: int) -> None:
        """The next one begins at once."""
        if dies and self.has_journal:
            self.die(arrives, torn)
        else:
            self.close()
        self.open_client()

    def die(self, arrives: bool, torn: int) -> None:
        """``arrives``: whether a request that is on its way still arrives. ``torn``: so many bytes
        of a last record are in the file."""
        alive = self.folder
        self.deaths += 1
        self.line.cut = True
        bury(alive, self.folder)
        for file in [*self.folder.glob("*/0*.log")][-1:]:
            with file.open("ab") as appended:
                appended.write((b"\x20\0\0\0" + b"9" * 26)[:torn])
        if arrives:
            self.do(self.api.release)
            self.steps.run(lambda: anyio.lowlevel.checkpoint())
        self.steps.run(self.life.cancel)
        shutil.rmtree(alive)
        self.end_all("failed", "failed", "failed")

    def open_client(self) -> None:
        config = make_config(
            journal=self.folder if self.has_journal else "",
            queue=self.queue,
            drain_timeout=60.0,
            registration_timeout=0.5,
        )
        self.line = Line(self.api)

        async def live() -> None:
            async with open_prefactor(config, asgi_app=self.line) as self.client:
                self.opened.set()
                await self.closing.wait()

        async def open() -> None:
            self.opened, self.closing = anyio.Event(), anyio.Event()
            self.life = Task(live)
            with anyio.fail_after(10):
                await self.opened.wait()

        self.steps.run(open)

    def close(self) -> None:
        if not self.has_journal:
            self.clear_up()

        async def close() -> None:
            self.closing.set()
            with anyio.fail_after(1000):
                await self.life.ended.wait()

        self.steps.run(close)
        assert self.life.error is None
        assert self.has_journal or self.client.statistics().pending == 0
        self.end_all("complete", "cancelled", "cancelled")

    # What always holds.

    @invariant()
    def the_balance_is_right(self) -> None:
        if not hasattr(self, "client"):
            return
        statistics = self.client.statistics()
        assert statistics.accepted == (
            statistics.delivered + statistics.pending + statistics.lost
        ), statistics
        assert 0 <= statistics.in_flight <= statistics.pending
        assert (statistics.pending_bytes > 0) == (statistics.pending > 0)
        assert set(statistics.dropped) <= {"refused"}, statistics

    @invariant()
    def the_api_sees_no_key_with_two_bodies(self) -> None:
        if hasattr(self, "api"):
            assert self.api.wrong == [], self.api.wrong
            assert self.api.refusals["idempotency_key_reused"] == 0

    @invariant()
    def the_journals_have_what_is_pending(self) -> None:
        """A journal of this process, and perhaps others: at least what is pending here."""
        if not hasattr(self, "client") or not self.has_journal:
            return
        unsettled = 0
        for journal in self.folder.glob("*.journal"):
            reader = JournalReader(journal)
            for _ in reader.scan():
                pass
            unsettled += sum(reader.unsettled.values())
        assert unsettled >= self.client.statistics().pending

    # The end.

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "steps"):
                self.clear_up()
                self.close()
                if self.has_journal:
                    self.adopt_all()
                self.compare()

    def adopt_all(self) -> None:
        """One client after another has the folder, until nothing is left in it."""
        for _ in range(3):
            self.open_client()
            self.steps.run(lambda: anyio.sleep(100.0))
            self.close()
            left = [file for file in self.folder.glob("*/*.log") if file.name != "refused.log"]
            if not left:
                return
        raise AssertionError(f"left behind: {left}")

    def compare(self) -> None:
        self.the_api_sees_no_key_with_two_bodies()
        store, api = self.api.store, self.api
        stored_runs = {row["id"]: row for row in store.all("SELECT * FROM agent_instances")}
        expected_runs = {run.name: run for run in self.runs if not run.is_refused}
        assert {api.runs.get(name) for name in expected_runs} == set(stored_runs)
        for name, run in expected_runs.items():
            row = stored_runs[api.runs[name]]
            assert row["status"] == run.status, name
            quality = msgspec.json.decode(row["quality"])
            assert {name: kept["payload"] for name, kept in quality.items()} == {
                name: payload for name, payload in run.quality.items() if payload is not None
            }
        stored = {row["id"]: row for row in store.all("SELECT * FROM agent_spans")}
        expected = {span.id: span for span in self.spans if not span.is_lost}
        assert {api.spans.get(id) for id in expected} == set(stored)
        for id, span in expected.items():
            row = stored[api.spans[id]]
            assert row["status"] == span.status, span
            assert row["agent_instance_id"] == api.runs[span.run.name]
            parent = span.kept_parent()
            assert row["parent_span_id"] == (None if parent is None else api.spans[parent.id])
            payload = msgspec.json.decode(row["payload"])
            assert payload == span.payload or (span.fate == LARGE and "$truncated" in payload)
        if self.has_journal:
            self.compare_refused()

    def compare_refused(self) -> None:
        refused = [aside for journal in self.folder.iterdir() for _, aside in asides(journal)]
        assert {aside.reason for aside in refused} <= {"refused"}
        keys = [aside.operation.idempotency_key for aside in refused]
        assert len(keys) == len(set(keys))
        # With the API's ids, as far as they were known.
        spans = {
            without_partition(aside.operation.span_id)
            for aside in refused
            if isinstance(aside.operation, CreateSpan)
        }
        lost = {without_partition(span.id) for span in self.spans if span.is_lost}
        # Of runs that are refused, spans that were not reported are not there at all.
        known = {
            without_partition(span.id)
            for span in self.spans
            if span.is_lost and not span.run.is_refused
        }
        assert (known - spans, spans - lost) == (set(), set())
        assert {
            aside.operation.external_identifier
            for aside in refused
            if isinstance(aside.operation, RegisterAgentInstance)
        } == {run.name for run in self.runs if run.is_refused}


def _pick(choices: list[T], pick: int) -> T | None:
    """One of them; the newest are the first."""
    return choices[-1 - pick % len(choices)] if choices else None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_with_a_journal_or_without_all_is_stored_once_whatever_fails_and_dies(backend: str) -> None:
    machine = type("JournalMachineOn", (JournalMachine,), {"backend": backend})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples(60), stateful_step_count=30)
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
class TestFound:
    """What the machine has found, step by step."""

    def play(self, backend: str, *steps: Callable[[JournalMachine], object]) -> None:
        machine = type("JournalMachineOn", (JournalMachine,), {"backend": backend})()
        machine.open_world(True, False, None, 1, 1)
        for step in steps:
            step(machine)
            machine.the_balance_is_right()
            machine.the_api_sees_no_key_with_two_bodies()
            machine.the_journals_have_what_is_pending()
        machine.teardown()

    def test_a_run_that_its_caller_did_not_get_was_buried(self, backend: str) -> None:
        self.play(
            backend,
            lambda machine: machine.begin_run(True, True),
            lambda machine: machine.end_process(True, False, 0),
        )

    def test_a_reduced_span_was_whole_again_after_a_lost_answer(self, backend: str) -> None:
        span = ("open_span", 0, (None, LARGE, True))
        self.play(
            backend,
            lambda machine: machine.begin_run(False, False),
            lambda machine: machine.start_run(0, None),
            *[
                lambda machine, n=n: machine.record_and_fail([span], [""] * n + ["lose"])
                for n in range(4)
            ],
        )
