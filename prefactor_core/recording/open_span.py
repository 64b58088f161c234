"""OpenSpan: a span with what is needed only while it is open. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from prefactor_core.models import Span

if TYPE_CHECKING:
    from prefactor_core.agent.span_context import SpanContext
    from prefactor_core.export.identity import RunIdentity


class OpenSpan(Span, kw_only=True):
    """What the recorder knows of a span until it has ended.

    ``captured``: the payload that it starts with, as JSON. ``parent``: the open span above it.
    ``held``: its bytes, as long as they count as those of an open span. ``has_place``: whether it
    has waited for its place in the buffer. ``dropped``: whether it was not taken there. ``late``:
    whether its run was ending when it was opened. ``ours``: whether it is of a request that
    records, and so is not recorded itself. ``context``: what the agent holds of it.
    """

    captured: Raw
    run: RunIdentity
    parent: OpenSpan | None = None
    held: int = 0
    has_place: bool = False
    late: bool = False
    dropped: bool = False
    ours: bool = False
    context: SpanContext[Any] | None = None

    def __repr__(self) -> str:
        # Not the struct's own: it would show all ancestors, one inside the other.
        return f"<open span {self.schema_name!r} {self.id} {self.status}>"
