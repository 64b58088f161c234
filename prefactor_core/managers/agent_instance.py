"""The seed's path to a run's handle and to the manager of runs."""

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.recording.instance_manager import AgentInstanceManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager"]
