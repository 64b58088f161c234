"""``traceparent`` and ``baggage``: what is written is read again, and others' values are kept."""

from __future__ import annotations

import logging
from email.message import Message
from types import MappingProxyType
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import case

from prefactor_core.operations.cause import FIELD, Cause, cause_in
from prefactor_core.operations.identifiers import generate
from prefactor_core.operations.trace_headers import (
    MOST_BYTES,
    MOST_MEMBERS,
    cause_of,
    new_traceparent,
    write,
)
from prefactor_core.operations.trace_ids import span_id_of, trace_id_of

RUN, SPAN = generate(7), generate(7)
OURS = f"prefactor.run_id={RUN},prefactor.span_id={SPAN}"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CAUSE = Cause(traceparent=TRACEPARENT, run_id=RUN, span_id=SPAN)

digits = st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}")
pfids = st.builds(generate, st.integers(0, 2**30 - 1), st.integers(0, 2**48 - 1))
traceparents = st.builds(
    lambda first, last, parent, flags: new_traceparent(first + last, parent, flags),
    digits,
    digits,
    digits,
    st.sampled_from(["00", "01"]),
)
causes = st.one_of(
    st.builds(lambda trace: Cause(traceparent=trace), traceparents),
    st.builds(lambda trace, run: Cause(traceparent=trace, run_id=run), traceparents, pfids),
    st.builds(
        lambda trace, run, span: Cause(traceparent=trace, run_id=run, span_id=span),
        traceparents,
        pfids,
        pfids,
    ),
)
names = st.one_of(
    st.text(),
    st.sampled_from(["traceparent", "Traceparent", "baggage", "BAGGAGE", "tracestate", "x-id"]),
)
members = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["userId=alice", "a=1;p=2", "prefactor.run_id=x", f"prefactor.span_id={SPAN}"]),
)
baggages = st.lists(members, max_size=80).map(",".join)
values = st.one_of(st.text(), baggages, traceparents)


def own(member: str) -> bool:
    return member.partition("=")[0].strip() in ("prefactor.run_id", "prefactor.span_id")


def members_of(baggage: str) -> list[str]:
    return [member.strip() for member in baggage.split(",") if member.strip()]


@given(st.dictionaries(names, values))
def test_any_headers_can_be_read(headers: dict[str, str]) -> None:
    cause_of(headers)
    cause_of(list(headers.items()))


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(),
        st.dictionaries(st.sampled_from(["traceparent", "baggage", b"baggage", 7]), st.integers()),
        st.lists(st.tuples(st.binary(), st.binary())),
        st.lists(st.integers()),
    )
)
def test_what_is_no_headers_names_no_step(headers: Any) -> None:
    assert cause_of(headers) is None


@given(causes, st.dictionaries(names, values))
def test_what_is_written_is_read_again(cause: Cause, headers: dict[str, str]) -> None:
    before = ",".join(value for name, value in headers.items() if name.lower() == "baggage")
    others = [member for member in members_of(before) if not own(member)]
    rest = {name for name in headers if name.lower() not in ("baggage", "traceparent")}
    write(headers, cause)
    assert headers["traceparent"] == cause.traceparent
    written = members_of(headers.get("baggage", ""))
    # The members of others are there as they were, and nothing else has gone.
    assert written[: len(others)] == others
    assert {name for name in rest if name.lower() != "tracestate"} <= headers.keys()
    assert [name for name in headers if name.lower() in ("baggage", "traceparent")] in (
        ["traceparent"],
        ["traceparent", "baggage"],
    )
    size = len(",".join(written).encode("utf-8", "replace"))
    if len(written) > len(others):
        assert len(written) <= MOST_MEMBERS
        assert size <= MOST_BYTES
        assert cause_of(headers) == cause
    else:
        assert cause_of(headers) == Cause(traceparent=cause.traceparent)
        assert cause.run_id is None or len(others) > MOST_MEMBERS - 2 or size > MOST_BYTES - 200
    again = dict(headers)
    write(again, cause)
    assert again == headers


@given(causes, st.sampled_from([str.upper, str.title, str.lower]))
def test_names_are_read_in_any_case_and_text_as_bytes(cause: Cause, in_case: Any) -> None:
    headers: dict[str, str] = {}
    write(headers, cause)
    for same in (
        {in_case(name): value for name, value in headers.items()},
        {in_case(name).encode(): value.encode() for name, value in headers.items()},
        [(name.encode(), value.encode()) for name, value in headers.items()],
        MappingProxyType(headers),
        httpx.Headers(headers),
    ):
        assert cause_of(same) == cause
    message = Message()
    for name, value in headers.items():
        message[name] = value
    assert cause_of(message) == cause  # type: ignore[arg-type]


def test_a_malformed_traceparent_is_ignored_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    for malformed in (
        "",
        "00",
        f"00-{trace}-{parent}",
        f"00-{trace}-{parent}-01-more",
        f"00-{trace.upper()}-{parent}-01",
        f"ff-{trace}-{parent}-01",
        f"0-{trace}-{parent}-01",
        f"00-{'0' * 32}-{parent}-01",
        f"00-{trace}-{'0' * 16}-01",
        f"00-{trace}-{parent}-1",
        f"00-{trace}-{parent}-xx",
        f"01-{trace}-{parent}-01more",
        f"00-{trace}-{parent}-01, 00-{trace}-{parent}-01",
    ):
        with case(malformed), caplog.at_level(logging.INFO, "prefactor_core"):
            caplog.clear()
            assert cause_of({"traceparent": malformed}) is None
            (record,) = caplog.records
            assert record.levelno == logging.INFO
            assert record.getMessage().endswith(": traceparent")
            # Without it, the ids in the baggage name the same step.
            named = cause_of({"traceparent": malformed, "baggage": OURS})
            expected = new_traceparent(trace_id_of(RUN), span_id_of(SPAN))
            assert named == Cause(traceparent=expected, run_id=RUN, span_id=SPAN)
    with caplog.at_level(logging.INFO, "prefactor_core"):
        caplog.clear()
        assert cause_of([("traceparent", TRACEPARENT), ("Traceparent", TRACEPARENT)]) is None
        assert cause_of({"accept": "*/*", "baggage": "userId=alice"}) is None
        assert len(caplog.records) == 1


def test_a_later_version_and_other_flags_are_read_as_far_as_they_are_known() -> None:
    for text, flags in (
        (f"cc{TRACEPARENT[2:]}", "01"),
        (f"cc{TRACEPARENT[2:]}-what-comes", "01"),
        (f"{TRACEPARENT[:-2]}03", "01"),
        (f"{TRACEPARENT[:-2]}02", "00"),
        (f"  {TRACEPARENT}\t", "01"),
    ):
        with case(text):
            assert cause_of({"traceparent": text}) == Cause(traceparent=TRACEPARENT[:-2] + flags)


def test_malformed_ids_in_the_baggage_are_ignored_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for malformed in (
        "prefactor.run_id=",
        "prefactor.run_id",
        f"prefactor.run_id={RUN[:-1]}",
        f"prefactor.run_id={RUN.upper()}",
        f"prefactor.span_id={SPAN}",
        f"prefactor.run_id={RUN},prefactor.span_id=mine",
    ):
        with case(malformed), caplog.at_level(logging.INFO, "prefactor_core"):
            caplog.clear()
            headers = {"traceparent": TRACEPARENT, "baggage": malformed}
            assert cause_of(headers) == Cause(traceparent=TRACEPARENT)
            (record,) = caplog.records
            assert (record.levelno, record.getMessage()[-9:]) == (logging.INFO, ": baggage")
            assert SPAN not in record.getMessage()


def test_the_members_of_several_baggage_headers_count() -> None:
    first, second = OURS.split(",")
    pairs = [("baggage", f"a=1, {first} ;p"), ("traceparent", TRACEPARENT), ("Baggage", second)]
    assert cause_of(pairs) == CAUSE
    headers = {"Baggage": "a=1;p=q , b=%20", "baggage": "c"}
    write(headers, CAUSE)
    assert headers == {"traceparent": TRACEPARENT, "baggage": f"a=1;p=q,b=%20,c,{OURS}"}


def test_the_baggage_of_others_has_precedence_where_there_is_no_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for others, has_room in (
        (",".join(f"k{n}=v" for n in range(MOST_MEMBERS - 2)), True),
        (",".join(f"k{n}=v" for n in range(MOST_MEMBERS - 1)), False),
        ("k=" + "v" * (MOST_BYTES - len(OURS) - 3), True),
        ("k=" + "v" * (MOST_BYTES - len(OURS) - 2), False),
    ):
        with case(others[:20]), caplog.at_level(logging.INFO, "prefactor_core"):
            caplog.clear()
            headers = {"baggage": others}
            write(headers, CAUSE)
            assert headers["baggage"] == (f"{others},{OURS}" if has_room else others)
            assert headers["traceparent"] == TRACEPARENT
            assert bool(caplog.records) is not has_room


def test_the_state_of_another_trace_is_removed_with_it() -> None:
    other = TRACEPARENT.replace("0af7", "0af8")
    for traceparent, state in ((TRACEPARENT, True), (other, False), ("malformed", False)):
        with case(traceparent):
            headers = {"TraceParent": traceparent, "TraceState": "vendor=1"}
            write(headers, CAUSE)
            assert ("TraceState" in headers, "TraceParent" in headers) == (state, False)


def test_the_cause_is_the_last_field_of_a_payload() -> None:
    for payload, others in ((b"{}", {}), (b'{"n":1,"o":{}}', {"n": 1, "o": {}})):
        with case(payload):
            added = CAUSE.added_to(msgspec.Raw(payload))
            assert msgspec.json.decode(added) == {**others, FIELD: msgspec.to_builtins(CAUSE)}
            assert cause_in(added) == CAUSE
            # A payload that was copied keeps the cause that it names.
            assert Cause(traceparent=TRACEPARENT).added_to(added) == added
    assert msgspec.to_builtins(Cause(traceparent=TRACEPARENT)) == {"traceparent": TRACEPARENT}


def test_a_payload_that_names_no_valid_cause_has_none() -> None:
    deep = b'{"prefactor_caused_by":' + b'{"a":' * 3_000 + b"1" + b"}" * 3_001
    named = (
        {},
        {"traceparent": "x"},
        {"traceparent": f"{TRACEPARENT}\n"},
        {"traceparent": TRACEPARENT, "run_id": "x"},
        {"traceparent": TRACEPARENT, "span_id": f"{SPAN}\n"},
        7,
        None,
    )
    encoded = [msgspec.json.encode({FIELD: value}) for value in named]
    for payload in (*encoded, deep, b"{}", b"null", b"[1]", b'"prefactor_caused_by":'):
        with case(payload[:60]):
            assert cause_in(msgspec.Raw(payload)) is None


def test_trace_ids_do_not_change_with_the_partition() -> None:
    provisional = RUN[:10] + "000000" + RUN[16:]
    assert trace_id_of(provisional) == trace_id_of(RUN) != trace_id_of(SPAN)
    assert span_id_of(provisional) == span_id_of(RUN) != span_id_of(SPAN)
    assert (len(trace_id_of(RUN)), len(span_id_of(RUN))) == (32, 16)
    # These stand in what others have stored: they must never change.
    assert trace_id_of("0" * 32) == "575b83480d348cd3168ffbb874e26156"
