"""Import path of prefactor-core 0.5.3; the code is in
:mod:`prefactor_core.client.runtime_environment`.
"""

from prefactor_core.client.runtime_environment import build_runtime_environment

__all__ = ["build_runtime_environment"]
