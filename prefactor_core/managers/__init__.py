"""The seed's path to what records: :mod:`prefactor_core.recording` has the code."""

from prefactor_core.agent.agent_instance import AgentInstanceHandle
from prefactor_core.recording.agent_instances import AgentInstanceManager
from prefactor_core.recording.spans import SpanManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager", "SpanManager"]
