"""Service: the calls about runs and their spans, with the rules of the API. Synchronous.

Each call is one transaction. It returns the JSON of its answer, or raises
:class:`~prefactor_core.local.errors.ApiError` and changes nothing. Where the API is not specified,
the rule here is strict: a careless client shall fail here first. A deviation that is not the
client's fault, such as a clock that differs or is set back, is accepted and flagged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy

import msgspec
from msgspec import UNSET, Struct

from prefactor_core.local.agent_context import agent_context
from prefactor_core.local.agents import Agents
from prefactor_core.local.control import Control
from prefactor_core.local.errors import ApiError, invalid, invalid_action, not_found
from prefactor_core.local.faults import Faults
from prefactor_core.local.idempotency import IdempotentCalls
from prefactor_core.local.pagination import Answer
from prefactor_core.local.quality import with_quality
from prefactor_core.local.requests import (
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    RecordQualityBody,
    RegisterBody,
    SpanDetails,
    StartBody,
    TerminateBody,
    UpdateInstanceBody,
    check_id,
    check_outcome,
    check_purpose,
    ended_at,
    parse_time,
    registration_of,
    stored_now,
)
from prefactor_core.local.resources.deployments import Deployments
from prefactor_core.local.runs import Runs
from prefactor_core.local.spans import SpanRow, Spans
from prefactor_core.local.store import Row, Store
from prefactor_core.local.tokens import Deployment
from prefactor_core.local.versions import Versions
from prefactor_core.local.views import Views
from prefactor_core.models.lifecycle import (
    INSTANCE_TRANSITIONS,
    SPAN_TRANSITIONS,
    InstanceStatus,
    SpanStatus,
    is_terminal,
)
from prefactor_core.operations import identifiers


class Service:
    """The calls about runs and their spans. ``agents``: those that may register runs; None: any."""

    def __init__(
        self, store: Store, agents: Agents | None = None, faults: Faults | None = None
    ) -> None:
        self.store = store
        self._agents = agents or Agents(store)
        self._faults = faults or Faults()
        self._deployments = Deployments(store)
        self._runs = Runs(store)
        self._spans = Spans(store, self._runs)
        self._control = Control(store)
        self._versions = Versions(store)
        self._views = Views(store, self._versions)
        self._calls = IdempotentCalls(store, self._faults)
        self._partition = identifiers.partition_of(store.account_id)
        self._caller: Deployment | None = None

    def acting_for(self, caller: Deployment | None) -> Service:
        """The same calls for a deployment, which has only its own runs, or the account (None)."""
        service = copy(self)
        service._caller = caller
        return service

    def gathering(self, runs: Runs) -> Service:
        """The same calls for many spans in one transaction, which ends by ``runs.write()``."""
        service = copy(self)
        service._runs = runs
        service._spans = Spans(self.store, runs)
        return service

    def register(self, body: RegisterBody) -> bytes:
        """POST agent_instance/register."""
        body = registration_of(body, self._own(), self.store.account_id)
        return self._run("register", body, body.idempotency_key, lambda: self._register(body))

    def start(self, instance_id: str, body: StartBody) -> bytes:
        """POST agent_instance/{id}/start."""

        def act() -> Answer:
            now = stored_now()
            instance = self._instance(instance_id)
            started_at = parse_time("timestamp", body.timestamp, now)
            changes = {"started_at": started_at}
            if instance["status"] != InstanceStatus.TERMINATED or instance["started_at"]:
                return self._move_instance(instance_id, InstanceStatus.ACTIVE, changes, now)
            # The start was on its way when the run was terminated. An error would make official
            # clients end all telemetry; the answer tells the client why to stop.
            changes["started_at"] = min(started_at, instance["finished_at"])
            return self._control.signal(self._change_instance(instance_id, changes, now), instance)

        return self._run(f"start {instance_id}", body, body.idempotency_key, act)

    def finish_instance(self, instance_id: str, body: FinishInstanceBody) -> bytes:
        """POST agent_instance/{id}/finish."""

        def act() -> Answer:
            now = stored_now()
            status = InstanceStatus(check_outcome(body.status))
            instance = self._instance(instance_id)
            given = parse_time("timestamp", body.timestamp, now)
            finished_at, flags = ended_at(instance["started_at"], given)
            changes = {
                "started_at": instance["started_at"] or finished_at,
                "finished_at": finished_at,
                "flags": _encode(flags).decode(),
            }
            return self._move_instance(instance_id, status, changes, now)

        return self._run(f"finish {instance_id}", body, body.idempotency_key, act)

    def terminate(self, instance_id: str, body: TerminateBody) -> bytes:
        """POST agent_instance/{id}/terminate. The spans of the run stay as they are."""

        def act() -> Answer:
            if not body.reason.strip():
                raise invalid("reason", "is required", "required")
            now = stored_now()
            # A run must not end before it started, but a run whose clock is ahead can be stopped.
            finished_at = max(now, self._instance(instance_id)["started_at"] or now)
            changes = {"termination_reason": body.reason, "finished_at": finished_at}
            return self._move_instance(instance_id, InstanceStatus.TERMINATED, changes, now)

        return self._run(f"terminate {instance_id}", body, body.idempotency_key, act)

    def record_quality(self, instance_id: str, body: RecordQualityBody) -> bytes:
        """POST agent_instance/{id}/record_quality, in any state of the run."""

        def act() -> Answer:
            instance = self._instance(instance_id)
            schema = self._versions.schema(instance["agent_schema_version_id"])
            quality = with_quality(instance["quality"], schema, body.name, body.payload)
            return self._change_instance(instance_id, {"quality": quality}, stored_now())

        return self._run(f"record_quality {instance_id}", body, body.idempotency_key, act)

    def update_instance(self, instance_id: str, body: UpdateInstanceBody) -> bytes:
        """PUT agent_instance/{id}: the one quality payload of older clients, replaced whole."""

        def act() -> Answer:
            self._instance(instance_id)
            changes: dict[str, object] = {}
            payload = body.details.quality_payload
            if payload is not UNSET:
                stored = None if payload is None else _encode(payload).decode()
                changes["quality_payload"] = stored
            return self._change_instance(instance_id, changes, stored_now())

        return self._run(f"update_instance {instance_id}", body, body.idempotency_key, act)

    def get_instance(self, instance_id: str, *, by_agent: bool = False) -> bytes:
        """GET agent_instance/{id}. ``by_agent``: the agent itself looks whether to go on."""
        instance = self._instance(instance_id)
        if by_agent:
            self._control.polled(instance)
        return _encode(_success(self._views.instance(instance)))

    def agent_context(self, instance_id: str) -> bytes:
        """GET agent_instance/{id}/agent_context."""
        instance = self._instance(instance_id)
        return agent_context(self.store, self._versions, self._views, instance)

    def create_span(self, body: CreateSpanBody) -> bytes:
        """POST agent_spans."""
        key, inner = body.idempotency_key, body.details.idempotency_key
        if None not in (key, inner) and key != inner:
            raise invalid("idempotency_key", "the key inside details is another one")
        if key is None:
            key = inner
        # The request is the same with the key in either place.
        details = msgspec.structs.replace(body.details, idempotency_key=key)
        body = CreateSpanBody(details=details, idempotency_key=key)
        return self._calls.run(
            "create_span", body, key, lambda: self._create_span(details), checks_first=True
        )

    def finish_span(self, span_id: str, body: FinishSpanBody) -> bytes:
        """POST agent_spans/{id}/finish."""
        return self._calls.run(
            f"finish_span {span_id}",
            body,
            body.idempotency_key,
            lambda: self._finish_span(span_id, body),
            checks_first=True,
        )

    def list_instances(self, query: Mapping[str, str]) -> bytes:
        """GET agent_instance?agent_id=…"""
        return _encode(self._views.instances(query))

    def list_spans(self, query: Mapping[str, str]) -> bytes:
        """GET agent_spans?agent_instance_id=… or agent_id=…"""
        if "agent_instance_id" in query:
            self._instance(query["agent_instance_id"])
        return _encode(self._views.spans(query))

    def _run(self, call: str, body: Struct, key: str | None, act: Callable[[], Answer]) -> bytes:
        """Make a call that is not about one span, once by its ``key``."""
        # Not inside: what is rolled back with an error of this call must be this call alone.
        self._runs.write()
        return self._calls.run(call, body, key, act)

    def _own(self) -> dict[str, str]:
        """Columns that all runs of the calling deployment share; none for the account."""
        if self._caller is None:
            return {}
        environment_id = self._caller.environment_id or self.store.account_id
        return {"agent_id": self._caller.agent_id, "environment_id": environment_id}

    def _register(self, body: RegisterBody) -> Answer:
        now = stored_now()
        agent_id, environment_id = body.agent_id, body.environment_id
        assert agent_id is not None
        assert environment_id is not None
        self._agents.use(agent_id)
        if body.id is None:
            instance_id = identifiers.generate(self._partition)
        else:
            instance_id = self._given_id(body.id)
            if self.store.one("SELECT id FROM agent_instances WHERE id = ?", instance_id):
                raise ApiError(409, "already_exists", f"agent instance {instance_id!r} exists")
        if body.external_identifier is not None and self.store.one(
            "SELECT id FROM agent_instances WHERE agent_id = ? AND external_identifier = ?",
            agent_id,
            body.external_identifier,
        ):
            message = f"{body.external_identifier!r} is another run of this agent already"
            raise invalid("external_identifier", message)
        version = self._versions.register_agent(agent_id, body.agent_version, now)
        schema = self._versions.register_schema(agent_id, body.agent_schema_version or {}, now)
        current_id = None if body.update_current_version is False else version["id"]
        row: dict[str, object] = {
            "id": instance_id,
            "agent_id": agent_id,
            "agent_version_id": version["id"],
            "agent_schema_version_id": schema["id"],
            "environment_id": environment_id,
            "agent_deployment_id": self._deployments.use(agent_id, environment_id, current_id),
            "external_identifier": body.external_identifier,
            "purpose": check_purpose(body.purpose),
            "status": "pending",
            "inserted_at": now,
            "updated_at": now,
            "last_activity_at": now,
            "revision": self.store.revision(),
        }
        self.store.insert("agent_instances", row)
        answer = _success(self._views.instance(self._instance(instance_id)))
        return {**answer, "agent_version": version, "agent_schema_version": schema}

    def _create_span(self, details: SpanDetails) -> Answer:
        now = stored_now()
        instance = self._instance(details.agent_instance_id, totals=False)
        if instance["status"] in ("complete", "failed", "cancelled"):
            raise invalid_action(f"agent instance is {instance['status']}: it takes no more spans")
        if not details.schema_name:
            raise invalid("schema_name", "is required", "required")
        try:
            status = SpanStatus(details.status)
        except ValueError:
            raise invalid("status", f"{details.status!r} is no status of a span") from None
        if details.id is None:
            span_id = identifiers.generate(self._partition)
        else:
            span_id = self._given_id(details.id)
        parent_id = details.parent_span_id
        if parent_id is not None and not self.store.one(
            "SELECT id FROM agent_spans WHERE id = ? AND agent_instance_id = ?",
            parent_id,
            instance["id"],
        ):
            raise invalid("parent_span_id", f"{parent_id!r} is no span of this agent instance")
        started_at = finished_at = None
        if status is not SpanStatus.PENDING:
            started_at = parse_time("started_at", details.started_at, now)
        flags: list[str] = []
        if is_terminal(status):
            finished_at = parse_time("finished_at", details.finished_at, now)
            if details.started_at is None:
                started_at = min(now, finished_at)  # the duration is unknown
            finished_at, flags = ended_at(started_at, finished_at)
        elif details.result_payload is not None:
            raise invalid("result_payload", f"a span that is {status} has no result yet")
        result = details.result_payload
        check = self._versions.schema(instance["agent_schema_version_id"]).check
        flags += check.payload(details.schema_name, details.payload)
        if status is SpanStatus.COMPLETE and result is not None:
            flags += check.result(details.schema_name, result)
        span = self._spans.add(
            {
                "id": span_id,
                "agent_id": instance["agent_id"],
                "agent_instance_id": instance["id"],
                "parent_span_id": parent_id,
                "schema_name": details.schema_name,
                "status": status,
                "payload": _encode(details.payload).decode(),
                "result_payload": None if result is None else _encode(result).decode(),
                "sensitive_encoding": details.sensitive_encoding,
                "flags": _encode(flags).decode(),
                "inserted_at": now,
                "updated_at": now,
                "started_at": started_at,
                "finished_at": finished_at,
            }
        )
        return self._span_answer(span, instance)

    def _finish_span(self, span_id: str, body: FinishSpanBody) -> Answer:
        now = stored_now()
        span = self._spans.get(span_id)
        if span is None:
            raise not_found("span", span_id)
        instance = self._instance(span["agent_instance_id"], totals=False)
        status = SpanStatus(check_outcome(body.status))
        if status not in SPAN_TRANSITIONS[SpanStatus(span["status"])]:
            raise invalid_action(f"a span that is {span['status']} cannot become {status}")
        given = parse_time("timestamp", body.timestamp, now)
        finished_at, flags = ended_at(span["started_at"], given)
        changes: dict[str, object] = {
            "status": status,
            "finished_at": finished_at,
            "updated_at": now,
        }
        if body.result_payload is not None:
            changes["result_payload"] = _encode(body.result_payload).decode()
            # The payload was checked when the span was created. The result of a failed span is
            # an error, which no schema describes.
            if status is SpanStatus.COMPLETE:
                check = self._versions.schema(instance["agent_schema_version_id"]).check
                flags += check.result(span["schema_name"], body.result_payload)
        if flags:
            flags = [*msgspec.json.decode(span["flags"]), *flags]
            changes["flags"] = _encode(flags).decode()
        if body.sensitive_encoding is not None:
            changes["sensitive_encoding"] = body.sensitive_encoding
        return self._span_answer(self._spans.change(span, changes), instance)

    def _given_id(self, id: str) -> str:
        if not self._faults.given_ids:
            raise invalid("id", "cannot be chosen here")
        return check_id(id, self._partition)

    def _move_instance(
        self, instance_id: str, status: InstanceStatus, changes: Mapping[str, object], now: str
    ) -> Answer:
        current = InstanceStatus(self._instance(instance_id)["status"])
        if status not in INSTANCE_TRANSITIONS[current]:
            raise invalid_action(f"an agent instance that is {current} cannot become {status}")
        return self._change_instance(instance_id, {**changes, "status": status}, now)

    def _change_instance(self, instance_id: str, changes: Mapping[str, object], now: str) -> Answer:
        self._runs.change(instance_id, changes, now)
        return _success(self._views.instance(self._instance(instance_id)))

    def _instance(self, instance_id: str, *, totals: bool = True) -> Row:
        row = self._runs.get(instance_id, totals=totals)
        if row is None or any(row[name] != value for name, value in self._own().items()):
            raise not_found("agent instance", instance_id)
        return row

    def _span_answer(self, span: SpanRow, instance: Row) -> Answer:
        # The summary takes longer than all the rest; the API has it in lists only, on request.
        details = self._views.span(span, instance, summary=False)
        return self._control.signal(_success(details), instance)


def _success(details: Answer) -> Answer:
    return {"status": "success", "details": details}


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)
