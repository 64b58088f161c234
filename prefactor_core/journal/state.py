"""JournalState: the runs, spans, ids and operations that the records of a journal tell of. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from prefactor_core.journal.format import (
    DECODE_ERRORS,
    NONE,
    Created,
    Discarded,
    Form,
    Header,
    Identified,
    Kind,
    Opened,
    OpenRun,
    OpenSpan,
    Refused,
    check_version,
)
from prefactor_core.journal.sequences import SequenceSet
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus


class RunState(Struct):
    """A run that this journal has registered, and that has not ended.

    ``instance_id``: its id in the operations after the registration.
    """

    instance_id: str
    status: InstanceStatus
    started_at: int | None


class _Event(Struct, gc=False):
    """The fields of an operation that matter here. Decoding them alone takes half the time."""

    operation_type: str
    timestamp: int
    instance_id: str
    span_id: str = ""
    status: str = ""
    finished_at: int | None = None


class JournalState:
    """The state after the records that :meth:`apply` got, in the order of the journal.

    The first records of a journal's newest file repeat all of this but ``forms`` and ``pending``;
    to read earlier files as well does not change it.

    ``header``: of the newest file, None without one. ``runs``: the open runs that this journal has
    registered. ``spans``: the open spans in the order of their opening, by id: :class:`Opened` if
    no create is recorded, else :class:`OpenSpan`; those of runs that are over as well (see
    :meth:`open_spans`). ``run_ids``: the API's ids of runs, by recorded id. ``span_ids``: for each
    span, the id of its run and the API's id of it. ``lost_runs`` and ``lost_spans``: what the API
    has refused, by recorded id. ``pending``: the sequence numbers of the operations that are not
    settled; ``forms``: how some of them stood in a request. ``last_time``: the latest time in any
    record, 0 without one. ``is_closed``: the scope was left in order, so nothing is open.
    ``lists_spans``: False if the spans of earlier files were left out, and no whole list followed.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.runs: dict[str, RunState] = {}
        self.spans: dict[str, Opened | OpenSpan] = {}
        self.run_ids: dict[str, str] = {}
        self.span_ids: dict[str, tuple[str, str]] = {}
        self.lost_runs: dict[str, Refused] = {}
        self.lost_spans: dict[str, Refused] = {}
        self.pending = SequenceSet()
        self.forms: dict[int, Form] = {}
        self.last_sequence = 0
        self.last_time = 0
        self.is_closed = False
        self.lists_spans = True
        # A run may have two ids: the one of its registration, which is the key in ``runs``, and the
        # API's.
        self._keys: dict[str, str] = {}
        self._ended_runs: set[str] = set()
        self._discarded: dict[str, str | None] = {}
        # Spans and runs that earlier files have left open, until the newest repeats them.
        self._not_repeated: set[str] = set()
        self._runs_not_repeated: set[str] = set()
        self._apply_all: dict[int, Callable[[int, bytes], bool | None]] = {
            Kind.HEADER: self._header,
            Kind.OPERATION: self._operation,
            Kind.OPENED: self._opened,
            Kind.CREATED: self._created,
            Kind.DISCARDED: self._discard,
            Kind.SENDING: self._sending,
            Kind.SETTLED: self._settled,
            Kind.REFUSED: self._refused,
            Kind.IDENTIFIED: self._identified,
            Kind.OPEN_RUN: self._open_run,
            Kind.OPEN_SPAN: self._open_span,
            Kind.BEAT: self._beat,
            Kind.CLOSED: self._closed,
        }
        self._apply_repeated = {
            **self._apply_all,
            Kind.OPENED: self._skip,
            Kind.CREATED: self._created_earlier,
        }
        self._apply: Mapping[int, Callable[[int, bytes], bool | None]] = self._apply_all

    def apply(self, kind: int, sequence: int, body: bytes) -> bool:
        """Take in the next record; False if it cannot be used, as if it were damaged.

        Raises :class:`~prefactor_core.journal.format.JournalVersionError` for a header of a later
        version.
        """
        if sequence > self.last_sequence:
            self.last_sequence = sequence
        apply = self._apply.get(kind)
        try:
            return apply is not None and apply(sequence, body) is None
        except DECODE_ERRORS:
            return False

    def begin_file(self, *, is_repeated: bool = False) -> None:
        """Note that the following records are of another file. ``is_repeated``: a later file that
        is whole lists the spans that this one has left open, so that they are not looked for."""
        if not self.lists_spans:
            self.spans.clear()
        self._apply = self._apply_repeated if is_repeated else self._apply_all
        self.lists_spans &= not is_repeated
        self._not_repeated = set(self.spans)
        self._runs_not_repeated = set(self.runs)

    def run_of(self, instance_id: str) -> RunState | None:
        """The open run of this journal with this id, the recorded or the API's."""
        return self.runs.get(self._key(instance_id))

    def open_spans(self) -> Iterator[Opened | OpenSpan]:
        """The open spans of runs that are neither lost nor ended, in the order of their opening."""
        for span in self.spans.values():
            key = self._key(span.instance_id)
            if key not in self.lost_runs and key not in self._ended_runs:
                yield span

    def parent_of(self, span: Opened) -> str | None:
        """The parent of a span: instead of one that is not recorded, the parent of that."""
        parent_id, seen = span.parent_span_id, {span.span_id}
        while parent_id in self._discarded and parent_id not in seen:
            seen.add(parent_id)
            parent_id = self._discarded[parent_id]
        return None if parent_id == span.span_id else parent_id

    def records(self) -> Iterator[tuple[Kind, object]]:
        """The records that make the next file independent of earlier ones."""
        for instance_id, api_id in self.run_ids.items():
            yield Kind.IDENTIFIED, Identified(instance_id, None, api_id)
        for span_id, (instance_id, api_id) in self.span_ids.items():
            yield Kind.IDENTIFIED, Identified(instance_id, span_id, api_id)
        for refused in (*self.lost_runs.values(), *self.lost_spans.values()):
            yield Kind.REFUSED, msgspec.structs.replace(refused, sequence=0)
        for run in self.runs.values():
            yield Kind.OPEN_RUN, OpenRun(run.instance_id, run.status, run.started_at)
        for span in self.open_spans():
            if isinstance(span, OpenSpan):
                yield Kind.OPEN_SPAN, span
            else:
                parent_id = self.parent_of(span)
                yield Kind.OPENED, msgspec.structs.replace(span, parent_span_id=parent_id)
        # Last: it ends the list of what is open.
        yield Kind.CLOSED if self.is_closed else Kind.BEAT, self.last_time

    def _key(self, instance_id: str) -> str:
        return self._keys.get(instance_id, instance_id)

    def _happened(self, at: int | None) -> None:
        if at is not None and at > self.last_time:
            self.last_time = at

    # For each kind of record: False if it cannot be used.

    def _header(self, _: int, body: bytes) -> None:
        check_version(body)
        self.header = _decode_header(body)

    def _operation(self, sequence: int, body: bytes) -> None:
        event = _decode_event(body)
        if event.timestamp > self.last_time:
            self.last_time = event.timestamp
        self.pending.add(sequence)
        match event.operation_type:
            case "CREATE_SPAN":
                self._span_created(
                    event.span_id,
                    event.instance_id,
                    event.status,
                    event.timestamp,
                    event.finished_at,
                )
            case "FINISH_SPAN":
                self.spans.pop(event.span_id, None)
            case "REGISTER_AGENT_INSTANCE":
                self._register(event.instance_id)
            case "START_AGENT_INSTANCE":
                run = self.run_of(event.instance_id)
                if run is not None:
                    run.instance_id = event.instance_id
                    run.status, run.started_at = InstanceStatus.ACTIVE, event.timestamp
            case "FINISH_AGENT_INSTANCE":
                key = self._key(event.instance_id)
                self.runs.pop(key, None)
                self._ended_runs.add(key)
            case _:
                pass

    def _register(self, instance_id: str) -> None:
        if instance_id in self._ended_runs or instance_id in self.lost_runs:
            # A caller may use the id of a run that is over again, for a new one.
            for span in [*self.spans.values()]:
                if span.instance_id == instance_id:
                    del self.spans[span.span_id]
            self._ended_runs.discard(instance_id)
            self.lost_runs.pop(instance_id, None)
        self.runs[instance_id] = RunState(instance_id, InstanceStatus.PENDING, None)

    def _opened(self, _: int, body: bytes) -> None:
        opened = _decode_opened(body)
        if opened.created_at > self.last_time:
            self.last_time = opened.created_at
        self.spans[opened.span_id] = opened
        if self._not_repeated:
            self._not_repeated.discard(opened.span_id)

    def _created(self, sequence: int, body: bytes) -> bool | None:
        created = _decode_created(body)
        opened = self.spans.get(created.span_id)
        if type(opened) is not Opened or created.span_id in self._not_repeated:
            return False  # the record with its payload is damaged
        if created.timestamp > self.last_time:
            self.last_time = created.timestamp
        self.pending.add(sequence)
        self._span_created(
            created.span_id,
            opened.instance_id,
            created.status,
            created.timestamp,
            created.finished_at,
        )
        return None

    def _skip(self, _sequence: int, _body: bytes) -> None:
        pass

    def _created_earlier(self, sequence: int, _body: bytes) -> None:
        self.pending.add(sequence)

    def _span_created(
        self, span_id: str, instance_id: str, status: str, timestamp: int, finished_at: int | None
    ) -> None:
        if finished_at is not None:
            self.spans.pop(span_id, None)
            if finished_at > self.last_time:
                self.last_time = finished_at
        else:
            started_at = timestamp if status == SpanStatus.ACTIVE else None
            self.spans[span_id] = OpenSpan(span_id, instance_id, started_at)

    def _discard(self, _: int, body: bytes) -> None:
        discarded = _decode_discarded(body)
        self.spans.pop(discarded.span_id, None)
        self._discarded[discarded.span_id] = discarded.parent_span_id

    def _sending(self, _: int, body: bytes) -> None:
        for form in _decode_forms(body):
            for sequence in form.sequences:
                if sequence in self.pending:
                    self.forms[sequence] = form

    def _settled(self, _: int, body: bytes) -> None:
        for sequence in _decode_settled(body):
            self._settle(sequence)

    def _settle(self, sequence: int) -> None:
        self.pending.discard(sequence)
        form = self.forms.pop(sequence, None)
        if form is not None:
            # The other operation of the item stands alone from now on.
            for other in form.sequences:
                if self.forms.get(other) is form:
                    self.forms[other] = Form((other,), form.given_id, NONE)

    def _refused(self, _: int, body: bytes) -> None:
        refused = _decode_refused(body)
        self._settle(refused.sequence)
        if refused.span_id is not None:
            self.spans.pop(refused.span_id, None)
            self.lost_spans[refused.span_id] = refused
        elif refused.loses_run:
            key = self._key(refused.instance_id)
            self.runs.pop(key, None)
            self.lost_runs[key] = refused

    def _identified(self, _: int, body: bytes) -> None:
        instance_id, span_id, api_id = msgspec.structs.astuple(_decode_identified(body))
        if span_id is not None:
            self.span_ids[span_id] = instance_id, api_id
            return
        self.run_ids[instance_id] = api_id
        if api_id in self.runs or self._keys.get(instance_id) == api_id:
            # The API gave a run the id of another open one: both are one.
            self.runs.pop(instance_id, None)
            self._keys[instance_id] = api_id
        else:
            self._keys[api_id] = instance_id

    def _open_run(self, _: int, body: bytes) -> None:
        open_run = _decode_open_run(body)
        self._happened(open_run.started_at)
        key = self._key(open_run.instance_id)
        if key not in self.lost_runs:
            self._ended_runs.discard(key)
            self._runs_not_repeated.discard(key)
            self.runs[key] = RunState(open_run.instance_id, open_run.status, open_run.started_at)

    def _open_span(self, _: int, body: bytes) -> None:
        span = _decode_open_span(body)
        self._happened(span.started_at)
        self.spans[span.span_id] = span
        self._not_repeated.discard(span.span_id)

    def _beat(self, _: int, body: bytes) -> None:
        self._happened(_decode_time(body))
        self.lists_spans |= self._apply is self._apply_all
        # The first one in a file ends the list of what is open. The end of the others is missing if
        # the files could not be written when it was recorded.
        for span_id in self._not_repeated:
            self.spans.pop(span_id, None)
        for key in self._runs_not_repeated:
            self.runs.pop(key, None)
        self._not_repeated.clear()
        self._runs_not_repeated.clear()

    def _closed(self, _: int, body: bytes) -> None:
        self._happened(_decode_time(body))
        self.is_closed = self.lists_spans = True
        self.runs.clear()
        self.spans.clear()


_decode_header: Final = msgspec.json.Decoder(Header).decode
_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_opened: Final = msgspec.json.Decoder(Opened).decode
_decode_created: Final = msgspec.json.Decoder(Created).decode
_decode_discarded: Final = msgspec.json.Decoder(Discarded).decode
_decode_forms: Final = msgspec.json.Decoder(list[Form]).decode
_decode_settled: Final = msgspec.json.Decoder(list[int]).decode
_decode_refused: Final = msgspec.json.Decoder(Refused).decode
_decode_identified: Final = msgspec.json.Decoder(Identified).decode
_decode_open_run: Final = msgspec.json.Decoder(OpenRun).decode
_decode_open_span: Final = msgspec.json.Decoder(OpenSpan).decode
_decode_time: Final = msgspec.json.Decoder(int).decode
