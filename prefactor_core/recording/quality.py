"""QualityManager: what is found out about the quality of runs, as the operations that tell it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.export.identity import RunIdentity
from prefactor_core.operations import RecordQuality, identifiers
from prefactor_core.payloads.markers import utf8
from prefactor_core.recording.recorder import Recorder
from prefactor_core.schema_registry.type_schema import Fields, has_fields

_REMOVED = Raw(b"null")


class QualityManager:
    """Records the quality payloads of runs, in the order of the calls, where ``recorder`` records
    spans."""

    def __init__(self, recorder: Recorder) -> None:
        self._buffer = recorder.buffer
        self._event_loop = recorder.event_loop
        self._capture = recorder.capture
        self._recorder = recorder

    def record(
        self, run: RunIdentity, name: str, payload: Mapping[str, object] | Fields | None
    ) -> None:
        """From now on the quality payload ``name`` of ``run`` is ``payload``; None removes it.

        ``payload`` is captured now: what changes in it later does not matter. Where no payloads
        are kept, none is recorded. Raises :class:`PrefactorValueError` for what is no name, or has
        no fields.
        """
        captured = self._captured(run, name, payload)
        if captured is not None:
            self._event_loop.step(self._record, run, name, captured)

    async def record_in_turn(
        self, run: RunIdentity, name: str, payload: Mapping[str, object] | Fields | None
    ) -> None:
        """As :meth:`record`; where spans wait for their place while the buffer is full, so does
        this."""
        captured = self._captured(run, name, payload)
        if captured is None:
            return
        waits = (
            self._buffer.waits_when_full
            and self._event_loop.is_here
            and not self._event_loop.is_forked
        )
        if waits:
            await self._buffer.wait_for_place()
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
            # Not shown: it may be what redact= would have hidden.
            raise PrefactorValueError(
                "payload must be a mapping or an object with fields, or None to remove the quality "
                f"payload {name!r}, got a {type(payload).__qualname__}"
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

    def _record(self, run: RunIdentity, name: str, payload: Raw, has_place: bool = False) -> None:
        operation = RecordQuality(
            timestamp=run.clock.now(),
            # Not from the run's id: each call says something new.
            idempotency_key=identifiers.generate(0),
            instance_id=run.recorded_id,
            # JSON is written of plain text only.
            name=utf8(str.__str__(name)),
            payload=payload,
        )
        self._buffer.record(operation, operation.size, has_place=has_place)
