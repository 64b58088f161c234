"""The scope that owns everything: how a client opens, closes, and is used from synchronous code.

A configuration comes in, an open client goes out. Read ``client`` first, then ``scope``, which
puts the parts together and has the order of exit.
"""

from prefactor_core.client.client import PrefactorCoreClient, open_prefactor

__all__ = ["PrefactorCoreClient", "open_prefactor"]
