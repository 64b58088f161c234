"""The test kit: record an agent in memory, and inspect the recorded runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any, Unpack

import msgspec
from msgspec import Struct, field

# Imported here: the first client to open would import it in a thread, and no test on virtual time
# may wait for a thread.
from prefactor_core.client import PrefactorCoreClient, open_prefactor
from prefactor_core.client.sync import SyncPrefactorClient
from prefactor_core.config import PrefactorOptions
from prefactor_core.exceptions import PrefactorCoreError

try:
    from prefactor_core.local.app import LocalPrefactor
    from prefactor_core.local.errors import ApiError
    from prefactor_core.local.requests import TerminateBody
    from prefactor_core.local.service import Service
    from prefactor_core.local.store import MEMORY, Row, Store
    from prefactor_core.local.versions import Versions
    from prefactor_core.local.views import Views
except ImportError as error:
    raise ImportError(
        f"prefactor_core.testing needs the extra 'local' of this package ({error}): "
        "pip install '.[local]' in its folder"
    ) from None


@contextmanager
def open_recording() -> Generator[Recording]:
    """A Prefactor in memory for one block: ``with open_recording() as recording:``.

    In pytest, the fixture ``prefactor`` gives one to each test.
    """
    with closing(Store(MEMORY)) as store:
        yield Recording(store)


class Recording:
    """The runs that clients record in memory; :func:`open_recording` makes one.

    Any thread may use it, also while a client in another thread records.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions = Versions(store)
        self._views = Views(store, self._versions)
        self._service = Service(store)
        self._app = LocalPrefactor(store)

    def open(self, **options: Unpack[PrefactorOptions]) -> PrefactorCoreClient:
        """A client that records here: ``async with recording.open() as client:``.

        Takes the options of :func:`~prefactor_core.open_prefactor`. The environment is not read,
        not even ``PREFACTOR_ENABLED``.
        """
        options.setdefault("enabled", True)
        return open_prefactor(
            api_url=f"local:{MEMORY}",
            asgi_app=self._app,
            **options,
        )

    def open_sync(self, **options: Unpack[PrefactorOptions]) -> SyncPrefactorClient:
        """As :meth:`open`, for synchronous code: ``with recording.open_sync() as client:``."""
        return SyncPrefactorClient(self.open(**options))

    def terminate(self, instance_id: str, reason: str) -> None:
        """Terminate an open run, as the service does: the kill switch.

        The agent learns of it from the answer to its next operation, or from a poll. Raises
        :class:`PrefactorCoreError` for a run that does not exist or has ended.
        """
        try:
            self._service.terminate(instance_id, TerminateBody(reason=reason))
        except ApiError as error:
            raise PrefactorCoreError(error.message) from None

    @property
    def runs(self) -> list[RecordedRun]:
        """The runs that were delivered so far, oldest first.

        They are complete after the client's block, or inside it after ``await client.flush()``.
        Raises :class:`PrefactorCoreError` if the recording is closed.
        """
        try:
            with self._store.transaction():
                rows = self._store.all("SELECT * FROM agent_instances ORDER BY rowid")
                return [self._run(row) for row in rows]
        except sqlite3.ProgrammingError:
            raise PrefactorCoreError(
                "the recording is closed: look at its runs inside of 'with open_recording()'"
            ) from None

    @property
    def run(self) -> RecordedRun:
        """The only run. Raises :class:`AssertionError` for none, or more than one."""
        runs = self.runs
        if len(runs) != 1:
            raise AssertionError(f"one run was expected, {len(runs)} were recorded")
        return runs[0]

    def _run(self, row: Row) -> RecordedRun:
        spans = self._store.all(
            "SELECT * FROM agent_spans WHERE agent_instance_id = ? "
            # By time: ids made within one millisecond have no order.
            "ORDER BY coalesce(started_at, finished_at, inserted_at), rowid",
            row["id"],
        )
        answer = {
            **self._views.instance(row),
            "agent_version": self._versions.stored(row["agent_version_id"]),
            "schema_version": self._versions.stored(row["agent_schema_version_id"]),
            "spans": [self._views.span(span, row) for span in spans],
        }
        run = msgspec.json.decode(msgspec.json.encode(answer), type=RecordedRun)
        by_id = {span.id: span for span in run.spans}
        for span in run.spans:
            if span.parent_id is not None:
                by_id[span.parent_id].children.append(span)
        return run


class RecordedSpan(Struct, frozen=True):
    """A span as the API has it, with its ``children`` in the order of their start.

    ``flags``: where payload and result do not fit the schemas of the span type, or that the type
    is not registered. ``summary``: by the template of the type, or None without one.
    """

    id: str
    schema_name: str
    status: str
    payload: dict[str, Any]
    result: dict[str, Any] | None = field(name="result_payload")
    parent_id: str | None = field(name="parent_span_id")
    started_at: datetime | None
    finished_at: datetime | None
    flags: list[str]
    summary: str | None
    children: list[RecordedSpan] = []


class RecordedRun(Struct, frozen=True):
    """A run as the API has it, with all its ``spans`` in the order of their start.

    ``quality``: the recorded quality payloads by name; ``quality_summaries``: the summaries of
    those whose schema has a template. ``agent_version`` and ``schema_version``: the versions that
    the run registered. ``run_flags``: odd values of the run itself.
    """

    id: str
    agent_id: str
    status: str
    termination_reason: str | None
    started_at: datetime | None
    finished_at: datetime | None
    spans: list[RecordedSpan]
    external_identifier: str | None
    purpose: str
    environment_id: str
    agent_version: dict[str, Any]
    schema_version: dict[str, Any]
    quality: dict[str, dict[str, Any]] = field(name="quality_payloads")
    quality_flags: dict[str, list[str]]
    quality_summaries: dict[str, str]
    run_flags: list[str] = field(name="flags")

    @property
    def flags(self) -> list[str]:
        """The flags of the run, of each span (after its name) and of the quality payloads.

        ``assert run.flags == []`` finds misspelled span types, and payloads that do not fit their
        schemas. With an empty ``SchemaRegistry()`` nothing is compared.
        """
        spans = [f"{span.schema_name}: {flag}" for span in self.spans for flag in span.flags]
        qualities = [
            f"{name}: {flag}" for name, flags in self.quality_flags.items() for flag in flags
        ]
        return self.run_flags + spans + qualities

    @property
    def roots(self) -> list[RecordedSpan]:
        """The spans without a parent."""
        return [span for span in self.spans if span.parent_id is None]

    def named(self, schema_name: str) -> RecordedSpan:
        """The only span of this name. Raises :class:`AssertionError` for none, or more than one."""
        spans = self.spans_named(schema_name)
        if len(spans) != 1:
            names = ", ".join(dict.fromkeys(span.schema_name for span in self.spans)) or "none"
            raise AssertionError(
                f"one span {schema_name!r} was expected, {len(spans)} were recorded; "
                f"the names there are: {names}"
            )
        return spans[0]

    def spans_named(self, schema_name: str) -> list[RecordedSpan]:
        """All spans of this name, in the order of their start."""
        return [span for span in self.spans if span.schema_name == schema_name]

    @property
    def outline(self) -> str:
        """The status of the run, then a line for each span, indented under its parent:
        ``"complete\\nagent:run complete\\n  agent:llm failed"``."""
        lines = [self.status]
        # A stack, not recursion: a run may be nested deeper than Python's recursion limit.
        waiting = [("", span) for span in reversed(self.roots)]
        while waiting:
            indent, span = waiting.pop()
            lines.append(f"{indent}{span.schema_name} {span.status}")
            waiting += [(indent + "  ", child) for child in reversed(span.children)]
        return "\n".join(lines)
