"""AgentInstanceManager: registers, starts and finishes the runs of a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import anyio
from msgspec import UNSET, Raw, UnsetType

from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.exceptions import (
    ClientNotInitializedError,
    InstanceNotFoundError,
    PrefactorConflictError,
    PrefactorValueError,
    in_message,
)
from prefactor_core.exceptions.checks import check_outcome, to_json_object, to_optional_text
from prefactor_core.exceptions.uncopyable import Uncopyable
from prefactor_core.export.buffer import Buffer
from prefactor_core.export.identity import Identities, RunIdentity
from prefactor_core.models import AgentInstance
from prefactor_core.models.clock import to_datetime, to_nanoseconds
from prefactor_core.models.lifecycle import InstanceStatus, Outcome, instance_steps
from prefactor_core.operations import (
    FinishAgentInstance,
    Purpose,
    RegisterAgentInstance,
    StartAgentInstance,
    identifiers,
)
from prefactor_core.recording.registration import RefusalLog, Registrations, RegistrationWaiter

if TYPE_CHECKING:
    from prefactor_core.operations import trace_headers
    from prefactor_core.schema_registry import payload_check
else:
    trace_headers = LazyModule("prefactor_core.operations.trace_headers")
    payload_check = LazyModule("prefactor_core.schema_registry.payload_check")


class _OpenInstance(AgentInstance, kw_only=True):
    """An open run, with its identity."""

    identity: RunIdentity


class AgentInstanceManager(Uncopyable):
    """Keeps the runs of this client that have not ended.

    The registration, the start and the finish of a run are operations into ``buffer``. The caller
    waits for the outcome of a registration: at most ``timeout`` seconds and ``max_retries`` further
    attempts. A caller whose steps must not be interleaved holds the lock of ``event_loop``.
    ``environment``: returns the addition to an agent's version; called once for each run.
    ``checks``: the schemas for the payloads of a run. ``records``: False if the client is disabled;
    runs then have their states, and nothing is recorded.
    """

    _kind = "the record of a client's runs in this process"

    def __init__(
        self,
        buffer: Buffer,
        identities: Identities,
        *,
        records: bool = True,
        registrations: Registrations | None = None,
        environment: Callable[[], Mapping[str, object]] | None = None,
        checks: payload_check.PayloadChecks | None = None,
        max_retries: int = 3,
        timeout: float = 10.0,
    ) -> None:
        self._buffer = buffer
        self._identities = identities
        self.event_loop = buffer.event_loop
        self._records = records
        self._registrations = registrations
        self._environment = environment
        self._checks = checks
        self._max_retries = max_retries
        self._timeout = timeout
        # By their ids in operations.
        self._instances: dict[str, _OpenInstance] = {}
        # An id of the account's partition, as soon as one is known.
        self._related_id: str | None = None
        self._refusals = RefusalLog()
        self._turn = anyio.Lock()
        self._closed = False

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
        parent: trace_headers.Headers | None = None,
        on_refused: Literal["log", "raise"] = "raise",
    ) -> str:
        """Register a run, and return its id.

        ``agent_id`` and ``environment_id``: None if the token identifies them. ``instance_id``: the
        id to ask for, a PFID of the account's partition. If the API is unreachable, the run
        continues under a provisional id and is registered in the background. ``parent``: headers
        that name the step that caused the run. ``on_refused``: raise a refusal, or log it as an
        error and continue with an unrecorded run.

        Raises :class:`PrefactorValueError` for values that cannot be sent, and a
        :class:`PrefactorApiError` if the API refuses the run. Raises
        :class:`ClientNotInitializedError` if the client closes meanwhile; the run ends then.
        """
        if self._records:
            self.event_loop.check("a run is registered")
        if instance_id is not None and not identifiers.is_pfid(instance_id):
            raise PrefactorValueError(f"instance_id must be a PFID, got {in_message(instance_id)}")
        # One registration in a turn of the loop: a thousand runs that begin together must not
        # block it. A disabled client may have no loop, or several.
        async with nullcontext() if self._registrations is None else self._turn:
            if instance_id is not None and self._identities.knows(instance_id):
                raise PrefactorConflictError(
                    f"instance_id {instance_id!r} belongs to another agent instance of this client"
                )
            options = environment_id, purpose, external_identifier, parent
            instance = self._record_registration(
                agent_id, agent_version, agent_schema_version, instance_id, *options
            )
        run = instance.identity
        if run.lost is None:
            await self._wait_for_registration(instance, on_refused)
        with self.event_loop.lock:
            if instance.ended:
                raise ClientNotInitializedError("the client was closed in the meantime")
            if run.registered:
                del self._instances[run.recorded_id]
                if self._identities.of(run.id) is not run:
                    # The API gave the run the id of another open run: from now on both are one
                    # here, too.
                    self._identities.forget(run.recorded_id)
                    return run.id
                # Nothing else is recorded of it yet: its operations can use the API's id.
                self._identities.rename(run)
                instance.id = self._related_id = run.id
                self._instances[run.recorded_id] = instance
        self._check_payloads(run, agent_schema_version)
        return run.id

    def register_nowait(
        self,
        agent_id: str | None,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object],
        *,
        environment_id: str | None = None,
        purpose: Purpose | None = None,
        external_identifier: str | None = None,
        parent: trace_headers.Headers | None = None,
    ) -> str:
        """Register a run in the background, and return its provisional id; for any thread.

        A refusal is logged, and the run is unrecorded from then on. Raises
        :class:`PrefactorValueError` for values that cannot be sent, and
        :class:`ClientNotInitializedError` if the client has just closed.
        """
        options = environment_id, purpose, external_identifier, parent
        instance = self._record_registration(
            agent_id, agent_version, agent_schema_version, None, *options
        )
        self._check_payloads(instance.identity, agent_schema_version)
        return instance.identity.id

    def _record_registration(
        self,
        agent_id: str | None,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object],
        instance_id: str | None,
        environment_id: str | None,
        purpose: Purpose | None,
        external_identifier: str | None,
        parent: trace_headers.Headers | None,
    ) -> _OpenInstance:
        if purpose is not None and purpose not in get_args(Purpose):
            known = ", ".join(repr(known) for known in get_args(Purpose))
            raise PrefactorValueError(f"purpose must be one of {known}, got {in_message(purpose)}")
        recorded_id = instance_id or self._provisional_id(agent_id)
        registration = partial(
            RegisterAgentInstance,
            # Not from the id: a second request for the same id must be refused, not repeated.
            idempotency_key=identifiers.generate(0),
            agent_id=agent_id,
            # Captured now: later changes of the caller's objects do not matter.
            agent_version=to_json_object("agent_version", agent_version),
            agent_schema_version=to_json_object("agent_schema_version", agent_schema_version),
            instance_id=recorded_id,
            asks_for_id=instance_id is not None,
            environment_id=to_optional_text("environment_id", environment_id),
            purpose=purpose,
            external_identifier=to_optional_text("external_identifier", external_identifier),
            runtime_environment=self._environment_beside(agent_version),
        )
        cause = None if parent is None else trace_headers.cause_of(parent)
        with self.event_loop.lock:
            if self._closed:
                raise ClientNotInitializedError("the client has closed: it registers no more runs")
            run = self._identities.add(recorded_id)
            run.registered, run.agent_id = False, agent_id
            run.cause = cause
            now = run.clock.now()
            if self._records:
                operation = registration(timestamp=now)
                if not self._buffer.record(operation, operation.size):
                    run.lost = "full"
                    # A restart must not send what is recorded of the run.
                    key = operation.idempotency_key
                    self._buffer.journal.withdrawn([key], operation, run.lost)
            # Added in the same step: a client that closes ends every run that it has registered.
            instance = self._instances[recorded_id] = _OpenInstance(
                id=recorded_id, agent_id=agent_id, created_at=to_datetime(now), identity=run
            )
        return instance

    def _check_payloads(self, run: RunIdentity, agent_schema_version: Mapping[str, object]) -> None:
        if self._checks is not None:
            run.check = self._checks.of(agent_schema_version)

    def close(self) -> None:
        """Register no more runs."""
        with self.event_loop.lock:
            self._closed = True

    async def _wait_for_registration(
        self, instance: _OpenInstance, on_refused: Literal["log", "raise"]
    ) -> None:
        """Return when the API has registered a run, or is known to be unreachable."""
        registrations, run = self._registrations, instance.identity
        if registrations is None or registrations.is_away:
            # A worker or an earlier registration has found that out: do not wait again.
            return
        waiting = RegistrationWaiter(self._max_retries, raises_refusal=on_refused == "raise")
        run.registration = waiting
        answers = registrations.answers
        try:
            with registrations.skip_batch_window(), anyio.move_on_after(self._timeout) as time:
                await waiting.over.wait()
        except BaseException:
            # Cancelled: the caller gets no run, but the API does. So end it, unless the client has
            # closed meanwhile: that ended it.
            self._move(instance, InstanceStatus.CANCELLED)
            raise
        finally:
            run.registration = None
        if waiting.error is not None:
            if on_refused == "raise":
                self._identities.forget(run.recorded_id)
                self._instances.pop(run.recorded_id, None)
                raise waiting.error
            self._refusals.log(instance.agent_id, waiting.error)
        elif time.cancelled_caught and registrations.answers == answers:
            registrations.gave_up_waiting(self._timeout)

    def start(self, instance_id: str, *, at: int | None = None) -> None:
        """Start a run, now or ``at`` (nanoseconds since 1970); nothing if it was started."""
        self._move(self._find(instance_id), InstanceStatus.ACTIVE, at)

    def begin(self, run: RunIdentity, at: int) -> None:
        """Start a run ``at`` the start of its first span, unless it was started.

        The API must get the start of a run before its spans. Nothing for a run that another client
        registered. The caller holds the lock.
        """
        instance = self._instances.get(run.recorded_id)
        if instance is not None and instance.status is InstanceStatus.PENDING:
            self._advance(instance, InstanceStatus.ACTIVE, at)
        run.begun = True

    def finish(
        self, instance_id: str, status: Outcome = "complete", *, at: int | None = None
    ) -> None:
        """Finish a run, now or ``at`` (nanoseconds since 1970), but not before its start. A run
        that was not started is started first."""
        check_outcome(status)
        self._move(self._find(instance_id), InstanceStatus(status), at)

    def get(self, instance_id: str) -> AgentInstance:
        """The run of this id. Raises :class:`InstanceNotFoundError` if there is none."""
        return self._find(instance_id)

    def identity(self, instance_id: str) -> RunIdentity:
        """The identity of the run; raises as :meth:`get`."""
        return self._find(instance_id).identity

    def open_instances(self) -> Sequence[AgentInstance]:
        """The runs that have not ended, in order of registration."""
        return list(self._instances.values())

    def newest(self) -> RunIdentity | None:
        """The run that was registered last, of those that have not ended; None without one."""
        # A list, at once: other threads may end runs.
        for instance in reversed(list(self._instances.values())):
            if instance.identity.registration is None:  # else its caller does not have it yet
                return instance.identity
        return None

    def states(self) -> Sequence[tuple[str, InstanceStatus, int | None]]:
        """The runs that have not ended: their ids in operations, statuses, and starts in
        nanoseconds since 1970."""
        return [
            (
                instance.identity.recorded_id,
                instance.status,
                None if instance.started_at is None else to_nanoseconds(instance.started_at),
            )
            for instance in list(self._instances.values())
        ]

    def _find(self, instance_id: str) -> _OpenInstance:
        try:
            instance = self._instances[self._identities.of(instance_id).recorded_id]
        except KeyError:
            raise InstanceNotFoundError(
                f"no open agent instance has the id {in_message(instance_id)}: it has ended, or "
                "was not registered by this client"
            ) from None
        # The API may have given the id since.
        instance.id = instance.identity.id
        return instance

    def _environment_beside(self, agent_version: Mapping[str, object]) -> Raw | UnsetType:
        """The addition to an agent's version; unset if the caller gives one, even null."""
        if self._environment is None or "runtime_environment" in agent_version:
            return UNSET
        if self._registrations is not None and not self._registrations.takes_environment:
            return UNSET
        return to_json_object("runtime_environment", self._environment())

    def _provisional_id(self, agent_id: str | None) -> str:
        # All PFIDs of an account have one partition: with that of a known id, the ids of the run's
        # spans can stay as they are.
        related = self._related_id or agent_id
        if identifiers.is_pfid(related):
            return identifiers.generate_related(related)
        return identifiers.generate(0)

    def _move(self, instance: _OpenInstance, goal: InstanceStatus, at: int | None = None) -> None:
        clock = instance.identity.clock
        self.event_loop.step(lambda: self._advance(instance, goal, at or clock.now()))

    def _advance(self, instance: _OpenInstance, goal: InstanceStatus, at: int) -> None:
        for call, status in instance_steps(instance.status, goal):
            recorded_id = instance.identity.recorded_id
            key = identifiers.idempotency_key(recorded_id, call)
            # The operation and the run's new status are recorded together: after an exception from
            # outside, of a signal handler say, there are both or none.
            if call == "start":
                start = StartAgentInstance(
                    timestamp=at, idempotency_key=key, instance_id=recorded_id
                )
                self._record(start, instance, status, to_datetime(at))
            else:
                # The caller may have given a start in the future.
                if instance.started_at is not None:
                    at = max(at, to_nanoseconds(instance.started_at))
                # Before the record: a span between the two would be recorded after the finish.
                instance.identity.termination.run_ended()
                finish = FinishAgentInstance(
                    timestamp=at, idempotency_key=key, instance_id=recorded_id, status=status
                )
                self._record(finish, instance, status, instance.started_at, to_datetime(at))
        if instance.ended:
            self._instances.pop(instance.identity.recorded_id, None)
            if not self._records:
                self._identities.forget(instance.identity.recorded_id)

    def _record(
        self,
        operation: StartAgentInstance | FinishAgentInstance,
        instance: _OpenInstance,
        status: InstanceStatus,
        started_at: datetime | None,
        finished_at: datetime | None = None,
    ) -> None:
        if self._records:
            size = operation.size
            self._buffer.record(operation, size, instance, status, started_at, finished_at)
        else:
            instance.status = status
            instance.started_at, instance.finished_at = started_at, finished_at
