"""The format: every record comes back, and damage costs no more than the record that was hit."""

from __future__ import annotations

from itertools import accumulate

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from support.cases import for_each
from support.examples import examples
from support.journal_files import (
    HEADER,
    NOON,
    RESULT,
    create,
    created,
    end,
    finish,
    opened,
    quality,
    register,
    start,
)

from prefactor_core.journal.format import (
    HEAD,
    NONE,
    VERSION,
    Aside,
    Created,
    Damage,
    Discarded,
    Form,
    Header,
    Identified,
    JournalVersionError,
    Kind,
    Opened,
    OpenRun,
    OpenSpan,
    Record,
    Refused,
    check_version,
    decode_operation,
    encode,
    frame,
    records,
)
from prefactor_core.models.lifecycle import InstanceStatus
from prefactor_core.operations import Operation

BODIES = [
    (Kind.HEADER, HEADER, Header),
    (Kind.OPERATION, register(), Operation),
    (Kind.OPERATION, create("a", result=RESULT, finished_at=NOON), Operation),
    (Kind.OPENED, opened("a", "b"), Opened),
    (Kind.CREATED, created("a", "b", result=RESULT), Created),
    (Kind.CREATED, created("a"), Created),
    (Kind.DISCARDED, Discarded("a", None), Discarded),
    (Kind.SENDING, [Form((1, 2), True, NONE), Form((3,), False, Raw(b"{}"))], list[Form]),
    (Kind.SETTLED, [1, 2], list[int]),
    (Kind.REFUSED, Refused(1, "refused", "run", "a", "b", False), Refused),
    (Kind.IDENTIFIED, Identified("run", None, "their-run"), Identified),
    (Kind.OPEN_RUN, OpenRun("run", InstanceStatus.PENDING, None), OpenRun),
    (Kind.OPEN_SPAN, OpenSpan("a", "run", None), OpenSpan),
    (Kind.BEAT, NOON, int),
    (Kind.CLOSED, NOON, int),
]
FRAMES = [frame(number, kind, encode(body)) for number, (kind, body, _) in enumerate(BODIES, 1)]
FILE = b"".join(FRAMES)
ENDS = [*accumulate(map(len, FRAMES), initial=0)]

bodies = st.builds(
    lambda value: encode(value),
    st.dictionaries(st.text(), st.text()) | st.lists(st.integers(0, 2**60)) | st.integers(0, 2**60),
)
some_records = st.lists(st.tuples(st.integers(0, 2**40 - 1), st.sampled_from(Kind), bodies))


def read(data: bytes) -> tuple[list[Record], list[Damage]]:
    found = [*records(data)]
    return (
        [record for record in found if not isinstance(record, Damage)],
        [damage for damage in found if isinstance(damage, Damage)],
    )


WHOLE = read(FILE)[0]


@for_each("kind, body, type", BODIES)
def test_a_body_of_each_kind_comes_back(kind: Kind, body: object, type: type) -> None:
    [record] = records(frame(2**40 - 1, kind, encode(body)))
    assert not isinstance(record, Damage)
    assert record[:2] == (2**40 - 1, kind)
    assert msgspec.json.decode(record[2], type=type) == body


def test_the_bodies_above_are_of_all_kinds() -> None:
    assert {kind for kind, _, _ in BODIES} == {*Kind}


@for_each(
    "operation",
    [register(), start(), create("a"), end("a"), quality(), finish()],
)
def test_an_operation_comes_back(operation: Operation) -> None:
    assert decode_operation(encode(operation)) == operation


def test_an_operation_that_was_given_up_comes_back() -> None:
    aside = Aside(reason="refused", error="no such field", at=NOON, operation=create("a"))
    assert msgspec.json.decode(encode(aside), type=Aside) == aside


@settings(max_examples=examples(100))
@given(some_records)
def test_all_records_come_back_in_their_order(written: list[tuple[int, Kind, bytes]]) -> None:
    data = b"".join([frame(*record) for record in written])
    assert read(data) == (written, [])


def test_a_file_cut_at_any_byte_has_the_whole_records_before_the_cut() -> None:
    for cut in range(len(FILE)):
        whole = sum(end <= cut for end in ENDS) - 1
        torn = [] if cut in ENDS else [Damage(ENDS[whole], cut, is_tail=True)]
        assert read(FILE[:cut]) == (WHOLE[:whole], torn), cut


def test_a_flipped_bit_costs_the_record_that_has_it() -> None:
    data = bytearray(FILE)
    for place in range(len(data)):
        hit = sum(end <= place for end in ENDS) - 1
        rest = WHOLE[:hit] + WHOLE[hit + 1 :]
        damage = Damage(ENDS[hit], ENDS[hit + 1], is_tail=hit == len(WHOLE) - 1)
        for bit in range(8):
            data[place] ^= 1 << bit
            assert read(bytes(data)) == (rest, [damage]), (place, bit)
            data[place] ^= 1 << bit


@settings(max_examples=examples(200))
@given(st.lists(st.binary(max_size=60) | st.builds(bytes, st.integers(1, 60))), st.data())
def test_garbage_between_records_hides_none_of_them(
    garbage: list[bytes], data: st.DataObject
) -> None:
    parts = data.draw(st.permutations([*FRAMES, *garbage]))
    found, damage = read(b"".join(parts))
    assert found == [read(part)[0][0] for part in parts if part in FRAMES]
    assert sum(part.end - part.start for part in damage) == sum(map(len, garbage))


@for_each("size", [1, HEAD.size - 1, HEAD.size, 100_000])
def test_zeros_are_no_records(size: int) -> None:
    assert read(bytes(size)) == ([], [Damage(0, size, is_tail=True)])


@settings(max_examples=examples(200))
@given(st.binary(min_size=1, max_size=500))
def test_garbage_is_no_record(garbage: bytes) -> None:
    assert read(garbage) == ([], [Damage(0, len(garbage), is_tail=True)])


def test_an_empty_file_has_nothing() -> None:
    assert read(b"") == ([], [])


def test_a_later_version_is_refused_whatever_else_its_header_says() -> None:
    check_version(encode(HEADER))
    with pytest.raises(JournalVersionError, match=r"version 2 .* up to 1: update prefactor_core"):
        check_version(encode({"version": VERSION + 1, "something": "new"}))
