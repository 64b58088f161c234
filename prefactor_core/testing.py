"""The test kit: record an agent in memory, and inspect the recorded runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, Unpack

import anyio
import msgspec
from msgspec import Struct, field

# Imported here: the first client to open would import it in a thread, and no test on virtual time
# may wait for a thread.
import prefactor_core.client.default_types  # noqa: F401 # pyright: ignore[reportUnusedImport]
from prefactor_core.agent.run_html import SpanLine, run_html
from prefactor_core.client import PrefactorCoreClient
from prefactor_core.client.captures import NOWHERE, capturing
from prefactor_core.client.sync import SyncPrefactorClient
from prefactor_core.config import PrefactorCoreConfig, PrefactorOptions, check_options
from prefactor_core.exceptions import PrefactorCoreError, PrefactorTelemetryFailureError
from prefactor_core.recording.run_end import finish_open_runs
from prefactor_core.schema_registry.sensitive import hidden

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

_MOST_RUNS: Final = 10
"""The runs that a message shows."""

_MOST_LINES: Final = 100
"""The lines of a run that a message shows."""


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

        Its block may be entered in one task and left in another, as in a fixture of pytest-asyncio
        or in ``asyncSetUp()`` of unittest.
        """
        return _Client(self._config(options), asgi_app=self._app)

    def open_sync(self, **options: Unpack[PrefactorOptions]) -> SyncPrefactorClient:
        """As :meth:`open`, for synchronous code: ``with recording.open_sync() as client:``."""
        client = PrefactorCoreClient(self._config(options), asgi_app=self._app)
        return SyncPrefactorClient(client)

    @contextmanager
    def capture(self) -> Generator[Self]:
        """Record here what the program sends by clients of its own.

        ``with recording.capture():`` around an application that calls ``open_prefactor()`` or
        ``open_prefactor_sync()`` by itself. Every client that this process opens in the block, in
        any task and thread, records here, whatever its address. It needs no address and no token
        then, and keeps no journal. Its other options count: with ``PREFACTOR_ENABLED=0`` it records
        nothing. A client that was opened before, or has an ``asgi_app`` of its own, goes on as
        ever.
        """
        with capturing(self._app):
            yield self

    @staticmethod
    def _config(options: PrefactorOptions) -> PrefactorCoreConfig:
        check_options(options)
        options.setdefault("enabled", True)
        return PrefactorCoreConfig.from_env(api_url=NOWHERE, **options)

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
            error = AssertionError(f"one run was expected, {len(runs)} were recorded")
            error.add_note(self.outline)
            raise error
        return runs[0]

    @property
    def outline(self) -> str:
        """The outlines of the runs, for the message of a failure: bounded."""
        runs = self.runs
        outlines = [_bounded(run.outline) for run in runs[:_MOST_RUNS]]
        if len(runs) > _MOST_RUNS:
            outlines.append(f"and {len(runs) - _MOST_RUNS} more runs")
        return "\n\n".join(outlines) or "no run was recorded"

    def __repr__(self) -> str:
        try:
            return f"<Recording of {len(self.runs)} runs>"
        except PrefactorCoreError:
            return "<Recording, closed>"

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


class _Client(PrefactorCoreClient):
    """A client whose block may be left in another task than it was entered in.

    A task of its own enters and leaves the scope; see
    :class:`~prefactor_core.client.host_task.HostTask`.
    """

    _host_id: int | None = None

    async def __aenter__(self) -> Self:
        if not self.config.enabled or self.config.cancel_on_signals:
            return await super().__aenter__()
        if self._host is not None and not self._host.ended:
            await super().__aenter__()  # in the host task; in any other this is an error
            self._host_id = anyio.get_current_task().id
        else:
            await self.initialize()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._host is None or anyio.get_current_task().id == self._host_id:
            return await super().__aexit__(exc_type, error, traceback)  # noqa: ASYNC102 - bounded
        if not self._host.ended:
            # The host task does not know how the block ended.
            for _ in finish_open_runs(self.instance_manager, self.span_manager.recorder, error):
                pass
        try:
            await self.close()  # noqa: ASYNC102 - shields and bounds what it awaits
        except PrefactorTelemetryFailureError:
            if error is None:
                raise
        return None


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

    def __repr__(self) -> str:
        return f"<RecordedSpan {self.schema_name!r} {self.status}>"


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
            error = AssertionError(
                f"one span {schema_name!r} was expected, {len(spans)} were recorded; "
                f"the names there are: {names}"
            )
            error.add_note(_bounded(self.outline))
            raise error
        return spans[0]

    def spans_named(self, schema_name: str) -> list[RecordedSpan]:
        """All spans of this name, in the order of their start."""
        return [span for span in self.spans if span.schema_name == schema_name]

    @property
    def outline(self) -> str:
        """The status of the run, then a line for each span, indented under its parent:
        ``"complete\\nagent:run complete\\n  agent:llm failed"``."""
        lines = [f"{'  ' * depth}{span.schema_name} {span.status}" for depth, span in self._walk()]
        return "\n".join([self.status, *lines])

    def _walk(self) -> Iterator[tuple[int, RecordedSpan]]:
        """The spans and their depths, each after its parent."""
        # A stack, not recursion: a run may be nested deeper than Python's recursion limit.
        waiting = [(0, span) for span in reversed(self.roots)]
        while waiting:
            depth, span = waiting.pop()
            yield depth, span
            waiting += [(depth + 1, child) for child in reversed(span.children)]

    def __repr__(self) -> str:
        return f"<RecordedRun {self.id} {self.status}, {len(self.spans)} spans>"

    def _repr_html_(self) -> str:
        # For notebooks.
        run = SpanLine(
            0,
            f"agent instance {self.id}",
            self.status,
            self.started_at,
            self.finished_at,
            self.termination_reason or "",
        )
        return run_html(run, (_line(depth, span) for depth, span in self._walk()))


def _line(depth: int, span: RecordedSpan) -> SpanLine:
    times = span.started_at, span.finished_at
    return SpanLine(depth, span.schema_name, span.status, *times, _text(span))


def _text(span: RecordedSpan) -> str:
    """The error of a failed span, or its summary, or else its payload and result; sensitive values
    as their labels."""
    shown = [hidden(value) for value in (span.payload, span.result) if value]
    match span.status, span.result:
        case "failed", {"error": {"type": kind, "message": message}}:
            return f"{kind}: {message}"
        case "failed", _:
            shown.reverse()
        case _ if span.summary:
            return span.summary
        case _:
            pass
    return " → ".join(msgspec.json.encode(value).decode() for value in shown)


def _bounded(outline: str) -> str:
    lines = outline.split("\n")
    if (others := len(lines) - _MOST_LINES) > 0:
        lines[_MOST_LINES:] = [f"and {others} more spans"]
    return "\n".join(lines)
