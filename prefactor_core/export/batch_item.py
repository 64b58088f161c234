"""BatchItem: one item of a request. Pure."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct

from prefactor_core.operations import (
    CreateSpan,
    FinishSpan,
    Operation,
    RecordQuality,
    RegisterAgentInstance,
)
from prefactor_core.payloads.capture import EMPTY, truncated


class BatchItem(Struct, eq=False, gc=False):
    """One item of a request: an operation, or the start and the finish of a span in one.

    ``position``: how many operations the worker took before this one. ``keys``: the idempotency
    keys of the recorded operations that it stands for, 1 or 2. ``size``: bytes in a request, about.
    ``alone``: send it by its own endpoint. ``in_bulk``: send it by bulk, with nothing else.
    ``failed_in_bulk``: bulk gave an error for this item, and not for the whole request.
    ``sent``: was in a request. ``completed``: delivered, or dropped.
    ``original``: the operation before its parent or payload was left out because the API refused
    it; restored if the API refuses the reduced one, too.
    ``given_id``: whether the create asks for the id of the span; fixed when the item is
    first sent, because its idempotency key stands for one body.
    ``attempts``: failed requests that had it in them; in the drain, since the drain began.
    ``outcome_unknown``: one of them got no answer. ``accepted_before``:
    :attr:`CircuitBreaker.accepted` when it failed alone; None if it did not. ``faults``: how
    often it failed alone again although the API had accepted others since.
    ``overtaken``: whether its dependents may be sent before it, because nothing else is there to
    show whether the API accepts operations.
    ``due``: when it may be sent again, on the clock of the event loop.
    ``is_replayed``: an earlier process may have sent it.
    ``noted``: for the journal: the form of it that was noted.
    """

    operation: Operation
    position: int
    size: int
    keys: tuple[str, ...]
    alone: bool = False
    in_bulk: bool = False
    failed_in_bulk: bool = False
    sent: bool = False
    completed: bool = False
    given_id: bool = True
    original: Operation | None = None
    attempts: int = 0
    outcome_unknown: bool = False
    accepted_before: int | None = None
    faults: int = 0
    overtaken: bool = False
    due: float = 0.0
    is_replayed: bool = False
    noted: object = None

    @property
    def count(self) -> int:
        """The number of operations that it stands for."""
        return len(self.keys)

    @property
    def may_be_known(self) -> bool:
        """Whether the API may have accepted it before, without our knowing."""
        return self.outcome_unknown or self.is_replayed

    @property
    def is_changed(self) -> bool:
        """Whether a part of it was left out because the API refused it."""
        operation = self.operation
        return self.original is not None or (
            isinstance(operation, RegisterAgentInstance) and operation.is_as_given
        )

    def shrink(self) -> bool:
        """Leave the larger payload out from now on; return whether there is one."""
        smaller = without_payload(self.operation)
        if smaller is None:
            return False
        self.original = self.original or self.operation
        self.operation = smaller
        return True


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
