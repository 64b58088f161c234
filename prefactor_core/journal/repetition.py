"""Repetition: the records of lost files that are written again, to another file. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from prefactor_core.journal.format import NONE, Created, Damage, Form, Kind, Opened, encode, records
from prefactor_core.operations import CreateSpan


def repeated(
    files: Iterable[bytes], unsettled: Container[int], moved: Mapping[int, int]
) -> Iterator[tuple[Kind, int, bytes]]:
    """The records to write again, in order: kind, sequence number so far, body.

    ``files``: the contents of files, oldest first. ``unsettled``: the sequence numbers of the
    operations to repeat, and of those in earlier files; other operations, and damaged ones, are
    left out. A create is repeated as a whole operation. ``moved``: the new sequence numbers, which
    the caller adds; the notes of forms refer to these. They, and the notes of what is settled in
    earlier files, have the number 0 here.
    """
    opened: dict[str, Opened] = {}
    first = 0
    for data in files:
        for record in records(data):
            if isinstance(record, Damage):
                continue
            sequence, kind, body = record
            first = first or sequence
            if kind == Kind.OPENED:
                note = _decode_opened(body)
                opened[note.span_id] = note
            elif kind == Kind.SENDING:
                forms = [
                    msgspec.structs.replace(
                        form, sequences=tuple([moved.get(n, n) for n in form.sequences])
                    )
                    for form in _decode_forms(body)
                    if any(n in unsettled for n in form.sequences)
                ]
                if forms:
                    yield Kind.SENDING, 0, encode(forms)
            elif kind == Kind.SETTLED:
                earlier = [n for n in _decode_settled(body) if n < first]
                if earlier:
                    yield Kind.SETTLED, 0, encode(earlier)
            elif sequence not in unsettled:
                pass
            elif kind == Kind.OPERATION:
                yield Kind.OPERATION, sequence, body
            elif kind == Kind.CREATED:
                created = _decode_created(body)
                if created.span_id in opened:
                    operation = create_of(opened[created.span_id], created)
                    yield Kind.OPERATION, sequence, encode(operation)


def create_of(opened: Opened, created: Created) -> CreateSpan:
    """The operation that two records stand for."""
    result = created.result_payload
    return CreateSpan(
        timestamp=created.timestamp,
        idempotency_key=f"{created.span_id}-create",
        instance_id=opened.instance_id,
        span_id=created.span_id,
        schema_name=opened.schema_name,
        status=created.status,
        payload=opened.payload,
        parent_span_id=created.parent_span_id,
        finished_at=created.finished_at,
        result_payload=UNSET if result == NONE else result,
    )


_decode_opened: Final = msgspec.json.Decoder(Opened).decode
_decode_created: Final = msgspec.json.Decoder(Created).decode
_decode_forms: Final = msgspec.json.Decoder(list[Form]).decode
_decode_settled: Final = msgspec.json.Decoder(list[int]).decode
