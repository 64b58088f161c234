"""Values marked as sensitive: their construction, their JSON, and their form in requests."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from support.cases import for_each
from support.harness import Call, recording

from prefactor_core import DataCategory, PrefactorValueError, Sensitive, sensitive
from prefactor_core.payloads.capture import Capture

capture = Capture()

pytestmark = pytest.mark.virtual_time

EMAIL = "ada@example.com"
TAGGED = {"$sensitive": "string", "labels": ["contact_information"], "value": EMAIL}


class Name(StrEnum):
    ADA = "Ada"


class Text(str):
    __slots__ = ()


# One value.


@given(
    value=st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    labels=st.lists(st.sampled_from(get_args(DataCategory)), min_size=1, max_size=3),
)
def test_a_value_is_written_with_its_kind_and_its_labels(value: Any, labels: Any) -> None:
    kind = "string" if isinstance(value, str) else "number"
    expected = {"$sensitive": kind, "labels": labels, "value": value}
    assert msgspec.json.decode(capture({"in": [sensitive(value, *labels)]})) == {"in": [expected]}


@for_each("value", [True, False])
def test_a_boolean_is_no_number(value: bool) -> None:
    marked = sensitive(value, "health_and_medical", "minors_data")
    assert msgspec.json.decode(msgspec.json.encode(marked)) == {
        "$sensitive": "boolean",
        "labels": ["health_and_medical", "minors_data"],
        "value": value,
    }


@for_each("value", [Name.ADA, Text("Ada")])
def test_a_value_of_a_subclass_is_a_plain_one(value: str) -> None:
    marked = sensitive(value, "personal_identifiers")
    assert (type(marked.value), marked.value) == (str, "Ada")


def test_there_are_seventeen_categories() -> None:
    assert len(set(get_args(DataCategory))) == 17
    assert all(isinstance(sensitive(1, name), Sensitive) for name in get_args(DataCategory))


def test_the_value_is_not_shown() -> None:
    marked = sensitive(EMAIL, "contact_information", "minors_data")
    assert repr(marked) == "<sensitive string: contact_information, minors_data>"
    assert EMAIL not in f"{marked} {marked!r} {marked.__rich_repr__()}"


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        sensitive(EMAIL, "contact_information").value = ""  # type: ignore[misc]


def test_a_label_that_is_nearly_one_is_corrected() -> None:
    with pytest.raises(PrefactorValueError) as caught:
        sensitive(EMAIL, "contact_info")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "'contact_info' is no data category: is 'contact_information' what is meant?"
    )


@for_each("labels", [(EMAIL,), ("contact_information", EMAIL), (1,), (["a"],), ()])
def test_what_is_no_label_is_not_shown_since_it_may_be_the_value(labels: Any) -> None:
    with pytest.raises(PrefactorValueError, match="data categories") as caught:
        sensitive("078-05-1120", *labels)
    assert EMAIL not in str(caught.value)
    assert "078-05-1120" not in str(caught.value)


@for_each(
    ("value", "what"),
    [
        (math.nan, "no finite number"),
        (math.inf, "no finite number"),
        (None, "a NoneType"),
        ({"secret": "078-05-1120"}, "a dict"),
        (b"078-05-1120", "a bytes"),
    ],
)
def test_what_cannot_be_marked_is_an_error_that_does_not_show_it(value: Any, what: str) -> None:
    with pytest.raises(PrefactorValueError, match=f"boolean, and is {what}") as caught:
        sensitive(value, "personal_identifiers")
    assert "078" not in str(caught.value)


# In a payload.


def circular() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


@for_each("beside", [1, {1, 2}, {(1, 2): 3}, object(), circular()], ids=lambda b: type(b).__name__)
@for_each("redact", [None, lambda payload: payload])
def test_it_is_written_the_same_beside_whatever(beside: object, redact: Any) -> None:
    marked = sensitive(EMAIL, "contact_information")
    payload = {"to": marked, "cc": [{"deep": marked}], "beside": beside}
    written = Capture(redact=redact)(payload)
    decoded = msgspec.json.decode(written)
    assert (decoded["to"], decoded["cc"]) == (TAGGED, [{"deep": TAGGED}])
    assert b'"$sensitive":' in bytes(written)


def test_redact_sees_what_is_marked_as_what_is_written() -> None:
    seen: list[object] = []

    def redact(payload: dict[str, object]) -> dict[str, object]:
        seen.append(payload["to"])
        return {"to": "[redacted]"}

    written = Capture(redact=redact)({"to": sensitive(EMAIL, "contact_information")})
    assert (bytes(written), seen) == (b'{"to":"[redacted]"}', [TAGGED])


def test_what_is_cut_is_marked_still() -> None:
    limited = Capture(max_payload_bytes=1_024)
    written = limited({"to": sensitive(EMAIL * 1_000, "contact_information"), "n": 1})
    cut = msgspec.json.decode(written)["to"]
    assert (cut["$sensitive"], cut["labels"]) == ("string", ["contact_information"])
    assert cut["value"].startswith(EMAIL)
    assert cut["value"].endswith("characters truncated]")
    assert len(written) <= 1_024


# The labels that the API gets


def labels_in(calls: list[Call]) -> list[object]:
    """What each create and finish of a span said of it."""
    bodies = [call.body.get("details", call.body) for call in calls if "agent_span" in call.path]
    return [body.get("sensitive_encoding", UNSET) for body in bodies]


MARKED = {"to": sensitive(EMAIL, "contact_information")}
PLAIN = {"to": EMAIL, "note": '"$sensitive": is how it is written, {"$sensitive":"string"}'}


@pytest.mark.parametrize("bulk", [True, False])
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("payload", [MARKED, PLAIN])
@pytest.mark.parametrize("result", [MARKED, PLAIN, None])
async def test_the_api_gets_the_labels_of_marked_values_only(
    payload: Any, result: Any, merged: bool, bulk: bool
) -> None:
    async with recording(queue={"max_batch_operations": 100 if bulk else 1}) as recorded:
        async with recorded.instance.span("agent:llm", payload=payload) as span:
            span.start_nowait()  # no turn of the loop, in which a worker could take the start alone
            if not merged:
                await recorded.client.flush()
            span.complete_nowait(result)
        await recorded.client.flush()
        said = labels_in(recorded.api.operations)
    ours = [True if each is MARKED else UNSET for each in (payload, result)]
    if merged:
        assert said == [True if True in ours else UNSET]
    else:
        assert said == ours
    llm = recorded.run.named("agent:llm")
    assert llm.payload["to"] == (TAGGED if payload is MARKED else EMAIL)
    if result is not None:
        assert llm.result["to"] == (TAGGED if result is MARKED else EMAIL)


async def test_what_is_left_out_for_its_size_is_not_marked() -> None:
    async with recording(max_payload_bytes=1_024) as recorded:
        many = {str(n): sensitive(n, "minors_data") for n in range(100)}
        async with recorded.instance.span("agent:llm", payload=many):
            pass
        await recorded.client.flush()
        assert labels_in(recorded.api.operations) == [UNSET]
    assert "$truncated" in recorded.run.named("agent:llm").payload


def test_a_payload_that_is_json_already_keeps_its_marks() -> None:
    raw = Raw(msgspec.json.encode(MARKED))
    assert b'"$sensitive":' in bytes(capture({"raw": raw}))
