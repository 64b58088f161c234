"""Older import path of the managers; the code is in :mod:`prefactor_core.recording` and
:mod:`prefactor_core.agent`.
"""

from prefactor_core.agent.instance import AgentInstanceHandle
from prefactor_core.recording.instance_manager import AgentInstanceManager
from prefactor_core.recording.span_manager import SpanManager

__all__ = ["AgentInstanceHandle", "AgentInstanceManager", "SpanManager"]
