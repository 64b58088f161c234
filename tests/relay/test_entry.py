"""Entries: batches of operations in a stream."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    identifiers,
)
from prefactor_core.relay.entry import EntryUnreadableError, decode, encode

RUN = identifiers.generate(0)
SPAN = identifiers.generate(0)


def operation(kind: int, payload: bytes) -> Operation:
    raw = Raw(payload)
    common = {"timestamp": 1, "idempotency_key": f"key-{kind:05}"}
    of_run = {**common, "instance_id": RUN}
    match kind:
        case 0:
            return RegisterAgentInstance(
                **of_run, agent_id=None, agent_version=raw, agent_schema_version=raw
            )
        case 1:
            return StartAgentInstance(**of_run)
        case 2:
            return CreateSpan(
                **of_run, span_id=SPAN, schema_name="a:b", status=SpanStatus.ACTIVE, payload=raw
            )
        case 3:
            return CreateSpan(
                **of_run,
                span_id=SPAN,
                schema_name="a:b",
                status=SpanStatus.COMPLETE,
                payload=raw,
                parent_span_id=SPAN,
                finished_at=2,
                result_payload=raw,
            )
        case 4:
            return FinishSpan(**of_run, span_id=SPAN, status=SpanStatus.FAILED, result_payload=raw)
        case 5:
            return RecordQuality(**of_run, name="q", payload=raw)
        case _:
            return FinishAgentInstance(**of_run, status=InstanceStatus.COMPLETE)


kinds = st.integers(0, 6)
payloads = st.sampled_from([b"{}", b"null", b'{"a":"\\u0000\xc3\xa4"}', b"[1,2.5e300]"])


@given(st.lists(st.builds(operation, kinds, payloads), max_size=6), st.text(max_size=10))
def test_an_entry_is_read_as_it_was_written(operations: list[Operation], agent: str) -> None:
    words = encode(agent, operations)
    entry = decode("1-0", dict(zip(words[::2], words[1::2], strict=True)))
    assert (entry.id, entry.agent, entry.operations) == ("1-0", agent, operations)


def test_an_operation_that_is_kept_does_not_keep_its_entry() -> None:
    words = encode("a", [operation(3, b'"%s"' % (b"x" * 1_000)) for _ in range(1_000)])
    entry = dict(zip(words[::2], words[1::2], strict=True))
    del words
    tracemalloc.start()
    try:
        entry[b"ops"] = bytes(bytearray(entry[b"ops"]))  # traced
        first = decode("1-0", entry).operations[0]
        entry.clear()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first.size < held < 10 * first.size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has the form b''"),
        ({b"version": b"2", b"agent": b"a", b"ops": b"[]"}, "has the form b'2'.*update the relays"),
        ({b"version": b"1", b"ops": b"[]"}, "cannot be read: KeyError"),
        ({b"version": b"1", b"agent": b"\xff", b"ops": b"[]"}, "cannot be read: UnicodeDecode"),
        ({b"version": b"1", b"agent": b"a", b"ops": b"[{}]"}, "cannot be read: Validation"),
        ({b"version": b"1", b"agent": b"a", b"ops": b'["secret'}, "cannot be read: DecodeError"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_without_its_payload(
    fields: dict[bytes, bytes], message: str
) -> None:
    with pytest.raises(EntryUnreadableError, match=f"entry 5-1 {message}") as caught:
        decode("5-1", fields)
    assert "secret" not in str(caught.value)
