"""Trace ids: what OpenTelemetry calls the runs and spans that Prefactor knows by PFIDs. Pure.

Each is a hash of a PFID, so that a span has the same id in the headers that name it, in every
export, and in another process. The partition takes no part: it is provisional until the API has
registered the run.
"""

from __future__ import annotations

from hashlib import sha256

from prefactor_core.operations.identifiers import without_partition


def trace_id_of(run_id: str) -> str:
    """Return the id of the trace of a run: 16 bytes, as 32 hexadecimal digits."""
    return _hash(run_id)[:32]


def span_id_of(pfid: str) -> str:
    """Return the id of a span, or of the span that stands for a run: 8 bytes, as 16 hexadecimal
    digits."""
    return _hash(pfid)[:16]


def _hash(pfid: str) -> str:
    return sha256(without_partition(pfid).encode()).hexdigest()
