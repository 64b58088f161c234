"""A producer: ``python -m benchmarks.relay.producing KIND URL OPERATIONS LOOP``.

It prints a line when it is ready, waits for one on its standard input, works, and prints a
:class:`Produced` as JSON. KIND is ``carrier`` (only what brings batches to Redis) or ``client`` (an
agent, from the recording of spans to the end of its scope).
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
_VERSION = {"name": "Benchmarks", "external_identifier": "v1"}


class Produced(Struct):
    """``seconds`` and ``cpu``, of this process, for ``operations``."""

    operations: int
    seconds: float
    cpu: float


def main(kind: str, url: str, operations: int, loop: str) -> None:
    produced = anyio.run(_carry if kind == "carrier" else _record, url, operations, backend=loop)
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


async def _record(url: str, operations: int) -> Produced:
    bodies = Bodies(400)

    async def work(instance: AgentInstanceHandle) -> None:
        for _ in range(operations // _TASKS):
            with instance.span("agent:llm", payload=bodies.payload) as span:
                await anyio.lowlevel.checkpoint()
                span.set_result(bodies.result)

    async with open_client(url, drain_timeout=600) as client:
        async with client.agent_instance("benchmarks", _VERSION):
            pass  # the connection is open, and everything imported
        await client.flush()
        began = _wait_for_start()
        async with client.agent_instance("benchmarks", _VERSION) as instance:
            async with anyio.create_task_group() as group:
                for _ in range(_TASKS):
                    group.start_soon(work, instance)
        await client.flush()
        return _since(began, operations)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
