"""Local Prefactor: the API of the service on an SQLite file, inside this process."""

from prefactor_core.local.app import LocalPrefactor, open_local_prefactor
from prefactor_core.local.faults import Faults

__all__ = ["Faults", "LocalPrefactor", "open_local_prefactor"]
