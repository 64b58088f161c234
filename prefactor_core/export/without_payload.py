"""without_payload: an operation that is too large, made smaller. Pure."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from prefactor_core.operations import CreateSpan, FinishSpan, Operation, RecordQuality
from prefactor_core.payloads.capture import EMPTY, truncated


def without_payload(operation: Operation) -> Operation | None:
    """The operation with its larger payload replaced by a marker; None if none is large."""
    payload = operation.payload if isinstance(operation, CreateSpan | RecordQuality) else EMPTY
    result = operation.result_payload if isinstance(operation, CreateSpan | FinishSpan) else UNSET
    sizes = {"payload": len(payload), "result_payload": 0 if result is UNSET else len(result)}
    largest = max(sizes, key=sizes.__getitem__)
    marker = truncated(sizes[largest])
    if sizes[largest] <= len(marker):
        return None
    return msgspec.structs.replace(operation, **{largest: marker})
