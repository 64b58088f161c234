"""The viewer: pages that show what is in the file of a local Prefactor, and the data for them.

Requests for pages come in, and for the private endpoints (``/-/…``) from which the pages get their
data; JSON, server-sent events and files go out. Read ``app`` first: it routes a request to a query
(``runs``, ``spans``, ``usage``, ``agents``), which ``reader`` makes on a thread of its own,
to ``events`` or to ``static``. ``exports`` makes files of a run.
"""

from prefactor_core.local.viewer.app import Viewer, open_viewer

__all__ = ["Viewer", "open_viewer"]
