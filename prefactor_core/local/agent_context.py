"""The context of a run: all that is known of it, for a program that looks for a cause."""

from __future__ import annotations

from typing import Final

import msgspec

from prefactor_core.local.pagination import Answer
from prefactor_core.local.store import Row, Store
from prefactor_core.local.versions import Versions
from prefactor_core.local.views import Views

_MOST_SPANS: Final = 10_000


def agent_context(store: Store, versions: Versions, views: Views, instance: Row) -> bytes:
    """GET agent_instance/{id}/agent_context: the run, its versions, and its spans in the order of
    their start. Of more than 10,000 spans these are the first; ``span_counts`` of the run has the
    number of all."""
    spans = store.all(
        "SELECT * FROM agent_spans WHERE agent_instance_id = ? "
        "ORDER BY coalesce(started_at, inserted_at), id LIMIT ?",
        instance["id"],
        _MOST_SPANS,
    )
    body: Answer = {
        "format": "agent_context_v1",
        "agent_instance": views.instance(instance),
        "agent_version": versions.stored(instance["agent_version_id"]),
        "agent_schema_version": versions.stored(instance["agent_schema_version_id"]),
        "spans": [views.span(span, instance) for span in spans],
    }
    return msgspec.json.encode({"status": "success", "agent_context": {"body": body}})
