"""PrefactorSpanProcessor: makes Prefactor runs and spans of what OpenTelemetry emits, live."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import anyio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from prefactor_core.agent.instance import AgentInstanceHandle, context_runs, own_instance
from prefactor_core.agent.span import SpanContext
from prefactor_core.client import PrefactorCoreClient
from prefactor_core.client.sync import SyncPrefactorClient
from prefactor_core.context_stack import OWN_REQUEST, SpanContextStack
from prefactor_core.context_stack.entries import innermost_entry
from prefactor_core.context_stack.finders import Finder, finders, remove_finders
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    InstanceNotFoundError,
    PrefactorCoreError,
    PrefactorTerminatedError,
)
from prefactor_core.exceptions.log import log
from prefactor_core.models.lifecycle import OPEN, SpanStatus
from prefactor_core.otel.foreign_span import ForeignSpan, to_time
from prefactor_core.otel.steps import add_span_types
from prefactor_core.recording.span_record import deeper, new_span_id, refresh_pending
from prefactor_core.span_types import standard_types

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext as ForeignContext

    from prefactor_core.export.identity import RunIdentity
    from prefactor_core.recording.recorder import Recorder

logger = logging.getLogger("prefactor_core.otel.processor")

V = TypeVar("V")

_Key: TypeAlias = tuple[int, int]
"""The ids of a trace and of a span."""

_PENDING: Final = SpanStatus.PENDING

_MOST_OPEN: Final = 10_000
_MOST_ENDED: Final = 1_000
_MOST_WAITING: Final = 1_000

_PLUMBING: Final = ("http.", "url.", "db.", "rpc.", "messaging.", "faas.")
"""How attributes of spans begin that are no work of an agent, unless they are inside of one."""


class PrefactorSpanProcessor(SpanProcessor):
    """Makes Prefactor runs and spans of the spans of OpenTelemetry, while they are open::

        async with open_prefactor(schema_registry=standard_types()) as client:
            provider.add_span_processor(PrefactorSpanProcessor(client, agent_id="..."))

    A span becomes an ``agent:llm_call``, ``agent:tool_call``, ``agent:retrieval`` or ``agent:run``
    (:mod:`prefactor_core.span_types`), or an ``otel:span`` if it is none of these; their types are
    added to the schema registry of the client. What the types have no field for is in
    ``attributes`` and ``events``, and the ids of OpenTelemetry are in ``otel``. The tokens of an
    agent, which are those of its calls, stay attributes.

    A span without a parent is a step of the current run, below the current span. Without a current
    run it opens one, which ends when the span and all spans inside have ended; spans of HTTP,
    databases, RPC and messaging open none. Such a run belongs to the agent ``agent_id``; leave that
    out only where the API token stands for an agent. ``agent_version`` is by default the name and
    the version of the service in OpenTelemetry's resource. See
    :meth:`~prefactor_core.PrefactorCoreClient.create_agent_instance`.

    Inside of a span, :func:`~prefactor_core.current_instance` is its run, if the program has opened
    no run of its own. A span of this library (``@traced``, ``prefactor_core.span()``,
    ``instance.span()``) is below the current span of OpenTelemetry, and one of OpenTelemetry below
    the current span of this library, whichever is the inner one.

    A call of a model is recorded when it ends, with its tokens; any other span after
    ``report_after``, when one inside of it ends, or when it ends, whichever is first. Its payload
    is what the attributes say at that time, and what they say later is in its result. If an
    instrumentation sets its attributes at the end only (OpenInference for LangChain), the whole
    tree is recorded when its root ends. Around a span of this library, either kind is recorded when
    that is, with what it said when that began.

    By the conventions of OpenTelemetry, many instrumentations leave out what is said, unless the
    variable ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``span_only`` (and, for some,
    ``OTEL_SEMCONV_STABILITY_OPT_IN`` is ``gen_ai_latest_experimental``). LangSmith emits late, from
    a thread without a current run: open a span of OpenTelemetry around, and its spans find the run
    by that.

    ``client`` may be of either kind. While it is closed or disabled, and in a fork of its process,
    nothing is recorded. Spans that are not sampled are not recorded. At most 10,000 spans are open
    at a time; the oldest are ended as cancelled, and ``spans_given_up`` counts them.

    Nothing raises, with one exception: if Prefactor has terminated the run, the start of its next
    span raises :class:`~prefactor_core.PrefactorTerminatedError`, so that the instrumented code
    stops. LangChain and OpenAI Agents swallow what their instrumentations raise. There, put
    ``async with client.agent_instance(...)`` around the agent, which is cancelled then.
    """

    def __init__(
        self,
        client: PrefactorCoreClient | SyncPrefactorClient,
        agent_id: str | None = None,
        agent_version: Mapping[str, object] | None = None,
        *,
        environment_id: str | None = None,
    ) -> None:
        self._client = client if isinstance(client, PrefactorCoreClient) else client.core
        self._agent_id = agent_id
        self._agent_version = agent_version
        self._environment_id = environment_id
        config = self._client.config
        if config.schema_registry is None:
            config.schema_registry = standard_types()  # as without a processor
        add_span_types(config.schema_registry)
        self.spans_given_up = 0
        self._is_shut_down = False
        self._problems = 0
        self._waiting_bytes = 0
        self._open: dict[_Key, ForeignSpan] = {}
        # Spans that have ended may still be parents. Only the last ones are kept.
        self._ended: dict[_Key, ForeignSpan] = {}
        self._find: Finder = self._current_span

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Open a span of Prefactor, and a run if there is none.

        Raises :class:`~prefactor_core.PrefactorTerminatedError` if the run was terminated.
        """
        try:
            self._start(span)
        except PrefactorTerminatedError:
            raise
        except (ClientNotInitializedError, InstanceNotFoundError):
            pass  # another thread has just closed the client, or ended the run
        except Exception as error:
            self._log(error)

    def on_end(self, span: ReadableSpan) -> None:
        """End the span, and the run that it has opened."""
        try:
            if span.context is not None:
                key = span.context[:2]
                ended = self._open.pop(key, None)
                if ended is not None:
                    self._end(key, ended, span)
        except Exception as error:
            self._log(error)

    def shutdown(self) -> None:
        """End all open spans, and the runs that they have opened, as cancelled. Nothing is recorded
        from now on. The client delivers what was recorded when its own scope is left."""
        self._is_shut_down = True
        for key in reversed(list(self._open)):  # children before their parents
            self._give_up(key)
        finders.pop(self._find, None)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return whether everything recorded so far is delivered, after at most ``timeout_millis``.

        In the thread of the client's event loop this cannot wait, and returns at once.
        """
        try:
            recorder = self._recorder()
            if recorder is None or self._client.statistics().pending == 0:
                return True
            if recorder.event_loop.is_here:
                return False
            return self._flush(recorder, timeout_millis / 1_000)
        except Exception as error:
            self._log(error)
            return False

    def _flush(self, recorder: Recorder, seconds: float) -> bool:
        flushed, loop = threading.Event(), recorder.event_loop

        async def flush() -> None:
            with suppress(PrefactorCoreError), anyio.move_on_after(seconds) as time:
                await self._client.flush()
            if not time.cancelled_caught:
                flushed.set()

        def start() -> None:
            with suppress(RuntimeError):  # trio ends, and starts no task any more
                loop.spawn(flush, "PrefactorSpanProcessor.force_flush", lambda: None)

        return loop.run_soon(start) and flushed.wait(seconds)

    def _recorder(self) -> Recorder | None:
        """The recorder of the open client; None if nothing can be recorded."""
        try:
            recorder = self._client.span_manager.recorder
        except PrefactorCoreError:
            return None
        return None if recorder.closed or not recorder.records else recorder

    def _start(self, source: Span) -> None:
        context = source.context
        if context is None or not context.trace_flags.sampled or self._is_shut_down:
            return
        if context[:2] in self._open:
            return  # the provider has this processor twice
        recorder = self._recorder()
        if recorder is None:
            return
        entry = innermost_entry.get()
        if entry is not None and entry.pushed_id is OWN_REQUEST:
            return  # its delivery would be the next request
        instance, run, parent_id = self._place(recorder, source)
        opens_run = run is None
        if run is None:
            instance = self._open_run(source)
            if instance is None:
                return
            run = self._client.span_manager.run_of(instance.id)
        span = ForeignSpan(recorder, run, new_span_id(run), parent_id, source)
        span.instance, span.opens_run = instance, opens_run
        try:
            recorder.open(span, detached=True)
        except BaseException:
            if opens_run and instance is not None:
                instance.finish_nowait("cancelled")
            raise
        span.created_at = to_time(source.start_time) or span.created_at
        self._open[context[:2]] = span
        if self._find not in finders:
            finders[self._find] = recorder
            if recorder.closed:  # another thread has just closed the client
                remove_finders(recorder)
        while len(self._open) > _MOST_OPEN:
            with suppress(RuntimeError):  # another thread changed it at the same time
                self._give_up(next(iter(self._open)))
                self.spans_given_up += 1

    def _place(
        self, recorder: Recorder, source: Span
    ) -> tuple[AgentInstanceHandle | None, RunIdentity | None, str | None]:
        """The run of a span that starts, and its parent.

        The parent in OpenTelemetry counts, unless a span or a run of ours was entered inside of it.
        """
        parent = None if source.parent is None else self._recorded(recorder, source.parent)
        if innermost_entry.get() is None and not context_runs.get():
            if parent is None:
                return None, None, None
            return parent.instance, parent.run, parent.recorded_id
        instance, run = self._own_run(recorder)
        if parent is None or (run is not None and run.recorded_id != parent.instance_id):
            return instance, run, None
        own = SpanContextStack.innermost(parent.instance_id)
        parent_id = parent.recorded_id if deeper(own, parent) is parent else None
        return parent.instance, parent.run, parent_id

    def _recorded(self, recorder: Recorder, context: ForeignContext) -> ForeignSpan | None:
        """The span with these ids, if it was recorded and its run goes on."""
        key = context[:2]
        span = self._open.get(key)
        if span is None or span.status not in OPEN:
            span = self._ended.get(key)
        if span is None or span.recorder is not recorder:
            return None
        termination = span.run.termination
        return None if termination.over and termination.reason is None else span

    def _own_run(self, recorder: Recorder) -> tuple[AgentInstanceHandle | None, RunIdentity | None]:
        """The run that a program of this client has made current, and its handle."""
        instance = own_instance()
        if instance is not None and instance.recorder is recorder:
            return instance, self._client.span_manager.run_of(instance.id)
        for span in SpanContextStack.open_spans():
            if isinstance(span, SpanContext) and span.recorder is recorder:
                return None, span.run
        return None, None

    def _current_span(self) -> ForeignSpan | None:
        """The recorded span that is the current one of OpenTelemetry."""
        try:
            recorder = self._recorder()
            if recorder is None:
                return None
            return self._recorded(recorder, trace.get_current_span().get_span_context())
        except Exception as error:
            self._log(error)
            return None

    def _open_run(self, source: Span) -> AgentInstanceHandle | None:
        """Open a run for a root span; None if this is none of an agent."""
        if any(key.startswith(_PLUMBING) for key in source.attributes or ()):
            return None
        version = self._agent_version
        if version is None:
            resource = source.resource.attributes
            name, number = resource.get("service.name"), resource.get("service.version")
            version = {"name": name or "OpenTelemetry", "external_identifier": number or "otel"}
        instance = self._client.create_agent_instance_nowait(
            self._agent_id, version, environment_id=self._environment_id
        )
        self._client.instance_manager.start(instance.id, at=to_time(source.start_time))
        return instance

    def _end(self, key: _Key, span: ForeignSpan, source: ReadableSpan) -> None:
        if span.recorder.event_loop.is_forked:
            return
        if span.status not in OPEN:
            self._tell_waiting(span)  # they have ended with the run, too
            return
        span.read_end(source)
        self._ended[key] = span
        _keep_last(self._ended, _MOST_ENDED)
        if not self._hold(span):
            self._tell(span)
        self._end_run(span)

    def _hold(self, span: ForeignSpan) -> bool:
        """Keep an ended span until its parent is recorded, if that waits for its own end."""
        parent = span.parent
        if not isinstance(parent, ForeignSpan) or parent.status is not _PENDING:
            return False
        with span.recorder.event_loop.lock:
            if not parent.waits_for_result:
                return False
            held = self._waiting_bytes + span.recorder.buffer.counters.held_bytes
            if len(parent.waiting) < _MOST_WAITING and held < span.recorder.buffer.max_bytes:
                parent.waiting.append(span)
                self._waiting_bytes += span.size
                return True
        # Too many: record the parent as it is.
        refresh_pending(parent)
        parent.recorder.start(parent, None, parent.created_at)
        self._tell_waiting(parent)
        return False

    def _tell(self, span: ForeignSpan) -> None:
        """Record the end of a span, and then the spans that have waited for that."""
        refresh_pending(span.parent)
        span.end()
        self._tell_waiting(span)

    def _tell_waiting(self, span: ForeignSpan) -> None:
        parents = [span]
        for parent in parents:  # the list grows meanwhile
            # Under the lock: another thread may add one, unless it sees that the span has ended.
            with span.recorder.event_loop.lock:
                ended, parent.waiting = parent.waiting, []
                self._waiting_bytes -= sum(each.size for each in ended)
            for each in ended:
                each.end()
            parents += ended

    def _end_run(self, root: ForeignSpan) -> None:
        """End the run that an ended root span has opened, once all spans inside have ended."""
        if root.opens_run:
            # Before the first look: the last span may end in another thread at this moment.
            root.recorder.index.after_end[root.instance_id] = partial(self._end_empty_run, root)
            self._end_empty_run(root)

    def _end_empty_run(self, root: ForeignSpan) -> None:
        index, id = root.recorder.index, root.instance_id
        if id in index.by_run or index.after_end.pop(id, None) is None:
            return
        instance = root.instance
        assert instance is not None
        terminated = instance.terminated is not None
        try:
            instance.finish_nowait("cancelled" if terminated else root.outcome)
        except Exception as error:
            self._log(error)

    def _give_up(self, key: _Key) -> None:
        """End an open span as cancelled."""
        span = self._open.pop(key, None)
        if span is None or span.recorder.event_loop.is_forked:
            return
        self._ended[key] = span
        try:
            refresh_pending(span)
            span.give_up()
            self._tell_waiting(span)
            self._end_run(span)
        except Exception as error:
            self._log(error)

    def _log(self, error: Exception) -> None:
        self._problems += 1
        if self._problems & (self._problems - 1) == 0:  # the first, the second, the fourth...
            message = "a span of OpenTelemetry could not be recorded (number %d)"
            log(logger, logging.WARNING, message, self._problems, error=error)


def _keep_last(kept: dict[_Key, V], most: int) -> None:
    while len(kept) > most:
        with suppress(RuntimeError, StopIteration):  # another thread changed it at the same time
            kept.pop(next(iter(kept)), None)
