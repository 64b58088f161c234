"""Statistics: the balance of a client at one moment."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct, field


class Statistics(Struct, frozen=True, kw_only=True):
    """The balance of a client at one moment: accepted = delivered + pending + all dropped.

    ``accepted``: operations recorded so far (starts and finishes of runs and spans, and each
    ``record_quality()``; a span that is sent only after its end is one operation).
    ``delivered``: accepted by the API.
    ``pending``: waiting, or in a request. ``pending_bytes``: their size, an estimate.
    ``open_bytes``: the payloads of open spans that are not recorded as operations yet.
    ``in_flight``: the pending operations in requests without an answer so far.
    ``dropped``: not delivered, by reason: ``refused`` (by the API),
    ``retries_exhausted`` (the API failed repeatedly while it accepted others),
    ``full`` (a new run or span, or a quality payload, exceeded the bounds of
    :class:`~prefactor_core.QueueConfig`), ``run_ended`` (a span that began after its run's end, or
    any operation of a run that a relay has ended because it heard nothing of the agent for long),
    ``drain_timeout`` (the scope ended first), ``queue`` (the client's queue refused it).
    With a journal, the first two are kept aside in it.
    ``requests``: requests sent. ``retries``: failed requests whose operations are sent again.
    ``merged``: finishes of spans that were sent together with their start, as one.
    ``last_error``: the reason of the last failed request; None if no request failed.
    ``outage_since``: the beginning of the current outage, in which no request succeeded; aware, in
    UTC, None without an outage.
    ``assumed``: abilities that the API has shown not to have, such as ``"no bulk"``; the client
    does without them for now, and tries each again after a while.
    ``journal_bytes``: the size of the files of the client's journal, 0 without one.
    ``unjournaled``: operations that are not in the journal, because its files could not be written
    when they were recorded; they are delivered from memory, unless the process dies before.
    ``adopted``: operations that dead processes left in their journals, and this client delivered;
    no other count has them.
    ``degraded``: the number of payloads and results not recorded whole, by reason: ``slow`` and
    ``unreadable`` (code of a value in it took too long, or raised), ``too_deep`` (it has more than
    32 levels), ``truncated`` (it has more than ``max_payload_bytes``), ``withheld`` (``redact=``
    failed).
    """

    accepted: int
    delivered: int
    pending: int
    pending_bytes: int
    open_bytes: int
    in_flight: int
    dropped: dict[str, int]
    requests: int
    retries: int
    merged: int
    last_error: str | None
    outage_since: datetime | None
    assumed: tuple[str, ...] = ()
    journal_bytes: int = 0
    unjournaled: int = 0
    adopted: int = 0
    degraded: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def lost(self) -> int:
        """The number of dropped operations, for all reasons."""
        return sum(self.dropped.values())

    def describe_loss(self) -> str:
        """Return the loss in one sentence."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        loss = f"{self.lost} of {self.accepted} Prefactor operations were not delivered"
        if self.last_error is not None:
            return f"{loss} ({reasons}); last error: {self.last_error}"
        why = "; no answer came in time" if "drain_timeout" in self.dropped else ""
        return f"{loss} ({reasons}){why}"
