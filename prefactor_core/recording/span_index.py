"""SpanIndex: the open spans of a client, by their ids and by their runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefactor_core.export.identity import Identities
from prefactor_core.operations import identifiers
from prefactor_core.recording.span_record import SpanRecord


class SpanIndex:
    """Finds open spans, in a time that does not depend on their number.

    A caller that adds or removes spans, or asks for several, holds the lock of recording.
    ``spans``: by the ids in their operations. ``by_run``: by the run's id in operations, in the
    order of opening, so that parents stand before their children. ``provisional``: the spans whose
    run may get another partition, by the part of their id that stays the same. ``unreported``: the
    spans without a recorded operation, in the order of opening. ``opened``: how many were ever
    opened. ``after_end``: by the run's id in operations, a function that is called after the end of
    each span of the run, in its thread and without the lock; it raises nothing.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self.spans: dict[str, SpanRecord] = {}
        self.by_run: dict[str, dict[str, SpanRecord]] = {}
        self.provisional: dict[str, SpanRecord] = {}
        self.opened = 0
        self.unreported: dict[str, SpanRecord] = {}
        self.after_end: dict[str, Callable[[], object]] = {}

    def may_get_another_id(self, span: SpanRecord) -> None:
        """Note that the final id of a span may have another partition."""
        self.provisional[identifiers.without_partition(span.recorded_id)] = span

    def has_ended(self, span: SpanRecord) -> None:
        """Note that a span has ended."""
        self.provisional.pop(identifiers.without_partition(span.recorded_id), None)

    def call_after_end(self, span: SpanRecord) -> None:
        """Call what waits for the end of the spans of a run."""
        call = self.after_end.get(span.instance_id)
        if call is not None:
            call()

    def find(self, span_id: str) -> SpanRecord | None:
        """The open span with this id, which is the recorded one or the API's; None without one."""
        span = self.spans.get(span_id)
        if span is not None:
            return span
        # The id may have the partition that the API gave,
        if self.provisional and identifiers.is_pfid(span_id):
            span = self.provisional.get(identifiers.without_partition(span_id))
            if span is not None and span.run.span_id(span.recorded_id) == span_id:
                return span
        # or, where the API makes the ids, be another one: each run knows those of its spans.
        if not self._identities.given_ids:
            for instance_id in list(self.by_run):
                recorded_id = self._identities.of(instance_id).recorded_span_id(span_id)
                if recorded_id is not None:
                    return self.spans.get(recorded_id)
        return None

    def last(self, instance_id: str | None, most: int | None = None) -> Sequence[SpanRecord]:
        """The last ``most`` open spans (None: all) of an instance (None: of all), the newest first,
        so that children stand before their parents."""
        spans = self.spans
        if instance_id is not None:
            spans = self.by_run.get(self._identities.of(instance_id).recorded_id, {})
        # All of them, by one call: before another one, a finaliser may open or end a span.
        found = list(spans.values())
        found.reverse()
        return found[:most]

    def count(self, instance_id: str | None) -> int:
        """The number of open spans of an instance (None: of all)."""
        if instance_id is None:
            return len(self.spans)
        return len(self.by_run.get(self._identities.of(instance_id).recorded_id, ()))
