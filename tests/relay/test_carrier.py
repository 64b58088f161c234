"""RedisCarrier, without a server: what goes into which entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from prefactor_core.client.journaling import api_name
from prefactor_core.config.redis import RedisAddress
from prefactor_core.exceptions import PrefactorValueError
from prefactor_core.models.lifecycle import SpanStatus
from prefactor_core.operations import CreateSpan, Operation, StartAgentInstance
from prefactor_core.operations.identifiers import generate, with_partition_of
from prefactor_core.relay.carrier import RedisCarrier, by_shard
from prefactor_core.relay.keys import Keys, shard_of
from prefactor_core.relay.server import RedisServer

RUNS = [generate(0, milliseconds) for milliseconds in range(40)]
FINAL = generate(7)


def start_of(run: str, number: int) -> Operation:
    return StartAgentInstance(timestamp=number, idempotency_key=f"key-{number:05}", instance_id=run)


@given(st.lists(st.tuples(st.sampled_from(RUNS), st.booleans())))
def test_operations_of_a_run_stay_together_in_their_order(steps: list[tuple[str, bool]]) -> None:
    operations = [
        start_of(with_partition_of(FINAL, run) if is_final else run, number)
        for number, (run, is_final) in enumerate(steps)
    ]
    groups = by_shard(operations)
    assert sorted(op.timestamp for group in groups.values() for op in group) == list(
        range(len(steps))
    )
    for shard, group in groups.items():
        assert {shard_of(operation.instance_id) for operation in group} == {shard}
        # One writer, one entry: all of a shard are in order, so those of each run are.
        times = [operation.timestamp for operation in group]
        assert times == sorted(times)


async def test_an_operation_that_is_no_json_is_refused_without_its_payload() -> None:
    carrier = RedisCarrier(RedisServer(RedisAddress(path="/nowhere")), Keys("pf"), "agent")
    unwritable = CreateSpan(
        timestamp=0,
        idempotency_key="key-00000",
        instance_id=RUNS[0],
        span_id=RUNS[1],
        schema_name="agent:\ud800secret",
        status=SpanStatus.ACTIVE,
        payload=Raw(b"{}"),
    )
    with pytest.raises(PrefactorValueError, match="cannot be written as JSON") as info:
        await carrier.bulk([start_of(RUNS[0], 1), unwritable], [True, True])
    assert "secret" not in str(info.value)


@pytest.mark.parametrize(
    ("api_url", "name"),
    [
        ("redis://host", "redis://host:6379?db=0&prefix=pf"),
        ("redis://agent:secret@host:6379/0", "redis://host:6379?db=0&prefix=pf"),
        ("rediss://host/3?prefix=acme&ssl_ca_certs=/ca", "rediss://host:6379?db=3&prefix=acme"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2&prefix=pf"),
    ],
)
def test_journals_know_a_server_without_its_users(api_url: str, name: str) -> None:
    assert api_name(api_url) == name
    assert api_name(name) == name
