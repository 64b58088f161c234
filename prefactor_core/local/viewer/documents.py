"""Documents: the answers of the viewer that the page of one run needs. Synchronous."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from prefactor_core.api.answers import AgentInstanceAnswer, AgentSpanAnswer
from prefactor_core.config._version import __version__
from prefactor_core.local.read_only import connect
from prefactor_core.local.requests import stored_now
from prefactor_core.local.spans import Spans
from prefactor_core.local.store import Store
from prefactor_core.local.viewer.runs import run_details
from prefactor_core.local.viewer.spans import skeleton, span_details
from prefactor_core.local.viewer.usage import usage


def documents(db: Connection, database: str, run_id: str) -> dict[str, bytes]:
    """The documents by their paths, of a run in the database ``db``.

    ``database``: the name that the page shows. Raises :class:`ApiError` (404) for an unknown run.
    """
    about = {
        "database": database,
        # Of no use where the file is read, and nobody's business there.
        "path": database,
        "url": None,
        "version": __version__,
        "read_only": True,
        "needs_token": False,
        "time": stored_now(),
        "account_id": None,
    }
    run = f"/-/runs/{run_id}"
    paths = {
        "/-/about": msgspec.json.encode(about),
        run: run_details(db, run_id),
        f"{run}/skeleton": skeleton(db, run_id),
        f"{run}/usage": usage(db, run_id),
    }
    query = "SELECT id FROM agent_spans WHERE agent_instance_id = ? ORDER BY id"
    for (span_id,) in db.execute(query, (run_id,)).fetchall():
        paths[f"/-/spans/{span_id}"] = span_details(db, span_id)
    return paths


def documents_of(
    run: AgentInstanceAnswer, spans: Sequence[AgentSpanAnswer], database: str
) -> dict[str, bytes]:
    """The documents of a run that is stored elsewhere, from what the API there answers: the
    instance, and its spans with their summaries."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "run.db"))
        with closing(Store(path)) as store, store.transaction():
            _store(store, run, spans)
        with closing(connect(path)) as db:
            paths = documents(db, database, run.id)
    # The templates stay with the API: it sends what they make of a payload.
    shown: dict[str, Any] = msgspec.json.decode(paths[f"/-/runs/{run.id}"])
    for quality in shown["run"]["quality"]:
        quality["summary"] = run.quality_summaries.get(quality["name"])
    paths[f"/-/runs/{run.id}"] = msgspec.json.encode(shown)
    for span in spans:
        details: dict[str, Any] = msgspec.json.decode(paths[f"/-/spans/{span.id}"])
        details["span"]["summary"] = span.summary
        paths[f"/-/spans/{span.id}"] = msgspec.json.encode(details)
    return paths


def _store(store: Store, run: AgentInstanceAnswer, spans: Sequence[AgentSpanAnswer]) -> None:
    began = run.inserted_at or run.started_at or stored_now()
    agent_id, version_id = run.agent_id or "", run.agent_version_id or ""
    times = {"inserted_at": began, "updated_at": began}
    store.insert("agents", {"id": agent_id, "name": agent_id, **times})
    types = {
        span.schema_name: {
            "name": span.schema_name,
            "title": span.schema_title,
            "data_risk": span.data_risk,
        }
        for span in spans
    }
    qualities = [{"name": name} for name in run.quality_payloads]
    schema = {"span_type_schemas": [*types.values()], "quality_schemas": qualities}
    version = {
        "id": "schema",
        "agent_id": agent_id,
        "kind": "agent_schema_version",
        "content": _text(schema),
        "inserted_at": began,
    }
    store.insert("agent_versions", version)
    same = ("id", "status", "external_identifier", "termination_reason", "started_at")
    row = {
        **{name: getattr(run, name) for name in (*same, "finished_at")},
        **times,
        "agent_id": agent_id,
        "agent_version_id": version_id,
        "agent_schema_version_id": version["id"],
        "environment_id": run.environment_id or "",
        "purpose": run.purpose or "live",
        "flags": _text(run.flags),
        "quality": _text(
            {
                name: {"payload": payload, "flags": run.quality_flags.get(name, [])}
                for name, payload in run.quality_payloads.items()
            }
        ),
    }
    store.insert("agent_instances", row)
    rows = Spans(store)
    for span, parent_id in _parents_first(spans):
        inserted = span.inserted_at or began
        result = bytes(span.result_payload).decode()
        columns = ("id", "schema_name", "status", "sensitive_encoding", "started_at", "finished_at")
        rows.add(
            {
                **{name: getattr(span, name) for name in columns},
                "agent_instance_id": run.id,
                "parent_span_id": parent_id,
                "agent_id": agent_id,
                "payload": bytes(span.payload).decode(),
                "result_payload": None if result == "null" else result,
                "flags": _text(span.flags),
                "inserted_at": inserted,
                "updated_at": span.updated_at or inserted,
            }
        )


def _parents_first(
    spans: Sequence[AgentSpanAnswer],
) -> Iterator[tuple[AgentSpanAnswer, str | None]]:
    """All spans, each after its parent and with the id of that; a parent that is not there is
    none."""
    known = {span.id: span for span in spans}
    waiting = dict(known)
    # A stack, not recursion: a run may be nested deeper than Python's recursion limit.
    for span in spans:
        path: list[AgentSpanAnswer] = []
        above: AgentSpanAnswer | None = span
        while above is not None and waiting.pop(above.id, None) is not None:
            path.append(above)
            above = known.get(above.parent_span_id or "")
        for each in reversed(path):
            yield each, each.parent_span_id if each.parent_span_id in known else None


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
