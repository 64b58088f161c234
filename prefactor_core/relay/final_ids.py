"""final_ids: provisional ids become those of the account. Pure."""

from __future__ import annotations

from typing import Final

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
    without_partition,
)

_ENDED_KEPT: Final = 1_000
"""Ended runs whose ids are kept: the last ones, as
:class:`~prefactor_core.export.identity.Identities` does."""


class FinalIds:
    """The ids of a shard's runs, also of those that began before the partition was known.

    The API has given these ids of its own, which are known by the provisional ones: they keep these
    to their end, while agents may have learned the partition already.
    """

    def __init__(self) -> None:
        # By the part that both ids of a run have.
        self._provisional: dict[str, str] = {}
        self._ended: dict[str, None] = {}

    def began(self, instance_id: str) -> None:
        """Note a run with this id: it keeps it, if that is a provisional one."""
        if is_provisional(instance_id):
            bare = without_partition(instance_id)
            self._provisional[bare] = instance_id
            self._ended.pop(bare, None)

    def ended(self, instance_id: str) -> None:
        """Note the end of a run: its quality may still be recorded."""
        bare = without_partition(instance_id)
        if bare in self._provisional:
            self._ended[bare] = None
            if len(self._ended) > _ENDED_KEPT:
                oldest = next(iter(self._ended))
                del self._ended[oldest], self._provisional[oldest]

    def final(self, operation: Operation, related_id: str | None) -> Operation:
        """The operation with the ids that it is to have. ``related_id``: a PFID of the account's
        partition; None while that is unknown."""
        if self._provisional:
            kept = self._provisional.get(without_partition(operation.instance_id))
            if kept is not None:
                return msgspec.structs.replace(operation, instance_id=kept)
        if related_id is None and isinstance(operation, RegisterAgentInstance):
            self.began(operation.instance_id)
        return with_final_ids(operation, related_id)


def with_final_ids(operation: Operation, account_id: str | None) -> Operation:
    """The operation with ids of the partition of ``account_id``, a PFID; all relays make the same
    ones. Its ids stay as they are if the partition is unknown (None), or if they are no provisional
    ones.

    A registration asks for its id then (``POST agent_instance/register`` takes one).
    """
    recorded_id = operation.instance_id
    if account_id is None:
        if isinstance(operation, RegisterAgentInstance) and not (
            operation.asks_for_id or is_provisional(recorded_id)
        ):
            return operation.by_id()  # its agent has learned the partition before this relay
        return operation
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
