"""The seed's import path of the handle of a run and of the manager of runs."""

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.recording.instance_manager import AgentInstanceManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager"]
