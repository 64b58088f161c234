"""The metrics of one relay, in the text format of Prometheus. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prefactor_core.relay.monitor import Moment

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics(moment: Moment) -> str:
    """The text of ``GET /metrics``.

    Only the shards that this relay holds are in it, so that the sums over all relays are right.
    """
    return "".join(f"{line}\n" for line in _lines(moment))


def _lines(moment: Moment) -> Iterator[str]:
    statistics, shards = moment.statistics, moment.shards
    redis_up = statistics.redis_outage_since is None
    name = statistics.name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    yield from _metric("info", "gauge", "The relay.", {f'{{name="{name}"}}': 1})
    for total, what, value in (
        ("delivered_operations", "Operations that the API has accepted.", statistics.delivered),
        ("refused_operations", "Operations that the API has refused.", statistics.refused),
        ("requests", "Requests to the API.", statistics.requests),
        ("retries", "Requests that failed and were sent again.", statistics.retries),
        ("buried_runs", "Runs that the relay ended for dead agents.", statistics.buried),
        ("terminated_runs", "Runs that the API terminated.", statistics.terminated),
    ):
        yield from _metric(f"{total}_total", "counter", what, {"": value})
    for gauge, what, number in (
        (
            "pending_operations",
            "Operations read, not yet delivered or refused.",
            statistics.pending,
        ),
        ("shards", "Shards that the relay holds.", len(statistics.shards)),
        (
            "outage_seconds",
            "Time since the API has answered no request; 0 without an outage.",
            moment.outage,
        ),
        (
            "redis_up",
            "Whether the Redis server answers.",
            int(redis_up),
        ),
    ):
        yield from _metric(gauge, "gauge", what, {"": number})
    held = [shard for shard in shards or () if shard.shard in statistics.shards]
    for column, what, values in (
        (
            "waiting_entries",
            "Entries of a shard that no relay has read.",
            [shard.waiting for shard in held],
        ),
        (
            "pending_entries",
            "Entries that are read, and not yet delivered or refused.",
            [shard.pending for shard in held],
        ),
        (
            "oldest_entry_seconds",
            "Age of the oldest entry of a shard; 0 without one.",
            [shard.age or 0.0 for shard in held],
        ),
    ):
        labels = [f'{{shard="{shard.shard}"}}' for shard in held]
        yield from _metric(column, "gauge", what, dict(zip(labels, values, strict=True)))


def _metric(name: str, kind: str, what: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP prefactor_relay_{name} {what}"
    yield f"# TYPE prefactor_relay_{name} {kind}"
    for labels, value in values.items():
        yield f"prefactor_relay_{name}{labels} {value:.15g}"
