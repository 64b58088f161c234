"""Answers of the API: the fields that this library reads. Pure.

Unknown fields are ignored and most known fields may be missing, so that one library reads the
answers of every version of the service.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec
from msgspec import Raw, Struct, field

T = TypeVar("T")


def decode(content: bytes | Raw, answer_type: type[T]) -> T:
    """Decode ``content``. Raises ``msgspec.DecodeError`` for every kind of bad content."""
    try:
        return msgspec.json.decode(content, type=answer_type)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


class Control(Struct):
    """A control signal to a run: ``terminate`` stops it."""

    terminate: bool = False
    reason: str | None = None


class Details(Struct, Generic[T]):
    """The envelope of one object, and of a control signal to its run."""

    details: T
    control: Control | None = None


class Pagination(Struct):
    """The position of a page in its list; ``next_page_offset`` is None on the last page.
    ``item_count``: the items of the whole list."""

    next_page_offset: int | None = None
    item_count: int | None = None


class Summaries(Struct, Generic[T]):
    """The envelope of a list."""

    summaries: list[T]
    pagination: Pagination | None = None


class AgentAnswer(Struct):
    """A stored agent. ``instance_counts``: its runs by status."""

    id: str
    name: str = ""
    external_identifier: str | None = None
    status: str | None = None
    instance_counts: dict[str, int] | None = None


class AgentInstanceAnswer(Struct):
    """A stored agent instance. Times are ISO 8601 texts. ``flags``: remarks on odd values.
    ``span_counts``: its spans by status, and their ``total``."""

    id: str
    status: str
    agent_id: str | None = None
    agent_version_id: str | None = None
    environment_id: str | None = None
    external_identifier: str | None = None
    purpose: str | None = None
    span_counts: dict[str, int] | None = None
    inserted_at: str | None = None
    updated_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    termination_reason: str | None = None
    flags: list[str] = field(default_factory=list[str])
    quality_payloads: dict[str, Raw] = field(default_factory=dict[str, Raw])
    quality_flags: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    quality_summaries: dict[str, str | None] = field(default_factory=dict[str, str | None])


class AgentSpanAnswer(Struct):
    """A stored span. Times are ISO 8601 texts, payloads undecoded JSON.

    ``flags``: where the payloads do not fit their schemas. ``summary``: by the template of the
    span's type; a list has it only on request (``include_summaries``).
    """

    id: str
    status: str
    agent_instance_id: str
    schema_name: str
    schema_title: str | None = None
    parent_span_id: str | None = None
    payload: Raw = field(default_factory=lambda: Raw(b"null"))
    result_payload: Raw = field(default_factory=lambda: Raw(b"null"))
    inserted_at: str | None = None
    updated_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    sensitive_encoding: bool | None = None
    data_risk: Raw = field(default_factory=lambda: Raw(b"null"))
    flags: list[str] = field(default_factory=list[str])
    summary: str | None = None


class OutputDetails(Struct):
    """The object in a bulk output."""

    id: str | None = None


class Output(Struct):
    """The answer to one bulk item: that of the single call."""

    status: str
    details: OutputDetails | None = None
    control: Control | None = None
    code: str | None = None
    message: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the item took effect."""
        return self.status == "success"


class Outputs(Struct):
    """The answer of POST /api/v1/bulk: outputs by idempotency key, up to the first error."""

    outputs: dict[str, Output]


class Generated(Struct):
    """The answer of POST /api/v1/pfid/generate: new ids of the account."""

    pfids: list[str]


class FieldError(Struct):
    """The error of one field."""

    message: str = ""
    code: str = ""


class ErrorAnswer(Struct):
    """The body of an error; any field may be missing."""

    status: str | None = None
    code: str | None = None
    message: str | None = None
    errors: dict[str, Raw] | list[Raw] | None = None
    retry_after_ms: float | None = None
