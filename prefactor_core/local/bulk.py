"""Bulk: many calls in one request (API.md section 10). Synchronous."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec

from prefactor_core.local.agents import Agents
from prefactor_core.local.faults import Faults
from prefactor_core.local.refusal import Refusal, invalid
from prefactor_core.local.requests import (
    AgentItem,
    BulkBody,
    BulkItem,
    CreateAgentBody,
    CreateSpanBody,
    FinishInstanceBody,
    FinishSpanBody,
    InstanceItem,
    ListItem,
    RecordQualityBody,
    RegisterBody,
    SpanDetails,
    SpanItem,
    StartBody,
    TerminateBody,
    UpdateAgentBody,
    convert_body,
)
from prefactor_core.local.service import Service
from prefactor_core.local.tokens import Deployment, check_account

Item = dict[str, Any]


class Bulk:
    """Runs the items of a request as single calls of ``service`` and ``agents``, as ``caller``."""

    def __init__(
        self, service: Service, agents: Agents, faults: Faults, caller: Deployment | None
    ) -> None:
        self._service = service.acting_for(caller)
        self._caller = caller
        self._agents = agents
        self._faults = faults
        # For any token.
        self._records: dict[str, Callable[[Item], bytes]] = {
            "agent_instances/register": self._register,
            "agent_instances/start": self._start_instance,
            "agent_instances/finish": self._finish_instance,
            "agent_instances/record_quality": self._record_quality,
            "agent_instances/terminate": self._terminate_instance,
            "agent_spans/create": self._create_span,
            "agent_spans/finish": self._finish_span,
        }
        # For the token of the account.
        self._reads: dict[str, Callable[[Item], bytes]] = {
            "agent_instances/show": self._show_instance,
            "agent_instances/list": self._list_instances,
            "agent_spans/list": self._list_spans,
            "agents/list": lambda item: agents.list(_query(item)),
            "agents/show": lambda item: agents.show(_query(item)),
            "agents/create": self._create_agent,
            "agents/update": self._update_agent,
        }

    def run(self, body: BulkBody, refused: Callable[[Refusal], object]) -> bytes:
        """POST bulk: does the items in order, up to the first that is refused: this one's
        refusal is also told to ``refused``.

        Raises a :class:`Refusal`, before anything is done, if the request itself has not
        the right form; what is wrong with one item is the output of that item. A storage
        that fails is no item's fault: its error is raised, and what was done before it is
        replayed when the request is sent again.
        """
        heads = _heads(body.items)
        outputs: dict[str, object] = {}
        for head, item in zip(heads, body.items, strict=True):
            try:
                outputs[head.idempotency_key] = msgspec.Raw(self._call(head.type, item))
            except Refusal as refusal:
                outputs[head.idempotency_key] = refusal.body()
                refused(refusal)
                break
        return msgspec.json.encode({"status": "success", "outputs": outputs})

    def _call(self, type: str, item: Item) -> bytes:
        types = self._faults.bulk_types
        known = [
            known for known in (*self._records, *self._reads) if types is None or known in types
        ]
        if type not in known:
            raise invalid("_type", f"{type!r} is unknown; known are {', '.join(known)}")
        if type in self._records:
            return self._records[type](item)
        check_account(self._caller)
        return self._reads[type](item)

    def _register(self, item: Item) -> bytes:
        return self._service.register(convert_body(item, RegisterBody))

    def _start_instance(self, item: Item) -> bytes:
        return self._service.start(_instance_id(item), convert_body(item, StartBody))

    def _finish_instance(self, item: Item) -> bytes:
        body = convert_body(item, FinishInstanceBody)
        return self._service.finish_instance(_instance_id(item), body)

    def _terminate_instance(self, item: Item) -> bytes:
        return self._service.terminate(_instance_id(item), convert_body(item, TerminateBody))

    def _record_quality(self, item: Item) -> bytes:
        body = convert_body(item, RecordQualityBody)
        return self._service.record_quality(_instance_id(item), body)

    def _show_instance(self, item: Item) -> bytes:
        return self._service.get_instance(_instance_id(item))

    def _list_instances(self, item: Item) -> bytes:
        return self._service.list_instances(_query(item))

    def _create_span(self, item: Item) -> bytes:
        if "details" in item:
            body = convert_body(item, CreateSpanBody)
        else:
            body = CreateSpanBody(details=convert_body(item, SpanDetails))
        return self._service.create_span(body)

    def _finish_span(self, item: Item) -> bytes:
        span_id = convert_body(item, SpanItem).agent_span_id
        return self._service.finish_span(span_id, convert_body(item, FinishSpanBody))

    def _list_spans(self, item: Item) -> bytes:
        return self._service.list_spans(_query(item))

    def _create_agent(self, item: Item) -> bytes:
        return self._agents.create(convert_body(item, CreateAgentBody))

    def _update_agent(self, item: Item) -> bytes:
        agent_id = convert_body(item, AgentItem).agent_id
        return self._agents.update(agent_id, convert_body(item, UpdateAgentBody))


def _heads(items: list[Item]) -> list[BulkItem]:
    if not items:
        raise invalid("items", "must hold at least one item")
    heads = [convert_body(item, BulkItem) for item in items]
    seen: set[str] = set()
    for place, head in enumerate(heads):
        key = head.idempotency_key
        if not 8 <= len(key) <= 128:
            raise invalid(
                "idempotency_key",
                f"must have 8 to 128 characters in a bulk, that of items[{place}] has {len(key)}",
            )
        if key in seen:
            raise invalid("idempotency_key", f"{key!r} is the key of two items")
        seen.add(key)
    return heads


def _instance_id(item: Item) -> str:
    return convert_body(item, InstanceItem).agent_instance_id


def _query(item: Item) -> dict[str, str]:
    """The item as the query of the single call: ``{"pagination": {"offset": 2}}`` becomes
    ``pagination[offset]=2``. Names that are in this form already are taken as they are."""
    convert_body(item, ListItem)
    query: Item = {}
    for name, value in item.items():
        if isinstance(value, dict):
            parts = cast("Item", value)
            query |= {f"{name}[{part}]": parts[part] for part in parts}
        elif isinstance(value, bool):
            query[name] = str(value).lower()
        else:
            query[name] = value
    return {name: str(value) for name, value in query.items() if value is not None}
