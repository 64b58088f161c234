"""RedisCarrier: brings operations to Redis, for relays to send them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

from prefactor_core.api.answers import (
    AgentInstanceAnswer,
    AgentSpanAnswer,
    Details,
    Output,
    OutputDetails,
)
from prefactor_core.exceptions import PrefactorApiError, PrefactorValueError
from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    RegisterAgentInstance,
    UpdateSpanPayload,
    identifiers,
)
from prefactor_core.relay.entry import encode
from prefactor_core.relay.keys import Keys, shard_of
from prefactor_core.relay.server import Answer, RedisServer, Word

_SUCCESS: Final = "success"
_TAKEN: Final = Output(_SUCCESS)


class RedisCarrier:
    """Writes operations into the streams of ``server``: each batch is one entry in each of its
    shards, the only one mostly.

    ``agent``: the name of the agent's heartbeat. An operation is delivered when Redis has it. If
    the answer is lost, the batch is written again: a relay may send an operation twice, which its
    idempotency key makes harmless.

    Redis gives no ids. A run keeps the one that it was recorded with, and gets the account's
    partition if a relay has written it down there; until then relays make the ids final.
    """

    receiver = "Redis"

    def __init__(self, server: RedisServer, keys: Keys, agent: str) -> None:
        self._server = server
        self._keys = keys
        self._agent = agent
        # A PFID of the account's partition, as soon as that is known.
        self._related_id: str | None = None

    async def ping(self) -> None:
        """Ask the server whether it is there, and takes the password."""
        await self._server.run("PING")

    async def send(
        self, operation: Operation, *, given_id: bool = True
    ) -> Details[AgentInstanceAnswer] | Details[AgentSpanAnswer]:
        """Write one operation; return the ids of the run or span."""
        details = (await self.bulk([operation], [given_id]))[operation.idempotency_key].details
        if isinstance(operation, CreateSpan | FinishSpan | UpdateSpanPayload):
            schema_name = operation.schema_name if isinstance(operation, CreateSpan) else ""
            run_id = operation.instance_id
            return Details(AgentSpanAnswer(operation.span_id, "", run_id, schema_name))
        id = operation.instance_id if details is None else details.id
        return Details(AgentInstanceAnswer(cast("str", id), ""))

    async def bulk(
        self, operations: Sequence[Operation], given_ids: Sequence[bool]
    ) -> Mapping[str, Output]:
        """Write operations, those of a run in order; return which are taken.

        Raises the error of an entry if no entry is taken: a server that is full may have had room
        for some. Raises :class:`PrefactorValueError` if an operation cannot be written as JSON.
        """
        groups = by_shard(operations)
        commands = self._commands(groups)
        registers = any(isinstance(operation, RegisterAgentInstance) for operation in operations)
        asks = registers and self._related_id is None
        if asks:
            # First: a relay that reads the operations can know it by then.
            commands.insert(0, ["HGET", self._keys.config, "partition"])
        answers = await self._server.run_each(commands)
        if asks:
            self._note_partition(answers[0])
        written = answers[-len(groups) :]
        errors = [answer for answer in written if isinstance(answer, PrefactorApiError)]
        if len(errors) == len(written):
            raise errors[0]
        return {
            operation.idempotency_key: self._output(operation)
            for group, answer in zip(groups.values(), written, strict=True)
            if not isinstance(answer, PrefactorApiError)
            for operation in group
        }

    def _output(self, operation: Operation) -> Output:
        if not isinstance(operation, RegisterAgentInstance):
            return _TAKEN
        return Output(_SUCCESS, OutputDetails(self._id_of(operation)))

    def _commands(self, groups: Mapping[int, Sequence[Operation]]) -> list[list[Word]]:
        try:
            return [
                ["XADD", self._keys.operations(shard), "*", *encode(self._agent, group)]
                for shard, group in groups.items()
            ]
        except Exception as error:  # the error may quote a payload
            raise PrefactorValueError(
                f"an operation cannot be written as JSON: {type(error).__name__}"
            ) from None

    def _note_partition(self, answer: Answer | PrefactorApiError) -> None:
        # Written by a relay, and perhaps by a person: a number that is none is no reason to fail.
        with suppress(ValueError, TypeError):
            self._related_id = identifiers.generate(int(cast("bytes", answer)))

    def _id_of(self, registration: RegisterAgentInstance) -> str:
        id = registration.instance_id
        if self._related_id is None or registration.asks_for_id:
            return id
        return identifiers.with_partition_of(self._related_id, id)


def by_shard(operations: Sequence[Operation]) -> Mapping[int, Sequence[Operation]]:
    """Divide operations among their shards; those of a run keep their order. Pure."""
    groups: dict[int, list[Operation]] = {}
    of_runs: dict[str, list[Operation]] = {}  # the same lists: a run is looked up once
    for operation in operations:
        group = of_runs.get(operation.instance_id)
        if group is None:
            group = groups.setdefault(shard_of(operation.instance_id), [])
            of_runs[operation.instance_id] = group
        group.append(operation)
    return groups
