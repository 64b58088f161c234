"""AgentInstanceHandle and AgentInstanceScope: one run of an agent, in the agent's hands."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import anyio.lowlevel

from prefactor_core.capture import describe_error
from prefactor_core.exceptions import PrefactorCoreError
from prefactor_core.lifecycle import InstanceStatus, Outcome
from prefactor_core.models import AgentInstance
from prefactor_core.outcome import outcome_of
from prefactor_core.span_context import SpanContext

if TYPE_CHECKING:
    from prefactor_core.client import PrefactorCoreClient


class AgentInstanceHandle:
    """One run of an agent, registered by ``client``.

    :meth:`start` and :meth:`finish` say when it begins and ends; in between, :meth:`span`
    opens its steps. Raises :class:`~prefactor_core.InstanceNotFoundError` for an id that
    the client has not registered.
    """

    def __init__(self, instance_id: str, client: PrefactorCoreClient) -> None:
        self._client = client
        self._instance = client.instance_manager.get(instance_id)
        self._identity = client.instance_manager.identity(instance_id)

    @property
    def id(self) -> str:
        """The id of the run, as the API gave it; provisional while it could not be asked."""
        return self._identity.id

    async def start(self) -> None:
        """The run begins now. A second call does nothing."""
        if self._instance.status is InstanceStatus.PENDING:
            self._client.instance_manager.start(self.id)
        await anyio.lowlevel.checkpoint()

    async def finish(self, status: Outcome = "complete") -> None:
        """The run ends now: ``complete``, ``failed`` or ``cancelled``.

        Spans of it that are still open end first, as ``cancelled``. A second call does
        nothing.
        """
        finish_run(self._client, self._instance, status)
        await anyio.lowlevel.checkpoint()

    def span(
        self,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> SpanContext:
        """A step of this run; see :meth:`prefactor_core.PrefactorCoreClient.span`."""
        spans = self._client.span_manager
        return SpanContext(spans, self._identity, schema_name, parent_span_id, payload=payload)

    async def create_span(
        self,
        schema_name: str,
        parent_span_id: str | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> str:
        """Start a span and give its id, to be ended by :meth:`finish_span`."""
        return await self._client.create_span(self.id, schema_name, parent_span_id, payload)

    async def finish_span(
        self, span_id: str, result_payload: Mapping[str, object] | None = None
    ) -> None:
        """End a span of :meth:`create_span` as ``complete``."""
        await self._client.finish_span(span_id, result_payload)

    def __repr__(self) -> str:
        return f"<AgentInstanceHandle {self.id} {self._instance.status}>"


class AgentInstanceScope:
    """The scope of one run: ``async with client.agent_instance(...) as instance:``.

    Registers and starts the run on entering, and ends it on leaving: ``complete``, ``failed``
    if the block raised, ``cancelled`` if it was cancelled. What the block raises goes on as
    it is. It can be entered once.
    """

    def __init__(
        self,
        client: PrefactorCoreClient,
        agent_id: str,
        agent_version: Mapping[str, object],
        agent_schema_version: Mapping[str, object] | None,
        instance_id: str | None,
        external_schema_version_id: str | None,
    ) -> None:
        self._client = client
        self._arguments = (
            agent_id,
            agent_version,
            agent_schema_version,
            instance_id,
            external_schema_version_id,
        )
        self._instance: AgentInstance | None = None

    async def __aenter__(self) -> AgentInstanceHandle:
        if self._instance is not None:
            raise PrefactorCoreError(
                "a run can be entered once only: call agent_instance() again for another"
            )
        handle = await self._client.create_agent_instance(*self._arguments)
        self._instance = self._client.instance_manager.get(handle.id)
        try:
            await handle.start()
        except BaseException as error:
            # Cancelled in the turn that start() gives to others: __aexit__ will not be called.
            finish_run(self._client, self._instance, outcome_of(error), error)
            raise
        return handle

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._instance is not None
        finish_run(self._client, self._instance, outcome_of(error), error)
        # As for a span: no checkpoint on the way out of an error.
        if error is None:
            await anyio.lowlevel.checkpoint()  # noqa: ASYNC102


def finish_run(
    client: PrefactorCoreClient,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None = None,
) -> None:
    """Finish what is still open of a run, then the run; nothing if it has ended."""
    if not instance.ended:
        finish_spans(client, instance, outcome, error)
        client.instance_manager.finish(instance.id, outcome)


def finish_spans(
    client: PrefactorCoreClient,
    instance: AgentInstance,
    outcome: Outcome,
    error: BaseException | None,
) -> None:
    """Finish the open spans of a run that ends with ``outcome``.

    They end as ``failed``, with ``error`` as result, if that failed the run, else as
    ``cancelled``: they did not come to their own end.
    """
    if error is not None and outcome == "failed":
        result = {"error": describe_error(error)}
        client.span_manager.finish_open(instance.id, result, "failed")
    else:
        client.span_manager.finish_open(instance.id, None, "cancelled")


def finish_open_runs(client: PrefactorCoreClient, error: BaseException | None) -> None:
    """Finish the open runs of a client whose body ended with ``error``, or without one."""
    outcome = outcome_of(error)
    for instance in client.instance_manager.open_instances():
        finish_spans(client, instance, outcome, error)
        # A run that was neither started nor had a span did nothing, however this ends.
        began = instance.started_at is not None
        client.instance_manager.finish(instance.id, outcome if began else "cancelled")
    # Spans of runs that other clients registered.
    client.span_manager.finish_open(None, None, "cancelled")
