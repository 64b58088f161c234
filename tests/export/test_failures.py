"""Failure kinds: what each answer of the API, or the want of one, means for an operation."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from support.cases import for_each

from prefactor_core.api.errors import error_from_answer
from prefactor_core.exceptions import (
    OperationError,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorContractError,
    PrefactorNotFoundError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValidationError,
    PrefactorValueError,
)
from prefactor_core.export.failures import (
    FailureKind,
    classify,
    classify_request,
    is_firm,
    is_of_the_api,
    is_out_of_service,
    lacks_call,
    outcome_is_unknown,
    was_not_sent,
)
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    OperationType,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
    UpdateSpanPayload,
)

COMMON: dict[str, Any] = {
    "timestamp": datetime(2026, 7, 20, 12, tzinfo=UTC),
    "idempotency_key": "key-of-the-step",
    "instance_id": "run",
}
OPERATIONS: list[Operation] = [
    RegisterAgentInstance(
        **COMMON, agent_id="agent", agent_version=Raw(b"{}"), agent_schema_version={}
    ),
    StartAgentInstance(**COMMON),
    FinishAgentInstance(**COMMON, status=InstanceStatus.COMPLETE),
    CreateSpan(
        **COMMON,
        span_id="span",
        schema_name="agent:llm",
        status=SpanStatus.ACTIVE,
        payload=Raw(b"{}"),
    ),
    FinishSpan(**COMMON, span_id="span", status=SpanStatus.COMPLETE),
    UpdateSpanPayload(**COMMON, span_id="span", payload=Raw(b"{}")),
    RecordQuality(**COMMON, name="accuracy", payload=Raw(b"{}")),
]
CREATE = OPERATIONS[3]
FINISHES = {OperationType.FINISH_AGENT_INSTANCE, OperationType.FINISH_SPAN}

every_operation = for_each("operation", OPERATIONS)

PROPER = {
    400: FailureKind.REFUSED,
    401: FailureKind.DENIED,
    402: FailureKind.REFUSED,
    403: FailureKind.DENIED,
    404: FailureKind.REFUSED,
    405: FailureKind.REFUSED,
    407: FailureKind.REFUSED,
    408: FailureKind.FAILED,
    410: FailureKind.REFUSED,
    413: FailureKind.TOO_LARGE,
    418: FailureKind.REFUSED,
    422: FailureKind.REFUSED,
    423: FailureKind.REFUSED,
    425: FailureKind.FAILED,
    429: FailureKind.BUSY,
    431: FailureKind.REFUSED,
    451: FailureKind.REFUSED,
    499: FailureKind.REFUSED,
    500: FailureKind.FAILED,
    501: FailureKind.FAILED,
    502: FailureKind.FAILED,
    503: FailureKind.FAILED,
    504: FailureKind.FAILED,
    599: FailureKind.FAILED,
}
"""What an answer in the form of the API means, for a single operation and for bulk."""


def answer(status: int, body: bytes | None = None, **how: Any) -> PrefactorApiError:
    """The error that an answer becomes."""
    if body is None:
        body = b'{"status":"error","code":"spoiled","message":"no"}'
    return error_from_answer("POST bulk", status, body, None, **how)


@every_operation
@for_each(("status", "kind"), PROPER.items())
def test_the_status_of_an_answer_decides(
    operation: Operation, status: int, kind: FailureKind
) -> None:
    assert classify(operation, answer(status)) is kind
    assert classify_request(answer(status)) is kind


@every_operation
def test_a_step_that_is_in_conflict_was_made_already(operation: Operation) -> None:
    steps = {*FINISHES, OperationType.START_AGENT_INSTANCE}
    expected = FailureKind.ALREADY_DONE if operation.type in steps else FailureKind.REFUSED
    assert classify(operation, answer(409)) is expected


def test_a_conflict_of_a_whole_request_completes_nothing() -> None:
    # Bulk tells its conflicts by item; one for all of them does not say which.
    assert classify_request(answer(409)) is FailureKind.REFUSED


@for_each("body", [b"", b"<html>", b"[]", b'"no"', b'{"detail":"Not Found"}'])
@for_each("status", [*PROPER, 409])
def test_what_is_not_in_the_form_of_the_api_refuses_nothing(status: int, body: bytes) -> None:
    # Something in between answers: it has no say in what the API would take.
    error = answer(status, body)
    expected = FailureKind.BUSY if status == 429 else FailureKind.FAILED
    assert {classify(operation, error) for operation in OPERATIONS} == {expected}
    assert classify_request(error) is expected


@pytest.mark.parametrize("status", [400, 404, 408, 422, 451])
def test_a_status_that_is_configured_to_pass_passes(status: int) -> None:
    assert classify_request(answer(status, passing=(status,))) is FailureKind.FAILED


def test_a_conflict_that_is_configured_to_pass_is_no_end() -> None:
    for operation in OPERATIONS:
        assert classify(operation, answer(409, passing=(409,))) is FailureKind.FAILED


@every_operation
@for_each("status", [400, 422])
@for_each("name", ["id", "details.id"])
def test_only_the_create_of_a_span_can_be_refused_for_its_id(
    operation: Operation, status: int, name: str
) -> None:
    error = answer(status, fields(name, "schema_name"))
    is_create = operation.type is OperationType.CREATE_SPAN
    assert classify(operation, error) is (
        FailureKind.ID_REFUSED if is_create else FailureKind.REFUSED
    )
    assert classify_request(error) is FailureKind.REFUSED


@every_operation
@for_each("name", ["parent_span_id", "agent_instance_id", "details", "i", ""])
def test_another_field_is_not_the_id(operation: Operation, name: str) -> None:
    error = PrefactorValidationError("no", status_code=422, errors={name: "wrong"})
    assert classify(operation, error) is FailureKind.REFUSED


def fields(*names: str) -> bytes:
    """The body of an answer that finds these fields wrong."""
    errors = {name: {"code": "invalid_value"} for name in names}
    return msgspec.json.encode({"status": "error", "errors": errors})


@every_operation
@for_each("status", [400, 422])
@for_each("names", [["parent_span_id"], ["id", "details.parent_span_id"]])
def test_only_a_span_with_a_parent_can_be_refused_for_it(
    operation: Operation, status: int, names: list[str]
) -> None:
    error = answer(status, fields(*names))
    if not isinstance(operation, CreateSpan):
        assert classify(operation, error) is FailureKind.REFUSED
        return
    # The API cannot mean a parent that was not given.
    without = FailureKind.ID_REFUSED if "id" in names else FailureKind.REFUSED
    assert classify(operation, error) is without
    child = msgspec.structs.replace(operation, parent_span_id="parent")
    assert classify(child, error) is FailureKind.PARENT_REFUSED
    assert classify_request(error) is FailureKind.REFUSED


def test_what_the_api_does_not_find_of_a_child_may_be_its_parent() -> None:
    child = msgspec.structs.replace(CREATE, parent_span_id="parent")
    assert classify(child, answer(404)) is FailureKind.PARENT_REFUSED
    assert classify(CREATE, answer(404)) is FailureKind.REFUSED
    # A gateway that does not find the path says nothing of parents.
    assert classify(child, answer(404, b"<html>")) is FailureKind.FAILED
    for status in (401, 405, 409, 410, 413, 429, 500, 503):
        assert classify(child, answer(status)) is classify(CREATE, answer(status))


CLASSES: list[tuple[Exception, FailureKind]] = [
    (PrefactorUnreachableError("nobody is there"), FailureKind.FAILED),
    (PrefactorContractError("what is this", status_code=200), FailureKind.FAILED),
    (PrefactorContractError("what is this"), FailureKind.FAILED),
    (PrefactorServerError("no", status_code=500), FailureKind.FAILED),
    (PrefactorRateLimitError("slowly", status_code=429, retry_after=7.0), FailureKind.BUSY),
    (PrefactorAuthError("who", status_code=401), FailureKind.DENIED),
    (PrefactorNotFoundError("what", status_code=404), FailureKind.REFUSED),
    (PrefactorValidationError("no", status_code=422), FailureKind.REFUSED),
    (PrefactorApiError("no", status_code=418), FailureKind.REFUSED),
    (PrefactorValueError("cannot be written as JSON"), FailureKind.REFUSED),
    (OperationError("no such call"), FailureKind.REFUSED),
    # Bugs, ours or another's: never the operation's fault at the first sight.
    (RuntimeError("a bug"), FailureKind.FAILED),
    (KeyError("a bug"), FailureKind.FAILED),
    (ValueError("a bug"), FailureKind.FAILED),
    (TimeoutError(), FailureKind.FAILED),
    (OSError(), FailureKind.FAILED),
    (ExceptionGroup("bugs", [ValueError()]), FailureKind.FAILED),
]


@every_operation
@for_each(("error", "kind"), CLASSES)
def test_every_kind_of_error_has_its_meaning(
    operation: Operation, error: Exception, kind: FailureKind
) -> None:
    assert classify(operation, error) is kind
    assert classify_request(error) is kind


def all_kinds_of(cls: type[PrefactorApiError]) -> Iterator[type[PrefactorApiError]]:
    yield cls
    for kind in cls.__subclasses__():
        yield from all_kinds_of(kind)


def test_no_kind_of_error_of_the_api_was_forgotten_here() -> None:
    assert set(all_kinds_of(PrefactorApiError)) == {
        *{type(error) for error, _ in CLASSES if isinstance(error, PrefactorApiError)},
        PrefactorConflictError,
    }


# What else is asked of an error

ANSWERED = [*PROPER, 409]


@pytest.mark.parametrize("body", [None, b"<html>"], ids=["proper", "html"])
def test_a_call_is_lacking_by_its_status_also_from_a_gateway(body: bytes | None) -> None:
    assert {s for s in ANSWERED if lacks_call(answer(s, body))} == {404, 405, 501}


@pytest.mark.parametrize("error", [PrefactorUnreachableError("no"), ValueError("no")])
def test_without_an_answer_no_call_is_lacking(error: Exception) -> None:
    assert not lacks_call(error)


@pytest.mark.parametrize("status", ANSWERED)
def test_an_answer_is_of_the_api_if_it_is_in_its_form(status: int) -> None:
    assert is_of_the_api(answer(status))
    # Also of the statuses that mean the same from any sender: 429, and from 500 on.
    for body in (b"", b"<html>", b'{"detail":"Not Found"}'):
        assert not is_of_the_api(answer(status, body))


@pytest.mark.parametrize(
    "error",
    [
        PrefactorUnreachableError("nobody is there"),
        PrefactorContractError("what is this", status_code=200),
        PrefactorValueError("cannot be written as JSON"),
        RuntimeError("a bug"),
    ],
)
def test_what_is_no_answer_is_not_of_the_api(error: Exception) -> None:
    assert not is_of_the_api(error)


def test_the_api_refuses_firmly_what_it_has_looked_at() -> None:
    assert {status for status in ANSWERED if is_firm(answer(status))} == {400, 409, 422}
    assert not is_firm(PrefactorUnreachableError("nobody is there"))
    assert not is_firm(PrefactorValueError("cannot be written as JSON"))


def test_some_statuses_and_every_want_of_an_answer_speak_of_the_state_of_the_api() -> None:
    out = {status for status in ANSWERED if is_out_of_service(answer(status))}
    assert out == {408, 425, 429, 502, 503, 504}
    for error in (PrefactorUnreachableError("no"), PrefactorContractError("no"), OSError("no")):
        assert is_out_of_service(error)


def test_what_could_not_be_written_was_not_sent() -> None:
    not_sent = [error for error, _ in CLASSES if was_not_sent(error)]
    assert [type(error) for error in not_sent] == [PrefactorValueError, OperationError]


def test_without_an_answer_of_the_api_the_outcome_is_unknown() -> None:
    assert outcome_is_unknown(PrefactorUnreachableError("the connection broke"))
    assert outcome_is_unknown(
        PrefactorContractError("what was answered is no JSON", status_code=200)
    )
    # A gateway's own: the API behind it may have done it.
    assert {status for status in ANSWERED if outcome_is_unknown(answer(status))} == {502, 504}


def test_a_registration_is_refused_for_its_environment_only_where_one_was_added() -> None:
    plain = OPERATIONS[0]
    assert isinstance(plain, RegisterAgentInstance)
    added = msgspec.structs.replace(plain, runtime_environment=Raw(b'{"os":"linux"}'))
    for status in (400, 409, 422):
        assert classify(added, answer(status)) is FailureKind.ENVIRONMENT_REFUSED
        assert classify(added.as_given(), answer(status)) is FailureKind.REFUSED
        # A gateway has not looked at it.
        assert classify(added, answer(status, b"<html>")) is FailureKind.FAILED
    for status in (401, 404, 413, 429, 500):
        assert classify(added, answer(status)) is classify(plain, answer(status))
