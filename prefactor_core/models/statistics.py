"""Statistics: the balance of a client at one moment."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct, field


class Statistics(Struct, frozen=True, kw_only=True):
    """The balance of a client at one moment: accepted = delivered + pending + all dropped.

    ``accepted``: operations recorded so far (starts and finishes of runs and spans, and each
    ``record_quality()``; a span that is first told when it has ended is one operation).
    ``delivered``: taken by the API.
    ``pending``: waiting, or on their way. ``pending_bytes``: what they take, about.
    ``open_bytes``: the payloads of open spans of which nothing was recorded yet.
    ``in_flight``: those of them that are in a request that has not been answered.
    ``dropped``: never to be delivered, by reason: ``refused`` (the API does not take it),
    ``retries_exhausted`` (the API failed at it again and again while it took others),
    ``full`` (a new run or span, or what was told of a run's quality, met the bounds of
    :class:`~prefactor_core.QueueConfig`), ``run_ended`` (a span that began after its run's end),
    ``drain_timeout`` (the scope ended first), ``queue`` (the client's queue did not take it).
    ``requests``: requests sent. ``retries``: those that failed, and whose operations are
    sent again.
    ``merged``: finishes of spans that were sent together with their start, as one.
    ``last_error``: why the last request that failed did; None if none did.
    ``outage_since``: since when no request has been answered as it should, aware, in UTC;
    None if the last one was.
    ``assumed``: what the API has shown that it does not do, as ``"no bulk"``, and what is
    therefore done without for now. Each is tried again after a while.
    ``degraded``: how many payloads and results are not recorded whole, by reason: ``slow`` and
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
    degraded: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def lost(self) -> int:
        """How many operations were dropped, whatever the reason."""
        return sum(self.dropped.values())

    def describe_loss(self) -> str:
        """What was lost, in one sentence."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        loss = f"{self.lost} of {self.accepted} Prefactor operations were not delivered"
        if self.last_error is not None:
            return f"{loss} ({reasons}); last error: {self.last_error}"
        why = "; no answer came in time" if "drain_timeout" in self.dropped else ""
        return f"{loss} ({reasons}){why}"
