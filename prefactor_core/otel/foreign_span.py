"""ForeignSpan: a span of OpenTelemetry as a span of Prefactor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from prefactor_core.exceptions.outcome import outcome_of
from prefactor_core.models.clock import to_datetime
from prefactor_core.models.lifecycle import Outcome, SpanStatus
from prefactor_core.otel.dialect import LLM, OTHER
from prefactor_core.otel.langsmith import error_of
from prefactor_core.otel.messages import decoded
from prefactor_core.otel.reading import Event, Facts, is_late, read, span_type
from prefactor_core.otel.steps import fields_of, to_step
from prefactor_core.payloads.error_description import ErrorDescription
from prefactor_core.recording.span_record import SpanRecord

if TYPE_CHECKING:
    from prefactor_core.agent.instance import AgentInstanceHandle
    from prefactor_core.export.identity import RunIdentity
    from prefactor_core.recording.recorder import Recorder

_PENDING: Final = SpanStatus.PENDING

# What an ended span has as its source: it may be kept as a parent, without its attributes.
_FORGOTTEN: Final = ReadableSpan("", resource=Resource.get_empty())

_LATEST: Final = 1 << 63

_OVERHEAD: Final = 2_000

_FROM_RESULT: Final = ("token_usage",)

_STOPS: Final = ("CancelledError", "Cancelled", "GeneratorExit", "KeyboardInterrupt")
"""The last words of the types of exceptions that stop a step from outside."""


class ForeignSpan(SpanRecord):
    """A span of OpenTelemetry, ``source``, as a span of the run ``run``.

    Its type and its payload are read again until its create is recorded, because instrumentations
    set most attributes after the start. The create of a model's call waits for the end of the span,
    as that of :class:`~prefactor_core.span_types.LLMCall` does, and so does that of a span whose
    instrumentation sets all attributes at the end. What a span says after its create is in its
    result.

    ``instance``: the handle of the run, unless a program opened that by its id only. ``opens_run``:
    the run was opened for this span, and ends with it.
    ``waiting``: the ended spans whose creates wait for that of this span.
    ``outcome``: the way it ended. ``size``: about how many bytes it holds after its end.
    """

    instance: AgentInstanceHandle | None = None
    opens_run = False
    size = _OVERHEAD

    def __init__(
        self,
        recorder: Recorder,
        run: RunIdentity,
        span_id: str,
        parent_span_id: str | None,
        source: ReadableSpan,
    ) -> None:
        super().__init__(run, span_id, OTHER, parent_span_id)
        self.recorder = recorder
        self.waiting: list[ForeignSpan] = []
        self.outcome: Outcome = "complete"
        self._source = source
        scope = source.instrumentation_scope
        self._scope = "" if scope is None else scope.name
        self._is_late = is_late(self._scope)
        # Whether tokens are recorded with a span inside: they are not counted twice.
        self._tokens_are_inside = False
        # An exception that is handled where the span starts does not end it.
        self._handled = sys.exception()
        self._seen = -1
        self.schema_name = span_type(source.name, self._scope, _copied(source)) or OTHER
        self.from_result = self._awaited()
        if recorder.reports_at_once or recorder.buffer.journal.is_on:
            self.payload = self._read()[1]

    def refresh(self) -> None:
        """Read the span again, unless its create is recorded or nothing was added to it."""
        size = len(self._source.attributes or ()) + len(self._source.events)
        if self.status is _PENDING and size != self._seen:
            self._seen = size
            facts, payload, _ = self._read()
            self._keep(facts, payload)

    def read_end(self, ended: ReadableSpan) -> None:
        """Read what the span says at its end."""
        self._source = ended
        self.size += _size(_copied(ended))
        self.size += sum(_size(event.attributes or {}) for event in ended.events)
        facts, payload, result = self._read()
        self.outcome, error = _outcome(ended, facts, self._handled)
        if self._keep(facts, payload):
            self.from_result = ()  # the payload has it
        else:
            result |= self._added(payload)
        if error is not None:
            # LiveKit tells an error of a tool as it tells the model.
            error["message"] = error["message"] or str(result.get("output") or "")
            result["error"] = error
        if facts.events:
            result["events"] = [_event(event) for event in facts.events]
        if lost := ended.dropped_attributes + ended.dropped_events:
            result["dropped_attributes"] = lost
        if "token_usage" in result:
            self._count_tokens()
        if self.result is not None:
            self.result |= result
        self._handled = None

    def end(self) -> None:
        """Record the end, at the time of the source's end."""
        self.recorder.end(self, self.outcome, None, self._ended_at())
        self._source = _FORGOTTEN

    def give_up(self) -> None:
        """Record the end as cancelled, now."""
        self.outcome = "cancelled"
        self.recorder.end(self, "cancelled")
        self._source, self._handled = _FORGOTTEN, None

    def end_of_run(self, outcome: Outcome, at: int | None) -> tuple[Outcome, int | None]:
        """Its own end, if that waits for the parent's."""
        if self._source.end_time is None:
            return outcome, at
        return self.outcome, self._ended_at()

    def _ended_at(self) -> int:
        return max(to_time(self._source.end_time) or 0, self.started_at or 0, self.created_at)

    def _read(self) -> tuple[Facts, dict[str, object], dict[str, object]]:
        """The facts that are left over, the payload and the result."""
        source = self._source
        name = source.name
        attributes = _copied(source)
        payload: dict[str, object]
        try:
            facts = read(name, self._scope, attributes, source.events)
            params, outcome = to_step(name, facts, counts_tokens=not self._tokens_are_inside)
            payload, result = fields_of(params), fields_of(outcome)
        except Exception:  # values that are no JSON, or too deep
            facts = Facts({}, attributes, {}, events=list(source.events))
            payload, result = dict[str, object](name=name), {}
        payload["otel"] = _origin(source, self._scope)
        if rest := facts.rest():
            payload["attributes"] = _structured(rest)
        return facts, payload, result

    def _keep(self, facts: Facts, payload: dict[str, object]) -> bool:
        """Replace type and payload; False if the create is recorded."""
        if self.status is not _PENDING:
            return False
        captured = self.recorder.capture(payload)
        with self.recorder.event_loop.lock:
            kept = self.recorder.keep_payload(self, payload, captured)
            if kept:
                self.schema_name = facts.span_type or OTHER
                self.from_result = self._awaited()
        return kept

    def _awaited(self) -> tuple[str, ...]:
        return _FROM_RESULT if self._is_late or self.schema_name == LLM else ()

    def _added(self, payload: Mapping[str, object]) -> dict[str, object]:
        """What the payload has more than the recorded one."""
        recorded = _fields(self.payload)
        added = {key: value for key, value in payload.items() if recorded.get(key) != value}
        known = _fields(recorded.get("attributes"))
        if known and "attributes" in added:
            attributes = _fields(added["attributes"]).items()
            added["attributes"] = {key: each for key, each in attributes if known.get(key) != each}
        return added

    def _count_tokens(self) -> None:
        around = self.parent
        while around is not None:
            if isinstance(around, ForeignSpan):
                around._tokens_are_inside = True
            around = around.parent


def _copied(source: ReadableSpan) -> dict[str, object]:
    """The attributes as a dict: each look into those of the SDK takes a lock."""
    attributes = source.attributes
    if not attributes:
        return {}
    copy: Callable[[], dict[str, object]] | None = getattr(attributes, "copy", None)
    return dict(attributes) if copy is None else copy()


def _structured(attributes: Mapping[str, object]) -> dict[str, object]:
    """Attributes with texts of JSON as what they say: in these, too, secrets are redacted by the
    names of their fields."""
    found = {key: decoded(value) for key, value in attributes.items()}
    return {
        key: value if isinstance(value, dict | list) else attributes[key]
        for key, value in found.items()
    }


def _size(attributes: Mapping[str, object]) -> int:
    size = 0
    for value in attributes.values():
        values = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        size += sum(len(each) for each in values if isinstance(each, str | bytes))
    return size


def to_time(nanoseconds: int | None) -> int | None:
    """A time of OpenTelemetry, if it is one that can be written as a date."""
    return nanoseconds if nanoseconds is not None and 0 < nanoseconds < _LATEST else None


def _fields(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _origin(source: ReadableSpan, scope: str) -> dict[str, object]:
    """The name and the ids of a span in OpenTelemetry, and its links."""
    context, parent = source.context, source.parent
    origin: dict[str, object] = {"name": source.name, "scope": scope}
    if context is not None:
        trace_id, span_id, *_ = context
        origin["trace_id"] = f"{trace_id:032x}"
        origin["span_id"] = f"{span_id:016x}"
    if parent is not None:
        origin["parent_span_id"] = f"{parent.span_id:016x}"
    if links := source.links:
        origin["links"] = [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                "attributes": _structured(link.attributes or {}),
            }
            for link in links
        ]
    return origin


def _outcome(
    ended: ReadableSpan, facts: Facts, handled: BaseException | None
) -> tuple[Outcome, ErrorDescription | None]:
    """How a span ended, and the error. ``handled``: the exception that was being handled where
    the span was started."""
    exceptions = [event for event in facts.events if event.name == "exception"]
    details: Mapping[str, object] = (exceptions[-1].attributes or {}) if exceptions else {}
    message = str(details.get("exception.message") or ended.status.description or "")
    told = error_of(message)  # LangSmith has told that all is well before
    kind = facts.error_type
    has_failed = ended.status.status_code is StatusCode.ERROR or facts.has_failed
    if not has_failed and kind is None and told is None:
        # OpenTelemetry notes no cancellation: such an exception is on its way in this moment.
        leaving = sys.exception()
        if leaving is not None and leaving is not handled and outcome_of(leaving) == "cancelled":
            return "cancelled", None
        return "complete", None
    if exceptions:
        facts.events.remove(exceptions[-1])
    kind = str(details.get("exception.type") or kind or "Error")
    stack = details.get("exception.stacktrace")
    if told is not None:
        kind, message, stack = told
    error = ErrorDescription(type=kind, message=message)
    if stack is not None:
        error["stacktrace"] = stack
    stopped = kind.rpartition(".")[2] in _STOPS or kind.endswith("PrefactorTerminatedError")
    return ("cancelled", None) if stopped else ("failed", error)


def _event(event: Event) -> dict[str, object]:
    at = to_time(event.timestamp)
    return {
        "name": event.name,
        "time": None if at is None else to_datetime(at),
        "attributes": _structured(event.attributes or {}),
    }
