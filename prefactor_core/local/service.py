"""Service: the calls of the API over a store, with its rules. Synchronous.

Each call is one transaction and gives the JSON of its answer, or raises a
:class:`~prefactor_core.local.refusal.Refusal` and changes nothing. Where ``API.md`` leaves a
choice, the strict one is taken: what a careless client gets wrong shall show here first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from prefactor_core import identifiers
from prefactor_core.lifecycle import (
    INSTANCE_TRANSITIONS,
    SPAN_TRANSITIONS,
    InstanceStatus,
    SpanStatus,
    is_terminal,
)
from prefactor_core.local.faults import Faults
from prefactor_core.local.refusal import Refusal, invalid, invalid_action, not_found
from prefactor_core.local.requests import (
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    RegisterBody,
    SpanDetails,
    StartBody,
    TerminateBody,
    check_id,
    check_key,
    check_outcome,
    check_schema_version,
    external_identifier_of,
    parse_time,
    stored_time,
)
from prefactor_core.local.store import Row, Store
from prefactor_core.local.views import Answer, Views


class Service:
    """The API over ``store``. ``agents`` are the known agents; None: every id is one."""

    def __init__(
        self, store: Store, agents: Collection[str] | None = None, faults: Faults | None = None
    ) -> None:
        self._store = store
        self._agents = agents
        self._faults = faults or Faults()
        self._views = Views(store)
        self._partition = identifiers.partition_of(store.account_id)

    def register(self, body: RegisterBody) -> bytes:
        """POST agent_instance/register."""
        return self._once("register", body, body.idempotency_key, lambda: self._register(body))

    def start(self, instance_id: str, body: StartBody) -> bytes:
        """POST agent_instance/{id}/start."""

        def act() -> Answer:
            now = _now()
            changes = {"started_at": parse_time("timestamp", body.timestamp, now)}
            return self._move_instance(instance_id, InstanceStatus.ACTIVE, changes, now)

        return self._once(f"start {instance_id}", body, body.idempotency_key, act)

    def finish_instance(self, instance_id: str, body: FinishInstanceBody) -> bytes:
        """POST agent_instance/{id}/finish."""

        def act() -> Answer:
            now = _now()
            status = InstanceStatus(check_outcome(body.status))
            finished_at = parse_time("timestamp", body.timestamp, now)
            started_at = self._instance(instance_id)["started_at"] or finished_at
            _check_order("timestamp", started_at, finished_at)
            changes = {"started_at": started_at, "finished_at": finished_at}
            return self._move_instance(instance_id, status, changes, now)

        return self._once(f"finish {instance_id}", body, body.idempotency_key, act)

    def terminate(self, instance_id: str, body: TerminateBody) -> bytes:
        """POST agent_instance/{id}/terminate. The spans of the run stay as they are."""

        def act() -> Answer:
            if not body.reason.strip():
                raise invalid("reason", "is required", "required")
            now = _now()
            # Nothing ends before it started, but a run whose clock is ahead can be stopped, too.
            finished_at = max(now, self._instance(instance_id)["started_at"] or now)
            changes = {"termination_reason": body.reason, "finished_at": finished_at}
            return self._move_instance(instance_id, InstanceStatus.TERMINATED, changes, now)

        return self._once(f"terminate {instance_id}", body, body.idempotency_key, act)

    def get_instance(self, instance_id: str) -> bytes:
        """GET agent_instance/{id}."""
        return _encode(_success(self._views.instance(self._instance(instance_id))))

    def create_span(self, body: CreateSpanBody) -> bytes:
        """POST agent_spans."""
        key, inner = body.idempotency_key, body.details.idempotency_key
        if None not in (key, inner) and key != inner:
            raise invalid("idempotency_key", "the key inside details is another one")
        if key is None:
            key = inner
        # Wherever the key stands, the request is the same.
        details = msgspec.structs.replace(body.details, idempotency_key=key)
        body = CreateSpanBody(details=details, idempotency_key=key)
        return self._once("create_span", body, key, lambda: self._create_span(details))

    def finish_span(self, span_id: str, body: FinishSpanBody) -> bytes:
        """POST agent_spans/{id}/finish."""
        return self._once(
            f"finish_span {span_id}",
            body,
            body.idempotency_key,
            lambda: self._finish_span(span_id, body),
        )

    def list_instances(self, query: Mapping[str, str]) -> bytes:
        """GET agent_instance?agent_id=…"""
        return _encode(self._views.instances(query))

    def list_spans(self, query: Mapping[str, str]) -> bytes:
        """GET agent_spans?agent_instance_id=…"""
        if "agent_instance_id" not in query:
            raise invalid("agent_instance_id", "is required", "required")
        return _encode(self._views.spans(self._instance(query["agent_instance_id"]), query))

    def _once(self, call: str, body: Struct, key: str | None, act: Callable[[], Answer]) -> bytes:
        """Do it, or give the first answer again if the key was used for the same before."""
        check_key(key)
        request = hashlib.sha256(call.encode() + msgspec.json.encode(body)).hexdigest()
        with self._store.transaction():
            if key is not None:
                known = self._store.one("SELECT * FROM idempotency_keys WHERE key = ?", key)
                if known is not None:
                    if known["request"] != request:
                        raise Refusal(
                            409, "idempotency_key_reused", f"{key!r} was used for another request"
                        )
                    return bytes(known["answer"], "utf-8")
            answer = _encode(act())
            if key is not None:
                row = {"key": key, "request": request, "answer": answer.decode()}
                self._store.insert("idempotency_keys", row)
            return answer

    def _register(self, body: RegisterBody) -> Answer:
        now = _now()
        if self._agents is not None and body.agent_id not in self._agents:
            raise not_found("agent", body.agent_id)
        check_schema_version(body.agent_schema_version)
        if body.id is None:
            instance_id = identifiers.generate(self._partition)
        else:
            instance_id = self._given_id(body.id)
            if self._store.one("SELECT id FROM agent_instances WHERE id = ?", instance_id):
                raise Refusal(409, "already_exists", f"agent instance {instance_id!r} exists")
        if body.external_identifier is not None and self._store.one(
            "SELECT id FROM agent_instances WHERE agent_id = ? AND external_identifier = ?",
            body.agent_id,
            body.external_identifier,
        ):
            raise invalid("external_identifier", "has already been taken")
        version = self._version(body.agent_id, "agent_version", body.agent_version, now)
        schema = self._version(
            body.agent_id, "agent_schema_version", body.agent_schema_version, now
        )
        row: dict[str, object] = {
            "id": instance_id,
            "agent_id": body.agent_id,
            "agent_version_id": version["id"],
            "agent_schema_version_id": schema["id"],
            "environment_id": body.environment_id or self._store.account_id,
            "external_identifier": body.external_identifier,
            "purpose": body.purpose or "live",
            "status": "pending",
            "inserted_at": now,
            "updated_at": now,
        }
        self._store.insert("agent_instances", row)
        answer = _success(self._views.instance(self._instance(instance_id)))
        answer["agent_version"] = version
        types: list[dict[str, Any]] = schema.get("span_type_schemas") or []
        schema["span_type_schemas"] = {span_type["name"]: span_type for span_type in types}
        answer["agent_schema_version"] = schema
        return answer

    def _version(
        self, agent_id: str, kind: str, version: Mapping[str, Any], now: str
    ) -> dict[str, Any]:
        """The stored version of this name; the same name with another content is refused."""
        content = msgspec.json.encode(version, order="sorted").decode()
        external_id = external_identifier_of(kind, version)
        if external_id is None:
            row = self._store.one(
                "SELECT * FROM agent_versions WHERE agent_id = ? AND kind = ? "
                "AND external_identifier IS NULL AND content = ?",
                agent_id,
                kind,
                content,
            )
        else:
            row = self._store.one(
                "SELECT * FROM agent_versions WHERE agent_id = ? AND kind = ? "
                "AND external_identifier = ?",
                agent_id,
                kind,
                external_id,
            )
        if row is None:
            id = identifiers.generate(self._partition)
            self._store.insert(
                "agent_versions",
                {
                    "id": id,
                    "agent_id": agent_id,
                    "kind": kind,
                    "external_identifier": external_id,
                    "content": content,
                    "inserted_at": now,
                },
            )
        elif row["content"] != content:
            stored = msgspec.json.decode(row["content"], type=dict[str, Any])
            changed = sorted(k for k in {*stored, *version} if stored.get(k) != version.get(k))
            raise invalid(
                kind,
                f"{external_id!r} already exists with different details ({', '.join(changed)}): "
                "give the changed one another external_identifier",
            )
        else:
            id = row["id"]
        return {"type": kind, **version, "id": id, "agent_id": agent_id}

    def _create_span(self, details: SpanDetails) -> Answer:
        now = _now()
        instance = self._instance(details.agent_instance_id)
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
            if self._store.one("SELECT id FROM agent_spans WHERE id = ?", span_id):
                raise Refusal(409, "already_exists", f"span {span_id!r} exists")
        parent_id = details.parent_span_id
        if parent_id is not None and not self._store.one(
            "SELECT id FROM agent_spans WHERE id = ? AND agent_instance_id = ?",
            parent_id,
            instance["id"],
        ):
            raise invalid("parent_span_id", f"{parent_id!r} is no span of this agent instance")
        started_at = finished_at = None
        if status is not SpanStatus.PENDING:
            started_at = parse_time("started_at", details.started_at, now)
        if is_terminal(status):
            finished_at = parse_time("finished_at", details.finished_at, now)
            _check_order("finished_at", started_at, finished_at)
        elif details.result_payload is not None:
            raise invalid("result_payload", f"a span that is {status} has no result yet")
        result = details.result_payload
        self._store.insert(
            "agent_spans",
            {
                "id": span_id,
                "agent_instance_id": instance["id"],
                "parent_span_id": parent_id,
                "schema_name": details.schema_name,
                "status": status,
                "payload": _encode(details.payload).decode(),
                "result_payload": None if result is None else _encode(result).decode(),
                "sensitive_encoding": details.sensitive_encoding,
                "inserted_at": now,
                "updated_at": now,
                "started_at": started_at,
                "finished_at": finished_at,
            },
        )
        return self._span_answer(span_id, instance)

    def _finish_span(self, span_id: str, body: FinishSpanBody) -> Answer:
        now = _now()
        span = self._store.one("SELECT * FROM agent_spans WHERE id = ?", span_id)
        if span is None:
            raise not_found("span", span_id)
        status = SpanStatus(check_outcome(body.status))
        if status not in SPAN_TRANSITIONS[SpanStatus(span["status"])]:
            raise invalid_action(f"a span that is {span['status']} cannot become {status}")
        finished_at = parse_time("timestamp", body.timestamp, now)
        _check_order("timestamp", span["started_at"], finished_at)
        changes: dict[str, object] = {
            "status": status,
            "finished_at": finished_at,
            "updated_at": now,
        }
        if body.result_payload is not None:
            changes["result_payload"] = _encode(body.result_payload).decode()
        if body.sensitive_encoding is not None:
            changes["sensitive_encoding"] = body.sensitive_encoding
        self._store.update("agent_spans", span_id, changes)
        return self._span_answer(span_id, self._instance(span["agent_instance_id"]))

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
        changes = {**changes, "status": status, "updated_at": now}
        self._store.update("agent_instances", instance_id, changes)
        return _success(self._views.instance(self._instance(instance_id)))

    def _instance(self, instance_id: str) -> Row:
        row = self._store.one("SELECT * FROM agent_instances WHERE id = ?", instance_id)
        if row is None:
            raise not_found("agent instance", instance_id)
        return row

    def _span_answer(self, span_id: str, instance: Row) -> Answer:
        span = self._store.one("SELECT * FROM agent_spans WHERE id = ?", span_id)
        assert span is not None
        answer = _success(self._views.span(span, instance))
        if instance["status"] == InstanceStatus.TERMINATED:
            answer["control"] = {"terminate": True, "reason": instance["termination_reason"]}
        return answer


def _check_order(field: str, started_at: str | None, finished_at: str) -> None:
    if started_at is not None and finished_at < started_at:
        raise invalid(field, f"{finished_at} is before the start, {started_at}")


def _success(details: Answer) -> Answer:
    return {"status": "success", "details": details}


def _now() -> str:
    return stored_time(datetime.now(UTC))


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)
