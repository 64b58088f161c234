"""SpanIndex: the open spans of a client, by their ids and by their runs."""

from __future__ import annotations

from collections.abc import Sequence

from prefactor_core.export.identity import Identities
from prefactor_core.operations import identifiers
from prefactor_core.recording.span_record import SpanRecord


class SpanIndex:
    """Finds open spans; to find one takes no longer the more spans are open.

    ``counters`` is told which payloads they hold. Whoever adds or removes one, or asks for several,
    holds the lock of recording. ``spans``: by the ids that they were recorded with.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self.spans: dict[str, SpanRecord] = {}
        # By the id that its operations call the run, in the order of opening: parents stand before
        # their children.
        self.by_run: dict[str, dict[str, SpanRecord]] = {}
        # Those whose run may get another partition, by the part of their id that stays the same.
        self.provisional: dict[str, SpanRecord] = {}
        # How many were ever opened.
        self.opened = 0
        # Those of which no operation was recorded, in the order of opening.
        self.unreported: dict[str, SpanRecord] = {}

    def may_get_another_id(self, span: SpanRecord) -> None:
        """The API may call the span by another partition than its id has."""
        self.provisional[identifiers.without_partition(span.recorded_id)] = span

    def has_ended(self, span: SpanRecord) -> None:
        """The span is open no more."""
        self.provisional.pop(identifiers.without_partition(span.recorded_id), None)

    def find(self, span_id: str) -> SpanRecord | None:
        """The open span of this id: the one that it was recorded with, or the API's."""
        span = self.spans.get(span_id)
        if span is not None:
            return span
        # The API may call it by another partition,
        if self.provisional and identifiers.is_pfid(span_id):
            span = self.provisional.get(identifiers.without_partition(span_id))
            if span is not None and span.run.span_id(span.recorded_id) == span_id:
                return span
        # or, where it makes the ids, by another id: each run knows those of its spans.
        if not self._identities.given_ids:
            for instance_id in list(self.by_run):
                recorded_id = self._identities.of(instance_id).recorded_span_id(span_id)
                if recorded_id is not None:
                    return self.spans.get(recorded_id)
        return None

    def last(self, instance_id: str | None, most: int | None = None) -> Sequence[SpanRecord]:
        """Up to ``most`` (None: all) spans that were opened last in an instance (None: in all),
        the last one first, so that children stand before their parents."""
        spans = self.spans
        if instance_id is not None:
            spans = self.by_run.get(self._identities.of(instance_id).recorded_id, {})
        # All of them, by one call: before another one, a finaliser may open or end a span.
        found = list(spans.values())
        found.reverse()
        return found[:most]

    def count(self, instance_id: str | None) -> int:
        """How many spans of an instance (None: of all) are open."""
        if instance_id is None:
            return len(self.spans)
        return len(self.by_run.get(self._identities.of(instance_id).recorded_id, ()))
