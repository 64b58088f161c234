"""The client: the scope that owns everything a program records with.

A configuration comes in, an open client goes out: its connections, queues, workers, runs and spans
live until the scope is left. Read ``client`` first; then ``scope``, which puts the parts together
and has the order of exit. ``recording_client`` has the methods that record runs,
``recording_by_id`` those for spans; ``sync`` is the same client for programs without an event loop.
``route`` chooses the way to the API: HTTP, or Redis and a relay.
"""

from prefactor_core.client.client import PrefactorCoreClient, open_prefactor

__all__ = ["PrefactorCoreClient", "open_prefactor"]
