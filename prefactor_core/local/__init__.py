"""Local Prefactor: the API of the service on an SQLite file, inside this process."""

from prefactor_core.local.app import LocalPrefactor, open_local_prefactor

__all__ = ["LocalPrefactor", "open_local_prefactor"]
