"""The seed's path to a run's handle and to the manager of runs."""

from prefactor_core.agent.agent_instance import AgentInstanceHandle
from prefactor_core.recording.agent_instances import AgentInstanceManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager"]
