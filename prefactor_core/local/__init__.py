"""The embedded Prefactor: the API of the service on an SQLite file, inside this process.

HTTP requests come in as ASGI, from an ``ApiClient`` or a web server; JSON answers go out, and runs
and spans go into the file. Read ``app`` first: it routes a request by the table in ``endpoints``,
from which ``openapi`` makes a document, to ``service`` (runs, spans), ``agents``, ``resources``
(all other objects) or ``bulk``. Those check it (``requests``, ``tokens``), change the tables
(``store``; ``at_fork`` closes it for a moment) in one transaction (``idempotency``), and show what
is stored (``views``, ``pagination``, ``summaries``; ``answers`` has the forms). ``errors`` are the
error responses, ``faults`` those made on purpose; ``opening`` opens the file. ``server`` serves all
this and the pages of ``viewer`` at a port, behind ``access``, which checks who asks.
"""

from importlib.util import find_spec

from prefactor_core.local.app import LocalPrefactor
from prefactor_core.local.faults import Faults
from prefactor_core.local.opening import open_local_prefactor
from prefactor_core.local.tokens import Deployment

# Both are imported when a call needs them. A missing one must show here, not then.
for _name in ("jsonschema", "liquid"):
    if find_spec(_name) is None:
        raise ImportError(f"No module named {_name!r}")

__all__ = ["Deployment", "Faults", "LocalPrefactor", "open_local_prefactor"]
