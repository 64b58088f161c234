"""What is kept of an open run: found again under either id, and never more than some of it."""

from __future__ import annotations

from prefactor_core.operations import identifiers
from prefactor_core.relay.run_record import LostSpan, RunRecord

MOST = 10_000


def test_a_span_that_is_sent_once_more_is_not_lost_any_more_under_either_id() -> None:
    for partition in (0, 7):
        record = RunRecord("pf:run:x", [])
        span = identifiers.generate(partition)
        record.span_lost(
            identifiers.with_partition_of(identifiers.generate(0), span), LostSpan("refused", None)
        )
        assert len(list(record.lost_spans())) == 1
        record.found_span(span)
        assert list(record.lost_spans()) == []


def test_a_run_that_goes_on_for_ever_is_kept_in_so_many_fields() -> None:
    commands: list[object] = []
    record = RunRecord("pf:run:x", commands)  # type: ignore[arg-type]
    ids = [identifiers.generate(0) for _ in range(MOST + 100)]
    for span_id in ids:
        record.span_lost(span_id, LostSpan("refused", None))
        record.span_made(span_id, "other")
        record.span_ended(span_id)
    for span_id in ids[-50:]:
        record.written_by(f"agent-{span_id}")
    assert len(list(record.lost_spans())) == MOST
    assert [span_id for span_id, _ in record.span_ids()] == ids[100:]
    assert record.agents == [f"agent-{span_id}" for span_id in ids[-20:]]
    # One command for each change: the fields on the server are the same.
    fields: set[str] = set()
    for name, _, field, *_ in commands:  # type: ignore[misc]
        (fields.add if name == "HSET" else fields.remove)(field)
    assert len(fields) == 2 * MOST + 20
