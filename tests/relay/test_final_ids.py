"""Provisional ids become those of the account."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay.test_entry import operation

from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    identifiers,
)
from prefactor_core.relay.final_ids import with_final_ids

PARTITION = 12_345
ACCOUNT = identifiers.generate(PARTITION)

operations = st.builds(operation, st.integers(0, 6), st.just(b"{}"))


def ids_of(operation: Operation) -> list[str]:
    ids = [operation.instance_id]
    if isinstance(operation, CreateSpan | FinishSpan):
        ids.append(operation.span_id)
    if isinstance(operation, CreateSpan) and operation.parent_span_id is not None:
        ids.append(operation.parent_span_id)
    return ids


@given(operations)
def test_provisional_ids_get_the_partition_of_the_account_and_stay_the_same_otherwise(
    recorded: Operation,
) -> None:
    final = with_final_ids(recorded, ACCOUNT)
    for before, after in zip(ids_of(recorded), ids_of(final), strict=True):
        assert identifiers.partition_of(after) == PARTITION
        assert identifiers.without_partition(after) == identifiers.without_partition(before)
    if isinstance(recorded, RegisterAgentInstance):
        assert isinstance(final, RegisterAgentInstance)
        assert final.asks_for_id
        assert final.is_by_id
        assert final.idempotency_key != recorded.idempotency_key
        assert with_final_ids(final.without_id(), ACCOUNT) == final
    else:
        # What is final stays.
        assert with_final_ids(final, identifiers.generate(77)) == final
    assert with_final_ids(recorded, None) == recorded


@pytest.mark.parametrize("partition", [0, PARTITION])
def test_an_id_that_the_caller_chose_keeps_its_key(partition: int) -> None:
    recorded = operation(0, b"{}")
    chosen = identifiers.generate(partition)
    recorded = msgspec.structs.replace(recorded, instance_id=chosen, asks_for_id=True)
    final = with_final_ids(recorded, ACCOUNT)
    assert final.idempotency_key == recorded.idempotency_key
    assert isinstance(final, RegisterAgentInstance)
    assert not final.is_by_id
    assert with_final_ids(recorded, None) == recorded


def test_a_run_of_the_accounts_partition_is_registered_by_its_id() -> None:
    related = identifiers.generate(PARTITION)
    recorded = msgspec.structs.replace(operation(0, b"{}"), instance_id=related)
    final = with_final_ids(recorded, ACCOUNT)
    assert isinstance(final, RegisterAgentInstance)
    assert (final.instance_id, final.is_by_id) == (related, True)
    # By a relay, too, that does not know the partition yet: the agent has learned it before.
    assert with_final_ids(recorded, None) == final
    foreign = msgspec.structs.replace(recorded, instance_id=identifiers.generate(PARTITION + 1))
    assert with_final_ids(foreign, ACCOUNT) == foreign
