"""Refused operations that go back to their shards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace
from support.journal_files import create

from prefactor_core.operations import CreateSpan
from prefactor_core.operations.identifiers import generate
from prefactor_core.relay.entry import Entry, decode
from prefactor_core.relay.keys import shard_of
from prefactor_core.relay.refused import RefusedOperation, entries_of

RUNS = [generate(0) for _ in range(6)]


def refused(run: str, number: int, agent: str = "host-1", size: int = 2) -> RefusedOperation:
    operation = replace(create(f"span-{number:04}", run=run), payload=Raw(b"1" * size))
    return RefusedOperation(
        id=f"{number + 1}-0", agent=agent, reason="refused", error="422", operation=operation
    )


def entries(page: list[RefusedOperation]) -> list[tuple[int, Entry]]:
    return [
        (shard, decode("1-1", dict(zip(fields[::2], fields[1::2], strict=True))))
        for shard, fields in entries_of(page)
    ]


@given(st.lists(st.tuples(st.sampled_from(RUNS), st.sampled_from(["a", "b"]))))
def test_all_go_back_as_they_are_in_their_order_under_their_agents(
    given: list[tuple[str, str]],
) -> None:
    page = [refused(run, number, agent) for number, (run, agent) in enumerate(given)]
    for shard in range(16):
        ours = [each for each in page if each.operation and shard_of(_run(each)) == shard]
        back = [
            (entry.agent, operation)
            for place, entry in entries(page)
            if place == shard
            for operation in entry.operations
        ]
        assert back == [(each.agent, each.operation) for each in ours]


def test_they_go_back_in_as_few_entries_as_their_size_allows() -> None:
    run, other = RUNS[0], next(run for run in RUNS if shard_of(run) != shard_of(RUNS[0]))
    page = [refused(run if number % 2 else other, number) for number in range(100)]
    assert [len(entry.operations) for _, entry in entries(page)] == [50, 50]
    large = [refused(run, number, size=400_000) for number in range(6)]
    assert [len(entry.operations) for _, entry in entries(large)] == [3, 3]


def test_an_entry_that_was_kept_whole_goes_back_whole_and_in_its_place() -> None:
    run = RUNS[0]
    fields = [b"version", b"2", b"agent", b"host-1", b"ops", b"of tomorrow"]
    whole = RefusedOperation(
        id="2-0",
        agent="host-1",
        reason="unreadable",
        error="",
        operation=None,
        whole=(shard_of(run), fields),
    )
    before, (shard, kept), after = entries_of([refused(run, 0), whole, refused(run, 2)])
    assert before[0] == shard == after[0] == shard_of(run)
    assert kept == fields


def test_what_nobody_can_read_stays() -> None:
    junk = RefusedOperation(id="1-0", agent="", reason="", error="", operation=None)
    assert not junk.is_readable
    assert entries_of([junk]) == []


def _run(refused: RefusedOperation) -> str:
    assert isinstance(refused.operation, CreateSpan)
    return refused.operation.instance_id
