"""Views: the JSON that the API shows of stored runs and spans. Synchronous."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw

from prefactor_core.local.errors import invalid
from prefactor_core.local.pagination import Answer, page_of
from prefactor_core.local.quality import quality_of
from prefactor_core.local.span_lists import page_of_spans
from prefactor_core.local.spans import COUNTED, SpanRow
from prefactor_core.local.store import Row, Store
from prefactor_core.local.versions import Versions

# The columns that the API shows as they are stored. The others are for the viewer.
_INSTANCE_COLUMNS = (
    "id",
    "agent_id",
    "agent_version_id",
    "agent_schema_version_id",
    "environment_id",
    "agent_deployment_id",
    "external_identifier",
    "purpose",
    "status",
    "termination_reason",
    "inserted_at",
    "updated_at",
    "started_at",
    "finished_at",
)
_SPAN_COLUMNS = (
    "id",
    "agent_id",
    "agent_instance_id",
    "parent_span_id",
    "schema_name",
    "status",
    "inserted_at",
    "updated_at",
    "started_at",
    "finished_at",
)


class Views:
    """The views of rows in ``store``, one by one or in pages."""

    def __init__(self, store: Store, versions: Versions) -> None:
        self._store = store
        self._versions = versions

    def instance(self, row: Row) -> Answer:
        """The details of a run, with the counts of its spans."""
        counts: dict[str, int] = {status: row[f"{status}_spans"] for status in COUNTED}
        finished = counts["complete"] + counts["failed"] + counts["cancelled"]
        return {
            "type": "agent_instance",
            "account_id": self._store.account_id,
            **{name: row[name] for name in _INSTANCE_COLUMNS},
            "flags": Raw(row["flags"].encode()),
            "span_counts": {"total": sum(counts.values()), **counts, "finished": finished},
            **quality_of(row, lambda: self._versions.schema(row["agent_schema_version_id"])),
        }

    def span(self, row: SpanRow, instance: Row, *, summary: bool = True) -> Answer:
        """The details of a span of ``instance``."""
        result = row["result_payload"]
        schema = self._versions.schema(instance["agent_schema_version_id"])
        shown = schema.span_type(row["schema_name"])
        answer: Answer = {
            "type": "agent_span",
            "account_id": self._store.account_id,
            **{name: row[name] for name in _SPAN_COLUMNS},
            "schema_title": shown.title,
            "data_risk": shown.data_risk,
            "payload": Raw(row["payload"].encode()),
            "result_payload": None if result is None else Raw(result.encode()),
            "sensitive_encoding": bool(row["sensitive_encoding"]),
            "flags": Raw(row["flags"].encode()),
            "purpose": "activity",
        }
        if summary:
            answer["summary"] = shown.summary(row["payload"], result)
        return answer

    def instances(self, query: Mapping[str, str]) -> Answer:
        """A page of the runs of an agent."""
        if "agent_id" not in query:
            raise invalid("agent_id", "is required", "required")
        columns = ("agent_id", "agent_version_id")
        where = {f"{column} = ?": query[column] for column in columns if column in query}
        return page_of(self._store, "agent_instances", where, query, self.instance)

    def spans(self, query: Mapping[str, str]) -> Answer:
        """A page of the spans of a run, or of all runs of an agent."""
        summary = query.get("include_summaries", "").lower() == "true"
        instances: dict[str, Row | None] = {}

        def details(span: Row) -> Answer:
            id = span["agent_instance_id"]
            if id not in instances:
                instances[id] = self._store.one("SELECT * FROM agent_instances WHERE id = ?", id)
            instance = instances[id]
            assert instance is not None
            return self.span(span, instance, summary=summary)

        return page_of_spans(self._store, query, details)
