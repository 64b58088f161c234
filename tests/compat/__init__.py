"""What ``just compat`` runs: published clients, unchanged, against ``prefactor_core serve``.

Each client has an environment of its own and a script in ``clients/``; ``published`` says which
versions, and what must be stored afterwards. ``instrumentations`` has agents that emit spans of
OpenTelemetry, with this checkout's processor. ``adapters`` has the vendor's adapters once more,
with this checkout's package in place of the vendor's core. ``cli`` and ``dashboard`` make the calls
of the vendor's command line and dashboard, one by one. Read ``__main__`` first.
"""
