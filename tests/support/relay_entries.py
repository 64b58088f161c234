"""Entries in the streams of relays, written without an agent."""

from __future__ import annotations

import time

import msgspec
from support.harness import AGENT
from support.redis_server import RedisServerProcess

from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import (
    CreateSpan,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
    identifiers,
)
from prefactor_core.relay.entry import encode
from prefactor_core.relay.keys import Keys, shard_of

KEYS = Keys("pf")


def write(redis: RedisServerProcess, agent: str, *operations: Operation) -> None:
    """Write an entry, as an agent does."""
    shard = shard_of(operations[0].instance_id)
    redis.cli("XADD", KEYS.operations(shard), "*", *encode(agent, operations))


def beginning(run: str) -> list[Operation]:
    """The registration and the start of a run."""
    now = time.time_ns()
    return [
        RegisterAgentInstance(
            timestamp=now,
            idempotency_key=f"{run}-create",
            instance_id=run,
            **AGENT,
            agent_schema_version={
                "external_identifier": "s",
                "span_schemas": {"agent:run": {"type": "object"}},
            },
        ),
        StartAgentInstance(timestamp=now, idempotency_key=f"{run}-start", instance_id=run),
    ]


def span_of(run: str, size: int = 0) -> CreateSpan:
    """An open span."""
    span = identifiers.generate(0)
    return CreateSpan(
        timestamp=time.time_ns(),
        idempotency_key=f"{span}-create",
        instance_id=run,
        span_id=span,
        schema_name="agent:run",
        status=SpanStatus.ACTIVE,
        payload=msgspec.Raw(msgspec.json.encode({"text": "x" * size})),
    )


def runs_of_one_shard(count: int) -> list[str]:
    runs = [identifiers.generate(0)]
    while len(runs) < count:
        run = identifiers.generate(0)
        if shard_of(run) == shard_of(runs[0]):
            runs.append(run)
    return runs
