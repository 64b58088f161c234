"""The forms of the answers, for the OpenAPI document. Its test compares them with real answers."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from msgspec import UNSET, Struct, UnsetType

T = TypeVar("T")
Success = Literal["success"]


class Control(Struct, kw_only=True):
    """The control signal to a terminated run."""

    terminate: bool
    reason: str | None


class Details(Struct, Generic[T], kw_only=True):
    """One object; ``control`` is there when its run is terminated."""

    status: Success
    details: T
    control: Control | UnsetType = UNSET


class Pagination(Struct, kw_only=True):
    """Where a page stands in its list. Offsets count from 0, the others from 1."""

    item_count: int
    item_start: int
    item_end: int
    next_page_offset: int | None
    previous_page_offset: int | None
    page_count: int
    page_index: int
    page_offset: int
    page_size: int


class Sorting(Struct, kw_only=True):
    """How a list is sorted."""

    field: str
    direction: Literal["asc", "desc"]
    nulls: Literal["first", "last"]


class Summaries(Struct, Generic[T], kw_only=True):
    """A page of a list."""

    status: Success
    summaries: list[T]
    pagination: Pagination | None
    sorting: Sorting | None


class FieldError(Struct, kw_only=True):
    """What is wrong with one field."""

    status: Literal["error"]
    code: str
    message: str


class Error(Struct, kw_only=True):
    """An error; ``errors`` are those of fields, by their names."""

    status: Literal["error"]
    code: str
    message: str
    errors: dict[str, FieldError] | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET


class Stored(Struct, kw_only=True):
    """The fields that every stored object has; times are ISO 8601 in UTC."""

    id: str
    account_id: str
    inserted_at: str
    updated_at: str


class Account(Struct, kw_only=True):
    """The account."""

    type: Literal["account"]
    id: str
    name: str
    status: str
    inserted_at: str
    updated_at: str


class AvailableActions(Struct, kw_only=True):
    """The calls that the state of an agent allows."""

    update: bool
    retire: bool
    reinstate: bool
    delete: bool


class SpanCounts(Struct, kw_only=True):
    """The spans of a run by their status."""

    total: int
    pending: int
    active: int
    complete: int
    failed: int
    cancelled: int
    finished: int


class InstanceCounts(SpanCounts, kw_only=True):
    """The runs of an agent by their status."""

    terminated: int


class Agent(Stored, kw_only=True):
    """An agent."""

    type: Literal["agent"]
    name: str
    description: str | None
    external_identifier: str | None
    owner_person_id: str | None
    risk_profile_id: str | None
    team_id: str | None
    status: Literal["pending", "active", "dormant", "retired"]
    available_actions: AvailableActions
    instance_counts: InstanceCounts


class Environment(Stored, kw_only=True):
    """An environment."""

    type: Literal["environment"]
    name: str


class AgentDeployment(Stored, kw_only=True):
    """An agent in an environment."""

    type: Literal["agent_deployment"]
    agent_id: str
    environment_id: str
    current_version_id: str | None


class RegisteredVersion(Struct, kw_only=True):
    """An agent_version as register answers it, with the fields that were registered."""

    type: Literal["agent_version"]
    id: str
    agent_id: str
    external_identifier: str | UnsetType | None = UNSET


class RegisteredSchemaVersion(Struct, kw_only=True):
    """An agent_schema_version as register answers it, likewise."""

    type: Literal["agent_schema_version"]
    id: str
    agent_id: str
    span_type_schemas: dict[str, Any]
    external_identifier: str | UnsetType | None = UNSET


class AgentVersion(RegisteredVersion, kw_only=True):
    """An agent_version."""

    account_id: str
    inserted_at: str
    updated_at: str


class AgentSchemaVersion(RegisteredSchemaVersion, kw_only=True):
    """An agent_schema_version."""

    account_id: str
    inserted_at: str
    updated_at: str


class ApiToken(Stored, kw_only=True):
    """An API token, without the secret."""

    type: Literal["api_token"]
    token_scope: Literal["account", "agent_deployment"]
    agent_id: str | None
    environment_id: str | None
    agent_deployment_id: str | None
    status: Literal["active", "suspended", "revoked"]
    expires_at: str | None
    last_used_at: str | None


class CreatedApiToken(Struct, kw_only=True):
    """A new API token; ``token``, the secret, is null when the answer is repeated."""

    status: Success
    details: ApiToken
    token: str | None


class AgentInstance(Stored, kw_only=True):
    """An agent instance (run). ``flags``: remarks on odd values."""

    type: Literal["agent_instance"]
    agent_id: str
    agent_version_id: str
    agent_schema_version_id: str
    environment_id: str
    agent_deployment_id: str
    external_identifier: str | None
    purpose: Literal["live", "smoke_test", "eval"]
    status: Literal["pending", "active", "complete", "failed", "cancelled", "terminated"]
    termination_reason: str | None
    started_at: str | None
    finished_at: str | None
    span_counts: SpanCounts
    flags: list[str]
    quality_payloads: dict[str, dict[str, Any]]
    quality_summaries: dict[str, str]
    quality_flags: dict[str, list[str]]
    quality_payload: dict[str, Any] | None
    quality_summary: str | None


class Registered(Struct, kw_only=True):
    """A new agent instance, and its versions."""

    status: Success
    details: AgentInstance
    agent_version: RegisteredVersion
    agent_schema_version: RegisteredSchemaVersion


class AgentSpan(Stored, kw_only=True):
    """A span. ``flags``: where the payloads do not fit their schemas. ``summary``: in lists only
    on request."""

    type: Literal["agent_span"]
    agent_id: str
    agent_instance_id: str
    parent_span_id: str | None
    schema_name: str
    schema_title: str
    status: Literal["pending", "active", "complete", "failed", "cancelled"]
    payload: dict[str, Any]
    result_payload: dict[str, Any] | None
    started_at: str | None
    finished_at: str | None
    sensitive_encoding: bool
    flags: list[str]
    purpose: str
    data_risk: Any
    summary: str | UnsetType | None = UNSET


class Context(Struct, kw_only=True):
    """The context of a run."""

    format: Literal["agent_context_v1"]
    agent_instance: AgentInstance
    agent_version: dict[str, Any]
    agent_schema_version: dict[str, Any]
    spans: list[AgentSpan]


class ContextBody(Struct, kw_only=True):
    """The envelope of a context."""

    body: Context


class AgentContext(Struct, kw_only=True):
    """The answer with a context."""

    status: Success
    agent_context: ContextBody


class Pfids(Struct, kw_only=True):
    """New ids."""

    status: Success
    account_id: str
    pfids: list[str]


class Count(Struct, kw_only=True):
    """A number of objects."""

    status: Success
    count: int


class TokenType(Struct, kw_only=True):
    """The scope of the token of a request."""

    token_type: Literal["account", "agent_deployment"]


class Output(Struct, kw_only=True):
    """The answer to one item of a bulk: that of the single call."""

    status: Literal["success", "error"]


class Outputs(Struct, kw_only=True):
    """The outputs of a bulk by the idempotency keys of its items, up to the first error."""

    status: Success
    outputs: dict[str, Output]
