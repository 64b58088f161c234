"""``just bench``: this client beside prefactor-core 0.1.0 and 0.5.3 and OpenTelemetry's SDK.

Each system runs in its own virtual environment, in turns, against one server process. A span
counts as delivered if that server saw it. ``__main__`` runs all benchmarks.
"""
