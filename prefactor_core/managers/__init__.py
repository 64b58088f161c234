"""Recording: what is done to runs and spans becomes operations."""

from prefactor_core.agent_instance import AgentInstanceHandle
from prefactor_core.managers.agent_instance import AgentInstanceManager
from prefactor_core.managers.span import SpanManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager", "SpanManager"]
