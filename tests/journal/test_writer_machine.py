"""A journal is written in any order of calls; a reader finds what a model says, at any time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.examples import examples
from support.journal_files import RESULT, create, end, quality, register
from support.journal_writing import PAUSE, Item, Writing, item, recorded, room_in_files

from prefactor_core.operations import CreateSpan, FinishSpan, Operation

places = st.integers(0, 1_000)


class WriterMachine(RuleBasedStateMachine):
    """``pending``: the operations that are written and not settled, in order, each with the item
    that it is in. ``active``: spans whose create is recorded, and no end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.pending: dict[str, tuple[Operation, Item]] = {}
        self.active: list[str] = []
        self.count = 0
        # Spans that were opened while the files were full, or full with them.
        self.maybe_not_noted: set[str] = set()

    @initialize(max_bytes=st.sampled_from([8_000, 40_000, 1 << 30]))
    def begin(self, max_bytes: int) -> None:
        self.writing = Writing(self.folder, max_bytes=max_bytes)
        self.journal = self.writing.journal

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.abandon()
            self.check()
        rmtree(self.folder)

    def name(self) -> str:
        self.count += 1
        return f"{self.count}"

    def record(self, operation: Operation) -> None:
        """Record an operation; the model has it if it is written."""
        before = self.journal.unwritten
        self.journal.append(operation)
        if self.journal.unwritten == before:
            self.pending[operation.idempotency_key] = operation, item(operation)

    def one(self, place: int) -> Item:
        """An item of those that are pending."""
        items = [item for _, item in self.pending.values()]
        return items[place % len(items)]

    # What the recorder does.

    @rule()
    def registers(self) -> None:
        self.record(register(self.name()))

    @rule(count=st.integers(1, 20))
    def records_quality(self, count: int) -> None:
        for _ in range(count):
            self.record(quality(self.name()))

    @rule()
    def opens(self) -> None:
        span, was_full = self.name(), self.journal.is_full
        self.writing.open_span(span)
        if was_full or self.journal.is_full:
            self.maybe_not_noted.add(span)

    @precondition(lambda self: self.writing.open)
    @rule(place=places, has_ended=st.booleans(), is_filled_in=st.booleans())
    def records_a_create(self, place: int, has_ended: bool, is_filled_in: bool) -> None:
        span = self.writing.open[place % len(self.writing.open)]
        operation = recorded(span) if has_ended else create(span)
        if is_filled_in:
            operation = msgspec.structs.replace(operation, payload=RESULT)
        self.record(operation)
        self.writing.open.remove(span)
        if not has_ended:
            self.active.append(span)

    @precondition(lambda self: self.writing.open)
    @rule(place=places)
    def discards(self, place: int) -> None:
        span = self.writing.open[place % len(self.writing.open)]
        self.journal.discarded(span, None)
        self.writing.open.remove(span)

    @precondition(lambda self: self.active)
    @rule(place=places)
    def records_an_end(self, place: int) -> None:
        self.record(end(self.active.pop(place % len(self.active))))

    # What the exporter does.

    @precondition(lambda self: self.pending)
    @rule(place=places, given_id=st.booleans())
    def sends(self, place: int, given_id: bool) -> None:
        one = self.one(place)
        one.given_id = given_id
        self.journal.sending([one])

    @precondition(lambda self: self.pending)
    @rule(place=places)
    def sends_another_form(self, place: int) -> None:
        one = self.one(place)
        if isinstance(one.operation, CreateSpan):
            one.operation, one.is_changed = create(one.operation.span_id, "other"), True
            self.journal.sending([one])

    @rule()
    def merges(self) -> None:
        for key, (operation, one) in self.pending.items():
            start = self.pending.get(key.replace("finish", "create"))
            if (
                isinstance(operation, FinishSpan)
                and start is not None
                and isinstance(start[0], CreateSpan)
                and start[1].noted is None
                and one.noted is None
                and not start[1].is_changed
            ):
                both = item(start[0].finished_by(operation))
                both.keys = (start[0].idempotency_key, key)
                self.pending[both.keys[0]] = start[0], both
                self.pending[key] = operation, both
                self.journal.sending([both])
                return

    @precondition(lambda self: self.pending)
    @rule(first=places, count=st.integers(1, 30))
    def settles(self, first: int, count: int) -> None:
        items = {id(one): one for _, one in list(self.pending.values())[first % 7 :][:count]}
        self.journal.settled(items.values())
        for one in items.values():
            for key in one.keys:
                del self.pending[key]

    @precondition(lambda self: self.pending)
    @rule(place=places)
    def refuses(self, place: int) -> None:
        one = self.one(place)
        self.journal.set_aside(one, "refused", "no")
        for key in one.keys:
            del self.pending[key]

    # What the system does.

    @rule(room=st.sampled_from([0, 10, 500, 3_000]), count=st.integers(1, 5))
    def the_disk_is_full(self, room: int, count: int) -> None:
        with room_in_files(room):
            for _ in range(count):
                self.record(quality(self.name()))

    @rule()
    def time_passes(self) -> None:
        self.writing.now += PAUSE

    @precondition(lambda self: not self.journal.is_resting)
    @rule()
    def somebody_deletes_the_newest_file(self) -> None:
        if len(self.writing.files) == 1:
            self.writing.files[-1].unlink()
            self.journal.beat()
            assert self.journal.is_resting
            self.writing.now += PAUSE
            self.journal.beat()
            assert not self.journal.is_resting

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "journal"):
            return
        numbers = [sequence for sequence, _, _ in self.writing.records()]
        assert numbers == sorted(set(numbers))
        reader, entries = self.writing.read()
        if self.journal.is_resting:
            return
        assert [
            (entry.operation, entry.keys, entry.is_sent, entry.given_id) for entry in entries
        ] == [*self.expected()]
        assert self.journal.pending == len(self.pending)
        lost = {*reader.state.lost_spans}
        open_spans = {span.span_id for span in reader.state.open_spans()}
        # The state that this test gives to a new file has only those without a create.
        noted = {*self.writing.open} - self.maybe_not_noted
        assert noted <= open_spans <= {*self.writing.open, *self.active} - lost

    def expected(self) -> Iterator[tuple[Operation, tuple[str, ...], bool, bool]]:
        """What a reader must find, in order."""
        for key, (operation, one) in self.pending.items():
            if not isinstance(one.noted, tuple):
                yield operation, (key,), False, True
            elif key == one.keys[0]:
                sent, given_id = one.noted
                yield sent, one.keys, True, given_id


def test_a_reader_finds_what_was_written_in_any_order_of_calls() -> None:
    logging.getLogger("prefactor_core.journal").disabled = True  # it is full so often
    try:
        run_state_machine_as_test(
            WriterMachine, settings=settings(max_examples=examples(50), stateful_step_count=40)
        )
    finally:
        logging.getLogger("prefactor_core.journal").disabled = False
