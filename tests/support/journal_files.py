"""JournalFiles: records into the files of a journal, exactly those that a test asks for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from prefactor_core.journal.format import (
    NONE,
    VERSION,
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
    encode,
    frame,
)
from prefactor_core.journal.state import JournalState
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
    StartAgentInstance,
)
from prefactor_core.operations.identifiers import idempotency_key

HEADER = Header(
    version=VERSION, api_url="https://api.example", host="host", process=7, sdk="prefactor_core"
)
NOON = 1_784_548_800_000_000_000
PAYLOAD = Raw(b'{"prompt":"Hi"}')
RESULT = Raw(b'{"answer":"Hello"}')


class JournalFiles:
    """Writes the journal at ``path``. ``sequence``: the number of the last record; ``number``: that
    of the newest file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = self.sequence = 0
        path.mkdir()
        self.begin()

    @property
    def file(self) -> Path:
        """The newest file."""
        return self.file_of(self.number)

    def file_of(self, number: int) -> Path:
        """The file with this number."""
        return self.path / f"{number:06}.log"

    def begin(self, state: Iterable[tuple[Kind, object]] = (), header: Header = HEADER) -> None:
        """Begin the next file, with these records."""
        self.number += 1
        self.add(Kind.HEADER, header)
        for kind, body in state:
            self.add(kind, body)

    def add(self, kind: Kind, body: object) -> int:
        """Append a record, and return its sequence number."""
        self.sequence += 1
        with self.file.open("ab") as file:
            file.write(frame(self.sequence, kind, encode(body)))
        return self.sequence

    def operation(self, operation: Operation) -> int:
        """Append an operation."""
        return self.add(Kind.OPERATION, operation)


def register(run: str = "run", at: int = NOON) -> RegisterAgentInstance:
    return RegisterAgentInstance(
        timestamp=at,
        idempotency_key=idempotency_key(run, "register"),
        agent_id="agent",
        agent_version=Raw(b'{"name":"Agent"}'),
        agent_schema_version=Raw(b'{"span_schemas":{"agent:llm":{}}}'),
        instance_id=run,
    )


def start(run: str = "run", at: int = NOON) -> StartAgentInstance:
    return StartAgentInstance(
        timestamp=at, idempotency_key=idempotency_key(run, "start"), instance_id=run
    )


def finish(
    run: str = "run", at: int = NOON, status: InstanceStatus = InstanceStatus.COMPLETE
) -> FinishAgentInstance:
    return FinishAgentInstance(
        timestamp=at, idempotency_key=idempotency_key(run, "finish"), instance_id=run, status=status
    )


def create(
    span: str,
    parent: str | None = None,
    run: str = "run",
    *,
    at: int = NOON,
    status: SpanStatus = SpanStatus.ACTIVE,
    finished_at: int | None = None,
    result: Raw | UnsetType = UNSET,
) -> CreateSpan:
    return CreateSpan(
        timestamp=at,
        idempotency_key=idempotency_key(span, "create"),
        instance_id=run,
        span_id=span,
        schema_name="agent:llm",
        status=status,
        payload=PAYLOAD,
        parent_span_id=parent,
        finished_at=finished_at,
        result_payload=result,
    )


def end(
    span: str,
    run: str = "run",
    *,
    at: int = NOON,
    status: SpanStatus = SpanStatus.COMPLETE,
    result: Raw | UnsetType = RESULT,
) -> FinishSpan:
    return FinishSpan(
        timestamp=at,
        idempotency_key=idempotency_key(span, "finish"),
        instance_id=run,
        span_id=span,
        status=status,
        result_payload=result,
    )


def quality(name: str = "score", run: str = "run", at: int = NOON) -> RecordQuality:
    return RecordQuality(
        timestamp=at,
        idempotency_key=f"{run}-quality-{name}",
        instance_id=run,
        name=name,
        payload=PAYLOAD,
    )


def opened(span: str, parent: str | None = None, run: str = "run", *, at: int = NOON) -> Opened:
    return Opened(span, run, "agent:llm", parent, at, PAYLOAD)


def created(
    span: str,
    parent: str | None = None,
    *,
    at: int = NOON,
    status: SpanStatus = SpanStatus.ACTIVE,
    finished_at: int | None = None,
    result: Raw = NONE,
) -> Created:
    return Created(span, parent, at, status, finished_at, result)


def state_of(*records: tuple[Kind, Any], state: JournalState | None = None) -> JournalState:
    """The state after these records, the first of which has the number 1."""
    state = JournalState() if state is None else state
    for kind, body in records:
        assert state.apply(kind, state.last_sequence + 1, encode(body))
    return state


def seen(state: JournalState) -> object:
    """All that a state says, but of the operations that are not settled."""
    spans = [
        (span.span_id, state.parent_of(span), span.payload)
        if isinstance(span, Opened)
        else (span.span_id, span.started_at)
        for span in state.open_spans()
    ]
    lost = {**state.lost_runs, **state.lost_spans}
    return (
        [*state.runs.values()],
        spans,
        state.run_ids,
        state.span_ids,
        {key: (refused.reason, refused.parent_span_id) for key, refused in lost.items()},
        state.last_time,
        state.is_closed,
    )


def sample(path: Path) -> JournalFiles:
    """A journal with every kind of record, in one file."""
    files = JournalFiles(path)
    registered = files.operation(register())
    files.add(Kind.SENDING, [Form((registered,), False, NONE)])
    files.add(Kind.IDENTIFIED, Identified("run", None, "their-run"))
    files.add(Kind.SETTLED, [registered])
    files.operation(start(at=NOON + 1))
    files.add(Kind.OPENED, opened("a"))
    files.add(Kind.OPENED, opened("b", "a"))
    files.add(Kind.OPENED, opened("c", "b"))
    files.add(Kind.CREATED, created("a"))
    done = SpanStatus.COMPLETE
    first = files.add(
        Kind.CREATED, created("b", "a", status=done, finished_at=NOON + 2, result=RESULT)
    )
    files.add(Kind.DISCARDED, Discarded("c", "b"))
    second = files.operation(end("a", at=NOON + 3))
    files.add(
        Kind.SENDING,
        [Form((first,), True, Raw(encode(create("b", "a")))), Form((second,), False, NONE)],
    )
    files.add(Kind.REFUSED, Refused(second, "refused", "run", None, None, False))
    files.add(Kind.OPEN_RUN, OpenRun("other", InstanceStatus.ACTIVE, NOON + 4))
    files.add(Kind.OPEN_SPAN, OpenSpan("d", "other", NOON + 5))
    files.operation(quality())
    files.add(Kind.BEAT, NOON + 6)
    files.operation(quality("speed"))
    files.add(Kind.CLOSED, NOON + 7)
    files.operation(quality("cost"))
    return files
