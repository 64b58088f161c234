"""final_ids: provisional ids become those of the account. Pure."""

from __future__ import annotations

import msgspec

from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
)
from prefactor_core.operations.identifiers import (
    is_provisional,
    partition_of,
    with_partition_of,
)


def with_final_ids(operation: Operation, account_id: str | None) -> Operation:
    """The operation with ids of the partition of ``account_id``, a PFID; all relays make the same
    ones. Unchanged if the partition is unknown (None), or if its ids are no provisional ones.

    A registration asks for its id then (``POST agent_instance/register`` takes one).
    """
    if account_id is None:
        return operation
    recorded_id = operation.instance_id
    if isinstance(operation, RegisterAgentInstance) and not operation.asks_for_id:
        if not is_provisional(recorded_id) and partition_of(recorded_id) != partition_of(
            account_id
        ):
            return operation
        instance_id = with_partition_of(account_id, recorded_id)
        return msgspec.structs.replace(operation, instance_id=instance_id).by_id()
    if not is_provisional(recorded_id):
        return operation
    instance_id = with_partition_of(account_id, recorded_id)
    match operation:
        case CreateSpan(span_id=span_id, parent_span_id=parent_id):
            parent = None if parent_id is None else _final(account_id, parent_id)
            return msgspec.structs.replace(
                operation,
                instance_id=instance_id,
                span_id=_final(account_id, span_id),
                parent_span_id=parent,
            )
        case FinishSpan(span_id=span_id):
            span_id = _final(account_id, span_id)
            return msgspec.structs.replace(operation, instance_id=instance_id, span_id=span_id)
        case _:
            return msgspec.structs.replace(operation, instance_id=instance_id)


def _final(account_id: str, span_id: str) -> str:
    return with_partition_of(account_id, span_id) if is_provisional(span_id) else span_id
