"""What the API answers, as far as this library reads it (API.md sections 2, 7 and 8).

Unknown fields are passed over and most known ones may be missing, so that one library reads
what every version of the service says.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec
from msgspec import Raw, Struct, field

T = TypeVar("T")


def decode(content: bytes | Raw, answer_type: type[T]) -> T:
    """``content`` as ``answer_type``. Raises ``msgspec.DecodeError``, whatever is wrong."""
    try:
        return msgspec.json.decode(content, type=answer_type)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


class Control(Struct):
    """What the API wants of a run: ``terminate`` stops it."""

    terminate: bool = False
    reason: str | None = None


class Details(Struct, Generic[T]):
    """The envelope of one object."""

    details: T
    control: Control | None = None


class Pagination(Struct):
    """Where a page of a list stands; ``next_page_offset`` is None on the last one."""

    next_page_offset: int | None = None


class Summaries(Struct, Generic[T]):
    """The envelope of a list."""

    summaries: list[T]
    pagination: Pagination | None = None


class AgentInstanceAnswer(Struct):
    """A stored agent instance. Times are ISO 8601 texts. ``flags``: what is odd about it."""

    id: str
    status: str
    agent_id: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    termination_reason: str | None = None
    flags: list[str] = field(default_factory=list[str])
    quality_payloads: dict[str, Raw] = field(default_factory=dict[str, Raw])
    quality_flags: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    quality_summaries: dict[str, str | None] = field(default_factory=dict[str, str | None])


class AgentSpanAnswer(Struct):
    """A stored span. Times are ISO 8601 texts, payloads JSON as it came.

    ``flags``: what of the payloads does not fit their schemas. ``summary``: by the template of
    the span's type, in lists only where it is asked for.
    """

    id: str
    status: str
    agent_instance_id: str
    schema_name: str
    parent_span_id: str | None = None
    payload: Raw = field(default_factory=lambda: Raw(b"null"))
    result_payload: Raw = field(default_factory=lambda: Raw(b"null"))
    started_at: str | None = None
    finished_at: str | None = None
    flags: list[str] = field(default_factory=list[str])
    summary: str | None = None


class OutputDetails(Struct):
    """What is read of the object in a bulk output."""

    id: str | None = None


class Output(Struct):
    """What bulk says of one item: what the single call would have answered."""

    status: str
    details: OutputDetails | None = None
    control: Control | None = None
    code: str | None = None
    message: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the item was done."""
        return self.status == "success"


class Outputs(Struct):
    """The answer of bulk: outputs by idempotency key, up to the first error (API.md
    section 10)."""

    outputs: dict[str, Output]


class FieldError(Struct):
    """What is wrong with one field."""

    message: str = ""
    code: str = ""


class ErrorAnswer(Struct):
    """An error's body; all of it may be missing."""

    status: str | None = None
    code: str | None = None
    message: str | None = None
    errors: dict[str, Raw] | list[Raw] | None = None
    retry_after_ms: float | None = None
