"""A producer: ``python -m benchmarks.relay.producing KIND URL OPERATIONS RUNS LOOP``.

It prints a line when it is ready, waits for one on its standard input, works, and prints a
:class:`Produced` as JSON. KIND is ``carrier`` (only what brings batches to Redis), ``client`` (an
agent, from the recording of spans to their delivery) or ``paced`` (an agent that records 1,000
spans a second). Clients divide the operations among RUNS at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import msgspec
from msgspec import Raw, Struct

from benchmarks.client import open_client
from benchmarks.drivers.job import Bodies
from prefactor_core import AgentInstanceHandle
from prefactor_core.config.redis import RedisAddress
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, identifiers
from prefactor_core.relay.carrier import RedisCarrier
from prefactor_core.relay.keys import Keys
from prefactor_core.relay.server import RedisServer, open_server

_BATCH = 200
_TASKS = 50
_RATE = 1_000
_TURN = 0.02
_VERSION = {"name": "Benchmarks", "external_identifier": "v1"}


class Produced(Struct):
    """``seconds`` and ``cpu``, of this process, for ``operations``."""

    operations: int
    seconds: float
    cpu: float


def main(kind: str, url: str, operations: int, runs: int, loop: str) -> None:
    if kind == "carrier":
        produced = anyio.run(_carry, url, operations, backend=loop)
    else:
        produced = anyio.run(_record, url, operations, runs, kind == "paced", backend=loop)
    sys.stdout.write(msgspec.json.encode(produced).decode() + "\n")


def _wait_for_start() -> tuple[float, float]:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float], operations: int) -> Produced:
    return Produced(operations, time.perf_counter() - began[0], time.process_time() - began[1])


async def _carry(url: str, operations: int) -> Produced:
    batches = [_batch() for _ in range(max(1, operations // _BATCH))]
    given = [True] * _BATCH
    address = RedisAddress.parse(url)
    async with open_server(RedisServer(address)) as server:
        carrier = RedisCarrier(server, Keys(address.prefix), "benchmarks")
        await carrier.ping()
        began = _wait_for_start()
        for batch in batches:
            await carrier.bulk(batch, given)
        return _since(began, len(batches) * _BATCH)


def _batch() -> Sequence[CreateSpan]:
    bodies = Bodies(400)
    payload, result = (Raw(msgspec.json.encode(body)) for body in (bodies.payload, bodies.result))
    run, at = identifiers.generate(0), time.time_ns()
    spans = [identifiers.generate(0) for _ in range(_BATCH)]
    return [
        CreateSpan(
            timestamp=at,
            idempotency_key=identifiers.idempotency_key(span, "create"),
            instance_id=run,
            span_id=span,
            schema_name="agent:llm",
            status=SpanStatus.COMPLETE,
            payload=payload,
            finished_at=at,
            result_payload=result,
        )
        for span in spans
    ]


async def _record(url: str, operations: int, runs: int, is_paced: bool) -> Produced:
    bodies = Bodies(400)

    async def work(instance: AgentInstanceHandle, spans: int) -> None:
        for _ in range(spans):
            with instance.span("agent:llm", payload=bodies.payload) as span:
                await anyio.lowlevel.checkpoint()
                span.set_result(bodies.result)

    async def run() -> None:
        async with client.agent_instance("benchmarks", _VERSION) as instance:
            if is_paced:
                began, done = anyio.current_time(), 0
                while done < operations // runs:
                    due = int((anyio.current_time() - began) * _RATE / runs) + 1
                    await work(instance, min(due, operations // runs) - done)
                    done = min(due, operations // runs)
                    await anyio.sleep(_TURN)
                return
            async with anyio.create_task_group() as group:
                for _ in range(_TASKS):
                    group.start_soon(work, instance, operations // runs // _TASKS)

    async with open_client(url, drain_timeout=600) as client:
        async with client.agent_instance("benchmarks", _VERSION):
            pass  # the connection is open, and everything imported
        await client.flush()
        began = _wait_for_start()
        async with anyio.create_task_group() as group:
            for _ in range(runs):
                group.start_soon(run)
        await client.flush()
        return _since(began, operations)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
