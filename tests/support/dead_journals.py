"""The journal of a process that is gone, record by record."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from prefactor_core.journal.format import (
    NONE,
    VERSION,
    Aside,
    Created,
    Form,
    Header,
    Kind,
    Opened,
    Refused,
    encode,
    frame,
)
from prefactor_core.models.lifecycle import InstanceStatus, SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
)
from prefactor_core.operations.identifiers import generate, idempotency_key

SECOND = 1_000_000_000
MORNING = 1_767_225_600 * SECOND
"""2026-01-01 00:00:00Z: the time of the first record."""

VERSION_OF_THE_AGENT = {"name": "An agent", "external_identifier": "v1"}
SCHEMAS = {
    "external_identifier": "s1",
    "span_type_schemas": [{"name": "agent:llm", "params_schema": {"type": "object"}}],
}


class DeadJournal:
    """A journal that is written record by record; each has a time one second after the last."""

    def __init__(
        self, directory: Path, *, api_url: str = "local:runs.db", version: int = VERSION
    ) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.name = generate(0, MORNING // 1_000_000 + len(list(directory.iterdir())))
        self.path = directory / f"{self.name}.journal"
        self.path.mkdir(mode=0o700)
        self.segment = self.path / "000001.log"
        self.sequence = 0
        self.now = MORNING
        for file in ("lock", self.segment.name):
            (self.path / file).touch(mode=0o600)
        header = Header(
            version=version, api_url=api_url, host="build-7", process=4242, sdk="prefactor-core"
        )
        self.write(Kind.HEADER, header)

    def write(self, kind: Kind, body: object) -> int:
        """Append a record; return its sequence."""
        self.sequence += 1
        with self.segment.open("ab") as file:
            file.write(frame(self.sequence, kind, encode(body)))
        return self.sequence

    def time(self) -> int:
        self.now += SECOND
        return self.now

    def register(self, agent_id: str = "a1") -> str:
        instance_id = generate(0)
        self.operation(
            RegisterAgentInstance,
            idempotency_key=idempotency_key(instance_id, "register"),
            agent_id=agent_id,
            agent_version=Raw(encode(VERSION_OF_THE_AGENT)),
            agent_schema_version=Raw(encode(SCHEMAS)),
            instance_id=instance_id,
            asks_for_id=True,
        )
        return instance_id

    def start(self) -> str:
        """Register and start a run; return its id."""
        instance_id = self.register()
        key = idempotency_key(instance_id, "start")
        self.operation(StartAgentInstance, idempotency_key=key, instance_id=instance_id)
        return instance_id

    def operation(self, cls: type[Operation], **fields: Any) -> int:
        return self.write(Kind.OPERATION, cls(timestamp=self.time(), **fields))

    def finish(self, instance_id: str) -> int:
        return self.operation(
            FinishAgentInstance,
            idempotency_key=idempotency_key(instance_id, "finish"),
            instance_id=instance_id,
            status=InstanceStatus.COMPLETE,
        )

    def open_span(
        self, instance_id: str, payload: object = None, parent_span_id: str | None = None
    ) -> str:
        """Note an open span; return its id."""
        span_id = generate(0)
        body = Raw(encode({} if payload is None else payload))
        opened = Opened(span_id, instance_id, "agent:llm", parent_span_id, self.time(), body)
        self.write(Kind.OPENED, opened)
        return span_id

    def create_span(self, span_id: str, result: object = None) -> int:
        """Note the create of an open span; it has ended if there is a result."""
        began, status = self.now, SpanStatus.ACTIVE
        finished_at, body = None, NONE
        if result is not None:
            finished_at, status, body = self.time(), SpanStatus.COMPLETE, Raw(encode(result))
        return self.write(Kind.CREATED, Created(span_id, None, began, status, finished_at, body))

    def finish_span(self, instance_id: str, span_id: str) -> int:
        return self.operation(
            FinishSpan,
            idempotency_key=idempotency_key(span_id, "finish"),
            instance_id=instance_id,
            span_id=span_id,
            status=SpanStatus.COMPLETE,
        )

    def sending(self, *sequences: int) -> int:
        return self.write(Kind.SENDING, [Form(sequences, True, NONE)])

    def settled(self, *sequences: int) -> int:
        return self.write(Kind.SETTLED, sequences)

    def refuse(self, sequence: int, operation: Operation, error: str) -> None:
        """Set an operation aside."""
        span_id = operation.span_id if isinstance(operation, CreateSpan) else None
        lost = Refused(sequence, "rejected", operation.instance_id, span_id, None, False)
        self.write(Kind.REFUSED, lost)
        aside = Aside(reason="rejected", error=error, at=self.time(), operation=operation)
        kept = self.path / "refused.log"
        kept.touch(mode=0o600)
        with kept.open("ab") as file:
            file.write(frame(sequence, Kind.REFUSED, encode(aside)))

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold its lock, as the living process does that writes it."""
        import fcntl

        with (self.path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def created(instance_id: str, payload: object) -> CreateSpan:
    """The create of a span that has no open note."""
    span_id = generate(0)
    return CreateSpan(
        timestamp=MORNING,
        idempotency_key=idempotency_key(span_id, "create"),
        instance_id=instance_id,
        span_id=span_id,
        schema_name="agent:llm",
        status=SpanStatus.ACTIVE,
        payload=Raw(msgspec.json.encode(payload)),
    )
