"""AgentInstanceManager: the runs of a client, and the operations that tell about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, get_args

import anyio
import msgspec

from prefactor_core import identifiers
from prefactor_core.agent_instance import AgentInstanceHandle as AgentInstanceHandle
from prefactor_core.backoff import Backoff
from prefactor_core.checks import to_optional_text
from prefactor_core.clock import Clock
from prefactor_core.delivery.identity import Identities, RunIdentity
from prefactor_core.delivery.verdict import Verdict, judge
from prefactor_core.exceptions import (
    InstanceNotFoundError,
    PrefactorApiError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorUnreachableError,
    PrefactorValueError,
)
from prefactor_core.home import Home
from prefactor_core.lifecycle import InstanceStatus, Outcome, check_outcome, instance_steps
from prefactor_core.models import AgentInstance
from prefactor_core.operations import (
    CreateSpan,
    FinishAgentInstance,
    Purpose,
    RegisterAgentInstance,
    StartAgentInstance,
)

if TYPE_CHECKING:
    from prefactor_core.payload_check import PayloadChecks

_PASSING = (PrefactorUnreachableError, PrefactorRateLimitError, PrefactorServerError)


class Registrar(Protocol):
    """What registers runs: an ``ApiClient``, or what counts its requests too."""

    async def register_agent_instance(self, operation: RegisterAgentInstance) -> str: ...


class _OpenInstance(AgentInstance, kw_only=True):
    """A run with what is needed only while it is open."""

    clock: Clock
    identity: RunIdentity


class AgentInstanceManager:
    """Knows every run of this client that has not ended.

    Registering waits for the API: ``timeout`` seconds at most, with up to ``max_retries``
    more attempts while the API is away. What it could not register then, and all else, are
    operations that go to ``enqueue``. Whoever does several things to a run that belong together
    holds the lock of ``home`` around them. ``is_away`` tells whether the API is known to be away;
    ``on_timeout`` is told that it has become so. ``environment`` gives what is added to an agent's
    version, once for each run, ``checks`` what its payloads are held against.
    """

    def __init__(
        self,
        http_client: Registrar,
        enqueue: Callable[..., object],
        *,
        identities: Identities,
        home: Home,
        is_away: Callable[[], bool],
        on_timeout: Callable[[PrefactorUnreachableError], None],
        environment: Callable[[], Mapping[str, object]] | None = None,
        checks: PayloadChecks | None = None,
        backoff: Backoff | None = None,
        max_retries: int = 3,
        timeout: float = 10.0,
    ) -> None:
        self._api = http_client
        self._enqueue = enqueue
        self._identities = identities
        self.home = home
        self._is_away = is_away
        self._on_timeout = on_timeout
        self._environment = environment
        self._checks = checks
        self._backoff = backoff or Backoff()
        self._max_retries = max_retries
        self._timeout = timeout
        # By the id that operations call them.
        self._instances: dict[str, _OpenInstance] = {}
        # An id of the account's partition, once one is known.
        self._related_id: str | None = None
        # The last run that could not be registered.
        self._waiting: RunIdentity | None = None

    async def register(
        self,
        agent_id: str | None,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object],
        instance_id: str | None = None,
        *,
        environment_id: str | None = None,
        purpose: Purpose | None = None,
        external_identifier: str | None = None,
    ) -> str:
        """Make a run known to the API; the id that it is known by.

        ``agent_id`` and ``environment_id``: None if the token says which these are.
        ``instance_id`` asks for that id, which must be a PFID of the account's partition. If
        the API is away, the run goes on with a provisional id, and is registered in the
        background.

        Raises :class:`PrefactorValueError` for what cannot be sent, and a
        :class:`PrefactorApiError` if the API refuses.
        """
        self.home.check("a run is registered")
        if instance_id is not None and not identifiers.is_pfid(instance_id):
            raise PrefactorValueError(f"instance_id must be a PFID, got {instance_id!r}")
        if purpose is not None and purpose not in get_args(Purpose):
            known = ", ".join(repr(known) for known in get_args(Purpose))
            raise PrefactorValueError(f"purpose must be one of {known}, got {purpose!r}")
        clock = Clock()
        recorded_id = instance_id or self._provisional_id(agent_id)
        operation = RegisterAgentInstance(
            timestamp=clock.now(),
            # Not from the id: whoever asks for one twice shall hear that it is taken.
            idempotency_key=identifiers.generate(0),
            agent_id=agent_id,
            agent_version=_json_object("agent_version", agent_version),
            agent_schema_version=_json_object("agent_schema_version", agent_schema_version),
            instance_id=recorded_id,
            asks_for_id=instance_id is not None,
            environment_id=to_optional_text("environment_id", environment_id),
            purpose=purpose,
            external_identifier=to_optional_text("external_identifier", external_identifier),
            runtime_environment=self._environment_beside(agent_version),
        )
        operation, registered = await self._register(operation)
        if registered is None:
            identity = self._identities.add(operation.instance_id)
            identity.registered = False
            self._waiting = identity
            self.home.step(self._enqueue, operation)
        else:
            identity = self._identities.add(registered)
            self._related_id = registered
        if self._checks is not None:
            identity.check = self._checks.of(agent_schema_version)
        self._instances[identity.recorded_id] = _OpenInstance(
            id=identity.id,
            agent_id=agent_id,
            created_at=clock.now(),
            clock=clock,
            identity=identity,
        )
        return identity.id

    def start(self, instance_id: str, *, at: datetime | None = None) -> None:
        """The run begins now, or ``at``; nothing if it has begun already."""
        self._move(self._find(instance_id), InstanceStatus.ACTIVE, at)

    def start_with(self, operation: CreateSpan, given: bool) -> None:
        """The run begins with its first span, ``operation``, if it has not begun.

        ``given``: whether the span's time comes from the caller, and counts as it is. The API
        gets to know a start before what was done in it. Nothing for runs that other clients
        registered.
        """
        instance = self._instances.get(operation.instance_id)
        if instance is not None and instance.status is InstanceStatus.PENDING:
            at = operation.timestamp
            if not given:
                # It is that of another clock: within the run's own bounds.
                at = max(instance.created_at, min(at, instance.clock.now()))
            self._advance(instance, InstanceStatus.ACTIVE, at)

    def finish(
        self, instance_id: str, status: Outcome = "complete", *, at: datetime | None = None
    ) -> None:
        """The run ends now, or ``at``, but not before its start. One that was not started is
        started first."""
        check_outcome(status)
        self._move(self._find(instance_id), InstanceStatus(status), at)

    def get(self, instance_id: str) -> AgentInstance:
        """The run of this id. Raises :class:`InstanceNotFoundError` if there is none."""
        return self._find(instance_id)

    def identity(self, instance_id: str) -> RunIdentity:
        """What the API calls the run; raises as :meth:`get`."""
        return self._find(instance_id).identity

    def open_instances(self) -> Sequence[AgentInstance]:
        """The runs that have not ended, in order of registration."""
        return list(self._instances.values())

    def _find(self, instance_id: str) -> _OpenInstance:
        try:
            instance = self._instances[self._identities.of(instance_id).recorded_id]
        except KeyError:
            raise InstanceNotFoundError(
                f"no open agent instance has the id {instance_id!r}: it has ended, or was not "
                "registered by this client"
            ) from None
        # It may have become known since.
        instance.id = instance.identity.id
        return instance

    def _environment_beside(
        self, agent_version: Mapping[str, object]
    ) -> Mapping[str, object] | None:
        """What is added to an agent's version; None if the caller says it, if only as null."""
        if self._environment is None or "runtime_environment" in agent_version:
            return None
        return self._environment()

    def _provisional_id(self, agent_id: str | None) -> str:
        # With a little luck it is of the right partition already: all ids of an account are
        # of one (API.md section 3).
        related = self._related_id or agent_id
        if identifiers.is_pfid(related):
            return identifiers.generate_related(related)
        return identifiers.generate(0)

    async def _register(
        self, operation: RegisterAgentInstance
    ) -> tuple[RegisterAgentInstance, str | None]:
        """The operation that was tried last, and the id that the API gave; None if it is away."""
        waiting = self._waiting
        if self._is_away() or (waiting and not waiting.registered and waiting.lost is None):
            # Found out already, by an earlier run or by the delivery: nobody has to wait again.
            return operation, None
        first, attempt = operation, 0
        with anyio.move_on_after(self._timeout):
            while True:
                try:
                    registered = await self._api.register_agent_instance(operation)
                    if operation is not first:
                        # It was the environment: the next run need not find that out again.
                        self._environment = None
                    return operation, registered
                except PrefactorApiError as error:
                    if judge(operation, error) is Verdict.ENVIRONMENT_REFUSED:
                        operation = operation.as_given()
                        continue
                    if not isinstance(error, _PASSING):
                        raise
                    attempt += 1
                    if attempt > self._max_retries:
                        return operation, None
                    asked = error.retry_after
                await anyio.sleep(self._backoff.delay(attempt, at_least=asked))
        message = f"the API did not register a run within {self._timeout:g} s"
        self._on_timeout(PrefactorUnreachableError(message))
        # Not another request than the one that may have been done without an answer: that would
        # be a second run.
        return operation, None

    def _move(
        self, instance: _OpenInstance, goal: InstanceStatus, at: datetime | None = None
    ) -> None:
        self.home.step(lambda: self._advance(instance, goal, at or instance.clock.now()))

    def _advance(self, instance: _OpenInstance, goal: InstanceStatus, at: datetime) -> None:
        for call, status in instance_steps(instance.status, goal):
            recorded_id = instance.identity.recorded_id
            key = identifiers.idempotency_key(recorded_id, call)
            # Recorded together with the run's new status: an exception from outside, of a signal
            # handler say, leaves both or none.
            if call == "start":
                start = StartAgentInstance(
                    timestamp=at, idempotency_key=key, instance_id=recorded_id
                )
                self._enqueue(start, instance, status, at)
            else:
                # A start that was given may lie in the future.
                at = max(at, instance.started_at or at)
                # First: a span that comes between the two would be recorded after the finish.
                instance.identity.termination.run_ended()
                finish = FinishAgentInstance(
                    timestamp=at, idempotency_key=key, instance_id=recorded_id, status=status
                )
                self._enqueue(finish, instance, status, instance.started_at, at)
        if instance.ended:
            self._instances.pop(instance.identity.recorded_id, None)


def _json_object(name: str, value: Mapping[str, object]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise PrefactorValueError(f"{name} must be a mapping, got {value!r}")
    try:
        msgspec.json.encode(value)
    except Exception as error:
        raise PrefactorValueError(f"{name} cannot be written as JSON: {error}") from None
    return value
