"""The seed's import path of the managers; :mod:`prefactor_core.recording` has the code."""

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.span_manager import SpanManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager", "SpanManager"]
