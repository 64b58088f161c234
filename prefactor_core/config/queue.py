"""QueueConfig: how recorded operations are delivered."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from prefactor_core.exceptions import PrefactorValueError, in_message
from prefactor_core.exceptions.checks import (
    check_choice,
    to_at_least,
    to_count,
    to_positive,
    to_seconds,
    to_whole,
)


class QueueConfig(Struct):
    """How recorded operations are delivered in the background.

    ``num_workers``: tasks that send at the same time, 1 to 20. The operations of one agent
    instance all go through one of them, in order.
    ``max_retries``: how often an operation that the API does not accept, while it accepts
    others, is tried again before it is given up; 0 or more. During an outage of the API nothing
    is given up for as long as the scope lives.
    ``retry_delay_base``: seconds. A failed request is sent again after a tenth of it; while all
    requests fail, all workers wait, after each failure ``retry_multiplier`` times as long as
    before. An operation that fails alone while others are accepted waits that long itself.
    ``report_after``: seconds. A span that is still open so long after its entering is reported as
    active, its ancestors first, so that the running step shows: at most a quarter later, if the
    event loop is not blocked. 0 reports it at its entering; with ``math.inf`` no time does. Spans
    whose payload is filled in from the result are passed over, and so are the spans inside. Of
    the standard types that is :class:`~prefactor_core.span_types.LLMCall`. If ``start()`` or the
    operation of a child reports one before its end, ``token_usage`` stays in the result, where
    dashboards do not look.
    ``batch_window``: how long an operation waits for others to share its request, in
    seconds; 0 or more.
    ``max_batch_operations``, ``max_batch_bytes``: the size of one request, at least one
    operation. The bytes are those of payloads, and an estimate for the rest.
    ``max_pending_operations``, ``max_pending_bytes``: the operations that may wait for delivery.
    By default there is room for a burst of more than 50,000 ordinary spans. The bytes include the
    payloads of open spans: if these fill the room, a marker replaces any further payload, and the
    span itself is recorded.
    ``when_full``: the treatment of a new span when the room is full. ``"drop"``: the span is
    counted and not recorded, and its children become those of its parent. ``"wait"``: ``async
    with`` and ``create_span`` wait for room, and nothing is lost; synchronous code, which cannot
    wait, drops. Operations of spans and runs that were accepted are always accepted.

    Raises :class:`PrefactorValueError` for a value out of its bounds.
    """

    num_workers: int = 3
    max_retries: int = 3
    retry_delay_base: float = 1.0
    report_after: float = 1.0
    batch_window: float = 0.1
    max_batch_operations: int = 500
    # Below the limit of 1 MiB that many proxies have.
    max_batch_bytes: int = 1_000_000
    max_pending_operations: int = 200_000
    max_pending_bytes: int = 128 * 1024 * 1024
    when_full: Literal["drop", "wait"] = "drop"

    def __post_init__(self) -> None:
        self.num_workers = to_whole("num_workers", self.num_workers)
        if not 1 <= self.num_workers <= 20:
            raise PrefactorValueError(
                f"num_workers must be between 1 and 20, got {in_message(self.num_workers)}"
            )
        self.max_retries = to_count("max_retries", self.max_retries)
        self.retry_delay_base = to_positive("retry_delay_base", self.retry_delay_base)
        self.report_after = to_seconds("report_after", self.report_after)
        self.batch_window = to_seconds("batch_window", self.batch_window)
        if self.batch_window == math.inf:
            raise PrefactorValueError(
                f"batch_window must have an end, got {in_message(self.batch_window)}"
            )
        for name in (
            "max_batch_operations",
            "max_batch_bytes",
            "max_pending_operations",
            "max_pending_bytes",
        ):
            setattr(self, name, to_at_least(name, getattr(self, name), 1))
        check_choice("when_full", self.when_full, ("drop", "wait"))
