"""AgentInstanceManager: the runs of a client, and the operations that tell about them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import msgspec

from prefactor_core import identifiers
from prefactor_core.agent_instance import AgentInstanceHandle as AgentInstanceHandle
from prefactor_core.backoff import Backoff
from prefactor_core.clock import Clock
from prefactor_core.exceptions import (
    InstanceNotFoundError,
    PrefactorApiError,
    PrefactorContractError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValueError,
)
from prefactor_core.lifecycle import InstanceStatus, Outcome, check_outcome, instance_steps
from prefactor_core.models import AgentInstance
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    Operation,
    RegisterAgentInstance,
    StartAgentInstance,
)

if TYPE_CHECKING:
    from prefactor_core.api.client import ApiClient

_PASSING = (PrefactorUnreachableError, PrefactorRateLimitError, PrefactorServerError)


class _OpenInstance(AgentInstance, kw_only=True):
    """A run with what is needed only while it is open."""

    clock: Clock


class AgentInstanceManager:
    """Knows every run of this client that has not ended.

    Registering waits for the API: ``timeout`` seconds at most, with up to ``max_retries``
    more attempts while the API is away. Start and finish are plain functions that give
    their operations to ``enqueue``.
    """

    def __init__(
        self,
        http_client: ApiClient,
        enqueue: Callable[[Operation], None],
        *,
        backoff: Backoff | None = None,
        max_retries: int = 3,
        timeout: float = 10.0,
    ) -> None:
        self._api = http_client
        self._enqueue = enqueue
        self._backoff = backoff or Backoff()
        self._max_retries = max_retries
        self._timeout = timeout
        self._instances: dict[str, _OpenInstance] = {}

    async def register(
        self,
        agent_id: str,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object],
        instance_id: str | None = None,
    ) -> str:
        """Make a run known to the API; the id that it is known by.

        ``instance_id`` asks for that id, which must be a PFID of the account's partition.
        Raises :class:`PrefactorValueError` for what cannot be sent, and a
        :class:`PrefactorApiError`: at once if the API refuses, and after the attempts and the
        time that there are if it is away.
        """
        operation = RegisterAgentInstance(
            timestamp=datetime.now(UTC),
            idempotency_key=uuid.uuid4().hex,
            agent_id=agent_id,
            agent_version=_json_object("agent_version", agent_version),
            agent_schema_version=_json_object("agent_schema_version", agent_schema_version),
            instance_id=instance_id,
        )
        registered = await self._register(operation)
        if not identifiers.is_pfid(registered):
            raise PrefactorContractError(
                f"the API registered an agent instance as {registered!r}, which is no PFID"
            )
        clock = Clock()
        self._instances[registered] = _OpenInstance(
            id=registered, agent_id=agent_id, created_at=clock.now(), clock=clock
        )
        return registered

    def start(self, instance_id: str) -> None:
        """The run begins now; nothing if it has begun already."""
        instance = self._find(instance_id)
        self._advance(instance, InstanceStatus.ACTIVE, instance.clock.now())

    def start_with(self, operation: Operation) -> None:
        """The run begins with its first span, if it has not begun: ``operation`` creates one.

        The API gets to know a start before what was done in it. Nothing for runs that other
        clients registered.
        """
        instance = self._instances.get(operation.instance_id or "")
        if instance is not None and isinstance(operation, CreateSpan):
            # The span's time is that of another clock: within the run's own bounds.
            at = max(instance.created_at, min(operation.timestamp, instance.clock.now()))
            self._advance(instance, InstanceStatus.ACTIVE, at)

    def finish(self, instance_id: str, status: Outcome = "complete") -> None:
        """The run ends now. One that was not started is started first."""
        check_outcome(status)
        instance = self._find(instance_id)
        self._advance(instance, InstanceStatus(status), instance.clock.now())

    def get(self, instance_id: str) -> AgentInstance:
        """The run of this id. Raises :class:`InstanceNotFoundError` if there is none."""
        return self._find(instance_id)

    def open_instances(self) -> Sequence[AgentInstance]:
        """The runs that have not ended, in order of registration."""
        return list(self._instances.values())

    def _find(self, instance_id: str) -> _OpenInstance:
        try:
            return self._instances[instance_id]
        except KeyError:
            raise InstanceNotFoundError(
                f"no open agent instance has the id {instance_id!r}: it has ended, or was not "
                "registered by this client"
            ) from None

    async def _register(self, operation: RegisterAgentInstance) -> str:
        attempt = 0
        error: PrefactorApiError | None = None
        with anyio.move_on_after(self._timeout):
            while True:
                try:
                    return await self._api.register_agent_instance(operation)
                except _PASSING as failure:
                    error = failure
                attempt += 1
                if attempt > self._max_retries:
                    raise error
                await anyio.sleep(self._backoff.delay(attempt, at_least=error.retry_after))
        raise error or PrefactorUnreachableError(
            f"the API did not register the run within {self._timeout:g} s"
        )

    def _advance(self, instance: _OpenInstance, goal: InstanceStatus, at: datetime) -> None:
        for call, status in instance_steps(instance.status, goal):
            key = identifiers.idempotency_key(instance.id, call)
            if call == "start":
                instance.started_at = at
                self._enqueue(
                    StartAgentInstance(timestamp=at, idempotency_key=key, instance_id=instance.id)
                )
            else:
                instance.finished_at = at
                self._enqueue(
                    FinishAgentInstance(
                        timestamp=at,
                        idempotency_key=key,
                        instance_id=instance.id,
                        status=status,
                    )
                )
            instance.status = status
        if instance.ended:
            self._instances.pop(instance.id, None)


def _json_object(name: str, value: Mapping[str, object]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise PrefactorValueError(f"{name} must be a mapping, got {value!r}")
    try:
        msgspec.json.encode(value)
    except Exception as error:
        raise PrefactorValueError(f"{name} cannot be written as JSON: {error}") from None
    return value
