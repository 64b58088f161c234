"""Carrier: what brings operations on their way, one request a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from prefactor_core.operations import Operation

if TYPE_CHECKING:
    from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer, Details, Output


class Carrier(Protocol):
    """Takes operations off the exporter's hands:
    :class:`~prefactor_core.api.client.ApiClient` by HTTP,
    :class:`~prefactor_core.relay.carrier.RedisCarrier` by Redis.

    A method makes one attempt. When it returns, the operations are delivered, or refused one by
    one; when it raises a :class:`~prefactor_core.PrefactorApiError`, they are sent again.
    """

    @property
    def receiver(self) -> str:
        """The receiver of operations, for log lines."""
        ...

    async def send(
        self, operation: Operation, *, given_id: bool = True
    ) -> Details[AgentInstanceAnswer] | Details[AgentSpanAnswer]:
        """Send one operation; return the run or span. ``given_id``: whether it is to have the id
        that the operation gives it."""
        ...

    async def bulk(
        self, operations: Sequence[Operation], given_ids: Sequence[bool]
    ) -> Mapping[str, Output]:
        """Send several operations, which take effect in order. Return the outputs by idempotency
        key; an operation without one is sent again."""
        ...
