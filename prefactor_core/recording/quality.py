"""QualityManager: records quality payloads of runs as operations."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw

from prefactor_core.exceptions import PrefactorValueError, in_message, type_in_message
from prefactor_core.export.identity import RunIdentity
from prefactor_core.operations import RecordQuality, identifiers
from prefactor_core.payloads.markers import utf8
from prefactor_core.recording.recorder import Recorder
from prefactor_core.schema_registry.type_schema import Fields, has_fields

_REMOVED = Raw(b"null")


class QualityManager:
    """Records the quality payloads of runs, in the order of the calls, in the buffer of
    ``recorder``."""

    def __init__(self, recorder: Recorder) -> None:
        self._buffer = recorder.buffer
        self._event_loop = recorder.event_loop
        self._capture = recorder.capture
        self._recorder = recorder

    def record(
        self, run: RunIdentity, name: str, payload: Mapping[str, object] | Fields | None
    ) -> None:
        """Set the quality payload ``name`` of ``run``; None removes it.

        ``payload`` is captured now: later changes of it do not matter. Nothing is recorded if
        payloads are not captured (``capture_payloads=False``). Raises :class:`PrefactorValueError`
        for an invalid name, and for a payload without fields.
        """
        captured = self._captured(run, name, payload)
        if captured is not None:
            self._event_loop.step(self._record, run, name, captured)

    async def record_in_turn(
        self, run: RunIdentity, name: str, payload: Mapping[str, object] | Fields | None
    ) -> None:
        """As :meth:`record`; with ``when_full="wait"`` it waits while the buffer is full."""
        captured = self._captured(run, name, payload)
        if captured is None:
            return
        waits = (
            self._buffer.waits_when_full
            and self._event_loop.is_here
            and not self._event_loop.is_forked
        )
        if waits:
            await self._buffer.wait_for_slot()
        self._event_loop.step(self._record, run, name, captured, waits)

    def _captured(
        self, run: RunIdentity, name: str, payload: Mapping[str, object] | Fields | None
    ) -> Raw | None:
        self._recorder.check_open()
        if not isinstance(name, str) or not name:
            raise PrefactorValueError(
                f"name must be the name of a quality schema, got {in_message(name)}"
            )
        if payload is not None and not has_fields(payload):
            # Its value is not shown: redact= might have hidden it.
            raise PrefactorValueError(
                "payload must be a mapping or an object with fields, or None to remove the quality "
                f"payload {name!r}, got {type_in_message(payload)}"
            )
        if not self._recorder.records:
            return None
        if payload is None:
            return _REMOVED
        if not self._capture.enabled:
            return None
        captured = self._capture(payload)
        if run.check is not None:
            run.check.quality(name, captured)
        return captured

    def _record(self, run: RunIdentity, name: str, payload: Raw, has_slot: bool = False) -> None:
        operation = RecordQuality(
            timestamp=run.clock.now(),
            # A new key, not one from the run's id: no two calls are the same.
            idempotency_key=identifiers.generate(0),
            instance_id=run.recorded_id,
            # msgspec encodes plain strings only, no subclass.
            name=utf8(str.__str__(name)),
            payload=payload,
        )
        self._buffer.record(operation, operation.size, has_slot=has_slot)
