"""Older import path; the code is in :mod:`~prefactor_core.agent.instance` and
:mod:`~prefactor_core.recording.instance_manager`.
"""

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.recording.instance_manager import AgentInstanceManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager"]
