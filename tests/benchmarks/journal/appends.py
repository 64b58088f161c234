"""The time of one append, on a quiet disk and while another process fills the disk's queue."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec import Raw

from benchmarks.drivers.job import Bodies
from benchmarks.journal.spans import quantile
from benchmarks.results import Spread
from prefactor_core.export.batch_item import BatchItem
from prefactor_core.journal.directory import JournalDirectory
from prefactor_core.journal.format import VERSION, Header, Kind, encode, frame
from prefactor_core.journal.writer import JournalWriter
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan
from prefactor_core.operations.identifiers import generate

_APPENDS = 20_000
"""Appends of a block: p99.9 is the twentieth from the top."""

_BURST = 20
_PAUSE = 0.004
_SETTLED_TOGETHER = 1_000

_HEADER = Header(version=VERSION, api_url="http://127.0.0.1", host="", process=0, sdk="")
_now = time.perf_counter_ns


@dataclass(frozen=True)
class Appends:
    """Microseconds of an append, each over the blocks. ``encoded_p999``: p99.9 of the same without
    the write: the noise of the machine. ``load``: megabytes a second that the other process wrote,
    0 without one."""

    median: Spread
    p99: Spread
    p999: Spread
    largest: Spread
    encoded_p999: Spread
    load: float


def measure_appends(folder: Path, blocks: int) -> tuple[Appends, Appends]:
    """On a quiet disk, and on one whose queue another process fills."""
    directory = JournalDirectory(folder / "appends")
    directory.open()
    writer = JournalWriter(
        directory.create(), _HEADER, threading.RLock(), lambda _: None, max_bytes=256 << 20
    )
    try:
        quiet = _measure(writer, blocks, 0.0)
        with _disk_load(folder) as load:
            pressed = [_block(writer) for _ in range(blocks)]
        return quiet, _appends(pressed, load[0])
    finally:
        writer.close()


def _measure(writer: JournalWriter, blocks: int, load: float) -> Appends:
    return _appends([_block(writer) for _ in range(blocks)], load)


def _block(writer: JournalWriter) -> tuple[list[int], list[int]]:
    """Nanoseconds of appends, and of encoding alone; in turns."""
    operations = [_operation() for _ in range(_SETTLED_TOGETHER)]
    items = [BatchItem(one, 0, one.size, (one.idempotency_key,)) for one in operations]
    appended: list[int] = []
    encoded: list[int] = []
    while len(appended) < _APPENDS:
        for start in range(0, _SETTLED_TOGETHER, _BURST):
            for operation in operations[start : start + _BURST]:
                began = _now()
                writer.append(operation)
                appended.append(_now() - began)
            for operation in operations[start : start + _BURST]:
                began = _now()
                frame(1, Kind.OPERATION, encode(operation))
                encoded.append(_now() - began)
            time.sleep(_PAUSE)
        writer.settled(items)
    return appended, encoded


def _operation() -> CreateSpan:
    bodies, span_id = Bodies(400), generate(0)
    return CreateSpan(
        timestamp=time.time_ns(),
        idempotency_key=f"{span_id}-create",
        instance_id=span_id,
        span_id=span_id,
        schema_name="agent:llm",
        status=SpanStatus.COMPLETE,
        payload=Raw(encode(bodies.payload)),
        finished_at=time.time_ns(),
        result_payload=Raw(encode(bodies.result)),
    )


def _appends(blocks: list[tuple[list[int], list[int]]], load: float) -> Appends:
    def over_blocks(rank: float, part: int = 0) -> Spread:
        spread = Spread.of([quantile(block[part], rank) / 1e3 for block in blocks])
        assert spread is not None
        return spread

    return Appends(
        over_blocks(0.5),
        over_blocks(0.99),
        over_blocks(0.999),
        over_blocks(1.0),
        over_blocks(0.999, part=1),
        load,
    )


@contextmanager
def _disk_load(folder: Path) -> Generator[list[float]]:
    """While the block runs, another process fills the disk's queue. The list has its megabytes a
    second afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.journal.disk_load", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    load: list[float] = []
    try:
        time.sleep(1)  # until the queue is full
        yield load
        output, _ = process.communicate(timeout=60)
        megabytes, seconds = map(float, output.split())
        load.append(megabytes / seconds)
    finally:
        process.kill()
        process.wait()
