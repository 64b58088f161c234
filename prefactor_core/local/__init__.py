"""Local Prefactor: the API of the service on an SQLite file, inside this process."""

from importlib.util import find_spec

from prefactor_core.local.app import LocalPrefactor, open_local_prefactor
from prefactor_core.local.faults import Faults
from prefactor_core.local.tokens import Deployment

# They are imported when they are needed, and shall not be found to be missing only then.
for _name in ("jsonschema", "liquid"):
    if find_spec(_name) is None:
        raise ImportError(f"No module named {_name!r}")

__all__ = ["Deployment", "Faults", "LocalPrefactor", "open_local_prefactor"]
