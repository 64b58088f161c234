"""RunIdentity and Identities: what the API calls the runs and spans that were recorded."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import msgspec
import pfid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET, Raw
from support.examples import examples

from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models.clock import to_nanoseconds
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)
from prefactor_core.operations.identifiers import generate, idempotency_key

NOON = to_nanoseconds(datetime(2026, 7, 20, 12, tzinfo=UTC))

pfids = st.builds(generate, st.integers(0, 2**30 - 1), st.integers(0, 2**48 - 1))


def create(
    span: str, parent: str | None, run: str, status: SpanStatus = SpanStatus.ACTIVE
) -> CreateSpan:
    ended = status is SpanStatus.COMPLETE
    return CreateSpan(
        timestamp=NOON,
        idempotency_key=idempotency_key(span, "create"),
        instance_id=run,
        span_id=span,
        schema_name="agent:llm",
        status=status,
        payload=Raw(b'{"a":1}'),
        parent_span_id=parent,
        finished_at=NOON if ended else None,
        result_payload=Raw(b'{"b":2}') if ended else UNSET,
    )


def end(span: str, run: str) -> FinishSpan:
    return FinishSpan(
        timestamp=NOON,
        idempotency_key=idempotency_key(span, "finish"),
        instance_id=run,
        span_id=span,
        status=SpanStatus.FAILED,
        result_payload=Raw(b'{"b":2}'),
    )


def of_run(run: str) -> list[Operation]:
    """The operations of a run itself."""
    return [
        StartAgentInstance(timestamp=NOON, idempotency_key="key-start", instance_id=run),
        FinishAgentInstance(
            timestamp=NOON,
            idempotency_key="key-finish",
            instance_id=run,
            status=InstanceStatus.FAILED,
        ),
    ]


def registration(run: str) -> RegisterAgentInstance:
    return RegisterAgentInstance(
        timestamp=NOON,
        idempotency_key="key-register",
        agent_id="agent",
        agent_version=Raw(b"{}"),
        agent_schema_version=Raw(b"{}"),
        instance_id=run,
        asks_for_id=True,
    )


def changed(operation: Operation, addressed: Operation) -> set[str]:
    """The fields in which an operation differs from what is sent of it."""
    assert type(operation) is type(addressed)
    one, two = msgspec.structs.asdict(operation), msgspec.structs.asdict(addressed)
    return {name for name in one if one[name] != two[name]}


def create_of(run: RunIdentity, operation: CreateSpan) -> CreateSpan:
    addressed = run.addressed(operation)
    assert isinstance(addressed, CreateSpan)
    return addressed


# Provisional ids


@given(pfids, pfids, pfids)
def test_a_late_registration_gives_a_span_the_partition_and_keeps_its_time_and_random_bits(
    recorded: str, known: str, span: str
) -> None:
    run = RunIdentity(recorded, known)
    sent = pfid.decode(run.span_id(span))
    if recorded == known:
        assert run.span_id(span) == span
    else:
        assert sent[6:10] == pfid.decode(known)[6:10]
        assert sent[:6] + sent[10:] == pfid.decode(span)[:6] + pfid.decode(span)[10:]
    assert run.span_id(run.span_id(span)) == run.span_id(span)


@given(pfids, pfids)
def test_before_its_registration_all_of_a_run_is_called_as_it_was_recorded(
    recorded: str, span: str
) -> None:
    run = RunIdentity(recorded)
    assert run.is_plain
    assert (run.id, run.recorded_id, run.span_id(span)) == (recorded, recorded, span)
    for operation in [*of_run(recorded), create(span, None, recorded), end(span, recorded)]:
        assert run.addressed(operation) is operation


@given(pfids, pfids)
def test_a_run_that_got_another_id_sends_it_in_all_its_operations(
    recorded: str, known: str
) -> None:
    run = RunIdentity(recorded, known)
    for operation in of_run(recorded):
        addressed = run.addressed(operation)
        assert addressed == msgspec.structs.replace(operation, instance_id=known)


def test_a_registration_is_sent_as_it_was_recorded() -> None:
    # It is the question; the other id was its answer.
    recorded, known = generate(0), generate(7)
    operation = registration(recorded)
    assert RunIdentity(recorded, known).addressed(operation) is operation


def test_an_addressed_operation_differs_in_ids_only() -> None:
    recorded, known, span, parent = generate(0), generate(7), generate(0), generate(0)
    run = RunIdentity(recorded, known)
    begun = create(span, parent, recorded, SpanStatus.COMPLETE)
    assert changed(begun, run.addressed(begun)) == {"instance_id", "span_id", "parent_span_id"}
    ended = end(span, recorded)
    assert changed(ended, run.addressed(ended)) == {"instance_id", "span_id"}


# A whole run, whatever becomes of it


@dataclass
class Life:
    """A span of a recorded run, and what becomes of its create."""

    id: str
    parent: Life | None
    lost: bool
    api_id: str | None

    @property
    def nearest(self) -> Life | None:
        """The nearest ancestor that was not lost."""
        above = self.parent
        while above is not None and above.lost:
            above = above.parent
        return above


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    spans: list[Life] = []
    ids = draw(st.lists(pfids, unique_by=lambda id_: id_[:10] + id_[16:], max_size=12))
    api_ids = draw(st.lists(pfids, unique=True, min_size=len(ids), max_size=len(ids)))
    makes = draw(st.booleans())
    for id_, api_id in zip(ids, api_ids, strict=True):
        # Deep trees and chains of losses rather than flat ones.
        parent = draw(st.none() | st.sampled_from(spans[-3:])) if spans else None
        spans.append(Life(id_, parent, draw(st.booleans()), api_id if makes else None))
    return spans


def delivered(run: RunIdentity, spans: Sequence[Life], recorded: str) -> dict[str, str | None]:
    """Deliver or lose the creates in order: what the API got, parents by span."""
    stored: dict[str, str | None] = {}
    for span in spans:
        operation = create(span.id, span.parent.id if span.parent else None, recorded)
        assert run.reason_lost(operation) is None
        if span.lost:
            run.span_lost(operation, "refused")
            continue
        sent = create_of(run, operation)
        assert changed(operation, sent) <= {"instance_id", "span_id", "parent_span_id"}
        assert sent.instance_id == run.id
        assert sent.parent_span_id is None or sent.parent_span_id in stored
        made = span.api_id or sent.span_id
        run.span_made(span.id, made)
        stored[made] = sent.parent_span_id
    return stored


@given(lives(), pfids, st.none() | pfids)
def test_children_hang_on_their_nearest_ancestor_that_was_not_lost(
    spans: list[Life], recorded: str, known: str | None
) -> None:
    run = RunIdentity(recorded, known)
    stored = delivered(run, spans, recorded)

    def name(span: Life) -> str:
        if span.api_id is not None:
            return span.api_id
        return span.id if run.id == recorded else run.id[10:16].join((span.id[:10], span.id[16:]))

    assert stored == {
        name(span): name(span.nearest) if span.nearest else None for span in spans if not span.lost
    }
    assert all(run.span_id(span.id) == name(span) for span in spans if not span.lost)


@given(lives(), pfids, st.none() | pfids)
def test_a_finish_goes_to_the_span_that_was_made_or_is_lost_with_it(
    spans: list[Life], recorded: str, known: str | None
) -> None:
    run = RunIdentity(recorded, known)
    stored = delivered(run, spans, recorded)
    for span in spans:
        operation = end(span.id, recorded)
        assert run.reason_lost(operation) == ("refused" if span.lost else None)
        if not span.lost:
            sent = run.addressed(operation)
            assert isinstance(sent, FinishSpan)
            assert changed(operation, sent) <= {"instance_id", "span_id"}
            assert (sent.instance_id, sent.span_id in stored) == (run.id, True)


def test_a_chain_of_losses_ends_at_the_root() -> None:
    recorded = generate(3)
    run = RunIdentity(recorded)
    ids = [generate(3) for _ in range(1_000)]
    for parent, span in zip([None, *ids], ids, strict=False):
        run.span_lost(create(span, parent, recorded), "full")
    assert create_of(run, create(generate(3), ids[-1], recorded)).parent_span_id is None


def test_a_parent_of_another_client_is_kept() -> None:
    recorded, foreign, lost = generate(3), generate(3), generate(3)
    run = RunIdentity(recorded)
    run.span_lost(create(lost, foreign, recorded), "refused")
    for parent in (foreign, lost):
        assert create_of(run, create(generate(3), parent, recorded)).parent_span_id == foreign


def test_a_loss_keeps_its_reason() -> None:
    recorded = generate(3)
    run = RunIdentity(recorded)
    first, second = generate(3), generate(3)
    run.span_lost(create(first, None, recorded), "refused")
    run.span_lost(create(second, None, recorded), "retries_exhausted")
    assert run.reason_lost(end(first, recorded)) == "refused"
    assert run.reason_lost(end(second, recorded)) == "retries_exhausted"
    assert run.reason_lost(end(generate(3), recorded)) is None


def test_a_run_that_is_lost_takes_all_of_it_along() -> None:
    recorded, span = generate(3), generate(3)
    run = RunIdentity(recorded)
    run.lost = "refused"
    update = UpdateSpanPayload(
        timestamp=NOON,
        idempotency_key="key-update",
        instance_id=recorded,
        span_id=span,
        payload=Raw(b"{}"),
    )
    everything = [*of_run(recorded), create(span, None, recorded), end(span, recorded), update]
    assert {run.reason_lost(operation) for operation in everything} == {"refused"}


@pytest.mark.parametrize("known", [None, generate(7)], ids=["plain", "late"])
def test_a_span_that_was_made_under_the_id_it_was_given_takes_no_memory(
    known: str | None,
) -> None:
    recorded = generate(3)
    run = RunIdentity(recorded, known)
    for _ in range(100):
        span = generate(3)
        run.span_made(span, run.span_id(span))
    assert run.is_plain == (known is None)
    assert span not in texts_kept_by(run)


def test_of_spans_that_ended_the_last_ids_that_the_api_made_are_kept_for_children() -> None:
    run = RunIdentity(generate(3))
    open_span, open_id = generate(3), generate(5)
    run.span_made(open_span, open_id)
    pairs = [(generate(3), generate(5)) for _ in range(10_100)]
    for span, api_id in pairs:
        run.span_made(span, api_id)
        run.span_ended(span)
    assert run.span_id(open_span) == open_id
    assert [run.span_id(span) for span, _ in pairs[100:]] == [made for _, made in pairs[100:]]
    kept = texts_kept_by(run)
    assert not kept & {text for pair in pairs[:100] for text in pair}
    assert not run.is_plain


def test_a_span_that_ended_under_its_own_id_takes_no_memory() -> None:
    run = RunIdentity(generate(3))
    run.span_ended(span := generate(3))
    assert run.is_plain
    assert span not in texts_kept_by(run)


def test_of_spans_that_were_lost_the_last_ones_are_remembered() -> None:
    recorded = generate(3)
    run = RunIdentity(recorded)
    spans = [generate(3) for _ in range(10_100)]
    for span in spans:
        run.span_lost(create(span, None, recorded), "refused")
    reasons = [run.reason_lost(end(span, recorded)) for span in spans]
    assert reasons == [None] * 100 + ["refused"] * 10_000


def texts_kept_by(owner: object) -> set[str]:
    """The texts that an object keeps alive, in dicts and tuples too."""
    seen: set[int] = set()
    texts: set[str] = set()
    waiting: list[object] = [owner]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            texts.add(thing)
            continue
        waiting.extend(gc.get_referents(thing))
        if isinstance(thing, dict):
            # The collector passes over keys that are texts.
            waiting.extend(cast("dict[object, object]", thing))
    return texts


# All runs of a client


def test_both_ids_find_a_run_and_no_id_that_is_unknown_is_kept() -> None:
    identities = Identities()
    recorded, known = generate(0), generate(7)
    run = identities.add(recorded)
    assert identities.of(known) is not run
    identities.registered(recorded, known)
    assert identities.of(recorded) is identities.of(known) is run
    assert (run.id, run.recorded_id) == (known, recorded)
    strange = generate(9)
    assert (identities.of(strange).id, identities.of(strange).is_plain) == (strange, True)
    assert strange not in texts_kept_by(identities)


def test_a_registration_ends_what_was_provisional() -> None:
    identities = Identities()
    run = identities.add(generate(0))
    run.registered = False
    identities.registered(run.recorded_id, generate(7))
    assert run.registered


class Waiting:
    """A task that waits for the registration of a run."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def registered(self) -> None:
        self.heard.append("registered")

    def refused(self, error: Exception) -> bool:
        self.heard.append(error)
        return True

    def failed(self) -> None:
        self.heard.append("failed")

    def ended(self) -> None:
        pytest.fail("the client goes on")


def test_a_registration_ends_the_wait_of_its_task() -> None:
    identities = Identities()
    run, other = identities.add(generate(0)), identities.add(generate(0))
    run.registration, other.registration = waiting, deaf = Waiting(), Waiting()
    identities.registered(run.recorded_id, generate(7))
    assert (waiting.heard, deaf.heard) == (["registered"], [])


def test_a_run_that_was_renamed_is_found_by_the_id_of_the_api_only() -> None:
    identities = Identities()
    recorded, known = generate(0), generate(7)
    run = identities.add(recorded)
    identities.registered(recorded, known)
    identities.rename(run)
    assert (run.recorded_id, run.id, run.is_plain) == (known, known, True)
    assert identities.of(known) is run
    assert recorded not in texts_kept_by(identities)
    # Its operations are recorded under the new id: nothing is to be translated.
    begun = create(generate(7), None, known)
    assert run.addressed(begun) is begun
    identities.forget(known)
    assert known not in texts_kept_by(identities)


def test_a_run_that_got_the_id_it_asked_for_is_renamed_without_effect() -> None:
    identities = Identities()
    run = identities.add(generate(3))
    identities.registered(run.recorded_id, run.recorded_id)
    identities.rename(run)
    assert identities.of(run.id) is run


def test_a_client_knows_its_own_runs_by_both_ids_until_they_end() -> None:
    identities = Identities()
    recorded, known, foreign = generate(0), generate(7), generate(3)
    identities.add(recorded)
    identities.registered(recorded, known)
    identities.keep(identities.of(foreign))
    assert [identities.knows(id_) for id_ in (recorded, known, foreign)] == [True, True, False]
    identities.forget(recorded)
    assert not identities.knows(recorded)
    assert not identities.knows(known)


def test_open_are_the_runs_that_the_api_knows_and_that_nobody_has_ended() -> None:
    identities = Identities()
    waits, runs, ends, stopped, forgotten = (identities.add(generate(0)) for _ in range(5))
    for run in (waits, runs, ends, stopped, forgotten):
        run.registered = False
    identities.keep(RunIdentity(generate(3)))
    assert identities.open_runs() == []
    for run in (runs, ends, stopped, forgotten):
        identities.registered(run.recorded_id, generate(7))
    assert identities.open_runs() == [runs, ends, stopped, forgotten]  # each one once
    ends.termination.run_ended()
    stopped.terminate("over budget")
    identities.forget(forgotten.recorded_id)
    assert identities.open_runs() == [runs]


def test_an_answer_about_a_run_that_is_not_added_yet_is_kept() -> None:
    identities = Identities()
    id_ = generate(3)
    early = identities.of(id_)
    early.terminate("at once")
    identities.keep(early)
    assert identities.add(id_) is early
    identities.forget(id_)
    assert id_ not in texts_kept_by(identities)


def test_of_runs_of_other_clients_the_last_ones_are_remembered() -> None:
    identities = Identities()
    first = identities.of(generate(3))
    lost = generate(3)
    first.span_lost(create(lost, None, first.id), "refused")
    others = [generate(3) for _ in range(1_500)]
    for id_ in others:
        identities.keep(identities.of(id_))
        identities.keep(first)  # one of which something is remembered again and again stays
    assert identities.of(first.id) is first
    assert texts_kept_by(identities) & {*others} == {*others[-999:]}


def test_a_run_of_another_client_is_kept_once_there_is_something_to_remember() -> None:
    identities = Identities()
    foreign, lost = generate(3), generate(3)
    run = identities.of(foreign)
    run.span_lost(create(lost, None, foreign), "refused")
    identities.keep(run)
    assert identities.of(foreign) is run
    # What is kept is not replaced by what is kept later.
    identities.keep(RunIdentity(foreign))
    assert identities.of(foreign).reason_lost(end(lost, foreign)) == "refused"


def quality(run: str) -> RecordQuality:
    return RecordQuality(
        timestamp=NOON,
        idempotency_key="a-key-of-its-own",
        instance_id=run,
        name="accuracy",
        payload=Raw(b"{}"),
    )


def identities_alive() -> int:
    gc.collect()
    return sum(type(thing) is RunIdentity for thing in gc.get_objects())


def test_a_run_that_is_forgotten_leaves_nothing_behind() -> None:
    identities = Identities()
    run = identities.add(generate(3))
    identities.keep(run)
    identities.forget(run.recorded_id)
    assert not [text for text in texts_kept_by(identities) if pfid.is_pfid(text)]


def test_quality_of_an_ended_run_has_the_apis_id() -> None:
    identities = Identities()
    recorded, known = generate(0), generate(7)
    identities.add(recorded)
    identities.registered(recorded, known)
    identities.forget(recorded)
    for id_ in (recorded, known):
        run = identities.of(id_)
        assert (run.recorded_id, run.addressed(quality(recorded)).instance_id) == (recorded, known)


def test_quality_of_a_lost_run_after_its_end_is_lost_too() -> None:
    identities = Identities()
    recorded = generate(0)
    identities.add(recorded).lost = "refused"
    identities.forget(recorded)
    assert identities.of(recorded).reason_lost(quality(recorded)) == "refused"


def test_of_forgotten_runs_with_another_id_a_bounded_number_keeps_that_and_nothing_else() -> None:
    before = identities_alive()
    identities = Identities()
    texts: set[str] = set()
    last: list[str] = []
    for number in range(700):
        recorded, known, made, api_id = (generate(number) for _ in range(4))
        lost = generate(0)
        run = identities.add(recorded)
        identities.registered(recorded, known)
        run.span_lost(create(lost, None, recorded), "refused")
        run.span_made(made, api_id)
        identities.keep(run)
        assert identities.of(recorded) is run
        assert {recorded, known, lost, made, api_id} <= texts_kept_by(run)
        texts |= {recorded, known, lost, made, api_id}
        identities.forget(recorded)
        last += recorded, known
        del run
    assert texts_kept_by(identities) & texts == set(last[-1_000:])
    assert identities_alive() == before + 500


class Client(RuleBasedStateMachine):
    """Runs come, get their ids, and go, in any order; each id finds its run meanwhile."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.identities = Identities()
        self.made = 0
        self.open: dict[str, RunIdentity] = {}
        self.renamed: dict[str, RunIdentity] = {}

    def new_id(self) -> str:
        self.made += 1
        return generate(self.made, self.made)

    @rule(target=runs, at_once=st.booleans())
    def add(self, at_once: bool) -> RunIdentity:
        run = self.identities.add(self.new_id(), self.new_id() if at_once else None)
        self.open[run.recorded_id] = self.open[run.id] = run
        return run

    @rule(run=runs, same=st.booleans())
    def register(self, run: RunIdentity, same: bool) -> None:
        if run.recorded_id in self.open and run.id == run.recorded_id:
            known = run.recorded_id if same else self.new_id()
            self.identities.registered(run.recorded_id, known)
            self.open[known] = run

    @rule(run=runs)
    def rename(self, run: RunIdentity) -> None:
        if run.id != run.recorded_id:
            del self.open[run.recorded_id]
            self.identities.rename(run)

    @rule(run=consumes(runs))
    def forget(self, run: RunIdentity) -> None:
        self.identities.forget(run.recorded_id)
        self.open = {id_: other for id_, other in self.open.items() if other is not run}
        if run.id != run.recorded_id:
            self.renamed[run.recorded_id] = self.renamed[run.id] = run

    @rule()
    def forget_a_run_of_another_client(self) -> None:
        self.identities.forget(self.new_id())

    @invariant()
    def every_id_finds_its_run_and_no_other_is_held(self) -> None:
        known = self.open | self.renamed
        assert all(self.identities.of(id_) is run for id_, run in known.items())
        ids = {text for text in texts_kept_by(self.identities) if pfid.is_pfid(text)}
        assert ids == known.keys()


def test_each_id_finds_its_run_in_any_order_of_steps() -> None:
    run_state_machine_as_test(
        Client, settings=settings(max_examples=examples(50), stateful_step_count=30)
    )
