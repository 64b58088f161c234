"""Programs written for prefactor-core 0.5.3 find its names here, and may call them in the same way.

``DIFFERENCES`` has all that is not so, each with its reason.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, get_origin, get_type_hints

from support.cases import for_each

NAMES: Final = {
    "": (
        "AgentInstance AgentInstanceHandle ClientAlreadyInitializedError ClientNotInitializedError "
        "InMemoryQueue InstanceNotFoundError Operation OperationError OperationType "
        "PrefactorCoreClient PrefactorCoreConfig PrefactorCoreError PrefactorTelemetryFailureError "
        "PrefactorTerminatedError Queue QueueClosedError QueueConfig SchemaRegistry Span "
        "SpanContext SpanContextStack SpanNotFoundError TaskExecutor __version__ "
        "build_runtime_environment generate_idempotency_key validate_idempotency_key "
        "warn_missing_adaptor_config"
    ),
    "client": "PrefactorCoreClient",
    "config": "HttpClientConfig PrefactorCoreConfig QueueConfig",
    "context_stack": "SpanContextStack",
    "exceptions": (
        "ClientAlreadyInitializedError ClientNotInitializedError InstanceNotFoundError "
        "OperationError PrefactorCoreError PrefactorTelemetryFailureError "
        "PrefactorTerminatedError SpanNotFoundError"
    ),
    "managers": "AgentInstanceHandle AgentInstanceManager SpanManager",
    "managers.agent_instance": "AgentInstanceHandle AgentInstanceManager",
    "managers.span": "SpanManager",
    "models": "AgentInstance Span",
    "monitoring": "TerminationMonitor",
    "monitoring.termination_monitor": "TerminationMonitor",
    "operations": "Operation OperationType",
    "queue": "InMemoryQueue Queue QueueClosedError TaskExecutor",
    "queue.base": "Queue QueueClosedError",
    "queue.executor": "TaskExecutor",
    "queue.memory": "InMemoryQueue",
    "runtime": "build_runtime_environment",
    "schema_registry": "SchemaRegistry",
    "span_context": "SpanContext",
    "utils": "generate_idempotency_key validate_idempotency_key warn_missing_adaptor_config",
}
"""The public names of each module of 0.5.3."""

SIGNATURES: Final = {
    "client.PrefactorCoreClient": """
        (config, queue=None, sdk_header_entry=None)
        async initialize()
        async close()
        property instance_manager()
        async create_agent_instance(
            agent_version, agent_schema_version=None, agent_id=None, instance_id=None,
            external_schema_version_id=None, environment_id=None, purpose=None,
            external_identifier=None
        )
        async create_span(
            instance_id, schema_name, parent_span_id=None, payload=None, started_at=None
        )
        async finish_span(span_id, result_payload=None, timestamp=None)
        async record_quality(instance_id, name, payload=None)
        async with span(instance_id, schema_name, parent_span_id=None, payload=None)
    """,
    "config.QueueConfig": "(*, num_workers=3, max_retries=3, retry_delay_base=1.0)",
    "config.PrefactorCoreConfig": "(*, http_config, queue_config=..., schema_registry=None)",
    "context_stack.SpanContextStack": """
        get_stack()
        push(span_id)
        pop()
        peek()
        depth()
        is_empty()
    """,
    "exceptions.OperationError": "(message, operation_type=None)",
    "exceptions.PrefactorTelemetryFailureError": (
        "(message, *, cause, operation_type=None, dropped_operations=0)"
    ),
    "exceptions.PrefactorTerminatedError": "(reason=None)",
    "managers.agent_instance.AgentInstanceHandle": """
        (instance_id, client)
        property id()
        async start(timestamp=None)
        async finish(status='complete', timestamp=None)
        async record_quality(name, payload=None)
        async create_span(schema_name, parent_span_id=None, payload=None, started_at=None)
        async finish_span(span_id, result_payload=None, timestamp=None)
        async with span(schema_name, parent_span_id=None, payload=None)
    """,
    "managers.agent_instance.AgentInstanceManager": """
        (http_client, enqueue)
        async register(
            agent_version, agent_schema_version, agent_id=None, instance_id=None,
            environment_id=None, purpose=None, external_identifier=None
        )
        async start(instance_id, timestamp=None)
        async start_with_idempotency_key(instance_id, idempotency_key, timestamp=None)
        async finish(instance_id, status='complete', timestamp=None)
        async finish_with_idempotency_key(
            instance_id, idempotency_key, status='complete', timestamp=None
        )
        async record_quality(instance_id, name, payload=None)
    """,
    "managers.span.SpanManager": """
        (http_client, enqueue)
        prepare(instance_id, schema_name, parent_span_id=None)
        async start(temp_id, payload=None, started_at=None)
        async cancel_unstarted(temp_id, timestamp=None)
        async create(
            instance_id, schema_name, parent_span_id=None, payload=None, span_id=None,
            started_at=None
        )
        async finish(
            span_id, result_payload=None, status='complete', idempotency_key=None, timestamp=None
        )
        get_span(span_id)
    """,
    "models.AgentInstance": """(
        id, agent_id, status='pending', purpose=None, created_at=..., started_at=None,
        finished_at=None, metadata=..., quality_payloads=None
    )""",
    "models.Span": """(
        id, instance_id, schema_name, parent_span_id=None, status='pending', payload=...,
        created_at=..., started_at=None, finished_at=None
    )""",
    "monitoring.termination_monitor.TerminationMonitor": """
        (fetch_instance, poll_interval=30.0)
        property termination_reason()
        get_termination_event()
        detect_termination(reason)
        sync(instance_id)
        reset()
        subscribe(callback)
        destroy()
    """,
    "operations.Operation": "(type, payload, timestamp, idempotency_key=None, metadata=...)",
    "queue.base.Queue": """
        async put(item)
        async get()
        size()
        async close(num_waiters=1)
        property closed()
    """,
    "queue.executor.TaskExecutor": """
        (queue, handler, num_workers=3, max_retries=3, *, is_retryable=None)
        start()
        async stop()
    """,
    "queue.memory.InMemoryQueue": "()",
    "runtime": "build_runtime_environment(sdk_header_entry=None)",
    "schema_registry.SchemaRegistry": """
        ()
        register(schema_name, schema)
        register_unsafe(schema_name, schema)
        register_result(schema_name, result_schema)
        register_type(
            name, params_schema, result_schema=None, title=None, description=None, template=None,
            data_risk=None
        )
        register_quality_schema(
            name, schema, title=None, description=None, template=None, data_risk=None
        )
        get(schema_name)
        list_schemas()
        has_schema(schema_name)
        to_agent_schema_version(external_id)
        merge(other)
    """,
    "span_context.SpanContext": """
        (temp_id, span_manager, default_payload=None)
        property id()
        async start(payload=None, started_at=None)
        set_result(data)
        async complete(result=None, timestamp=None)
        async fail(result=None, timestamp=None)
        async cancel(timestamp=None)
        async finish()
    """,
    "utils": """
        generate_idempotency_key()
        validate_idempotency_key(key)
        warn_missing_adaptor_config(instance_id, adaptor_name, create_client_call)
    """,
}
"""The functions of each module of 0.5.3, and the methods of each class, its constructor first:
how they are called, and their parameters without ``self``; the default ``...`` is any."""

DIFFERENCES: Final = {
    "client.PrefactorCoreClient.create_agent_instance": (
        "the seed has agent_id first. Both orders are accepted: a version is a mapping"
    ),
    "client.PrefactorCoreClient.span": (
        "the seed has span_id in fourth place. Both are accepted: a payload is a mapping"
    ),
    "managers.agent_instance.AgentInstanceManager": (
        "the client makes it and calls it; a program starts and finishes a run by its handle"
    ),
    "managers.span.SpanManager": (
        "the client makes it; it records and never waits, and a program has spans and their ids"
    ),
    "models.AgentInstance": (
        "what the client knows of a run: read, not made; fields by name only, and neither purpose "
        "nor quality payloads are kept"
    ),
    "models.Span": "what the client knows of a span: read, not made; fields by name only",
    "monitoring.termination_monitor.TerminationMonitor": (
        "a view: the client detects the termination of every run by itself"
    ),
    "operations.Operation": "one class for each kind, made by the client, with typed fields",
    "queue.executor.TaskExecutor": (
        "a scope, 'async with TaskExecutor(...):', which cannot leave tasks behind as start() "
        "could; a handler that wants no other attempt returns"
    ),
    "span_context.SpanContext": "instance.span() makes it",
}
"""The reason of each difference, for a class and all its methods or for one method."""


class Signature(NamedTuple):
    """One function of 0.5.3. ``way``: how it is called; ``path``: below the package."""

    way: str
    path: str
    parameters: str

    def __str__(self) -> str:
        return f"{self.way} {self.path}({self.parameters})".strip()


def _signatures() -> Iterator[Signature]:
    for owner, text in SIGNATURES.items():
        for way, name, parameters in re.findall(r"((?:[a-z]+ )*)(\w*)\(([^)]*)\)", text):
            yield Signature(
                way.strip(), f"{owner}.{name}".rstrip("."), " ".join(parameters.split())
            )


def _find(path: str) -> Any:
    """What is at this path here; None if nothing is."""
    module = max((name for name in NAMES if path.startswith(f"{name}.")), key=len)
    value: Any = importlib.import_module(f"prefactor_core.{module}")
    for name in path.removeprefix(f"{module}.").split("."):
        static = inspect.getattr_static(value, name, None)
        value = static if isinstance(static, property) else getattr(value, name, None)
    return value


def _way(value: Any) -> str:
    if inspect.iscoroutinefunction(value):
        return "async"
    hint = None if inspect.isclass(value) else get_type_hints(value).get("return")
    return "async with" if hasattr(get_origin(hint) or hint, "__aenter__") else ""


def _differences(signature: Signature) -> Iterator[str]:
    """What keeps a call of 0.5.3 from being made here."""
    value = _find(signature.path)
    if signature.way == "property" and isinstance(value, property):
        return
    if not callable(value):
        yield "it is missing" if value is None else "it cannot be called"
        return
    if _way(value) != signature.way:
        yield f"it is {_way(value) or 'a plain call'}"
    ours = dict(inspect.signature(value).parameters)
    if inspect.isfunction(value):
        ours.pop("self", None)
    positional = [name for name, own in ours.items() if own.kind is own.POSITIONAL_OR_KEYWORD]
    required = {
        name
        for name, own in ours.items()
        if own.default is own.empty and own.kind is not own.VAR_KEYWORD
    }
    texts = signature.parameters.split(", ") if signature.parameters else []
    star = texts.index("*") if "*" in texts else len(texts)
    for place, text in enumerate(texts):
        name, _, default = text.partition("=")
        if name == "*":
            continue
        own = ours.get(name)
        if own is None:
            yield f"{name} is missing"
        elif place < star and positional[place : place + 1] != [name]:
            yield f"{name} is in another place"
        elif default and (name in required or not _is_default(default, own.default)):
            yield f"{name} has another default"
        required.discard(name)
    for name in required:
        yield f"{name} is required"


def _is_default(source: str, default: object) -> bool:
    return source == "..." or bool(ast.literal_eval(source) == default)


@for_each("module", NAMES)
def test_every_public_name_of_0_5_3_is_at_its_path(module: str) -> None:
    here = importlib.import_module(f"prefactor_core.{module}".rstrip("."))
    for name in NAMES[module].split():
        assert hasattr(here, name), name


def test_what_differs_from_the_signatures_of_0_5_3_has_a_reason() -> None:
    signatures = list(_signatures())
    assert len(signatures) > 60
    found = {each: found for each in signatures if (found := list(_differences(each)))}
    unexplained = {
        str(each): differences
        for each, differences in found.items()
        if not {each.path, each.path.rpartition(".")[0]} & DIFFERENCES.keys()
    }
    assert unexplained == {}
    different = {part for each in found for part in (each.path, each.path.rpartition(".")[0])}
    assert DIFFERENCES.keys() <= different
