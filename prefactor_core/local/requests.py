"""Request bodies of the API, and their checks. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from prefactor_core.exceptions import in_message
from prefactor_core.local.errors import ApiError, invalid
from prefactor_core.local.forms import (
    PURPOSES,
    Items,
    Key,
    NewId,
    NewStatus,
    Outcome,
    Purpose,
    Text,
    Time,
)
from prefactor_core.models.lifecycle import OUTCOMES
from prefactor_core.operations.identifiers import is_pfid, partition_of

T = TypeVar("T", bound=Struct)


_MAX_DEPTH: Final = 800
"""The levels of a body; SQLite reads no JSON beyond 1,000."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")

_STORED: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)

_PATH: Final = re.compile(r" - at `\$\.?(?:details\.)?([^`]*)`$")
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")


class RegisterBody(Struct, kw_only=True):
    """POST agent_instance/register; ``update_current_version``: null is true."""

    agent_version: dict[str, Any]
    agent_schema_version: dict[str, Any] | None = None
    agent_id: str | None = None
    id: NewId | None = None
    environment_id: str | None = None
    external_identifier: str | None = None
    purpose: Purpose | None = None
    update_current_version: bool | None = True
    idempotency_key: Key | None = None


class StartBody(Struct, kw_only=True):
    """POST agent_instance/{id}/start."""

    timestamp: Time | None = None
    idempotency_key: Key | None = None


class FinishInstanceBody(Struct, kw_only=True):
    """POST agent_instance/{id}/finish."""

    status: Outcome | None = None
    timestamp: Time | None = None
    idempotency_key: Key | None = None


class TerminateBody(Struct, kw_only=True):
    """POST agent_instance/{id}/terminate."""

    reason: Text
    idempotency_key: Key | None = None


class RecordQualityBody(Struct, kw_only=True):
    """POST agent_instance/{id}/record_quality; a ``payload`` of None removes this name."""

    name: str
    payload: dict[str, Any] | None
    idempotency_key: Key | None = None


class InstanceChanges(Struct, kw_only=True):
    """``details`` of PUT agent_instance/{id}; None takes the quality payload away."""

    quality_payload: dict[str, Any] | UnsetType | None = UNSET


class UpdateInstanceBody(Struct, kw_only=True):
    """PUT agent_instance/{id}."""

    details: InstanceChanges
    idempotency_key: Key | None = None


class SpanDetails(Struct, kw_only=True):
    """``details`` of POST agent_spans."""

    agent_instance_id: str
    schema_name: Text
    status: NewStatus
    payload: dict[str, Any]
    id: NewId | None = None
    parent_span_id: str | None = None
    result_payload: dict[str, Any] | None = None
    started_at: Time | None = None
    finished_at: Time | None = None
    sensitive_encoding: bool | None = None
    idempotency_key: Key | None = None


class CreateSpanBody(Struct, kw_only=True):
    """POST agent_spans; clients send the key beside ``details`` or inside."""

    details: SpanDetails
    idempotency_key: Key | None = None


class FinishSpanBody(Struct, kw_only=True):
    """POST agent_spans/{id}/finish."""

    status: Outcome | None = None
    timestamp: Time | None = None
    result_payload: dict[str, Any] | None = None
    sensitive_encoding: bool | None = None
    idempotency_key: Key | None = None


class NewAgent(Struct, kw_only=True):
    """``details`` of POST agent."""

    name: Text
    id: NewId | None = None
    description: str | None = None
    external_identifier: str | None = None
    owner_person_id: str | None = None
    risk_profile_id: str | None = None
    team_id: str | None = None


class CreateAgentBody(Struct, kw_only=True):
    """POST agent."""

    details: NewAgent
    idempotency_key: Key | None = None


class AgentChanges(Struct, kw_only=True):
    """``details`` of PUT agent/{id}; a field that is UNSET stays as it is."""

    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    external_identifier: str | UnsetType | None = UNSET
    owner_person_id: str | UnsetType | None = UNSET
    risk_profile_id: str | UnsetType | None = UNSET
    team_id: str | UnsetType | None = UNSET


class UpdateAgentBody(Struct, kw_only=True):
    """PUT agent/{id}."""

    details: AgentChanges
    idempotency_key: Key | None = None


class ActBody(Struct, kw_only=True):
    """The body of a call that needs no more than its path, such as POST agent/{id}/retire."""

    idempotency_key: Key | None = None


class BulkBody(Struct, kw_only=True):
    """POST bulk; each item is the body of another call, with the type of that call."""

    items: Items


class BulkItem(Struct, kw_only=True):
    """The fields that every bulk item has; the key is also the name of its output."""

    type: str = msgspec.field(name="_type")
    idempotency_key: Key


class InstanceItem(Struct, kw_only=True):
    """A bulk item about one agent instance; the single call has this id in its path."""

    agent_instance_id: str


class AgentItem(Struct, kw_only=True):
    """A bulk item about one agent, likewise."""

    agent_id: str


class EnvironmentItem(Struct, kw_only=True):
    """A bulk item about one environment, likewise."""

    environment_id: str


class SpanItem(Struct, kw_only=True):
    """A bulk item about one span, likewise."""

    agent_span_id: str


class ListItem(Struct, kw_only=True):
    """A bulk item that lists: the query of the single call, without pagination and sorting."""

    agent_id: str | None = None
    agent_instance_id: str | None = None
    external_identifier: str | None = None


class _Named(Struct):
    """The one required field of an entry of span_type_schemas or quality_schemas."""

    name: str


def parse_body(content: bytes, body_type: type[T]) -> T:
    """Decode and check a body. Raises :class:`ApiError` (400, or 422 with the field)."""
    try:
        body = msgspec.json.decode(content or b"{}", type=body_type)
    except msgspec.ValidationError as error:
        raise _wrong_form(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, "bad_request", f"the body is not JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    if _is_too_deep(content):
        raise _too_deep()
    return body


def convert_body(value: Mapping[str, Any], body_type: type[T]) -> T:
    """Check a body that is decoded already; raises as :func:`parse_body`."""
    try:
        return msgspec.convert(value, body_type)
    except msgspec.ValidationError as error:
        raise _wrong_form(error) from None
    except RecursionError:
        raise _too_deep() from None


def _is_too_deep(content: bytes) -> bool:
    """Whether ``content``, which is valid JSON, has too many levels."""
    if content.count(b"{") + content.count(b"[") <= _MAX_DEPTH:
        return False
    without_escapes = content.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(without_escapes.split(b'"')[::2])
    brackets = outside_strings.translate(_SQUARE, _NO_BRACKETS)
    # Each turn takes away the innermost level of all that is left, which soon is nothing.
    turns = 16
    for _ in range(turns):
        brackets = brackets.replace(b"[]", b"")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[" else -1
        if depth > _MAX_DEPTH - turns:
            return True
    return False


def _too_deep() -> ApiError:
    return ApiError(400, "bad_request", f"the body is nested deeper than {_MAX_DEPTH} levels")


def _wrong_form(error: msgspec.ValidationError) -> ApiError:
    text = str(error)
    path = _PATH.search(text)
    missing = _MISSING.search(text)
    if missing:
        return invalid(missing[1], "is required", "required")
    if path is None:
        return ApiError(400, "bad_request", text)
    return invalid(path[1], text[: path.start()])


def registration_of(body: RegisterBody, own: Mapping[str, str], account_id: str) -> RegisterBody:
    """Fill in the agent and the environment of the caller, ``own``, empty for the account.

    Raises :class:`ApiError` (422) if the body has others, or no agent.
    """
    for name, value in own.items():
        given = getattr(body, name)
        if given is not None and given != value:
            raise invalid(name, f"the token is of another one than {given!r}")
    agent_id = own.get("agent_id", body.agent_id)
    if not agent_id:
        raise invalid("agent_id", "is required", "required")
    environment_id = own.get("environment_id", body.environment_id) or account_id
    return msgspec.structs.replace(body, agent_id=agent_id, environment_id=environment_id)


def parse_time(field: str, text: str | None, default: str) -> str:
    """An ISO 8601 time as stored: UTC with microseconds, so that texts sort by time.

    None gives ``default``. Raises :class:`ApiError` (422) for a time without an offset from UTC.
    """
    if text is None:
        return default
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise invalid(field, f"{text!r} has no offset from UTC")
        return text if _STORED.match(text) else stored_time(time)
    except (ValueError, OverflowError):
        raise invalid(field, f"{text!r} is not an ISO 8601 time") from None


def ended_at(started_at: str | None, finished_at: str) -> tuple[str, list[str]]:
    """The end time, not before the start, and the flags for a time that was changed.

    The clocks of clients differ, and are set back. The API does not forbid an end before the start,
    and official clients end all telemetry at an error.
    """
    if started_at is None or finished_at >= started_at:
        return finished_at, []
    return started_at, [f"finished_at: {finished_at} is before the start, {started_at}"]


def stored_time(time: datetime) -> str:
    """Format an aware time as stored."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def stored_now() -> str:
    """The current time, as stored."""
    return stored_time(datetime.now(UTC))


def check_outcome(status: str | None) -> str:
    """Check the final status of a run or a span; None gives ``complete``."""
    if status is None:
        return "complete"
    if status not in OUTCOMES:
        raise invalid(
            "status", f"must be one of {', '.join(sorted(OUTCOMES))}, got {in_message(status)}"
        )
    return status


def check_purpose(purpose: str | None) -> str:
    """Check the purpose of a run; None gives ``live``."""
    if purpose is None:
        return "live"
    if purpose not in PURPOSES:
        raise invalid("purpose", f"must be one of {', '.join(PURPOSES)}, got {in_message(purpose)}")
    return purpose


def check_id(id: str, partition: int) -> str:
    """Check an id that the caller chose: a PFID of the account's ``partition``."""
    if not is_pfid(id):
        raise invalid("id", f"{id!r} is not a PFID")
    if partition_of(id) != partition:
        raise invalid("id", f"{id!r} is not of this account's partition")
    return id


def check_key(key: str | None) -> str | None:
    """Check an idempotency key: 1 to 128 characters, or None."""
    if key is not None and not 1 <= len(key) <= 128:
        raise invalid("idempotency_key", f"must have 1 to 128 characters, has {len(key)}")
    return key


def external_identifier_of(kind: str, version: Mapping[str, Any]) -> str | None:
    """The external_identifier of an agent_version or agent_schema_version, or None."""
    name = version.get("external_identifier")
    if name is not None and not isinstance(name, str):
        raise invalid(kind, f"external_identifier must be a string, got {in_message(name)}")
    return name


def check_schema_version(version: Mapping[str, Any]) -> None:
    """Check the form of an agent_schema_version; raises :class:`ApiError` (422)."""
    for name in ("span_type_schemas", "quality_schemas"):
        try:
            msgspec.convert(version.get(name), list[_Named] | None)
        except msgspec.ValidationError as error:
            raise invalid("agent_schema_version", f"{name}: {error}") from None
    for name in ("span_schemas", "span_result_schemas"):
        if not isinstance(version.get(name), dict | None):
            raise invalid("agent_schema_version", f"{name} must map names to schemas")
    if version.get("span_result_schemas") is not None and not (
        version.get("span_schemas") is not None or version.get("span_type_schemas") is not None
    ):
        raise invalid(
            "agent_schema_version", "span_result_schemas goes only together with span_schemas"
        )
