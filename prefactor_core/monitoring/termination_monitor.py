"""Import path of prefactor-core 0.5.3; the code is in :mod:`prefactor_core.compat.adapters`."""

from prefactor_core.compat.adapters import TerminationMonitor

__all__ = ["TerminationMonitor"]
