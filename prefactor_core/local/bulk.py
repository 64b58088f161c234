"""Bulk: several calls in one request, POST /api/v1/bulk. Synchronous."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, cast

import msgspec

from prefactor_core.local.agents import Agents
from prefactor_core.local.errors import ApiError, invalid
from prefactor_core.local.faults import Faults
from prefactor_core.local.requests import (
    AgentItem,
    BulkBody,
    BulkItem,
    CreateAgentBody,
    CreateSpanBody,
    EnvironmentItem,
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
from prefactor_core.local.resources.environments import (
    CreateEnvironmentBody,
    Environments,
    UpdateEnvironmentBody,
)
from prefactor_core.local.runs import Runs
from prefactor_core.local.service import Service
from prefactor_core.local.tokens import Deployment, check_account

Item = dict[str, Any]

_MOST_ITEMS: Final = 10_000
_MOST_IN_TRANSACTION: Final = 500
"""Items; other processes wait for a transaction of this one."""


class Bulk:
    """Runs the items of a request as single calls of ``service`` and ``agents``, as ``caller``."""

    def __init__(
        self,
        service: Service,
        agents: Agents,
        environments: Environments,
        faults: Faults,
        caller: Deployment | None,
    ) -> None:
        self._store = service.store
        self._caller = caller
        self._runs = Runs(self._store, gathers=True)
        service = service.acting_for(caller).gathering(self._runs)
        # For any token.
        records: dict[str, Callable[[Item], bytes]] = {
            "agent_instances/register": lambda item: service.register(
                convert_body(item, RegisterBody)
            ),
            "agent_instances/start": lambda item: service.start(
                _instance_id(item), convert_body(item, StartBody)
            ),
            "agent_instances/finish": lambda item: service.finish_instance(
                _instance_id(item), convert_body(item, FinishInstanceBody)
            ),
            "agent_instances/record_quality": lambda item: service.record_quality(
                _instance_id(item), convert_body(item, RecordQualityBody)
            ),
            "agent_instances/terminate": lambda item: service.terminate(
                _instance_id(item), convert_body(item, TerminateBody)
            ),
            "agent_spans/create": lambda item: service.create_span(_new_span(item)),
            "agent_spans/finish": lambda item: service.finish_span(
                convert_body(item, SpanItem).agent_span_id, convert_body(item, FinishSpanBody)
            ),
        }
        # For the token of the account.
        management: dict[str, Callable[[Item], bytes]] = {
            "agent_instances/show": lambda item: service.get_instance(_instance_id(item)),
            "agent_instances/list": lambda item: service.list_instances(_query(item)),
            "agent_spans/list": lambda item: service.list_spans(_query(item)),
            "agents/list": lambda item: agents.list(_query(item)),
            "agents/show": lambda item: agents.show(_query(item)),
            "agents/create": lambda item: agents.create(convert_body(item, CreateAgentBody)),
            "agents/update": lambda item: agents.update(
                convert_body(item, AgentItem).agent_id, convert_body(item, UpdateAgentBody)
            ),
            "environments/list": lambda item: environments.list(_query(item)),
            "environments/show": lambda item: environments.get(_environment_id(item)),
            "environments/create": lambda item: environments.create(
                convert_body(item, CreateEnvironmentBody)
            ),
            "environments/update": lambda item: environments.update(
                _environment_id(item), convert_body(item, UpdateEnvironmentBody)
            ),
        }
        types = faults.bulk_types
        calls = {**records, **management}
        self._calls = {type: calls[type] for type in calls if types is None or type in types}
        self._management = management.keys()

    def run(self, body: BulkBody, on_error: Callable[[ApiError], object]) -> bytes:
        """POST bulk: run the items in order, up to the first with an error.

        An error of one item is the output of that item, which changes nothing, and is passed to
        ``on_error``. Raises :class:`ApiError`, before any item runs, if the request itself has the
        wrong form.

        Each 500 items are one transaction. A failing storage is no item's fault: its error is
        raised, and the items of that transaction change nothing. When the request is sent again,
        the items of earlier transactions are replayed by their idempotency keys.
        """
        calls = list(zip(_heads(body.items), body.items, strict=True))
        outputs: dict[str, object] = {}
        ended = False
        while calls and not ended:
            part, calls = calls[:_MOST_IN_TRANSACTION], calls[_MOST_IN_TRANSACTION:]
            with self._transaction([head.type for head, _ in part]):
                ended = not self._run(part, outputs, on_error)
                self._runs.write()
        return msgspec.json.encode({"status": "success", "outputs": outputs})

    def _transaction(self, types: list[str]) -> AbstractContextManager[None]:
        # Reading needs no lock.
        reads = all(type.endswith(("/list", "/show")) for type in types)
        return nullcontext() if reads else self._store.transaction()

    def _run(
        self,
        calls: list[tuple[BulkItem, Item]],
        outputs: dict[str, object],
        on_error: Callable[[ApiError], object],
    ) -> bool:
        """Run ``calls`` and add their ``outputs``; False if one had an error."""
        for head, item in calls:
            try:
                outputs[head.idempotency_key] = msgspec.Raw(self._call(head.type, item))
            except ApiError as error:
                outputs[head.idempotency_key] = error.body()
                on_error(error)
                return False
        return True

    def _call(self, type: str, item: Item) -> bytes:
        call = self._calls.get(type)
        if call is None:
            raise invalid("_type", f"{type!r} is unknown; known are {', '.join(self._calls)}")
        if type in self._management:
            check_account(self._caller)
            # It may show the totals of runs.
            self._runs.write()
        return call(item)


def _heads(items: list[Item]) -> list[BulkItem]:
    if not items:
        raise invalid("items", "must hold at least one item")
    if len(items) > _MOST_ITEMS:
        message = f"the bulk has {len(items)} items, at most {_MOST_ITEMS} are taken"
        raise ApiError(413, "payload_too_large", message)
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


def _environment_id(item: Item) -> str:
    return convert_body(item, EnvironmentItem).environment_id


def _new_span(item: Item) -> CreateSpanBody:
    if "details" in item:
        return convert_body(item, CreateSpanBody)
    return CreateSpanBody(details=convert_body(item, SpanDetails))


def _query(item: Item) -> dict[str, str]:
    """The query of the single call: ``{"pagination": {"offset": 2}}`` becomes
    ``pagination[offset]=2``. Names that have this form already stay."""
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
