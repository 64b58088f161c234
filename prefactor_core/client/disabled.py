"""DisabledScope: the open scope of a disabled client."""

from __future__ import annotations

from typing import Final

import anyio

from prefactor_core.config import QueueConfig
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.counters import Counters
from prefactor_core.export.identity import Identities
from prefactor_core.export.loss_report import LossReport
from prefactor_core.payloads.capture import Capture
from prefactor_core.queue.event_loop import EventLoop
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.quality import QualityManager
from prefactor_core.recording.recorder import Recorder
from prefactor_core.recording.run_end import finish_open_runs
from prefactor_core.recording.span_manager import SpanManager
from prefactor_core.schema_registry import SchemaRegistry

_NO_PAYLOADS: Final = Capture(enabled=False)


class DisabledScope:
    """Runs have states and new ids; spans do nothing; nothing is sent, and no call waits."""

    def __init__(self) -> None:
        try:
            self.event_loop = EventLoop.here()
        except anyio.NoEventLoopError:
            self.event_loop = EventLoop(None)  # a synchronous program needs none
        self.counters = Counters()
        identities = Identities()
        losses = LossReport(self.counters, self.event_loop)
        buffer = Buffer([], self.counters, losses, QueueConfig(), self.event_loop)
        self.instance_manager = AgentInstanceManager(buffer, identities, records=False)
        self.recorder = Recorder(
            buffer,
            identities,
            _NO_PAYLOADS,
            self.instance_manager.begin,
            SchemaRegistry(),
            records=False,
        )
        self.span_manager = SpanManager(self.recorder, identities)
        self.quality_manager = QualityManager(self.recorder)

    def check_task(self) -> None:
        """Nothing here belongs to a task."""

    async def flush(self) -> None:
        """There is nothing to wait for."""

    async def close(self, error: BaseException | None, *, raises: bool) -> None:
        """End open runs."""
        self.recorder.close()
        self.instance_manager.close()
        for _ in finish_open_runs(self.instance_manager, self.recorder, error):
            pass
