"""The bodies of the calls, and how they are checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from prefactor_core.exceptions import in_message
from prefactor_core.local.refusal import Refusal, invalid
from prefactor_core.models.lifecycle import OUTCOMES
from prefactor_core.operations.identifiers import is_pfid, partition_of

T = TypeVar("T", bound=Struct)

_PURPOSES = ("live", "smoke_test", "eval")

_PATH = re.compile(r" - at `\$\.?(?:details\.)?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")


class RegisterBody(Struct, kw_only=True):
    """POST agent_instance/register."""

    agent_version: dict[str, Any]
    agent_schema_version: dict[str, Any] | None = None
    agent_id: str | None = None
    id: str | None = None
    environment_id: str | None = None
    external_identifier: str | None = None
    purpose: str | None = None
    update_current_version: bool = True
    idempotency_key: str | None = None


class StartBody(Struct, kw_only=True):
    """POST agent_instance/{id}/start."""

    timestamp: str | None = None
    idempotency_key: str | None = None


class FinishInstanceBody(Struct, kw_only=True):
    """POST agent_instance/{id}/finish."""

    status: str | None = None
    timestamp: str | None = None
    idempotency_key: str | None = None


class TerminateBody(Struct, kw_only=True):
    """POST agent_instance/{id}/terminate."""

    reason: str
    idempotency_key: str | None = None


class RecordQualityBody(Struct, kw_only=True):
    """POST agent_instance/{id}/record_quality; None takes the payload of this name away."""

    name: str
    payload: dict[str, Any] | None
    idempotency_key: str | None = None


class SpanDetails(Struct, kw_only=True):
    """What is inside ``details`` of POST agent_spans."""

    agent_instance_id: str
    schema_name: str
    status: str
    payload: dict[str, Any]
    id: str | None = None
    parent_span_id: str | None = None
    result_payload: dict[str, Any] | None = None
    started_at: str | None = None
    finished_at: str | None = None
    sensitive_encoding: bool | None = None
    idempotency_key: str | None = None


class CreateSpanBody(Struct, kw_only=True):
    """POST agent_spans; the key stands beside the details or inside (API.md section 5)."""

    details: SpanDetails
    idempotency_key: str | None = None


class FinishSpanBody(Struct, kw_only=True):
    """POST agent_spans/{id}/finish."""

    status: str | None = None
    timestamp: str | None = None
    result_payload: dict[str, Any] | None = None
    sensitive_encoding: bool | None = None
    idempotency_key: str | None = None


class NewAgent(Struct, kw_only=True):
    """What is inside ``details`` of POST agent."""

    name: str
    id: str | None = None
    description: str | None = None
    external_identifier: str | None = None
    owner_person_id: str | None = None
    risk_profile_id: str | None = None
    team_id: str | None = None


class CreateAgentBody(Struct, kw_only=True):
    """POST agent."""

    details: NewAgent
    idempotency_key: str | None = None


class AgentChanges(Struct, kw_only=True):
    """What is inside ``details`` of PUT agent/{id}; what is left out stays as it is."""

    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    external_identifier: str | UnsetType | None = UNSET
    owner_person_id: str | UnsetType | None = UNSET
    risk_profile_id: str | UnsetType | None = UNSET
    team_id: str | UnsetType | None = UNSET


class UpdateAgentBody(Struct, kw_only=True):
    """PUT agent/{id}."""

    details: AgentChanges
    idempotency_key: str | None = None


class MoveAgentBody(Struct, kw_only=True):
    """POST agent/{id}/retire and agent/{id}/reinstate."""

    idempotency_key: str | None = None


class BulkBody(Struct, kw_only=True):
    """POST bulk; each item is the body of another call, and says of which."""

    items: list[dict[str, Any]]


class BulkItem(Struct, kw_only=True):
    """What every item of a bulk has; the key is also the name of its output."""

    type: str = msgspec.field(name="_type")
    idempotency_key: str


class InstanceItem(Struct, kw_only=True):
    """An item about one agent instance, which the single call names in its path."""

    agent_instance_id: str


class AgentItem(Struct, kw_only=True):
    """An item about one agent, likewise."""

    agent_id: str


class SpanItem(Struct, kw_only=True):
    """An item about one span, likewise."""

    agent_span_id: str


class ListItem(Struct, kw_only=True):
    """An item that lists: what the single call has in its query, besides page and sorting."""

    agent_id: str | None = None
    agent_instance_id: str | None = None
    external_identifier: str | None = None


class _Named(Struct):
    """What an entry of span_type_schemas or of quality_schemas has at least."""

    name: str


def parse_body(content: bytes, body_type: type[T]) -> T:
    """The body as ``body_type``, or the :class:`Refusal` that the API gives."""
    try:
        return msgspec.json.decode(content or b"{}", type=body_type)
    except msgspec.ValidationError as error:
        raise _wrong_form(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "bad_request", f"the body is not JSON: {error}") from None


def convert_body(value: Mapping[str, Any], body_type: type[T]) -> T:
    """As :func:`parse_body`, from JSON that is decoded already."""
    try:
        return msgspec.convert(value, body_type)
    except msgspec.ValidationError as error:
        raise _wrong_form(error) from None
    except RecursionError:
        raise Refusal(400, "bad_request", "the item is nested too deep") from None


def _wrong_form(error: msgspec.ValidationError) -> Refusal:
    text = str(error)
    path = _PATH.search(text)
    missing = _MISSING.search(text)
    if missing:
        return invalid(missing[1], "is required", "required")
    if path is None:
        return Refusal(400, "bad_request", text)
    return invalid(path[1], text[: path.start()])


def parse_time(field: str, text: str | None, default: str) -> str:
    """A time as stored: UTC with microseconds, so that the order of text is that of time.

    None is ``default``. A time without offset is refused (API.md section 4).
    """
    if text is None:
        return default
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise invalid(field, f"{text!r} has no offset from UTC")
        return stored_time(time)
    except (ValueError, OverflowError):
        raise invalid(field, f"{text!r} is not an ISO 8601 time") from None


def stored_time(time: datetime) -> str:
    """An aware time, as stored."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def stored_now() -> str:
    """This moment, as stored."""
    return stored_time(datetime.now(UTC))


def check_outcome(status: str | None) -> str:
    """How something ended; None is ``complete``."""
    if status is None:
        return "complete"
    if status not in OUTCOMES:
        raise invalid(
            "status", f"must be one of {', '.join(sorted(OUTCOMES))}, got {in_message(status)}"
        )
    return status


def check_purpose(purpose: str | None) -> str:
    """What a run is for; None is ``live`` (API.md section 6.1)."""
    if purpose is None:
        return "live"
    if purpose not in _PURPOSES:
        raise invalid(
            "purpose", f"must be one of {', '.join(_PURPOSES)}, got {in_message(purpose)}"
        )
    return purpose


def check_id(id: str, partition: int) -> str:
    """An id that the caller chose: a PFID of the account's partition (API.md section 3)."""
    if not is_pfid(id):
        raise invalid("id", f"{id!r} is not a PFID")
    if partition_of(id) != partition:
        raise invalid("id", f"{id!r} is not of this account's partition")
    return id


def check_key(key: str | None) -> str | None:
    """An idempotency key: 1 to 128 characters."""
    if key is not None and not 1 <= len(key) <= 128:
        raise invalid("idempotency_key", f"must have 1 to 128 characters, has {len(key)}")
    return key


def external_identifier_of(kind: str, version: Mapping[str, Any]) -> str | None:
    """The name of an agent_version or agent_schema_version; it may have none."""
    name = version.get("external_identifier")
    if name is not None and not isinstance(name, str):
        raise invalid(kind, f"external_identifier must be a string, got {in_message(name)}")
    return name


def check_schema_version(version: Mapping[str, Any]) -> None:
    """The parts that an agent_schema_version needs (API.md section 9)."""
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
