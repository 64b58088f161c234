"""The names, paths and signatures that the seed promised, and no accident beside them."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pydoc
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator

import pytest
from support.cases import for_each
from support.harness import AGENT, make_config, recording

import prefactor_core
from prefactor_core import (
    PrefactorCoreError,
    PrefactorTelemetryFailureError,
    PrefactorTerminatedError,
    PrefactorTypeError,
    PrefactorValidationError,
    SyncPrefactorClient,
    open_prefactor,
)
from prefactor_core.agent.disabled_span import DisabledSpan
from prefactor_core.config.lazy_module import LazyModule
from prefactor_core.export.counters import Counters

SEED_EXPORTS = {
    "prefactor_core": (
        "PrefactorCoreClient PrefactorCoreConfig QueueConfig SpanContext SpanContextStack "
        "PrefactorCoreError ClientNotInitializedError ClientAlreadyInitializedError "
        "OperationError InstanceNotFoundError SpanNotFoundError AgentInstance Span Operation "
        "OperationType Queue QueueClosedError InMemoryQueue TaskExecutor AgentInstanceHandle "
        "SchemaRegistry __version__"
    ),
    "prefactor_core.client": "PrefactorCoreClient",
    "prefactor_core.config": "HttpClientConfig PrefactorCoreConfig QueueConfig",
    "prefactor_core.context_stack": "SpanContextStack",
    "prefactor_core.exceptions": (
        "PrefactorCoreError ClientNotInitializedError ClientAlreadyInitializedError "
        "OperationError InstanceNotFoundError SpanNotFoundError"
    ),
    "prefactor_core.managers": "AgentInstanceHandle AgentInstanceManager SpanManager",
    "prefactor_core.managers.agent_instance": "AgentInstanceHandle AgentInstanceManager",
    "prefactor_core.managers.span": "SpanManager",
    "prefactor_core.models": "AgentInstance Span",
    "prefactor_core.operations": "Operation OperationType",
    "prefactor_core.queue": "Queue QueueClosedError InMemoryQueue TaskExecutor",
    "prefactor_core.queue.base": "Queue QueueClosedError",
    "prefactor_core.queue.executor": "TaskExecutor",
    "prefactor_core.queue.memory": "InMemoryQueue",
    "prefactor_core.schema_registry": "SchemaRegistry",
    "prefactor_core.span_context": "SpanContext",
}
LATER_PATHS = [
    f"prefactor_core.{name}"
    for name in ("monitoring", "monitoring.termination_monitor", "runtime", "utils")
]
"""Modules of 0.5.3 that the seed did not have."""


@for_each("module", SEED_EXPORTS)
def test_every_name_of_the_seed_is_at_its_path(module: str) -> None:
    imported = importlib.import_module(module)
    for name in SEED_EXPORTS[module].split():
        assert hasattr(imported, name), name


def test_every_module_can_be_imported_first() -> None:
    code = """
import importlib, sys

for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("prefactor_core")]:
        del sys.modules[name]
    importlib.import_module(module)
"""
    modules = [*SEED_EXPORTS, *LATER_PATHS]
    subprocess.run([sys.executable, "-W", "error", "-c", code, *modules], check=True)


def test_all_is_sorted_and_is_what_there_is() -> None:
    # Constants first, as isort has it.
    names = sorted(prefactor_core.__all__, key=lambda name: (not name.isupper(), name))
    assert prefactor_core.__all__ == names
    public = {
        name
        for name, value in vars(prefactor_core).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(prefactor_core.__all__)


def test_every_error_is_ours_and_shows_the_name_it_is_imported_by() -> None:
    errors = [
        value
        for value in vars(prefactor_core).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    ]
    assert len(errors) > 15
    for error in errors:
        assert issubclass(error, PrefactorCoreError)
        assert error.__module__ == "prefactor_core"


@for_each(
    ("path", "parameters"),
    [
        ("client.PrefactorCoreClient", "config queue=None sdk_header_entry=None"),
        (
            "client.PrefactorCoreClient.create_agent_instance",
            (
                "self agent_id=None agent_version=None agent_schema_version=None instance_id=None"
                " external_schema_version_id=None"
            ),
        ),
        (
            "client.PrefactorCoreClient.agent_instance",
            (
                "self agent_id=None agent_version=None agent_schema_version=None instance_id=None"
                " external_schema_version_id=None"
            ),
        ),
        (
            "client.PrefactorCoreClient.create_span",
            "self instance_id schema_name parent_span_id=None payload=None started_at=None",
        ),
        (
            "client.PrefactorCoreClient.finish_span",
            "self span_id result_payload=None timestamp=None",
        ),
        (
            "client.PrefactorCoreClient.span",
            "self instance_id schema_name parent_span_id=None span_id=None payload=None",
        ),
        ("managers.agent_instance.AgentInstanceHandle", "instance_id client"),
        (
            "managers.agent_instance.AgentInstanceHandle.span",
            "self schema_name parent_span_id=None payload=None",
        ),
        (
            "managers.agent_instance.AgentInstanceManager.register",
            "self agent_id agent_version agent_schema_version instance_id=None",
        ),
        ("managers.span.SpanManager.finish", "self span_id result_payload=None status='complete'"),
        ("span_context.SpanContext.start", "self payload=None started_at=None"),
        ("span_context.SpanContext.set_result", "self data"),
        ("span_context.SpanContext.complete", "self result=None timestamp=None"),
        ("span_context.SpanContext.fail", "self result=None timestamp=None"),
        ("span_context.SpanContext.cancel", "self timestamp=None"),
        ("span_context.SpanContext.finish", "self timestamp=None"),
        ("queue.base.Queue.close", "self num_waiters=1"),
        ("queue.executor.TaskExecutor", "queue handler num_workers=3 max_retries=3"),
        (
            "schema_registry.SchemaRegistry.register_type",
            (
                "self name params_schema=None result_schema=None title=None"
                " description=None template=None data_risk=None"
            ),
        ),
        ("exceptions.OperationError", "message operation_type=None"),
    ],
)
def test_the_positional_parameters_are_the_seeds(path: str, parameters: str) -> None:
    module, *names = path.split(".")
    while names[0].islower():
        module += "." + names.pop(0)
    value = importlib.import_module(f"prefactor_core.{module}")
    for name in names:
        value = getattr(value, name)
    positional = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in inspect.signature(value).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert " ".join(positional) == parameters


def _public_names() -> Iterator[tuple[str, object]]:
    """Every name that a program imports, by its path, once."""
    others = ("span_types", "testing", "pytest_plugin", "local", "otel")
    modules = [*SEED_EXPORTS, *LATER_PATHS, *(f"prefactor_core.{name}" for name in others)]
    seen = set[int]()
    for path in modules:
        module = importlib.import_module(path)
        own = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == path
        ]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            if id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}", value


def _functions_of(path: str, value: object) -> Iterator[tuple[str, Callable[..., object]]]:
    """A function; or a class, and the methods and properties that it has for its users."""
    if isinstance(value, type):
        for name in dir(value):
            is_special = name.startswith("__") and name.endswith("__")
            if name.startswith("_") and not is_special:
                continue
            member = inspect.getattr_static(value, name)
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if inspect.isfunction(member):
                yield f"{path}.{name}", member
    elif inspect.isfunction(value):
        yield path, value


def test_every_name_of_the_package_is_looked_at() -> None:
    looked_at = {path for path, _ in _public_names()}
    assert looked_at >= {f"prefactor_core.{name}" for name in prefactor_core.__all__}
    methods = {each for name in _public_names() for each, _ in _functions_of(*name)}
    for method in ("PrefactorCoreClient.inject", "SyncPrefactorClient.open", "SpanContext.begin"):
        assert f"prefactor_core.{method}" in methods


@for_each(("path", "value"), list(_public_names()))
def test_every_public_name_tells_its_signature_its_types_and_its_help(
    path: str, value: object
) -> None:
    if isinstance(value, type) and not typing.is_typeddict(value):
        inspect.signature(value, eval_str=True)
    if isinstance(value, type):
        typing.get_type_hints(value, include_extras=True)
        assert value.__doc__, path
    for where, function in _functions_of(path, value):
        name = where.rpartition(".")[2]
        assert name.startswith("_") or inspect.getdoc(getattr(value, name, value)), where
        for each in (function, *typing.get_overloads(function)):
            inspect.signature(each, eval_str=True)
            assert typing.get_type_hints(each, include_extras=True) is not None, where
    assert pydoc.render_doc(value)


def test_what_only_annotations_name_is_imported_when_they_are_evaluated() -> None:
    module = LazyModule("email.message")
    assert typing.get_type_hints(
        type("A", (), {"__annotations__": {"a": "m.Message"}}), {"m": module}
    )


def test_importing_the_package_imports_neither_httpx_nor_any_extra() -> None:
    heavy = ["httpx", "starlette", "rich", "click", "sqlite3", "trio", "signal"]
    code = f"import prefactor_core, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"


def test_an_error_that_another_process_hands_on_says_the_same() -> None:
    statistics = Counters().statistics()
    for error in (
        PrefactorTerminatedError("over budget", "i1"),
        PrefactorTelemetryFailureError("all is lost", statistics),
        PrefactorValidationError("no", code="c", status_code=422, errors={"field": "is wrong"}),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_a_copy_or_pickle_of_an_object_of_one_process_is_a_clear_error(
    way: Callable[[object], object],
) -> None:
    async with recording() as r:
        uncopyable = {
            "AgentInstanceHandle is a run": r.instance,
            "AgentInstanceScope is the scope": r.client.agent_instance(**AGENT),
            "PrefactorCoreClient is a client": r.client,
            "SpanContext is a span": r.instance.span("agent:llm"),
            "DisabledSpan is a span": DisabledSpan(r.client.span_manager.recorder),
            "SpanManager is the record": r.client.span_manager,
            "AgentInstanceManager is the record": r.client.instance_manager,
            "SyncPrefactorClient is a client": SyncPrefactorClient(open_prefactor(make_config())),
        }
        for words, value in uncopyable.items():
            for held in (value, {"state": [value]}):
                if way is not copy.copy or held is value:
                    with pytest.raises(TypeError, match=words) as caught:
                        way(held)
                    assert isinstance(caught.value, PrefactorTypeError)
                    assert "pass on the object itself" in str(caught.value)
