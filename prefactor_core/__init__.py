"""prefactor_core: record what an AI agent does, and ship it to Prefactor."""

from prefactor_core.agent.current import span, traced
from prefactor_core.agent.instance import (
    AgentInstanceHandle,
    current_instance,
    current_span,
)
from prefactor_core.agent.scope import AgentInstanceScope
from prefactor_core.agent.span import SpanContext
from prefactor_core.client import PrefactorCoreClient, open_prefactor
from prefactor_core.client.runtime_environment import build_runtime_environment
from prefactor_core.client.sync import SyncPrefactorClient, open_prefactor_sync
from prefactor_core.compat.adapters import warn_missing_adaptor_config
from prefactor_core.config import PrefactorCoreConfig, QueueConfig
from prefactor_core.config._version import __version__ as __version__
from prefactor_core.config.http import HttpClientConfig
from prefactor_core.context_stack import SpanContextStack
from prefactor_core.exceptions import (
    ClientAlreadyInitializedError,
    ClientNotInitializedError,
    ClientScopeError,
    InstanceNotFoundError,
    OperationError,
    PrefactorApiError,
    PrefactorAuthError,
    PrefactorConflictError,
    PrefactorContractError,
    PrefactorCoreError,
    PrefactorNotFoundError,
    PrefactorRateLimitError,
    PrefactorServerError,
    PrefactorTelemetryFailureError,
    PrefactorTerminatedError,
    PrefactorTypeError,
    PrefactorUnreachableError,
    PrefactorValidationError,
    PrefactorValueError,
    SpanNotFoundError,
)
from prefactor_core.models import AgentInstance, Span
from prefactor_core.models.statistics import Statistics
from prefactor_core.operations import Operation, OperationType
from prefactor_core.operations.identifiers import generate_idempotency_key, validate_idempotency_key
from prefactor_core.payloads.credentials import redact_credentials
from prefactor_core.payloads.redaction import SECRETS, redact_keys
from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.executor import TaskExecutor
from prefactor_core.queue.memory import InMemoryQueue
from prefactor_core.schema_registry import SchemaRegistry
from prefactor_core.schema_registry.data_risk import ActionProfile, DataCategories, DataRisk
from prefactor_core.schema_registry.sensitive import DataCategory, Sensitive, sensitive
from prefactor_core.schema_registry.span_type import SpanType
from prefactor_core.schema_registry.type_schema import SpanParams

__all__ = [
    "SECRETS",
    "ActionProfile",
    "AgentInstance",
    "AgentInstanceHandle",
    "AgentInstanceScope",
    "ClientAlreadyInitializedError",
    "ClientNotInitializedError",
    "ClientScopeError",
    "DataCategories",
    "DataCategory",
    "DataRisk",
    "HttpClientConfig",
    "InMemoryQueue",
    "InstanceNotFoundError",
    "Operation",
    "OperationError",
    "OperationType",
    "PrefactorApiError",
    "PrefactorAuthError",
    "PrefactorConflictError",
    "PrefactorContractError",
    "PrefactorCoreClient",
    "PrefactorCoreConfig",
    "PrefactorCoreError",
    "PrefactorNotFoundError",
    "PrefactorRateLimitError",
    "PrefactorServerError",
    "PrefactorTelemetryFailureError",
    "PrefactorTerminatedError",
    "PrefactorTypeError",
    "PrefactorUnreachableError",
    "PrefactorValidationError",
    "PrefactorValueError",
    "Queue",
    "QueueClosedError",
    "QueueConfig",
    "SchemaRegistry",
    "Sensitive",
    "Span",
    "SpanContext",
    "SpanContextStack",
    "SpanNotFoundError",
    "SpanParams",
    "SpanType",
    "Statistics",
    "SyncPrefactorClient",
    "TaskExecutor",
    "build_runtime_environment",
    "current_instance",
    "current_span",
    "generate_idempotency_key",
    "open_prefactor",
    "open_prefactor_sync",
    "redact_credentials",
    "redact_keys",
    "sensitive",
    "span",
    "traced",
    "validate_idempotency_key",
    "warn_missing_adaptor_config",
]

# A traceback names an error as its users import it.
for _exported in [globals()[_name] for _name in __all__]:
    if isinstance(_exported, type) and issubclass(_exported, PrefactorCoreError):
        _exported.__module__ = __name__
