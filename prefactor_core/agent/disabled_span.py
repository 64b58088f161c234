"""Spans that record nothing: of a disabled client, and outside of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, cast

import anyio.lowlevel

from prefactor_core.agent.span import SpanContext
from prefactor_core.operations.identifiers import generate
from prefactor_core.payloads.capture import Capture
from prefactor_core.schema_registry.type_schema import Fields

if TYPE_CHECKING:
    from prefactor_core.recording.recorder import Recorder


# The innermost disabled span that was entered in this context and has not been left.
_disabled: ContextVar[DisabledSpan | None] = ContextVar("prefactor_core_disabled", default=None)


class DisabledSpan(SpanContext[Any]):
    """The span of a disabled client: all its methods work, and record nothing."""

    _outer: DisabledSpan | None

    def __init__(self, recorder: Recorder, instance: object = None) -> None:
        self.recorder = recorder
        self.instance = instance

    @staticmethod
    def innermost() -> DisabledSpan | None:
        """The innermost disabled span of this context; None without one."""
        return _disabled.get()

    def detached(self) -> Self:
        """The same span: it has no children in any case."""
        return self

    @property
    def is_open(self) -> bool:
        """False: nothing of it is recorded."""
        return False

    @property
    def id(self) -> str:
        """A PFID of its own, unknown to the API."""
        try:
            return self.recorded_id
        except AttributeError:
            self.recorded_id = generate(0)
            return self.recorded_id

    def start_nowait(
        self,
        payload: Mapping[str, object] | Fields | None = None,
        started_at: datetime | None = None,
    ) -> None: ...
    def set_result(self, data: Mapping[str, object]) -> None: ...
    def complete_nowait(
        self, result: Mapping[str, object] | None = None, timestamp: datetime | None = None
    ) -> None: ...
    def fail_nowait(
        self, result: Mapping[str, object] | None = None, timestamp: datetime | None = None
    ) -> None: ...
    def cancel_nowait(self, timestamp: datetime | None = None) -> None: ...

    async def complete(
        self, result: Mapping[str, object] | None = None, timestamp: datetime | None = None
    ) -> None:
        if self.recorder.event_loop.is_turn_due():
            await anyio.lowlevel.checkpoint()

    async def fail(
        self, result: Mapping[str, object] | None = None, timestamp: datetime | None = None
    ) -> None:
        await self.complete()

    def __enter__(self, frame: FrameType | None = None) -> Self:
        self._outer = _disabled.get()
        _disabled.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        # Tasks that were started inside still refer to this span, but not to those around it.
        _disabled.set(self._outer)
        self._outer = None

    async def __aenter__(self) -> Self:
        # __enter__(), without the call: tenths of a microsecond count here.
        self._outer = _disabled.get()
        _disabled.set(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        _disabled.set(self._outer)
        self._outer = None

    def __repr__(self) -> str:
        return "<SpanContext disabled>"


class _NoEventLoop:
    def is_turn_due(self) -> bool:
        return False


class _NoRecorder:
    """What the span outside of a run asks its recorder for."""

    records = False
    event_loop = _NoEventLoop()

    @property
    def capture(self) -> Capture:
        return Capture(enabled=False)


_NO_RECORDER = cast("Recorder", _NoRecorder())


class SpanOutsideOfRun(DisabledSpan):
    """The span of a step outside of a run: all its methods work, and record nothing. It is never
    the current one."""

    def __init__(self) -> None:
        self.recorder = _NO_RECORDER
        self.instance = None

    def __enter__(self, frame: FrameType | None = None) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    def __repr__(self) -> str:
        return "<SpanContext outside of a run>"
